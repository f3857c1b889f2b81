"""One look for all figures of this folder, made without a display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("Agg")

# Okabe and Ito's palette: distinct also for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_STYLE = {
    "figure.facecolor": "white",
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@contextmanager
def stacked_axes(
    file: Path, heights: tuple[float, ...], width: float = 8.0
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Axes above each other that share x, heights in inches; the figure is saved at the end."""
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            len(heights),
            squeeze=False,
            sharex=True,
            figsize=(width, sum(heights)),
            height_ratios=heights,
            layout="constrained",
        )
        yield figure, list(axes[:, 0])
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)
        plt.close(figure)
