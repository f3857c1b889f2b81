"""What bf16 parameters cost: their losses, stored in three ways, against those of fp32.

Equal weights (up to the rounding at the beginning), equal batches, our optimizer. Nothing is
judged: runs that differ by roundings drift apart, so the held-out losses are what to look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import held_out, train_all
from loss_figure import plot_comparison
from pretraining import load_text
from settings import Settings, complete

#: Label -> how its parameters are stored.
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "fp32", "master_weights": "none"},
    "bf16, remainder": {"dtype": "bf16", "master_weights": "remainder"},
    "bf16, stochastic rounding": {"dtype": "bf16", "stochastic_rounding": True},
    "bf16, no master": {"dtype": "bf16", "master_weights": "none"},
}
_CHOSEN_HERE = ("optimizer", "dtype", "autocast", "master_weights", "stochastic_rounding")


def compare(given: Mapping[str, Any], corpus_files: Sequence[Path], out: Path) -> int:
    """Train once for each way to store; write logs and `storage.png`. Returns the exit status."""
    if named := [name for name in _CHOSEN_HERE if given.get(name) is not None]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in named)
        raise ValueError(f"pretrain_bert: --compare storage sets these itself: leave out {options}")
    variants: dict[str, Settings] = {
        label: complete({**given, **stored}) for label, stored in VARIANTS.items()
    }
    settings = variants["fp32"]
    runs = train_all(variants, *load_text(settings, corpus_files, out), out)
    figure = out / "storage.png"
    title = f"BERT-{settings.size}, {settings.steps:,} steps, seed {settings.seed}"
    plot_comparison(runs, title, figure, base=runs[0])
    for run in runs:
        print(held_out(run, runs[0]))
    print(f"figure: {figure}")
    return 0
