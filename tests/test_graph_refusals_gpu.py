"""Captures that cannot be: refused by name, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from capturable_cases import CLASSES, params_of
from graph_cases import Pair, captured
from scaler_cases import make_scaler
from torch import Tensor, nn

from bertadam_cuda import BertAdam
from bertadam_cuda.amp import GradScaler

pytestmark = pytest.mark.gpu
classes = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)


def copies(opt: Any) -> list[Tensor]:
    tensors = [param.detach() for param in params_of(opt)]
    for param in params_of(opt):
        tensors += opt.state.get(param, {}).values()
    return [tensor.clone() for tensor in tensors]


def assert_refused(opt: Any, message: str, step: Callable[[], Any] | None = None) -> None:
    """The capture raises, everything is as before, and a step outside can be made."""
    torch.cuda.synchronize()
    before = copies(opt)
    with pytest.raises(RuntimeError, match=rf"(?s){type(opt).__name__}: .*captured.*{message}"):
        captured(step or opt.step)
    torch.cuda.synchronize()
    assert all(map(torch.equal, copies(opt), before))
    assert len(copies(opt)) == len(before)
    assert opt._captured.n_launches == 0
    opt.step()
    assert not all(map(torch.equal, copies(opt), before))


@classes
def test_without_capturable(make: Callable[..., Any]) -> None:
    pair = Pair(make)
    pair.warm_up()
    assert_refused(pair.twin, "capturable=True")


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["float", "on the CPU"])
@pytest.mark.parametrize("n_steps", [0, 2])
def test_a_rate_that_would_be_kept_for_ever(rate: Any, n_steps: int) -> None:
    pair = Pair()
    pair.opt.param_groups[1]["lr"] = rate
    pair.warm_up(n_steps)
    assert_refused(pair.opt, r"param_groups\[1\].*lr=torch\.tensor")


def test_states_that_are_not_made() -> None:
    pair = Pair()
    pair.draw(0)
    assert_refused(pair.opt, "one step outside")


def test_settings_that_no_step_has_seen() -> None:
    pair = Pair()
    pair.warm_up()
    pair.opt.param_groups[0]["weight_decay"] = 0.5
    assert_refused(pair.opt, "one step outside")


def test_a_scaler_that_no_step_has_seen() -> None:
    """Ours has all norms awaited, which takes another list."""
    pair = Pair()
    pair.warm_up()
    scaler = make_scaler(GradScaler, "cuda")
    assert_refused(pair.opt, "with the scaler", lambda: scaler.step(pair.opt))


def test_gradients_of_a_type_that_no_step_has_seen() -> None:
    pair = Pair()
    for param in params_of(pair.opt):
        param.grad_dtype = None
    pair.warm_up()
    for param in params_of(pair.opt):
        assert param.grad is not None
        param.grad = param.grad.bfloat16()
    assert_refused(pair.opt, "of the same dtypes")


BAD_RATES: dict[str, tuple[Any, str]] = {
    "half": (torch.float16, "expected float32 or float64"),
    "whole": (torch.int64, "expected float32 or float64"),
}


@pytest.mark.parametrize(("dtype", "message"), BAD_RATES.values(), ids=BAD_RATES)
def test_rates_of_other_types(dtype: torch.dtype, message: str) -> None:
    param = nn.Parameter(torch.ones(2, device="cuda"))
    rate = torch.ones((), dtype=dtype, device="cuda")
    with pytest.raises(ValueError, match=rf"lr is a tensor of {dtype} on cuda:0, {message}"):
        BertAdam([param], lr=rate, capturable=True)


def test_rates_elsewhere_and_bad_ones() -> None:
    param = nn.Parameter(torch.ones(2, device="cuda"))
    rate = torch.tensor(0.1, device="cuda")
    with pytest.raises(ValueError, match=r"lr is a tensor on cuda:0.*capturable=True"):
        BertAdam([param], lr=rate)
    with pytest.raises(ValueError, match=r"lr is a tensor on cuda:0, .* parameters on cpu"):
        BertAdam([nn.Parameter(torch.ones(2))], lr=rate, capturable=True)
    with pytest.raises(ValueError, match=r"lr is -0\.1"):
        BertAdam([param], lr=-rate, capturable=True)


def test_a_rate_that_moves_is_noticed() -> None:
    """Another tensor, other memory of the same one, and a number again."""
    pair = Pair()
    pair.warm_up()
    other = torch.tensor(0.2, device="cuda")
    memory = torch.tensor(0.3, dtype=torch.float64, device="cuda")

    changes: list[tuple[Any, float]] = [
        (other, float(other)),
        (pair.lr, 0.1),
        (None, 0.3),
        (0.4, 0.4),
        (torch.tensor(0.5), 0.5),
        (pair.lr, 0.3),
    ]
    for step, (rate, lr) in enumerate(changes, 2):
        if rate is None:
            pair.lr.data = memory
        for mine, twin in zip(pair.opt.param_groups, pair.twin.param_groups, strict=True):
            if rate is not None:
                mine["lr"] = rate
            twin["lr"] = lr
        for _ in range(2):
            pair.draw(step)
            pair.step()
            pair.compare()
