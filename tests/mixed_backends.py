"""Optimizers of low precision on one backend: odd parameters of every dtype, and their bits."""

from __future__ import annotations

import copy
from typing import Any

import torch
from backends import SIZES, Grads, Twin, odd_grads
from mixed_cases import DTYPES
from torch import Tensor, nn

CLIPS: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "global": {"clip": "global"},
    "no clip": {"max_grad_norm": 0.0},
    "propagate": {"on_nonfinite": "propagate"},
    "null steps": {"lr": 0.0},
}


def cast(tensor: Tensor, dtype: torch.dtype, offset: int) -> Tensor:
    """A copy with the same strides, `offset` elements behind an aligned address."""
    buffer = torch.empty(tensor.numel() + 8, dtype=dtype)
    return buffer.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


def odd_shapes() -> list[Tensor]:
    images = torch.randn(8, 3, 5, 7).to(memory_format=torch.channels_last)
    flat = [torch.randn(size) for size in SIZES]
    return [torch.randn(()), *flat, images, torch.randn(40, 30).t()]


def odd_params(dtypes: tuple[torch.dtype, ...]) -> list[nn.Parameter]:
    """Every size at many alignments; the dtypes take turns."""
    return [
        nn.Parameter(cast(tensor, dtypes[i % len(dtypes)], i % 8))
        for i, tensor in enumerate(odd_shapes())
    ]


def mixture(mode: str) -> list[nn.Parameter]:
    return odd_params(DTYPES if mode in ("plain", "fp32") else DTYPES[:2])


def cast_grads(params: list[nn.Parameter], step: int, dtypes: tuple[torch.dtype, ...]) -> Grads:
    """Gradients of all kinds, in dtypes that change from step to step where there are several."""
    floats = odd_grads([nn.Parameter(param.detach().float()) for param in params], step)
    grads: Grads = []
    for i, grad in enumerate(floats):
        dtype = dtypes[(i + step) % len(dtypes)]
        grads.append(None if grad is None else cast(grad, dtype, (3 * i + step) % 8))
    return grads


def run(
    params: list[nn.Parameter],
    device: str,
    grad_dtypes: tuple[torch.dtype, ...],
    n_steps: int = 4,
    workers: int = 0,
    retained_draws: int = -1,
    kind: type[Twin] = Twin,
    **settings: Any,
) -> list[Tensor]:
    twin = kind(copy.deepcopy(params), device, **settings)
    for param in twin.params:
        param.grad_dtype = None
    for step in range(n_steps):
        for plan in twin.opt._plans:
            plan.workers = workers
            if device == "cuda":
                plan.retained_draws = retained_draws
        twin.step(cast_grads(params, step, grad_dtypes))
    return twin.bits()
