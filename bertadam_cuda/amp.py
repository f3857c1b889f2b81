"""A gradient scaler that lets the step find infinities and NaN, which its norms do anyway."""

from __future__ import annotations

from typing import Any

import torch
from torch.amp.grad_scaler import OptState

from . import _scaling
from ._optimizer import FusedOptimizer

__all__ = ["GradScaler"]


class GradScaler(torch.amp.GradScaler):
    r"""Scale losses as torch.amp.GradScaler does, and read each gradient once less.

    The loss is multiplied by `scale`; for gradients g of that loss the step of an optimizer of this
    package computes, for all its parameters::

        found_inf = 1 if some element of some g is not finite, else 0
        n = ||g|| * (1 / scale)
        g' = g * (c * (1 / scale))       c from n, as the optimizer clips
        no update and no step counted    if found_inf

    and `update()` multiplies `scale` by backoff_factor after a step with found_inf, and by
    growth_factor after growth_interval steps without, as torch's does: the history of scales is the
    same. torch's scaler reads all gradients for found_inf before it calls the step; this one takes
    it from the norms in the step itself. For that every norm is awaited before the first update,
    also where clipping is per tensor, since a skip is one of the whole step. Nothing waits for the
    device.

    Whatever else is called does what torch's does: after `unscale_(optimizer)` the step takes its
    found_inf; so it does with other optimizers, with parameters on several devices (a step could
    not see the other devices' gradients in time), and with enabled=False.

    Args: as torch.amp.GradScaler: device='cuda', init_scale=2.**16, growth_factor=2.0,
        backoff_factor=0.5, growth_interval=2000, enabled=True. State dicts are interchangeable.

    Raises:
        RuntimeError: step() twice between updates, or with a closure.
        AssertionError: step() before any scale(), as torch's.

    Source: torch.amp.GradScaler. Differences: where no parameter has a gradient, `update()` counts
    a step without infinities (torch's raises AssertionError). Under either scaler, a scale whose
    reciprocal is no float32 (it has decayed to 0, say) leaves everything as it is. Like torch's,
    this one does not look at the gradients of other processes: they are the same after
    DistributedDataParallel, not where they are sharded.

    Example:
        >>> import torch
        >>> from bertadam_cuda import BertAdam
        >>> from bertadam_cuda.amp import GradScaler
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer, scaler = BertAdam(model.parameters(), lr=1e-3), GradScaler("cpu")
        >>> scaler.scale(model(torch.randn(8, 4)).square().mean()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> int(optimizer.skipped), scaler.get_scale()
        (0, 65536.0)
    """

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Call `optimizer.step(*args, **kwargs)`, which unscales, and skips if it finds infinities.

        Returns what it returned. No closures, as with torch's scaler.
        """
        if not self._enabled or "closure" in kwargs or not isinstance(optimizer, FusedOptimizer):
            return super().step(optimizer, *args, **kwargs)
        scale, _ = self._check_scale_growth_tracker("step")
        progress = self._per_optimizer_states[id(optimizer)]
        devices = optimizer._devices()
        if progress["stage"] is not OptState.READY or len(devices) != 1:
            return super().step(optimizer, *args, **kwargs)
        found_inf = torch.empty((), dtype=torch.float32, device=devices[0])
        result: float | None
        with _scaling.finding_inf(optimizer, scale, found_inf):
            result = optimizer.step(*args, **kwargs)
        progress["found_inf_per_device"] = {devices[0]: found_inf}
        progress["stage"] = OptState.STEPPED
        return result
