"""The main job from text to figure: corpus, vocabulary, training, log and plot."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from corpus import Corpus, load_corpus
from loss_figure import plot_run
from loss_scaling import OUR_SCALER
from progress import run
from run_log import RunLog, curves
from settings import Settings, complete, differences
from training import Training, read_checkpoint
from vocabulary import EncodedCorpus, encode_corpus

import bertadam_cuda

# Parameters per training token from which on the note is given. Measured with the defaults: tiny
# (2 per token) generalises after 13 epochs, base (more than 200) learns the text by heart.
OVERFITTING_RATIO = 10


def pretrain(
    given: Mapping[str, Any],
    *,
    corpus_files: Sequence[Path],
    out: Path,
    checkpoint: Path | None = None,
    resume: Path | None = None,
    stop_after: int | None = None,
    kind: type[Training] = Training,
) -> Training:
    """Train once and write `log.jsonl` and `losses.png` to `out`.

    Args:
        given: settings that were asked for; the others come from the checkpoint or the device.
        checkpoint: written at every held-out loss and at the end.
        resume: a checkpoint to continue; the settings that are given must be its own.
        stop_after: last step of this process, for runs in pieces.
        kind: how iterations are made.
    """
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"pretrain_bert: --stop-after is {stop_after}, expected at least 1")
    if checkpoint is not None and checkpoint.is_dir():
        raise ValueError(f"pretrain_bert: --checkpoint {checkpoint} is a folder, expected a file")
    saved = read_checkpoint(resume) if resume else None
    settings = Settings(**saved["settings"]) if saved else complete(given)
    if saved and (changed := differences(given, settings)):
        raise ValueError(
            f"pretrain_bert: --resume {resume} continues a run with its own settings, but"
            f" {'; '.join(changed)}; leave these options out"
        )
    corpus, texts = load_text(settings, corpus_files, out)
    training = kind(settings, texts)
    if saved:
        training.restore(saved)
        log = RunLog(out / "log.jsonl", saved["records"])
        log.add("resume", step=training.step, **versions(training.device))
    else:
        log = RunLog(out / "log.jsonl")
        log.add("start", **start_record(training, corpus, texts))
    until = min(stop_after or settings.total_steps, settings.total_steps)
    run(training, log, settings.optimizer, until=until, checkpoint=checkpoint)
    log.close()
    report(log, settings, out)
    return training


def load_text(
    settings: Settings, corpus_files: Sequence[Path], out: Path
) -> tuple[Corpus, list[EncodedCorpus]]:
    """Read and tokenize the text, once for each phase, and say how much it is."""
    start = time.perf_counter()
    corpus = load_corpus(corpus_files)
    lengths = [phase.seq_len for phase in settings.phases]
    texts = [encode_corpus(corpus, settings.vocab_size, n, out / "cache") for n in lengths]
    text = texts[0]
    print(
        f"text: {corpus.source}, {corpus.n_bytes / 1e6:.2f} MB; {text.train.size:,} tokens to"
        f" train on, {text.held_out.size:,} held out; vocabulary {text.vocab_size:,}"
        f" ({time.perf_counter() - start:.1f} s)"
    )
    return corpus, texts


def start_record(
    training: Training, corpus: Corpus, texts: Sequence[EncodedCorpus]
) -> dict[str, Any]:
    """First record of the log; prints its main points."""
    settings, phases, text = training.settings, training.phases, texts[0]
    n_epochs = sum(
        phase.n_steps * phase.sequences / len(of_phase.train)
        for phase, of_phase in zip(phases, texts, strict=True)
    )
    steps = ", then ".join(
        f"{phase.n_steps:,} steps of {phase.sequences} x {phase.seq_len} tokens" for phase in phases
    )
    print(
        f"model: BERT-{settings.size}, {training.n_parameters / 1e6:.2f} M parameters, on"
        f" {settings.device} in {settings.stored_as}; {steps} ({n_epochs:.1f} epochs),"
        f" optimizer {settings.optimizer}"
    )
    note = overfitting_note(training.n_parameters, text.train.size, n_epochs)
    if note:
        print(f"note: {note}")
    return {
        "settings": asdict(settings),
        "stored_as": settings.stored_as,
        "loss_scaler": OUR_SCALER if settings.dtype == "fp16" else None,
        **versions(training.device),
        "corpus": {
            "source": corpus.source,
            "digest": corpus.digest,
            "bytes": corpus.n_bytes,
            "documents": len(corpus.train) + len(corpus.held_out),
            "held_out_documents": len(corpus.held_out),
            "train_tokens": text.train.size,
            "held_out_tokens": text.held_out.size,
            "vocabulary": text.vocab_size,
        },
        "parameters": training.n_parameters,
        "epochs": n_epochs,
        "note": note,
    }


def overfitting_note(n_parameters: int, n_tokens: int, n_epochs: float) -> str | None:
    """A sentence where the text is too small for the model, else None."""
    if n_epochs <= 1 or n_parameters <= OVERFITTING_RATIO * n_tokens:
        return None
    return (
        f"the text is small for this model: {n_parameters / 1e6:.1f} M parameters,"
        f" {n_tokens / 1e6:.2f} M tokens read {n_epochs:.0f} times. It will overfit: the training"
        " loss falls further, the held-out loss stops falling. Give more text with --corpus"
    )


def versions(device: torch.device) -> dict[str, Any]:
    """What a record needs so that its numbers can be explained later."""
    on_gpu = device.type == "cuda"
    return {
        "versions": {
            "python": platform.python_version(),
            "bertadam_cuda": bertadam_cuda.__version__,
            "torch": str(torch.__version__),  # its own class is refused when a checkpoint is read
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "hardware": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def report(log: RunLog, settings: Settings, out: Path) -> None:
    """Write the figure; print where everything is, and how the held-out loss moved."""
    history = curves(settings.optimizer, log.records)
    figure = out / "losses.png"
    title = f"BERT-{settings.size} pretrained with {settings.optimizer} in {settings.stored_as}"
    plot_run(history, title, figure)
    speed = next((r for r in reversed(log.records) if r["event"] == "end"), None)
    if speed:
        print(f"trained in {speed['seconds']:.1f} s, {speed['tokens_per_s']:,.0f} tokens/s")
    print(
        f"held-out loss: {history.held_out_losses[0]:.3f} at step {history.held_out_steps[0]},"
        f" {history.held_out_losses[-1]:.3f} at step {history.held_out_steps[-1]}"
        f" (smallest {min(history.held_out_losses):.3f})"
    )
    print(f"log: {log.file}\nfigure: {figure}")
