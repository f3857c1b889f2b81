"""A pretraining run of a second: a text, a model and a command line as small as they can be."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Program = Callable[..., int]  # `main` with some options set; returns the exit status

MICRO = [
    *("--device", "cpu", "--vocab-size", "200", "--seq-len", "16", "--batch", "8"),
    *("--steps", "20", "--eval-every", "5", "--lr", "1e-2"),
]
#: Of each optimizer for such a run: layerwise ones change a tensor by a part of its length.
LR = {
    **dict.fromkeys(("bertadam", "adamw", "reference", "torch"), 1e-2),
    **dict.fromkeys(("lamb", "nvlamb", "lars"), 0.1),
}


def write_corpus(file: Path, seed: int = 0) -> Path:
    """Write 60 documents of four lines; few words are frequent, which a model learns at once."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 6))) for _ in range(60)]
    weights = [1 / (1 + i) for i in range(len(words))]
    documents = [
        "\n".join(" ".join(rng.choices(words, weights, k=12)) for _ in range(4)) for _ in range(60)
    ]
    file.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return file


def read_log(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def losses(records: list[dict[str, Any]], event: str) -> dict[int, float]:
    """Loss at each step; a step that is logged twice is an error."""
    found: dict[int, float] = {}
    for record in records:
        if record["event"] == event:
            assert record["step"] not in found, f"step {record['step']} is logged twice"
            found[record["step"]] = record["loss"]
    return found


PIECES = ("--dropout", 0.1)  # so that torch's generator matters


def trained(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def assert_same_run(tmp_path: Path, *, ends_at: int = 20) -> None:
    """Logs and final weights of out `whole` and `pieces` agree in every bit."""
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "pieces")]
    whole, pieces = (losses(records, "train") for records in logs)
    assert list(whole) == list(range(ends_at))
    assert whole == pieces
    whole, pieces = (losses(records, "held_out") for records in logs)
    assert whole == {step: loss for step, loss in pieces.items() if step in whole}
    one, other = (trained(tmp_path / f"{name}.pt") for name in ("whole", "pieces"))
    assert one["model"].keys() == other["model"].keys()
    for name, weight in one["model"].items():
        assert torch.equal(weight, other["model"][name]), name
    assert torch.equal(one["cpu_generator"], other["cpu_generator"])


def stop(program: Program, tmp_path: Path, *more: object, at: int = 7) -> Path:
    """Train whole, and again up to step `at`; returns the checkpoint of the second run."""
    assert program(*PIECES, *more, "--checkpoint", tmp_path / "whole.pt", out="whole") == 0
    file = tmp_path / "pieces.pt"
    pieces = (*PIECES, *more, "--checkpoint", file, "--stop-after", at)
    assert program(*pieces, out="pieces") == 0
    assert read_log(tmp_path / "pieces" / "log.jsonl")[-1]["step"] == at
    torch.manual_seed(123)  # nothing may come from what this process did before
    return file
