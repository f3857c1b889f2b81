"""Positions in a schedule: reading the lr that they give, and beginning a new phase.

A parameter's position is its step minus its 'schedule_start', both on its device.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import schedules
from ._checkpoint_layouts import STARTS
from ._settings import SCHEDULE, check_number, update
from ._tables import MAX_POSITION


class _Scheduled(Protocol):
    """What this file needs of an optimizer."""

    param_groups: list[dict[str, Any]]
    state: Any

    def _init_state(self, param: Tensor) -> None: ...
    def _validate_groups(self, groups: list[dict[str, Any]]) -> None: ...
    def _drop_plan(self) -> None: ...


class Bounds(NamedTuple):
    """Numbers that no parameter of a group exceeds."""

    position: int
    step: int


def bounds(state: Any, group: dict[str, Any]) -> Bounds:
    """Return the largest position and step of a group's parameters; synchronises on CUDA, once."""
    states = [of_param for param in group["params"] if (of_param := state.get(param))]
    if not states:
        return Bounds(0, 0)
    steps = [of_param["step"] for of_param in states]
    positions = [of_param["step"] - of_param.get("schedule_start", 0.0) for of_param in states]
    counts = torch.stack(positions + steps).tolist()
    return Bounds(_whole(max(counts[: len(states)])), _whole(max(counts[len(states) :])))


def get_lr(optimizer: _Scheduled) -> list[float]:
    """Return the lr of the next update of every parameter that requires grad."""
    rates: list[float] = []
    for group in optimizer.param_groups:
        rule = schedules.multiplier(*(group[key] for key in SCHEDULE))
        for param in group["params"]:
            if param.requires_grad:
                state = optimizer.state.get(param)
                rates.append(float(group["lr"]) * rule(_position(state) if state else 0))
    return rates


def _position(state: dict[str, Tensor]) -> int:
    start = state.get("schedule_start")
    return _whole(float(state["step"]) - (float(start) if start is not None else 0.0))


def _whole(position: float) -> int:
    return int(min(max(position, 0.0), MAX_POSITION))


def reset_schedule(
    optimizer: _Scheduled,
    changes: dict[str, Any],
    start_position: int,
    restart_bias_correction: bool,
) -> None:
    """Move every parameter's schedule_start and set `changes` in every group, or raise first."""
    where = f"{type(optimizer).__name__}.reset_schedule"
    check_number(start_position, "start_position", where, least=0.0, below=MAX_POSITION)
    if start_position != int(start_position):
        raise ValueError(f"{where}: start_position is {start_position}, expected a whole number")
    if "schedule" in changes:
        changes = {"schedule_args": None, **changes}  # those of another schedule mean nothing
    optimizer._validate_groups([{**group, **changes} for group in optimizer.param_groups])
    params = [param for group in optimizer.param_groups for param in group["params"]]
    with torch.no_grad():
        for param in params:
            if param.requires_grad or optimizer.state.get(param):
                optimizer._init_state(param)
                state = optimizer.state[param]
                _set_counter(state, "schedule_start", state["step"] - start_position)
                if restart_bias_correction:
                    _set_counter(state, "bias_correction_start", state["step"])
    for group in optimizer.param_groups:
        update(group, changes)
    optimizer._drop_plan()


def add_starts(state: dict[str, Tensor]) -> None:
    """Give a state the counters that `reset_schedule` moves, if it lacks them.

    A captured step reads what was there at its capture.
    """
    for key in STARTS:
        if key not in state:
            state[key] = torch.zeros_like(state["step"])


def _set_counter(state: dict[str, Tensor], key: str, value: Tensor) -> None:
    if key in state:
        state[key].copy_(value)
    else:
        state[key] = value.clone()
