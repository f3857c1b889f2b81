"""The benchmark measures what it says, and refuses a contender that computes something else."""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import bench_step
import contenders as contenders_module
import timing
from bench_report import CSV_COLUMNS, Row, table
from contenders import CLIPS, OURS, Contender, WrongResult, check, contenders
from model_shapes import MODELS, count_elements

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.COPY_BYTES, "cpu", 2**16)


def candidate(name: str, clip: str) -> Contender:
    return next(each for each in contenders(clip, "cpu") if each.name == name)


# Contenders


@pytest.mark.parametrize("clip", CLIPS)
def test_every_contender_that_runs_here_computes_its_semantics(clip: str) -> None:
    for contender in contenders(clip, "cpu"):
        if not contender.optional:
            check(contender, CPU)


def larger_lr(groups: list[dict[str, Any]]) -> Any:
    return torch.optim.AdamW(groups, lr=1.01e-3, eps=1e-6, fused=True).step


def without_decay(groups: list[dict[str, Any]]) -> Any:
    plain = [{**group, "weight_decay": 0.0} for group in groups]
    return torch.optim.AdamW(plain, lr=1e-3, eps=1e-6, fused=True).step


def other_beta(groups: list[dict[str, Any]]) -> Any:
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-6, fused=True).step


def without_the_last_tensor(groups: list[dict[str, Any]]) -> Any:
    shorter = [*groups[:-1], {**groups[-1], "params": groups[-1]["params"][:-1]}]
    return torch.optim.AdamW(shorter, lr=1e-3, eps=1e-6, fused=True).step


def nothing(groups: list[dict[str, Any]]) -> Any:
    return lambda: None


def not_a_number(groups: list[dict[str, Any]]) -> Any:
    return lambda: [param.data.fill_(float("nan")) for param in groups[0]["params"]]


WRONG = [larger_lr, without_decay, other_beta, without_the_last_tensor, nothing, not_a_number]


@pytest.mark.parametrize("build", WRONG, ids=lambda build: build.__name__)
def test_contender_with_a_wrong_result_is_refused(build: Any) -> None:
    """Negative controls: the same check accepts torch's AdamW itself, above."""
    wrong = dataclasses.replace(candidate("torch AdamW(fused)", "none"), build=build)
    with pytest.raises(WrongResult, match="differs from float64 by"):
        check(wrong, CPU)


@pytest.mark.parametrize("name", [OURS, "torch AdamW(fused)", "plain BertAdam loop"])
@pytest.mark.parametrize("claimed", CLIPS)
@pytest.mark.parametrize("done", CLIPS)
def test_contender_that_clips_otherwise_than_it_says_is_refused(
    name: str, claimed: str, done: str
) -> None:
    contender = dataclasses.replace(candidate(name, done), clip=claimed)
    if done == claimed:
        check(contender, CPU)
    else:
        with pytest.raises(WrongResult, match=f"clip {claimed}"):
            check(contender, CPU)


@pytest.mark.parametrize("clip", CLIPS)
def test_timed_gradients_are_the_same_after_every_contender(clip: str) -> None:
    """They are shared, also with contenders that scale them in place."""
    groups = bench_step.make_groups(MODELS["bert-toy"](), CPU)
    params = [param for group in groups for param in group["params"]]
    grads = [param.grad for param in params]
    before = [grad.clone() for grad in grads]
    required = [each for each in contenders(clip, "cpu") if not each.optional]
    calls, notes = bench_step.build(required, groups, CPU)
    assert not notes
    for call in calls.values():
        call()
        call()
    for param, grad, expected in zip(params, grads, before, strict=True):
        assert param.grad is grad
        assert torch.equal(grad, expected)


# The program


def run(
    tmp_path: Path, *more: str, candidates: Any = contenders
) -> tuple[int, list[dict[str, Any]]]:
    threads = torch.get_num_threads()
    arguments = ["--device", "cpu", "--model", "bert-toy", "--rounds", "3", "--threads", "1"]
    try:
        status = bench_step.main([*arguments, "--out", str(tmp_path), *more], candidates)
    finally:
        torch.set_num_threads(threads)
    with (tmp_path / "bench_step_cpu_bert-toy.csv").open(newline="") as stream:
        return status, list(csv.DictReader(stream))


