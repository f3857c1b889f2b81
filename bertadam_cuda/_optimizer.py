"""What every optimizer of the package shares: state, settings, plans, the step, checkpoints.

The mathematics is in csrc/core/rules, the memory in csrc/cuda and csrc/cpu. A class of the package
adds its constructor, which rule it is and what that rule's settings are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from . import _checkpoint, _masters, _phases, _scaling, schedules
from ._ext import load
from ._planning import Planning
from ._statistics import Statistics

_P = ParamSpec("_P")
_R = TypeVar("_R")


class FusedOptimizer(Planning, Statistics, torch.optim.Optimizer):
    """Base of the package's optimizers: one launch per device for all parameters of all groups."""

    #: torch.amp.GradScaler leaves the unscaling to the step, see `_scaling`. In the class, since
    #: copies keep nothing that an instance has.
    _step_supports_amp_scaling = True

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._binary = load()
        self._forget()
        super().__init__(params, defaults)

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

        With a gradient scaler, `scaler.step(optimizer)` calls this. It sets `grad_scale`, which the
        step divides all gradients by, and `found_inf`: unless that is 0 the whole step is left out,
        counters included, and every parameter with a gradient counts in `skipped`.

        With capturable=True and an lr on the device, a CUDA graph may capture this call, alone,
        with a scaler's, or with the whole iteration: one node of the graph. Take a step outside of
        it first, in the same way. Replays count steps, follow the schedule, and may be mixed with
        steps outside. They read gradients, parameters, states and lr where these were. So
        `lr.fill_(...)`, `load_state_dict`, and start and lr of `reset_schedule` take effect; other
        settings stay as they were at the capture. A graph may be replayed while its optimizer
        lives. Statistics show the replay's values until a setting changes, and the warning at the
        end of a schedule counts the steps outside only.

        Args:
            closure: re-evaluates the model and returns the loss; called first, with grad enabled.

        Returns: what `closure` returned.

        Raises: RuntimeError, with nothing written, where a capture would need more than a launch.
        """
        loss = None
        if closure is not None:
            _scaling.refuse_closure(self)
            with torch.enable_grad():
                loss = closure()
        scaling = None
        attributes = self.__dict__
        if "found_inf" in attributes or "grad_scale" in attributes:
            scaling = _scaling.of(self)
        due = self._n_steps >= self._next_event
        if due or not self._stepper.step(self.param_groups, self.state, scaling):
            self._bring_up_to_date()
            if not self._stepper.step(self.param_groups, self.state, scaling):
                raise RuntimeError(
                    f"{type(self).__name__}: parameters, states or settings changed while the step "
                    "was being planned; let schedules and other callbacks leave them alone"
                )
        self._stepped = True
        self._n_steps += 1
        return loss

    @staticmethod
    def profile_hook_step(func: Callable[_P, _R]) -> Callable[_P, _R]:
        """Wrap a step as torch does, and pass its hooks and profiler by while there are none.

        torch.optim.Optimizer calls this once per class. Its own wrapper takes 8 us a step, this one
        0.3 (Xeon, 2026-11). A step that fails, in a hook too, leaves nothing of a scaler's behind.
        """
        observed = torch.optim.Optimizer.profile_hook_step(func)
        is_observed = load().is_observed

        @functools.wraps(func)
        def step(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            self: Any = args[0]
            try:
                if (
                    self._optimizer_step_pre_hooks
                    or self._optimizer_step_post_hooks
                    or _global_optimizer_pre_hooks
                    or _global_optimizer_post_hooks
                    or is_observed()
                ):
                    return observed(*args, **kwargs)
                return func(*args, **kwargs)
            except BaseException:
                _scaling.forget(self)
                raise

        # What torch.compiler.disable comes to, without its wrapper, which takes 0.6 us: a compiled
        # caller breaks its graph here, and neither this frame nor what it calls is compiled.
        step._torchdynamo_disable = True  # type: ignore[attr-defined]
        skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
        set_code_exec_strategy(step.__code__, skip)  # type: ignore[attr-defined]
        return step

    def _init_state(self, param: Tensor) -> None:
        """Create the first state of a parameter, if it has none: zeros, and its master."""
        if self.state.get(param):
            return
        with torch.inference_mode(False):  # inference tensors could not be written later
            state: dict[str, Tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=param.device)
            }
            if self.param_groups[0]["capturable"]:
                _phases.add_starts(state)
            for name in self._state_names_of(self.param_groups):
                state[name] = torch.zeros_like(param, dtype=torch.float32, requires_grad=False)
            state |= _masters.new_master(param, self._master_weights)
        self.state[param] = state

    def _state_names_of(self, groups: list[dict[str, Any]]) -> tuple[str, ...]:
        """Return what a parameter's state holds beside the step, with the settings of `groups`."""
        names: tuple[str, ...] = self._binary.rules[self._rule_name(groups)]
        return names

    @property
    def _master_weights(self) -> str | None:
        master_weights: str | None = self.param_groups[0]["master_weights"]
        return master_weights

    def sync_master_weights(self) -> None:
        """Make the master of every parameter that has a state anew from the parameter.

        For parameters that somebody else has written (loaded, averaged, cast) and that shall count:
        with master_weights='fp32' the next step would otherwise overwrite them from the master,
        with 'remainder' it would add their old remainder. Also after master_weights was changed in
        every group: what it no longer asks for is removed. Does not wait for the device.
        """
        for group in self.param_groups:
            for param in group["params"]:
                if self.state.get(param):
                    _masters.sync(self.state[param], param, self._master_weights)

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied optimizer; plans and tables are made anew."""
        self._binary = load()
        self._forget()
        super().__setstate__(state)
        for group in self.param_groups:
            for key, default in self.defaults.items():
                group.setdefault(key, default)

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
        state, saved with checkpoints). Graphs that were captured before see that and the lr; their
        schedule stays the one that they were captured with.

        Args:
            lr, t_total, warmup, schedule, schedule_args: new settings; None keeps the present
                ones. A new schedule without schedule_args has none.
                With capturable=True an lr that is a tensor is written in place.
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
