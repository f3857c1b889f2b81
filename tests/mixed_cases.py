"""Parameters of every storage, for the tests of low precision: rows, values, masters, bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bertadam_cuda import BertAdam, _ext

_C = _ext.load()


class Row(NamedTuple):
    """One of the rows that the binary lists."""

    param: torch.dtype
    grad: torch.dtype
    settings: dict[str, Any]

    def __str__(self) -> str:
        kept = self.settings["master_weights"] or (
            "stochastic" if self.settings["stochastic_rounding"] else "plain"
        )
        return f"{kept} {self.param}, {self.grad}".replace("torch.", "")


ROWS = [
    Row(
        getattr(torch, param),
        getattr(torch, grad),
        {"master_weights": master_weights, "stochastic_rounding": stochastic},
    )
    for param, grad, master_weights, stochastic in _C.type_rows
]
#: Settings of an optimizer that a test goes through, by name.
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "fp32": {"master_weights": "fp32"},
    "remainder": {"master_weights": "remainder"},
    "stochastic": {"stochastic_rounding": True},
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def parameter(values: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A parameter of its own memory that takes gradients of any dtype."""
    param = nn.Parameter(torch.empty_like(values, dtype=dtype).copy_(values))
    param.grad_dtype = None
    return param


def mixed_params(mode: str, sizes: tuple[int, ...] = (1, 17, 300, 1500)) -> list[nn.Parameter]:
    """Every size in every dtype that the mode allows, and another layout."""
    has_half = mode in ("plain", "fp32")
    dtypes = DTYPES if has_half else DTYPES[:2]
    params = [parameter(torch.randn(size), dtype) for size in sizes for dtype in dtypes]
    images = torch.randn(4, 3, 5, 7).to(memory_format=torch.channels_last)
    return [*params, parameter(images, torch.bfloat16), parameter(torch.randn(()), torch.bfloat16)]


def set_grads(params: list[nn.Parameter], step: int) -> None:
    """Gradients whose dtype changes from parameter to parameter and from step to step."""
    generator = torch.Generator().manual_seed(step)
    for i, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator)
        grad = torch.empty_like(param, dtype=torch.float32).copy_(grad)
        param.grad = grad.to(DTYPES[(i + step) % 3])


def train(opt: BertAdam, first: int, last: int) -> None:
    """Take steps `first` to `last` - 1, with the gradients of those steps."""
    for step in range(first, last):
        set_grads(params_of(opt), step)
        opt.step()


def params_of(opt: BertAdam) -> list[nn.Parameter]:
    return [param for group in opt.param_groups for param in group["params"]]


def clone_params(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter(param.detach(), param.dtype) for param in params]


def values_of(opt: BertAdam) -> list[Tensor]:
    """Copies of everything that steps write."""
    tensors = []
    for param in params_of(opt):
        tensors += [param.detach(), *opt.state[param].values()]
    return [tensor.clone() for tensor in tensors]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def master_of(opt: BertAdam, param: Tensor) -> Tensor:
    """The float32 values that the next step of `param` begins from."""
    state = opt.state[param]
    if "master_param" in state:
        return state["master_param"].clone()
    if "param_remainder" in state:
        upper = param.detach().view(torch.int16).int() * 2**16
        return (upper + state["param_remainder"].int()).view(torch.float32)
    return param.detach().float().clone()


def masters_of(opt: BertAdam) -> list[Tensor]:
    return [master_of(opt, param) for param in params_of(opt)]


def ulp(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The distance between neighbours of `dtype` around x, as float64."""
    exponent = torch.frexp(x.double()).exponent - 1
    info = torch.finfo(dtype)
    smallest = torch.frexp(torch.tensor(info.tiny, dtype=torch.float64)).exponent - 1
    return info.eps * 2.0 ** torch.maximum(exponent, smallest).double()
