"""One pretraining run: model, optimizer and batches, advanced step by step and saved whole.

A run that is saved, loaded in another process and continued gives the same bits as one that never
stopped: batches depend on their number alone, and torch's generators are part of the checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bert_model import MAX_POSITIONS, SIZES, masked_loss, random_bert
from masking import TrainingBatches, held_out_batches
from optimizers import build_stepper, lr_multiplier
from phases import phase_index
from settings import Settings
from storage import DTYPES
from vocabulary import EncodedCorpus

CHECKPOINT_FORMAT = 3


class Training:
    """The state of a run. `step` counts the updates done; `losses` holds one value for each."""

    def __init__(self, settings: Settings, texts: Sequence[EncodedCorpus]) -> None:
        self.phases = settings.phases
        for phase, name in zip(self.phases, ("--seq-len", "--phase2-seq-len"), strict=False):
            if phase.seq_len > MAX_POSITIONS:
                raise ValueError(
                    f"pretrain_bert: {name} is {phase.seq_len}, expected at most {MAX_POSITIONS}"
                )
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = torch.device(settings.device)
        self.model = random_bert(SIZES[settings.size], texts[0].vocab_size, settings.dropout)
        self.model.to(self.device, DTYPES[settings.dtype]).train()
        self.stepper = build_stepper(self.model, settings)
        self.step = 0
        # Losses stay on the device, so that reading them does not hold up every step.
        self.losses = torch.zeros(settings.total_steps, device=self.device)
        self._multiplier = lr_multiplier(settings)
        self._text_digest = "-".join(text.digest for text in texts)
        of_phases = list(zip(texts, self.phases, strict=True))
        self._batches = [
            TrainingBatches(text.train, text.vocab_size, phase.batch, settings.seed)
            for text, phase in of_phases
        ]
        self._held_out = [
            held_out_batches(text.held_out, text.vocab_size, phase.batch)
            for text, phase in of_phases
        ]

    @property
    def n_parameters(self) -> int:
        return sum(param.numel() for param in self.model.parameters())

    @property
    def loss_scale(self) -> float | None:
        """What the loss is multiplied by before backward; None where it is not. Waits for a GPU."""
        scaler = self.stepper.scaler
        return None if scaler is None else scaler.get_scale()

    def lr(self, step: int) -> float:
        """Learning rate of update number `step`, counted from 0.

        With a loss scale, BertAdam lags behind by the updates that an overflow has cost.
        """
        return self.settings.lr * self._multiplier(step)

    @property
    def begins_phase(self) -> bool:
        """Whether the next update is the first of a phase after the first one."""
        return any(0 < phase.first_step == self.step for phase in self.phases)

    def advance(self) -> None:
        """Do one update. The host does not wait for a GPU."""
        index = phase_index(self.phases, self.step)
        phase = self.phases[index]
        if self.begins_phase:
            self.stepper.begin_phase(phase)
        first = (self.step - phase.first_step) * phase.accumulate
        for number in range(first, first + phase.accumulate):
            batch = self._batches[index][number].to(self.device)
            with self._autocast():
                loss = masked_loss(self.model, batch) / phase.accumulate
            self.stepper.backward(loss)
            self.losses[self.step] += loss.detach()
        self.stepper.step()
        self.stepper.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def held_out_loss(self) -> float:
        """Mean loss in nats per predicted token of the validation set; leaves no trace.

        Its sequences are as long as those of the next update.
        """
        return self._evaluated(phase_index(self.phases, self.step))

    def held_out_loss_before(self) -> float:
        """The same with sequences as long as those of the last update."""
        return self._evaluated(phase_index(self.phases, self.step - 1))

    @torch.no_grad()
    def _evaluated(self, index: int) -> float:
        self.model.eval()
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for batch in self._held_out[index]:
            with self._autocast():
                total += masked_loss(self.model, batch.to(self.device)) * len(batch.labels)
        self.model.train()
        return float(total) / sum(len(batch.labels) for batch in self._held_out[index])

    def save(self, file: Path, records: list[dict[str, Any]]) -> None:
        """Write everything that the continuation needs, and the log's records so far."""
        on_gpu = self.device.type == "cuda"
        checkpoint = {
            "format": CHECKPOINT_FORMAT,
            "settings": asdict(self.settings),
            "text_digest": self._text_digest,
            "step": self.step,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "stepper": self.stepper.state_dict(),
            "cpu_generator": torch.get_rng_state(),
            "gpu_generator": torch.cuda.get_rng_state(self.device) if on_gpu else None,
            "records": records,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")
        torch.save(checkpoint, unfinished)
        unfinished.replace(file)  # the previous checkpoint lives until the new one is whole

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint of the same settings and text.

        Raises:
            ValueError: the text is another one.
        """
        if checkpoint["text_digest"] != self._text_digest:
            raise ValueError(
                "pretrain_bert: the checkpoint was made with another text (or another version of"
                " Python or of tokenizers); resume with the same --corpus"
            )
        self.model.load_state_dict(checkpoint["model"])
        self.stepper.load_state_dict(checkpoint["stepper"])
        self.step = checkpoint["step"]
        self.losses.copy_(checkpoint["losses"])
        torch.set_rng_state(checkpoint["cpu_generator"])
        if checkpoint["gpu_generator"] is not None:
            torch.cuda.set_rng_state(checkpoint["gpu_generator"], self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.autocast)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; executes nothing that is in the file."""
    if not file.is_file():
        raise ValueError(f"pretrain_bert: --resume {file}: there is no such file")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what is no checkpoint can make the reader fail in any way
        raise ValueError(
            f"pretrain_bert: --resume {file}: cannot be read as a checkpoint"
            f" ({type(error).__name__}); it is damaged, or no checkpoint of this program"
        ) from error
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != CHECKPOINT_FORMAT:
        raise ValueError(
            f"pretrain_bert: --resume {file}: found format {found}, expected {CHECKPOINT_FORMAT};"
            " this is no checkpoint of this program"
        )
    return checkpoint
