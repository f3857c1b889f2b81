"""Plans of an optimizer: one per device, made for its parameters and given its groups' settings.

A step calls the plans; this file decides when they have to be made anew, which settings they are
given, and how long the tables of schedules and bias corrections are.
"""

from __future__ import annotations

import math
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import _capture, _phases, _settings, schedules
from ._tables import MAX_POSITION, Tables


class Planning:
    """The part of an optimizer that owns its plans."""

    #: Names of the group settings beside lr and the common ones,
    _rule_keys: tuple[str, ...] = ()
    #: and of those among them that must agree over all groups.
    _rule_per_optimizer: tuple[str, ...] = ()

    #: Settings that a loaded file does not change.
    _fixed_settings: tuple[str, ...] = ()

    param_groups: list[dict[str, Any]]
    state: Any
    _binary: ModuleType
    _plans: list[Any]
    _stepper: Any
    _planned: dict[str, Any] | None  # the plans' rule, and how they take parameters

    def _rule_name(self, groups: list[dict[str, Any]]) -> str:
        """Return which rule of csrc/core/rules.h the settings of `groups` ask for."""
        raise NotImplementedError

    def _rule_settings(self, group: dict[str, Any]) -> dict[str, float]:
        """Return what `StepPlan.set_group` takes of a group for this rule, under its names."""
        raise NotImplementedError

    def _check_rule(self, group: dict[str, Any], where: str) -> None:
        """Raise ValueError or TypeError for bad values of `_rule_keys`."""
        raise NotImplementedError

    def _init_state(self, param: Tensor) -> None:
        """Create the zero state of a parameter, if it has none."""
        raise NotImplementedError

    def _plan_settings(self) -> dict[str, Any]:
        storage = {key: self.param_groups[0][key] for key in _settings.STORAGE}
        captured = self._captured if self.param_groups[0]["capturable"] else None
        return {"rule": self._rule_name(self.param_groups), "captured": captured, **storage}

    def _validate_groups(self, groups: list[dict[str, Any]]) -> None:
        """Raise ValueError or TypeError for bad settings; no side effect."""
        name = type(self).__name__
        _settings.validate(groups, name, self._check_rule, self._rule_per_optimizer)

    def _make_plans(self) -> None:
        """One plan per device, in the order in which the devices appear."""
        where = type(self).__name__
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                if type(param) not in (Tensor, torch.nn.Parameter):
                    label = f"param_groups[{index}]['params'][{position}]"
                    if "param_names" in group:
                        label = f"{group['param_names'][position]!r} ({label})"
                    raise TypeError(
                        f"{where}: {label} is a {type(param).__name__}, a tensor subclass, "
                        "expected a plain tensor or torch.nn.Parameter; of a DTensor pass "
                        "to_local()"
                    )
        params = [param for group in self.param_groups for param in group["params"]]
        devices = list(dict.fromkeys(param.device for param in params))
        if len(devices) > 1 and self.param_groups[0]["clip"] == "global":
            raise ValueError(
                f"{where}: clip='global' with parameters on {', '.join(map(str, devices))}; one "
                "norm over several devices is not supported: use clip='per_tensor'"
            )
        settings = self._plan_settings()
        self._drop_plan()
        self._planned = settings
        for device in devices:
            if device not in self._n_skipped:
                # Parameters on the meta device are refused by the plan, by name.
                home = "cpu" if device.type == "meta" else device
                self._n_skipped[device] = torch.zeros((), dtype=torch.int64, device=home)
        self._plans += [
            self._binary.StepPlan(
                where, self.param_groups, self.state, device, self._n_skipped[device], **settings
            )
            for device in devices
        ]
        self._stepper = self._binary.Stepper(self._plans)

    def _devices(self) -> list[torch.device]:
        """Return the devices of the parameters, from the plans where these are up to date.

        Of the parameters only the first is looked at: all of them take 60 ns each.
        """
        first = next((p for group in self.param_groups for p in group["params"]), None)
        planned = [plan.device for plan in self._plans]
        if first is None or planned[:1] == [first.device]:
            return planned
        params = [param for group in self.param_groups for param in group["params"]]
        return list(dict.fromkeys(param.device for param in params))

    def _drop_plan(self) -> None:
        """Forget what was derived from parameters and settings."""
        self._plans: list[Any] = []
        self._stepper = self._binary.Stepper([])
        self._seen: list[tuple[Any, ...]] = []  # settings that the plans were given
        self._seen_rates: list[float] = []
        self._planned = None
        self._stepped = False
        self._n_steps = 0  # since the plans were given their settings
        self._next_event = math.inf

    def _forget(self) -> None:
        if "_captured" not in self.__dict__:  # else graphs may still refer to what it holds
            self._captured = self._binary.CapturedSteps()
        self._drop_plan()
        self._tables = Tables()
        self._n_skipped: dict[torch.device, Tensor] = {}
        self._warned: set[str] = set()

    def _inspect(self) -> bool:
        """Check parameters and gradients; False where the plans are not made for them."""
        groups, state = self.param_groups, self.state
        return bool(self._plans) and all([plan.inspect(groups, state) for plan in self._plans])

    def _bring_up_to_date(self) -> None:
        """Do all that a step does not do by itself: plans, settings, tables, missing states."""
        _capture.refuse(self)
        if self._plan_settings() != self._planned:
            self._validate_groups(self.param_groups)
            self._make_plans()
        if not self._inspect():
            self._make_plans()
            self._inspect()
        self._update_settings()
        if self._n_steps >= self._next_event:
            self._handle_events()
        elif any(plan.counters_changed for plan in self._plans):
            self._set_groups()  # somebody else has moved a step counter
        for plan in self._plans:
            plan.create_states(self._init_state)
        if self.param_groups[0]["capturable"]:
            with torch.inference_mode(False):
                for state in filter(None, self.state.values()):
                    _phases.add_starts(state)  # capturable may be new
        self._stepper.accept(self.param_groups, not self._has_two_schedules())

    def _update_settings(self) -> None:
        """Hand over what changed in the groups since they were last looked at."""
        for index, group in enumerate(self.param_groups):
            _settings.check_rate(group, f"{type(self).__name__}: param_groups[{index}]")
        rates = [_settings.rate(group) for group in self.param_groups]
        others = [_settings.snapshot(group, self._rule_keys) for group in self.param_groups]
        if others != self._seen:
            self._validate_groups(self.param_groups)
            self._warn_of_two_schedules()
            self._set_groups()
        else:
            if [lr for lr, _ in rates] != self._seen_rates:
                self._warn_of_two_schedules()
            # Of all groups: the stepper may have given other ones since.
            for plan in self._plans:
                for index, lr in enumerate(rates):
                    plan.set_lr(index, *lr)
        self._seen, self._seen_rates = others, [lr for lr, _ in rates]

    def _set_groups(self) -> None:
        """Hand all settings to the plans, once everything that may fail is made."""
        groups = self.param_groups
        global_clip = groups[0]["clip"] == "global"
        on_nonfinite = groups[0]["on_nonfinite"]
        clips = [group["max_grad_norm"] > 0 for group in groups]
        needs_norm = [
            clip or on_nonfinite == "skip" or (global_clip and any(clips)) for clip in clips
        ]
        bounds = [self._bounds(group) for group in groups]
        rules = [self._rule_settings(group) for group in groups]
        events = [
            self._steps_to_end(group, bound.position)
            for group, bound in zip(groups, bounds, strict=True)
        ]
        tables = {}
        for plan in self._plans:
            for index, (group, rule) in enumerate(zip(groups, rules, strict=True)):
                # A replay does not come here to have its tables lengthened.
                whole = group["capturable"]
                position, step = (MAX_POSITION, MAX_POSITION) if whole else bounds[index]
                schedule = self._tables.schedule(group, position, plan.device)
                events.append(schedule.valid_to - position)
                corrections = None
                if group["bias_correction"]:
                    betas = rule["beta1"], rule["beta2"]
                    table = self._tables.bias_corrections(*betas, step, plan.device)
                    events.append(table.valid_to - step)
                    corrections = table.values
                tables[plan, index] = schedule.values, corrections
        for (plan, index), (multipliers, corrections) in tables.items():
            group = groups[index]
            lr, on_device = _settings.rate(group)
            plan.set_group(
                index,
                lr=lr,
                max_grad_norm=group["max_grad_norm"],
                maximize=group["maximize"],
                multipliers=multipliers,
                corrections=corrections,
                **rules[index],
            )
            plan.set_lr(index, lr, on_device)
        for plan in self._plans:
            plan.configure(
                clip_by_total_norm=global_clip,
                skip_nonfinite=on_nonfinite != "propagate",
                group_needs_norm=needs_norm,
            )
        self._n_steps = 0
        self._next_event = min(events, default=math.inf)

    def _steps_to_end(self, group: dict[str, Any], position: int) -> float:
        """Return after how many steps the schedule is over, if that is still to be said."""
        last = schedules.last_position(group["schedule"], group["t_total"])
        if last is None or group["t_total"] == -1 or "t_total" in self._warned:
            return math.inf
        return max(last + 1 - position, 0)

    def _handle_events(self) -> None:
        """Lengthen tables, and warn where a schedule is over."""
        for index, group in enumerate(self.param_groups):
            position = self._bounds(group).position
            if self._steps_to_end(group, position) == 0:
                self._warn_once(
                    "t_total",
                    f"{type(self).__name__}: param_groups[{index}] has made {position} updates, "
                    f"past t_total={group['t_total']}; its lr stays at its last value (use "
                    "reset_schedule to begin a new phase)",
                )
        self._set_groups()

    def _bounds(self, group: dict[str, Any]) -> _phases.Bounds:
        """Return what no position and step of the group's parameters exceeds, where it matters.

        Reads the steps, which waits for the device: after a change of settings, and when a table
        ends or a schedule is over.
        """
        constant = group["t_total"] == -1 and isinstance(group["schedule"], str)
        if constant and not group["bias_correction"]:
            return _phases.Bounds(0, 0)
        return _phases.bounds(self.state, group)

    def _has_two_schedules(self) -> bool:
        """Whether the next new lr is a reason to warn."""
        return "two schedules" not in self._warned and any(map(_two_schedules, self.param_groups))

    def _warn_of_two_schedules(self) -> None:
        for index, group in enumerate(self.param_groups):
            if _two_schedules(group):
                self._warn_once(
                    "two schedules",
                    f"{type(self).__name__}: param_groups[{index}] has schedule="
                    f"{group['schedule']!r} with t_total={group['t_total']}, and a torch lr "
                    "scheduler changes its lr as well: the two multiply; use t_total=-1 or "
                    "schedule='none' to leave the lr to the scheduler",
                )

    def _warn_once(self, subject: str, message: str) -> None:
        if subject not in self._warned:
            warnings.warn(message, stacklevel=4)
            self._warned.add(subject)


def _two_schedules(group: dict[str, Any]) -> bool:
    """Whether a group has a schedule of its own, and a torch lr scheduler has been there."""
    own = group["t_total"] != -1 and group["schedule"] != "none"
    return own and "initial_lr" in group
