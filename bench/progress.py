"""Drives a run to its end: progress bar, held-out losses, log records and checkpoints."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from phases import count_tokens, phase_index
from run_log import RunLog
from tqdm import tqdm
from training import Training

READ_EVERY = 10  # steps between two looks at the losses; each one waits for the GPU


def run(
    training: Training, log: RunLog, label: str, *, until: int, checkpoint: Path | None = None
) -> None:
    """Train up to `until` updates; evaluate, and save if asked, at regular steps and at the end."""
    settings = training.settings
    bar = tqdm(
        desc=label,
        total=settings.total_steps,
        initial=training.step,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    )
    if training.step == 0:
        log.add("held_out", step=0, loss=training.held_out_loss(), **loss_scale(training))
    n_read = training.step
    start, first_step, evaluation_s = time.perf_counter(), training.step, 0.0
    while training.step < until:
        training.advance()
        step = training.step
        bar.update()
        begins = training.begins_phase
        evaluate = step % settings.eval_every == 0 or step == until or begins
        if step % READ_EVERY == 0 or evaluate:
            n_read = read_losses(training, log, n_read)
            shown = {"loss": f"{log.records[-1]['loss']:.3f}"}
            bar.set_postfix({**shown, "held-out": f"{last_held_out(log):.3f}"}, refresh=False)
        if evaluate:
            before = time.perf_counter()
            if begins:
                log_phase(training, log)
            log.add("held_out", step=step, loss=training.held_out_loss(), **loss_scale(training))
            if checkpoint is not None:
                training.save(checkpoint, log.records)
            evaluation_s += time.perf_counter() - before
    bar.close()
    n_tokens = count_tokens(training.phases, first_step, training.step)
    if n_tokens > 0:
        seconds = time.perf_counter() - start - evaluation_s
        log.add("end", step=training.step, seconds=seconds, tokens_per_s=n_tokens / seconds)


def read_losses(training: Training, log: RunLog, n_read: int) -> int:
    """Log the losses from update `n_read` on; returns the number of updates logged so far."""
    for step, loss in enumerate(training.losses[n_read : training.step].tolist(), start=n_read):
        log.add("train", step=step, loss=loss, lr=training.lr(step))
    return training.step


def log_phase(training: Training, log: RunLog) -> None:
    """Say what begins, and where the phase that ends has arrived on its own sequences."""
    phase = training.phases[phase_index(training.phases, training.step)]
    log.add(
        "phase",
        step=training.step,
        seq_len=phase.seq_len,
        batch=phase.batch,
        lr=phase.lr,
        held_out_before=training.held_out_loss_before(),
    )


def loss_scale(training: Training) -> dict[str, float]:
    """What a record says of it, where there is one."""
    scale = training.loss_scale
    return {} if scale is None else {"loss_scale": scale}


def last_held_out(log: RunLog) -> float:
    """The newest held-out loss of the log."""
    return next(r["loss"] for r in reversed(log.records) if r["event"] == "held_out")
