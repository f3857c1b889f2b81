"""Settings of parameter groups: which there are, and which values are refused.

Everything numeric and the schedule belong to a group; the settings in `PER_OPTIMIZER` must agree
over all groups of an optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from . import schedules
from ._tables import MAX_POSITION

#: How parameters are kept in memory: see csrc/core/storage.h.
STORAGE = ("master_weights", "stochastic_rounding", "rounding_seed")
PER_OPTIMIZER = ("clip", "on_nonfinite", *STORAGE, "capturable")
SCHEDULE = ("schedule", "warmup", "t_total", "schedule_args")
_FLAGS = ("bias_correction", "maximize")
_SEED_LIMIT = 2**64
COMMON = ("max_grad_norm", *_FLAGS, *SCHEDULE, *PER_OPTIMIZER)

_CHOICES: dict[str, tuple[Any, ...]] = {
    "clip": ("per_tensor", "global"),
    "on_nonfinite": (None, "skip", "propagate"),
    "master_weights": (None, "fp32", "remainder"),
    "stochastic_rounding": (False, True),
    "capturable": (False, True),
}


def validate(
    groups: list[dict[str, Any]],
    name: str,
    check_rule: Callable[[dict[str, Any], str], None],
    per_optimizer: tuple[str, ...] = (),
) -> None:
    """Raise ValueError or TypeError for bad settings.

    `check_rule` looks at the rule's own, of which `per_optimizer` must agree over all groups.
    """
    for index, group in enumerate(groups):
        where = f"{name}: param_groups[{index}]"
        check_rate(group, where)
        if _on_device(group["lr"]):
            check_number(group["lr"].item(), "lr", where, least=0.0)
        check_number(group["max_grad_norm"], "max_grad_norm", where, finite=False)
        check_flags(group, _FLAGS, where)
        if group.get("differentiable"):
            raise ValueError(
                f"{where}: differentiable=True is not supported: the step has no graph"
            )
        schedules.validate(*(group[key] for key in SCHEDULE), where=where)
        if group["capturable"] is True:
            _check_whole_schedule(group, where)
        check_rule(group, where)
        for key in (*PER_OPTIMIZER, *per_optimizer):
            _check_per_optimizer(key, group[key], groups[0][key], where)
        if group["stochastic_rounding"] and group["master_weights"] is not None:
            raise ValueError(
                f"{where}: stochastic_rounding is True and master_weights is "
                f"{group['master_weights']!r}; a master makes the rounding of the parameter "
                "harmless: use one of the two"
            )


def _check_per_optimizer(key: str, value: Any, first: Any, where: str) -> None:
    if key in _CHOICES and value not in _CHOICES[key]:
        choices = ", ".join(repr(choice) for choice in _CHOICES[key])
        raise ValueError(f"{where}: {key} is {value!r}, expected one of {choices}")
    if key == "rounding_seed" and (
        isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _SEED_LIMIT
    ):
        raise ValueError(f"{where}: {key} is {value!r}, expected a whole number in [0, 2**64)")
    if value != first:
        raise ValueError(
            f"{where}: {key} is {value!r} but {first!r} in param_groups[0]; it holds for the whole "
            "optimizer: pass it to the constructor, or use two optimizers"
        )


def _check_whole_schedule(group: dict[str, Any], where: str) -> None:
    """Raise ValueError unless all multipliers can be computed before the first step."""
    last = schedules.last_position(group["schedule"], group["t_total"])
    if last is None:
        raise ValueError(
            f"{where}: schedule is a callable and t_total is -1; with capturable=True every "
            "multiplier is computed ahead, since a graph cannot call it: pass t_total"
        )
    if last > MAX_POSITION:
        raise ValueError(
            f"{where}: t_total is {group['t_total']}; with capturable=True every multiplier is "
            f"computed ahead, for at most 2**24 = {MAX_POSITION} updates, where a float32 step "
            "counter ends"
        )


def check_rate(group: dict[str, Any], where: str) -> None:
    """Raise unless the group's lr is a number >= 0, or a tensor that holds one.

    On a device only with capturable=True, and the value is not looked at: that would wait for it.
    """
    lr: object = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or lr.is_complex():
            raise ValueError(
                f"{where}: lr is a tensor of shape {tuple(lr.shape)} and {lr.dtype}, expected one "
                "real element"
            )
        if _on_device(lr):
            _check_device_rate(group, lr, where)
            return
        lr = lr.item()
    check_number(lr, "lr", where, least=0.0)


def _check_device_rate(group: dict[str, Any], lr: Tensor, where: str) -> None:
    if not group["capturable"]:
        raise ValueError(
            f"{where}: lr is a tensor on {lr.device}; to read it, every step would wait for "
            "the device: pass lr.cpu(), which is read at every step, or a float; or "
            "capturable=True, which leaves it on the device"
        )
    if lr.device.type != "cuda" or lr.layout != torch.strided:
        raise ValueError(
            f"{where}: lr is a tensor on {lr.device} of layout {lr.layout}, expected a dense one "
            "on the CPU or on the parameters' CUDA device"
        )
    if lr.dtype not in (torch.float32, torch.float64) or lr.is_neg():
        raise ValueError(
            f"{where}: lr is a tensor of {lr.dtype} on {lr.device}, expected float32 or float64 "
            "there (and no negated view); convert it with lr.double()"
        )
    elsewhere = {param.device for param in group["params"]} - {lr.device}
    if elsewhere:
        raise ValueError(
            f"{where}: lr is a tensor on {lr.device}, and the group has parameters on "
            f"{', '.join(sorted(map(str, elsewhere)))}; make one group for each device, each with "
            "an lr there"
        )


def _on_device(lr: object) -> bool:
    return isinstance(lr, Tensor) and lr.device.type != "cpu"


def rate(group: dict[str, Any]) -> tuple[float, Tensor | None]:
    """Return the lr as the host has it, or NaN and the tensor where the steps read it."""
    lr = group["lr"]
    return (math.nan, lr) if _on_device(lr) else (float(lr), None)


def update(group: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set `changes` in a group. With capturable=True a tensor lr is written, not replaced.

    Captured steps read it.
    """
    lr = group["lr"]
    if "lr" in changes and group["capturable"] and isinstance(lr, Tensor):
        with torch.no_grad():
            lr.fill_(float(changes["lr"]))
        changes = {**changes, "lr": lr}
    group.update(changes)


