"""Times contenders of all clip modes on the parameters and gradients of one model.

Ours takes part in every round, in all modes and with all masters, so each ratio to it compares
times of the same rounds. Where memory does not hold the state of all contenders at once, the
others come in batches: one batch is freed before the next is made.
"""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from bench_report import Row, ratio_column
from contender_check import WrongResult, check
from contender_steps import Groups
from contenders import OURS, Contender, split_groups
from model_shapes import MODELS, Shapes, count_elements, decays
from storage import DTYPES
from timing import (
    Call,
    DeviceClock,
    IdleTimes,
    Spread,
    alternate,
    copy_call,
    count_launches,
    paired_ratio,
    prepare,
    wall_us,
)
from torch import nn

_COPY = "copy"
_GRAD_NORM = 0.5
#: Per parameter: moments; beside 16 bits also a master and, of the plain loop, its gradient.
_STATE_BYTES = {torch.float32: 8, torch.bfloat16: 16, torch.float16: 16}
#: apex's has gradients that it may overwrite.
_MORE_OF_LAMB = 4
#: Share of the free memory that moments may take; on a CPU others need some, too.
_USABLE = {"cuda": 0.95, "cpu": 0.5}
#: Slow contenders get fewer rounds than asked for, but three, which have a median.
_SECONDS, _LEAST_ROUNDS = {"cuda": 3.0, "cpu": 10.0}, 3
#: A host-bound call takes three times as long where its launches are to be hidden.
_ROUND_PER_CALL = {"cuda": 3.0, "cpu": 1.0}
#: A trace of 100,000 kernels takes longer to evaluate than all the rest.
_LONGEST_TRACED_US = 300_000.0

Notes = dict[str, str]


@dataclass(frozen=True)
class _Started:
    """A contender that has made its first steps, and what one of them takes."""

    call: Call
    idle: IdleTimes


def make_groups(shapes: Shapes, device: torch.device, dtype: torch.dtype = torch.float32) -> Groups:
    """Random parameters with gradients of a small norm, in BERT's two groups."""
    torch.manual_seed(0)
    scale = _GRAD_NORM / count_elements(shapes) ** 0.5
    params = {
        name: nn.Parameter(torch.randn(s, device=device, dtype=dtype).mul_(0.02))
        for name, s in shapes.items()
    }
    for param in params.values():
        param.grad = torch.randn_like(param).mul_(scale)
    decayed = [param for name, param in params.items() if decays(name)]
    return split_groups(decayed, [param for name, param in params.items() if not decays(name)])


def refusals(candidates: Sequence[Contender], device: torch.device) -> Notes:
    """Check every contender; returns the labels of those that cannot be timed, and why."""
    notes: Notes = {}
    for contender in candidates:
        if device.type not in (contender.only_on or device.type):
            runs_on = " or ".join(contender.only_on)
            notes[contender.label] = f"missing: runs on {runs_on} only"
            continue
        try:
            check(contender, device)
        except WrongResult as error:
            notes[contender.label] = f"REFUSED: {error}"
        except Exception as error:
            if not contender.optional:
                raise
            # Such packages compile at first use and can fail in many ways; it is named, not hidden.
            notes[contender.label] = f"missing: {type(error).__name__}: {error}".split("\n")[0]
    return notes


def start(candidates: Sequence[Contender], groups: Groups, notes: Notes) -> dict[str, _Started]:
    """Make the steps and warm them up; one that memory does not hold gets a note instead."""
    calls: dict[Contender, Call] = {}
    started: dict[str, _Started] = {}
    for contender in candidates:
        if contender.label not in notes:
            with named_failure(contender, notes):
                # Optimizers keep and complete the dicts that they get.
                call = contender.build([dict(group) for group in groups])
                prepare(call)
                call()  # makes the moments
                calls[contender] = call
    # Again once all of them hold their moments, so that none runs out of memory while it is timed.
    for contender in list(calls):
        call = calls.pop(contender)
        with named_failure(contender, notes):
            started[contender.label] = _Started(call, IdleTimes.of(call, n_calls=1))
    return started


