"""Settings fit the device; what is out of range is refused by name, whichever the optimizer."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import settings as settings_module
from settings import OPTIMIZERS, complete, differences

GIB = 2**30
CPU = {"device": "cpu"}


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, n_gpus: int, memory: int, bf16: bool) -> None:
    properties = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)


def test_cpu_gets_a_model_that_it_can_train() -> None:
    found = complete(CPU)
    assert (found.size, found.vocab_size, found.dtype, found.device) == (
        "tiny",
        4096,
        "fp32",
        "cpu",
    )
    assert found.eval_every == found.steps // 20
    assert (found.optimizer, found.schedule, found.clip) == (
        "bertadam",
        "warmup_linear",
        "per_tensor",
    )


@pytest.mark.parametrize(
    ("memory", "bf16", "size"),
    [
        (80 * GIB, True, "base"),
        (20 * GIB, True, "base"),
        (20 * GIB - 1, True, "small"),
        (8 * GIB, False, "small"),
        (32 * GIB, False, "base"),
    ],
)
def test_gpu_gets_the_model_that_fits_its_memory(
    monkeypatch: pytest.MonkeyPatch, memory: int, bf16: bool, size: str
) -> None:
    pretend_gpus(monkeypatch, 1, memory, bf16)
    found = complete({})
    assert (found.device, found.size, found.dtype) == ("cuda", size, "fp32")
    assert found.autocast == bf16


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_dtype_that_is_given_goes_without_the_presets_autocast(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    pretend_gpus(monkeypatch, 1, 80 * GIB, True)
    assert not complete({"dtype": dtype}).autocast
    assert complete({"dtype": "fp32", "autocast": True}).autocast


def test_cpu_is_chosen_where_torch_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 0, 0, False)
    assert complete({}).device == "cpu"


@pytest.mark.parametrize("optimizer", ["lamb", "nvlamb", "lars"])
def test_layerwise_optimizer_clips_by_the_norm_over_all_at_an_lr_of_its_own(optimizer: str) -> None:
    found, plain = complete({**CPU, "optimizer": optimizer}), complete(CPU)
    assert found.clip == "global"
    assert found.lr > plain.lr
    given = {"optimizer": optimizer, "clip": "per_tensor", "lr": 0.25}
    found = complete({**CPU, **given})
    assert (found.clip, found.lr) == ("per_tensor", 0.25)


def test_given_settings_go_before_the_preset_and_none_means_not_given() -> None:
    found = complete({**CPU, "size": "mini", "steps": 10, "lr": None, "schedule_args": None})
    assert (found.size, found.steps, found.eval_every) == ("mini", 10, 1)
    assert found.lr == settings_module.ON_CPU["lr"]
    assert found.schedule_args == {}


@pytest.mark.parametrize(
    ("n_gpus", "device", "message"),
    [
        (0, "cuda", r"--device is cuda, but torch .* sees no GPUs; use --device cpu"),
        (1, "cuda:1", r"--device is cuda:1, but torch .* sees 1 GPU; use --device cuda:0"),
        (2, "cuda:7", r"--device is cuda:7, but torch .* sees 2 GPUs; use --device cuda:0"),
    ],
)
def test_missing_gpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch, n_gpus: int, device: str, message: str
) -> None:
    pretend_gpus(monkeypatch, n_gpus, GIB, True)
    with pytest.raises(RuntimeError, match=f"^pretrain_bert: {message}$"):
        complete({"device": device})


@pytest.mark.parametrize("device", ["gpu", "mps", "meta", "cuda:x", "cpu cpu"])
def test_device_of_another_kind_is_an_error(device: str) -> None:
    expected = f"^pretrain_bert: --device is {device}, expected cpu, cuda or cuda:NUMBER$"
    with pytest.raises(ValueError, match=expected):
        complete({"device": device})


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "--steps is 0, expected at least 1"),
        ({"batch": -1}, "--batch is -1, expected at least 1"),
        ({"seq_len": 2}, "--seq-len is 2, expected at least 3"),
        ({"eval_every": 0}, "--eval-every is 0, expected at least 1"),
        ({"lr": -1.0}, "--lr is -1.0, expected at least 0"),
        ({"lr": NAN}, "--lr is nan, expected at least 0"),
        ({"lr": INF}, "--lr is inf, expected at least 0"),
        ({"weight_decay": -0.1}, "--weight-decay is -0.1, expected at least 0"),
        ({"max_grad_norm": NAN}, "--max-grad-norm is nan, expected a finite number"),
        ({"dropout": 2.0}, "--dropout is 2.0, expected 0 to 1"),
        ({"seed": -1}, "--seed is -1, expected 0 to 9223372036854775807"),
        ({"warmup": 2.0}, "warmup is 2.0, expected [0, 1), or -1 for no ramp"),
        ({"schedule": "linear"}, "schedule"),
        ({"schedule_args": {"x": 1.0}}, "schedule_args of schedule 'warmup_linear': unknown 'x'"),
    ],
    ids=lambda value: "-".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_bad_setting_is_refused_with_every_optimizer(
    optimizer: str, given: dict[str, Any], message: str
) -> None:
    """Bug: a negative or NaN lr was accepted with the optimizers that do not check it."""
    with pytest.raises(ValueError, match=r"^pretrain_bert: ") as error:
        complete({**CPU, **given, "optimizer": optimizer})
    assert message in str(error.value)


def test_values_at_the_ends_of_the_ranges_are_accepted() -> None:
    ends = {"steps": 1, "batch": 1, "seq_len": 3, "lr": 0.0, "weight_decay": 0.0, "warmup": -1}
    complete({**CPU, **ends, "dropout": 0.0, "seed": 2**63 - 1, "max_grad_norm": -1.0})


def test_differences_are_named_as_on_the_command_line() -> None:
    own = complete(CPU)
    assert differences({}, own) == []
    assert differences({"size": "tiny", "lr": None, "seed": own.seed}, own) == []
    assert differences({"size": "mini", "max_grad_norm": 0.5}, own) == [
        "--model is mini, was tiny",
        "--max-grad-norm is 0.5, was 1.0",
    ]
