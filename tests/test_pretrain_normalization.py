"""NVLAMB with and without normalized gradients, and BertAdam: three runs, curves and a figure."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from normalization_comparison import ADAM_LR, chosen_settings
from pretrain_cases import Program, losses, read_log
from run_log import Curves, write_curves

pytest_plugins = ("pretrain_program",)
LABELS = ["NVLAMB", "NVLAMB, not normalized", "BertAdam"]
LOGS = ["log-NVLAMB", "log-NVLAMB-not-normalized", "log-BertAdam"]
CPU = {"device": "cpu"}


def test_runs_differ_in_nothing_else() -> None:
    found = [asdict(each) for each in chosen_settings({**CPU, "seed": 3}, 1e-4).values()]
    differ = {key for one in found for key in one if one[key] != found[0][key]}
    assert differ == {"optimizer", "max_grad_norm", "clip", "lr", "phase2_lr"}
    assert [each["optimizer"] for each in found] == ["nvlamb", "nvlamb", "bertadam"]
    assert [each["max_grad_norm"] for each in found] == [1.0, 0.0, 1.0]
    assert [each["clip"] for each in found] == ["global", "global", "per_tensor"]
    assert found[0]["lr"] == found[1]["lr"]
    assert found[2]["lr"] == 1e-4


def test_batches_are_large_unless_asked_otherwise() -> None:
    settings = chosen_settings(CPU, ADAM_LR)["NVLAMB"]
    assert settings.phases[0].sequences > settings.batch
    settings = chosen_settings({**CPU, "accumulate": 2, "batch": 5, "lr": 1e-2}, ADAM_LR)["NVLAMB"]
    assert (settings.phases[0].sequences, settings.lr) == (10, 1e-2)


def test_curves_are_written_run_by_run(tmp_path: Path) -> None:
    one = Curves("one", [0, 1], [4.0, 3.5], [0.0, 1e-3], [0, 2], [4.25, 3.25])
    file = tmp_path / "new" / "curves.csv"
    write_curves(file, [one, one])
    with file.open(newline="") as stream:
        lines = list(csv.reader(stream))
    assert lines[0] == ["run", "step", "lr", "loss", "held_out"]
    assert lines[1:4] == [
        ["one", "0", "0.0", "4.0", "4.25"],
        ["one", "1", "0.001", "3.5", ""],
        ["one", "2", "", "", "3.25"],
    ]
    assert lines[4:] == lines[1:4]


def test_comparison_runs_end_to_end(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A limit that clips, and rates for 20 steps; NVLAMB changes tensors by a part of their length.
    more = ("--accumulate", 2, "--max-grad-norm", 0.1, "--lr", 0.1, "--adam-lr", 5e-3)
    assert program("--compare", "normalization", *more) == 0
    out = tmp_path / "out"
    records = [read_log(out / f"{name}.jsonl") for name in LOGS]
    assert all(each[0]["settings"]["accumulate"] == 2 for each in records)
    train = [losses(each, "train") for each in records]
    assert train[0][0] == train[1][0] == train[2][0], "other weights or other batches"
    assert train[0][1] == train[1][1], "the first update has lr 0"
    assert train[0][19] != train[1][19], "nothing was clipped"
    held_out = [losses(each, "held_out") for each in records]
    assert all(each[20] < each[0] - 0.3 for each in held_out)
    assert (out / "normalization.png").read_bytes().startswith(b"\x89PNG")
    with (out / "normalization.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    for label, one, other in zip(LABELS, train, held_out, strict=True):
        own = [line for line in lines if line["run"] == label]
        assert {int(line["step"]): float(line["loss"]) for line in own if line["loss"]} == one
        assert {int(line["step"]): float(line["held_out"]) for line in own if line["held_out"]} == (
            other
        )
    printed = capsys.readouterr().out
    for label, each in zip(LABELS, held_out, strict=True):
        assert f"{label:<26} held out {each[20]:.4f} nats" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--compare", "normalization", "--optimizer", "lamb"), "leave out --optimizer"),
        (("--compare", "normalization", "--clip", "none"), "leave out --clip"),
        (("--compare", "normalization", "--max-grad-norm", 0), "--max-grad-norm is 0.0, expected"),
        (("--compare", "normalization", "--reference-runs", 2), "--reference-runs: only with"),
        (("--compare", "normalization", "--stop-after", 2), "--compare runs from the start"),
        (("--compare", "storage", "--adam-lr", 1e-3), "--adam-lr: only with --compare"),
        (("--adam-lr", 1e-3), "--adam-lr: only with --compare normalization"),
    ],
    ids=str,
)
def test_comparison_that_makes_no_sense_is_refused(
    program: Program, more: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(*more) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
