"""How long a call takes, on a CPU or a GPU, so that contenders of one run can be compared.

Clocks return microseconds. Nothing here knows what is being timed.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Call = Callable[[], object]

#: Larger than any cache that should not help from one call to the next.
COPY_BYTES = {"cpu": 2**29, "cuda": 2**31}
#: A host that needs half of it for one call launches more than any queue holds.
_LONGEST_SLEEP_US = 200_000.0
#: How many times the first sleep the longest may be: for a call that waits, none is long enough.
_MOST_OF_A_SLEEP = 8
_IDLE_SECONDS = 0.5


class Prepared:
    """A call with something to do before it each time, which is not part of its time."""

    def __init__(self, call: Call, before: Call) -> None:
        self._call, self._before = call, before

    def __call__(self) -> object:
        return self._call()

    def prepare(self) -> None:
        self._before()


def prepare(call: Call) -> None:
    """Do what has to be done before this call; for most there is nothing."""
    if isinstance(call, Prepared):
        call.prepare()


@dataclass(frozen=True)
class Spread:
    """Median and the 20th and 80th percentile of a sample."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(
            statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)]
        )


def wall_us(call: Call) -> float:
    """Time between call and return: the clock of CPU work."""
    prepare(call)
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


class DeviceClock:
    """Time on the GPU between the first and the last kernel of a call, by events.

    A sleep on the device that outlasts the host's part keeps the queue filled, so launch overhead
    does not show, and the L2 cache is overwritten before. Where the sleep was over when the call
    returned, the sample is taken again with twice the sleep: after other Python work a step may
    take the host five times as long as after itself. A call with more launches than the queue holds
    (about 1,000) is still bound by the host: the sleep ends while it launches. So is one that waits
    for the device on its way. The clock keeps its calls alive.
    """

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        self._flush = torch.empty(4 * properties.L2_cache_size, dtype=torch.uint8, device=device)
        self._cycles_per_us = _sleep_cycles_per_us()
        self._sleep_us: dict[Call, float] = {}  # of the last sample
        self._longest_us: dict[Call, float] = {}

    def __call__(self, call: Call) -> float:
        if call not in self._sleep_us:
            # Twice the host's time: a single launch varies by that much.
            sleep_us = min(2 * IdleTimes.of(call, n_calls=3).host.median + 100, _LONGEST_SLEEP_US)
            self._sleep_us[call] = sleep_us
            self._longest_us[call] = min(_MOST_OF_A_SLEEP * sleep_us, _LONGEST_SLEEP_US)
        while True:
            prepare(call)
            self._flush.zero_()
            torch.cuda._sleep(int(self._sleep_us[call] * self._cycles_per_us))
            elapsed_us, was_queued = _between_events_us(call)
            if was_queued or self._sleep_us[call] >= self._longest_us[call]:
                return elapsed_us
            self._sleep_us[call] = min(2 * self._sleep_us[call], self._longest_us[call])


def _sleep_cycles_per_us(n_cycles: int = 20_000_000) -> float:
    def sleep() -> None:
        torch.cuda._sleep(n_cycles)

    sleep()  # wakes the clocks up
    return n_cycles / _between_events_us(sleep)[0]


def _between_events_us(call: Call) -> tuple[float, bool]:
    """Return the time on the device, and whether the call returned before that began."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    was_queued = not begin.query()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3, was_queued


@dataclass(frozen=True)
class IdleTimes:
    """What a call takes that begins on an idle queue.

    host: until it returns.
    wall: until the device is done with it, too.
    """

    host: Spread
    wall: Spread

    @classmethod
    def of(cls, call: Call, n_calls: int, seconds: float = _IDLE_SECONDS) -> IdleTimes:
        """Time up to n_calls, at least one; none begins after `seconds`."""
        synchronize = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
        host, wall = [], []
        deadline = time.perf_counter() + seconds
        while not host or (len(host) < n_calls and time.perf_counter() < deadline):
            prepare(call)
            synchronize()
            start = time.perf_counter_ns()
            call()
            returned = time.perf_counter_ns()
            synchronize()
            host.append((returned - start) / 1e3)
            wall.append((time.perf_counter_ns() - start) / 1e3)
        return cls(Spread.of(host), Spread.of(wall))


def _nothing() -> None:
    """A CPU is done when the call returns."""


def alternate(
    calls: Mapping[str, Call], n_rounds: Mapping[str, int], clock: Callable[[Call], float]
) -> dict[str, list[float]]:
    """Time every call once per round, for as many rounds as it has.

    The i-th samples of all calls belong together: machines drift by percents within minutes, so
    contenders are compared within a round. The first call of a round changes from round to round,
    so none always follows the same one.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for n in range(max(n_rounds.values())):
        first = n % len(names)
        for name in names[first:] + names[:first]:
            if n < n_rounds[name]:
                samples[name].append(clock(calls[name]))
    return samples


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Spread of the ratios within each round that both have."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=False)])


def copy_call(device: torch.device) -> tuple[Call, int]:
    """Return a call that copies a large tensor, and the bytes it reads and writes."""
    n_bytes = COPY_BYTES[device.type]
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.ones_like(source)
    copy = _threaded_copy(target, source) if device.type == "cpu" else partial(target.copy_, source)
    return copy, 2 * n_bytes


def _threaded_copy(target: Tensor, source: Tensor) -> Call:
    """Copy with the C library and as many threads as torch has.

    Its memcpy writes past the caches; torch's copy_ first reads the lines that it then overwrites,
    and moves 12 GB/s where this moves 22 (one thread of a Xeon with AVX-512, 2026-11).
    """
    n_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_threads)
    pairs = list(zip(target.chunk(n_threads), source.chunk(n_threads), strict=True))

    def copy_one(pair: tuple[Tensor, Tensor]) -> None:
        ctypes.memmove(pair[0].data_ptr(), pair[1].data_ptr(), pair[0].nbytes)

    return lambda: list(pool.map(copy_one, pairs))


def count_launches(call: Call) -> tuple[int, int]:
    """Return how many kernels, and how many copies and fills, one call launches on the GPU."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    prepare(call)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    on_device = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    # torch marks the extent of Optimizer.step on the device, too.
    names = [event.name for event in on_device if not event.is_user_annotation]
    n_copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return len(names) - n_copies, n_copies
