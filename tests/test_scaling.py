"""A step under torch.amp.GradScaler: it unscales, and found_inf leaves all of it out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scaler_cases import CLIPS, SCALE, ScaledCase, attributes, make_scaler
from torch import Tensor, nn

from bertadam_cuda import BertAdam

clips = pytest.mark.parametrize("settings", CLIPS.values(), ids=CLIPS)
unscaled = pytest.mark.parametrize("unscale", [False, True], ids=["ready", "unscaled"])
BAD = {"finite": None, "inf": math.inf, "nan": math.nan}


def scaled_step(case: ScaledCase, scaler: Any, step: int, bad: float | None, unscale: bool) -> None:
    """One iteration, checked: the oracle's update, or nothing at all."""
    grads = case.set_grads(step, scaler.get_scale(), bad)
    if unscale:
        scaler.unscale_(case.opt)
    raw = [None if p.grad is None else p.grad.clone() for p in case.params]
    before, memory = [p.detach().clone() for p in case.params], case.memory()
    skipped = int(case.opt.skipped)
    scaler.step(case.opt)
    scaler.update(scaler.get_scale())
    assert attributes(case.opt) == set()
    for param, grad in zip(case.params, raw, strict=True):
        assert grad is None or torch.equal(param.grad.nan_to_num(), grad.nan_to_num()), "read only"
    if bad is None:
        case.check_update(grads, before)
        assert int(case.opt.skipped) == skipped
    else:
        assert case.memory() == memory
        assert int(case.opt.skipped) == skipped + sum(grad is not None for grad in raw)


@clips
@unscaled
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_steps_are_those_of_unscaled_gradients_or_none(
    settings: dict[str, Any], unscale: bool, bad: float
) -> None:
    case, scaler = ScaledCase(**settings), make_scaler(torch.amp.GradScaler)
    for step in range(8):
        scaled_step(case, scaler, step, bad if step in (1, 2, 5) else None, unscale)


def test_a_step_that_forgets_to_unscale_would_be_noticed() -> None:
    """A negative control of the comparison."""
    case, scaler = ScaledCase(max_grad_norm=0.0), make_scaler(torch.amp.GradScaler)
    scaled_step(case, scaler, 0, None, False)
    grads = case.set_grads(1, SCALE * 1.001)
    before = [p.detach().clone() for p in case.params]
    scaler.step(case.opt)
    with pytest.raises(AssertionError, match="differs"):
        case.check_update(grads, before)


def one_step(grad_scale: float | None, found_inf: float | None, **settings: Any) -> BertAdam:
    """An optimizer after a step with these attributes, set by hand."""
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(5000))
    opt = BertAdam([param], lr=0.1, **settings)
    param.grad = torch.randn(5000)
    opt.step()
    param.grad = torch.randn(5000) * (grad_scale or 1.0)
    if grad_scale is not None:
        opt.grad_scale = torch.tensor(grad_scale)
    if found_inf is not None:
        opt.found_inf = torch.tensor(found_inf)
    opt.step()
    return opt


def values(opt: BertAdam) -> list[Tensor]:
    param = opt.param_groups[0]["params"][0]
    return [param.detach(), *opt.state[param].values()]


def same(left: BertAdam, right: BertAdam) -> bool:
    return all(map(torch.equal, values(left), values(right)))


@clips
@pytest.mark.parametrize("found_inf", [1.0, 2.0, -1.0, 0.5, math.inf, math.nan])
@pytest.mark.parametrize("grad_scale", [None, 1.0, 64.0])
def test_whatever_is_not_zero_leaves_the_step_out(
    settings: dict[str, Any], found_inf: float, grad_scale: float | None
) -> None:
    """torch's own kernels compare with 1: two devices that found an inf make it 2."""
    opt = one_step(grad_scale, found_inf, **settings)
    param = opt.param_groups[0]["params"][0]
    assert opt.state[param]["step"].item() == 1
    torch.manual_seed(0)
    twin = nn.Parameter(torch.randn(5000))
    other = BertAdam([twin], lr=0.1, **settings)
    twin.grad = torch.randn(5000)
    other.step()
    assert same(opt, other)
    assert int(opt.skipped) == 1


@clips
@pytest.mark.parametrize("scale", [2.0**16, 2.0**-3, 1.0])
def test_unscaling_by_a_power_of_two_changes_no_bit(settings: dict[str, Any], scale: float) -> None:
    scaled, plain = one_step(scale, 0.0, **settings), one_step(None, None, **settings)
    assert same(scaled, plain)
    for ours, theirs in [
        (scaled.grad_norms, plain.grad_norms),
        (scaled.grad_norm, plain.grad_norm),
        (scaled.clip_coefs, plain.clip_coefs),
    ]:
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("scale", [0.0, -2.0, math.inf, math.nan])
@clips
def test_a_scale_that_no_loss_had_leaves_the_step_out(
    settings: dict[str, Any], scale: float
) -> None:
    opt = one_step(scale, 0.0, **settings)
    assert int(opt.skipped) == 1
    assert all(bool(tensor.isfinite().all()) for tensor in values(opt))


