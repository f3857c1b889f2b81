"""Reads what a BertAdam file says of the schedule, pickled objects included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Schedule objects of pytorch-pretrained-BERT 0.6.2, by the name of their class: the name here
#: and whether the class has cycles.
_SCHEDULE_OBJECTS = {
    "ConstantLR": ("none", False),
    "WarmupConstantSchedule": ("warmup_constant", False),
    "WarmupLinearSchedule": ("warmup_linear_hf", False),
    "WarmupCosineSchedule": ("warmup_cosine_hf", True),
    "WarmupCosineWithHardRestartsSchedule": ("warmup_cosine_hard_restarts", True),
    "WarmupCosineWithWarmupRestartsSchedule": ("warmup_cosine_warmup_restarts", True),
}


def schedule_settings(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a BertAdam file says of the schedule, in the terms of this package.

    pytorch-pretrained-BERT 0.6.2 pickles an object; its numbers are read by attribute, so that
    package is not needed here. It stores warmup as max(warmup, 0), and multiplied by cycles for
    the schedule with a ramp in every cycle.
    """
    if "schedule" not in settings:
        return {}
    schedule = settings["schedule"]
    if isinstance(schedule, str):
        # The original knows no arguments; what the optimizer has now belongs to its old schedule.
        return {"schedule_args": None}
    kind = type(schedule).__name__
    named = kind in _SCHEDULE_OBJECTS
    if not named or not hasattr(schedule, "warmup") or not hasattr(schedule, "t_total"):
        raise ValueError(
            f"{where} of the file has a schedule of type {kind}, expected a name or one of "
            f"{', '.join(map(repr, _SCHEDULE_OBJECTS))} with its warmup and t_total"
        )
    name, has_cycles = _SCHEDULE_OBJECTS[kind]
    warmup, t_total = float(schedule.warmup), float(schedule.t_total)
    cycles = float(schedule.cycles) if has_cycles else 1.0
    if name == "warmup_cosine_warmup_restarts":
        warmup /= cycles
    return {
        "schedule": name,
        "warmup": warmup,
        "t_total": -1 if t_total < 0 else int(t_total) if t_total.is_integer() else t_total,
        "schedule_args": {"cycles": cycles} if has_cycles else None,
    }
