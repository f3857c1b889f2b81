"""A pytest plugin with one fixture: the profile of a micro model."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pretrain_cases import Program
from profile_cases import MICRO, N_ITERATIONS, N_ROUNDS, Profiler, Rows

pytest_plugins = ("pretrain_program",)


@pytest.fixture
def profiler(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profiler:
    """The program with --profile; returns its exit status and the lines of the CSV."""
    import pretrain_bert
    import profile_iteration
    from iteration_timing import Rounds

    monkeypatch.setattr(profile_iteration, "N_ITERATIONS", N_ITERATIONS)
    monkeypatch.setattr(profile_iteration, "ROUNDS", Rounds(N_ROUNDS, N_ROUNDS, 0.0))

    def run(*more: object, device: str = "cpu") -> tuple[int, Rows]:
        out = tmp_path / "profile"
        fixed = [*MICRO, "--device", device, "--out", str(out)]
        status = pretrain_bert.main([*fixed, *map(str, more)])
        file = next(out.glob(f"profile_{device}_bert-tiny*.csv"), None)
        if file is None:
            return status, []
        with file.open(newline="") as stream:
            return status, list(csv.DictReader(stream))

    return run
