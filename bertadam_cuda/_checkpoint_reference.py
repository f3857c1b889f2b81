"""Writes an optimizer's state in the layout of DeepSpeedExamples' BertAdam."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, MutableMapping
from typing import Any, Protocol

from torch import Tensor

_REFERENCE_SETTINGS = (
    "lr",
    "schedule",
    "warmup",
    "t_total",
    "b1",
    "b2",
    "e",
    "weight_decay",
    "max_grad_norm",
)
#: The schedules that mean the same in the original, up to t_total. (Its cosine raises.)
_REFERENCE_SCHEDULES = ("warmup_constant", "warmup_linear", "warmup_cosine")


class _Saved(Protocol):
    """What writing needs of an optimizer."""

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> MutableMapping[Tensor, Any]: ...


def to_reference(optimizer: _Saved) -> dict[str, Any]:
    """Return a state dict in the layout of DeepSpeedExamples' BertAdam; nothing is aliased.

    State per parameter: 'step' (int), 'next_m', 'next_v' (clones). Groups: lr, schedule, warmup,
    t_total, b1, b2, e, weight_decay, max_grad_norm, params. It holds plain values only, so
    torch.load(weights_only=True) reads it. Reading the steps synchronises on CUDA.

    'step' is the position in the schedule, step - schedule_start: the original uses it for
    nothing else, and after reset_schedule it continues at the same lr.

    Raises:
        ValueError: a schedule is a callable, which the layout cannot hold.

    Warns once if a setting has no equal in the original, which would continue differently.
    """
    where = f"{type(optimizer).__name__}.to_reference_state_dict"
    groups: list[dict[str, Any]] = []
    state: dict[int, dict[str, Any]] = {}
    lost: set[str] = set()
    n_params = 0
    for group_id, group in enumerate(optimizer.param_groups):
        if not isinstance(group["schedule"], str):
            raise ValueError(
                f"{where}: the schedule of param_groups[{group_id}] is a callable, and the layout "
                "holds names only; set a schedule by name first"
            )
        lost.update(_not_in_reference(group))
        indices = list(range(n_params, n_params + len(group["params"])))
        n_params += len(indices)
        settings = {key: group[key] for key in _REFERENCE_SETTINGS}
        groups.append({**settings, "lr": float(group["lr"]), "params": indices})
        for index, param in zip(indices, group["params"], strict=True):
            if optimizer.state.get(param):
                state[index] = _reference_entry(optimizer.state[param])
    if lost:
        warnings.warn(
            f"{where}: the original BertAdam has no equal of {', '.join(sorted(lost))}, and "
            "would continue without",
            stacklevel=3,
        )
    return {"state": state, "param_groups": groups}


def _reference_entry(state: dict[str, Any]) -> dict[str, Any]:
    start = float(state["schedule_start"]) if "schedule_start" in state else 0.0
    return {
        "step": int(float(state["step"]) - start),
        "next_m": state["exp_avg"].detach().clone(),
        "next_v": state["exp_avg_sq"].detach().clone(),
    }


def _not_in_reference(group: dict[str, Any]) -> Iterator[str]:
    if group["clip"] != "per_tensor" and group["max_grad_norm"] > 0:
        yield f"clip={group['clip']!r}"
    for flag in ("bias_correction", "maximize", "stochastic_rounding"):
        if group[flag]:
            yield f"{flag}=True"
    if group["master_weights"] is not None:
        yield f"master_weights={group['master_weights']!r}"
    if group["t_total"] != -1 and group["schedule"] not in _REFERENCE_SCHEDULES:
        yield f"schedule={group['schedule']!r}"
