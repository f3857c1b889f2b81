"""Loads state dicts into an optimizer without half-loading.

Everything is checked first and written afterwards, in place: captured graphs and plans keep their
tensors, dtypes stay, nothing aliases the file. Names of layouts belong to `_checkpoint_layouts`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from . import _masters, _settings
from ._checkpoint_layouts import HERE, STARTS, SavedState, read
from ._checkpoint_values import checked_counters, checked_master, checked_state, scaled


class _Loadable(Protocol):
    """What loading needs of an optimizer."""

    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]
    _fixed_settings: tuple[str, ...]
    _optimizer_load_state_dict_pre_hooks: OrderedDict[int, Any]
    _optimizer_load_state_dict_post_hooks: OrderedDict[int, Any]

    @property
    def _master_weights(self) -> str | None: ...
    def _state_names_of(self, groups: list[dict[str, Any]]) -> tuple[str, ...]: ...
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
    #: What the file knows of the master, int16 for a remainder. None stands for the parameter.
    master: Tensor | None = None


def load(optimizer: _Loadable, state_dict: dict[str, Any]) -> None:
    """Load `state_dict` in place, or raise and leave the optimizer as it is.

    The layout is recognised: this package's own, BertAdam of DeepSpeedExamples and of
    pytorch-pretrained-BERT ('next_m', 'next_v'), torch Adam/AdamW and SGD, apex FusedAdam and
    FusedLAMB. Where the file is of the same family (BertAdam's, Adam's and AdamW's with torch's
    among them, LAMB's, LARS'), its group settings win and missing ones stay; of others, of apex and
    of SGD, only moments and steps are taken, with one warning. Where a layout says nothing of a
    schedule's start, it is 0. SGD's buffers, for LARS, are multiplied by the file's lr.

    A parameter without an entry in the file gets the zero state with step 0 if it has a state
    now, and stays without one if not. Moments of another floating dtype are converted.

    With capturable=True an lr that is a tensor here is written in place, rounded to its dtype;
    captured graphs go on with what was loaded, except for other settings.

    The optimizer keeps its own master_weights and stochastic_rounding, and the file's masters are
    brought into that form: none becomes the parameter's value; float32 becomes a remainder, for
    which the parameter is written, too; a remainder becomes float32 with the parameter as it is
    now; where no master is kept, the file's are left out, with one warning. So load the model
    before the optimizer.

    torch's hooks run as in the base class: pre hooks may replace the dict before it is looked at,
    post hooks follow the last write.

    Args:
        optimizer: a FusedOptimizer.
        state_dict: what state_dict() returned. HF's holds an object, so reading it from disk
            needs `torch.load(..., weights_only=False)`.

    Raises:
        TypeError: something in the file has the wrong type or dtype.
        ValueError: two numbers for groups that share one lr tensor, with capturable=True; unknown
            layout; another number of groups or parameters; missing or unknown
            keys; wrong shapes; values that are not finite; exp_avg_sq < 0; a step that is no whole
            number in [0, 2**24); a remainder of a parameter that is not bfloat16; settings that the
            optimizer refuses.

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

    def with_settings(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # As many as both have: a difference is told later.
        return [{**a, **b} for a, b in zip(optimizer.param_groups, settings, strict=False)]

    def names_with(settings: list[dict[str, Any]]) -> tuple[str, ...]:
        groups = with_settings(settings)
        optimizer._validate_groups(groups)
        return optimizer._state_names_of(groups or optimizer.param_groups)

    stay = (*HERE, *optimizer._fixed_settings)
    saved = read(state_dict, (optimizer.param_groups[0], stay), names_with, where)
    _check_counts(optimizer, saved, where)
    names = names_with([new.settings for new in saved.groups])
    writes = _checked_writes(optimizer, saved, names, where)
    pairs = list(zip(optimizer.param_groups, saved.groups, strict=True))
    _settings.check_shared_rates(
        optimizer.param_groups, [new.settings for new in saved.groups], where
    )
    # Before the first write: where warnings are errors, one loads nothing.
    if not saved.has_settings:
        warnings.warn(_moments_only(saved, where), stacklevel=3)
    if any(_loses_master(optimizer, write) for write in writes):
        warnings.warn(
            f"{where}: the file has masters of 16-bit parameters, and master_weights=None keeps "
            "none, so the parameters go on rounded; construct the optimizer with "
            "master_weights='fp32' or 'remainder' to go on exactly",
            stacklevel=3,
        )

    _create_missing_state(optimizer, writes)
    for write in writes:
        # As they are already, unless master_weights was changed since the last step.
        _masters.fit(optimizer.state[write.param], write.param, optimizer._master_weights)
    masters = [_master_values(optimizer, write) for write in writes]
    for write, values in zip(writes, masters, strict=True):
        _write_state(optimizer.state[write.param], write)
        for tensor, source in values:
            with torch.no_grad():
                tensor.copy_(source)
    for group, new in pairs:
        _settings.update(group, new.settings)
    optimizer._drop_plan()
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)


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


