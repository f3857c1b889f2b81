"""Clocks count microseconds, and contenders take turns."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import timing


def test_rounds_alternate_and_begin_with_another_call_each_time() -> None:
    calls: list[str] = []
    samples = timing.alternate(
        {name: lambda name=name: calls.append(name) for name in "abc"},
        {"a": 4, "b": 2, "c": 4},
        timing.wall_us,
    )
    assert {name: len(times) for name, times in samples.items()} == {"a": 4, "b": 2, "c": 4}
    # The slow one takes part in the first rounds, so its samples belong to those of the others.
    assert "".join(calls) == "abc" + "bca" + "ca" + "ac"


def test_spread_and_paired_ratio_are_order_statistics() -> None:
    spread = timing.Spread.of([5.0, 1.0, 2.0, 3.0, 4.0, 100.0])
    assert (spread.median, spread.p20, spread.p80) == (3.5, 2.0, 5.0)
    # Each round is twice as slow as the one before; within a round the ratio is one half.
    assert timing.paired_ratio([1, 2, 4], [2, 4, 8]).median == 0.5
    # Rounds that only one of them has do not count.
    assert timing.paired_ratio([1, 2, 400], [2, 4]).median == 0.5


def test_idle_times_stop_at_their_number_of_calls_or_deadline() -> None:
    calls: list[float] = []
    times = timing.IdleTimes.of(lambda: calls.append(time.sleep(0.02) or 0.0), 3, seconds=60.0)
    assert len(calls) == 3
    assert 20_000 <= times.host.median <= times.wall.median
    timing.IdleTimes.of(lambda: calls.append(0.0), 3, seconds=0.0)
    assert len(calls) == 4


def test_wall_clock_counts_microseconds() -> None:
    # No upper bound worth the name: a loaded machine may sleep much longer.
    assert 20_000 <= timing.wall_us(lambda: time.sleep(0.02)) < 5_000_000


def test_what_comes_before_a_call_is_not_part_of_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: events.append("tick") or 0)
    call = timing.Prepared(lambda: events.append("call"), lambda: events.append("before"))
    timing.wall_us(call)
    assert events == ["before", "tick", "call", "tick"]
    events.clear()
    timing.IdleTimes.of(call, n_calls=2, seconds=60.0)
    assert events == ["before", "tick", "call", "tick", "tick"] * 2


def test_copy_moves_every_byte_that_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.COPY_BYTES, "cpu", 4 * 1001)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        copy, n_bytes = timing.copy_call(torch.device("cpu"))
        source, target = torch.arange(1001.0), torch.zeros(1001)
        timing._threaded_copy(target, source)()
    finally:
        torch.set_num_threads(threads)
    copy()
    assert n_bytes == 2 * 4 * 1001
    assert torch.equal(target, source)


@pytest.mark.gpu
def test_device_clock_sees_the_kernel_and_not_the_launch() -> None:
    """A fill of 1 GiB takes hundreds of microseconds, one of 4 bytes a few."""
    clock = timing.DeviceClock(torch.device("cuda"))
    large, small = torch.empty(2**28, device="cuda"), torch.empty(1, device="cuda")
    assert clock(large.zero_) > 10 * clock(small.zero_)
    assert clock(small.zero_) < 30
    assert timing.count_launches(small.sqrt) == (1, 0)


@pytest.mark.gpu
def test_device_clock_takes_a_sample_again_where_the_host_was_late() -> None:
    """Where it did not, the fill would take as long as the host's part of it."""
    clock = timing.DeviceClock(torch.device("cuda"))
    small = torch.empty(1, device="cuda")
    delays = itertools.chain([0.0, 0.0, 0.0], itertools.repeat(0.0005))

    def call() -> None:
        time.sleep(next(delays))
        small.zero_()

    assert clock(call) < 30
    assert next(delays) > 0
