"""Checks of the values in a state dict: each returns what may be written, or raises.

Nothing is written here, and nothing is known of groups and layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ._checkpoint_layouts import STARTS
from ._masters import MASTER_PARAM, PARAM_REMAINDER
from ._settings import check_number

#: A float32 counter is exact below this.
_STEP_LIMIT = 2**24
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: State that no run of an optimizer makes negative.
_NON_NEGATIVE = ("exp_avg_sq", "max_exp_avg_sq")


def checked_state(
    key: str, value: object, param: Tensor, current: Mapping[str, Tensor], label: str
) -> Tensor:
    """Return `value` if it can become the state `key` of `param`.

    Args:
        key: name of the state.
        value: what the file has.
        param: the parameter, for its shape.
        current: its present state, for the dtype; float32 where there is none.
        label: begins every message.

    Raises:
        TypeError: no dense floating-point tensor.
        ValueError: another shape, no values, values that are not finite or do not fit the dtype,
            or a negative one where none can be.
    """
    source = _checked_tensor(key, value, param, _DTYPES, label)
    if source.numel() > 0:
        dtype = current[key].dtype if key in current else torch.float32
        _check_range(key, source.detach(), dtype, label)
    return source


def checked_master(
    entry: Mapping[str, Any], param: Tensor, current: Mapping[str, Tensor], label: str
) -> Tensor | None:
    """Return the master in `entry`, told by its dtype: int16 is a remainder; None: it has none.

    Raises:
        TypeError, ValueError: as `checked_state`; both masters at once; a remainder of a parameter
            that is not bfloat16.
    """
    if MASTER_PARAM in entry and PARAM_REMAINDER in entry:
        raise ValueError(f"{label} has {MASTER_PARAM} and {PARAM_REMAINDER}, expected one of them")
    if MASTER_PARAM in entry:
        return checked_state(MASTER_PARAM, entry[MASTER_PARAM], param, current, label)
    if PARAM_REMAINDER not in entry:
        return None
    if param.dtype != torch.bfloat16:
        raise ValueError(
            f"{label} {PARAM_REMAINDER} completes a bfloat16 parameter, and this one is "
            f"{param.dtype}; load the file into a bfloat16 model with master_weights='fp32' and "
            "save it again: that file fits any"
        )
    return _checked_tensor(PARAM_REMAINDER, entry[PARAM_REMAINDER], param, (torch.int16,), label)


def _checked_tensor(
    key: str, value: object, param: Tensor, dtypes: tuple[torch.dtype, ...], label: str
) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{label} {key} has type {type(value).__name__}, expected a tensor")
    if value.dtype not in dtypes or value.layout != torch.strided:
        raise TypeError(
            f"{label} {key} has dtype {value.dtype} and layout {value.layout}, expected a dense "
            f"tensor of {', '.join(str(dtype) for dtype in dtypes)}"
        )
    if value.shape != param.shape:
        raise ValueError(
            f"{label} {key} has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}; "
            "the file belongs to another model or to another order of its parameters"
        )
    if value.is_meta:
        raise ValueError(f"{label} {key} is on the meta device and has no values to load")
    return value


def _check_range(key: str, value: Tensor, dtype: torch.dtype, label: str) -> None:
    # One pass for all questions; a NaN anywhere makes both ends NaN.
    low, high = (float(end) for end in torch.aminmax(value))
    limit = torch.finfo(dtype).max
    if not -limit <= low <= high <= limit:
        raise ValueError(
            f"{label} {key} has values from {low} to {high}, expected finite ones that fit {dtype}"
        )
    if low < 0 and key in _NON_NEGATIVE:
        raise ValueError(f"{label} {key} has the negative value {low}, expected none below 0")


def scaled(value: object, lr: Any, label: str) -> object:
    """Return `value` times `lr`, in float64; what is no tensor of numbers as it is.

    Raises: TypeError or ValueError where `lr` is not a finite number >= 0.
    """
    number = lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 else lr
    check_number(number, "lr of its group", label.removesuffix(":"), least=0.0)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().double() * number


def checked_counters(entry: Mapping[str, Any], label: str) -> dict[str, float]:
    """Return the counters in `entry` as numbers: 'step', and the starts where it has them.

    Raises:
        TypeError: one is neither a number nor a tensor of one element.
        ValueError: one is no whole number in its range, or a start lies after the step.
    """
    counters = {"step": _whole_number(entry["step"], 0, f"{label} step")}
    for key in STARTS:
        if key in entry:
            # A phase that begins at a later position of its schedule started before step 0.
            least = 0 if key == "bias_correction_start" else 1 - _STEP_LIMIT
            counters[key] = _whole_number(entry[key], least, f"{label} {key}")
            if counters[key] > counters["step"]:
                raise ValueError(
                    f"{label} {key} is {counters[key]:.0f}, expected at most the step, "
                    f"{counters['step']:.0f}"
                )
    return counters


def _whole_number(value: object, least: int, label: str) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        value = value.item()
    if isinstance(value, Tensor):
        raise TypeError(
            f"{label} is a tensor of shape {tuple(value.shape)} on {value.device}, expected a "
            "number or a tensor of one element"
        )
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{label} has type {type(value).__name__}, expected a number")
    # Compared before it is converted: an int may be too large for a float.
    number: Any = value
    if not least <= number < _STEP_LIMIT or number != int(number):
        raise ValueError(
            f"{label} is {number}, expected a whole number from {least} to {_STEP_LIMIT - 1}"
        )
    return float(number)
