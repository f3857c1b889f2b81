"""What the profile of an iteration prints and keeps: the table, the CSV, the figure."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from bench_report import Circumstances
from figure_style import COLOURS, stacked_axes
from iteration_timing import Run
from timing import Spread


@dataclass(frozen=True)
class Subject:
    """What all rows of a profile have in common."""

    model: str
    n_params: int
    dtype: str
    seq_len: int
    dropout: float
    transformers: str
    n_iterations: int


@dataclass(frozen=True)
class Row:
    """One optimizer at one batch; no times where `note` says why there are none.

    Times are medians of the rounds. `difference_ms` is to the iteration without an optimizer, taken
    within each round. The shares are parts of `iteration_ms` in percent.
    """

    batch: int
    contender: str
    clip: str
    n_rounds: int = 0
    iteration_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    tokens_per_s: float | None = None
    forward_backward_ms: float | None = None
    optimizer_ms: float | None = None
    optimizer_host_ms: float | None = None
    share_percent: float | None = None
    difference_ms: float | None = None
    difference_percent: float | None = None
    note: str = ""

    def timed(self, runs: Sequence[Run], without: Sequence[Run], seq_len: int) -> Row:
        """Sum up the runs; `without` are those without an optimizer, of the same rounds."""
        iteration = Spread.of([run.iteration_ms for run in runs])
        optimizer_ms = statistics.median(run.optimizer_ms for run in runs)
        difference_ms = statistics.median(
            run.iteration_ms - bare.iteration_ms for run, bare in zip(runs, without, strict=True)
        )
        return replace(
            self,
            n_rounds=len(runs),
            iteration_ms=iteration.median,
            p20_ms=iteration.p20,
            p80_ms=iteration.p80,
            tokens_per_s=self.batch * seq_len / iteration.median * 1e3,
            forward_backward_ms=statistics.median(run.forward_backward_ms for run in runs),
            optimizer_ms=optimizer_ms,
            optimizer_host_ms=statistics.median(run.optimizer_host_ms for run in runs),
            share_percent=100 * optimizer_ms / iteration.median,
            difference_ms=difference_ms,
            difference_percent=100 * difference_ms / iteration.median,
        )


CSV_COLUMNS = [field.name for kind in (Circumstances, Subject, Row) for field in fields(kind)]


def write_csv(
    file: Path, rows: Sequence[Row], subject: Subject, circumstances: Circumstances
) -> None:
    """Write one line per optimizer and batch, each with all circumstances."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, CSV_COLUMNS)
        writer.writeheader()
        for row in rows:
            values = {**asdict(circumstances), **asdict(subject), **asdict(row)}
            writer.writerow(
                {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}
            )


_HEADINGS = (
    ("batch", "{0.batch}"),
    ("optimizer", "{0.contender}"),
    ("clip", "{0.clip}"),
    ("rounds", "{0.n_rounds}"),
    ("iteration ms", "{0.iteration_ms:.2f}"),
    ("tokens/s", "{0.tokens_per_s:,.0f}"),
    ("optimizer ms", "{0.optimizer_ms:.2f}"),
    ("host ms", "{0.optimizer_host_ms:.2f}"),
    ("share %", "{0.share_percent:.1f}"),
    ("difference ms", "{0.difference_ms:.2f}"),
    ("difference %", "{0.difference_percent:.1f}"),
)
_N_LEFT = 3  # the first columns, which are flush left


def table(rows: Sequence[Row]) -> str:
    """Return an aligned table; an optimizer without times has its reason under it."""
    timed = [row for row in rows if row.iteration_ms is not None]
    cells = [[title for title, _ in _HEADINGS]]
    cells += [[form.format(row) for _, form in _HEADINGS] for row in timed]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < _N_LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    rule = "-" * len(lines[0])
    starts = [i for i, row in enumerate(timed) if i == 0 or row.batch != timed[i - 1].batch]
    for start in reversed(starts):
        lines.insert(1 + start, rule)
    notes = [f"{row.contender} (clip {row.clip}): {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *dict.fromkeys(notes)])


def draw(file: Path, rows: Sequence[Row], subject: Subject, circumstances: Circumstances) -> bool:
    """Draw a bar per optimizer and batch, divided where backward ends; False without times."""
    timed = [row for row in rows if row.iteration_ms is not None]
    if not timed:
        return False
    batches = list(dict.fromkeys(row.batch for row in timed))
    of_batch = [[row for row in timed if row.batch == batch][::-1] for batch in batches]
    margin = 0.6 + 1.6 / len(batches)  # titles, legend
    heights = tuple(margin + 0.3 * len(group) for group in of_batch)
    longest = max(row.iteration_ms or 0.0 for row in timed)
    with stacked_axes(file, heights, width=9.0) as (figure, axes):
        for batch, group, axis in zip(batches, of_batch, axes, strict=True):
            names = [
                row.contender if row.clip == "none" else f"{row.contender}, {row.clip}"
                for row in group
            ]
            before = [row.forward_backward_ms or 0.0 for row in group]
            steps = [row.optimizer_ms or 0.0 for row in group]
            axis.barh(names, before, color=COLOURS[5], label="forward and backward")
            bars = axis.barh(names, steps, left=before, color=COLOURS[1], label="clip + optimizer")
            texts = [f"{row.iteration_ms:,.1f} ms, {row.share_percent:.1f} %" for row in group]
            axis.bar_label(bars, texts, padding=4)
            axis.set(title=f"batch {batch}", xlim=(0, 1.25 * longest))
            axis.grid(axis="y", visible=False)
        axes[0].set_title(
            f"BERT-{subject.model}, {subject.n_params:,} parameters, {subject.dtype}, sequence"
            f" {subject.seq_len}\n{circumstances.hardware}, torch {circumstances.torch}\n\n"
            f"batch {batches[0]}"
        )
        axes[-1].set_xlabel("one iteration [ms]; at the bars: whole, and the optimizer's share")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return True