def test_a_grad_scale_that_the_user_set_is_multiplied_into_the_scalers() -> None:
    """As torch's fused optimizers have it: for gradients summed over micro batches, say."""
    case, scaler = ScaledCase(), make_scaler(torch.amp.GradScaler)
    grads = case.set_grads(0, SCALE * 8)
    before = [p.detach().clone() for p in case.params]
    case.opt.grad_scale = torch.tensor(8.0)
    scaler.step(case.opt)
    case.check_update(grads, before)
    assert attributes(case.opt) == set()


def test_a_grad_scale_without_a_scaler_stays_for_the_next_step() -> None:
    opt = one_step(8.0, None)
    assert attributes(opt) == {"grad_scale"}
    assert same(opt, one_step(None, None))
    opt.param_groups[0]["params"][0].grad = torch.ones(5000).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    assert attributes(opt) == {"grad_scale"}


def test_no_gradient_at_all() -> None:
    """torch then sets found_inf to the number 0, and its update() refuses."""
    opt, scaler = BertAdam([nn.Parameter(torch.ones(3))], lr=0.1), make_scaler(torch.amp.GradScaler)
    scaler.step(opt)
    assert attributes(opt) == set()
    assert int(opt.skipped) == 0


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (3.0, r"3\.0"),
        (torch.ones((), dtype=torch.float64), "dtype float64"),
        (torch.ones(2), r"shape \[2\]"),
        (torch.ones((), device="meta"), "meta"),
        (torch.ones(1).to_sparse(), "Sparse"),
    ],
    ids=["number", "float64", "two", "meta", "sparse"],
)
def test_what_is_no_scale_is_refused_before_anything_is_written(
    name: str, value: Any, found: str
) -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    opt = BertAdam([param], lr=0.1)
    setattr(opt, name, value)
    with pytest.raises(TypeError, match=rf"BertAdam: {name} .*{found}.*expected.*float32"):
        opt.step()
    assert torch.equal(param.detach(), torch.ones(3))
    assert not opt.state


def sparse_grad(opt: BertAdam) -> None:
    opt.param_groups[1]["params"][0].grad = torch.ones(3).to_sparse()


def bad_setting(opt: BertAdam) -> None:
    opt.param_groups[0]["b1"] = 2.0


def failing_pre_hook(opt: BertAdam) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("hook")

    opt.register_step_pre_hook(fail)


@unscaled
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("spoil", [sparse_grad, bad_setting, failing_pre_hook])
def test_an_error_leaves_no_attribute_and_no_trace(
    spoil: Callable[[BertAdam], None], bad: float | None, unscale: bool
) -> None:
    """torch removes its attributes after a step that returns: the next would see scale * scale."""
    case, scaler = ScaledCase(), make_scaler(torch.amp.GradScaler)
    scaled_step(case, scaler, 0, None, unscale)
    case.set_grads(1, SCALE, bad)
    if unscale:
        scaler.unscale_(case.opt)
    before = case.memory()
    groups = copy.copy(case.opt.param_groups[0])
    if spoil is sparse_grad:  # torch unscales sparse gradients, too: they come after its check
        handle = case.opt.register_step_pre_hook(lambda opt, *_: sparse_grad(opt))
    else:
        handle = None
        spoil(case.opt)
    with pytest.raises((RuntimeError, ValueError)):
        scaler.step(case.opt)
    assert attributes(case.opt) == set()
    assert case.memory() == before
    assert int(case.opt.skipped) == 0
    # The fault mended, training goes on.
    case.opt.param_groups[0].update(groups)
    case.opt._optimizer_step_pre_hooks.clear()
    assert handle is None or handle.id not in case.opt._optimizer_step_pre_hooks
    scaler.update(SCALE)
    scaled_step(case, scaler, 2, None, unscale)


def test_attributes_by_hand_are_removed_when_the_step_fails() -> None:
    param = nn.Parameter(torch.ones(3))
    opt = BertAdam([param], lr=0.1)
    param.grad = torch.ones(3).to_sparse()
    opt.grad_scale, opt.found_inf = torch.ones(()), torch.zeros(())
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    assert attributes(opt) == set()


def test_closures_are_refused() -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    opt, scaler = BertAdam([param], lr=0.1), make_scaler(torch.amp.GradScaler)
    called: list[int] = []

    def closure() -> float:
        called.append(1)
        return 1.0

    with pytest.raises(RuntimeError, match="Closure use"):
        scaler.step(opt, closure=closure)
    with pytest.raises(RuntimeError, match=r"BertAdam: step\(\) was given a closure"):
        scaler.step(opt, closure)
    assert called == []
    assert torch.equal(param.detach(), torch.ones(3))
    assert attributes(opt) == set()
    assert opt.step(closure) == 1.0


def test_copies_and_pickles_support_scalers_too() -> None:
    opt = copy.deepcopy(BertAdam([nn.Parameter(torch.ones(3))], lr=0.1))
    assert opt._step_supports_amp_scaling


def test_a_gradient_that_turned_bad_after_unscaling_skips_its_parameter() -> None:
    """A difference: torch takes the finite found_inf at its word, and lets NaN through."""
    case, scaler = ScaledCase(), make_scaler(torch.amp.GradScaler)
    scaled_step(case, scaler, 0, None, True)
    case.set_grads(1, SCALE)
    scaler.unscale_(case.opt)
    case.params[2].grad[7] = math.inf
    before = case.params[2].detach().clone()
    scaler.step(case.opt)
    assert torch.equal(case.params[2].detach(), before)
    assert int(case.opt.skipped) == 1
