"""The benchmark measures what it says, and refuses a contender that computes something else."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import bench_step
import timing
from bench_report import CSV_COLUMNS, Row, read_csv, table
from contenders import CLIPS, FOREACH, FUSED, OURS, PLAIN, Contender, contenders
from loss_scaling import OUR_SCALER
from model_shapes import MODELS, count_elements


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.COPY_BYTES, "cpu", 2**16)


def candidate(name: str, clip: str) -> Contender:
    return next(each for each in contenders(clip, "cpu") if each.name == name)


def larger_lr(groups: list[dict[str, Any]]) -> Any:
    return torch.optim.AdamW(groups, lr=1.01e-3, eps=1e-6, fused=True).step


def run(
    tmp_path: Path, *more: str, candidates: Any = contenders, suffix: str = ""
) -> tuple[int, list[dict[str, Any]]]:
    threads = torch.get_num_threads()
    arguments = ["--device", "cpu", "--model", "bert-toy", "--rounds", "3", "--threads", "1"]
    try:
        status = bench_step.main([*arguments, "--out", str(tmp_path), *more], candidates)
    finally:
        torch.set_num_threads(threads)
    with (tmp_path / f"bench_step_cpu_bert-toy{suffix}.csv").open(newline="") as stream:
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
    read, circumstances = read_csv(tmp_path / "bench_step_cpu_bert-toy.csv")
    assert (circumstances.device, circumstances.threads) == ("cpu", 1)
    assert [row.contender for row in read] == [row["contender"] for row in rows]
    assert [row.launches for row in read] == [None] * len(read)
    assert [str(row.median_us or "") for row in read] == [row["median_us"] for row in rows]
    text = capsys.readouterr().out
    assert all(heading in text for heading in ("median us", "B/param", "% of copy", "ours/this"))
    assert "copy bandwidth" in text


def test_program_of_16_bits_has_its_own_files_with_a_row_for_each_master(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--dtype", "bf16", "--clip", "none")
    status, rows = run(tmp_path, *more, suffix="_bf16")
    assert status == 0
    assert [file.suffix for file in tmp_path.iterdir() if "_bf16." in file.name]
    assert not (tmp_path / "bench_step_cpu_bert-toy.csv").exists()
    assert {row["dtype"] for row in rows} == {"bf16"}
    ours = [row for row in rows if row["contender"] == OURS]
    assert [row["master"] for row in ours] == ["none", "fp32", "remainder"]
    assert [row["bytes_per_param"] for row in ours] == ["22.0", "28.0", "26.0"]
    assert [row["ours_over_this"] for row in ours] == ["1.0"] * 3
    fused = next(row for row in rows if row["contender"] == FUSED)
    for column in ("ours_none_over_this", "ours_none_fp32_over_this"):
        assert float(fused[column]) > 0
    assert fused["ours_over_this"] == fused["ours_none_over_this"]
    plain = next(row for row in rows if row["contender"] == PLAIN)
    assert plain["ours_over_this"] == plain["ours_none_fp32_over_this"]
    text = capsys.readouterr().out
    assert "14,726 parameters, bf16" in text
    assert "% at 22 B" in text


def test_program_names_the_scaler_of_float16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--dtype", "fp16", "--clip", "global")
    status, rows = run(tmp_path, *more, suffix="_fp16")
    assert status == 0
    assert {(row["contender"], row["master"]) for row in rows} == {
        *((OURS, "none"), (OURS, "fp32"), (FUSED, "none"), (FOREACH, "none"), (PLAIN, "fp32"))
    }
    assert all(float(row["median_us"]) > 0 for row in rows)
    assert f"loss scaling of ours: {OUR_SCALER}" in capsys.readouterr().out


def test_results_from_before_there_were_dtypes_can_be_read() -> None:
    results = Path(bench_step.__file__).parent / "results"
    rows, _ = read_csv(results / "bench_step_cuda_20x16M.csv")
    assert {(row.dtype, row.master) for row in rows} == {("fp32", "none")}
    assert all(row.ours_over_this for row in rows if not row.note)


def test_program_draws_a_figure_which_can_be_drawn_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(tmp_path, "--clip", "global")
    figure = tmp_path / "bench_step_cpu_bert-toy.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    figure.unlink()
    program = Path(bench_step.__file__).with_name("bench_figure.py")
    subprocess.run([sys.executable, program, figure.with_suffix(".csv")], check=True)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_program_refuses_a_wrong_contender_and_times_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_a_wrong_one(clip: str, device: str, dtype: str) -> list[Contender]:
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

    def with_a_missing_one(clip: str, device: str, dtype: str) -> list[Contender]:
        missing = Contender("somebody else's Adam", clip, 28.0, build, True, ("cpu",))
        return [candidate(OURS, clip), missing]

    status, rows = run(tmp_path, "--clip", "global", candidates=with_a_missing_one)
    assert status == 0
    assert rows[1]["note"] == "missing: ModuleNotFoundError: No module named 'somebody_elses_adam'"
    assert "somebody else's Adam (clip global): missing" in capsys.readouterr().out


def test_program_times_several_models_in_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "toys", lambda: {"a.weight": (3, 4), "a.bias": (4,)})

    def only_ours(clip: str, device: str, dtype: str) -> list[Contender]:
        return [candidate(OURS, clip)]

    status, _ = run(tmp_path, "--model", "bert-toy", "toys", candidates=only_ours)
    assert status == 0
    assert (tmp_path / "bench_step_cpu_toys.csv").exists()
    text = capsys.readouterr().out
    assert "bert-toy: 30 tensors" in text
    assert "toys: 2 tensors, 16 parameters" in text


def test_all_models_are_those_without_the_toy() -> None:
    assert set(bench_step._ALL) == set(MODELS) - {"bert-toy"}
    assert set(bench_step._ALL_16_BITS) < set(bench_step._ALL)


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
            ours_none_over_this=1.0,
            copy_gbps=5600.0,
            host_us=7.0,
            wall_us=12.0,
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
            ours_none_over_this=0.5,
            copy_gbps=5600.0,
            host_us=7.0,
            wall_us=3e5,
            launches=24,
            copies=2,
        ),
        # Too slow to be traced, and without a ratio.
        Row(**known, contender="b", bytes_per_param=28.0, median_us=1e6, p20_us=1e6, p80_us=1e6),
    ]
    gpu, cpu = (table(rows, on_gpu=on_gpu).splitlines() for on_gpu in (True, False))
    assert len(set(map(len, gpu))) == 1
    assert "24+2" in gpu[-2]
    assert gpu[-1].split()[8:12] == ["-", "-", "-", "-"]
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
@pytest.mark.parametrize(
    ("more", "suffix"),
    [((), ""), (("--dtype", "bf16"), "_bf16"), (("--optimizer", "lamb"), "_lamb")],
    ids=["fp32", "bf16", "lamb"],
)
def test_program_counts_one_launch_of_ours_on_a_gpu(
    tmp_path: Path, more: tuple[str, ...], suffix: str
) -> None:
    """Launches, host time and device time are measured on the GPU."""
    arguments = ["--device", "cuda", "--model", "bert-toy", "--rounds", "3", *more]
    status = bench_step.main([*arguments, "--out", str(tmp_path)])
    assert status == 0
    with (tmp_path / f"bench_step_cuda_bert-toy{suffix}.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if not row["note"]]
    assert all(float(row["host_us"]) > 0 and int(row["launches"]) >= 1 for row in rows)
    assert all(row["launches"] == "1" for row in rows if row["contender"] == OURS)
    assert all(row["driver"] for row in rows)
