"""Loads state dicts into an optimizer without half-loading, and writes the original's layout.

Everything is checked first and written afterwards, in place: captured graphs and plans keep their
tensors, dtypes stay, nothing aliases the file. Names of layouts belong to `_checkpoint_layouts`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ._checkpoint_layouts import STARTS, SavedState, read
from ._checkpoint_values import checked_counters, checked_state

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


class _Loadable(Protocol):
    """What loading needs of an optimizer."""

    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]
    _optimizer_load_state_dict_pre_hooks: OrderedDict[int, Any]
    _optimizer_load_state_dict_post_hooks: OrderedDict[int, Any]

    @property
    def _state_names(self) -> tuple[str, ...]: ...
    def _init_state(self, param: Tensor) -> Any: ...
    def _validate_groups(self, groups: list[dict[str, Any]]) -> Any: ...
    def _drop_plan(self) -> Any: ...


@dataclass(frozen=True)
class _Write:
    """What is to be copied into the state of one parameter, checked."""

    param: Tensor
    #: One that is absent is 0.
    counters: dict[str, float]
    #: None stands for zeros.
    moments: dict[str, Tensor | None]


def load(optimizer: _Loadable, state_dict: dict[str, Any]) -> None:
    """Load `state_dict` in place, or raise and leave the optimizer as it is.

    The layout is recognised: this package's own, BertAdam of DeepSpeedExamples and of
    pytorch-pretrained-BERT ('next_m', 'next_v'), torch Adam/AdamW, apex FusedAdam. Of the first
    three the file's group settings win and missing ones stay; of torch and apex only moments and
    steps are taken, with one warning. Where a layout says nothing of a schedule's start, it is 0.

    A parameter without an entry in the file gets the zero state with step 0 if it has a state
    now, and stays without one if not. Moments of another floating dtype are converted.

    torch's hooks run as in the base class: pre hooks may replace the dict before it is looked at,
    post hooks follow the last write.

    Args:
        optimizer: a FusedOptimizer.
        state_dict: what state_dict() returned. HF's holds an object, so reading it from disk
            needs `torch.load(..., weights_only=False)`.

    Raises:
        TypeError: something in the file has the wrong type or dtype.
        ValueError: unknown layout; another number of groups or parameters; missing or unknown
            keys; wrong shapes; values that are not finite; exp_avg_sq < 0; a step that is no whole
            number in [0, 2**24); settings that the optimizer refuses.

    Differences from torch.optim.Optimizer.load_state_dict: that one checks only the counts,
    casts moments to the parameter's dtype, shares tensors with the file and replaces the state's
    tensors and the group dicts.
    """
    where = f"{type(optimizer).__name__}.load_state_dict"
    state_dict = state_dict.copy() if isinstance(state_dict, dict) else state_dict
    for pre_hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        replaced = pre_hook(optimizer, state_dict)
        if replaced is not None:
            state_dict = replaced

    saved = read(state_dict, optimizer._state_names, where)
    _check_counts(optimizer, saved, where)
    writes = _checked_writes(optimizer, saved, where)
    pairs = list(zip(optimizer.param_groups, saved.groups, strict=True))
    optimizer._validate_groups([{**group, **new.settings} for group, new in pairs])
    if not saved.layout.has_settings:
        # Before the first write: where warnings are errors, this is one that loads nothing.
        warnings.warn(_moments_only(saved, where), stacklevel=3)

    _create_missing_state(optimizer, writes)
    for write in writes:
        _write_state(optimizer.state[write.param], write)
    for group, new in pairs:
        group.update(new.settings)
    optimizer._drop_plan()
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)


def to_reference(optimizer: _Loadable) -> dict[str, Any]:
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
    for flag in ("bias_correction", "maximize"):
        if group[flag]:
            yield f"{flag}=True"
    if group["t_total"] != -1 and group["schedule"] not in _REFERENCE_SCHEDULES:
        yield f"schedule={group['schedule']!r}"


def _moments_only(saved: SavedState, where: str) -> str:
    return ". ".join(
        [
            f"{where}: the file has the layout of {saved.layout.title}, so moments and steps are "
            "loaded, and the optimizer keeps its settings",
            *saved.left_out,
        ]
    )


def _check_counts(optimizer: _Loadable, saved: SavedState, where: str) -> None:
    if len(saved.groups) != len(optimizer.param_groups):
        raise ValueError(
            f"{where}: the file has {len(saved.groups)} parameter groups, the optimizer has "
            f"{len(optimizer.param_groups)}; build the optimizer with the groups of the saved one"
        )
    pairs = zip(optimizer.param_groups, saved.groups, strict=True)
    for group_id, (group, new) in enumerate(pairs):
        if len(new.entries) != len(group["params"]):
            raise ValueError(
                f"{where}: group {group_id} of the file has {len(new.entries)} parameters, "
                f"param_groups[{group_id}] of the optimizer has {len(group['params'])}; "
                "build the optimizer with the groups of the saved one"
            )


def _checked_writes(optimizer: _Loadable, saved: SavedState, where: str) -> list[_Write]:
    own_memory = {
        tensor.untyped_storage().data_ptr()
        for state in optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, Tensor)
    }
    writes: list[_Write] = []
    param_id = 0
    for group, new in zip(optimizer.param_groups, saved.groups, strict=True):
        names = group.get("param_names") or new.settings.get("param_names")
        for i, (param, entry) in enumerate(zip(group["params"], new.entries, strict=True)):
            name = f" ({names[i]!r})" if names else ""
            label = f"{where}: state of parameter {param_id}{name}:"
            param_id += 1
            current = optimizer.state.get(param) or {}
            if entry is not None:
                moments = {
                    key: _apart(checked_state(key, entry[key], param, current, label), own_memory)
                    for key in optimizer._state_names
                }
                writes.append(_Write(param, checked_counters(entry, label), {**moments}))
            elif current:
                writes.append(_Write(param, {}, dict.fromkeys(optimizer._state_names)))
    return writes


def _apart(value: Tensor, own_memory: set[int]) -> Tensor:
    """Return `value`, or a copy where writing the optimizer's state would change it."""
    source = value.detach()
    return source.clone() if source.untyped_storage().data_ptr() in own_memory else source


def _create_missing_state(optimizer: _Loadable, writes: list[_Write]) -> None:
    """Allocate what the copies need: no write may fail for lack of memory."""
    stateless = [write.param for write in writes if not optimizer.state.get(write.param)]
    try:
        for param in stateless:
            optimizer._init_state(param)
        starts = [
            (optimizer.state[write.param], key)
            for write in writes
            for key in STARTS
            if key in write.counters and key not in optimizer.state[write.param]
        ]
        added = [torch.zeros_like(state["step"]) for state, _ in starts]
    except BaseException:
        for param in stateless:
            optimizer.state.pop(param, None)
        raise
    for (state, key), tensor in zip(starts, added, strict=True):
        state[key] = tensor


@torch.no_grad()
def _write_state(state: dict[str, Any], write: _Write) -> None:
    for key in ("step", *STARTS):
        # A start that the file lacks is 0, and zeroed in place: a captured graph may read it.
        if key in state:
            state[key].fill_(write.counters.get(key, 0.0))
    for key, source in write.moments.items():
        if source is None:
            state[key].zero_()
        else:
            state[key].copy_(source)
