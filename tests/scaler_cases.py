"""Optimizers under gradient scalers, beside the oracle that sees unscaled gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from oracle import Oracle, check_moments, check_step, check_update
from torch import Tensor, nn

from bertadam_cuda import BertAdam

SCALE = 1024.0
SIZES = ((), (33, 65), (5000,), (0,), (1024,), (20_001,))
CLIPS: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "global": {"clip": "global"},
    "no clip": {"max_grad_norm": 0.0},
    "no clip, global": {"clip": "global", "max_grad_norm": 0.0},
    "propagate": {"on_nonfinite": "propagate"},
}

#: Parameters of 16 bits, and how they are kept.
MASTERS: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.float16, {}),
    (torch.float16, {"master_weights": "fp32"}),
    (torch.bfloat16, {}),
    (torch.bfloat16, {"master_weights": "remainder"}),
    (torch.bfloat16, {"stochastic_rounding": True}),
]


def make_scaler(kind: type[torch.amp.GradScaler], device: str = "cpu", **settings: Any) -> Any:
    """A scaler that has scaled a loss, so that it has a scale."""
    scaler = kind(device, **{"init_scale": SCALE, **settings})
    scaler.scale(torch.ones((), device=device))
    return scaler


class ScaledCase:
    """Two groups of parameters, one without clipping per tensor, and their oracle."""

    def __init__(self, seed: int = 0, device: str = "cpu", **settings: Any) -> None:
        torch.manual_seed(seed)
        self.params = [nn.Parameter(torch.randn(size).to(device)) for size in SIZES]
        groups = [{"params": self.params[:3]}, {"params": self.params[3:], "max_grad_norm": 0.0}]
        common = {"lr": 0.1, "warmup": 0.3, "t_total": 20, "bias_correction": True, **settings}
        self.opt = BertAdam(groups, **common)
        per_optimizer = {k: common.pop(k) for k in ("clip", "on_nonfinite") if k in common}
        self.oracle = Oracle(
            [
                {**common, **group, "params": [(str(p.shape), flat(p)) for p in group["params"]]}
                for group in groups
            ],
            **per_optimizer,
        )

    def set_grads(self, step: int, scale: float, bad: float | None = None) -> list[Any]:
        """Set scaled gradients, `bad` in one of them, and return the unscaled ones."""
        torch.manual_seed(1000 + step)
        grads: list[Any] = []
        for index, param in enumerate(self.params):
            if index == step % 7:
                param.grad = None
                grads.append(None)
                continue
            grad = torch.randn(param.shape) * 10.0 ** (index % 3 - 1)
            grads.append(flat(grad))
            param.grad = (grad * scale).to(param.device)
        victim = self.params[5 if step % 7 != 5 else 2]
        if bad is not None:
            assert victim.grad is not None
            victim.grad[-1] = bad
        return grads

    def memory(self) -> list[bytes]:
        tensors = [param.detach() for param in self.params]
        for param in self.params:
            tensors += self.opt.state[param].values()
        return [tensor.cpu().contiguous().numpy().tobytes() for tensor in tensors]

    def check_update(self, grads: list[Any], before: list[Tensor]) -> None:
        """Compare with the oracle's step; `before`: copies of the parameters."""
        updates = self.oracle.step(grads)
        rows = zip(self.params, before, self.oracle.params, updates, strict=True)
        for param, old, expected, update in rows:
            state = self.opt.state[param]
            check_step(expected.name, state["step"].item(), expected.step)
            check_moments(expected.name, flat(state["exp_avg"]), expected.m)
            check_moments(expected.name, flat(state["exp_avg_sq"]), expected.v)
            if update is not None:
                check_update(expected.name, flat(old), flat(param), update.u, update.lr)


def flat(tensor: Tensor) -> Any:
    return tensor.detach().cpu().reshape(-1).clone().numpy()


def attributes(opt: BertAdam) -> set[str]:
    """What a scaler has left on the optimizer."""
    return {"grad_scale", "found_inf", "_finds_inf"} & vars(opt).keys()


def make_half(
    dtype: torch.dtype, device: str = "cpu", **settings: Any
) -> tuple[list[nn.Parameter], BertAdam]:
    """Three parameters of 16 bits."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3000).to(device, dtype)) for _ in range(3)]
    return params, BertAdam(params, lr=0.1, **settings)


def half_step(params: list[nn.Parameter], opt: BertAdam, scaler: Any, step: int) -> None:
    """One iteration; in every fourth a gradient has an infinity."""
    torch.manual_seed(step)
    bad = step % 4 == 2
    for index, param in enumerate(params):
        param.grad = (torch.randn(3000) * scaler.get_scale() * 2.0**-4).to(param)
        if bad and index == step % 3:
            param.grad[-1] = math.inf
    scaler.step(opt)
    scaler.update()


def everything(params: list[nn.Parameter], opt: BertAdam) -> list[Tensor]:
    """Copies of parameters and states."""
    tensors = [param.detach().clone() for param in params]
    return tensors + [t.clone() for param in params for t in opt.state[param].values()]
