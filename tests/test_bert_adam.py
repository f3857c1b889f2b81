"""BertAdam on the CPU against float64: random groups, shapes and schedules, and what must fail.

The comparison is of m, v, the step count and (p_new - p_old) / lr. Comparing p alone would pass a
kernel that does nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from bert_cases import ALL_CHECKS, Case, bits, draw_grads, many_shapes, one_parameter, random_groups
from oracle import DEFECTS, check_moments, check_step, check_update
from torch import nn

from bertadam_cuda import BertAdam

N_STEPS = 20
DECAY = {"decay_rate": 0.8, "decay_steps": 4}
SCHEDULE_ARGS = {"warmup_linear_decay_exp": DECAY, "warmup_exp_decay_exp": DECAY}
SIX = (
    "warmup_cosine",
    "warmup_constant",
    "warmup_linear",
    "warmup_linear_decay_exp",
    "warmup_exp_decay_exp",
    "warmup_exp_decay_poly",
)
CLIPS = {
    "per tensor": {"clip": "per_tensor"},
    "global": {"clip": "global"},
    "off": {"max_grad_norm": 0.0},
}


def limits(clip: str) -> dict[str, Any]:
    """Settings of one kind of clipping."""
    return dict(CLIPS[clip])


def run(case: Case, checks: tuple[str, ...] = ALL_CHECKS) -> None:
    for step in range(N_STEPS):
        case.step(draw_grads(case.params, seed=step), checks)


@pytest.mark.filterwarnings("ignore:.*t_total")
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("schedule", SIX)
def test_twenty_steps_match_float64(schedule: str, clip: str) -> None:
    seed = 10 * SIX.index(schedule) + list(CLIPS).index(clip)
    groups = random_groups(seed, schedule=schedule, schedule_args=SCHEDULE_ARGS.get(schedule))
    case = Case(groups, **limits(clip))
    frozen = case.params[3], case.params[17]
    for param in frozen:
        param.requires_grad_(False)
    for step in range(N_STEPS):
        if step == 6:
            for param in frozen:
                param.requires_grad_(True)
        case.step(draw_grads(case.params, seed=1000 * seed + step, none_rate=0.2))
    assert len({param.step for param in case.oracle.params}) > 2, "None must have made steps differ"


@pytest.mark.filterwarnings("ignore:.*t_total")
@pytest.mark.parametrize("schedule", ["warmup_poly", "warmup_cosine_hard_restarts", "none"])
def test_other_schedules_match_float64(schedule: str) -> None:
    run(Case(random_groups(7, schedule=schedule)))


@pytest.mark.filterwarnings("ignore:.*t_total")
def test_limits_and_clipping_may_differ_between_groups() -> None:
    groups = random_groups(3)
    for group, limit in zip(groups, (0.5, 0.0, 4.0), strict=True):
        group["max_grad_norm"] = limit
    for clip in ("per_tensor", "global"):
        run(Case(groups, clip=clip))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(
    ("defect", "check"),
    [
        ("no decay", "update"),
        ("lr x 1.01", "update"),
        ("step off by one", "update"),
        ("step off by one", "step"),
        ("last chunk skipped", "update"),
        ("last chunk skipped", "moments"),
    ],
)
def test_the_comparison_finds_a_defect(defect: str, check: str, clip: str) -> None:
    """Each check on its own rejects the defect within the same 20 steps."""
    assert defect in DEFECTS
    groups = random_groups(5, t_total=30, warmup=0.5, schedule="warmup_linear")
    case = Case(groups, defect=defect, **limits(clip))
    with pytest.raises(AssertionError, match=r"size_|zero_dim|matrix|last|transposed|misaligned"):
        run(case, checks=(check,))


@pytest.mark.parametrize("shape", ["size_16385", "channels_last", "zero_dim", "misaligned_3"])
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_finds_a_defect_in_one_tensor(defect: str, shape: str) -> None:
    named = [pair for pair in many_shapes() if pair[0] == shape]
    settings = {"t_total": 30, "warmup": 0.5, "weight_decay": 0.1}
    case = Case([{"params": named}], defect=defect, **settings)
    with pytest.raises(AssertionError, match=shape):
        run(case, checks=("update",))


def test_the_moments_check_rejects_two_millionths_and_nan() -> None:
    expected = np.linspace(-1.0, 1.0, 11)
    check_moments("m", expected.astype(np.float32), expected)
    for wrong in (2e-6, -2e-6, math.nan):
        found = expected.copy()
        found[4] += wrong
        with pytest.raises(AssertionError, match=r"^m: differs by"):
            check_moments("m", found, expected)


def test_the_update_check_rejects_two_hundred_thousandths_and_nan_and_nothing() -> None:
    p_old = np.full(4, 2.0**-10, dtype=np.float32)
    u, lr = np.array([1.0, 0.5, 0.0, -1.0]), 0.5
    check_update("p", p_old, (p_old - lr * u).astype(np.float32), u, lr)
    for wrong in (2e-5, -2e-5, math.nan):
        with pytest.raises(AssertionError, match=r"^p: update exceeds"):
            check_update("p", p_old, (p_old - lr * (u + wrong)).astype(np.float32), u, lr)
    with pytest.raises(AssertionError, match=r"^p: update exceeds"):
        check_update("p", p_old, p_old, u, lr)
    with pytest.raises(AssertionError, match=r"^p: changed although lr is 0"):
        check_update("p", np.float32([0.0]), np.float32([-0.0]), u[:1], 0.0)


def test_the_step_check_is_exact() -> None:
    check_step("p", 3.0, 3)
    with pytest.raises(AssertionError, match=r"^p: step is 2"):
        check_step("p", 2.0, 3)


def test_first_update_by_hand() -> None:
    """g = 2 clipped to 1: m = .1, v = .001, u = .1 / (sqrt(.001) + 1e-6) + .01 * 3."""
    param, opt = one_parameter([3.0], [2.0])
    opt.step()
    coefficient = 1.0 / (2.0 + 1e-6)
    m, v = 0.1 * 2 * coefficient, 0.001 * (2 * coefficient) ** 2
    update = m / (math.sqrt(v) + 1e-6) + 0.01 * 3.0
    assert param.item() == pytest.approx(3.0 - 0.1 * update, rel=1e-7)
    assert opt.state[param]["exp_avg"].item() == pytest.approx(m, rel=1e-6)
    assert opt.state[param]["exp_avg_sq"].item() == pytest.approx(v, rel=1e-6)


def test_defaults_are_those_of_the_original() -> None:
    (group,) = BertAdam([nn.Parameter(torch.ones(1))], 0.1).param_groups
    expected = {"lr": 0.1, "warmup": -1, "t_total": -1, "schedule": "warmup_linear", "b1": 0.9}
    expected |= {"b2": 0.999, "e": 1e-6, "weight_decay": 0.01, "max_grad_norm": 1.0}
    expected |= {"clip": "per_tensor", "bias_correction": False, "maximize": False}
    assert {key: group[key] for key in expected} == expected


def test_the_first_ten_arguments_are_positional_in_the_order_of_the_original() -> None:
    settings = (0.1, 0.2, 30, "warmup_constant", 0.4, 0.5, 0.6, 0.7, 0.8)
    (group,) = BertAdam([nn.Parameter(torch.ones(1))], *settings).param_groups
    keys = ("lr", "warmup", "t_total", "schedule", "b1", "b2", "e", "weight_decay", "max_grad_norm")
    assert tuple(group[key] for key in keys) == settings
    with pytest.raises(TypeError):
        BertAdam([nn.Parameter(torch.ones(1))], *settings, "global")  # type: ignore[call-arg]


def test_state_is_what_the_contract_says() -> None:
    for name, param in many_shapes():
        param.grad = torch.ones_like(param)
        opt = BertAdam([param], lr=0.1)
        assert not opt.state
        opt.step()
        state = opt.state[param]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}, name
        assert (state["step"].shape, state["step"].dtype) == ((), torch.float32)
        for key in ("exp_avg", "exp_avg_sq"):
            assert state[key].dtype == torch.float32
            assert state[key].shape == param.shape
            assert state[key].stride() == param.stride() or param.numel() < 2, name
        assert not any(value.requires_grad for value in state.values())


def test_lr_zero_leaves_parameters_bit_for_bit_and_counts() -> None:
    values = [0.0, -0.0, 1e-40, -3.0, 3e38]
    param, opt = one_parameter(values, [1.0, -1.0, 1.0, 1.0, 0.0], lr=0.0)
    before = bits(param)
    for _ in range(3):
        opt.step()
    assert bits(param) == before
    assert opt.state[param]["step"].item() == 3
    assert opt.state[param]["exp_avg"].abs().sum() > 0


def test_first_update_of_a_warmup_moves_nothing() -> None:
    param, opt = one_parameter([-0.0, 2.0], [1.0, 1.0], warmup=0.1, t_total=100)
    before = bits(param)
    opt.step()
    assert bits(param) == before
    assert opt.state[param]["step"].item() == 1
    opt.step()
    assert bits(param) != before


def test_zero_epsilon_with_zero_moments_gives_zero() -> None:
    param, opt = one_parameter([0.5, -0.0, 1.0], [0.0, 0.0, 1.0], e=0.0, weight_decay=0.0)
    opt.step()
    assert bits(param)[:8] == bits(torch.tensor([0.5, -0.0]))
    assert math.isfinite(param[2].item())


def test_zero_weight_decay_is_off() -> None:
    param, opt = one_parameter([1.0], [0.0], weight_decay=0.0)
    opt.step()
    assert param.item() == 1.0


def test_a_parameter_without_a_gradient_gets_state_and_does_not_count() -> None:
    with_grad, without = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    opt = BertAdam([with_grad, without, frozen], lr=0.1)
    with_grad.grad = torch.ones(3)
    opt.step()
    assert opt.state[without]["step"].item() == 0
    assert not opt.state[without]["exp_avg"].any()
    assert bits(without) == bits(torch.ones(3))
    assert frozen not in opt.state


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("grads", [(0.0, 0.0), (0.0, -0.0), (0.0, None), (None, None)])
def test_a_null_step_creates_state_and_does_not_count(grads: tuple[Any, Any], clip: str) -> None:
    params = [nn.Parameter(torch.ones(5)) for _ in grads]
    opt = BertAdam([{"params": [p]} for p in params], lr=0.0, **limits(clip))
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else torch.full((5,), grad)
    opt.step()
    for param in params:
        assert opt.state[param]["step"].item() == 0
        assert not opt.state[param]["exp_avg"].any()
        assert bits(param) == bits(torch.ones(5))


@pytest.mark.parametrize("clip", CLIPS)
def test_a_null_step_leaves_moments_that_are_there(clip: str) -> None:
    param, opt = one_parameter([1.0, 2.0], [1.0, -2.0], **limits(clip))
    opt.step()
    opt.param_groups[0]["lr"] = 0.0
    assert param.grad is not None
    param.grad.zero_()
    before = [bits(t) for t in (param, *opt.state[param].values())]
    opt.step()
    assert [bits(t) for t in (param, *opt.state[param].values())] == before


@pytest.mark.parametrize("clip", CLIPS)
def test_only_a_step_with_every_lr_and_gradient_zero_is_null(clip: str) -> None:
    params = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    for lrs, grads in (((0.0, 0.1), (0.0, 0.0)), ((0.0, 0.0), (0.0, 1e-30))):
        groups = [{"params": [p], "lr": lr} for p, lr in zip(params, lrs, strict=True)]
        opt = BertAdam(groups, lr=0.1, **limits(clip))
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.full((5,), grad)
        opt.step()
        assert [opt.state[param]["step"].item() for param in params] == [1, 1]


def test_gradients_are_read_only() -> None:
    case = Case(random_groups(1))
    grads = draw_grads(case.params, seed=0)
    kept = [None if grad is None else bits(grad) for grad in grads]
    case.step(grads)
    for param, grad, before in zip(case.params, grads, kept, strict=True):
        assert param.grad is grad
        assert before is None or bits(grad) == before


def test_a_gradient_of_other_strides_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 8, 5, 3).to(memory_format=torch.channels_last)
    grad = torch.randn(4, 8, 5, 3)
    results = []
    for layout in (torch.channels_last, torch.contiguous_format):
        param = nn.Parameter(start.clone(memory_format=torch.preserve_format))
        opt = BertAdam([param], lr=0.1)
        for factor in (1.0, -0.3):
            param.grad = (factor * grad).to(memory_format=layout)
            opt.step()
        assert param.is_contiguous(memory_format=torch.channels_last)
        results.append([bits(t) for t in (param, *opt.state[param].values())])
    assert results[0] == results[1]
