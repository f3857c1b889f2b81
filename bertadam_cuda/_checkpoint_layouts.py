"""Reads an optimizer's state dict of any known layout into one form.

Knows names and structure only: which keys a layout has and what they are called here. It looks
at no tensor's contents and knows no optimizer; `_checkpoint` does both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import _masters
from ._checkpoint_schedules import schedule_settings

#: Counters that reset_schedule adds to the state of a parameter; absent means 0.
STARTS = ("schedule_start", "bias_correction_start")
#: Settings that say how the optimizer at hand keeps its parameters and works, whatever the file's
#: did.
HERE = (
    *("master_weights", "stochastic_rounding"),
    *("foreach", "fused", "capturable", "differentiable", "set_grad_none"),
)


@dataclass(frozen=True)
class Layout:
    """Where a layout keeps what."""

    title: str
    #: Its names of the optimizer's states, where they differ.
    names: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    #: Keys that are known and not taken over, each with the reason.
    ignored: Mapping[str, str] = field(default_factory=dict)
    #: A setting by which an optimizer is known to have the same ones as the file, whose then win.
    #: None: moments and steps only.
    dialect: str | None = "b1"
    #: Where the steps are: in the 'state' of a parameter, in its 'group', or 'nowhere'.
    steps: str = "state"
    #: States that have the learning rate in them here and not in the file.
    times_lr: tuple[str, ...] = ()
    #: What else is to be said where moments and steps only are taken.
    note: str | None = None


OWN = Layout("bertadam_cuda BertAdam", optional=(*STARTS, *_masters.KEYS))
REFERENCE = Layout("BertAdam", names={"exp_avg": "next_m", "exp_avg_sq": "next_v"})
_AMSGRAD = {
    "max_exp_avg_sq": "AMSGrad's running maximum is left out, because this optimizer divides by "
    "the root of exp_avg_sq itself"
}
_ADAM = "decoupled_weight_decay"
OWN_ADAM = replace(OWN, title="bertadam_cuda Adam/AdamW", ignored=_AMSGRAD, dialect=_ADAM)
OWN_LAMB = replace(OWN, title="bertadam_cuda LAMB", dialect="use_nvlamb")
OWN_LARS = replace(OWN, title="bertadam_cuda LARS", dialect="trust_coefficient")
TORCH = Layout("torch Adam/AdamW", ignored=_AMSGRAD, dialect=_ADAM)
SGD = Layout(
    "torch SGD",
    dialect=None,
    steps="nowhere",
    times_lr=("momentum_buffer",),
    note="The buffers are multiplied by the file's lr, and steps begin at 0, since SGD counts none",
)
#: apex keeps its masters outside of the state dict. TransformerEngine's FusedAdam has the same
#: layout and 'master_param' in it, as int16 where it stores remainders: see `_entry`.
APEX = Layout("apex FusedAdam", optional=(_masters.MASTER_PARAM,), dialect=None, steps="group")
APEX_LAMB = replace(APEX, title="apex FusedLAMB")


@dataclass(frozen=True)
class SavedGroup:
    """One parameter group of a file.

    settings: what is to be taken over, without 'params'; copies.
    entries: per parameter its state under the names used here, or None if the file has none.
    factors: what states are to be multiplied by; not checked.
    """

    settings: dict[str, Any]
    entries: list[dict[str, Any] | None]
    factors: dict[str, object]


@dataclass(frozen=True)
class SavedState:
    """A whole file: its layout, its groups and what of it is left out on purpose."""

    layout: Layout
    groups: list[SavedGroup]
    left_out: list[str]
    #: Whether the groups' settings are to be taken over.
    has_settings: bool


def read(
    state_dict: object,
    settings_of: tuple[Mapping[str, Any], Sequence[str]],
    names_with: Callable[[list[dict[str, Any]]], Sequence[str]],
    where: str,
) -> SavedState:
    """Return the contents of `state_dict` in one form.

    Args:
        state_dict: what the user gave.
        settings_of: those that a group of the optimizer has, and which of them stay.
        names_with: tells the tensors that the optimizer keeps per parameter, with such settings.
        where: begins every message.

    Raises:
        TypeError: `state_dict`, its groups or its entries are not of the right kind.
        ValueError: unknown layout, missing or unknown keys, entries that belong to no group.
    """
    groups, state = _structure(state_dict, where)
    layout = _recognise(groups, state, where)
    left_out = [layout.note] if layout.note else []
    left_out += [
        reason
        for key, reason in layout.ignored.items()
        if any(key in entry for entry in state.values())
    ]
    has_settings = layout.dialect in settings_of[0]
    stay = settings_of[1] if has_settings else None  # None: all
    settings = [
        _settings(group, layout, stay, f"{where}: group {group_id}")
        for group_id, group in enumerate(groups)
    ]
    keys = {name: layout.names.get(name, name) for name in names_with(settings)}
    saved: list[SavedGroup] = []
    n_before = 0
    for group_id, group in enumerate(groups):
        entries = [
            _entry(
                state.get(param),
                group,
                (layout, keys),
                f"{where}: state of parameter {n_before + i}",
            )
            for i, param in enumerate(group["params"])
        ]
        n_before += len(entries)
        factors = dict.fromkeys(layout.times_lr, group.get("lr"))
        saved.append(SavedGroup(settings[group_id], entries, factors))
    return SavedState(layout, saved, left_out, has_settings)


def _structure(
    state_dict: object, where: str
) -> tuple[list[Mapping[str, Any]], dict[Any, Mapping[str, Any]]]:
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{where}: the state dict has type {type(state_dict).__name__}, expected a dict as "
            "returned by state_dict()"
        )
    missing = [key for key in ("state", "param_groups") if key not in state_dict]
    if missing:
        raise ValueError(
            f"{where}: the state dict lacks {_listed(missing)} and has {_listed(state_dict)}; "
            "pass the part of the checkpoint that optimizer.state_dict() returned"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, Sequence) or not isinstance(state, Mapping):
        raise TypeError(
            f"{where}: 'param_groups' has type {type(groups).__name__} and 'state' "
            f"{type(state).__name__}, expected a list and a dict"
        )
    seen: set[Any] = set()
    for group_id, group in enumerate(groups):
        keys = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(keys, Sequence) or isinstance(keys, str):
            raise TypeError(
                f"{where}: param_groups[{group_id}] of the file is no group, expected a dict with "
                "a list 'params'"
            )
        twice = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        if twice:
            raise ValueError(
                f"{where}: the file's param_groups list parameter {twice[0]!r} more than once"
            )
    strangers = [key for key in state if key not in seen]
    if strangers:
        raise ValueError(
            f"{where}: the file has state of parameter {_listed(strangers[:5])}, which none of "
            "its param_groups lists"
        )
    for key, entry in state.items():
        if not isinstance(entry, Mapping):
            raise TypeError(
                f"{where}: state of parameter {key!r} has type {type(entry).__name__}, "
                "expected a dict"
            )
    return list(groups), dict(state)


def _recognise(
    groups: list[Mapping[str, Any]], state: Mapping[Any, Mapping[str, Any]], where: str
) -> Layout:
    if any("next_m" in entry or "next_v" in entry for entry in state.values()):
        return REFERENCE
    if groups and all("b1" in group for group in groups):
        # Before its first step a file of the original differs only in the settings it lacks.
        own = any(state.values()) or any("on_nonfinite" in group for group in groups)
        return OWN if own else REFERENCE
    if groups and all("trust_coefficient" in group for group in groups):
        return OWN_LARS
    if groups and all({"lr", "momentum", "dampening"} <= group.keys() for group in groups):
        return SGD
    if groups and all("betas" in group for group in groups):
        if any("on_nonfinite" in group for group in groups):
            return OWN_LAMB if any("use_nvlamb" in group for group in groups) else OWN_ADAM
        if any("grad_averaging" in group for group in groups):
            return APEX_LAMB
        in_group = any("step" in group for group in groups)
        in_state = any("step" in entry for entry in state.values())
        return APEX if in_group and not in_state else TORCH
    found = sorted({str(key) for group in groups for key in group} - {"params"})
    raise ValueError(
        f"{where}: unknown layout, the file's groups have {_listed(found)}; known are "
        "BertAdam ('b1', 'b2', 'e'), Adam, AdamW, LAMB, torch Adam/AdamW and apex FusedAdam and "
        "FusedLAMB ('betas', 'eps'), LARS and torch SGD ('momentum')"
    )


def _entry(
    entry: Mapping[str, Any] | None,
    group: Mapping[str, Any],
    form: tuple[Layout, Mapping[str, str]],
    where: str,
) -> dict[str, Any] | None:
    if not entry or all(value is None for value in entry.values()):
        # The original's get_lr() leaves empty entries behind, and torch's SGD without momentum
        # some of None: no state, as if there were none.
        return None
    layout, keys = form
    needed = ["step", *keys.values()] if layout.steps == "state" else [*keys.values()]
    known = {*needed, *layout.optional, *layout.ignored}
    missing = [key for key in needed if key not in entry]
    unknown = [key for key in entry if key not in known]
    if layout.steps == "group" and "step" not in group:
        missing.append("step (of its group)")
    if missing or unknown:
        found = [f"lacks {_listed(missing)}"] if missing else []
        found += [f"has the unknown {_listed(unknown)}"] if unknown else []
        raise ValueError(
            f"{where} {' and '.join(found)}; expected {_listed(needed)} (layout of {layout.title})"
        )
    optional = {key: entry[key] for key in layout.optional if key in entry}
    master = optional.get(_masters.MASTER_PARAM)
    if layout.steps == "group" and getattr(master, "dtype", None) == torch.int16:
        optional[_masters.PARAM_REMAINDER] = optional.pop(_masters.MASTER_PARAM)
    homes = {"state": entry, "group": group, "nowhere": {"step": 0}}
    return {
        "step": homes[layout.steps]["step"],
        **{name: entry[key] for name, key in keys.items()},
        **optional,
    }


def _settings(
    group: Mapping[str, Any], layout: Layout, stay: Sequence[str] | None, where: str
) -> dict[str, Any]:
    # Names are taken over from every layout: they describe the file's parameters.
    taken = [
        key
        for key in group
        if key == "param_names" or (stay is not None and key not in ("params", *stay))
    ]
    settings = {key: group[key] for key in taken}
    names = settings.get("param_names")
    if names is not None and len(names) != len(group["params"]):
        raise ValueError(
            f"{where} of the file has {len(group['params'])} params and {len(names)} param_names"
        )
    if layout is REFERENCE and stay is not None:
        settings.update(schedule_settings(settings, where))
        # The name of version 0.1.2.
        if "weight_decay_rate" in settings:
            settings["weight_decay"] = settings.pop("weight_decay_rate")
    if isinstance(settings.get("lr"), torch.Tensor):
        settings["lr"] = settings["lr"].detach().cpu()  # where it has to be; copied below
    return copy.deepcopy(settings)


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
