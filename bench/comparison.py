"""Our BertAdam against the plain PyTorch loop: equal weights, equal batches, and their losses.

Two correct implementations round differently, and training amplifies it. How much is allowed is
measured, not guessed: references that add up their norms in different orders are as right as each
other, so their spread is what rounding alone does to this run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from corpus import Corpus
from loss_figure import plot_comparison
from pretraining import load_text, start_record
from progress import run
from run_log import Curves, RunLog, curves
from settings import Settings
from training import Training
from vocabulary import EncodedCorpus

REDUCTION_CHUNKS = (1, 7, 64)
ALLOWED_RATIO = 2.0


def compare(settings: Settings, corpus_files: Sequence[Path], out: Path, n_references: int) -> int:
    """Train with BertAdam and with `n_references` plain loops; returns the exit status.

    0 with one reference; with more, 0 if BertAdam's largest distance from the first reference is
    at most twice the largest distance between two references, else 1.
    """
    if n_references > 1 and settings.clip == "none":
        raise ValueError(
            "pretrain_bert: --reference-runs differ in their norms, which --clip none does not"
            " compute; choose per_tensor or global"
        )
    if settings.dtype != "fp32":
        raise ValueError(
            f"pretrain_bert: --compare reference is for --dtype fp32, found {settings.dtype}: the"
            " plain loop keeps its moments in the parameters' dtype, which is another rule"
        )
    corpus, texts = load_text(settings, corpus_files, out)
    variants = {"bertadam": replace(settings, optimizer="bertadam")}
    for chunks in REDUCTION_CHUNKS[:n_references]:
        label = f"reference, {chunks} chunk{'s'[: chunks > 1]}"
        variants[label] = replace(settings, optimizer="reference", reduction_chunks=chunks)
    runs = train_all(variants, corpus, texts, out)
    figure = out / "comparison.png"
    plot_comparison(runs, f"BERT-{settings.size}, seed {settings.seed}", figure, base=runs[1])
    print(f"figure: {figure}")
    return judge(runs[0], runs[1:])


def train_all(
    variants: Mapping[str, Settings], corpus: Corpus, texts: Sequence[EncodedCorpus], out: Path
) -> list[Curves]:
    """Train one after the other on the same text, each with a log of its own."""
    runs = []
    for label, variant in variants.items():
        training = Training(variant, texts)
        log = RunLog(out / f"log-{label.replace(', ', '-').replace(' ', '-')}.jsonl")
        log.add("start", **start_record(training, corpus, texts))
        run(training, log, label, until=variant.total_steps)
        log.close()
        runs.append(curves(label, log.records))
    return runs


def held_out(run: Curves, base: Curves) -> str:
    """One line: its last held-out loss, and how far that is from the base's."""
    loss = run.held_out_losses[-1]
    line = f"{run.label:<26} held out {loss:.4f} nats"
    return line if run is base else f"{line}, {loss - base.held_out_losses[-1]:+.4f}"


def judge(ours: Curves, references: Sequence[Curves]) -> int:
    """Print the distances of the curves; returns 1 if ours is outside the allowed band."""
    distance, held_out = largest_difference(ours, references[0])
    print(f"bertadam and reference: training {distance:.3g}, held out {held_out:.3g} nats apart")
    if len(references) == 1:
        return 0
    pairs = [largest_difference(*pair) for pair in combinations(references, 2)]
    spread = max(pair[0] for pair in pairs)
    print(
        f"{len(references)} references: training {spread:.3g}, held out"
        f" {max(pair[1] for pair in pairs):.3g} nats apart"
    )
    if spread == 0 and distance > 0:
        print(
            "the references do not differ at all: no gradient was clipped. Choose a smaller"
            " --max-grad-norm"
        )
        return 1
    ratio = distance / spread if spread > 0 else 0.0
    passed = ratio <= ALLOWED_RATIO
    print(
        f"ratio of the training losses' distances: {ratio:.2f}, allowed {ALLOWED_RATIO:.0f}:"
        f" {'passed' if passed else 'FAILED'}"
    )
    return 0 if passed else 1


def largest_difference(one: Curves, other: Curves) -> tuple[float, float]:
    """Largest distance of the training losses, and of the held-out losses, at equal steps."""
    gaps = (
        np.abs(np.subtract(one.losses, other.losses)),
        np.abs(np.subtract(one.held_out_losses, other.held_out_losses)),
    )
    training, held_out = (float(np.max(np.where(np.isnan(gap), np.inf, gap))) for gap in gaps)
    return training, held_out
