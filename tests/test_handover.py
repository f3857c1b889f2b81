"""A litmus test: what blocks hand to each other arrives whole, in time and once."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from native import load_cuda

pytestmark = pytest.mark.gpu

OUTCOMES = ("completed", "torn", "stale", "unordered", "lost")


@pytest.fixture(scope="module")
def litmus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_cuda("handover_litmus.cu", tmp_path_factory.mktemp("litmus"))


def outcomes_of(run: Any, n_launches: int) -> tuple[dict[str, int], int]:
    """How often each outcome was seen, and how many rounds there should have been."""
    counts = (ctypes.c_ulonglong * len(OUTCOMES))()
    n_rounds = ctypes.c_ulonglong()
    error = run(n_launches, counts, ctypes.byref(n_rounds))
    assert error == 0, f"CUDA error {error}"
    return dict(zip(OUTCOMES, counts, strict=True)), n_rounds.value


def test_millions_of_hand_overs_lose_nothing(litmus: Any) -> None:
    counts, n_rounds = outcomes_of(litmus.run_handover, 300)
    assert n_rounds > 1_000_000
    assert counts == {"completed": n_rounds, "torn": 0, "stale": 0, "unordered": 0, "lost": 0}


def test_a_broken_hand_over_is_noticed(litmus: Any) -> None:
    """Arrivals ahead of the stores, one half after the other, and tags that nobody looks at."""
    counts, n_rounds = outcomes_of(litmus.run_broken_handover, 10)
    assert counts["completed"] == n_rounds
    assert counts["torn"] > 0
    assert counts["stale"] > 0
    assert counts["unordered"] > 0
