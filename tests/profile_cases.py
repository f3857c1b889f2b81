"""Profiles of a second: a command line as small as it can be, and made-up optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

BATCHES = (2, 3)
N_ITERATIONS, N_ROUNDS = 3, 3
MICRO = (
    *("--profile", "--model", "tiny", "--vocab-size", "200", "--seq-len", "16", "--dtype", "fp32"),
    *("--profile-batches", *map(str, BATCHES)),
)

Rows = list[dict[str, Any]]
Profiler = Callable[..., tuple[int, Rows]]
Build = Callable[[list[dict[str, Any]]], Callable[[], object]]


def compare_with(monkeypatch: pytest.MonkeyPatch, name: str, build: Build) -> None:
    """Let the profile measure ours and an optimizer that no check looks at."""
    import measurement
    import profile_iteration
    from contenders import OURS, Contender

    ours = next(each for each in profile_iteration.candidates() if each.name == OURS)
    made_up = Contender(name, "global", 28.0, build, False)
    check = measurement.check
    monkeypatch.setattr(profile_iteration, "candidates", lambda *stored: [ours, made_up])
    monkeypatch.setattr(
        measurement, "check", lambda each, device: each is made_up or check(each, device)
    )


def numbers(row: dict[str, Any], *names: str) -> list[float]:
    return [float(row[name]) for name in names]
