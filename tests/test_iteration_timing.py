"""An iteration's time is divided where backward ends and where the update ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import iteration_timing
from iteration_timing import GpuTimeline, HostTimeline, Rounds, Run, timed_run, timed_runs

Wait = Callable[[float], Callable[[], None]]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Makes calls of a known length, on a clock that nothing else moves."""
    now_ns = 0

    def lasting(ms: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal now_ns
            now_ns += int(ms * 1e6)

        return call

    monkeypatch.setattr(iteration_timing, "perf_counter_ns", lambda: now_ns)
    return lasting


def test_periods_are_told_apart(wait: Wait) -> None:
    run = timed_run([wait(30), wait(50)], wait(8), HostTimeline())
    assert run == Run(
        iteration_ms=48.0, forward_backward_ms=40.0, optimizer_ms=8.0, optimizer_host_ms=8.0
    )


class Behind(HostTimeline):
    """A device whose queue is emptied by the wait at the end: work takes place only then."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish
        self._marks: list[float] = []

    def mark(self) -> int:
        self._marks.append(0.0)
        return len(self._marks) - 1

    def ms(self, begin: int, end: int) -> float:
        return float(end - begin)  # one period is a millisecond

    def wait(self) -> None:
        self._finish()


def test_wait_at_the_ends_belongs_to_the_run_and_not_to_the_optimizers_call(wait: Wait) -> None:
    """The first wait is for what came before; only the last one counts."""
    run = timed_run([wait(1), wait(1)], wait(0.5), Behind(wait(7)))
    assert run == Run(
        iteration_ms=(2 * 1.5 + 7) / 2,
        forward_backward_ms=1.0,
        optimizer_ms=1.0,
        optimizer_host_ms=0.5,
    )


def test_steps_take_turns_and_warm_up() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    runs = timed_runs([lambda: calls.append("-")], steps, HostTimeline(), Rounds(3, 3, 0.0))
    assert "".join(calls) == "-a-b" + "-a-b" + "-b-a" + "-a-b"
    assert {name: len(of_step) for name, of_step in runs.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(("step_ms", "n_rounds"), [(10, 7), (50, 7), (60, 5), (90, 3), (1000, 3)])
def test_no_round_begins_that_would_end_too_late(wait: Wait, step_ms: float, n_rounds: int) -> None:
    """Within 0.35 s, but at least 3 rounds and at most 7."""
    rounds = Rounds(least=3, most=7, seconds=0.351)
    runs = timed_runs([wait(0)], {"a": wait(step_ms)}, HostTimeline(), rounds)
    assert len(runs["a"]) == n_rounds


def test_warm_ups_do_not_count(wait: Wait) -> None:
    lengths = iter([100, 1, 2, 3])
    runs = timed_runs(
        [wait(0)], {"a": lambda: wait(next(lengths))()}, HostTimeline(), Rounds(3, 3, 0.0)
    )
    assert [run.optimizer_ms for run in runs["a"]] == [1.0, 2.0, 3.0]


@pytest.mark.gpu
def test_gpu_timeline_sees_the_device_and_not_the_launch() -> None:
    """A sleep of 20 million cycles takes 8 ms or more below 2.5 GHz, its launch microseconds."""
    n_cycles = 20_000_000

    def sleep() -> None:
        torch.cuda._sleep(n_cycles)

    def sleep_twice() -> None:
        torch.cuda._sleep(2 * n_cycles)

    timeline = GpuTimeline(torch.device("cuda"))
    timed_run([sleep], sleep, timeline)
    run = timed_run([sleep_twice] * 3, sleep, timeline)
    assert run.optimizer_ms > 8
    assert run.forward_backward_ms == pytest.approx(2 * run.optimizer_ms, rel=0.1)
    assert run.iteration_ms == pytest.approx(3 * run.optimizer_ms, rel=0.1)
    assert run.optimizer_host_ms < 0.2 * run.optimizer_ms
