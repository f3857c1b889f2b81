"""The log of a run: JSON lines, and the curves that can be read from them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class RunLog:
    """Records in memory and in a file, which is complete after every `add`."""

    def __init__(self, file: Path, records: Iterable[Record] = ()) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self.records: list[Record] = []
        self._stream = file.open("w", encoding="utf-8")
        for record in records:
            self._write(record)

    def add(self, event: str, **values: Any) -> None:
        """Append one record; `event` says what its other keys mean."""
        self._write({"event": event, **values})

    def close(self) -> None:
        self._stream.close()

    def _write(self, record: Record) -> None:
        self.records.append(record)
        self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._stream.flush()


@dataclass(frozen=True)
class Curves:
    """Losses in nats: of every update's batch, and of the held-out text after some updates.

    `steps` counts the updates done before, so the first loss has step 0.
    """

    label: str
    steps: list[int]
    losses: list[float]
    lrs: list[float]
    held_out_steps: list[int]
    held_out_losses: list[float]


def curves(label: str, records: Iterable[Record]) -> Curves:
    """Collect the records of events "train" and "held_out"."""
    records = list(records)
    train = [record for record in records if record["event"] == "train"]
    held_out = [record for record in records if record["event"] == "held_out"]
    return Curves(
        label=label,
        steps=[record["step"] for record in train],
        losses=[record["loss"] for record in train],
        lrs=[record["lr"] for record in train],
        held_out_steps=[record["step"] for record in held_out],
        held_out_losses=[record["loss"] for record in held_out],
    )


def write_curves(file: Path, runs: Iterable[Curves]) -> None:
    """Write one line per run and step; a held-out loss belongs to that many updates done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("run", "step", "lr", "loss", "held_out"))
        for run in runs:
            trained = dict(zip(run.steps, zip(run.lrs, run.losses, strict=True), strict=True))
            held_out = dict(zip(run.held_out_steps, run.held_out_losses, strict=True))
            for step in sorted({*trained, *held_out}):
                lr, loss = trained.get(step, ("", ""))
                writer.writerow((run.label, step, lr, loss, held_out.get(step, "")))
