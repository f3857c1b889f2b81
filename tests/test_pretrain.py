"""The pretraining program, run whole on a model of one narrow layer and a text of a few words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import pretrain_bert
from pretrain_cases import (
    LR,
    MICRO,
    PIECES,
    Program,
    assert_same_run,
    losses,
    read_log,
    stop,
    trained,
    write_corpus,
)

pytest_plugins = ("pretrain_program",)


# One run

DECAY = ("decay_rate=0.9", "decay_steps=2")


@pytest.mark.parametrize("optimizer", LR)
def test_every_optimizer_trains_and_leaves_a_log_and_a_figure(
    program: Program, tmp_path: Path, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("--optimizer", optimizer, "--lr", LR[optimizer]) == 0
    records = read_log(tmp_path / "out" / "log.jsonl")
    start, end = records[0], records[-1]
    assert (start["event"], end["event"]) == ("start", "end")
    assert start["settings"]["optimizer"] == optimizer
    assert start["settings"]["steps"] == end["step"] == 20
    assert start["corpus"]["source"] == str(tmp_path / "corpus.txt")
    assert start["corpus"]["documents"] == 60
    assert start["corpus"]["held_out_documents"] == 6
    assert start["corpus"]["bytes"] == (tmp_path / "corpus.txt").stat().st_size - 59
    assert start["parameters"] > 0
    assert start["versions"]["torch"] == torch.__version__
    assert end["seconds"] > 0
    train, held_out = losses(records, "train"), losses(records, "held_out")
    assert list(train) == list(range(20))
    assert list(held_out) == [0, 5, 10, 15, 20]
    assert held_out[20] < held_out[0] - 0.5
    lrs = [record["lr"] for record in records if record["event"] == "train"]
    assert lrs[0] == 0.0
    assert lrs[2] == max(lrs) == pytest.approx(0.9 * LR[optimizer])
    assert (tmp_path / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{held_out[20]:.3f} at step 20" in printed
    assert str(tmp_path / "out" / "losses.png") in printed


def test_lr_of_zero_learns_nothing(program: Program, tmp_path: Path) -> None:
    """Negative control of the falling loss: the optimizer is what lowers it."""
    assert program("--lr", 0) == 0
    held_out = losses(read_log(tmp_path / "out" / "log.jsonl"), "held_out")
    assert held_out[20] == held_out[0]


def test_missing_apex_is_explained(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setitem(sys.modules, "apex.optimizers", None)
    assert program("--optimizer", "apex") == 2
    assert "pretrain_bert: --optimizer apex needs NVIDIA apex" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ("--clip", "global", "--autocast"),
        ("--dtype", "bf16"),
        ("--clip", "none", "--schedule", "warmup_cosine", "--warmup", -1),
        ("--schedule", "warmup_exp_decay_exp", "--schedule-args", *DECAY),
    ],
    ids=["global-autocast", "bf16", "none-cosine", "schedule-args"],
)
@pytest.mark.parametrize("optimizer", LR)
def test_other_settings_reach_the_run(
    program: Program, tmp_path: Path, optimizer: str, more: tuple[object, ...]
) -> None:
    assert program("--optimizer", optimizer, *more) == 0
    held_out = losses(read_log(tmp_path / "out" / "log.jsonl"), "held_out")
    assert held_out[20] < held_out[0]


def test_missing_packages_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_bert, "NEEDED", ("torch", "no_such_one", "no_such_two"))
    with pytest.raises(SystemExit, match=r"not installed: no_such_one, no_such_two; install with"):
        pretrain_bert.main(["--steps", "1"])


@pytest.mark.usefixtures("program")  # skips where the packages are missing
def test_help_names_the_sizes_of_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain_bert.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--model {tiny,mini,small,base,large} layers x hidden width: tiny" in shown
    assert "base 12x768, large 24x1024" in shown


# Stopped and resumed


@pytest.mark.parametrize("optimizer", LR)
def test_resumed_run_equals_the_uninterrupted_one(
    program: Program, tmp_path: Path, optimizer: str
) -> None:
    file = stop(program, tmp_path, "--optimizer", optimizer)
    assert program("--resume", file, "--checkpoint", file, out="pieces") == 0
    records = read_log(tmp_path / "pieces" / "log.jsonl")
    assert [record["event"] for record in records].count("resume") == 1
    assert records[0]["event"] == "start"
    assert_same_run(tmp_path)


@pytest.mark.parametrize("lost", ["exp_avg", "cpu_generator", "step"])
def test_checkpoint_without_a_part_is_seen(program: Program, tmp_path: Path, lost: str) -> None:
    """Negative controls: each part of the state that is not restored changes the run."""
    file = stop(program, tmp_path)
    saved = trained(file)
    if lost == "cpu_generator":
        saved[lost] = torch.get_rng_state()
    else:
        state = saved["stepper"]["optimizer"]["state"].values()
        assert state
        for of_param in state:
            of_param[lost].zero_()
    torch.save(saved, file)
    assert program("--resume", file, "--checkpoint", file, out="pieces") == 0
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("program")  # skips where the packages are missing
def test_run_resumed_in_another_process_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt")

    def run(out: str, *more: object) -> None:
        command = [sys.executable, pretrain_bert.__file__, *MICRO, "--dtype", "bf16"]
        command += ["--corpus", str(corpus), "--out", str(tmp_path / out)]
        command += ["--checkpoint", str(tmp_path / f"{out}.pt"), *map(str, more)]
        subprocess.run(command, check=True, env={"PYTHONPATH": ":".join(sys.path)})

    run("whole", *PIECES)
    run("pieces", *PIECES, "--stop-after", 7)
    run("pieces", "--resume", tmp_path / "pieces.pt")
    assert_same_run(tmp_path)


# Errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--resume", "gone.pt"), "pretrain_bert: --resume gone.pt: there is no such file"),
        (("--resume", __file__), "cannot be read as a checkpoint"),
        (("--stop-after", 0), "pretrain_bert: --stop-after is 0, expected at least 1"),
        (("--stop-after", -3), "pretrain_bert: --stop-after is -3, expected at least 1"),
        (("--checkpoint", "/"), "pretrain_bert: --checkpoint / is a folder, expected a file"),
        (("--out", __file__), "is a file, expected a folder"),
        (("--corpus", "gone.txt"), "corpus: cannot read gone.txt: No such file or directory"),
        (("--seq-len", 513), "vocabulary: the held-out text of"),
        (("--vocab-size", 100), "vocabulary: size 100, expected at least 200"),
        (("--lr", -1, "--optimizer", "torch"), "pretrain_bert: --lr is -1.0, expected at least 0"),
        (("--device", "gpu"), "pretrain_bert: --device is gpu, expected cpu, cuda or cuda:NUMBER"),
    ],
    ids=lambda value: "".join(map(str, value[:1])) if isinstance(value, tuple) else "",
)
def test_mistake_ends_with_one_line_and_status_two(
    program: Program, more: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: most of these ended in a traceback; --stop-after 0 trained to the end."""
    assert program(*more) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1


def test_mistyped_schedule_argument_is_explained(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        program("--schedule-args", "decay_rate")
    assert "found 'decay_rate', expected KEY=NUMBER" in capsys.readouterr().err


def test_run_is_not_continued_as_another_one(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.pt"
    assert program("--checkpoint", file, "--stop-after", 2) == 0
    capsys.readouterr()
    assert program("--resume", file, "--model", "mini", "--seed", 5) == 2
    error = capsys.readouterr().err
    assert "--model is mini, was tiny; --seed is 5, was 0; leave these options out" in error
    other = write_corpus(tmp_path / "other.txt", seed=1)
    assert program("--resume", file, "--corpus", other) == 2
    assert "the checkpoint was made with another text" in capsys.readouterr().err
    torch.save({"format": 99}, file)
    assert program("--resume", file) == 2
    assert "found format 99, expected 3" in capsys.readouterr().err
