"""Schedules by name: what an optimizer accepts, and the multiplier of the base lr it then uses.

The functions themselves are re-exported from `_schedule_formulas` for training scripts that call
them directly. This file knows neither torch nor the binary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Complex, Real

from ._schedule_formulas import (
    exponential_decay,
    none,
    warmup_constant,
    warmup_cosine,
    warmup_cosine_hard_restarts,
    warmup_cosine_hf,
    warmup_cosine_warmup_restarts,
    warmup_exp_decay_exp,
    warmup_exp_decay_poly,
    warmup_linear,
    warmup_linear_decay_exp,
    warmup_linear_hf,
    warmup_poly,
)

__all__ = [
    "SCHEDULES",
    "Schedule",
    "last_position",
    "multiplier",
    "none",
    "validate",
    "warmup_constant",
    "warmup_cosine",
    "warmup_cosine_hard_restarts",
    "warmup_cosine_hf",
    "warmup_cosine_warmup_restarts",
    "warmup_exp_decay_exp",
    "warmup_exp_decay_poly",
    "warmup_linear",
    "warmup_linear_decay_exp",
    "warmup_linear_hf",
    "warmup_poly",
]

Schedule = str | Callable[[int], float]


@dataclass(frozen=True)
class _Range:
    """Values that a schedule argument may take."""

    words: str
    contains: Callable[[float], bool]


_POSITIVE = _Range("a finite number > 0", lambda value: value > 0)
_RATE = _Range("a number in (0, 1]", lambda value: 0 < value <= 1)
_RESTARTS = _Range("a finite number >= 1", lambda value: value >= 1)


@dataclass(frozen=True)
class _Entry:
    """How an optimizer calls one schedule by name."""

    function: Callable[..., float]
    takes: Mapping[str, _Range] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    counts_steps: bool = False  # called with (step, total) instead of the fraction x


_EXP_DECAY = {"decay_rate": _RATE, "decay_steps": _POSITIVE}
_POLY = {"warm_degree": _POSITIVE, "degree": _POSITIVE}
_ENTRIES: dict[str, _Entry] = {
    "warmup_cosine": _Entry(warmup_cosine),
    "warmup_constant": _Entry(warmup_constant),
    "warmup_linear": _Entry(warmup_linear),
    "warmup_linear_decay_exp": _Entry(
        warmup_linear_decay_exp, _EXP_DECAY, tuple(_EXP_DECAY), counts_steps=True
    ),
    "warmup_exp_decay_exp": _Entry(
        warmup_exp_decay_exp,
        {**_EXP_DECAY, "degree": _POSITIVE},
        tuple(_EXP_DECAY),
        counts_steps=True,
    ),
    "warmup_exp_decay_poly": _Entry(warmup_exp_decay_poly, _POLY, counts_steps=True),
    "warmup_poly": _Entry(warmup_poly, {"degree": _POSITIVE}),
    "warmup_linear_hf": _Entry(warmup_linear_hf),
    "warmup_cosine_hf": _Entry(warmup_cosine_hf, {"cycles": _POSITIVE}),
    "warmup_cosine_hard_restarts": _Entry(warmup_cosine_hard_restarts, {"cycles": _RESTARTS}),
    "warmup_cosine_warmup_restarts": _Entry(warmup_cosine_warmup_restarts, {"cycles": _RESTARTS}),
    "none": _Entry(none),
}

SCHEDULES: dict[str, Callable[..., float]] = {
    name: entry.function for name, entry in _ENTRIES.items()
}


def validate(
    schedule: object, warmup: object, t_total: object, schedule_args: object, *, where: str
) -> None:
    """Raise unless an optimizer can use these settings; `where` begins the message.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: unknown schedule; warmup outside [0, 1) and not -1; t_total neither -1 nor
            > 0; a key of `schedule_args` that is missing, unknown, or out of range.
    """
    ramp = _number(warmup, "warmup", "a number in [0, 1), or -1 for no ramp", where)
    total = _number(t_total, "t_total", "a number > 0, or -1 for no schedule", where)
    if not (ramp == -1 or 0 <= ramp < 1):
        raise ValueError(f"{where}: warmup is {warmup}, expected [0, 1), or -1 for no ramp")
    if not (total == -1 or 0 < total < math.inf):
        raise ValueError(
            f"{where}: t_total is {t_total}, expected a number of updates > 0, "
            "or -1 for no schedule"
        )
    if schedule_args is not None and not isinstance(schedule_args, Mapping):
        raise TypeError(
            f"{where}: schedule_args has type {type(schedule_args).__name__}, "
            "expected a dict or None"
        )
    if isinstance(schedule, str):
        _check_named(schedule, ramp, schedule_args or {}, where)
    elif not callable(schedule):
        raise TypeError(
            f"{where}: schedule has type {type(schedule).__name__}, expected a name "
            "or a callable position -> multiplier"
        )
    elif schedule_args:
        raise ValueError(
            f"{where}: schedule_args has {_listed(schedule_args)}, but a callable schedule "
            "takes none; bind them in the callable"
        )


def _number(value: object, name: str, expected: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where}: {name} has type {type(value).__name__}, expected {expected}")
    return float(value)


def _check_named(
    schedule: str, warmup: float, schedule_args: Mapping[str, object], where: str
) -> None:
    if schedule not in _ENTRIES:
        raise ValueError(
            f"{where}: schedule {schedule!r} is unknown, expected one of {_listed(_ENTRIES)}, "
            "or a callable position -> multiplier"
        )
    entry = _ENTRIES[schedule]
    missing = [key for key in entry.needs if key not in schedule_args]
    unknown = [key for key in schedule_args if key not in entry.takes]
    if missing or unknown:
        found = "; ".join(
            f"{word} {_listed(keys)}"
            for word, keys in (("missing", missing), ("unknown", unknown))
            if keys
        )
        raise ValueError(
            f"{where}: schedule_args of schedule {schedule!r}: {found}; {_what_it_takes(entry)}"
        )
    numbers = {
        key: _number(value, f"schedule_args[{key!r}]", entry.takes[key].words, where)
        for key, value in schedule_args.items()
    }
    for key, number in numbers.items():
        if not (math.isfinite(number) and entry.takes[key].contains(number)):
            raise ValueError(
                f"{where}: schedule_args[{key!r}] is {number}, expected {entry.takes[key].words}"
            )
    cycles = numbers.get("cycles", 1.0)
    if entry.function is warmup_cosine_warmup_restarts and warmup * cycles >= 1:
        raise ValueError(
            f"{where}: warmup * cycles is {warmup} * {cycles}, expected < 1, "
            "since every cycle has its own ramp"
        )


def _what_it_takes(entry: _Entry) -> str:
    if not entry.takes:
        return "it takes none"
    words = ((key, "required" if key in entry.needs else "optional") for key in entry.takes)
    return "it takes " + ", ".join(f"{key!r} ({word})" for key, word in words)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def last_position(schedule: Schedule, t_total: float) -> int | None:
    """Return the position from which on the multiplier is constant, or None if there is none."""
    if t_total != -1:
        return math.ceil(t_total)
    return 0 if isinstance(schedule, str) else None


def multiplier(
    schedule: Schedule,
    warmup: float,
    t_total: float,
    schedule_args: Mapping[str, float] | None = None,
) -> Callable[[int], float]:
    """Return the optimizer's rule: position (updates of this phase done) -> multiplier of lr.

    The position is clamped to [0, t_total], so that the value at t_total is kept afterwards.
    warmup=-1 means no ramp and a decay from position 0. t_total=-1 gives 1 for every name; a
    callable is then called with every position. No value is negative.

    Raises: as `validate`; the returned function raises TypeError or ValueError if a callable
    schedule returns something that is not a finite number.
    """
    validate(schedule, warmup, t_total, schedule_args, where="schedules.multiplier")
    last = last_position(schedule, t_total)
    if not isinstance(schedule, str):
        return _checked_callable(schedule, last)
    if last == 0:
        return lambda position: 1.0
    entry = _ENTRIES[schedule]
    args = dict(schedule_args or {})
    if entry.counts_steps and "decay_rate" in args and warmup == -1:
        # The formula would read -1 as a ramp that ended a whole training ago.
        rate, steps = args["decay_rate"], args["decay_steps"]
        return lambda position: exponential_decay(_clamped(position, t_total), rate, steps)
    if entry.counts_steps:
        return lambda position: entry.function(
            _clamped(position, t_total), total_steps=t_total, warmup=warmup, **args
        )
    return lambda position: entry.function(_clamped(position, t_total) / t_total, warmup, **args)


def _clamped(position: int, t_total: float) -> float:
    return max(0, min(position, t_total))


def _checked_callable(schedule: Callable[[int], float], last: int | None) -> Callable[[int], float]:
    def evaluate(position: int) -> float:
        at = max(0, position if last is None else min(position, last))
        value = schedule(at)
        is_complex = isinstance(value, Complex) and not isinstance(value, Real)
        if is_complex or not hasattr(value, "__float__"):
            raise TypeError(
                f"schedule: the callable returned {type(value).__name__} at position {at}, "
                "expected a finite float"
            )
        if not math.isfinite(float(value)):
            raise ValueError(
                f"schedule: the callable returned {float(value)} at position {at}, "
                "expected a finite float"
            )
        return max(0.0, float(value))

    return evaluate
