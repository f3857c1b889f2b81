"""Adam's bits: the same from every instruction set and worker count, and from CPU and GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from adam_cases import AdamTwin
from backends import odd_params, run, same
from torch import nn

from bertadam_cuda import Adam, _ext

_C = _ext.load()
MODES: dict[str, dict[str, Any]] = {
    "no clip": {},
    "global": {"max_grad_norm": 1.0},
    "per tensor": {"max_grad_norm": 1.0, "clip": "per_tensor"},
    "L2 decay": {"weight_decay": 0.3, "bias_correction": False},
}
modes = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
amsgrads = pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])


@pytest.fixture
def _restore_isa() -> Iterator[None]:
    yield
    _C.set_cpu_isa(_C.cpu_isas()[-1])


@modes
@amsgrads
@pytest.mark.usefixtures("_restore_isa")
def test_instruction_sets_and_workers_give_the_same_bits(
    settings: dict[str, Any], amsgrad: bool
) -> None:
    params = odd_params()
    settings = {"kind": AdamTwin, "amsgrad": amsgrad, **settings}
    expected = run(params, "cpu", workers=1, **settings)
    for isa in _C.cpu_isas():
        _C.set_cpu_isa(isa)
        for workers in (1, 7):
            assert same(run(params, "cpu", workers=workers, **settings), expected), isa


@pytest.mark.parametrize(
    "change", [{"max_grad_norm": 1.001}, {"eps": 1e-7}, {"amsgrad": False}, {"lr": 0.11}], ids=str
)
def test_another_setting_gives_other_bits(change: dict[str, Any]) -> None:
    """A negative control: everything that is varied reaches the bits."""
    settings: dict[str, Any] = {"amsgrad": True, "lr": 0.1, **MODES["global"]}
    params = odd_params()
    expected = run(params, "cpu", kind=AdamTwin, **settings)
    assert same(run(params, "cpu", kind=AdamTwin, **settings), expected)
    assert not same(run(params, "cpu", kind=AdamTwin, **{**settings, **change}), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", [0, 1, 132])
@modes
@amsgrads
def test_gpu_gives_the_bits_of_the_cpu(
    settings: dict[str, Any], blocks: int, amsgrad: bool
) -> None:
    params = odd_params()
    settings = {"kind": AdamTwin, "amsgrad": amsgrad, **settings}
    expected = run(params, "cpu", **settings)
    assert same(run(params, "cuda", workers=blocks, **settings), expected)


@pytest.mark.gpu
def test_a_learning_rate_on_a_gpu_is_refused() -> None:
    param = nn.Parameter(torch.ones(3, device="cuda"))
    with pytest.raises(ValueError, match=r"lr is a tensor on cuda:0.*lr.cpu\(\)"):
        Adam([param], lr=torch.tensor(0.1, device="cuda"))
