"""What normalizing the gradients before the moments does: NVLAMB with it, without it, and BertAdam.

Equal weights, equal batches, large ones from many small ones. Nothing is judged: the held-out
losses are what to look at. BertAdam clips as it always does, each tensor on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comparison import held_out, train_all
from loss_figure import plot_comparison
from pretraining import load_text
from run_log import write_curves
from settings import Preset, Settings, complete, option

NORMALIZED, PLAIN, BERTADAM = "NVLAMB", "NVLAMB, not normalized", "BertAdam"
#: Large batches, as many as fit some minutes. At these rates all updates together are about as long
#: as the tensor that they change; with a tenth of that the tests' micro model hardly learns.
DEFAULTS: dict[str, Preset] = {
    "cpu": {"batch": 32, "accumulate": 4, "steps": 200, "warmup": 0.25, "lr": 1e-2},
    "cuda": {
        "size": "small",
        "batch": 512,
        "accumulate": 8,
        "steps": 250,
        "warmup": 0.25,
        "lr": 1e-2,
    },
}
#: Of BertAdam, whose updates are not scaled to the tensors: twice a small GPU's preset, which is
#: for batches of 128.
ADAM_LR = 1e-3
_CHOSEN_HERE = ("optimizer", "clip")


def compare(
    given: Mapping[str, Any], corpus_files: Sequence[Path], out: Path, adam_lr: float | None
) -> int:
    """Train three times; write logs, `normalization.csv` and `.png`. Returns the exit status."""
    variants = chosen_settings(given, ADAM_LR if adam_lr is None else adam_lr)
    settings = variants[NORMALIZED]
    runs = train_all(variants, *load_text(settings, corpus_files, out), out)
    figure, table = out / "normalization.png", out / "normalization.csv"
    n_sequences = settings.phases[0].sequences
    title = f"BERT-{settings.size}, {settings.steps:,} steps of {n_sequences:,} sequences"
    plot_comparison(runs, f"{title}, seed {settings.seed}", figure, base=runs[0])
    write_curves(table, runs)
    for run in runs:
        print(held_out(run, runs[0]))
    print(f"figure: {figure}\ncurves: {table}")
    return 0


def chosen_settings(given: Mapping[str, Any], adam_lr: float) -> dict[str, Settings]:
    """Settings of each run by its label: what is given, and what the comparison is about."""
    if named := [name for name in _CHOSEN_HERE if given.get(name) is not None]:
        raise ValueError(
            "pretrain_bert: --compare normalization sets these itself: leave out"
            f" {', '.join(map(option, named))}"
        )
    chosen = {name: value for name, value in given.items() if value is not None}
    device = torch.device(complete({"device": chosen.get("device")}).device)
    shared = {**DEFAULTS[device.type], **chosen}
    normalized = complete({**shared, "optimizer": "nvlamb"})
    if normalized.max_grad_norm <= 0:
        raise ValueError(
            f"pretrain_bert: --max-grad-norm is {normalized.max_grad_norm}, expected more than 0"
            " with --compare normalization, whose second run has none"
        )
    return {
        NORMALIZED: normalized,
        PLAIN: complete({**shared, "optimizer": "nvlamb", "max_grad_norm": 0.0}),
        BERTADAM: complete({**shared, "optimizer": "bertadam", "lr": adam_lr}),
    }
