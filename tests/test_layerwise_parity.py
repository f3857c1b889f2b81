"""Bits of LAMB and LARS: the same from every instruction set and worker count, and on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import Twin, odd_grads, odd_params, run, same
from layerwise_cases import LambTwin, LarsTwin
from mixed_backends import mixture
from mixed_backends import run as run_mixed
from mixed_cases import DTYPES
from mixed_cases import MODES as STORAGES

from bertadam_cuda import _ext

_C = _ext.load()
MODES: dict[str, dict[str, Any]] = {
    "LAMB": {"kind": LambTwin},
    "LAMB per tensor": {"kind": LambTwin, "clip": "per_tensor"},
    "LAMB no clip": {"kind": LambTwin, "max_grad_norm": 0.0},
    "LAMB always": {"kind": LambTwin, "pre_normalize": "always", "bias_correction": False},
    "NVLAMB": {"kind": LambTwin, "use_nvlamb": True, "on_nonfinite": "propagate"},
    "LARS": {"kind": LarsTwin},
    "LARS global": {"kind": LarsTwin, "max_grad_norm": 1.0},
    "LARS per tensor": {"kind": LarsTwin, "max_grad_norm": 1.0, "clip": "per_tensor"},
    "LARS propagate": {"kind": LarsTwin, "clip": "per_tensor"},
    "LARS skip": {"kind": LarsTwin, "clip": "per_tensor", "on_nonfinite": "skip"},
}
modes = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
twins = pytest.mark.parametrize("kind", [LambTwin, LarsTwin])
#: Three workers in place of a GPU: what shows that the comparison works where there is none.
backends = pytest.mark.parametrize(
    ("device", "workers"),
    [("cpu", 3), pytest.param("cuda", 0, marks=pytest.mark.gpu)],
    ids=["cpu", "cuda"],
)


@pytest.fixture
def _restore_isa() -> Iterator[None]:
    yield
    _C.set_cpu_isa(_C.cpu_isas()[-1])


@modes
@pytest.mark.usefixtures("_restore_isa")
def test_instruction_sets_and_workers_give_the_same_bits(settings: dict[str, Any]) -> None:
    params = odd_params()
    settings = {**settings, "n_steps": 2}
    expected = run(params, "cpu", workers=1, **settings)
    for isa in _C.cpu_isas():
        _C.set_cpu_isa(isa)
        assert same(run(params, "cpu", workers=7, **settings), expected), isa


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("LAMB", {"max_grad_norm": 1.001}),
        ("LAMB", {"eps": 1.01e-6}),
        ("LAMB", {"use_nvlamb": True, "weight_decay": 0.0}),
        ("LARS", {"lr": 0.11}),
        ("LARS", {"momentum": 0.91}),
        ("LARS", {"eps": 1e-7}),
        ("LARS per tensor", {"max_grad_norm": 1.001}),
    ],
    ids=str,
)
def test_another_setting_gives_other_bits(mode: str, change: dict[str, Any]) -> None:
    """A negative control: what is varied reaches the bits."""
    params, settings = odd_params()[:12], {**MODES[mode], "n_steps": 2}
    expected = run(params, "cpu", **settings)
    assert same(run(params, "cpu", **settings), expected)
    assert not same(run(params, "cpu", **{**settings, **change}), expected)


@twins
@backends
@pytest.mark.parametrize("storage", STORAGES)
def test_mixtures_of_types_give_the_bits_of_the_cpu(
    kind: type[Twin], storage: str, device: str, workers: int
) -> None:
    params, settings = mixture(storage), {"kind": kind, "n_steps": 2, **STORAGES[storage]}
    expected = run_mixed(params, "cpu", DTYPES, **settings)
    assert same(run_mixed(params, device, DTYPES, workers=workers, **settings), expected)


@twins
@backends
@pytest.mark.parametrize("clip", ["global", "per_tensor"])
def test_a_scaler_gives_the_bits_of_the_cpu(
    kind: type[Twin], clip: str, device: str, workers: int
) -> None:
    """The second step is left out: some gradient was not finite."""
    params, results = odd_params(), []
    for where, n in (("cpu", 1), (device, workers)):
        twin = kind(copy.deepcopy(params), where, clip=clip, max_grad_norm=1.0)
        for step, found_inf in enumerate([0.0, 1.0, 0.0]):
            for plan in twin.opt._plans:
                plan.workers = n
            twin.opt.grad_scale = torch.tensor(3.0, device=where)
            twin.opt.found_inf = torch.tensor(found_inf, device=where)
            twin.step(odd_grads(params, step))
            del twin.opt.grad_scale, twin.opt.found_inf
        results.append(twin.bits())
    assert int(twin.opt.skipped) > 0
    assert same(results[1], results[0])


@pytest.mark.gpu
@pytest.mark.parametrize("retained_draws", [-1, 0, 1])
@pytest.mark.parametrize("blocks", [0, 1, 5, 132])
@modes
def test_gpu_gives_the_bits_of_the_cpu(
    settings: dict[str, Any], blocks: int, retained_draws: int
) -> None:
    params = odd_params()
    expected = run(params, "cpu", **settings)
    more = {"workers": blocks, "retained_draws": retained_draws}
    assert same(run(params, "cuda", **more, **settings), expected)


@pytest.mark.gpu
@modes
def test_every_run_on_a_gpu_gives_the_same_bits(settings: dict[str, Any]) -> None:
    """Many steps of large parameters, so that blocks come and go in many orders."""
    params = [torch.nn.Parameter(torch.randn(n)) for n in (3_000_000, 1, 70_000, 500_000)]
    runs = [run(params, "cuda", n_steps=12, **settings) for _ in range(3)]
    assert same(runs[1], runs[0])
    assert same(runs[2], runs[0])
