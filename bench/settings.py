"""Settings of a pretraining run, and the defaults that fit the device.

Knows no model and no optimizer; only what can be written on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

OPTIMIZERS = ("bertadam", "reference", "torch", "apex")
CLIPS = ("per_tensor", "global", "none")
DTYPES = ("fp32", "bf16")

Preset = dict[str, Any]

COMMON: Preset = {
    "optimizer": "bertadam",
    "schedule": "warmup_linear",
    "schedule_args": {},
    "warmup": 0.1,
    "clip": "per_tensor",
    "max_grad_norm": 1.0,
    "weight_decay": 0.01,
    "seed": 0,
    "reduction_chunks": 1,
}
ON_CPU: Preset = {
    "size": "tiny",
    "vocab_size": 4096,
    "seq_len": 128,
    "batch": 32,
    "steps": 1000,
    "lr": 2e-3,
    "dropout": 0.0,
    "dtype": "fp32",
}
ON_SMALL_GPU: Preset = {
    "size": "small",
    "vocab_size": 8192,
    "seq_len": 128,
    "batch": 128,
    "steps": 3000,
    "lr": 5e-4,
    "dropout": 0.1,
    "dtype": "bf16",
}
ON_GPU: Preset = {**ON_SMALL_GPU, "size": "base", "batch": 256, "lr": 2e-4}
BASE_MODEL_BYTES = 20 * 2**30  # base at batch 256 and sequence 128


@dataclass(frozen=True)
class Settings:
    """Everything that a run's numbers depend on, besides the text."""

    size: str
    vocab_size: int
    seq_len: int
    batch: int
    steps: int
    optimizer: str
    schedule: str
    schedule_args: dict[str, float]
    warmup: float
    lr: float
    clip: str
    max_grad_norm: float
    weight_decay: float
    dropout: float
    seed: int
    device: str
    dtype: str
    eval_every: int
    reduction_chunks: int  # of the reference optimizer: orders the sums of its norms differently

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch", "steps", "eval_every", "reduction_chunks"):
            smallest = 3 if name == "seq_len" else 1
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"pretrain_bert: {name} is {getattr(self, name)}, expected at least {smallest}"
                )


def complete(given: Mapping[str, Any]) -> Settings:
    """Fill what is not given (missing or None) with the defaults of the device."""
    chosen = {name: value for name, value in given.items() if value is not None}
    device = chosen.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {**COMMON, **device_preset(torch.device(device)), **chosen, "device": device}
    settings.setdefault("eval_every", max(1, settings["steps"] // 20))
    return Settings(**settings)


def device_preset(device: torch.device) -> Preset:
    """Pick the model by what the device can train in a few minutes."""
    if device.type != "cuda":
        return ON_CPU
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"pretrain_bert: device is {device}, but torch {torch.__version__} sees no GPU;"
            " use --device cpu"
        )
    memory = torch.cuda.get_device_properties(device).total_memory
    preset = ON_GPU if memory >= BASE_MODEL_BYTES else ON_SMALL_GPU
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        preset = {**preset, "dtype": "fp32"}
    return preset


def differences(given: Mapping[str, Any], settings: Settings) -> list[str]:
    """Settings that are given and are not the run's: the reasons why it cannot be continued."""
    return [
        f"{field.name} is {given[field.name]!r}, was {getattr(settings, field.name)!r}"
        for field in fields(settings)
        if given.get(field.name) is not None and given[field.name] != getattr(settings, field.name)
    ]
