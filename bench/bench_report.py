"""What a benchmark prints and keeps: the table, and the CSV with its circumstances."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from storage import necessary_bytes


@dataclass(frozen=True)
class Circumstances:
    """Where and when a run took place."""

    date: str
    commit: str
    device: str
    hardware: str
    driver: str
    cuda: str
    torch: str
    python: str
    threads: int
    #: Runnable processes when the run began: more than none, and others compete for the cores.
    load: float

    @classmethod
    def here(cls, device: torch.device, commit: str | None = None) -> Circumstances:
        on_gpu = device.type == "cuda"
        driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return cls(
            date=datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
            commit=commit or _commit(),
            device=device.type,
            hardware=torch.cuda.get_device_name(device) if on_gpu else _processor(),
            driver=_output_of(driver).split("\n")[0] if on_gpu else "",
            cuda=torch.version.cuda or "",
            torch=torch.__version__,
            python=platform.python_version(),
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0],
        )


@dataclass(frozen=True)
class Row:
    """One contender of one clip mode; no times where `note` says why there are none."""

    model: str
    n_tensors: int
    n_params: int
    clip: str
    contender: str
    bytes_per_param: float
    #: Of parameters and gradients, and of what stands behind the parameters.
    dtype: str = "fp32"
    master: str = "none"
    #: 'adam' or 'lamb': ours and the others are of one kind.
    optimizer: str = "adam"
    n_rounds: int = 0
    #: Those of one batch alternate with each other and with ours; 0 is ours, in all of them.
    batch: int = 0
    median_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    #: Time of ours in each mode over this one's, medians of the rounds' ratios: without masters,
    #: and with each kind.
    ours_per_tensor_over_this: float | None = None
    ours_global_over_this: float | None = None
    ours_none_over_this: float | None = None
    ours_per_tensor_fp32_over_this: float | None = None
    ours_global_fp32_over_this: float | None = None
    ours_none_fp32_over_this: float | None = None
    ours_per_tensor_remainder_over_this: float | None = None
    ours_global_remainder_over_this: float | None = None
    ours_none_remainder_over_this: float | None = None
    #: On an idle queue: until the call returns, and until the device is done.
    host_us: float | None = None
    wall_us: float | None = None
    #: None where a call takes too long to be traced.
    launches: int | None = None
    copies: int | None = None
    copy_gbps: float | None = None
    note: str = ""

    def ours_over(self, clip: str, master: str = "none") -> float | None:
        """Time of ours with this clipping and master over this one's with its own."""
        ratio: float | None = getattr(self, ratio_column(clip, master))
        return ratio

    @property
    def ours_over_this(self) -> float | None:
        """Time of ours over this one's, with the same clipping and master."""
        return self.ours_over(self.clip, self.master)

    @property
    def launched(self) -> str:
        return "-" if self.launches is None else f"{self.launches}+{self.copies}"

    @property
    def gbps(self) -> float | None:
        """Bytes of this contender per time."""
        return self._rate(self.bytes_per_param)

    @property
    def percent_of_copy(self) -> float | None:
        """Its traffic, as a share of the copy bandwidth of the same run."""
        return self._percent(self.gbps)

    @property
    def necessary_percent(self) -> float | None:
        """The same with the bytes of a step without masters: equal work, so comparable."""
        return self._percent(self._rate(necessary_bytes(self.dtype, self.optimizer)))

    def _rate(self, bytes_per_param: float) -> float | None:
        if self.median_us is None:
            return None
        return self.n_params * bytes_per_param / self.median_us / 1e3

    def _percent(self, gbps: float | None) -> float | None:
        return None if gbps is None or not self.copy_gbps else 100 * gbps / self.copy_gbps


def ratio_column(clip: str, master: str) -> str:
    """Where a row keeps the time of ours over its own."""
    return f"ours_{clip}_over_this" if master == "none" else f"ours_{clip}_{master}_over_this"


