"""Contenders are timed in turns with ours, in batches that fit, and failures are named."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import measurement
import timing
from bench_report import Row
from contenders import CLIPS, FUSED, OURS, PLAIN, Contender, contenders
from model_shapes import count_elements

CPU = torch.device("cpu")
ROUNDS = 5


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.COPY_BYTES, "cpu", 2**16)


def those(*names: str) -> list[Contender]:
    return [each for clip in CLIPS for each in contenders(clip, "cpu") if each.name in names]


def measure(candidates: list[Contender], refused: dict[str, str] | None = None) -> list[Row]:
    return measurement.measure(candidates, "bert-toy", CPU, ROUNDS, refused or {})


def one_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_free_bytes", lambda device: 0.0)


def test_batches_hold_as_many_moments_as_memory() -> None:
    shapes = {"a.weight": (300,), "b.weight": (700,)}
    others = those(FUSED, PLAIN)
    working = 4 * 1000 + 16 * 700
    for free, sizes in (
        (working + 6 * 8000, [6]),
        (working + 6 * 8000 - 1, [5, 1]),
        (working + 2 * 8000, [2, 2, 2]),
        (0.0, [1] * 6),
    ):
        batches = measurement.batches(others, shapes, free, 8)
        assert [len(batch) for batch in batches] == sizes
        assert [each for batch in batches for each in batch] == others
    assert measurement.batches([], shapes, 0.0, 8) == [[]]


def test_ours_takes_part_in_every_batch_and_is_compared_across_modes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_per_batch(monkeypatch)
    rows = measure(those(OURS, FUSED))
    assert [row.batch for row in rows] == [0, 1, 0, 2, 0, 3]
    assert [row.n_rounds for row in rows] == [3 * ROUNDS, ROUNDS] * 3
    for row in rows:
        ratios = [row.ours_over(clip) for clip in CLIPS]
        assert all(ratio is not None and ratio > 0 for ratio in ratios)
        if row.contender == OURS:
            assert row.ours_over(row.clip) == row.ours_over_this == 1.0


def test_ratio_is_of_the_rounds_that_both_took_part_in() -> None:
    """Times double from batch to batch, and with them a ratio of unpaired medians."""
    timings = measurement._Timings(CPU, ROUNDS)
    timings._batches = [
        {"ours": [1.0, 1.0, 1.0], "a": [2.0, 2.0], "copy": [1.0]},
        {"ours": [2.0, 2.0, 2.0], "b": [8.0, 8.0, 8.0], "copy": [1.0]},
    ]
    timings._facts = {"a": {"batch": 1}, "b": {"batch": 2}}
    known, own = ("m", 1, 1, "none"), {"ours_none_over_this": "ours"}
    a = timings.complete(Row(*known, "a", 28.0), "a", own)
    b = timings.complete(Row(*known, "b", 28.0), "b", own)
    assert (a.ours_over_this, b.ours_over_this) == (0.5, 0.25)
    assert (a.n_rounds, b.n_rounds) == (2, 3)


def test_slow_contender_gets_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measurement._SECONDS, "cpu", 0.0)
    assert {row.n_rounds for row in measure(those(OURS))} == {measurement._LEAST_ROUNDS}


def test_batch_is_freed_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    one_per_batch(monkeypatch)
    made: list[weakref.ref[Any]] = []

    def build(groups: list[dict[str, Any]]) -> Any:
        assert not any(earlier() for earlier in made)
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        made.append(weakref.ref(optimizer))
        return optimizer.step

    extra = [Contender(name, "none", 28.0, build, True, ("cpu",)) for name in "abc"]
    rows = measure([*those(OURS), *extra])
    assert len(made) == 3
    assert not any(row.note for row in rows)


def failing(n_calls: int, error: Exception) -> Any:
    """A step that raises at its n-th call, 0 for when it is made."""

    def build(groups: list[dict[str, Any]]) -> Any:
        left = [n_calls]

        def step() -> None:
            left[0] -= 1
            if left[0] == 0:
                raise error

        if n_calls == 0:
            raise error
        return step

    return build


@pytest.mark.parametrize("n_calls", [0, 1, 2])
def test_contender_that_runs_out_of_memory_is_named(n_calls: int) -> None:
    """Also one that is not optional, and whether its moments or its work do not fit."""
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB\nmore")
    large = Contender("large", "none", 28.0, failing(n_calls, error), True)
    rows = measure([*those(OURS, FUSED), large])
    notes = {row.contender: row.note for row in rows if row.note}
    assert notes == {"large": "out of memory: CUDA out of memory. Tried to allocate 4 GiB"}
    assert rows[-1].median_us is None
    assert all(row.median_us for row in rows[:-1])


def test_failure_of_another_package_is_named_and_our_own_is_raised() -> None:
    error = RuntimeError("too many elements")
    theirs = Contender("theirs", "none", 28.0, failing(1, error), True, ("cpu",))
    assert measure([*those(OURS), theirs])[-1].note == "failed: RuntimeError: too many elements"
    with pytest.raises(RuntimeError, match="too many elements"):
        measure([*those(OURS), Contender("required", "none", 28.0, failing(1, error), True)])


def test_refused_contender_is_not_timed() -> None:
    def build(groups: list[dict[str, Any]]) -> Any:
        raise AssertionError("refused, but built")

    wrong = Contender("wrong", "none", 28.0, build, True)
    row = measure([*those(OURS), wrong], {wrong.label: "REFUSED: wrong"})[-1]
    assert (row.note, row.median_us) == ("REFUSED: wrong", None)


def test_gradients_have_a_norm_below_the_limit() -> None:
    shapes = {"a.weight": (100, 100), "a.bias": (100,)}
    groups = measurement.make_groups(shapes, CPU)
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    grads = [param.grad for group in groups for param in group["params"]]
    assert sum(grad.numel() for grad in grads) == count_elements(shapes)
    # 10,100 normal numbers: a sample's norm is within 1/sqrt(2 * 10,100) = 0.7 %, six times that.
    norm = torch.cat([grad.flatten() for grad in grads]).norm().item()
    assert norm == pytest.approx(0.5, rel=0.042)
