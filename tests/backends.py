"""Twin optimizers on two backends: the same parameters, gradients and settings, and their bits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bertadam_cuda import BertAdam

Grads = list[Tensor | None]
# Sizes around vectors, leaves, chunks and the fan-in of the tree.
SIZES = (0, 1, 2, 3, 31, 33, 127, 129, 1023, 1024, 1025, 8191, 8192, 8193, 65_537, 300_000)


def odd_params() -> list[nn.Parameter]:
    """Every size at every alignment, some channels-last, some 0-dim."""
    params = [nn.Parameter(torch.randn(()))]
    for i, size in enumerate(SIZES):
        buffer = torch.randn(size + 8)
        params.append(nn.Parameter(buffer[i % 4 : i % 4 + size]))
    images = torch.randn(8, 3, 5, 7).to(memory_format=torch.channels_last)
    return [*params, nn.Parameter(images), nn.Parameter(torch.randn(40, 30).t())]


def odd_grads(params: list[nn.Parameter], step: int) -> Grads:
    """Gradients at any alignment, of many sizes; some None; in steps 1, 2, 4 some not finite."""
    torch.manual_seed(step)
    grads: Grads = []
    for i, param in enumerate(params):
        flat = torch.randn(param.numel() + 8)[(i + step) % 4 :][: param.numel()]
        flat *= 10.0 ** float(torch.empty(()).uniform_(-4, 2))
        grad = flat.as_strided(param.shape, param.stride(), flat.storage_offset())
        if (i + step) % 7 == 3:
            grads.append(None)
            continue
        if step % 3 != 0 and (i + step) % 11 == 5 and param.numel() > 1:
            flat[param.numel() // 2] = math.inf if step % 2 else math.nan
        grads.append(grad)
    return grads


def as_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Three groups that differ in everything a group may differ in."""
    settings: list[dict[str, Any]] = [
        {},
        {"weight_decay": 0.0, "lr": 0.3, "max_grad_norm": 0.5, "b1": 0.8, "maximize": True},
        {"bias_correction": True, "t_total": 7, "warmup": 0.3, "e": 1e-8, "b2": 0.98},
    ]
    return [{"params": params[i::3], **group} for i, group in enumerate(settings)]


class Twin:
    """One optimizer on one device."""

    make: Callable[..., torch.optim.Optimizer] = BertAdam
    groups = staticmethod(as_groups)

    def __init__(self, params: list[nn.Parameter], device: str, **settings: Any) -> None:
        self.device = device
        self.params = [nn.Parameter(to_device(p.detach(), device)) for p in params]
        groups = self.groups(self.params)
        if settings.get("lr") == 0.0:  # a null step is one of every group
            for group in groups:
                group["lr"] = 0.0
        self.opt: Any = type(self).make(groups, **{"lr": 0.1, **settings})

    def step(self, grads: Grads) -> None:
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = None if grad is None else to_device(grad, self.device)
        self.opt.step()

    def bits(self) -> list[Tensor]:
        """Everything that the steps wrote, on the CPU, as integers: NaN equals NaN."""
        tensors: list[Tensor] = []
        for param in self.params:
            tensors += [param.detach(), *self.opt.state[param].values()]
        opt = self.opt
        statistics = [opt.grad_norms, opt.grad_norm, opt.clip_coefs, opt.trust_ratios]
        tensors += [t for t in statistics if t is not None]
        return [as_integers(t) for t in [*tensors, self.opt.skipped]]


def to_device(tensor: Tensor, device: str) -> Tensor:
    """A copy with the same strides at the same distance from an aligned address."""
    if tensor.numel() == 0:
        return tensor.to(device, copy=True)
    offset = tensor.storage_offset() % 8
    buffer = torch.empty(tensor.numel() + offset, device=device, dtype=tensor.dtype)
    return buffer.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


def as_integers(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().reshape(-1)
    if tensor.is_floating_point():
        tensor = torch.where(tensor.isnan(), torch.full_like(tensor, math.nan), tensor)
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        tensor = tensor.view(integers[tensor.itemsize])
    return tensor.clone()


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def run(
    params: list[nn.Parameter],
    device: str,
    n_steps: int = 4,
    kind: type[Twin] = Twin,
    **settings: Any,
) -> list[Tensor]:
    workers = settings.pop("workers", 0)
    retained_draws = settings.pop("retained_draws", -1)
    twin = kind(copy.deepcopy(params), device, **settings)
    for step in range(n_steps):
        for plan in twin.opt._plans:
            plan.workers = workers
            plan.retained_draws = retained_draws
        twin.step(odd_grads(twin.params if device == "cpu" else params, step))
    return twin.bits()
