"""LARS from files of torch's SGD, whose buffers have no learning rate in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoint_cases import make_params, params_of, snapshot, through_disk, train
from torch import nn

from bertadam_cuda import LARS

N = 6  # half of a run


def make_groups() -> list[dict[str, Any]]:
    params = make_params()
    return [{"params": params[:2]}, {"params": params[2:]}]


def make() -> LARS:
    return LARS(make_groups(), lr=0.05)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_file_of_torch_sgd_goes_on_in_lars(nesterov: bool, as_tensor: bool) -> None:
    """Where lr stays as it is: in LARS' buffer it is within, in SGD's it is not."""
    settings: dict[str, Any] = {"momentum": 0.8, "weight_decay": 0.1, "nesterov": nesterov}
    params = [nn.Parameter(param.detach().double()) for param in make_params()]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.01}]
    lr = torch.tensor(0.25) if as_tensor else 0.25
    source = torch.optim.SGD(groups, lr=lr, **settings)
    train(source, range(N))
    twins = [nn.Parameter(param.detach().float()) for param in params]
    groups = [{"params": twins[:2]}, {"params": twins[2:], "lr": 0.01}]
    target = LARS(groups, lr=0.25, adapt=False, **settings)
    with pytest.warns(UserWarning, match=r"torch SGD, so .* buffers are multiplied by the file's"):
        target.load_state_dict(through_disk(source.state_dict()))
    assert all(float(state["step"]) == 0 for state in target.state.values())
    assert target.param_groups[0]["lr"] == 0.25
    train(source, range(N, 2 * N))
    train(target, range(N, 2 * N))
    for param, twin in zip(params, twins, strict=True):
        # Values below 8 in float32: 7 roundings of half an ulp, and as many of the buffer.
        torch.testing.assert_close(twin.double(), param, rtol=0, atol=1e-5)


def test_buffers_as_they_are_would_be_noticed() -> None:
    """A negative control of the factor."""
    source = torch.optim.SGD(make_groups(), lr=0.25, momentum=0.8)
    train(source, range(N))
    target = make()
    with pytest.warns(UserWarning, match="torch SGD"):
        target.load_state_dict(source.state_dict())
    for param, twin in zip(params_of(source), params_of(target), strict=True):
        expected = 0.25 * source.state[param]["momentum_buffer"]
        assert torch.equal(target.state[twin]["momentum_buffer"], expected)


def test_sgd_without_momentum_has_nothing_to_load() -> None:
    source = torch.optim.SGD(make_groups(), lr=0.25)
    train(source, range(2))
    file = source.state_dict()
    file["state"] = {0: {"momentum_buffer": None}}  # as older versions of torch have it
    target = make()
    with pytest.warns(UserWarning, match="torch SGD"):
        target.load_state_dict(file)
    assert not target.state


def sgd_file() -> dict[str, Any]:
    source = torch.optim.SGD(make_groups(), lr=0.25, momentum=0.8)
    train(source, range(2))
    return copy.deepcopy(source.state_dict())


def negative_lr(file: dict[str, Any]) -> None:
    file["param_groups"][1]["lr"] = -0.1


def lr_of_another_type(file: dict[str, Any]) -> None:
    file["param_groups"][1]["lr"] = "0.1"


def product_that_overflows(file: dict[str, Any]) -> None:
    file["param_groups"][1]["lr"] = 1e38
    file["state"][3]["momentum_buffer"][:] = 100.0


def no_tensor(file: dict[str, Any]) -> None:
    file["state"][3]["momentum_buffer"] = [1.0]


def not_finite(file: dict[str, Any]) -> None:
    file["state"][3]["momentum_buffer"][0] = torch.nan


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (negative_lr, ValueError, "state of parameter 2: lr of its group is -0.1"),
        (lr_of_another_type, TypeError, "lr of its group has type str"),
        (product_that_overflows, ValueError, "state of parameter 3: momentum_buffer has values"),
        (no_tensor, TypeError, "momentum_buffer has type list"),
        (not_finite, ValueError, "momentum_buffer has values from nan"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_file_of_sgd_is_refused_and_changes_nothing(
    damage: Callable[[dict[str, Any]], None], error: type[Exception], match: str
) -> None:
    file = sgd_file()
    damage(file)
    with_state = make()
    train(with_state, range(2))
    for target in (with_state, make()):
        before = snapshot(target)
        with pytest.raises(error, match=match):
            target.load_state_dict(file)
        assert snapshot(target) == before