@contextmanager
def named_failure(contender: Contender, notes: Notes) -> Iterator[None]:
    """Turn a lack of memory, and what other packages raise for large inputs, into a note."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        notes[contender.label] = f"out of memory: {error}".split("\n")[0]
    except Exception as error:
        if not contender.optional:
            raise
        notes[contender.label] = f"failed: {type(error).__name__}: {error}".split("\n")[0]


def batches(
    others: Sequence[Contender], shapes: Shapes, free_bytes: float, state_bytes: int
) -> list[list[Contender]]:
    """Split the contenders beside ours into batches whose state fits; at least one batch."""
    n = count_elements(shapes)
    # torch's foreach keeps the square roots of all v, the plain loop four copies of one tensor.
    working = 4 * n + 16 * max(count_elements({name: s}) for name, s in shapes.items())
    size = max(1, int((free_bytes - working) // (state_bytes * n)))
    return [list(others[i : i + size]) for i in range(0, len(others), size)] or [[]]


def measure(
    candidates: Sequence[Contender],
    model: str,
    device: torch.device,
    most_rounds: int,
    refused: Mapping[str, str],
) -> list[Row]:
    """Time the candidates of all clip modes in turns; returns their rows in the same order."""
    shapes = MODELS[model]()
    dtype = candidates[0].storage.dtype
    groups = make_groups(shapes, device, DTYPES[dtype])
    notes = dict(refused)
    timings = _Timings(device, most_rounds)
    ours = start([each for each in candidates if each.name == OURS], groups, notes)
    others = [each for each in candidates if each.name != OURS and each.label not in notes]
    release(device)
    state_bytes = _STATE_BYTES[DTYPES[dtype]]
    if candidates[0].optimizer == "lamb":
        state_bytes += _MORE_OF_LAMB
    split = batches(others, shapes, _free_bytes(device), state_bytes)
    for index, batch in enumerate(split, start=1):
        timings.add(index, ours, start(batch, groups, notes))
        release(device)
    own = {
        ratio_column(each.clip, each.storage.master): each.label
        for each in candidates
        if each.name == OURS
    }
    rows = []
    for contender in candidates:
        label = contender.label
        known = (model, len(shapes), count_elements(shapes), contender.clip, contender.name)
        kind = {
            "dtype": dtype,
            "master": contender.storage.master,
            "optimizer": contender.optimizer,
        }
        row = Row(*known, contender.bytes_per_param, **kind, note=notes.get(label, ""))
        rows.append(row if label in notes else timings.complete(row, label, own))
    return rows


class _Timings:
    """All samples of one model, batch by batch."""

    def __init__(self, device: torch.device, most_rounds: int) -> None:
        self._device, self._most_rounds = device, most_rounds
        self._copy, self._copy_bytes = copy_call(device)
        self._copy()
        self._batches: list[dict[str, list[float]]] = []
        self._facts: dict[str, dict[str, Any]] = {}

    def add(self, index: int, ours: dict[str, _Started], others: dict[str, _Started]) -> None:
        """Time a batch in turns with ours."""
        started = {**ours, **others}
        calls = {label: each.call for label, each in started.items()}
        rounds = {label: self._rounds(each.idle) for label, each in started.items()}
        clock: Callable[[Call], float] = wall_us
        if self._device.type == "cuda":
            clock = DeviceClock(self._device)  # one per batch: it keeps what it has timed
        self._batches.append(
            alternate({**calls, _COPY: self._copy}, {**rounds, _COPY: self._most_rounds}, clock)
        )
        for label, each in started.items():
            if label not in self._facts:
                batch = 0 if label in ours else index
                self._facts[label] = {"batch": batch, **self._device_facts(each)}

    def complete(self, row: Row, label: str, own: Mapping[str, str]) -> Row:
        """Return the row with its times, and its ratios to each of ours (column: label)."""
        samples = self._pooled([label])[label]
        spread = Spread.of(samples)
        ratios = {
            column: paired_ratio(pooled[ours], pooled[label]).median
            for column, ours in own.items()
            if (pooled := self._pooled([ours, label]))
        }
        copy_us = Spread.of(self._pooled([_COPY])[_COPY]).median
        return replace(
            row,
            n_rounds=len(samples),
            median_us=spread.median,
            p20_us=spread.p20,
            p80_us=spread.p80,
            copy_gbps=self._copy_bytes / copy_us / 1e3,
            **ratios,
            **self._facts[label],
        )

    def _pooled(self, labels: Sequence[str]) -> dict[str, list[float]]:
        """Samples of all batches that have these labels, as many of each."""
        pooled: dict[str, list[float]] = defaultdict(list)
        for batch in self._batches:
            if all(label in batch for label in labels):
                shortest = min(len(batch[label]) for label in labels)
                for label in labels:
                    pooled[label] += batch[label][:shortest]
        return pooled

    def _rounds(self, idle: IdleTimes) -> int:
        seconds = idle.wall.median * _ROUND_PER_CALL[self._device.type] / 1e6
        return min(
            self._most_rounds, max(_LEAST_ROUNDS, int(_SECONDS[self._device.type] / seconds))
        )

    def _device_facts(self, started: _Started) -> dict[str, Any]:
        if self._device.type != "cuda":
            return {}
        slow = started.idle.wall.median > _LONGEST_TRACED_US
        idle = started.idle if slow else IdleTimes.of(started.call, n_calls=20)
        launches, copies = (None, None) if slow else count_launches(started.call)
        times = {"host_us": idle.host.median, "wall_us": idle.wall.median}
        return {**times, "launches": launches, "copies": copies}


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _USABLE[device.type] * free


def release(device: torch.device) -> None:
    """Free what is no longer used."""
    gc.collect()  # optimizers refer to themselves
    if device.type == "cuda":
        torch.cuda.empty_cache()