def check_shared_rates(
    groups: list[dict[str, Any]], changes: list[dict[str, Any]], where: str
) -> None:
    """Raise ValueError where `update` would write two numbers into one tensor."""
    written: dict[int, float] = {}
    for index, (group, new) in enumerate(zip(groups, changes, strict=True)):
        if "lr" not in new or not group["capturable"] or not isinstance(group["lr"], Tensor):
            continue
        value = float(new["lr"])
        if written.setdefault(id(group["lr"]), value) != value:
            raise ValueError(
                f"{where}: param_groups[{index}] shares its lr, a tensor, with another group, and "
                f"the file has {value} for it, another number than for the other; give every group "
                "a tensor of its own"
            )


def check_flags(group: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Raise TypeError unless each of these settings is True or False."""
    for key in keys:
        if not isinstance(group[key], bool):
            raise TypeError(f"{where}: {key} is {group[key]!r}, expected True or False")


def check_number(
    value: object,
    name: str,
    where: str,
    *,
    least: float = -math.inf,
    below: float = math.inf,
    finite: bool = True,
) -> None:
    """Raise TypeError unless `value` is a real number, ValueError unless least <= value < below.

    NaN is always refused; infinities only where `finite`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where}: {name} has type {type(value).__name__}, expected a number")
    number = float(value)
    in_range = least <= number and (number < below or not finite)
    if math.isnan(number) or not in_range or (finite and math.isinf(number)):
        limits = "a finite number" if finite else "a number"
        if least > -math.inf:
            limits += f" >= {least:g}"
        if below < math.inf:
            limits += f" and < {below:g}"
        raise ValueError(f"{where}: {name} is {value}, expected {limits}")


def snapshot(group: dict[str, Any], rule_keys: tuple[str, ...]) -> tuple[Any, ...]:
    """Return a group's settings beside lr, to notice a change of any, in place ones included."""
    args = group["schedule_args"]
    return (
        *[group[key] for key in rule_keys],
        *[group[key] for key in COMMON],
        dict(args) if args else None,
    )
