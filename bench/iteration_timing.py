"""How long training iterations take, and which part of each is the optimizer's.

Iterations follow each other without a wait, so that the host runs ahead of a GPU as far as it does
in training; marks on the device's own timeline divide them. Nothing here knows what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter_ns
from typing import Any, Protocol

import torch
from timing import Call

N_WARM_UPS = 1  # runs; an optimizer makes its state in its first iteration


@dataclass(frozen=True)
class Rounds:
    """How many rounds are timed: none that would end after `seconds`, within two limits."""

    least: int
    most: int
    seconds: float


class Timeline(Protocol):
    """The device's work in the order of time."""

    def mark(self) -> Any:
        """Return the point between what was asked of the device so far and what comes next."""

    def ms(self, begin: Any, end: Any) -> float:
        """Time between two marks that the device has passed."""

    def wait(self) -> None:
        """Return when the device has done everything."""


class HostTimeline:
    """A CPU has done what it was asked when the call returns."""

    def mark(self) -> int:
        return perf_counter_ns()

    def ms(self, begin: int, end: int) -> float:
        return (end - begin) / 1e6

    def wait(self) -> None:
        pass


class GpuTimeline:
    """Events in the queue of a GPU, for which the host does not wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def ms(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end)

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)


@dataclass(frozen=True)
class Run:
    """Means per iteration of one run.

    iteration_ms: between two waits of the host.
    forward_backward_ms, optimizer_ms: the device's time until the end of backward, and from there
        to the end of the update; where the device has to wait for launches, that is included.
    optimizer_host_ms: until the optimizer's call returns. Waits are included: for room in the
        queue, of a host that is about 1,000 launches ahead, or for a result, as in apex's clipping.
    """

    iteration_ms: float
    forward_backward_ms: float
    optimizer_ms: float
    optimizer_host_ms: float


def timed_run(forward_backwards: Sequence[Call], step: Call, timeline: Timeline) -> Run:
    """Do each of the calls once, and the optimizer's step after it."""
    timeline.wait()
    start = perf_counter_ns()
    marks = [timeline.mark()]
    host_ns = 0
    for forward_backward in forward_backwards:
        forward_backward()
        marks.append(timeline.mark())
        before = perf_counter_ns()
        step()
        host_ns += perf_counter_ns() - before
        marks.append(timeline.mark())
    timeline.wait()
    wall_ns = perf_counter_ns() - start
    periods = [timeline.ms(begin, end) for begin, end in pairwise(marks)]
    n = len(forward_backwards)
    return Run(
        iteration_ms=wall_ns / 1e6 / n,
        forward_backward_ms=math.fsum(periods[::2]) / n,
        optimizer_ms=math.fsum(periods[1::2]) / n,
        optimizer_host_ms=host_ns / 1e6 / n,
    )


def timed_runs(
    forward_backwards: Sequence[Call],
    steps: Mapping[str, Call],
    timeline: Timeline,
    rounds: Rounds,
) -> dict[str, list[Run]]:
    """Let the steps take turns, a run each per round, after some that warm up.

    The i-th runs of all steps belong together: machines drift, and differences are taken within a
    round. Each round begins with another step, so none always follows the same one.
    """
    names = list(steps)
    for name in names:
        for _ in range(N_WARM_UPS):
            timed_run(forward_backwards, steps[name], timeline)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    start = perf_counter_ns()
    for n in range(rounds.most):
        next_end_s = (perf_counter_ns() - start) / 1e9 * (n + 1) / max(n, 1)
        if n >= rounds.least and next_end_s > rounds.seconds:
            break
        first = n % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(timed_run(forward_backwards, steps[name], timeline))
    return runs
