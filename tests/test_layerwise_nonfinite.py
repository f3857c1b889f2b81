"""LAMB and LARS: gradients that are not finite, and gradient scalers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from layerwise_cases import Beside, LambBeside, LarsBeside, draw_grads
from scaler_cases import make_scaler
from torch import Tensor

from bertadam_cuda.amp import GradScaler

KINDS: dict[str, type[Beside]] = {"LAMB": LambBeside, "LARS": LarsBeside}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
bads = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
GROUPS: list[dict[str, Any]] = [{"weight_decay": 0.1}, {}]
VICTIM = 5  # place of the parameter that has a bad gradient


def make(kind: type[Beside], **settings: Any) -> Beside:
    return kind(GROUPS, **{"lr": 0.1, "max_grad_norm": 1.0, **settings})


def set_grads(case: Beside, step: int, scale: float = 1.0, bad: float | None = None) -> None:
    for param, grad in zip(case.params, draw_grads(case.params, step), strict=True):
        param.grad = None if grad is None else grad * scale
    if bad is not None:
        case.params[VICTIM].grad = torch.full_like(case.params[VICTIM], bad)


def memory(case: Beside, i: int | None = None) -> list[Tensor]:
    """Copies of all that steps write, of one parameter or of all."""
    params = case.params if i is None else [case.params[i]]
    tensors = [t for param in params for t in (param.detach(), *case.opt.state[param].values())]
    return [tensor.clone() for tensor in tensors]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@kinds
@bads
def test_a_bad_gradient_skips_the_whole_step(kind: type[Beside], bad: float) -> None:
    case = make(kind)
    set_grads(case, 0)
    case.opt.step()
    before = memory(case)
    set_grads(case, 1, bad=bad)
    case.opt.step()
    assert same(memory(case), before)
    assert case.opt.trust_ratios.isnan().all()
    assert int(case.opt.skipped) == sum(param.grad is not None for param in case.params)
    set_grads(case, 2)
    case.opt.step()
    assert not same(memory(case), before)


@kinds
@bads
def test_per_tensor_it_skips_its_parameter_alone(kind: type[Beside], bad: float) -> None:
    case, twin = (make(kind, clip="per_tensor") for _ in range(2))
    for each in (case, twin):
        set_grads(each, 0)
        each.opt.step()
    before = memory(case, VICTIM)
    set_grads(case, 1, bad=bad)
    set_grads(twin, 1)
    for each in (case, twin):
        each.opt.step()
    assert same(memory(case, VICTIM), before)
    for i in range(len(case.params)):
        assert same(memory(case, i), memory(twin, i)) == (i != VICTIM)
    assert case.opt.trust_ratios.isnan().tolist() == [
        param.grad is None or i == VICTIM for i, param in enumerate(case.params)
    ]
    assert int(case.opt.skipped) == 1


@kinds
@bads
def test_without_clipping_it_spoils_its_parameter_alone(kind: type[Beside], bad: float) -> None:
    """The norm in the ratio spreads it over the parameter, unlike Adam."""
    case, twin = (make(kind, max_grad_norm=0.0) for _ in range(2))
    set_grads(case, 1, bad=bad)
    set_grads(twin, 1)
    grad = case.params[VICTIM].grad
    assert grad is not None
    grad[1:] = 0.5
    for each in (case, twin):
        each.opt.step()
    assert not case.params[VICTIM].isfinite().any() or math.isinf(bad)
    assert not case.params[VICTIM][0].isfinite().all() or kind is LarsBeside
    for i in range(len(case.params)):
        assert same(memory(case, i), memory(twin, i)) == (i != VICTIM)
    assert int(case.opt.skipped) == 0
    assert float(case.opt.state[case.params[VICTIM]]["step"]) == 1


@kinds
def test_an_explicit_skip_needs_no_clipping(kind: type[Beside]) -> None:
    case = make(kind, max_grad_norm=0.0, on_nonfinite="skip")
    set_grads(case, 0)
    case.opt.step()
    before = memory(case)
    set_grads(case, 1, bad=math.nan)
    case.opt.step()
    assert same(memory(case), before)


@kinds
@pytest.mark.parametrize("scaler_kind", [GradScaler, torch.amp.GradScaler])
@pytest.mark.parametrize("settings", [{}, {"clip": "per_tensor"}, {"max_grad_norm": 0.0}], ids=str)
def test_a_scaler_changes_no_bit(
    kind: type[Beside], scaler_kind: type[torch.amp.GradScaler], settings: dict[str, Any]
) -> None:
    """A scale is a power of two, so that nothing is rounded. Overflows leave out whole steps."""
    case, plain = make(kind, **settings), make(kind, **settings)
    scaler = make_scaler(scaler_kind, growth_interval=2)
    for step in range(6):
        bad = math.inf if step in (2, 3) else None
        set_grads(case, step, scale=scaler.get_scale(), bad=bad)
        given = [None if param.grad is None else param.grad.clone() for param in case.params]
        before = memory(case) if step else []
        scaler.step(case.opt)
        scaler.update()
        for param, grad in zip(case.params, given, strict=True):
            assert (param.grad is None) == (grad is None)
            assert grad is None or torch.equal(param.grad, grad), "gradients are only read"
        if bad is not None:
            assert same(memory(case), before)
            assert case.opt.trust_ratios.isnan().all()
            continue
        set_grads(plain, step)
        plain.opt.step()
        assert same(memory(case), memory(plain))
        assert torch.equal(
            case.opt.trust_ratios.nan_to_num(-1), plain.opt.trust_ratios.nan_to_num(-1)
        )
    assert scaler.get_scale() == 1024.0 / 4 * 4
    n_grads = [sum(g is not None for g in draw_grads(case.params, step)) for step in (2, 3)]
    assert int(case.opt.skipped) >= sum(n_grads)


@kinds
def test_a_scale_that_is_forgotten_would_be_noticed(kind: type[Beside]) -> None:
    """A negative control: LAMB's clipping, and the ratio of LARS, hide it from the parameters."""
    case, plain = make(kind, max_grad_norm=0.0), make(kind, max_grad_norm=0.0)
    set_grads(case, 0, scale=1024.0)
    set_grads(plain, 0)
    case.opt.step()
    plain.opt.step()
    assert not same(memory(case), memory(plain))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(LambBeside, {"use_nvlamb": True, "bias_correction": False}), (LarsBeside, {"eps": 0.0})],
    ids=["NVLAMB", "LARS"],
)
def test_a_ratio_beyond_a_float_leaves_parameters_finite(
    kind: type[Beside], settings: dict[str, Any]
) -> None:
    """Of gradients that are hardly there: as an infinity it would take the parameter along."""
    case = kind([{"weight_decay": 0.0}], **{"lr": 0.1, "max_grad_norm": 0.0, **settings})
    for param in case.params:
        param.data.fill_(1.0)
        param.grad = torch.full_like(param, 1e-44)
    case.opt.step()
    ratios = case.opt.trust_ratios
    assert ratios is not None
    assert float(ratios.nan_to_num().max()) == torch.finfo(torch.float32).max
    assert all(bool(param.isfinite().all()) for param in case.params)
