"""The figure of a benchmark: how near each step comes to the memory's own speed.

python bench/bench_figure.py bench/results/bench_step_*.csv     # draws them again
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench_report import Circumstances, Row, read_csv
from storage import Storage, necessary_bytes

_TITLES = {
    "per_tensor": "clipped per tensor",
    "global": "clipped by the norm of all tensors",
    "none": "not clipped",
}


def draw(file: Path, rows: Sequence[Row], circumstances: Circumstances) -> bool:
    """Draw a bar per contender; returns False where matplotlib is missing."""
    try:
        from figure_style import COLOURS, stacked_axes
    except ImportError:
        return False
    timed = [row for row in rows if row.median_us is not None]
    clips = list(dict.fromkeys(row.clip for row in timed))
    if not clips:
        return False
    counts = [sum(row.clip == clip for row in timed) for clip in clips]
    heights = tuple(0.85 + 0.3 * max(count, 3) for count in counts)
    longest = max(row.necessary_percent or 0.0 for row in timed)
    dtype, optimizer = timed[0].dtype, timed[0].optimizer
    same = (
        ""
        if dtype == "fp32"
        else "multiples are of ours with the same master; moments as each keeps them\n"
    )
    n_bytes = necessary_bytes(dtype, optimizer)
    # Reads every gradient twice: the norm of all tensors comes before the first update.
    global_limit = 100 * n_bytes / (n_bytes + Storage(dtype).norm_bytes)
    with stacked_axes(file, heights, width=8.5) as (figure, axes):
        for clip, axis in zip(clips, axes, strict=True):
            group = [row for row in timed if row.clip == clip][::-1]
            shares = [row.necessary_percent or 0.0 for row in group]
            # Ours, the first contender, stands out at the top.
            own = [row.contender == timed[0].contender for row in group]
            colours = [COLOURS[0] if each else COLOURS[5] for each in own]
            bars = axis.barh([_name(row) for row in group], shares, color=colours)
            # White under the text, because a limit may pass behind it.
            labels = axis.bar_label(bars, [_text(row) for row in group], padding=5)
            for label in labels:
                label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})
            for label, is_own in zip(labels, own, strict=True):
                label.set_fontweight("bold" if is_own else "normal")
            axis.set_title(_TITLES[clip], fontweight="bold")
            # Room for the text of the longest bar.
            axis.set_xlim(0, max(125.0, 1.27 * longest))
            axis.axvline(100, color="black", linewidth=1.2)
            if clip == "global":
                axis.axvline(global_limit, color="black", linewidth=1.2, linestyle=":")
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
        figure.suptitle(
            f"One step of {_subject(timed[0])}, {timed[0].n_params / 1e6:,.0f} M parameters, "
            f"{dtype}: time (x ours), share of a copy's speed\n"
            f"{same}{_where(circumstances)}, copy {timed[0].copy_gbps or 0:,.0f} GB/s",
            x=0.01,
            ha="left",
            fontsize=11,
        )
        twice = "; dotted: gradients read twice" if "global" in clips else ""
        read = "p, g, m, v read" if optimizer == "adam" else "g, m, v read, p twice"
        axes[-1].set_xlabel(
            f"% of copy bandwidth at {n_bytes:.0f} bytes per parameter (solid: {read}, "
            f"p, m, v\nwritten, m and v in fp32{twice})"
        )
    return True


def _subject(row: Row) -> str:
    return row.model if row.optimizer == "adam" else f"{row.model} with {row.optimizer.upper()}"


def _name(row: Row) -> str:
    return row.contender if row.master == "none" else f"{row.contender}, master {row.master}"


def _text(row: Row) -> str:
    """Its time, and how many times as long as ours it takes."""
    milliseconds = (row.median_us or 0.0) / 1e3
    text = f"{milliseconds:,.2f} ms" if milliseconds < 100 else f"{milliseconds:,.0f} ms"
    ratio = row.ours_over_this
    return text if ratio is None or ratio == 1.0 else f"{text}  ({1 / ratio:,.2f} x)"


def _where(circumstances: Circumstances) -> str:
    threads = f", {circumstances.threads} threads" if circumstances.device == "cpu" else ""
    return f"{circumstances.hardware}{threads}, torch {circumstances.torch}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if not draw(Path(name).with_suffix(".png"), *read_csv(Path(name))):
            sys.exit(f"{name}: not drawn; no matplotlib, or no times in it")
