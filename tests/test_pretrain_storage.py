"""Runs of 16 bits: how they are stored, that they learn, and that a stopped one continues."""

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
import optimizers
from loss_scaling import OUR_SCALER
from pretrain_cases import Program, losses, read_log
from settings import complete

pytest_plugins = ("pretrain_program",)
CPU = {"device": "cpu"}
WAYS: dict[str, tuple[object, ...]] = {
    "bf16-remainder": ("--dtype", "bf16"),
    "bf16-fp32": ("--dtype", "bf16", "--master-weights", "fp32"),
    "bf16-none": ("--dtype", "bf16", "--master-weights", "none"),
    "bf16-stochastic": ("--dtype", "bf16", "--stochastic-rounding", "--seed", 3),
    "fp16-fp32": ("--dtype", "fp16"),
}
MASTER_KEYS = {"remainder": "param_remainder", "fp32": "master_param"}


# Settings


@pytest.mark.parametrize(
    ("given", "master"),
    [
        ({"dtype": "fp32"}, "none"),
        ({"dtype": "bf16"}, "remainder"),
        ({"dtype": "fp16"}, "fp32"),
        ({"dtype": "bf16", "master_weights": "none"}, "none"),
        ({"dtype": "bf16", "stochastic_rounding": True}, "none"),
        ({"dtype": "bf16", "optimizer": "torch"}, "none"),
    ],
    ids=str,
)
def test_default_master_loses_nothing_in_the_least_memory(
    given: dict[str, Any], master: str
) -> None:
    assert complete({**CPU, **given}).master_weights == master


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "fp32"),
        ({"autocast": True}, "fp32, bf16 autocast"),
        ({"dtype": "bf16"}, "bf16, master remainder"),
        ({"dtype": "bf16", "master_weights": "none"}, "bf16"),
        ({"dtype": "bf16", "stochastic_rounding": True}, "bf16, stochastic rounding"),
        ({"dtype": "fp16"}, "fp16, master fp32"),
    ],
    ids=str,
)
def test_run_says_how_it_is_stored(given: dict[str, Any], words: str) -> None:
    assert complete({**CPU, **given}).stored_as == words


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (
        {"dtype": "fp16", "master_weights": "remainder"},
        "--master-weights is remainder, expected none or fp32 with --dtype fp16",
    ),
    (
        {"dtype": "fp32", "master_weights": "fp32"},
        "--master-weights is fp32, expected none with --dtype fp32",
    ),
    (
        {"dtype": "fp32", "master_weights": "remainder"},
        "--master-weights is remainder, expected none with --dtype fp32",
    ),
    (
        {"dtype": "fp32", "stochastic_rounding": True},
        "--stochastic-rounding is for --dtype bf16, not for fp32",
    ),
    (
        {"dtype": "fp16", "stochastic_rounding": True},
        "--stochastic-rounding is for --dtype bf16, not for fp16",
    ),
    (
        {"dtype": "bf16", "stochastic_rounding": True, "master_weights": "fp32"},
        "--stochastic-rounding is for parameters without a master",
    ),
    (
        {"dtype": "bf16", "autocast": True},
        "--autocast is for --dtype fp32; with --dtype bf16 the model is bf16 anyway",
    ),
    (
        {"dtype": "bf16", "optimizer": "torch", "master_weights": "fp32"},
        "are for --optimizer bertadam, adamw, lamb, nvlamb, lars, not for torch",
    ),
    (
        {"dtype": "bf16", "optimizer": "reference", "stochastic_rounding": True},
        "are for --optimizer bertadam, adamw, lamb, nvlamb, lars, not for reference",
    ),
    ({"dtype": "bf16", "optimizer": "apex"}, "--dtype bf16 is not for --optimizer apex"),
    ({"dtype": "fp16", "optimizer": "torch"}, "torch keeps moments in fp16"),
    ({"dtype": "fp16", "optimizer": "reference"}, "reference keeps moments in fp16"),
]


@pytest.mark.parametrize(("given", "message"), IMPOSSIBLE, ids=str)
def test_combination_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^pretrain_bert: ") as error:
        complete({**CPU, **given})
    assert message in str(error.value)


# Runs


@pytest.mark.parametrize("way", WAYS)
def test_run_of_16_bits_learns_and_says_so_in_its_log(
    program: Program, tmp_path: Path, way: str
) -> None:
    dtype, master = way.split("-")
    file = tmp_path / "run.pt"
    assert program(*WAYS[way], "--checkpoint", file) == 0
    records = read_log(tmp_path / "out" / "log.jsonl")
    settings = records[0]["settings"]
    assert settings["dtype"] == dtype
    assert settings["master_weights"] == ("none" if master == "stochastic" else master)
    assert settings["stochastic_rounding"] == (master == "stochastic")
    assert records[0]["stored_as"].startswith(dtype)
    held_out = losses(records, "held_out")
    assert held_out[20] < held_out[0] - 0.5
    saved = torch.load(file, weights_only=True)
    stored = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert {weight.dtype for weight in saved["model"].values()} == {stored}
    for state in saved["stepper"]["optimizer"]["state"].values():
        assert state["exp_avg"].dtype == torch.float32
        assert set(MASTER_KEYS.values()) & set(state) == {
            MASTER_KEYS[m] for m in [master] if m in MASTER_KEYS
        }
    scales = [record.get("loss_scale") for record in records if record["event"] == "held_out"]
    assert all(scale is None for scale in scales) == (dtype == "bf16")
    assert records[0]["loss_scaler"] == (OUR_SCALER if dtype == "fp16" else None)


