"""Memory that changes between two steps is noticed by the second, whatever holds it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import REFUSED, bits, parameter, trained
from stepper_cases import assert_steps_like_a_copy, count_updates, memory, of
from torch import nn

from bertadam_cuda import BertAdam


def replace_state(opt: BertAdam) -> None:
    opt.state[parameter(opt)] = {key: value + 1 for key, value in of(opt).items()}


def replace_all_state(opt: BertAdam) -> None:
    copies = {p: {k: v + 1 for k, v in state.items()} for p, state in opt.state.items()}
    opt.state = defaultdict(dict, copies)


def move_data(opt: BertAdam) -> None:
    parameter(opt).data = parameter(opt).data + 1


def move_storage(opt: BertAdam) -> None:
    with torch.no_grad():
        parameter(opt).set_(torch.full((3, 4), 2.0))


def swap_state_tensors(opt: BertAdam) -> None:
    torch.utils.swap_tensors(of(opt)["exp_avg"], torch.full((3, 4), 2.0))


def set_state_data(opt: BertAdam) -> None:
    of(opt)["exp_avg"].data = torch.full((3, 4), 2.0)


def swap_param(opt: BertAdam) -> None:
    param = parameter(opt)
    grad, param.grad = param.grad, None
    torch.utils.swap_tensors(param, nn.Parameter(torch.full((3, 4), 2.0)))
    param.grad = grad


MEMORY: dict[str, Callable[[BertAdam], Any]] = {
    "data": move_data,
    "storage": move_storage,
    "parameter swapped": swap_param,
    "state": lambda opt: of(opt).update(exp_avg=torch.full((3, 4), 2.0)),
    "state data": set_state_data,
    "state swapped": swap_state_tensors,
    "state dict": replace_state,
    "all state": replace_all_state,
    "state removed": lambda opt: opt.state.pop(parameter(opt)),
    "state emptied": lambda opt: of(opt).clear(),
    "step replaced": lambda opt: of(opt).update(step=torch.tensor(40.0)),
    "step written": lambda opt: of(opt)["step"].fill_(40.0),
    "start added": lambda opt: of(opt).update(schedule_start=torch.tensor(1.0)),
    "gradient": lambda opt: setattr(parameter(opt), "grad", torch.full((3, 4), -1.0)),
    "no gradient": lambda opt: setattr(parameter(opt), "grad", None),
    "gradient's layout": lambda opt: setattr(parameter(opt), "grad", torch.randn(4, 3).t()),
}


@pytest.mark.parametrize("change", MEMORY.values(), ids=MEMORY)
def test_changed_memory_is_followed(change: Callable[[BertAdam], Any]) -> None:
    opts = [trained() for _ in range(2)]
    old = parameter(opts[0]).data, of(opts[0]), dict(of(opts[0]))
    change(opts[0])
    assert_steps_like_a_copy(opts[0])
    for _ in range(2):
        opts[1].step()
    assert memory(opts[0]) != memory(opts[1]), "the change must matter"
    assert len(old) == 3  # alive until here: no address was used again


@pytest.mark.parametrize("kind", ["step replaced", "step written"])
def test_a_moved_counter_has_the_tables_looked_at(kind: str) -> None:
    opt = trained(t_total=30)
    MEMORY[kind](opt)
    opt.step()
    with pytest.warns(UserWarning, match="past t_total"):
        opt.step()


def free(tensor: torch.Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def shrink(tensor: torch.Tensor) -> None:
    tensor.untyped_storage().resize_(tensor.nbytes - 4)


@pytest.mark.parametrize("resize", [free, shrink])
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step", "param", "grad"])
def test_resized_storage_is_refused_by_name(key: str, resize: Callable[[Any], None]) -> None:
    opt = trained()
    param = parameter(opt)
    other = bits(parameter(opt, 0))
    resize({"param": param, "grad": param.grad, **of(opt)}[key])
    with pytest.raises(RuntimeError, match=r"(?s)b\.bias.*(freed|resized)"):
        opt.step()
    assert bits(parameter(opt, 0)) == other


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "no '{}'"), (1.0, "'{}' is a float"), (torch.zeros(5), "'{}' has (dtype|shape)")],
    ids=["missing", "number", "shape"],
)
def test_a_state_that_has_become_something_else_is_refused(
    key: str, value: Any, message: str
) -> None:
    opt = trained()
    if value is None:
        del of(opt)[key]
    else:
        opt.state[parameter(opt)][key] = value
    with pytest.raises(REFUSED, match=r"b\.bias.*" + message.format(key)):
        opt.step()


def test_memory_that_comes_to_overlap_is_refused_also_after_a_pause() -> None:
    opt = trained()
    first, second = parameter(opt, 0), parameter(opt, 1)
    grad, first.grad = first.grad, None
    second.data = first.data
    opt.step()
    first.grad = grad
    with pytest.raises(ValueError, match="share memory"):
        opt.step()


def test_a_lazy_copy_of_a_parameter_is_not_written() -> None:
    opt = trained()
    lazy = torch._lazy_clone(parameter(opt).detach())
    expected = bits(parameter(opt))
    opt.step()
    assert bits(lazy) == expected
    assert bits(parameter(opt)) != expected


def test_an_empty_parameter_that_is_listed_twice_is_refused_for_its_step() -> None:
    empty = nn.Parameter(torch.ones(0))
    empty.grad = torch.ones(0)
    with pytest.warns(UserWarning, match="duplicate"):
        opt = BertAdam([empty, empty], lr=0.1)
    with pytest.raises(ValueError, match="share memory"):
        opt.step()


def test_every_write_is_counted_once_by_the_version() -> None:
    opt = trained()
    written = [parameter(opt), *of(opt).values()]
    before = [tensor._version for tensor in written]
    opt.step()
    assert [tensor._version for tensor in written] == [version + 1 for version in before]


def test_steps_that_share_a_version_counter_cost_no_second_look() -> None:
    opt = trained(t_total=-1)
    steps = torch.full((4,), 2.0)
    for step, state in zip(steps, opt.state.values(), strict=True):
        state["step"] = step
    opt.step()
    updates = count_updates(opt)
    opt.step()
    assert updates == []
    assert steps.tolist() == [4.0] * 4


def test_a_second_optimizer_does_not_hide_changes_of_the_first() -> None:
    opts = trained(), trained()
    for opt in (*opts, *opts):
        opt.step()
    replace_state(opts[0])
    opts[1].step()
    assert_steps_like_a_copy(opts[0])
