"""The program with --profile: what it writes, which optimizers it compares, what it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import bert_model
import pretrain_bert
import profile_iteration
from contenders import APEX, FUSED, OURS
from pretrain_cases import Program
from profile_cases import BATCHES, N_ROUNDS, Profiler, numbers
from profile_iteration import NO_OPTIMIZER
from profile_report import CSV_COLUMNS

pytest_plugins = ("profile_program",)

MEASURED = [
    (NO_OPTIMIZER, "none"),
    *((OURS, "per_tensor"), (FUSED, "per_tensor"), (OURS, "global"), (FUSED, "global")),
]

# What is written


def test_program_writes_a_row_for_every_optimizer_and_batch(
    profiler: Profiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = profiler("--commit", "abc123")
    figure = tmp_path / "profile" / "profile_cpu_bert-tiny.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert status == 0
    assert list(rows[0]) == CSV_COLUMNS
    expected = [(str(b), *key) for b in BATCHES for key in [*MEASURED, (APEX, "global")]]
    assert [(row["batch"], row["contender"], row["clip"]) for row in rows] == expected
    for row in rows:
        assert (row["commit"], row["device"], row["dtype"]) == ("abc123", "cpu", "fp32")
        assert (row["model"], row["seq_len"], row["dropout"]) == ("tiny", "16", "0.1")
        assert all(row[key] for key in ("date", "hardware", "torch", "transformers", "threads"))
        assert int(row["n_params"]) > 0
        assert row["n_rounds"] == ("0" if row["note"] else str(N_ROUNDS))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("tokens/s", "share %", "host ms", "difference ms"))
    assert "with torch's usual algorithms" in printed


def test_numbers_of_a_row_agree_with_each_other(profiler: Profiler) -> None:
    _, rows = profiler()
    for row in rows:
        if row["contender"] == APEX:
            continue
        whole, before, step, host, share = numbers(
            row,
            *("iteration_ms", "forward_backward_ms", "optimizer_ms", "optimizer_host_ms"),
            "share_percent",
        )
        p20, p80, tokens, difference, percent = numbers(
            row, "p20_ms", "p80_ms", "tokens_per_s", "difference_ms", "difference_percent"
        )
        assert 0 < p20 <= whole <= p80
        assert 0 < share < 100
        assert 0 <= host <= step + 1e-3 < whole
        # The medians of the parts can be of two rounds. Of three rounds, one has parts that are
        # both as large or larger, and one parts that are both as small or smaller.
        assert 0.98 * p20 <= before + step <= 1.02 * p80
        assert share == pytest.approx(100 * step / whole, abs=0.1)
        assert tokens == pytest.approx(int(row["batch"]) * 16 / whole * 1e3, rel=1e-2)
        assert percent == pytest.approx(100 * difference / whole, abs=0.1)
        if row["contender"] == NO_OPTIMIZER:
            assert difference == 0
            assert share < 5


# Which optimizers


@pytest.mark.parametrize("runs_on", ["cuda", "cpu"])
def test_missing_apex_is_named(
    runs_on: str,
    profiler: Profiler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where its device is missing, and where it is not installed."""
    for name in ("apex", "apex.optimizers", "apex.contrib.clip_grad"):
        monkeypatch.setitem(sys.modules, name, None)
    changed = [
        replace(each, only_on=(runs_on,)) if each.optional else each
        for each in profile_iteration.candidates()
    ]
    monkeypatch.setattr(profile_iteration, "candidates", lambda *stored: changed)
    status, rows = profiler()
    assert status == 0
    apex = [row for row in rows if row["contender"] == APEX]
    assert len(apex) == len(BATCHES)
    reason = {"cuda": "runs on cuda only", "cpu": "ModuleNotFoundError: import of apex"}[runs_on]
    for row in apex:
        assert row["note"].startswith(f"missing: {reason}")
        assert row["iteration_ms"] == row["share_percent"] == ""
    assert f"{APEX} (clip global): missing: {reason}" in capsys.readouterr().out


