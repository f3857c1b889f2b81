"""Settings of a pretraining run, and the defaults that fit the device.

Knows no model and no optimizer; only what can be written on the command line. What is out of range
is refused here, whichever optimizer is chosen, before the text is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from phases import Phase
from storage import MASTERS

from bertadam_cuda.schedules import validate

#: Those of this package, which clip, schedule and keep masters themselves.
OURS = ("bertadam", "adamw", "lamb", "nvlamb", "lars")
OPTIMIZERS = (*OURS, "reference", "torch", "apex")
CLIPS = ("per_tensor", "global", "none")
#: What each dtype is trained with unless asked otherwise: what loses nothing, in the least memory.
DEFAULT_MASTERS = {"fp32": "none", "bf16": "remainder", "fp16": "fp32"}

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
    "autocast": False,
    "stochastic_rounding": False,
    "reduction_chunks": 1,
    "accumulate": 1,
    "phase2_steps": 0,
}
ON_CPU: Preset = {
    "size": "tiny",
    "vocab_size": 4096,
    "seq_len": 128,
    "batch": 32,
    "steps": 1000,
    "lr": 5e-4,
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
    "dtype": "fp32",
    "autocast": True,
}
ON_GPU: Preset = {**ON_SMALL_GPU, "size": "base", "batch": 256, "lr": 2e-4}
#: What replaces the presets' values: here lr is the relative change of a tensor per step.
FOR_OPTIMIZER: dict[str, Preset] = {
    "lamb": {"clip": "global", "lr": 4e-3},
    "nvlamb": {"clip": "global", "lr": 4e-3},
    "lars": {"clip": "global", "lr": 4e-3},
}
#: Smallest and largest value of a setting; numbers that are not finite are refused as well.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("batch", "phase2_batch", "accumulate", "steps"), (1, math.inf)),
    **dict.fromkeys(("eval_every", "reduction_chunks"), (1, math.inf)),
    **dict.fromkeys(("lr", "phase2_lr", "weight_decay", "phase2_steps"), (0, math.inf)),
    # [CLS], [SEP] and something to predict
    **dict.fromkeys(("seq_len", "phase2_seq_len"), (3, math.inf)),
    "dropout": (0, 1),
    "seed": (0, 2**63 - 1),
    "max_grad_norm": (-math.inf, math.inf),  # off if <= 0
}
_OF_PHASE2 = {"phase2_seq_len", "phase2_batch", "phase2_lr", "phase2_warmup"}
BASE_MODEL_BYTES = 20 * 2**30  # base at batch 256 and sequence 128


@dataclass(frozen=True)
class Settings:
    """Everything that a run's numbers depend on, besides the text."""

    size: str
    vocab_size: int
    seq_len: int
    batch: int
    accumulate: int  # batches per update
    steps: int  # of the first phase, or of the only one
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
    dtype: str  # of parameters and gradients, and of what the model computes with
    autocast: bool  # float32 parameters, most of the model in bfloat16
    master_weights: str
    stochastic_rounding: bool
    eval_every: int
    reduction_chunks: int  # of the reference optimizer: orders the sums of its norms differently
    phase2_steps: int  # 0: there is one phase
    phase2_seq_len: int
    phase2_batch: int
    phase2_lr: float
    phase2_warmup: float

    def __post_init__(self) -> None:
        for name, (smallest, largest) in RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and smallest <= value <= largest):
                upwards = "a finite number" if smallest == -math.inf else f"at least {smallest}"
                expected = upwards if largest == math.inf else f"{smallest} to {largest}"
                raise ValueError(f"pretrain_bert: {option(name)} is {value}, expected {expected}")
        _check_storage(self)
        for phase in self.phases:
            validate(*phase.scheduled, where="pretrain_bert")
        if self.phase2_steps and self.lr == 0:
            raise ValueError(
                "pretrain_bert: --lr is 0, expected more with --phase2-steps: optimizers without"
                " phases get the second lr as a multiple of the first"
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What the run does, in order."""
        schedule = (self.schedule, self.schedule_args, self.accumulate)
        first = Phase(0, self.steps, self.seq_len, self.batch, self.lr, self.warmup, *schedule)
        if not self.phase2_steps:
            return (first,)
        data = (self.phase2_seq_len, self.phase2_batch)
        rates = (self.phase2_lr, self.phase2_warmup)
        return (first, Phase(self.steps, self.phase2_steps, *data, *rates, *schedule))

    @property
    def total_steps(self) -> int:
        """Updates of all phases."""
        return self.steps + self.phase2_steps

    @property
    def stored_as(self) -> str:
        """How parameters are kept and computed with, in words."""
        if self.autocast:
            return f"{self.dtype}, bf16 autocast"
        if self.stochastic_rounding:
            return f"{self.dtype}, stochastic rounding"
        has_master = self.master_weights != "none"
        return f"{self.dtype}, master {self.master_weights}" if has_master else self.dtype


def _check_storage(settings: Settings) -> None:
    """Refuse what cannot be, or what would train worse than somebody expects."""
    dtype, master = settings.dtype, settings.master_weights
    with_dtype = f"--dtype {dtype}"
    reason = None
    if settings.autocast and dtype != "fp32":
        reason = f"--autocast is for --dtype fp32; with {with_dtype} the model is {dtype} anyway"
    elif dtype != "fp32" and settings.optimizer == "apex":
        reason = (
            f"{with_dtype} is not for --optimizer apex, whose float32 moments torch rounds to"
            f" {dtype} when a checkpoint is loaded"
        )
    elif dtype == "fp16" and settings.optimizer not in OURS:
        reason = (
            f"{with_dtype} is for --optimizer {', '.join(OURS)}; {settings.optimizer} keeps"
            " moments in fp16, where the squares of most gradients are 0. Use --dtype bf16"
        )
    elif (master != "none" or settings.stochastic_rounding) and settings.optimizer not in OURS:
        reason = (
            f"--master-weights and --stochastic-rounding are for --optimizer {', '.join(OURS)},"
            f" not for {settings.optimizer}"
        )
    elif master not in MASTERS[dtype]:
        reason = (
            f"--master-weights is {master}, expected {' or '.join(MASTERS[dtype])} with"
            f" {with_dtype}"
        )
    elif settings.stochastic_rounding and dtype != "bf16":
        reason = f"--stochastic-rounding is for --dtype bf16, not for {dtype}"
    elif settings.stochastic_rounding and master != "none":
        reason = (
            "--stochastic-rounding is for parameters without a master, but --master-weights is"
            f" {master}; choose one of them"
        )
    if reason is not None:
        raise ValueError(f"pretrain_bert: {reason}")


def option(setting: str) -> str:
    """How a setting is written on the command line."""
    return "--model" if setting == "size" else f"--{setting.replace('_', '-')}"


def complete(given: Mapping[str, Any]) -> Settings:
    """Fill what is not given (missing or None) with the defaults of the device."""
    chosen = {name: value for name, value in given.items() if value is not None}
    device = chosen.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {**COMMON, **device_preset(parsed_device(device))}
    settings |= FOR_OPTIMIZER.get(chosen.get("optimizer", ""), {})
    if "dtype" in chosen:
        settings["autocast"] = False  # the preset's is for the preset's dtype
    settings |= {**chosen, "device": device}
    has_masters = settings["optimizer"] in OURS and not settings["stochastic_rounding"]
    default = DEFAULT_MASTERS.get(settings["dtype"], "none") if has_masters else "none"
    settings.setdefault("master_weights", default)
    settings.setdefault("eval_every", max(1, settings["steps"] // 20))
    if not settings["phase2_steps"] and (unused := sorted(_OF_PHASE2 & chosen.keys())):
        named = ", ".join(map(option, unused))
        raise ValueError(f"pretrain_bert: {named}: only with --phase2-steps")
    for name in ("lr", "warmup"):
        settings.setdefault(f"phase2_{name}", settings[name])
    # BERT's own: from 128 to 512 tokens. As many tokens per step, so that memory suffices.
    length = settings.setdefault("phase2_seq_len", 4 * settings["seq_len"])
    n_tokens = settings["batch"] * settings["seq_len"]
    settings.setdefault("phase2_batch", max(1, n_tokens // max(1, length)))
    return Settings(**settings)


def parsed_device(name: str) -> torch.device:
    """The device that a name means; only those that BertAdam can run on."""
    try:
        device = torch.device(name)
    except RuntimeError:  # torch's message lists two dozen kinds
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"pretrain_bert: --device is {name}, expected cpu, cuda or cuda:NUMBER")
    return device


def device_preset(device: torch.device) -> Preset:
    """Pick the model by what the device can train in a few minutes."""
    if device.type != "cuda":
        return ON_CPU
    n_gpus = torch.cuda.device_count()
    if (device.index or 0) >= n_gpus:
        raise RuntimeError(
            f"pretrain_bert: --device is {device}, but torch {torch.__version__} sees"
            f" {n_gpus or 'no'} GPU{'s'[: n_gpus != 1]};"
            f" use --device {'cuda:0' if n_gpus else 'cpu'}"
        )
    memory = torch.cuda.get_device_properties(device).total_memory
    preset = ON_GPU if memory >= BASE_MODEL_BYTES else ON_SMALL_GPU
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        preset = {**preset, "autocast": False}
    return preset


def differences(given: Mapping[str, Any], settings: Settings) -> list[str]:
    """Settings that are given and are not the run's: the reasons why it cannot be continued."""
    return [
        f"{option(field.name)} is {given[field.name]}, was {getattr(settings, field.name)}"
        for field in fields(settings)
        if given.get(field.name) is not None and given[field.name] != getattr(settings, field.name)
    ]
