"""Tensors that BertAdam refuses: it names them, and leaves everything as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import (
    REFUSED,
    assert_step_is_refused,
    bits,
    parameter,
    snapshot,
    trained,
)
from torch import nn

from bertadam_cuda import BertAdam


class Opaque(torch.Tensor):
    """A tensor without memory of its own, as distributed tensors are."""

    @staticmethod
    def __new__(cls, size: int) -> Opaque:
        return torch.Tensor._make_wrapper_subclass(cls, (size,), requires_grad=True)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


BAD_PARAMETERS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "float64": (lambda: nn.Parameter(torch.ones(4, dtype=torch.float64)), "float64"),
    "complex": (lambda: nn.Parameter(torch.ones(4, dtype=torch.complex64)), "complex64"),
    "integer": (lambda: frozen(torch.ones(4, dtype=torch.int64)), "int64"),
    "bool": (lambda: frozen(torch.ones(4, dtype=torch.bool)), "bool"),
    "meta": (lambda: nn.Parameter(torch.ones(4, device="meta")), "meta"),
    "expanded": (lambda: nn.Parameter(torch.ones(1).expand(4)), "overlap|dense|stride"),
    "overlapping": (
        lambda: nn.Parameter(torch.ones(5).as_strided((2, 3), (1, 1))),
        "overlap|dense|stride",
    ),
    "with gaps": (lambda: nn.Parameter(torch.ones(8)[::2]), "dense|stride"),
    "sparse": (lambda: nn.Parameter(torch.ones(4).to_sparse()), "[Ss]parse"),
    "subclass": (lambda: Opaque(4), "Opaque|subclass"),
}


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("kind", BAD_PARAMETERS)
def test_bad_parameters_are_refused_by_name(kind: str, named: bool) -> None:
    make, message = BAD_PARAMETERS[kind]
    good, bad = nn.Parameter(torch.ones(3)), make()
    good.grad = torch.ones(3)
    if bad.requires_grad and kind not in ("subclass", "sparse"):
        bad.grad = torch.ones_like(bad)
    group: dict[str, Any] = {"params": [good, bad]}
    if named:
        group["param_names"] = ["good.weight", "bad.weight"]
    where = r"bad\.weight" if named else r"param_groups\[1\]\['params'\]\[1\]"
    first = {
        "params": [nn.Parameter(torch.ones(1))],
        **({"param_names": ["first"]} if named else {}),
    }
    with pytest.raises(REFUSED, match=f"(?s)BertAdam.*{where}.*({message})"):
        BertAdam([first, group], lr=0.1).step()
    assert bits(good) == bits(torch.ones(3))


def test_bad_parameters_are_refused_when_a_group_is_added() -> None:
    opt = trained()
    before = snapshot(opt)
    bad = {"params": [("extra", nn.Parameter(torch.ones(2, dtype=torch.float64)))]}
    with pytest.raises(REFUSED, match="extra"):
        add_and_step(opt, bad)
    opt.param_groups = opt.param_groups[:2]
    assert snapshot(opt) == before


def add_and_step(opt: BertAdam, group: dict[str, Any]) -> None:
    opt.add_param_group(group)
    opt.step()


def set_grad_data(param: nn.Parameter, data: torch.Tensor) -> None:
    """Give a gradient that `p.grad = ...` itself would not accept."""
    assert param.grad is not None
    param.grad.data = data


@pytest.mark.parametrize("n_steps", [0, 2], ids=["first step", "third step"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.ones(3, 4, dtype=torch.float64), "float64"),
        (torch.ones(4, 3), r"shape|\(4, 3\)|\[4, 3\]"),
        (torch.ones(12), r"shape|\(12,\)|\[12\]"),
    ],
    ids=["float64", "shape", "dimensions"],
)
def test_bad_gradients_are_refused_by_name(data: torch.Tensor, message: str, n_steps: int) -> None:
    opt = trained(n_steps)
    before = snapshot(opt)
    set_grad_data(parameter(opt), data)
    assert_step_is_refused(opt, rf"(?s)BertAdam.*b\.bias.*({message})", before)


@pytest.mark.parametrize("n_steps", [0, 2], ids=["first step", "third step"])
def test_sparse_gradients_are_refused_by_name(n_steps: int) -> None:
    opt = trained(n_steps)
    before = snapshot(opt)
    parameter(opt).grad = torch.ones(3, 4).to_sparse()
    assert_step_is_refused(opt, r"b\.bias.*sparse|sparse.*b\.bias", before)


def test_unnamed_parameters_are_named_by_their_place() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    opt = BertAdam([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    params[2].grad = torch.ones(2).to_sparse()
    assert_step_is_refused(opt, r"param_groups\[1\]\['params'\]\[1\]")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.ones(3, 4, dtype=torch.float64), "float64"),
        (torch.ones(3, 1).expand(3, 4), "overlap|dense|stride"),
        (torch.ones(3, 8)[:, ::2], "dense|stride"),
    ],
    ids=["float64", "expanded", "with gaps"],
)
def test_parameters_that_change_into_something_else_are_refused(
    data: torch.Tensor, message: str
) -> None:
    opt = trained()
    param = parameter(opt)
    good, grad, state = param.data, param.grad, dict(opt.state[param])
    before = snapshot(opt)
    param.grad = None
    param.data = data.clone() if data.dtype != torch.float32 else data
    if data.dtype != torch.float32:
        param.grad = torch.ones_like(param)
    else:
        param.grad = torch.ones(3, 4)
    kept = bits(param)
    assert_step_is_refused(opt, rf"(?s)BertAdam.*b\.bias.*({message})", keep=False)
    assert bits(param) == kept
    assert {k: bits(v) for k, v in opt.state[param].items()} == {
        k: bits(v) for k, v in state.items()
    }
    param.grad = None
    param.data = good
    param.grad = grad
    assert snapshot(opt) == before


def aliased(kind: str) -> list[torch.Tensor]:
    memory = torch.arange(12.0)
    return {
        "same memory": [memory, memory],
        "partly": [memory[:8], memory[7:]],
        "inside": [memory, memory[3:5]],
        "transposed": [memory.view(3, 4), memory.view(3, 4).t()],
    }[kind]


@pytest.mark.parametrize("kind", ["same memory", "partly", "inside", "transposed"])
@pytest.mark.parametrize("n_groups", [1, 2])
def test_parameters_that_share_memory_are_refused_by_name(kind: str, n_groups: int) -> None:
    tensors = aliased(kind)
    kept = bits(tensors[0])
    pairs = [(name, nn.Parameter(t)) for name, t in zip(("left", "right"), tensors, strict=True)]
    for _, param in pairs:
        param.grad = torch.ones_like(param)
    groups = [{"params": pairs}] if n_groups == 1 else [{"params": [pair]} for pair in pairs]
    with pytest.raises(ValueError, match=r"(?s)BertAdam.*(left.*right|right.*left)"):
        BertAdam(groups, lr=0.1).step()
    assert bits(tensors[0]) == kept


@pytest.mark.filterwarnings("ignore:.*duplicate")
def test_a_parameter_listed_twice_is_refused() -> None:
    param = nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"more than one|twice|duplicate|same|share"):
        BertAdam([{"params": [param]}, {"params": [param]}], lr=0.1)
    with pytest.raises(ValueError, match=r"more than one|twice|duplicate|same|share|overlap"):
        BertAdam([param, param], lr=0.1).step()
    assert bits(param) == bits(torch.ones(2))


def test_an_exception_in_a_closure_changes_nothing() -> None:
    opt = trained()
    before = snapshot(opt)

    def closure() -> float:
        raise KeyError("from the closure")

    with pytest.raises(KeyError, match="from the closure"):
        opt.step(closure)
    assert snapshot(opt) == before


def broken_schedule(position: int) -> float:
    if position >= 2:
        raise ZeroDivisionError("from the schedule")
    return 1.0


def test_a_schedule_that_raises_changes_nothing() -> None:
    opt = trained(t_total=-1)
    before = snapshot(opt)
    opt.param_groups[1]["schedule"] = broken_schedule
    assert_raises_from_schedule(opt)
    opt.param_groups[1]["schedule"] = before["groups"][1]["schedule"]
    assert snapshot(opt) == before


def test_settings_of_a_refused_step_leave_no_trace_in_the_next() -> None:
    """A change in group 0 that came with a broken group 1 is withdrawn with it."""
    opts = trained(t_total=-1), trained(t_total=-1)
    first, second = opts[0].param_groups
    for change in ({"b1": 0.1}, {"lr": 3.0}, {"max_grad_norm": 0.0}, {"bias_correction": True}):
        kept = {key: first[key] for key in change}, second["schedule"]
        first.update(change)
        second["schedule"] = broken_schedule
        assert_raises_from_schedule(opts[0])
        first.update(kept[0])
        second["schedule"] = kept[1]
        for opt in opts:
            opt.step()
        assert snapshot(opts[0]) == snapshot(opts[1])


def assert_raises_from_schedule(opt: BertAdam) -> None:
    with pytest.raises(ZeroDivisionError, match="from the schedule"):
        opt.step()


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_schedule_without_a_finite_value_changes_nothing(value: Any) -> None:
    opt = trained(t_total=-1)
    opt.param_groups[1]["schedule"] = lambda position: value
    assert_step_is_refused(opt, "finite float")


def test_no_parameters_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        BertAdam([], lr=0.1)