def test_program_writes_a_complete_csv_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = run(tmp_path)
    assert status == 0
    assert list(rows[0]) == CSV_COLUMNS
    assert {row["clip"] for row in rows} == set(CLIPS)
    for row in rows:
        assert all(row[key] for key in ("date", "commit", "hardware", "torch", "threads"))
        assert row["n_params"] == str(count_elements(MODELS["bert-toy"]()))
        if row["note"]:
            assert row["note"].startswith("missing: ")
            assert row["median_us"] == ""
            continue
        median, p20, p80 = (float(row[key]) for key in ("median_us", "p20_us", "p80_us"))
        assert 0 < p20 <= median <= p80
        gbps = float(row["n_params"]) * float(row["bytes_per_param"]) / median / 1e3
        assert float(row["gbps"]) == pytest.approx(gbps, rel=1e-2, abs=1e-3)
        share = 100 * float(row["gbps"]) / float(row["copy_gbps"])
        assert float(row["percent_of_copy"]) == pytest.approx(share, rel=1e-2, abs=1e-1)
    ours = [row for row in rows if row["contender"] == OURS]
    assert [float(row["ours_over_this"]) for row in ours] == [1.0] * len(CLIPS)
    text = capsys.readouterr().out
    assert all(heading in text for heading in ("median us", "B/param", "% of copy", "ours/this"))
    assert "copy bandwidth" in text


def test_program_draws_a_figure_where_matplotlib_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(tmp_path, "--clip", "none")
    assert (tmp_path / "bench_step_cpu_bert-toy.png").read_bytes().startswith(b"\x89PNG")


def test_program_refuses_a_wrong_contender_and_times_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_a_wrong_one(clip: str, device: str) -> list[Contender]:
        wrong = Contender("wrong AdamW", clip, 28.0, larger_lr, True)
        return [candidate(OURS, clip), wrong]

    status, rows = run(tmp_path, "--clip", "none", candidates=with_a_wrong_one)
    assert status == 1
    assert [bool(row["median_us"]) for row in rows] == [True, False]
    assert rows[1]["note"].startswith("REFUSED: wrong AdamW, clip none")
    assert "REFUSED" in capsys.readouterr().out


def test_missing_contender_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def build(groups: list[dict[str, Any]]) -> Any:
        raise ModuleNotFoundError("No module named 'somebody_elses_adam'")

    def with_a_missing_one(clip: str, device: str) -> list[Contender]:
        missing = Contender("somebody else's Adam", clip, 28.0, build, True, ("cpu",))
        return [candidate(OURS, clip), missing]

    status, rows = run(tmp_path, "--clip", "global", candidates=with_a_missing_one)
    assert status == 0
    assert rows[1]["note"] == "missing: ModuleNotFoundError: No module named 'somebody_elses_adam'"
    assert "somebody else's Adam (clip global): missing" in capsys.readouterr().out


def test_ratios_are_judged_by_the_limits() -> None:
    def row(clip: str, ratio: float) -> Row:
        return Row("bert-base", 1, 1, clip, "torch AdamW(fused)", 28.0, ours_over_this=ratio)

    verdicts = bench_step.verdicts([row("per_tensor", 0.8), row("none", 1.06), row("global", 9.0)])
    assert [line.rpartition(": ")[2] for line in verdicts] == ["met", "NOT met"]


def test_table_is_aligned_and_leaves_gpu_columns_out_on_a_cpu() -> None:
    known: dict[str, Any] = {"model": "m", "n_tensors": 1, "n_params": 10**6, "clip": "none"}
    rows = [
        Row(
            **known,
            contender="a",
            bytes_per_param=28.0,
            median_us=10.0,
            p20_us=9.0,
            p80_us=11.0,
            ours_over_this=1.0,
            copy_gbps=5600.0,
            host_us=7.0,
            launches=1,
            copies=0,
        ),
        Row(
            **known,
            contender="much longer",
            bytes_per_param=28.0,
            median_us=2e5,
            p20_us=1e5,
            p80_us=3e5,
            ours_over_this=0.5,
            copy_gbps=5600.0,
            host_us=7.0,
            launches=24,
            copies=2,
        ),
    ]
    gpu, cpu = (table(rows, on_gpu=on_gpu).splitlines() for on_gpu in (True, False))
    assert len(set(map(len, gpu))) == 1
    assert "24+2" in gpu[-1]
    assert "2800.0" in gpu[2]
    assert "50.0" in gpu[2]
    assert "host us" not in cpu[0]


def test_program_explains_itself() -> None:
    shown = subprocess.run(
        [sys.executable, bench_step.__file__, "--help"],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ).stdout
    assert "What is timed" in shown


@pytest.mark.gpu
def test_program_counts_one_launch_of_ours_on_a_gpu(tmp_path: Path) -> None:
    """Launches, host time and device time are measured on the GPU."""
    status = bench_step.main(
        ["--device", "cuda", "--model", "bert-toy", "--rounds", "3", "--out", str(tmp_path)]
    )
    assert status == 0
    with (tmp_path / "bench_step_cuda_bert-toy.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if not row["note"]]
    assert all(float(row["host_us"]) > 0 and int(row["launches"]) >= 1 for row in rows)
    assert all(row["launches"] == "1" for row in rows if row["contender"] == OURS)
    assert all(row["driver"] for row in rows)


def test_settings_of_all_contenders_are_the_modules() -> None:
    """The float64 check reads the same constants, so a changed one changes both."""
    assert contenders_module.MAX_GRAD_NORM == 1.0
    assert bench_step._GRAD_NORM < contenders_module.MAX_GRAD_NORM
