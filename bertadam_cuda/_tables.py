"""Tables that a step looks its multipliers up in: schedules and bias corrections, in float64.

The host evaluates them, so that no transcendental runs on a device, the CPU and the GPU use the
same bits, and a step that is skipped on the device finds its own position. They are filled ahead of
training and lengthened, seldom, on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .schedules import last_position, multiplier

#: A float32 step counter stops at 2**24: no position lies beyond.
MAX_POSITION = 2**24
#: Entries of a first table: about 10 ms to evaluate, and most fine-tuning ends before.
_FIRST_LENGTH = 2**14
#: Tables at a time, the oldest go first: a scheduler may change a beta at every step.
_MOST_KEPT = 64


class Table(NamedTuple):
    """Entries for positions 0, 1, ...; the last one stands for all later ones up to `valid_to`."""

    values: Tensor
    valid_to: float


class Tables:
    """Builds tables and keeps them by their settings; groups with equal settings share one."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Table] = {}

    def schedule(self, group: dict[str, Any], bound: int, device: torch.device) -> Table:
        """Return the multipliers, valid for positions up to twice `bound` at least."""
        schedule, t_total, args = group["schedule"], group["t_total"], group["schedule_args"]
        last = last_position(schedule, t_total)
        if last == 0:
            return self._table(("constant", device), 1, math.inf, lambda position: 1.0, device)
        n_entries, valid_to = _length(bound, math.inf if last is None else last)
        own = tuple(sorted(args.items())) if args else ()
        key = (schedule, group["warmup"], t_total, own, n_entries, device)
        rule = multiplier(schedule, group["warmup"], t_total, args)
        return self._table(key, n_entries, valid_to, rule, device)

    def bias_corrections(
        self, beta1: float, beta2: float, bound: int, device: torch.device
    ) -> Table:
        """Return 1 / (1 - beta1**t) and 1 / (1 - beta2**t) for t = 1, 2, ..., shape [n, 2]."""
        n_entries, valid_to = _length(bound, max(_steps_to_one(beta1), _steps_to_one(beta2)))

        def rule(position: int) -> tuple[float, float]:
            t = position + 1
            return 1.0 / (1.0 - beta1**t), 1.0 / (1.0 - beta2**t)

        key = ("bias corrections", beta1, beta2, n_entries, device)
        return self._table(key, n_entries, valid_to, rule, device)

    def _table(
        self,
        key: Hashable,
        n_entries: int,
        valid_to: float,
        rule: Callable[[int], object],
        device: torch.device,
    ) -> Table:
        if key not in self._kept:
            values = [rule(position) for position in range(n_entries)]
            tensor = torch.tensor(values, dtype=torch.float64, device=device)
            self._kept[key] = Table(tensor, valid_to)
            if len(self._kept) > _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]


def _length(bound: int, last: float) -> tuple[int, float]:
    """Return the number of entries and up to where they hold; `last`: constant from there on."""
    ahead = max(_FIRST_LENGTH, 2 ** math.ceil(math.log2(2 * bound + 2)))
    last = min(last, MAX_POSITION)
    return (int(last) + 1, math.inf) if last <= ahead else (ahead + 1, ahead)


def _steps_to_one(beta: float) -> float:
    """Return a t from which on 1 - beta**t rounds to 1 in float64."""
    return 1 if beta == 0.0 else math.ceil(-54 * math.log(2) / math.log(beta)) + 1
