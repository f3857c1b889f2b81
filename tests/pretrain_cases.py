"""A pretraining run of a second: a text, a model and a command line as small as they can be."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Program = Callable[..., int]  # `main` with some options set; returns the exit status

MICRO = [
    *("--device", "cpu", "--vocab-size", "200", "--seq-len", "16", "--batch", "8"),
    *("--steps", "20", "--eval-every", "5", "--lr", "1e-2"),
]


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
