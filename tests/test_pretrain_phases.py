"""A run of two phases: short sequences, then long ones with a schedule of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import training
from optimizers import Stepper
from phases import Phase, count_tokens, phase_index
from pretrain_cases import Program, assert_same_run, losses, read_log, stop
from settings import OURS, complete

pytest_plugins = ("pretrain_program",)
CPU = {"device": "cpu"}
#: 20 steps of 16 tokens, then 10 of 32; the second ramp is over after two of them.
TWO = ("--phase2-steps", 10, "--phase2-seq-len", 32, "--phase2-lr", 4e-3, "--phase2-warmup", 0.2)


def phase(first_step: int, n_steps: int, **more: Any) -> Phase:
    known = {"seq_len": 8, "batch": 2, "lr": 1.0, "warmup": 0.0, "accumulate": 1}
    return Phase(
        first_step, n_steps, **{**known, **more}, schedule="warmup_linear", schedule_args={}
    )


# Settings


def test_second_phase_has_four_times_the_length_and_as_many_tokens() -> None:
    given = {**CPU, "steps": 90, "seq_len": 128, "batch": 32, "lr": 1e-3, "phase2_steps": 10}
    first, second = complete(given).phases
    assert (first.first_step, first.end, first.seq_len, first.batch) == (0, 90, 128, 32)
    assert (second.first_step, second.end, second.seq_len, second.batch) == (90, 100, 512, 8)
    assert (second.lr, second.warmup) == (first.lr, first.warmup) == (1e-3, 0.1)
    own = {"phase2_batch": 3, "phase2_lr": 2e-4, "phase2_warmup": -1, "phase2_seq_len": 64}
    second = complete({**given, **own}).phases[1]
    assert (second.batch, second.lr, second.warmup, second.seq_len) == (3, 2e-4, -1, 64)


def test_run_without_a_second_phase_has_one() -> None:
    settings = complete({**CPU, "steps": 7})
    assert [each.end for each in settings.phases] == [7]
    assert settings.total_steps == 7


def test_update_belongs_to_the_phase_that_it_lies_in() -> None:
    two = (phase(0, 3), phase(3, 2))
    assert [phase_index(two, step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 1]


def test_tokens_are_counted_phase_by_phase() -> None:
    two = (phase(0, 3), phase(3, 2, seq_len=32, batch=1, accumulate=5))
    assert count_tokens(two, 0, 3) == 3 * 2 * 8
    assert count_tokens(two, 2, 4) == 2 * 8 + 5 * 32
    assert count_tokens(two, 3, 5) == 2 * 5 * 32
    assert count_tokens(two, 2, 2) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"phase2_lr": 0.1, "phase2_batch": 2}, "--phase2-batch, --phase2-lr: only with"),
        ({"phase2_steps": -1}, "--phase2-steps is -1, expected at least 0"),
        ({"phase2_steps": 1, "phase2_batch": 0}, "--phase2-batch is 0, expected at least 1"),
        ({"phase2_steps": 1, "phase2_seq_len": 2}, "--phase2-seq-len is 2, expected at least 3"),
        ({"phase2_steps": 1, "phase2_lr": -1.0}, "--phase2-lr is -1.0, expected at least 0"),
        ({"phase2_steps": 1, "phase2_warmup": 1.0}, "warmup is 1.0, expected [0, 1)"),
        ({"phase2_steps": 1, "lr": 0.0}, "--lr is 0, expected more with --phase2-steps"),
    ],
    ids=str,
)
def test_impossible_phase_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^pretrain_bert: ") as error:
        complete({**CPU, **given})
    assert message in str(error.value)


def test_sequences_of_the_second_phase_fit_the_positions(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = " ".join(["abc"] * 20_000)
    corpus = tmp_path / "long.txt"
    corpus.write_text(f"{words} x\n\n{words} y\n", encoding="utf-8")
    more = ("--corpus", corpus, "--phase2-steps", 1, "--phase2-seq-len", 513)
    assert program(*more) == 2
    expected = "pretrain_bert: --phase2-seq-len is 513, expected at most 512"
    assert expected in capsys.readouterr().err


# Runs


@pytest.mark.parametrize("optimizer", [*OURS, "reference", "torch"])
def test_second_phase_has_longer_sequences_and_a_ramp_of_its_own(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    lengths, computed = [], training.masked_loss

    def noted(model: Any, batch: Any) -> torch.Tensor:
        if model.training:
            lengths.append(tuple(batch.input_ids.shape))
        return computed(model, batch)

    monkeypatch.setattr(training, "masked_loss", noted)
    assert program("--optimizer", optimizer, "--lr", 8e-3, *TWO) == 0
    assert lengths == [(8, 16)] * 20 + [(4, 32)] * 10
    records = read_log(tmp_path / "out" / "log.jsonl")
    lrs = [record["lr"] for record in records if record["event"] == "train"]
    assert lrs[:3] == pytest.approx([0.0, 8e-3 / 2, 8e-3 * 0.9])
    # Of ten updates the first two are the ramp, x is a tenth of the number of the update.
    assert lrs[20:] == pytest.approx([0.0, 2e-3, *(4e-3 * (1 - n / 10) for n in range(2, 10))])
    begins = [record for record in records if record["event"] == "phase"]
    assert [(each["step"], each["seq_len"], each["batch"]) for each in begins] == [(20, 32, 4)]
    held_out = losses(records, "held_out")
    assert list(held_out) == [0, 5, 10, 15, 20, 25, 30]
    assert begins[0]["held_out_before"] != held_out[20], "they are of other lengths"
    assert held_out[30] < held_out[0]
    assert records[-1]["event"] == "end"


def rates(program: Program, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> list[float]:
    """What the optimizer itself says of each update."""
    found, step = [], Stepper.step

    def noted(self: Stepper) -> None:
        found.append(self.optimizer.get_lr()[-1])  # type: ignore[attr-defined]
        step(self)

    monkeypatch.setattr(Stepper, "step", noted)
    assert program("--optimizer", optimizer, *TWO) == 0
    return found


@pytest.mark.parametrize("optimizer", OURS)
def test_log_has_the_rates_that_the_optimizer_uses(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    used = rates(program, monkeypatch, optimizer)
    records = read_log(tmp_path / "out" / "log.jsonl")
    logged = [record["lr"] for record in records if record["event"] == "train"]
    assert used == pytest.approx(logged, rel=1e-12)


def test_rates_without_the_second_schedule_are_others(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the one above."""
    monkeypatch.setattr(Stepper, "begin_phase", lambda self, phase: None)
    with pytest.warns(UserWarning, match="past t_total=20"):
        used = rates(program, monkeypatch, "bertadam")
    records = read_log(tmp_path / "out" / "log.jsonl")
    logged = [record["lr"] for record in records if record["event"] == "train"]
    assert used[:20] == pytest.approx(logged[:20], rel=1e-12)
    assert used[20:] == [0.0] * 10  # the first schedule is over


def test_bertadam_follows_the_plain_loop_through_both_phases(
    program: Program, tmp_path: Path
) -> None:
    """The loop has a function of the step for both, ours begins its schedule anew."""
    assert program("--compare", "reference", *TWO) == 0
    names = ("log-bertadam.jsonl", "log-reference-1-chunk.jsonl")
    one, other = (losses(read_log(tmp_path / "out" / name), "train") for name in names)
    assert list(one) == list(range(30))
    # As in one phase: rounding, amplified by training.
    assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("at", [7, 20, 23], ids=["before", "between", "after"])
@pytest.mark.parametrize("optimizer", ["bertadam", "torch"])
def test_run_that_stops_around_the_change_continues_with_the_same_bits(
    program: Program, tmp_path: Path, optimizer: str, at: int
) -> None:
    file = stop(program, tmp_path, "--optimizer", optimizer, *TWO, at=at)
    assert program("--resume", file, "--checkpoint", file, out="pieces") == 0
    assert_same_run(tmp_path, ends_at=30)
    records = read_log(tmp_path / "pieces" / "log.jsonl")
    assert [record["event"] for record in records].count("phase") == 1