def test_optimizer_that_computes_something_else_is_refused(
    profiler: Profiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = profile_iteration.candidates()
    wrong = replace(second, build=lambda groups: lambda: None)
    monkeypatch.setattr(profile_iteration, "candidates", lambda *stored: [first, wrong])
    status, rows = profiler()
    assert status == 1
    assert rows[2]["note"].startswith("REFUSED: ")
    assert rows[2]["iteration_ms"] == ""


def test_batch_without_memory_does_not_lose_the_others(
    profiler: Profiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = profile_iteration.Workload.random_batches

    def limited(self: Any, batch: int) -> Any:
        if batch == BATCHES[0]:
            raise torch.OutOfMemoryError
        return batches(self, batch)

    monkeypatch.setattr(profile_iteration.Workload, "random_batches", limited)
    status, rows = profiler()
    assert status == 0
    assert [row["batch"] for row in rows] == ["2"] + ["3"] * (len(MEASURED) + 1)
    assert rows[0]["note"] == "missing: the GPU's memory is too small for batch 2"
    assert float(rows[1]["iteration_ms"]) > 0


def test_defaults_are_those_of_bert_large(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(profile_iteration, "profile", lambda *a: found.extend(a) or 0)
    assert pretrain_bert.main(["--profile", "--device", "cpu"]) == 0
    settings, batches, _, commit = found
    assert bert_model.SIZES[settings.size] == bert_model.BertSize(24, 1024)
    assert (settings.vocab_size, settings.seq_len, settings.dropout) == (30522, 128, 0.1)
    assert (batches, commit) == ((4, 8, 16, 32), None)


# Errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--batch", 8), "batches by --profile-batches; leave out --batch"),
        (("--optimizer", "torch", "--lr", 1), "leave out --lr, --optimizer"),
        (("--corpus", "a.txt"), "leave out --corpus"),
        (("--resume", "a.pt"), "leave out --resume"),
        (("--compare", "reference"), "leave out --compare"),
        (("--steps", 5), "leave out --steps"),
        (("--profile-batches", 0), "--profile-batches is 0, expected different numbers of at"),
        (("--profile-batches", 4, 4), "--profile-batches is 4 4, expected different numbers"),
        (("--seq-len", 513), "--seq-len is 513, expected at most 512"),
        (("--seq-len", 2), "--seq-len is 2, expected at least 3"),
        (("--vocab-size", 6), "--vocab-size is 6, expected at least 200"),
        (("--dtype", "fp16"), "--profile is for --dtype fp32 and bf16"),
        (("--stochastic-rounding",), "leave out --stochastic-rounding"),
        (("--dropout", 2), "--dropout is 2.0, expected 0 to 1"),
        (("--out", __file__), "is a file, expected a folder"),
    ],
    ids=lambda value: "".join(map(str, value[:1])) if isinstance(value, tuple) else "",
)
def test_bad_option_of_a_profile_is_refused(
    profiler: Profiler,
    more: tuple[object, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, rows = profiler(*more)
    assert (status, rows) == (2, [])
    captured = capsys.readouterr().err
    assert captured.startswith("pretrain_bert: ")
    assert message in captured
    assert captured.count("\n") == 1


@pytest.mark.parametrize("option", ["--profile-batches", "--commit"])
def test_options_of_the_profile_need_it(
    option: str, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(option, 4) == 2
    assert capsys.readouterr().err == f"pretrain_bert: {option}: only with --profile\n"


@pytest.mark.gpu
@pytest.mark.parametrize("more", [("--autocast",), ("--dtype", "bf16")], ids=" ".join)
def test_profile_runs_on_a_gpu(profiler: Profiler, more: tuple[str, ...]) -> None:
    status, rows = profiler(*more, device="cuda")
    assert status == 0
    for row in rows:
        if not row["note"]:
            whole, before, step = numbers(
                row, "iteration_ms", "forward_backward_ms", "optimizer_ms"
            )
            assert 0 < step < whole
            assert before + step == pytest.approx(whole, rel=0.2)
