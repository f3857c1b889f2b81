"""BertAdam as a plain PyTorch loop, one tensor at a time.

This is what users of the original BertAdam run today: the contender of ``bench_step.py``
and ``--optimizer reference`` of ``pretrain_bert.py``. It must not know the package: it
shares no line with the kernels, so the two can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Multiplier of lr at the fraction x of t_total; w is the warm-up fraction. DeepSpeedExamples'
#: bing_bert optimization.py, the three that its BertAdam can call (cosine with math.cos, because
#: torch.cos refuses a float there).
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "warmup_cosine": lambda x, w: x / w if x < w else 0.5 * (1.0 + math.cos(math.pi * x)),
    "warmup_constant": lambda x, w: x / w if x < w else 1.0,
    "warmup_linear": lambda x, w: 1.0 if w == 0 else (x / w if x < w else 1.0 - x),
}


class PlainBertAdam(torch.optim.Optimizer):
    """Run BertAdam with ordinary tensor operations, in the parameter's dtype.

    For each parameter with a gradient ``g``, with ``c = min(1, max_grad_norm / (||g|| + 1e-6))``::

        g *= c;  m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g*g
        u = m / (sqrt(v) + e) + weight_decay * p
        p -= lr * schedule(step / t_total) * u;  step += 1

    Source: DeepSpeedExamples, bing_bert ``BertAdam``: its argument names, order, defaults and
    state names, no bias correction, lr taken before the step is counted, and gradients that are
    rescaled in place where clipping is on.

    Args:
        params: parameters or group dicts, as in torch.
        lr: base learning rate, >= 0.
        warmup: fraction of t_total in [0, 1), or -1 for none.
        t_total: number of steps, or -1 for a constant lr.
        schedule: a name in ``SCHEDULES``, or a callable ``position -> multiplier``, which is
            called with the step whatever t_total is.
        b1, b2, e: as in Adam.
        weight_decay: decoupled decay, off if <= 0.
        max_grad_norm: limit of the norm, off if <= 0.
        clip: 'per_tensor' (the original's), or 'global': one norm over all groups.
        reduction_chunks: the sum of squares of each tensor is added up over this many pieces.
            More than 1 gives the same mathematics with another order of rounding, which is how
            much two correct runs may differ.

    State: 'step' (int), 'next_m' and 'next_v' (as the parameter).

    Raises:
        ValueError: an unknown schedule or clip, or reduction_chunks < 1.

    Differences: past t_total the multiplier keeps its last value (the original's turns negative),
    and ``clip='global'`` and ``reduction_chunks`` are additions.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        warmup: float = -1,
        t_total: int = -1,
        schedule: str | Callable[[int], float] = "warmup_linear",
        b1: float = 0.9,
        b2: float = 0.999,
        e: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        *,
        clip: str = "per_tensor",
        reduction_chunks: int = 1,
    ) -> None:
        if not callable(schedule) and schedule not in SCHEDULES:
            raise ValueError(
                f"PlainBertAdam: schedule is {schedule!r}, expected one of {sorted(SCHEDULES)} "
                "or a callable position -> multiplier"
            )
        if clip not in ("per_tensor", "global"):
            raise ValueError(f"PlainBertAdam: clip is {clip!r}, expected 'per_tensor' or 'global'")
        if reduction_chunks < 1:
            raise ValueError(
                f"PlainBertAdam: reduction_chunks is {reduction_chunks}, expected at least 1"
            )
        defaults = {
            "lr": lr,
            "schedule": schedule,
            "warmup": warmup,
            "t_total": t_total,
            "b1": b1,
            "b2": b2,
            "e": e,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(params, defaults)
        self.clip = clip
        self.reduction_chunks = reduction_chunks

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient; returns the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        shared_norm = self._global_norm() if self.clip == "global" else None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step_param(param, group, shared_norm)
        return loss

    def _step_param(self, p: Tensor, group: dict[str, Any], shared_norm: Tensor | None) -> None:
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["next_m"] = torch.zeros_like(p)
            state["next_v"] = torch.zeros_like(p)
        g, m, v = p.grad, state["next_m"], state["next_v"]
        if group["max_grad_norm"] > 0:
            norm = self._norm(g) if shared_norm is None else shared_norm
            # Always multiplied, also by 1: asking whether it is needed would synchronise a GPU.
            g.mul_((group["max_grad_norm"] / (norm + 1e-6)).clamp(max=1.0).to(g.device))
        m.mul_(group["b1"]).add_(g, alpha=1 - group["b1"])
        v.mul_(group["b2"]).addcmul_(g, g, value=1 - group["b2"])
        update = m / (v.sqrt() + group["e"])
        if group["weight_decay"] > 0:
            update += group["weight_decay"] * p
        p -= group["lr"] * self._multiplier(group, state["step"]) * update
        state["step"] += 1

    def _multiplier(self, group: dict[str, Any], step: int) -> float:
        schedule, t_total = group["schedule"], group["t_total"]
        if callable(schedule):
            return float(schedule(step))
        if t_total == -1:
            return 1.0
        return SCHEDULES[schedule](min(step / t_total, 1.0), group["warmup"])

    def _norm(self, grad: Tensor) -> Tensor:
        if self.reduction_chunks == 1:
            return torch.linalg.vector_norm(grad)
        total = grad.new_zeros(())
        for piece in grad.reshape(-1).chunk(self.reduction_chunks):
            total += torch.linalg.vector_norm(piece) ** 2
        return total.sqrt()

    def _global_norm(self) -> Tensor:
        norms = [
            self._norm(param.grad)
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        if not norms:
            return torch.zeros(())
        return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
