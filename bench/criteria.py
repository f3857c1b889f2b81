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
from contenders import (
    APEX,
    APEX_CAPTURABLE,
    APEX_NO_WAIT,
    DEEPSPEED_CPU,
    FUSED,
    OUR_ADAMW,
    OURS,
    PLAIN,
)
from host_time import REPLAY, STEP, HostRow
from lamb_contenders import APEX_LAMB
from storage import FP32, Storage

#: The CPU's criteria are for this many.
CPU_THREADS = 2
_IDLE_WALL = "idle-queue wall"


@dataclass(frozen=True)
class Results:
    """All that one run measured."""

    rows: Sequence[Row] = ()
    host_rows: Sequence[HostRow] = ()

    def row(
        self,
        model: str,
        clip: str,
        contender: str,
        kept: Storage = FP32,
        optimizer: str = "adam",
    ) -> Row | None:
        """Return the row if it has times; of others than ours, with any master."""
        for row in self.rows:
            if (row.model, row.clip, row.contender, row.dtype, row.optimizer) != (
                *(model, clip, contender, kept.dtype, optimizer),
            ):
                continue
            if contender != OURS or row.master == kept.master:
                return None if row.median_us is None else row
        return None


@dataclass(frozen=True)
class Criterion:
    """A number of a run, and its limit.

    model: the one whose run is judged.
    says: what the number is, with {} for it.
    value: the number, or None where the run did not measure it.
    at_least, at_most: the limit; one of them is set.
    dtype: of the parameters and gradients of that run.
    optimizer: which that run is of.
    """

    model: str
    says: str
    value: Callable[[Results], float | None]
    at_least: float | None = None
    at_most: float | None = None
    dtype: str = "fp32"
    optimizer: str = "adam"

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
        subject = self.model if self.dtype == "fp32" else f"{self.model} in {self.dtype}"
        subject += "" if self.optimizer == "adam" else f" with {self.optimizer.upper()}"
        return f"{word:<12}  {subject}: {shown}, wanted {limit}"


def _share(model: str, clip: str, at_least: float, kept: Storage = FP32) -> Criterion:
    """Ours against the copy bandwidth, by the bytes that this clipping cannot do without."""

    def value(results: Results) -> float | None:
        row = results.row(model, clip, OURS, kept)
        return row and row.percent_of_copy

    n_bytes = kept.update_bytes + (kept.norm_bytes if clip == "global" else 0.0)
    says = f"{_ours(clip, kept)}: {{}} % of copy at {n_bytes:.0f} B"
    return Criterion(model, says, value, at_least, dtype=kept.dtype)


def _ours(clip: str, kept: Storage) -> str:
    master = "" if kept.master == "none" else f", master {kept.master}"
    return f"ours, clip {clip}{master}"


def _times_none(model: str, at_most: float) -> Criterion:
    """What clipping per tensor costs."""

    def value(results: Results) -> float | None:
        row = results.row(model, "none", OURS)
        return row and row.ours_over("per_tensor")

    says = "ours, clip per_tensor: {} x ours without clipping (device time, paired)"
    return Criterion(model, says, value, at_most=at_most)


def _adamw(model: str, clip: str, at_least: float) -> Criterion:
    """Our other rule in the same engine; ours in a row is BertAdam."""

    def value(results: Results) -> float | None:
        row = results.row(model, clip, OUR_ADAMW)
        return row and row.ours_over(clip)

    says = f"our AdamW, clip {clip}: {{}} x as fast as our BertAdam (device time, paired)"
    return Criterion(model, says, value, at_least)