_DERIVED = ("ours_over_this", "gbps", "percent_of_copy", "necessary_percent")
CSV_COLUMNS = [
    *(field.name for field in fields(Circumstances)),
    *(field.name for field in fields(Row)),
    *_DERIVED,
]


def write_csv(file: Path, rows: Sequence[Row], circumstances: Circumstances) -> None:
    """Write one line per contender, each with all circumstances."""
    write_lines(
        file,
        [
            {
                **asdict(circumstances),
                **asdict(row),
                **{key: getattr(row, key) for key in _DERIVED},
            }
            for row in rows
        ],
        CSV_COLUMNS,
    )


def write_lines(file: Path, lines: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write a CSV; floats get three decimals."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for line in lines:
            writer.writerow(
                {k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}
            )


def read_csv(file: Path) -> tuple[list[Row], Circumstances]:
    """Return what write_csv wrote, up to its rounding."""
    with file.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    rows = [Row(**_typed(Row, line)) for line in lines]
    return rows, Circumstances(**_typed(Circumstances, lines[0]))


def _typed(kind: type[Row] | type[Circumstances], line: dict[str, str]) -> dict[str, Any]:
    """Pick the fields of a dataclass from a line, in the fields' types."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in line:  # written before there was such a column
            continue
        text, annotation = line[field.name], str(field.type)
        if annotation.startswith(("int", "float")):
            parse = int if annotation.startswith("int") else float
            values[field.name] = parse(text) if text else None
        else:
            values[field.name] = text
    return values


_NECESSARY = "% at the least B"
#: Heading -> what stands under it; a number that was not measured is a "-".
_HEADINGS = (
    ("clip", "{0.clip}"),
    ("contender", "{0.contender}"),
    ("master", "{0.master}"),
    ("median us", "{0.median_us:.0f}"),
    ("p20", "{0.p20_us:.0f}"),
    ("p80", "{0.p80_us:.0f}"),
    ("rounds", "{0.n_rounds}"),
    ("batch", "{0.batch}"),
    ("ours/this", "{0.ours_over_this:.3f}"),
    ("host us", "{0.host_us:.0f}"),
    ("wall us", "{0.wall_us:.0f}"),
    ("launches", "{0.launched}"),
    ("B/param", "{0.bytes_per_param:.0f}"),
    ("GB/s", "{0.gbps:.1f}"),
    ("% of copy", "{0.percent_of_copy:.1f}"),
    (_NECESSARY, "{0.necessary_percent:.1f}"),
)
_N_LEFT = 3  # the first columns, which are flush left
_GPU_ONLY = ("host us", "wall us", "launches")


def table(rows: Sequence[Row], *, on_gpu: bool) -> str:
    """Return an aligned table; a contender without times has its reason under it."""
    headings = [h for h in _HEADINGS if on_gpu or h[0] not in _GPU_ONLY]
    timed = [row for row in rows if row.median_us is not None]
    least = f"% at {necessary_bytes(rows[0].dtype, rows[0].optimizer):.0f} B"
    cells = [[least if title == _NECESSARY else title for title, _ in headings]]
    cells += [[_cell(form, row) for _, form in headings] for row in timed]
    widths = [max(len(line[i]) for line in cells) for i in range(len(headings))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < _N_LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    lines += [f"{_named(row)}: {row.note}" for row in rows if row.note]
    return "\n".join(lines)


def _named(row: Row) -> str:
    master = "" if row.master == "none" else f", master {row.master}"
    return f"{row.contender} (clip {row.clip}{master})"


def _cell(form: str, row: Row) -> str:
    try:
        return form.format(row)
    except TypeError:  # None has no decimals
        return "-"


def _commit() -> str:
    commit = _output_of(["git", "rev-parse", "--short", "HEAD"])
    return commit + (
        "-dirty" if commit != "unknown" and _output_of(["git", "diff", "HEAD"]) else ""
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def _output_of(command: list[str]) -> str:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()
