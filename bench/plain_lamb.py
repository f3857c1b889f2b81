"""LAMB as a plain PyTorch loop, one tensor at a time.

The contender of ``bench_step.py``: what a user without fused kernels runs. It must not know the
package: it shares no line with the kernels, so the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class PlainLAMB(torch.optim.Optimizer):
    """Run LAMB with ordinary tensor operations, in the parameter's dtype.

    For each parameter with a gradient ``g``, n being the norm of all gradients, t from 1::

        g = min(1, max_grad_norm / n) * g
        m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g*g
        u = m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + weight_decay * p
        r = ||p|| / ||u||, or 1 where one of them is 0
        p -= lr * r * u

    Source: apex, `FusedLAMB` with use_nvlamb=True, for which every tensor has a ratio. Differences:
    max_grad_norm <= 0 turns clipping off, gradients are only read, a group without decay does not
    add one.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.max_grad_norm = max_grad_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient; returns the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        coefficient = self._coefficient() if self.max_grad_norm > 0 else None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step_param(param, group, coefficient)
        return loss

    def _coefficient(self) -> Tensor:
        """What gradients are multiplied by, on their device: to ask for it would be a wait."""
        params = [param for group in self.param_groups for param in group["params"]]
        norms = [torch.linalg.vector_norm(p.grad) for p in params if p.grad is not None]
        return (self.max_grad_norm / torch.linalg.vector_norm(torch.stack(norms))).clamp(max=1.0)

    def _step_param(self, p: Tensor, group: dict[str, Any], coefficient: Tensor | None) -> None:
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        g = p.grad if coefficient is None else p.grad * coefficient
        m, v, (b1, b2) = state["exp_avg"], state["exp_avg_sq"], group["betas"]
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        root = (v / (1 - b2 ** state["step"])).sqrt_().add_(group["eps"])
        update = (m / (1 - b1 ** state["step"])).div_(root)
        if group["weight_decay"] > 0:
            update.add_(p, alpha=group["weight_decay"])
        p_norm, u_norm = torch.linalg.vector_norm(p), torch.linalg.vector_norm(update)
        ratio = torch.where((p_norm > 0) & (u_norm > 0), p_norm / u_norm, 1.0)
        p.sub_(update.mul_(group["lr"] * ratio))
