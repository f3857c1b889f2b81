"""What a benchmark prints and keeps: the table, the CSV with its circumstances, the figure."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

#: What no step can do without: p, g, m, v read, p, m, v written, in fp32.
NECESSARY_BYTES = 28.0


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
    n_rounds: int = 0
    median_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    #: Time of ours over this one's, median of the rounds' ratios.
    ours_over_this: float | None = None
    host_us: float | None = None
    launches: int | None = None
    copies: int | None = None
    copy_gbps: float | None = None
    note: str = ""

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
        """The same with the bytes that the step cannot do without: equal work, so comparable."""
        return self._percent(self._rate(NECESSARY_BYTES))

    def _rate(self, bytes_per_param: float) -> float | None:
        if self.median_us is None:
            return None
        return self.n_params * bytes_per_param / self.median_us / 1e3

    def _percent(self, gbps: float | None) -> float | None:
        return None if gbps is None or not self.copy_gbps else 100 * gbps / self.copy_gbps


_DERIVED = ("gbps", "percent_of_copy", "necessary_percent")
CSV_COLUMNS = [
    *(field.name for field in fields(Circumstances)),
    *(field.name for field in fields(Row)),
    *_DERIVED,
]


def write_csv(file: Path, rows: Sequence[Row], circumstances: Circumstances) -> None:
    """Write one line per contender, each with all circumstances."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, CSV_COLUMNS)
        writer.writeheader()
        for row in rows:
            derived = {key: getattr(row, key) for key in _DERIVED}
            values = {**asdict(circumstances), **asdict(row), **derived}
            writer.writerow(
                {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}
            )


_HEADINGS = (
    ("clip", "{0.clip}"),
    ("contender", "{0.contender}"),
    ("median us", "{0.median_us:.0f}"),
    ("p20", "{0.p20_us:.0f}"),
    ("p80", "{0.p80_us:.0f}"),
    ("ours/this", "{0.ours_over_this:.3f}"),
    ("host us", "{0.host_us:.0f}"),
    ("launches", "{0.launches}+{0.copies}"),
    ("B/param", "{0.bytes_per_param:.0f}"),
    ("GB/s", "{0.gbps:.1f}"),
    ("% of copy", "{0.percent_of_copy:.1f}"),
    ("% at 28 B", "{0.necessary_percent:.1f}"),
)


def table(rows: Sequence[Row], *, on_gpu: bool) -> str:
    """Return an aligned table; a contender without times has its reason under it."""
    headings = [h for h in _HEADINGS if on_gpu or h[0] not in ("host us", "launches")]
    timed = [row for row in rows if row.median_us is not None]
    cells = [[title for title, _ in headings]]
    cells += [[form.format(row) for _, form in headings] for row in timed]
    widths = [max(len(line[i]) for line in cells) for i in range(len(headings))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    lines += [f"{row.contender} (clip {row.clip}): {row.note}" for row in rows if row.note]
    return "\n".join(lines)


def draw(file: Path, rows: Sequence[Row], circumstances: Circumstances) -> bool:
    """Draw a bar per contender; returns False where matplotlib is missing."""
    try:
        from figure_style import COLOURS, stacked_axes
    except ImportError:
        return False
    timed = [row for row in rows if row.median_us is not None]
    clips = list(dict.fromkeys(row.clip for row in timed))
    heights = tuple(0.7 + 0.32 * sum(row.clip == clip for row in timed) for clip in clips)
    with stacked_axes(file, heights) as (_, axes):
        for clip, axis in zip(clips, axes, strict=True):
            group = [row for row in timed if row.clip == clip][::-1]
            shares = [row.necessary_percent or 0.0 for row in group]
            # Ours, the first contender, stands out at the top.
            colours = [COLOURS[5]] * (len(group) - 1) + [COLOURS[0]]
            bars = axis.barh([row.contender for row in group], shares, color=colours)
            texts = [f"{row.median_us / 1e3:,.2f} ms" for row in group if row.median_us]
            axis.bar_label(bars, texts, padding=4)
            axis.set_title(f"clip: {clip.replace('_', ' ')}")
            axis.set_xlim(0, max(118.0, 1.18 * max(row.necessary_percent or 0.0 for row in timed)))
            axis.axvline(100, color="black", linewidth=1)
            axis.grid(axis="y", visible=False)
        axes[0].set_title(
            f"{timed[0].model}, {timed[0].n_params:,} parameters, fp32\n"
            f"{circumstances.hardware}, torch {circumstances.torch}\n\nclip: "
            f"{clips[0].replace('_', ' ')}"
        )
        axes[-1].set_xlabel("share of the copy bandwidth at 28 bytes per parameter [%]")
    return True


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
