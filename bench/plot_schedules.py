"""Draws every schedule as the optimizers use it: the multiplier of the base lr over a training.

    python bench/plot_schedules.py [FILE.png]

The default is bench/results/schedules.png, which the README shows.
"""

from __future__ import annotations

import sys
from pathlib import Path

from figure_style import COLOURS, stacked_axes

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # a build in the source tree needs no installation

from bertadam_cuda import schedules  # noqa: E402

T_TOTAL, WARMUP = 7500, 0.06
#: Of the schedules that take arguments; the decays are those of DeepSpeed's 64k-batch recipe.
ARGS = {
    "warmup_linear_decay_exp": {"decay_rate": 0.9, "decay_steps": 250},
    "warmup_exp_decay_exp": {"decay_rate": 0.9, "decay_steps": 250},
    "warmup_cosine_hard_restarts": {"cycles": 3},
    "warmup_cosine_warmup_restarts": {"cycles": 3},
}
PANELS = {
    "The six schedules of BertAdam": (
        "warmup_linear",
        "warmup_cosine",
        "warmup_constant",
        "warmup_linear_decay_exp",
        "warmup_exp_decay_exp",
        "warmup_exp_decay_poly",
    ),
    "Also by name": (
        "warmup_poly",
        "warmup_linear_hf",
        "warmup_cosine_hf",
        "warmup_cosine_hard_restarts",
        "warmup_cosine_warmup_restarts",
        "none",
    ),
}


def plot(file: Path) -> None:
    """Write the figure: one panel per family, one line per schedule, past t_total as well."""
    positions = range(0, T_TOTAL + T_TOTAL // 10, 5)
    with stacked_axes(file, (3.2, 3.2)) as (_, axes):
        for axis, (title, names) in zip(axes, PANELS.items(), strict=True):
            for name, colour in zip(names, COLOURS, strict=True):
                rule = schedules.multiplier(name, WARMUP, T_TOTAL, ARGS.get(name))
                axis.plot(positions, [rule(p) for p in positions], label=name, color=colour)
            axis.axvline(T_TOTAL, color="#888888", linewidth=0.8, linestyle=":")
            axis.set_title(f"{title} (t_total={T_TOTAL}, warmup={WARMUP})")
            axis.set_ylabel("multiplier of lr")
            axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes[-1].set_xlabel("update")


if __name__ == "__main__":
    plot(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench/results/schedules.png")
