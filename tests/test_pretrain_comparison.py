"""The verdict on BertAdam against its references, on made-up curves and on a run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import optimizers
from comparison import judge, largest_difference
from pretrain_cases import Program, losses, read_log
from run_log import Curves
from settings import Settings

pytest_plugins = ("pretrain_program",)
REFERENCE = [4.0, 3.5, 3.0, 2.5, 2.0]


def curve(*offsets: float) -> Curves:
    """The reference's losses with these offsets from the second step on."""
    found = [loss + offset for loss, offset in zip(REFERENCE, (0.0, *offsets), strict=True)]
    steps = list(range(len(found)))
    return Curves("made up", steps, found, [1e-3] * len(found), [0, 4], [found[0], found[-1]])


SPREAD = [curve(0, 0, 0, 0), curve(0, 0.125, 0, 0), curve(0, 0, -0.125, 0)]  # 0.125 apart
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("offsets", "status", "verdict"),
    [
        ((0, 0, 0, 0), 0, "0.00, allowed 2: passed"),
        ((0, 0, 0.125, 0), 0, "1.00, allowed 2: passed"),
        ((0, 0.25, 0, -0.25), 0, "2.00, allowed 2: passed"),
        ((0, 0.2501, 0, 0), 1, "2.00, allowed 2: FAILED"),
        ((0, 0, 0, -0.375), 1, "3.00, allowed 2: FAILED"),
        ((0, 0, 0, NAN), 1, "FAILED"),
        ((0, INF, 0, 0), 1, "FAILED"),
    ],
)
def test_ours_may_be_twice_the_references_spread_away(
    offsets: tuple[float, ...], status: int, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(curve(*offsets), SPREAD) == status
    assert verdict in capsys.readouterr().out


def test_spread_is_between_any_two_references() -> None:
    """The second and the third are 0.25 apart, although each is 0.125 from the first."""
    apart = [curve(0, 0, 0, 0), curve(0, 0.125, 0, 0), curve(0, -0.125, 0, 0)]
    assert judge(curve(0, 0, 0.5, 0), apart) == 0
    assert judge(curve(0, 0, 0.501, 0), apart) == 1


def test_references_that_diverge_prove_nothing() -> None:
    diverged = [curve(0, 0, 0, 0), curve(0, 0, 0, NAN)]
    assert judge(curve(0, 0, 0, NAN), diverged) == 1


def test_equal_references_tell_that_nothing_was_clipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    equal = [curve(0, 0, 0, 0)] * 3
    assert judge(curve(0, 0, 0, 0), equal) == 0
    assert judge(curve(0, 0, 0, 1e-6), equal) == 1
    assert "no gradient was clipped" in capsys.readouterr().out


def test_one_reference_gives_distances_and_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(curve(0, 0, 0.5, 0.25), SPREAD[:1]) == 0
    assert "training 0.5, held out 0.25 nats apart" in capsys.readouterr().out
    assert largest_difference(curve(0, 0, 0, NAN), SPREAD[0]) == (INF, INF)


# Runs


def test_comparison_runs_end_to_end(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("--compare", "reference") == 0
    out = tmp_path / "out"
    ours = read_log(out / "log-bertadam.jsonl")
    reference = read_log(out / "log-reference-1-chunk.jsonl")
    assert ours[0]["settings"]["optimizer"] == "bertadam"
    assert reference[0]["settings"]["optimizer"] == "reference"
    one, other = losses(ours, "train"), losses(reference, "train")
    assert list(one) == list(other) == list(range(20))
    assert one[0] == other[0], "other weights or other batches"
    assert one == pytest.approx(other, abs=1e-3)
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "bertadam and reference: training" in capsys.readouterr().out


# At this lr training hardly amplifies rounding: six seeds gave ratios of 0.5 to 1.0. At 1e-2 and
# 100 steps one of five gave 2.2, for then chance decides which curve runs away first.
JUDGED = ("--compare", "reference", "--reference-runs", 3, "--max-grad-norm", 0.1)
JUDGED += ("--lr", 3e-3, "--steps", 60)


def test_bertadam_is_within_the_references_spread(program: Program, tmp_path: Path) -> None:
    assert program(*JUDGED) == 0
    names = {file.name for file in (tmp_path / "out").glob("log-*.jsonl")}
    chunks = {f"log-reference-{n}-chunks.jsonl" for n in (7, 64)}
    assert names == {"log-bertadam.jsonl", "log-reference-1-chunk.jsonl", *chunks}


def test_another_rule_is_outside_the_references_spread(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative control: an lr that is larger by a thousandth."""
    build = optimizers.BUILDERS["bertadam"]

    def build_another(groups: list[dict[str, object]], settings: Settings) -> optimizers.Stepper:
        return build(groups, replace(settings, lr=settings.lr * 1.001))

    monkeypatch.setitem(optimizers.BUILDERS, "bertadam", build_another)
    assert program(*JUDGED) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--stop-after", 0), "--compare runs from the start to the end"),
        (("--checkpoint", "run.pt"), "--compare runs from the start to the end"),
        (("--reference-runs", 2, "--clip", "none"), "--reference-runs differ in their norms"),
    ],
)
def test_comparison_refuses_what_makes_no_sense(
    program: Program, more: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("--compare", "reference", *more) == 2
    assert message in capsys.readouterr().err