def resumed(
    program: Program, tmp_path: Path, way: str, lost: str | None = None, device: str = "cpu"
) -> bool:
    """Whether a run in two pieces is the whole one; `lost` is set to 0 in between."""
    more = (*WAYS[way], "--dropout", 0.1, "--device", device)
    whole, file = tmp_path / "whole.pt", tmp_path / "pieces.pt"
    assert program(*more, "--checkpoint", whole, out="whole") == 0
    assert program(*more, "--checkpoint", file, "--stop-after", 7, out="pieces") == 0
    torch.manual_seed(123)
    if lost:
        saved = torch.load(file, weights_only=True)
        for state in saved["stepper"]["optimizer"]["state"].values():
            state[lost].zero_()
        torch.save(saved, file)
    assert program("--resume", file, "--checkpoint", file, "--device", device, out="pieces") == 0
    one, other = (torch.load(each, weights_only=True) for each in (whole, file))
    logs = [losses(read_log(tmp_path / out / "log.jsonl"), "train") for out in ("whole", "pieces")]
    equal = all(torch.equal(weight, other["model"][name]) for name, weight in one["model"].items())
    states = [each["stepper"]["optimizer"]["state"] for each in (one, other)]
    equal &= all(
        torch.equal(value, states[1][index][key])
        for index, state in states[0].items()
        for key, value in state.items()
    )
    return equal and logs[0] == logs[1] and one["stepper"]["scaler"] == other["stepper"]["scaler"]


@pytest.mark.parametrize("way", WAYS)
def test_resumed_run_of_16_bits_equals_the_uninterrupted_one(
    program: Program, tmp_path: Path, way: str
) -> None:
    assert resumed(program, tmp_path, way)


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
def test_resumed_run_of_16_bits_equals_the_uninterrupted_one_on_a_gpu(
    program: Program, tmp_path: Path, way: str
) -> None:
    assert resumed(program, tmp_path, way, device="cuda")


@pytest.mark.parametrize("way", ["bf16-remainder", "bf16-fp32"])
def test_master_that_is_lost_on_the_way_is_seen(program: Program, tmp_path: Path, way: str) -> None:
    """Negative control of the one above."""
    assert not resumed(program, tmp_path, way, MASTER_KEYS[way.split("-")[1]])


def test_overflow_lowers_the_loss_scale_and_leaves_the_parameters(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale so large that the first gradients cannot be finite; training goes on with less."""
    build = optimizers.BUILDERS["bertadam"]

    def with_large_scale(groups: Any, settings: Any) -> optimizers.Stepper:
        stepper = build(groups, settings)
        assert stepper.scaler is not None
        state = stepper.scaler.state_dict()
        stepper.scaler.load_state_dict({**state, "scale": 2.0**30})
        return stepper

    monkeypatch.setitem(optimizers.BUILDERS, "bertadam", with_large_scale)
    assert program("--dtype", "fp16", "--steps", 40, "--eval-every", 1) == 0
    records = read_log(tmp_path / "out" / "log.jsonl")
    held_out = [record for record in records if record["event"] == "held_out"]
    # Each of the first updates halves the scale and changes nothing.
    assert held_out[1]["loss_scale"] == held_out[0]["loss_scale"] / 2
    assert held_out[1]["loss"] == held_out[0]["loss"]
    assert held_out[-1]["loss_scale"] < 2.0**29
    assert held_out[-1]["loss"] < held_out[0]["loss"] - 0.2


# Against fp32


def test_comparison_of_storages_runs_end_to_end(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("--compare", "storage", "--steps", 10) == 0
    out = tmp_path / "out"
    assert (out / "storage.png").read_bytes().startswith(b"\x89PNG")
    found = {file.stem: read_log(file)[0]["stored_as"] for file in sorted(out.glob("log-*.jsonl"))}
    assert found == {
        "log-fp32": "fp32",
        "log-bf16-remainder": "bf16, master remainder",
        "log-bf16-stochastic-rounding": "bf16, stochastic rounding",
        "log-bf16-no-master": "bf16",
    }
    printed = capsys.readouterr().out
    assert printed.count(" held out ") == 4
    assert str(out / "storage.png") in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--compare", "storage", "--dtype", "bf16"), "leave out --dtype"),
        (("--compare", "storage", "--optimizer", "torch"), "leave out --optimizer"),
        (("--compare", "storage", "--reference-runs", 2), "--reference-runs: only with"),
        (("--compare", "reference", "--dtype", "bf16"), "--compare reference is for --dtype fp32"),
    ],
    ids=str,
)
def test_comparison_that_makes_no_sense_is_refused(
    program: Program, more: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(*more) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
