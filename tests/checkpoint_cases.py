"""Small optimizers, files of every layout and what refusal means, for the tests of checkpoints."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bertadam_cuda import BertAdam

File = dict[str, Any]

#: A matrix, a scalar, an empty tensor, one parameter in channels-last order.
SHAPES = ((4, 3), (), (0, 5), (2, 3, 2, 2))
NAMES = ("weight", "scale", "nothing", "kernel")


def make_params(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in SHAPES]
    tensors[3] = tensors[3].to(memory_format=torch.channels_last)
    return [nn.Parameter(tensor) for tensor in tensors]


def make_optimizer(seed: int = 0, **settings: Any) -> BertAdam:
    """Two named groups, the second one without decay."""
    named = list(zip(NAMES, make_params(seed), strict=True))
    groups = [{"params": named[:2]}, {"params": named[2:], "weight_decay": 0.0}]
    defaults: dict[str, Any] = {"lr": 1e-2, "warmup": 0.1, "t_total": 100}
    return BertAdam(groups, **{**defaults, **settings})


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def train(optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Step with gradients that depend on the step and the parameter, so any lost bit stays lost."""
    for step in steps:
        generator = torch.Generator().manual_seed(1000 + step)
        for param in params_of(optimizer):
            noise = torch.randn(param.shape, generator=generator).to(param)
            param.grad = torch.empty_like(param).copy_(noise + 0.1 * param.detach())
        optimizer.step()


def trained(n_steps: int = 3, **settings: Any) -> BertAdam:
    optimizer = make_optimizer(**settings)
    train(optimizer, range(n_steps))
    return optimizer


def through_disk(state_dict: dict[str, Any], *, weights_only: bool = True) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


def layout_groups(keys: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**keys, "params": [0, 1]}, {**keys, "weight_decay": 0.0, "params": [2, 3]}]


def layout_state(entry: Callable[[Tensor, Tensor], dict[str, Any]]) -> dict[int, dict[str, Any]]:
    generator = torch.Generator().manual_seed(7)
    state = {}
    for index, shape in enumerate(SHAPES):
        first = torch.randn(shape, generator=generator)
        second = torch.rand(shape, generator=generator)
        state[index] = entry(first, second)
    return state


def reference_file() -> dict[str, Any]:
    """A file of DeepSpeedExamples' BertAdam after five steps."""
    settings = {
        "lr": 3e-3,
        "schedule": "warmup_linear",
        "warmup": 0.2,
        "t_total": 50,
        "b1": 0.8,
        "b2": 0.98,
        "e": 1e-5,
        "weight_decay": 0.1,
        "max_grad_norm": 2.0,
    }
    state = layout_state(lambda m, v: {"step": 5, "next_m": m, "next_v": v})
    return {"state": state, "param_groups": layout_groups(settings)}


def apex_file() -> dict[str, Any]:
    """A file of apex FusedAdam after five steps: the step is in the groups."""
    settings = {
        "lr": 3e-3,
        "bias_correction": True,
        "betas": (0.8, 0.98),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "step": 5,
    }
    state = layout_state(lambda m, v: {"exp_avg": m, "exp_avg_sq": v})
    return {"state": state, "param_groups": layout_groups(settings)}


def torch_file(kind: type[torch.optim.Optimizer], **settings: Any) -> dict[str, Any]:
    params = make_params()
    optimizer = kind([{"params": params[:2]}, {"params": params[2:]}], **settings)
    train(optimizer, range(5))
    return optimizer.state_dict()


def tensors_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for index, param in enumerate(params_of(optimizer)):
        yield f"param {index}", param.detach()
        for key, value in (optimizer.state.get(param) or {}).items():
            yield f"{key} of {index}", value


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything that a failed load must leave as it is, tensors' identities included."""
    tensors = dict(tensors_of(optimizer))
    return {
        "bytes": {name: (tensor.dtype, tensor.tolist()) for name, tensor in tensors.items()},
        "memory": {name: tensor.data_ptr() for name, tensor in tensors.items()},
        "settings": copy.deepcopy(settings_of(optimizer)),
        "groups": [id(group) for group in optimizer.param_groups],
    }


def assert_same_bits(found: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    left, right = dict(tensors_of(found)), dict(tensors_of(expected))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def assert_moments(
    optimizer: BertAdam, state: dict[int, dict[str, Any]], keys: tuple[str, str]
) -> None:
    for index, param in enumerate(params_of(optimizer)):
        own = optimizer.state[param]
        for name, key in zip(("exp_avg", "exp_avg_sq"), keys, strict=True):
            assert own[name].dtype == torch.float32
            assert torch.equal(own[name], state[index][key].float())


def own_file() -> File:
    return copy.deepcopy(trained().state_dict())


#: Layout -> a good file and its names of the first and second moment.
LAYOUTS: dict[str, tuple[Callable[[], File], str, str]] = {
    "own": (own_file, "exp_avg", "exp_avg_sq"),
    "reference": (reference_file, "next_m", "next_v"),
    "torch": (lambda: copy.deepcopy(torch_file(torch.optim.AdamW)), "exp_avg", "exp_avg_sq"),
    "apex": (apex_file, "exp_avg", "exp_avg_sq"),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def assert_refused(file: object, kind: type[Exception], match: str) -> None:
    """By an optimizer with state and by one without, neither of which changes."""
    for target in (trained(), make_optimizer()):
        before = snapshot(target)
        with pytest.raises(kind, match=match):
            target.load_state_dict(file)
        assert snapshot(target) == before
