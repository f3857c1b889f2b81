"""Tables that a step looks its multipliers up in: schedules and bias corrections, in float64.

The host evaluates them once, so that no transcendental runs on a device, the CPU and the GPU use the
same bits, and a step that is skipped or replayed on the device finds its own position.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .schedules import last_position, multiplier

#: A float32 step counter stops at 2**24: no position lies beyond.
MAX_POSITION = 2**24
_FIRST_GROWTH = 4096


class Tables:
    """Builds tables and keeps them by their settings; groups with equal settings share one."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}

    def schedule(self, group: dict[str, Any], bound: int, device: torch.device) -> Tensor:
        """Return the multipliers of positions 0, 1, ...; the last one holds for all later ones.

        Complete where the schedule ends. Where it does not (a callable without t_total), long
        enough for positions up to `bound`, and for as many again.
        """
        schedule, t_total = group["schedule"], group["t_total"]
        last = last_position(schedule, t_total)
        if last is None:
            last = max(_FIRST_GROWTH, 2 ** math.ceil(math.log2(2 * bound + 2)))
        n_entries = min(last, MAX_POSITION) + 1
        args = group["schedule_args"]
        key: Hashable = ("none", n_entries, device)
        if n_entries > 1:
            own = tuple(sorted(args.items())) if args else ()
            key = (schedule, group["warmup"], t_total, own, n_entries, device)
        if key not in self._kept:
            evaluate = multiplier(schedule, group["warmup"], t_total, args)
            values = [evaluate(position) for position in range(n_entries)]
            self._kept[key] = torch.tensor(values, dtype=torch.float64, device=device)
        return self._kept[key]

    def bias_corrections(self, beta1: float, beta2: float, device: torch.device) -> Tensor:
        """Return 1 / (1 - beta1**t) and 1 / (1 - beta2**t) for t = 1, 2, ..., shape [n, 2].

        Ends where both are 1 in float64.
        """
        key: Hashable = ("bias corrections", beta1, beta2, device)
        if key not in self._kept:
            n_entries = max(_steps_to_one(beta1), _steps_to_one(beta2))
            values = [
                (1.0 / (1.0 - beta1**t), 1.0 / (1.0 - beta2**t)) for t in range(1, n_entries + 1)
            ]
            self._kept[key] = torch.tensor(values, dtype=torch.float64, device=device)
        return self._kept[key]


def _steps_to_one(beta: float) -> int:
    """Return the first t at which 1 - beta**t rounds to 1."""
    if beta == 0.0:
        return 1
    return min(MAX_POSITION, math.ceil(-54 * math.log(2) / math.log(beta)) + 1)
