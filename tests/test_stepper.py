"""What changes between two steps is noticed by the second; what does not costs no second look.

A step that goes through `_bring_up_to_date` has looked at everything in Python. The oracle of a
change is a copy of the optimizer, made after it: a copy has read everything anew.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import REFUSED, bits, parameter, snapshot, trained
from torch import nn

from bertadam_cuda import BertAdam


def count_updates(opt: BertAdam) -> list[None]:
    """A list that grows whenever a step brings the optimizer up to date."""
    calls: list[None] = []
    update = opt._bring_up_to_date

    def counted() -> None:
        calls.append(None)
        update()

    opt._bring_up_to_date = counted  # type: ignore[method-assign]
    return calls


def memory(opt: BertAdam) -> list[Any]:
    """Parameters and states; a copy's groups have one more of torch's defaults."""
    shot = snapshot(opt)
    return [shot["params"], shot["state"]]


def assert_steps_like_a_copy(opt: BertAdam, n_steps: int = 2) -> None:
    other = copy.deepcopy(opt)
    pairs = zip(opt.param_groups, other.param_groups, strict=True)
    for group, copied in pairs:
        for param, twin in zip(group["params"], copied["params"], strict=True):
            twin.grad = None if param.grad is None else param.grad.clone()
    for _ in range(n_steps):
        opt.step()
        other.step()
    assert memory(opt) == memory(other)


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


def of(opt: BertAdam) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = opt.state[parameter(opt)]
    return state


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
