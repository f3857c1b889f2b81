"""What a gradient scaler leaves at an optimizer for its step.

torch.amp.GradScaler sets two attributes, calls `step()`, and removes them: `grad_scale`, what the
loss was multiplied by (None where `unscale_` was called before), and `found_inf`, not 0 where some
gradient was not finite. Source: torch/amp/grad_scaler.py, `GradScaler.step`, in torch 2.11 to 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

_SET_BY_SCALERS = ("grad_scale", "found_inf", "_finds_inf")


def of(optimizer: Any) -> Any:
    """Return the `_C.Scaling` of an optimizer that has one of the attributes, checked."""
    attributes = vars(optimizer)
    found_inf = attributes.get("found_inf")
    if isinstance(found_inf, int) and found_inf == 0:
        found_inf = None  # torch's sum over no devices: no parameter has a gradient
    return optimizer._binary.Scaling(
        type(optimizer).__name__,
        grad_scale=attributes.get("grad_scale"),
        found_inf=found_inf,
        finds_inf="_finds_inf" in attributes,
    )


@contextmanager
def finding_inf(optimizer: Any, scale: Tensor, found_inf: Tensor) -> Iterator[None]:
    """Have the step within divide by `scale` and write `found_inf` itself.

    A `grad_scale` that somebody has set is multiplied into the scale, and is gone afterwards, as
    with torch's scaler.
    """
    attributes = vars(optimizer)
    if "grad_scale" in attributes:
        scale = scale * attributes["grad_scale"]
    attributes.update(grad_scale=scale, found_inf=found_inf, _finds_inf=True)
    try:
        yield
    finally:
        forget(optimizer)


def forget(optimizer: Any) -> None:
    """Remove what a scaler has set: torch's would otherwise multiply its scale into it later.

    A `grad_scale` without `found_inf` is somebody else's, who set it for more than one step.
    """
    attributes = vars(optimizer)
    if "found_inf" in attributes:
        for name in _SET_BY_SCALERS:
            attributes.pop(name, None)


def refuse_closure(optimizer: Any) -> None:
    """Raise RuntimeError where a scaler calls a step with a closure."""
    if "found_inf" in vars(optimizer):
        raise RuntimeError(
            f"{type(optimizer).__name__}: step() was given a closure by a gradient scaler, which "
            "checked the gradients that the closure replaces; call the closure before "
            "scaler.step(optimizer)"
        )
