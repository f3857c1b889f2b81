"""NaN and infinity in gradients, and the statistics that a step leaves behind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bert_cases import Case, bits, draw_grads, random_groups
from torch import nn

from bertadam_cuda import BertAdam

BAD = [math.nan, math.inf, -math.inf]
SIZE = 5000


def three(bad: float | None, **settings: Any) -> tuple[list[nn.Parameter], BertAdam]:
    """Three parameters in two groups after one good step; the second gradient is then bad."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(SIZE)) for _ in range(3)]
    opt = BertAdam([{"params": params[:2]}, {"params": params[2:]}], lr=0.1, **settings)
    for param in params:
        param.grad = torch.randn(SIZE)
    opt.step()
    if bad is not None:
        assert params[1].grad is not None
        params[1].grad[-1] = bad
    return params, opt


def everything(param: nn.Parameter, opt: BertAdam) -> list[bytes]:
    return [bits(param), *(bits(value) for value in opt.state[param].values())]


def changed_by_step(params: list[nn.Parameter], opt: BertAdam) -> list[bool]:
    before = [everything(param, opt) for param in params]
    opt.step()
    return [old != everything(p, opt) for old, p in zip(before, params, strict=True)]


@pytest.mark.parametrize("bad", BAD)
def test_clipping_per_tensor_skips_the_parameter(bad: float) -> None:
    params, opt = three(bad)
    assert changed_by_step(params, opt) == [True, False, True]
    assert [opt.state[p]["step"].item() for p in params] == [2, 1, 2]
    assert int(opt.skipped) == 1


@pytest.mark.parametrize("bad", BAD)
def test_global_clipping_skips_the_step(bad: float) -> None:
    params, opt = three(bad, clip="global")
    assert changed_by_step(params, opt) == [False, False, False]
    assert int(opt.skipped) > 0


@pytest.mark.parametrize("bad", BAD)
def test_without_a_norm_nan_goes_through(bad: float) -> None:
    params, opt = three(bad, max_grad_norm=0.0)
    assert changed_by_step(params, opt) == [True, True, True]
    assert not math.isfinite(params[1][-1].item())
    assert all(params[1][:-1].isfinite())
    assert all(params[0].isfinite())
    assert opt.state[params[1]]["step"].item() == 2


@pytest.mark.parametrize(("clip", "expected"), [("per_tensor", [1, 0, 1]), ("global", [0, 0, 0])])
@pytest.mark.parametrize("bad", BAD)
def test_explicit_skip_without_clipping_buys_the_norm(
    bad: float, clip: str, expected: list[int]
) -> None:
    params, opt = three(bad, max_grad_norm=0.0, clip=clip, on_nonfinite="skip")
    assert changed_by_step(params, opt) == [bool(flag) for flag in expected]
    assert opt.grad_norms is not None
    assert not opt.grad_norms[1].isfinite()


@pytest.mark.parametrize("clip", ["per_tensor", "global"])
def test_explicit_propagate_with_clipping_lets_nan_through(clip: str) -> None:
    params, opt = three(math.nan, clip=clip, on_nonfinite="propagate")
    opt.step()
    assert params[1].isnan().all()
    assert bool(params[0].isnan().all()) == (clip == "global")
    assert [opt.state[p]["step"].item() for p in params] == [2, 2, 2]


def test_per_tensor_groups_without_a_limit_propagate() -> None:
    params = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "max_grad_norm": 0.0}]
    opt = BertAdam(groups, lr=0.1)
    for param in params:
        param.grad = torch.full((4,), math.nan)
    opt.step()
    assert bits(params[0]) == bits(torch.ones(4))
    assert params[1].isnan().all()


def test_global_clipping_covers_groups_without_a_limit() -> None:
    params = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "max_grad_norm": 0.0}]
    opt = BertAdam(groups, lr=0.1, clip="global")
    params[0].grad = torch.ones(4)
    params[1].grad = torch.full((4,), math.inf)
    opt.step()
    assert [bits(param) for param in params] == [bits(torch.ones(4))] * 2


@pytest.mark.parametrize("clip", ["per_tensor", "global"])
def test_training_goes_on_after_a_skip(clip: str) -> None:
    case = Case(random_groups(6), clip=clip)
    n_skipped = 0
    for step in range(12):
        grads = draw_grads(case.params, seed=step, none_rate=0.1)
        for grad in grads[step % 5 :: 5] if step % 3 == 1 else []:
            if grad is not None and grad.numel():
                grad.reshape(-1)[-1:].fill_(math.nan) if grad.is_contiguous() else grad.fill_(
                    math.inf
                )
        case.step(grads)
        n_skipped += sum(not math.isfinite(norm) for norm in case.oracle.norms)
    assert n_skipped > 3
    assert int(case.opt.skipped) >= n_skipped


def test_the_largest_finite_gradients_are_not_taken_for_infinite() -> None:
    largest = torch.finfo(torch.float32).max
    param = nn.Parameter(torch.zeros(SIZE))
    param.grad = torch.full((SIZE,), largest)
    opt = BertAdam([param], lr=0.1)
    opt.step()
    assert int(opt.skipped) == 0
    assert opt.grad_norm.item() == pytest.approx(largest * math.sqrt(SIZE), rel=1e-12)
    assert param.isfinite().all()
    assert (param < 0).all()


def test_tiny_gradients_have_a_norm() -> None:
    param = nn.Parameter(torch.zeros(16))
    param.grad = torch.full((16,), 1e-45)
    opt = BertAdam([param], lr=0.1)
    opt.step()
    assert opt.grad_norm.item() == pytest.approx(4 * torch.tensor(1e-45).item(), rel=1e-12)


@pytest.mark.parametrize("clip", ["per_tensor", "global"])
def test_statistics_are_those_of_the_oracle(clip: str) -> None:
    case = Case(random_groups(8), clip=clip)
    for step in range(3):
        grads = draw_grads(case.params, seed=step, none_rate=0.3)
        case.step(grads)
        given = [index for index, grad in enumerate(grads) if grad is not None]
        missing = [index for index, grad in enumerate(grads) if grad is None]
        opt, oracle = case.opt, case.oracle
        assert opt.grad_norms is not None
        assert (opt.grad_norms.dtype, opt.grad_norms.shape) == (torch.float64, (len(grads),))
        norms = [oracle.norms[index] for index in given]
        assert opt.grad_norms[given].tolist() == pytest.approx(norms, rel=1e-12)
        assert opt.grad_norms[missing].isnan().all()
        total = math.sqrt(sum(norm * norm for norm in norms))
        assert opt.grad_norm.dtype == torch.float64
        assert opt.grad_norm.item() == pytest.approx(total, rel=1e-12)
        coefs = [oracle.coefs[index] for index in given]
        assert opt.clip_coefs[given].tolist() == pytest.approx(coefs, rel=1e-7)
        assert min(coefs) < 0.9
        assert int(opt.skipped) == 0


def test_there_are_no_norms_where_none_was_computed() -> None:
    _, opt = three(None, max_grad_norm=0.0)
    assert opt.grad_norms is None
    assert opt.grad_norm is None
    assert int(opt.skipped) == 0


def test_statistics_before_the_first_step_are_empty() -> None:
    opt = BertAdam([nn.Parameter(torch.ones(2))], lr=0.1)
    assert opt.grad_norms is None
    assert opt.grad_norm is None
    assert opt.clip_coefs is None
    assert int(opt.skipped) == 0


def test_counts_are_int64() -> None:
    params, opt = three(math.nan)
    opt.step()
    assert opt.skipped.dtype == torch.int64
    assert opt.skipped.shape == ()
    assert params[1].grad is not None
