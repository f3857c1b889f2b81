"""Steps that show whether an installation computes what it should."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import reference
from ._optimizer import FusedOptimizer
from .adam import Adam
from .bert_adam import BertAdam
from .lamb import LAMB
from .lars import LARS

_LR, _MAX_GRAD_NORM = 0.01, 0.5
_SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (3, 5), (1023,), (3, 1025), (5, 7, 11))

# Of every rule.
_OPTIMIZERS: dict[str, Callable[..., FusedOptimizer]] = {
    "BertAdam": partial(BertAdam, lr=_LR),
    "BertAdam without norms": partial(
        BertAdam, lr=_LR, max_grad_norm=0.0, on_nonfinite="propagate"
    ),
    "Adam with amsgrad": partial(Adam, lr=_LR, amsgrad=True),
    "LAMB": partial(LAMB, lr=_LR),
    "LARS": partial(LARS, lr=_LR, momentum=0.9),
}
# Of parameters and gradients, and the master.
_KEPT: tuple[tuple[torch.dtype, str | None], ...] = (
    (torch.float32, None),
    (torch.bfloat16, "fp32"),
    (torch.float16, None),
)


def step_fault(device: torch.device, *, n_steps: int = 3) -> str | None:
    """Take BertAdam steps on `device`; return how they differ from the float64 rule, or None.

    m and v must agree within 1e-6 of the largest element; (p_new - p_old)/lr within 1e-5 of the
    largest update and one ulp of p over lr. Comparing p alone would pass a step that does nothing.
    """
    generator = torch.Generator().manual_seed(0)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    params = [random(shape).requires_grad_() for shape in _SHAPES]
    optimizer = BertAdam(params, lr=_LR, max_grad_norm=_MAX_GRAD_NORM)
    moments = [(torch.zeros_like(p).double(), torch.zeros_like(p).double()) for p in params]
    for step in range(n_steps):
        old = [param.detach().clone() for param in params]
        for param, shape in zip(params, _SHAPES, strict=True):
            param.grad = random(shape)
        optimizer.step()
        for i, param in enumerate(params):
            assert param.grad is not None
            norm = reference.gradient_norm(param.grad)
            expected = reference.bert_adam_step(
                old[i],
                param.grad,
                *moments[i],
                lr=_LR,
                clip_coef=reference.clip_coefficient(norm, _MAX_GRAD_NORM),
            )
            moments[i] = (expected.exp_avg, expected.exp_avg_sq)
            update = (old[i].double() - param.detach().double()) / _LR
            ulp = param.detach().double().abs() * 2.0**-23 / _LR
            checks = (
                ("exp_avg", optimizer.state[param]["exp_avg"], expected.exp_avg, 1e-6, 0.0),
                (
                    "exp_avg_sq",
                    optimizer.state[param]["exp_avg_sq"],
                    expected.exp_avg_sq,
                    1e-6,
                    0.0,
                ),
                ("the update", update, expected.update, 1e-5, ulp),
            )
            for name, found, wanted, relative, absolute in checks:
                error = (found.double() - wanted).abs() - absolute
                limit = relative * float(wanted.abs().max()) if wanted.numel() else 0.0
                if not bool((error <= limit).all()):
                    return (
                        f"step {step}, params[{i}] of shape {tuple(param.shape)}: {name} is off by "
                        f"{float(error.max()):.3g}, expected at most {limit:.3g}"
                    )
    return None


def bits_fault(device: torch.device) -> str | None:
    """Take steps of every rule on `device` and on the CPU; return where they differ, or None."""
    for name, make in _OPTIMIZERS.items():
        for dtype, master_weights in _KEPT:
            found, expected = (
                _stepped(make, where, dtype, master_weights)
                for where in (device, torch.device("cpu"))
            )
            for key, wanted in expected.items():
                if not torch.equal(found[key], wanted):
                    return f"{name} in {dtype}: {key} is not, bit for bit, what the CPU gives"
    return None


def _stepped(
    make: Callable[..., FusedOptimizer],
    device: torch.device,
    dtype: torch.dtype,
    master_weights: str | None,
    n_steps: int = 3,
) -> dict[str, Tensor]:
    """Return parameters and states after some steps, on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    params = [random(shape).requires_grad_() for shape in _SHAPES]
    optimizer = make(params, master_weights=master_weights)
    for _ in range(n_steps):
        for param, shape in zip(params, _SHAPES, strict=True):
            param.grad = random(shape)
        optimizer.step()
    tensors = {f"params[{i}]": param.detach() for i, param in enumerate(params)}
    for i, param in enumerate(params):
        tensors |= {f"{key} of params[{i}]": value for key, value in optimizer.state[param].items()}
    return {key: tensor.cpu() for key, tensor in tensors.items()}
