"""The lr that BertAdam uses: own schedules, torch's on top, get_lr, and new phases."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from bert_cases import Case, bits, draw_grads, one_parameter, random_groups
from oracle import expected_multiplier
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

from bertadam_cuda import SCHEDULES, BertAdam

ARGS = {
    name: {"decay_rate": 0.5, "decay_steps": 3}
    for name in ("warmup_linear_decay_exp", "warmup_exp_decay_exp")
}


def applied_lr(param: nn.Parameter, opt: BertAdam) -> float:
    """lr of one step, measured: without moments and decay every update is 1."""
    param.data.zero_()
    param.grad = torch.ones_like(param)
    opt.step()
    return -param[0].item()


def plain(**settings: object) -> tuple[nn.Parameter, BertAdam]:
    """One parameter whose update is g / sqrt(g^2), so that it moves by lr."""
    fixed = {"b1": 0.0, "b2": 0.0, "e": 0.0, "weight_decay": 0.0, "max_grad_norm": 0.0}
    return one_parameter([0.0], [1.0], **{**fixed, **settings})


@pytest.mark.filterwarnings("ignore:.*t_total")
@pytest.mark.parametrize("warmup", [-1, 0, 0.25])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_name_scales_the_update_and_stays_past_t_total(name: str, warmup: float) -> None:
    args = ARGS.get(name)
    param, opt = plain(lr=0.5, schedule=name, warmup=warmup, t_total=8, schedule_args=args)
    for position in range(13):
        expected = 0.5 * expected_multiplier(name, position, warmup, 8, args)
        assert opt.get_lr() == pytest.approx([expected], rel=1e-6, abs=1e-15)
        assert applied_lr(param, opt) == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_one_warning_past_t_total() -> None:
    param, opt = plain(t_total=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            applied_lr(param, opt)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            applied_lr(param, opt)
    assert len([w for w in caught if "t_total" in str(w.message)]) == 1


def test_a_callable_is_called_with_the_position() -> None:
    param, opt = plain(lr=1.0, schedule=lambda position: 1.0 / (1 + position))
    assert [applied_lr(param, opt) for _ in range(4)] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_a_long_schedule_is_exact_far_from_the_start() -> None:
    """Tables of multipliers are computed ahead in windows; a resumed run begins deep inside."""
    param, opt = plain(lr=1.0, schedule="warmup_linear", t_total=1_000_000)
    applied_lr(param, opt)
    for position in (4095, 4096, 65_535, 65_536, 777_777, 999_999, 10):
        opt.state[param]["step"].fill_(position)
        assert opt.get_lr() == pytest.approx([1 - position / 1e6], rel=1e-6)
        assert applied_lr(param, opt) == pytest.approx(1 - position / 1e6, rel=1e-6)


def test_a_long_callable_without_t_total_is_exact_after_resuming() -> None:
    param, opt = plain(lr=1.0, schedule=lambda position: 1.0 / (1 + position))
    applied_lr(param, opt)
    saved = opt.state_dict()
    for position in (5000, 70_000, 3):
        saved["state"][0]["step"] = torch.tensor(float(position))
        opt.load_state_dict(saved)
        for later in range(position, position + 3):
            assert applied_lr(param, opt) == pytest.approx(1 / (1 + later), rel=1e-6)


def test_a_long_callable_without_t_total_is_exact_where_its_table_ends() -> None:
    param, opt = plain(lr=1.0, schedule=lambda position: 1.0 / (1 + position))
    for position in range(8200):
        found = applied_lr(param, opt)
        if position % 512 < 2 or position > 8180:
            assert found == pytest.approx(1 / (1 + position), rel=1e-6)


def test_a_long_callable_without_t_total_follows_a_step_that_the_user_writes() -> None:
    param, opt = plain(lr=1.0, schedule=lambda position: 1.0 / (1 + position))
    for position in (0, 5000, 70_000, 3):
        applied_lr(param, opt)
        opt.state[param]["step"].fill_(position)
        assert applied_lr(param, opt) == pytest.approx(1 / (1 + position), rel=1e-6)


def test_a_very_long_schedule_is_not_evaluated_to_its_end_at_once() -> None:
    calls = 0

    def count(position: int) -> float:
        nonlocal calls
        calls += 1
        assert calls < 10**6
        return 1.0 - position / 10**7

    param, opt = plain(lr=1.0, schedule=count, t_total=10**7)
    assert [applied_lr(param, opt) for _ in range(3)] == pytest.approx([1.0, 1 - 1e-7, 1 - 2e-7])


def test_a_parameter_without_a_gradient_lags() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    opt = BertAdam(params, lr=1.0, t_total=10)
    params[0].grad = torch.ones(2)
    for _ in range(4):
        opt.step()
    assert opt.get_lr() == pytest.approx([0.6, 1.0])


def test_get_lr_before_the_first_step_creates_no_state() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    params[1].requires_grad_(False)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5, "warmup": 0.1}]
    opt = BertAdam(groups, lr=1.0, t_total=10, schedule="warmup_constant")
    assert opt.get_lr() == [1.0, 0.0]
    assert not opt.state


def test_get_lr_follows_a_written_lr() -> None:
    _, opt = one_parameter([1.0], [1.0], lr=1.0)
    opt.param_groups[0]["lr"] = 0.125
    assert opt.get_lr() == [0.125]


@pytest.mark.parametrize(
    "scheduler",
    [lambda opt: StepLR(opt, step_size=2, gamma=0.5), lambda opt: LambdaLR(opt, lambda k: 0.5**k)],
)
def test_torch_schedulers_work(scheduler: Callable[[BertAdam], StepLR | LambdaLR]) -> None:
    param, opt = plain(lr=0.5)
    torch_schedule = scheduler(opt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            expected = opt.param_groups[0]["lr"]
            assert applied_lr(param, opt) == pytest.approx(expected)
            torch_schedule.step()


def test_torch_schedulers_multiply_an_own_schedule_with_one_warning() -> None:
    param, opt = plain(lr=1.0, t_total=10)
    torch_schedule = LambdaLR(opt, lambda k: 0.5**k)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for position in range(5):
            expected = 0.5**position * (1 - position / 10)
            assert applied_lr(param, opt) == pytest.approx(expected)
            torch_schedule.step()
    assert len([w for w in caught if "schedule" in str(w.message)]) == 1


def test_a_group_that_is_added_later_starts_its_own_schedule() -> None:
    _, opt = one_parameter([1.0], [1.0], lr=1.0, t_total=10)
    for _ in range(3):
        opt.step()
    opt.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 2.0})
    assert opt.get_lr() == pytest.approx([0.7, 2.0])


def test_reset_schedule_keeps_moments_and_step() -> None:
    case = Case(random_groups(2, t_total=6, warmup=0.5, schedule="warmup_linear"))
    for step in range(5):
        case.step(draw_grads(case.params, seed=step))
    before = [[bits(case.opt.state[p][key]) for key in ("exp_avg", "exp_avg_sq", "step")]
              for p in case.params]  # fmt: skip
    case.opt.reset_schedule(lr=0.03, t_total=9, warmup=0.2, schedule="warmup_cosine")
    after = [[bits(case.opt.state[p][key]) for key in ("exp_avg", "exp_avg_sq", "step")]
             for p in case.params]  # fmt: skip
    assert before == after
    for param in case.oracle.params:
        param.schedule_start = param.step
        new = {"lr": 0.03, "t_total": 9, "warmup": 0.2, "schedule": "warmup_cosine"}
        param.group.update(new)
    for step in range(8):
        case.step(draw_grads(case.params, seed=100 + step, none_rate=0.2))


def test_reset_schedule_starts_anew_where_told() -> None:
    param, opt = plain(lr=1.0, t_total=10)
    for _ in range(4):
        applied_lr(param, opt)
    opt.reset_schedule()
    assert opt.get_lr() == [1.0]
    opt.reset_schedule(start_position=7)
    assert opt.get_lr() == pytest.approx([0.3])
    assert applied_lr(param, opt) == pytest.approx(0.3)
    assert opt.get_lr() == pytest.approx([0.2])
    assert opt.state[param]["step"].item() == 5


def test_reset_schedule_changes_only_what_is_given() -> None:
    _, opt = one_parameter([1.0], [1.0], lr=0.5, t_total=10, warmup=0.2, schedule="warmup_constant")
    before = {key: value for key, value in opt.param_groups[0].items() if key != "params"}
    opt.reset_schedule(t_total=20)
    after = {key: value for key, value in opt.param_groups[0].items() if key != "params"}
    assert after == {**before, "t_total": 20}


def test_reset_schedule_reaches_parameters_without_state() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    opt = BertAdam(params, lr=1.0, t_total=10)
    opt.reset_schedule(start_position=5)
    assert opt.get_lr() == pytest.approx([0.5, 0.5])
    for param in params:
        param.grad = torch.ones(2)
    opt.step()
    assert opt.get_lr() == pytest.approx([0.4, 0.4])
    assert [opt.state[param]["step"].item() for param in params] == [1, 1]


@pytest.mark.parametrize("restart", [False, True])
def test_reset_schedule_restarts_the_bias_correction_if_asked(restart: bool) -> None:
    case = Case(random_groups(4, bias_correction=True, t_total=30, schedule="warmup_linear"))
    for step in range(5):
        case.step(draw_grads(case.params, seed=step, none_rate=0.2))
    case.opt.reset_schedule(restart_bias_correction=restart)
    for param in case.oracle.params:
        param.schedule_start = param.step
        param.bias_correction_start = param.step if restart else 0
    for step in range(5):
        case.step(draw_grads(case.params, seed=100 + step, none_rate=0.2))


def test_reset_schedule_refuses_bad_settings_and_changes_nothing() -> None:
    _, opt = one_parameter([1.0], [1.0], lr=1.0, t_total=10)
    for _ in range(3):
        opt.step()
    before = copy.deepcopy(opt.state_dict())
    for bad in ({"t_total": 0}, {"lr": -1.0}, {"warmup": 2}, {"schedule": "no such"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            opt.reset_schedule(**bad)
        assert str(opt.state_dict()) == str(before)
        assert opt.get_lr() == pytest.approx([0.7])


def test_the_start_of_a_phase_is_saved() -> None:
    pairs = [one_parameter([1.0, 2.0], [1.0, -1.0], t_total=10) for _ in range(2)]
    params, opts = zip(*pairs, strict=True)
    for _ in range(3):
        opts[0].step()
    opts[0].reset_schedule(lr=0.25, t_total=8, start_position=1, restart_bias_correction=True)
    params[1].data.copy_(params[0].data)
    opts[1].load_state_dict(opts[0].state_dict())
    assert opts[1].get_lr() == opts[0].get_lr() == pytest.approx([0.25 * 7 / 8])
    for opt in opts:
        opt.step()
    assert bits(params[0]) == bits(params[1])
    assert str(opts[0].state_dict()) == str(opts[1].state_dict())
