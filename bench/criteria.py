"""What the step has to reach, as data, and whether a run's rows reach it.

`criteria` is the only place with limits. A run that leaves out a model is not judged by it; one
that lacks a contender says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench_report import Row
from contenders import APEX, APEX_NO_WAIT, DEEPSPEED_CPU, FUSED, OURS, PLAIN
from host_time import HostRow

#: The CPU's criteria are for this many.
CPU_THREADS = 2
_IDLE_WALL = "idle-queue wall"


@dataclass(frozen=True)
class Results:
    """All that one run measured."""

    rows: Sequence[Row] = ()
    host_rows: Sequence[HostRow] = ()

    def row(self, model: str, clip: str, contender: str) -> Row | None:
        """Return the row if it has times."""
        for row in self.rows:
            if (row.model, row.clip, row.contender) == (model, clip, contender):
                return None if row.median_us is None else row
        return None


@dataclass(frozen=True)
class Criterion:
    """A number of a run, and its limit.

    model: the one whose run is judged.
    says: what the number is, with {} for it.
    value: the number, or None where the run did not measure it.
    at_least, at_most: the limit; one of them is set.
    """

    model: str
    says: str
    value: Callable[[Results], float | None]
    at_least: float | None = None
    at_most: float | None = None

    def met(self, results: Results) -> bool | None:
        value = self.value(results)
        if value is None:
            return None
        # Asked this way round, a NaN meets nothing.
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high

    def verdict(self, results: Results) -> str:
        """One line: met, NOT met or not measured."""
        value = self.value(results)
        word = {True: "met", False: "NOT met", None: "not measured"}[self.met(results)]
        shown = self.says.format("?" if value is None else f"{value:.4g}")
        limit = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{word:<12}  {self.model}: {shown}, wanted {limit}"


def _share(model: str, clip: str, at_least: float) -> Criterion:
    """Ours against the copy bandwidth, by the bytes that this clipping cannot do without."""

    def value(results: Results) -> float | None:
        row = results.row(model, clip, OURS)
        return row and row.percent_of_copy

    n_bytes = 32 if clip == "global" else 28
    return Criterion(model, f"ours, clip {clip}: {{}} % of copy at {n_bytes} B", value, at_least)


def _times_none(model: str, at_most: float) -> Criterion:
    """What clipping per tensor costs."""

    def value(results: Results) -> float | None:
        row = results.row(model, "none", OURS)
        return row and row.ours_over("per_tensor")

    says = "ours, clip per_tensor: {} x ours without clipping (device time, paired)"
    return Criterion(model, says, value, at_most=at_most)


def _faster(
    model: str, clip: str, other: tuple[str, str], at_least: float, clock: str = "device"
) -> Criterion:
    """How many times as long the other (contender, clip) takes."""
    contender, other_clip = other

    def value(results: Results) -> float | None:
        row = results.row(model, other_clip, contender)
        if row is None:
            return None
        if clock == _IDLE_WALL:
            ours = results.row(model, clip, OURS)
            if ours is None or not ours.wall_us or not row.wall_us:
                return None
            return row.wall_us / ours.wall_us
        ratio = row.ours_over(clip)
        return ratio and 1 / ratio

    how = "medians" if clock == _IDLE_WALL else "paired"
    says = (
        f"ours, clip {clip}: {{}} x as fast as {contender}, clip {other_clip} ({clock} time, {how})"
    )
    return Criterion(model, says, value, at_least)


def _host(n_groups: int, at_most: float) -> Criterion:
    def value(results: Results) -> float | None:
        return next((r.median_us for r in results.host_rows if r.n_groups == n_groups), None)

    says = f"host time of a step, {n_groups} groups: {{}} us"
    return Criterion("bert-large", says, value, at_most=at_most)


def _launches(n_groups: int) -> Criterion:
    def value(results: Results) -> float | None:
        return next((r.launches for r in results.host_rows if r.n_groups == n_groups), None)

    says = f"launches, copies and fills of a step, {n_groups} groups: {{}}"
    return Criterion("bert-large", says, value, at_most=1)


_FUSED_GLOBAL, _FUSED_NONE = (FUSED, "global"), (FUSED, "none")
_idle_wall = partial(_faster, clock=_IDLE_WALL)
_cpu = partial(_faster, "bert-base", clock="wall")

#: Device -> its criteria. apex is met in the variant that is faster for it.
CRITERIA: dict[str, tuple[Criterion, ...]] = {
    "cuda": (
        _share("bert-large", "per_tensor", 96),
        _share("bert-large", "global", 96),
        _share("bert-large", "none", 99),
        _times_none("bert-large", 1.05),
        _faster("bert-large", "per_tensor", _FUSED_GLOBAL, 1.8),
        _faster("bert-large", "per_tensor", (APEX_NO_WAIT, "global"), 1.7),
        _faster("bert-large", "global", _FUSED_GLOBAL, 1.6),
        _faster("bert-large", "global", (APEX_NO_WAIT, "global"), 1.5),
        _faster("bert-large", "none", _FUSED_NONE, 1.18),
        _faster("bert-large", "none", (APEX, "none"), 1.3),
        # The loop launches thousands of kernels: the host takes the time, on any clock.
        _idle_wall("bert-large", "per_tensor", (PLAIN, "per_tensor"), 35),
        _host(2, 30),
        _launches(2),
        _host(50, 35),
        _launches(50),
        _faster("bert-base", "per_tensor", _FUSED_GLOBAL, 2.5),
        _times_none("bert-base", 1.08),
        _faster("10000x1000", "per_tensor", _FUSED_GLOBAL, 10),
        _times_none("10000x1000", 1.3),
        _times_none("20x16M", 1.15),
        _times_none("1x1e9", 1.18),
    ),
    "cpu": (
        _cpu("none", _FUSED_NONE, 0.97),
        _cpu("none", (DEEPSPEED_CPU, "none"), 0.97),
        _cpu("per_tensor", (FUSED, "per_tensor"), 1.3),
    ),
}


def verdicts(device: str, threads: int, results: Results) -> list[str]:
    """Judge a run by the criteria of the models that it timed."""
    if device == "cpu" and threads != CPU_THREADS:
        return [f"no verdicts: the CPU's are for {CPU_THREADS} threads, these are {threads}"]
    timed = {row.model for row in results.rows}
    return [each.verdict(results) for each in CRITERIA[device] if each.model in timed]
