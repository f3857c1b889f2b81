"""What every optimizer of the package shares: state, settings, plans, the step, checkpoints.

The mathematics is in csrc/core/rules, the memory in csrc/cuda and csrc/cpu. A class of the package
adds its constructor and `_rule_settings`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from . import _checkpoint, _phases, _settings, schedules
from ._ext import load
from ._settings import check_number
from ._tables import Tables


class FusedOptimizer(torch.optim.Optimizer):
    """Base of the package's optimizers: one launch per device for all parameters of all groups."""

    #: Names of the group settings beside lr and the common ones.
    _rule_keys: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._binary = load()
        self._forget()
        super().__init__(params, defaults)

    def _rule_settings(self, group: dict[str, Any]) -> dict[str, float]:
        """Return beta1, beta2, eps and weight_decay of a group under these names."""
        raise NotImplementedError

    def _check_rule(self, group: dict[str, Any], where: str) -> None:
        """Raise ValueError or TypeError for bad values of `_rule_keys`."""
        raise NotImplementedError

    # ------------------------------------------------------------------ step

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one update of every parameter that has a gradient.

        Everything is checked, allocated and planned before the first write: an exception leaves
        parameters, state and counters as they were. Gradients are only read. Nothing waits for
        the device. A gradient whose strides differ from its parameter's is copied first (slow).

        Args:
            closure: re-evaluates the model and returns the loss; called first, with grad enabled.

        Returns: what `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._inspect():
            self._make_plans()
            self._inspect()
        self._update_settings()
        if any([plan.prepare(self._init_state) for plan in self._plans]):
            self._set_groups()  # somebody else has moved a step counter
        for plan in self._plans:
            plan.run()
        self._stepped = True
        self._n_steps += 1
        if self._n_steps >= self._next_event:
            self._handle_events()
        return loss

    def _inspect(self) -> bool:
        """Check parameters and gradients; False where the plans are not made for them."""
        groups, state = self.param_groups, self.state
        return bool(self._plans) and all([plan.inspect(groups, state) for plan in self._plans])

    def _init_state(self, param: Tensor) -> None:
        """Create the zero state of a parameter, if it has none."""
        if self.state.get(param):
            return
        with torch.inference_mode(False):  # inference tensors could not be written later
            state: dict[str, Tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=param.device)
            }
            for name in self._state_names:
                state[name] = torch.zeros_like(param, dtype=torch.float32, requires_grad=False)
        self.state[param] = state

    @property
    def _state_names(self) -> tuple[str, ...]:
        return tuple(self._binary.state_names)

    # ------------------------------------------------- parameters and groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch.optim.Optimizer does; one that is refused leaves no trace."""
        super().add_param_group(param_group)
        try:
            self._validate_groups(self.param_groups)
            self._make_plans()
        except BaseException:
            self.param_groups.pop()
            self._drop_plan()
            raise

    def _validate_groups(self, groups: list[dict[str, Any]]) -> None:
        """Raise ValueError or TypeError for bad settings; no side effect."""
        _settings.validate(groups, type(self).__name__, self._check_rule)

    def _make_plans(self) -> None:
        """One plan per device, in the order in which the devices appear."""
        where = type(self).__name__
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                if type(param) not in (Tensor, torch.nn.Parameter):
                    label = group.get("param_names", {position: "it"})[position]
                    raise TypeError(
                        f"{where}: param_groups[{index}]['params'][{position}] ({label}) is a "
                        f"{type(param).__name__}, a tensor subclass, expected a plain tensor or "
                        "torch.nn.Parameter; of a DTensor pass to_local()"
                    )
        params = [param for group in self.param_groups for param in group["params"]]
        devices = list(dict.fromkeys(param.device for param in params))
        if len(devices) > 1 and self.param_groups[0]["clip"] == "global":
            raise ValueError(
                f"{where}: clip='global' with parameters on {', '.join(map(str, devices))}; one "
                "norm over several devices is not supported: use clip='per_tensor'"
            )
        self._drop_plan()
        for device in devices:
            if device not in self._n_skipped:
                where_to = "cpu" if device.type == "meta" else device
                self._n_skipped[device] = torch.zeros((), dtype=torch.int64, device=where_to)
        self._plans += [
            self._binary.StepPlan(
                where, self.param_groups, self.state, device, self._n_skipped[device]
            )
            for device in devices
        ]

    def _drop_plan(self) -> None:
        """Forget what was derived from parameters and settings."""
        self._plans: list[Any] = []
        self._seen: list[tuple[Any, ...]] = []  # settings that the plans were given
        self._seen_rates: list[float] = []
        self._stepped = False
        self._n_steps = 0  # since the plans were given their settings
        self._next_event = math.inf

    def _forget(self) -> None:
        self._drop_plan()
        self._tables = Tables()
        self._n_skipped: dict[torch.device, Tensor] = {}
        self._warned: set[str] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied optimizer; plans and tables are made anew."""
        self._binary = load()
        self._forget()
        super().__setstate__(state)
        for group in self.param_groups:
            for key, default in self.defaults.items():
                group.setdefault(key, default)

    # --------------------------------------------------- settings and tables

    def _update_settings(self) -> None:
        """Hand over what changed in the groups since the last step."""
        rates = [group["lr"] for group in self.param_groups]
        others = [_settings.snapshot(group, self._rule_keys) for group in self.param_groups]
        if others != self._seen:
            self._validate_groups(self.param_groups)
            self._warn_of_two_schedules()
            self._set_groups()
        elif rates != self._seen_rates:
            for index, lr in enumerate(rates):
                check_number(lr, "lr", f"{type(self).__name__}: param_groups[{index}]", least=0.0)
            self._warn_of_two_schedules()
            for plan in self._plans:
                for index, lr in enumerate(rates):
                    plan.set_lr(index, lr)
        self._seen, self._seen_rates = others, rates

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
                position, step = bounds[index]
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
            plan.set_group(
                index,
                lr=group["lr"],
                max_grad_norm=group["max_grad_norm"],
                maximize=group["maximize"],
                multipliers=multipliers,
                corrections=corrections,
                **rules[index],
            )
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
        return _phases.bounds(self, group)

    def _warn_of_two_schedules(self) -> None:
        for index, group in enumerate(self.param_groups):
            own = group["t_total"] != -1 and group["schedule"] != "none"
            if own and "initial_lr" in group:
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

    # ------------------------------------------------------------ statistics

    @property
    def grad_norms(self) -> Tensor | None:
        """L2 norms of the last step's gradients before clipping: float64, one per parameter.

        In param_groups order; NaN where there was no gradient, or where neither clipping nor
        on_nonfinite='skip' asked for a norm. None if no norm pass ran. On the parameters' device
        (the first one's, if there are several); reading it does not synchronise.
        """
        return self._per_parameter([plan.grad_norms for plan in self._plans])

    @property
    def clip_coefs(self) -> Tensor | None:
        """Factors in [0, 1] that the last step's gradients were multiplied by: float32.

        Like `grad_norms`; 0 where the update was skipped.
        """
        if self.grad_norms is None:
            return None
        return self._per_parameter([plan.clip_coefficients for plan in self._plans])

    @property
    def grad_norm(self) -> Tensor | None:
        """L2 norm over all gradients of the last step: 0-dim float64; None if no norm pass ran."""
        totals = [plan.total_norm for plan in self._plans]
        if self._stepped and len(totals) == 1 and totals[0] is not None:
            total: Tensor = totals[0]
            return total
        norms = self.grad_norms
        return None if norms is None else _pairwise_sum(norms.nan_to_num(nan=0.0).square()).sqrt()

    @property
    def skipped(self) -> Tensor:
        """Parameter updates left out for non-finite gradients since construction: 0-dim int64."""
        counts = list(self._n_skipped.values())
        device = counts[0].device if counts else torch.device("cpu")
        return (
            torch.stack([count.to(device) for count in counts]).sum()
            if counts
            else (torch.zeros((), dtype=torch.int64))
        )

    @property
    def trust_ratios(self) -> None:
        """None: this optimizer has no trust ratio."""
        return None

    def _per_parameter(self, values: list[Tensor | None]) -> Tensor | None:
        """Bring the plans' values into the order of param_groups."""
        if not self._stepped or any(value is None for value in values):
            return None
        if len(values) == 1:
            return values[0]
        by_device = {
            plan.device: iter(value)
            for plan, value in zip(self._plans, values, strict=True)
            if value is not None
        }
        params = [param for group in self.param_groups for param in group["params"]]
        return torch.stack([next(by_device[p.device]).to(params[0].device) for p in params])

    # ------------------------------------------------- schedule, checkpoints

    def get_lr(self) -> list[float]:
        """Return the lr of the next update of each parameter that requires grad.

        In param_groups order. Synchronises on CUDA; creates no state.
        Differences: DeepSpeedExamples' BertAdam returns [0] until every parameter has state.
        """
        return _phases.get_lr(self)

    def reset_schedule(
        self,
        *,
        lr: float | None = None,
        t_total: float | None = None,
        warmup: float | None = None,
        schedule: schedules.Schedule | None = None,
        schedule_args: dict[str, float] | None = None,
        start_position: int = 0,
        restart_bias_correction: bool = False,
    ) -> None:
        """Begin a new phase of training in every group: moments and steps stay.

        Position 0 of the schedule moves to each parameter's present step ('schedule_start' in its
        state, saved with checkpoints).

        Args:
            lr, t_total, warmup, schedule, schedule_args: new settings; None keeps the present
                ones. A new schedule without schedule_args has none.
            start_position: where in the schedule the phase begins, in updates.
            restart_bias_correction: count t of the bias correction from here, too (NVIDIA's BERT
                script zeroes the step for that).

        Raises: ValueError or TypeError for bad settings, before anything changes.
        """
        given = {
            "lr": lr,
            "t_total": t_total,
            "warmup": warmup,
            "schedule": schedule,
            "schedule_args": schedule_args,
        }
        changes = {key: value for key, value in given.items() if value is not None}
        _phases.reset_schedule(self, changes, start_position, restart_bias_correction)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        _checkpoint.load(self, state_dict)

    load_state_dict.__doc__ = _checkpoint.load.__doc__

    def to_reference_state_dict(self) -> dict[str, Any]:
        """Return a state dict in the layout of DeepSpeedExamples' BertAdam; nothing is aliased.

        State per parameter: 'step' (int), 'next_m', 'next_v'. Raises ValueError where a schedule
        is a callable. Synchronises on CUDA.
        """
        return _checkpoint.to_reference(self)


def _pairwise_sum(values: Tensor) -> Tensor:
    """Add up in an order that depends on nothing but the length, on any device."""
    while len(values) > 1:
        values = torch.cat([values, values.new_zeros(len(values) % 2)])
        values = values[0::2] + values[1::2]
    return values.sum()
