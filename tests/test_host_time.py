"""The host's share of a step is measured for few and for many groups of the same tensors."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import host_time
from bench_report import Circumstances
from measurement import make_groups
from model_shapes import MODELS

CPU = torch.device("cpu")


def test_groups_share_out_all_parameters() -> None:
    groups = make_groups(MODELS["bert-toy"](), CPU)
    params = [param for group in groups for param in group["params"]]
    regrouped = host_time.regroup(groups, 7)
    assert len(regrouped) == 7
    assert {id(p) for group in regrouped for p in group["params"]} == {id(p) for p in params}
    assert sum(len(group["params"]) for group in regrouped) == len(params)
    assert {group["weight_decay"] for group in regrouped} == {0.01, 0.0}


def test_rows_say_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_time, "GROUP_COUNTS", (2, 5))
    rows = host_time.host_times(CPU, "bert-toy", n_calls=200)
    assert [(row.n_groups, row.n_tensors, row.n_calls) for row in rows] == [
        (2, 30, 200),
        (5, 30, 200),
    ]
    assert all(0 < row.p20_us <= row.median_us <= row.p80_us for row in rows)
    text = host_time.host_table(rows)
    assert "bert-toy, 30 tensors" in text
    assert "step(),  5 groups: median" in text
    host_time.write_host_csv(tmp_path / "h.csv", rows, Circumstances.here(CPU, "abc"))
    with (tmp_path / "h.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["n_groups"] for line in lines] == ["2", "5"]
    assert {line["commit"] for line in lines} == {"abc"}


@pytest.mark.gpu
def test_step_and_its_replay_are_one_launch_in_any_number_of_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_time, "GROUP_COUNTS", (2, 5))
    device = torch.device("cuda")
    rows = host_time.host_times(device, "bert-toy", n_calls=20)
    assert [row.launches for row in rows] == [None] * 3
    rows = host_time.with_launches(rows, device)
    assert [(row.call, row.n_groups) for row in rows] == [
        (host_time.STEP, 2),
        (host_time.STEP, 5),
        (host_time.REPLAY, 2),
    ]
    assert [row.launches for row in rows] == [1, 1, 1]
