"""LAMB's contenders: that each is checked against the formulas, and apex's gradients."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import bench_step
import lamb_contenders as lamb
import measurement
import timing
from bench_report import read_csv
from contender_check import WrongResult, check
from contenders import OURS, Contender
from lamb_contenders import APEX_LAMB, CLIPS, PLAIN_LAMB, lamb_contenders
from model_shapes import MODELS
from plain_lamb import PlainLAMB

CPU = torch.device("cpu")
LAMB_SETTINGS: dict[str, Any] = {"lr": 1e-3, "max_grad_norm": 0.0}


def candidate(name: str, clip: str, device: str = "cpu") -> Contender:
    return next(each for each in lamb_contenders(clip, device) if each.name == name)


# What they compute


@pytest.mark.parametrize("claimed", CLIPS)
@pytest.mark.parametrize("done", CLIPS)
@pytest.mark.parametrize("name", [OURS, PLAIN_LAMB])
def test_contender_computes_lamb_and_clips_as_it_says(name: str, done: str, claimed: str) -> None:
    contender = dataclasses.replace(candidate(name, done), clip=claimed)
    if done == claimed:
        check(contender, CPU)
    else:
        with pytest.raises(WrongResult, match=f"clip {claimed}"):
            check(contender, CPU)


class WithoutRatio(PlainLAMB):
    """AdamW: the ratio is undone."""

    @torch.no_grad()
    def _step_param(self, p: Any, group: dict[str, Any], coefficient: Any) -> None:
        before = p.clone()
        super()._step_param(p, group, coefficient)
        update = before - p
        p.copy_(before - update * (1e-3 * before.numel() ** 0.5 / before.norm()))


def larger_lr(groups: Any) -> Any:
    return PlainLAMB(groups, **{**LAMB_SETTINGS, "lr": 1.01e-3}).step


def other_beta(groups: Any) -> Any:
    return PlainLAMB(groups, **LAMB_SETTINGS, betas=(0.9, 0.99)).step


def without_decay(groups: Any) -> Any:
    plain = [{**group, "weight_decay": 0.0} for group in groups]
    return PlainLAMB(plain, **LAMB_SETTINGS).step


def without_ratio(groups: Any) -> Any:
    return WithoutRatio(groups, **LAMB_SETTINGS).step


def ratio_of_decayed_tensors_only(groups: Any) -> Any:
    """LAMB without the 'NV'."""
    lamb_step = PlainLAMB(groups[:1], **LAMB_SETTINGS).step
    adam_step = torch.optim.AdamW(groups[1:], lr=1e-3, eps=1e-6, fused=True).step
    return lambda: (lamb_step(), adam_step())


@pytest.mark.parametrize(
    "build",
    [larger_lr, other_beta, without_decay, without_ratio, ratio_of_decayed_tensors_only],
    ids=lambda build: build.__name__,
)
def test_contender_with_a_wrong_result_is_refused(build: Any) -> None:
    """Negative controls: the same check accepts the loop itself, above."""
    wrong = dataclasses.replace(candidate(PLAIN_LAMB, "none"), build=build)
    with pytest.raises(WrongResult, match="float64"):
        check(wrong, CPU)


def test_rules_are_not_mixed_up() -> None:
    for contender in lamb_contenders("none", "cpu"):
        with pytest.raises(WrongResult, match="float64"):
            check(dataclasses.replace(contender, optimizer="adam"), CPU)


# What they move


def test_bytes_are_counted() -> None:
    assert {clip: candidate(OURS, clip).bytes_per_param for clip in CLIPS} == {
        "global": 36.0,
        "none": 32.0,
    }
    assert candidate(APEX_LAMB, "global", "cuda").bytes_per_param == 52.0
    assert candidate(PLAIN_LAMB, "global").bytes_per_param == 136.0


def test_apex_is_there_where_it_clips() -> None:
    names = {clip: [each.name for each in lamb_contenders(clip, "cuda")] for clip in CLIPS}
    assert names == {"global": [OURS, PLAIN_LAMB, APEX_LAMB], "none": [OURS, PLAIN_LAMB]}
    assert lamb_contenders("per_tensor", "cuda") == []
    assert lamb_contenders("global", "cuda", "bf16") == []


# Gradients that are overwritten


class Overwriting(PlainLAMB):
    """Leaves something else in the gradients, as apex does."""

    def __init__(self, params: Any, *, use_nvlamb: bool, **settings: Any) -> None:
        assert use_nvlamb
        super().__init__(params, **settings)

    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.fill_(float("nan"))


@pytest.fixture
def apex_like(monkeypatch: pytest.MonkeyPatch) -> Contender:
    """Stands in for apex, whose kernels need a GPU."""
    module = types.ModuleType("apex.optimizers")
    module.FusedLAMB = Overwriting  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    return dataclasses.replace(candidate(APEX_LAMB, "global", "cuda"), only_on=("cpu",))


def test_contender_that_overwrites_gradients_is_checked_like_the_others(
    apex_like: Contender,
) -> None:
    check(apex_like, CPU)


def test_overwritten_gradients_are_its_own_and_restored_before_each_call(
    apex_like: Contender,
) -> None:
    groups = measurement.make_groups(MODELS["bert-toy"](), CPU)
    params = [param for group in groups for param in group["params"]]
    before = [param.grad.clone() for param in params]
    notes: dict[str, str] = {}
    call = measurement.start([apex_like], groups, notes)[apex_like.label].call
    for clock in (timing.wall_us, lambda call: timing.IdleTimes.of(call, 2)):
        clock(call)
        assert not any(param.isnan().any() for param in params)
    call()  # without what comes before
    assert all(param.isnan().all() for param in params), "negative control"
    assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before, strict=True))
    assert not notes


# The program


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.setitem(timing.COPY_BYTES, "cpu", 2**16)
    arguments = ["--device", "cpu", "--model", "bert-toy", "--rounds", "3", "--optimizer", "lamb"]
    return bench_step.main([*arguments, "--out", str(tmp_path), *more])


def test_program_times_lamb_in_files_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch) == 0
    assert not (tmp_path / "bench_step_cpu_bert-toy.csv").exists()
    rows, _ = read_csv(tmp_path / "bench_step_cpu_bert-toy_lamb.csv")
    assert [(row.clip, row.contender) for row in rows] == [
        *(("global", OURS), ("global", PLAIN_LAMB), ("none", OURS), ("none", PLAIN_LAMB))
    ]
    assert {row.optimizer for row in rows} == {"lamb"}
    for row in rows:
        assert row.ours_over_this is not None
        assert row.percent_of_copy is not None
        assert row.necessary_percent == pytest.approx(
            row.percent_of_copy * 32 / row.bytes_per_param
        )
    text = capsys.readouterr().out
    assert "14,726 parameters, fp32, LAMB" in text
    assert "% at 32 B" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--dtype", "bf16"), "--optimizer lamb is for --dtype fp32"),
        (("--clip", "per_tensor"), "--optimizer lamb clips by the norm over all, or not"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_lamb_has_not_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, monkeypatch, *more)
    assert message in capsys.readouterr().err


def test_module_has_the_settings_of_the_others() -> None:
    assert lamb._SETTINGS == {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6}
