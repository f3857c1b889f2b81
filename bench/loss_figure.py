"""Figures of training runs: losses and lr over the steps, and runs against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from figure_style import COLOURS, stacked_axes
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter
from run_log import Curves


def plot_run(run: Curves, title: str, file: Path) -> None:
    """Losses of one run above its learning rate."""
    with stacked_axes(file, (3.6, 1.6)) as (_, (loss, lr)):
        loss.plot(run.steps, run.losses, color=COLOURS[0], alpha=0.25, linewidth=0.8)
        loss.plot(*running_mean(run), color=COLOURS[0], label="training (running mean)")
        draw_held_out(loss, run, COLOURS[1], "held out")
        loss.set(title=title, ylabel="loss of masked tokens (nats)")
        loss.legend()
        lr.plot(run.steps, run.lrs, color="#444444")
        lr.set(ylabel="learning rate", xlabel="step", xlim=(0, None), ylim=(0, None))
        formatter = ScalarFormatter(useMathText=True)
        formatter.set_powerlimits((-2, 3))
        lr.yaxis.set_major_formatter(formatter)


def plot_comparison(runs: Sequence[Curves], title: str, file: Path, *, base: Curves) -> None:
    """Losses of several runs above their distance from one of them."""
    with stacked_axes(file, (3.6, 2.4)) as (_, (loss, distance)):
        for index, run in enumerate(runs):
            # Curves that agree hide each other: the later ones are drawn narrower and dashed.
            style = "-" if index == 0 else (0, (4, 2 + 2 * index))
            width = 3.0 if index == 0 else 1.4
            colour = COLOURS[index]
            loss.plot(*running_mean(run), color=colour, linestyle=style, linewidth=width)
            draw_held_out(loss, run, colour, None)
            loss.plot([], [], color=colour, linestyle=style, linewidth=width, label=run.label)
        loss.plot([], [], "o", color="#666666", markersize=4, label="held out (points)")
        loss.set(title=title, ylabel="loss of masked tokens (nats)")
        loss.legend()
        for index, run in enumerate(runs):
            if run is not base:
                gap = np.abs(np.subtract(run.losses, base.losses))
                distance.plot(
                    run.steps,
                    np.where(gap > 0, gap, np.nan),
                    color=COLOURS[index],
                    linewidth=0.9,
                    label=run.label,
                )
        distance.set(
            title=f"distance of the training losses from {base.label}",
            yscale="log",
            ylabel="difference (nats)",
            xlabel="step",
            xlim=(0, None),
        )
        distance.legend()


def running_mean(run: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Mean over a window of 2 % of the steps, at the window's middle."""
    width = max(1, len(run.losses) // 50)
    means = np.convolve(run.losses, np.full(width, 1 / width), mode="valid")
    return np.asarray(run.steps[: len(means)]) + (width - 1) / 2, means


def draw_held_out(axes: Axes, run: Curves, colour: str, label: str | None) -> None:
    axes.plot(
        run.held_out_steps,
        run.held_out_losses,
        "o-",
        color=colour,
        markersize=4,
        linewidth=1.2 if label else 0.0,
        label=label,
    )