def _faster(
    model: str,
    clip: str,
    other: tuple[str, str],
    at_least: float,
    clock: str = "device",
    kept: Storage = FP32,
    optimizer: str = "adam",
) -> Criterion:
    """How many times as long the other (contender, clip) takes."""
    contender, other_clip = other

    def value(results: Results) -> float | None:
        row = results.row(model, other_clip, contender, kept, optimizer)
        if row is None:
            return None
        if clock == _IDLE_WALL:
            ours = results.row(model, clip, OURS, kept, optimizer)
            if ours is None or not ours.wall_us or not row.wall_us:
                return None
            return row.wall_us / ours.wall_us
        ratio = row.ours_over(clip, kept.master)
        return ratio and 1 / ratio

    how = "medians" if clock == _IDLE_WALL else "paired"
    says = (
        f"{_ours(clip, kept)}: {{}} x as fast as {contender}, clip {other_clip} "
        f"({clock} time, {how})"
    )
    return Criterion(model, says, value, at_least, dtype=kept.dtype, optimizer=optimizer)


def _host_row(results: Results, call: str, n_groups: int) -> HostRow | None:
    found = (r for r in results.host_rows if (r.call, r.n_groups) == (call, n_groups))
    return next(found, None)


def _host(call: str, n_groups: int, at_most: float) -> Criterion:
    def value(results: Results) -> float | None:
        row = _host_row(results, call, n_groups)
        return row and row.median_us

    says = f"host time of {call}, {n_groups} groups: {{}} us"
    return Criterion("bert-large", says, value, at_most=at_most)


def _launches(call: str, n_groups: int) -> Criterion:
    def value(results: Results) -> float | None:
        row = _host_row(results, call, n_groups)
        return row and row.launches

    says = f"launches, copies and fills of {call}, {n_groups} groups: {{}}"
    return Criterion("bert-large", says, value, at_most=1)


_FUSED_GLOBAL, _FUSED_NONE = (FUSED, "global"), (FUSED, "none")
_idle_wall = partial(_faster, clock=_IDLE_WALL)
_cpu = partial(_faster, "bert-base", clock="wall")
_BF16_MASTER, _BF16_REMAINDER = Storage("bf16", "fp32"), Storage("bf16", "remainder")
_FP16_MASTER = Storage("fp16", "fp32")

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
        _adamw("bert-large", "global", 0.98),
        _faster("bert-large", "none", _FUSED_NONE, 1.18),
        _faster("bert-large", "none", (APEX, "none"), 1.3),
        # The loop launches thousands of kernels: the host takes the time, on any clock.
        _idle_wall("bert-large", "per_tensor", (PLAIN, "per_tensor"), 35),
        _host(STEP, 2, 30),
        _launches(STEP, 2),
        _host(STEP, 50, 35),
        _launches(STEP, 50),
        _host(REPLAY, 2, 10),
        _launches(REPLAY, 2),
        _faster("bert-base", "per_tensor", _FUSED_GLOBAL, 2.5),
        _times_none("bert-base", 1.08),
        _faster("10000x1000", "per_tensor", _FUSED_GLOBAL, 10),
        _times_none("10000x1000", 1.3),
        _times_none("20x16M", 1.15),
        _times_none("1x1e9", 1.18),
        _share("bert-large", "per_tensor", 94, _BF16_MASTER),
        _share("bert-large", "per_tensor", 92, _BF16_REMAINDER),
        # torch's clipping over all tensors: per tensor it is host-bound, and no match.
        _faster("bert-large", "per_tensor", _FUSED_GLOBAL, 2.1, kept=_BF16_MASTER),
        _faster("bert-large", "per_tensor", _FUSED_GLOBAL, 2.1, kept=_BF16_REMAINDER),
        _faster("bert-large", "per_tensor", _FUSED_GLOBAL, 2.5, kept=_FP16_MASTER),
        _faster("bert-large", "per_tensor", (APEX_CAPTURABLE, "global"), 2, kept=_FP16_MASTER),
        _faster("bert-large", "global", (APEX_LAMB, "global"), 1.5, optimizer="lamb"),
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
    timed = {(row.model, row.dtype, row.optimizer) for row in results.rows}
    return [
        each.verdict(results)
        for each in CRITERIA[device]
        if (each.model, each.dtype, each.optimizer) in timed
    ]
