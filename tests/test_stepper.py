"""Settings that change between two steps are noticed by the second; others cost no second look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import REFUSED, bits, parameter, trained
from stepper_cases import assert_steps_like_a_copy, count_updates, memory

from bertadam_cuda import BertAdam


def test_a_step_like_the_last_one_looks_at_nothing_twice() -> None:
    opt = trained()
    updates = count_updates(opt)
    for _ in range(3):
        for group in opt.param_groups:
            for param in group["params"]:
                param.grad = torch.randn_like(param)
        opt.step()
    assert updates == []


@pytest.mark.parametrize("lr", [0.3, 1, 0, 0.0])
def test_a_new_learning_rate_is_taken_without_a_second_look(lr: float) -> None:
    opt = trained(t_total=-1)
    opt.param_groups[1]["lr"] = lr
    updates = count_updates(opt)
    before = bits(parameter(opt))
    assert_steps_like_a_copy(opt, 1)
    assert updates == []
    assert (bits(parameter(opt)) == before) == (lr == 0)


def test_a_learning_rate_that_came_with_a_refused_step_is_not_lost() -> None:
    opt = trained(t_total=-1)
    opt.param_groups[0]["lr"] = 3.0
    grad = parameter(opt).grad
    parameter(opt).grad = torch.ones(3, 4).to_sparse()
    with pytest.raises(REFUSED, match="sparse"):
        opt.step()
    parameter(opt).grad = grad
    assert_steps_like_a_copy(opt)


def test_a_learning_rate_there_and_back_is_the_old_one() -> None:
    opt = trained(t_total=-1)
    first = opt.param_groups[0]
    old = first["lr"]
    first["lr"] = 3.0
    opt.step()
    first["lr"] = old
    first["unrelated"] = "new"
    assert_steps_like_a_copy(opt)


@pytest.mark.parametrize("lr", [True, "0.1", None, -1.0, -1, float("nan"), float("inf"), [0.1]])
def test_what_is_no_learning_rate_is_refused(lr: Any) -> None:
    opt = trained()
    opt.param_groups[1]["lr"] = lr
    before = bits(parameter(opt))
    with pytest.raises(REFUSED, match=r"param_groups\[1\].*lr"):
        opt.step()
    assert bits(parameter(opt)) == before


def set_value(key: str, value: Any) -> Callable[[BertAdam], None]:
    return lambda opt: opt.param_groups[1].update({key: value})


def replace_group(opt: BertAdam) -> None:
    opt.param_groups[1] = {**opt.param_groups[1], "b1": 0.2}


def replace_groups(opt: BertAdam) -> None:
    opt.param_groups = [{**group, "b1": 0.2} for group in opt.param_groups]


def change_schedule_args(opt: BertAdam) -> None:
    opt.param_groups[1]["schedule_args"]["degree"] = 3.0


def drop_param(opt: BertAdam) -> None:
    del opt.param_groups[1]["params"][0]
    del opt.param_groups[1]["param_names"][0]


def swap_params(opt: BertAdam) -> None:
    opt.param_groups[1]["params"].reverse()


SETTINGS: dict[str, Callable[[BertAdam], None]] = {
    "b1": set_value("b1", 0.2),
    "maximize": set_value("maximize", True),
    "schedule": lambda opt: opt.param_groups[1].update(
        schedule="warmup_cosine", schedule_args=None
    ),
    "callable": lambda opt: opt.param_groups[1].update(schedule=lambda _: 0.5, schedule_args=None),
    "arguments in place": change_schedule_args,
    "group": replace_group,
    "groups": replace_groups,
    "parameter dropped": drop_param,
    "parameters in place": swap_params,
}


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_a_changed_group_is_noticed(change: Callable[[BertAdam], None]) -> None:
    opts = [trained(schedule="warmup_poly", schedule_args={"degree": 2.0}) for _ in range(2)]
    updates = count_updates(opts[0])
    change(opts[0])
    assert_steps_like_a_copy(opts[0])
    assert updates
    for _ in range(2):
        opts[1].step()
    assert memory(opts[0]) != memory(opts[1]), "the change must matter"


def test_equal_groups_in_other_dicts_are_as_good() -> None:
    opt = trained()
    opt.param_groups = [{**g, "params": list(g["params"])} for g in opt.param_groups]
    assert_steps_like_a_copy(opt)
    updates = count_updates(opt)
    opt.step()
    assert updates == []


def test_a_callback_that_changes_settings_is_named() -> None:
    opt = trained(t_total=-1)

    def meddling(position: int) -> float:
        opt.param_groups[0]["params"] = list(opt.param_groups[0]["params"][:1])
        return 1.0

    opt.param_groups[1]["schedule"] = meddling
    with pytest.raises(RuntimeError, match=r"plans are not made for these|changed while"):
        opt.step()


def test_a_scheduler_over_an_own_schedule_warns_once() -> None:
    opt = trained(t_total=100)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch)
    opt.step()
    scheduler.step()
    with pytest.warns(UserWarning, match="the two multiply"):
        opt.step()
    updates = count_updates(opt)
    for _ in range(3):
        scheduler.step()
        opt.step()
    assert updates == []
