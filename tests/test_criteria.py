"""A run that is too slow is told so, for each criterion; one that is fast enough, too."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from bench_report import Row, ratio_column
from contenders import CLIPS, OUR_ADAMW, OURS, Contender, contenders
from criteria import CPU_THREADS, CRITERIA, Criterion, Results, verdicts
from host_time import GROUP_COUNTS, REPLAY, STEP, HostRow
from lamb_contenders import lamb_contenders
from model_shapes import MODELS
from storage import DTYPES

COPY_GBPS, N_PARAMS = 100.0, 10**6
#: Time of ours over what its bytes take at the copy's speed, and of the others over ours.
GOOD = {"per_tensor": 1.02, "global": 1.02, "none": 1.0}
BAD = {"per_tensor": 2.5, "global": 1.5, "none": 1.1}
#: Time of our AdamW over our BertAdam's.
GOOD_ADAMW, BAD_ADAMW = 1.0, 1.1
GOOD_PEER, BAD_PEER = 50.0, 0.9
CASES = [(device, each) for device in CRITERIA for each in CRITERIA[device]]
IDS = [f"{device}-{each.says}-{each.model}".replace(" ", "_") for device, each in CASES]


def results(device: str, excess: dict[str, float], peer: float) -> Results:
    """A run of all models and dtypes in which ours and the others take what is asked for."""
    rows = []
    for dtype in DTYPES:
        for family in (contenders, lamb_contenders):
            candidates = [each for clip in CLIPS for each in family(clip, device, dtype)]
            rows += [row for model in MODELS for row in timed(candidates, model, excess, peer)]
    host, launches = (8.0, 1) if excess is GOOD else (100.0, 2)
    host_rows = [
        HostRow("bert-large", 398, n, "per_tensor", 200, host, host, host, launches, call)
        for call in (STEP, REPLAY)
        for n in GROUP_COUNTS
    ]
    return Results(rows, host_rows)


def timed(
    candidates: list[Contender], model: str, excess: dict[str, float], peer: float
) -> list[Row]:
    """Rows of one model; the others take `peer` times as long as the fastest of ours."""
    ours = {
        (each.clip, each.storage.master): (
            excess[each.clip] * N_PARAMS * each.bytes_per_param / COPY_GBPS / 1e3
        )
        for each in candidates
        if each.name == OURS
    }
    of_ours = {OURS: 1.0, OUR_ADAMW: GOOD_ADAMW if excess is GOOD else BAD_ADAMW}
    rows = []
    for each in candidates:
        clip, master = each.clip, each.storage.master
        is_ours = each.name in of_ours
        time = of_ours[each.name] * ours[clip, master] if is_ours else peer * min(ours.values())
        rows.append(
            Row(
                *(model, 1, N_PARAMS, clip, each.name, each.bytes_per_param),
                dtype=each.storage.dtype,
                master=master,
                optimizer=each.optimizer,
                median_us=time,
                wall_us=time,
                copy_gbps=COPY_GBPS,
                **{ratio_column(*key): own / time for key, own in ours.items()},
            )
        )
    return rows


@pytest.mark.parametrize(("device", "criterion"), CASES, ids=IDS)
def test_good_run_meets_every_criterion_and_a_bad_one_none(
    device: str, criterion: Criterion
) -> None:
    good, bad = results(device, GOOD, GOOD_PEER), results(device, BAD, BAD_PEER)
    assert criterion.verdict(good).startswith("met  ")
    assert criterion.verdict(bad).startswith("NOT met  ")


@pytest.mark.parametrize(("device", "criterion"), CASES, ids=IDS)
def test_limit_is_met_at_its_value_and_not_one_percent_beyond(
    device: str, criterion: Criterion
) -> None:
    def at(value: float | None) -> bool | None:
        return dataclasses.replace(criterion, value=lambda _: value).met(Results())

    lower = criterion.at_least is not None
    limit = criterion.at_least if lower else criterion.at_most
    assert limit is not None
    assert at(limit) is True
    assert at(limit * (0.99 if lower else 1.01)) is False
    assert at(math.nan) is False
    assert at(None) is None


@pytest.mark.parametrize(("device", "criterion"), CASES, ids=IDS)
def test_criterion_without_its_measurement_says_so(device: str, criterion: Criterion) -> None:
    assert criterion.verdict(Results()).startswith("not measured  ")
    missing = [dataclasses.replace(row, median_us=None) for row in results(device, GOOD, 9.0).rows]
    assert criterion.verdict(Results(missing)).startswith("not measured  ")


def test_verdict_says_number_clock_and_limit() -> None:
    bad = results("cuda", BAD, BAD_PEER)
    lines = verdicts("cuda", 1, bad)
    assert (
        "NOT met       bert-large: ours, clip none: 0.9 x as fast as torch AdamW(fused), clip none "
        "(device time, paired), wanted >= 1.18"
    ) in lines
    loop = next(line for line in lines if "plain BertAdam loop" in line)
    assert "(idle-queue wall time, medians)" in loop
    assert lines[0] == (
        "NOT met       bert-large: ours, clip per_tensor: 40 % of copy at 28 B, wanted >= 96"
    )


def test_master_is_judged_by_its_own_row() -> None:
    """A remainder at 90 % of the copy fails, whatever the fp32 master and no master reach."""
    run = results("cuda", GOOD, GOOD_PEER)
    slow = [
        dataclasses.replace(row, median_us=row.median_us and row.median_us / 0.9)
        if row.contender == OURS and row.master == "remainder"
        else row
        for row in run.rows
    ]
    failed = [line for line in verdicts("cuda", 1, Results(slow)) if line.startswith("NOT met")]
    assert failed == [
        "NOT met       bert-large in bf16: ours, clip per_tensor, master remainder: 88.24 % of "
        "copy at 26 B, wanted >= 92"
    ]


def test_models_that_were_not_timed_are_not_judged() -> None:
    run = results("cuda", GOOD, GOOD_PEER)
    rows = [row for row in run.rows if (row.model, row.dtype) == ("20x16M", "fp32")]
    assert [line.split(":")[0] for line in verdicts("cuda", 1, Results(rows))] == [
        "met           20x16M"
    ]
    bf16 = [row for row in run.rows if (row.model, row.dtype) == ("bert-large", "bf16")]
    lines = verdicts("cuda", 1, Results(bf16))
    assert len(lines) == 4
    assert {line.split(":")[0] for line in lines} == {"met           bert-large in bf16"}
    lamb = [row for row in run.rows if (row.model, row.optimizer) == ("bert-large", "lamb")]
    (line,) = verdicts("cuda", 1, Results(lamb))
    assert line.startswith("met           bert-large with LAMB: ours, clip global: ")
    assert "x as fast as apex FusedLAMB, clip global (device time, paired), wanted >= 1.5" in line
    assert len(verdicts("cuda", 1, run)) == len(CRITERIA["cuda"])


def test_cpu_is_judged_with_its_number_of_threads_only() -> None:
    run = results("cpu", GOOD, GOOD_PEER)
    assert len(verdicts("cpu", CPU_THREADS, run)) == len(CRITERIA["cpu"])
    assert [line.split(":")[0] for line in verdicts("cpu", 7, run)] == ["no verdicts"]
