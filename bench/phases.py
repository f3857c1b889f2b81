"""The phases of a run: which updates they have, on what sequences, and with which learning rates.

BERT is trained on short sequences first and on long ones at the end, where the schedule begins
anew with an lr of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bertadam_cuda import schedules


@dataclass(frozen=True)
class Phase:
    """Updates number `first_step` to `end - 1`; each takes `accumulate` batches."""

    first_step: int
    n_steps: int
    seq_len: int
    batch: int
    lr: float
    warmup: float
    schedule: str
    schedule_args: dict[str, float]
    accumulate: int

    @property
    def end(self) -> int:
        return self.first_step + self.n_steps

    @property
    def sequences(self) -> int:
        """Per update."""
        return self.batch * self.accumulate

    @property
    def scheduled(self) -> tuple[str, float, int, dict[str, float]]:
        """What a schedule is made of: name, warm-up, number of updates and its own arguments."""
        return self.schedule, self.warmup, self.n_steps, self.schedule_args

    def multiplier(self) -> Callable[[int], float]:
        """Multiplier of the phase's lr as a function of the phase's updates done."""
        return schedules.multiplier(*self.scheduled)


def phase_index(phases: Sequence[Phase], step: int) -> int:
    """Which phase update number `step` belongs to; the last one where there is no such update."""
    return next((i for i, phase in enumerate(phases) if step < phase.end), len(phases) - 1)


def count_tokens(phases: Sequence[Phase], first_step: int, end: int) -> int:
    """Tokens that the updates from `first_step` to `end - 1` read."""
    return sum(
        max(0, min(end, phase.end) - max(first_step, phase.first_step))
        * phase.sequences
        * phase.seq_len
        for phase in phases
    )