def _checked_writes(
    optimizer: _Loadable, saved: SavedState, names: tuple[str, ...], where: str
) -> list[_Write]:
    own_memory = {
        tensor.untyped_storage().data_ptr()
        for state in optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, Tensor)
    }
    writes: list[_Write] = []
    param_id = 0
    for group, new in zip(optimizer.param_groups, saved.groups, strict=True):
        param_names = group.get("param_names") or new.settings.get("param_names")
        for i, (param, entry) in enumerate(zip(group["params"], new.entries, strict=True)):
            name = f" ({param_names[i]!r})" if param_names else ""
            label = f"{where}: state of parameter {param_id}{name}:"
            param_id += 1
            current = optimizer.state.get(param) or {}
            if entry is not None:
                for key, factor in new.factors.items():
                    entry[key] = scaled(entry[key], factor, label)
                moments = {
                    key: _apart(checked_state(key, entry[key], param, current, label), own_memory)
                    for key in names
                }
                master = checked_master(entry, param, current, label)
                master = None if master is None else _apart(master, own_memory)
                writes.append(_Write(param, checked_counters(entry, label), {**moments}, master))
            elif current:
                writes.append(_Write(param, {}, dict.fromkeys(names)))
    return writes


def _apart(value: Tensor, own_memory: set[int]) -> Tensor:
    """Return `value`, or a copy where writing the optimizer's state would change it."""
    source = value.detach()
    return source.clone() if source.untyped_storage().data_ptr() in own_memory else source


def _create_missing_state(optimizer: _Loadable, writes: list[_Write]) -> None:
    """Allocate what the copies need: no write may fail for lack of memory.

    The file's settings may ask for another state, which begins with zeros, or for one less.
    """
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
        lacking = [
            (optimizer.state[write.param], key, write.param)
            for write in writes
            for key in write.moments
            if key not in optimizer.state[write.param]
        ]
        moments = [
            torch.zeros_like(param, dtype=torch.float32, requires_grad=False)
            for _, _, param in lacking
        ]
    except BaseException:
        for param in stateless:
            optimizer.state.pop(param, None)
        raise
    for (state, key), tensor in zip(starts, added, strict=True):
        state[key] = tensor
    for (state, key, _), tensor in zip(lacking, moments, strict=True):
        state[key] = tensor
    for write in writes:
        for key in optimizer._state_names_of(optimizer.param_groups):
            if key not in write.moments:
                optimizer.state[write.param].pop(key, None)


def _loses_master(optimizer: _Loadable, write: _Write) -> bool:
    """Whether there is a master in the file, a place for one here, and no wish for it."""
    rounded = write.param.dtype != torch.float32
    return write.master is not None and rounded and optimizer._master_weights is None


def _master_values(optimizer: _Loadable, write: _Write) -> list[tuple[Tensor, Tensor]]:
    """Return what is to be copied for the parameter's master, as pairs of target and source."""
    key, source = _masters.key_of(write.param, optimizer._master_weights), write.master
    if key is None:
        return []
    target = optimizer.state[write.param][key]
    if source is None:
        source = torch.zeros_like(target) if key == _masters.PARAM_REMAINDER else write.param
    elif target.dtype == torch.int16 and source.dtype != torch.int16:
        rounded, source = _masters.split(source)
        return [(write.param, rounded), (target, source)]
    elif target.dtype != torch.int16 and source.dtype == torch.int16:
        source = _masters.join(write.param, source.to(write.param.device))
    return [(target, source)]


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
