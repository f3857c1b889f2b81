"""Capture of steps in CUDA graphs: which ones are refused, and why.

A step that is captured does nothing but launch. The compiled part makes it if it can; if not, this
file finds the reason.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

from torch import Tensor, device


class _Captured(Protocol):
    """What this file needs of an optimizer."""

    param_groups: list[dict[str, Any]]
    _binary: ModuleType

    def _devices(self) -> list[device]: ...


def refuse(optimizer: _Captured) -> None:
    """Raise RuntimeError if a CUDA graph captures a step that has more to do than launch."""
    devices = optimizer._devices()
    capturing = [each for each in devices if optimizer._binary.is_capturing(each)]
    if not capturing:
        return
    start = (
        f"{type(optimizer).__name__}: step() was called while a CUDA graph is being captured, and "
    )
    groups = optimizer.param_groups
    if not groups[0]["capturable"]:
        raise RuntimeError(
            f"{start}capturable is False; construct the optimizer with capturable=True and "
            f"lr=torch.tensor(lr, device={str(capturing[0])!r}), or call step() outside of the "
            "graph"
        )
    if len(capturing) < len(devices):
        others = ", ".join(str(each) for each in devices if each not in capturing)
        raise RuntimeError(
            f"{start}parameters are on {others}, too, where nothing is captured; capture the "
            "streams of all devices, or use one optimizer for each device"
        )
    for index, group in enumerate(groups):
        lr = group["lr"]
        if group["params"] and not (isinstance(lr, Tensor) and lr.is_cuda):
            kind = "a tensor on the CPU" if isinstance(lr, Tensor) else f"the number {lr!r}"
            raise RuntimeError(
                f"{start}the lr of param_groups[{index}] is {kind}: every replay would use it as "
                "it is now; make it a tensor on the device, lr=torch.tensor(lr, "
                f"device={str(group['params'][0].device)!r}), and change it with lr.fill_(...)"
            )
    raise RuntimeError(
        f"{start}states, settings or plans are not made for this step yet; take one step outside "
        "of the graph first, in the same way (with the scaler, if there is one, and with gradients "
        "of the same dtypes)"
    )
