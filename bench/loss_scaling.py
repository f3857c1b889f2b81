"""The loss scalers of float16 training, in one place.

Float16 gradients smaller than 6e-8 are 0, so the loss is multiplied before backward and the
gradients are divided before the update, which is left out where one of them has overflowed.
"""

from __future__ import annotations

from typing import Any

import torch

from bertadam_cuda.amp import GradScaler as OurScaler


class TorchScaler(torch.amp.GradScaler):
    """torch's scaler for gradients that are float16 themselves.

    torch refuses them in unscale_, because dividing in place can lose the smallest ones; only an
    optimizer that takes the scale into its step gets them. Nothing else of it changes here.
    """

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: torch.Tensor,
        found_inf: torch.Tensor,
        allow_fp16: bool,
    ) -> Any:
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)


#: What the log of a run, and the head of a benchmark, say.
OUR_SCALER = f"{OurScaler.__module__}.{OurScaler.__qualname__}"


def steady(kind: Any, scale: float, device: torch.device) -> Any:
    """Return a scaler whose scale is there before the first loss, and does not grow."""
    scaler = kind(device.type, init_scale=scale, growth_interval=2**30)
    scaler.scale(torch.zeros((), device=device))
    return scaler
