"""Runs are summed up in rows, rows in a table and a figure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from bench_report import Circumstances
from iteration_timing import Run
from profile_report import Row, Subject, draw, table


def test_row_takes_the_difference_within_each_round() -> None:
    """Rounds of a machine that becomes slower: 10, 20 and 40 ms without the optimizer."""
    without = [Run(ms, ms, 0.0, 0.0) for ms in (10.0, 20.0, 40.0)]
    runs = [Run(ms + extra, ms, 2.0, 1.0) for ms, extra in ((10.0, 2.0), (20.0, 3.0), (40.0, 4.0))]
    row = Row(4, "some", "global").timed(runs, without, seq_len=100)
    assert (row.iteration_ms, row.optimizer_ms, row.optimizer_host_ms) == (23.0, 2.0, 1.0)
    assert (row.p20_ms, row.p80_ms, row.forward_backward_ms) == (12.0, 44.0, 20.0)
    assert row.difference_ms == 3.0
    assert row.share_percent == pytest.approx(100 * 2 / 23)
    assert row.difference_percent == pytest.approx(100 * 3 / 23)
    assert row.tokens_per_s == pytest.approx(400 / 0.023)


def test_table_is_aligned_and_names_what_is_missing_once() -> None:
    runs = [Run(12345.6, 12000.0, 345.6, 1.0)]
    rows = [
        Row(batch, name, "global").timed(runs, runs, seq_len=128)
        for batch in (4, 128)
        for name in ("a", "much longer")
    ]
    missing = [Row(batch, "gone", "global", note="missing: no module") for batch in (4, 128)]
    *lines, last = table([*rows, *missing]).splitlines()
    assert len(set(map(len, lines))) == 1
    assert [set(line) == {"-"} for line in lines] == [False, True, False, False, True, False, False]
    assert last == "gone (clip global): missing: no module"


def test_figure_needs_times(tmp_path: Path) -> None:
    subject = Subject("tiny", 10**6, "bf16", 128, 0.1, "5.0", 1)
    here = Circumstances.here(torch.device("cpu"), "abc123")
    runs = [Run(10.0, 8.0, 2.0, 1.0)]
    timed = Row(4, "a", "global").timed(runs, runs, seq_len=128)
    missing = Row(8, "a", "global", note="missing: memory")
    assert not draw(tmp_path / "none.png", [missing], subject, here)
    assert not (tmp_path / "none.png").exists()
    assert draw(tmp_path / "some.png", [timed, missing], subject, here)
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
