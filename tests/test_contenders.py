"""Contenders compute what they say, count their bytes and leave the inputs alone."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import contender_steps
import measurement
from contender_check import WrongResult, check
from contenders import (
    APEX_NO_WAIT,
    CLIPS,
    FOREACH,
    FUSED,
    OUR_ADAMW,
    OURS,
    PLAIN,
    Contender,
    contenders,
)
from model_shapes import MODELS
from storage import DTYPES

CPU = torch.device("cpu")


def candidate(name: str, clip: str, dtype: str = "fp32") -> Contender:
    return next(each for each in contenders(clip, "cpu", dtype) if each.name == name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", CLIPS)
def test_every_contender_that_runs_here_computes_its_semantics(clip: str, dtype: str) -> None:
    for contender in contenders(clip, "cpu", dtype):
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


def other_first_beta(groups: list[dict[str, Any]]) -> Any:
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.89, 0.999), eps=1e-6, fused=True).step


WRONG = [
    *(larger_lr, without_decay, other_beta, other_first_beta, without_the_last_tensor),
    *(nothing, not_a_number),
]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("build", WRONG, ids=lambda build: build.__name__)
def test_contender_with_a_wrong_result_is_refused(build: Any, dtype: str) -> None:
    """Negative controls: the same check accepts torch's AdamW itself, above."""
    wrong = dataclasses.replace(candidate(FUSED, "none", dtype), build=build)
    with pytest.raises(WrongResult, match="float64"):
        check(wrong, CPU)


def test_wrong_lr_shows_in_spite_of_roundings_of_every_operation() -> None:
    """Each element may be 3 % off; together they tell 1 %."""

    def build(groups: list[dict[str, Any]]) -> Any:
        return torch.optim.AdamW(groups, lr=1.01e-3, eps=1e-6, foreach=True).step

    wrong = dataclasses.replace(candidate(FOREACH, "none", "bf16"), build=build)
    with pytest.raises(WrongResult, match="times as much as in float64"):
        check(wrong, CPU)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [OURS, FUSED, FOREACH, PLAIN])
@pytest.mark.parametrize("claimed", CLIPS)
@pytest.mark.parametrize("done", CLIPS)
def test_contender_that_clips_otherwise_than_it_says_is_refused(
    name: str, claimed: str, done: str, dtype: str
) -> None:
    contender = dataclasses.replace(candidate(name, done, dtype), clip=claimed)
    if done == claimed:
        check(contender, CPU)
    else:
        with pytest.raises(WrongResult, match=f"clip {claimed}"):
            check(contender, CPU)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", CLIPS)
def test_timed_gradients_are_the_same_after_every_contender(clip: str, dtype: str) -> None:
    """They are shared, also with contenders that scale or unscale them in place."""
    groups = measurement.make_groups(MODELS["bert-toy"](), CPU, DTYPES[dtype])
    params = [param for group in groups for param in group["params"]]
    grads = [param.grad for param in params]
    before = [grad.clone() for grad in grads]
    required = [each for each in contenders(clip, "cpu", dtype) if not each.optional]
    notes: dict[str, str] = {}
    started = measurement.start(required, groups, notes)
    assert len(started) == len(required)
    assert not notes
    for param, grad, expected in zip(params, grads, before, strict=True):
        assert param.grad is grad
        assert torch.equal(grad, expected)


@pytest.mark.parametrize("claimed", CLIPS)
@pytest.mark.parametrize("done", CLIPS)
def test_our_adamw_that_clips_otherwise_than_it_says_is_refused(claimed: str, done: str) -> None:
    contender = dataclasses.replace(candidate(OUR_ADAMW, done), clip=claimed)
    if done == claimed:
        check(contender, CPU)
    else:
        with pytest.raises(WrongResult, match=f"clip {claimed}"):
            check(contender, CPU)


def test_our_adamw_moves_what_our_bertadam_moves_and_is_none() -> None:
    for clip in CLIPS:
        adamw = candidate(OUR_ADAMW, clip)
        assert adamw.bytes_per_param == candidate(OURS, clip).bytes_per_param
        with pytest.raises(WrongResult, match="float64"):
            check(dataclasses.replace(adamw, bias_correction=False), CPU)


def test_ours_counts_the_bytes_that_its_clipping_cannot_do_without() -> None:
    """Gradients stay on the chip unless one norm is over all of them; 28 + 4 B where it is."""
    counted = {clip: candidate(OURS, clip).bytes_per_param for clip in CLIPS}
    assert counted == {"per_tensor": 28.0, "global": 32.0, "none": 28.0}


def test_ours_without_clipping_computes_no_norm() -> None:
    """Its default there is on_nonfinite='propagate', so 28 B is all that it moves."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.tensor([1.0, float("nan"), 1.0])
    step = candidate(OURS, "none").build([{"params": [param]}])
    step()
    optimizer: Any = step.__self__  # type: ignore[attr-defined]
    assert optimizer.grad_norms is None
    assert param.isnan().tolist() == [False, True, False]


def test_apex_without_the_wait_clips_by_the_norm_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for apex, whose kernels need a GPU; the check against float64 is the real one."""

    def norm(chunk_size: int, flag: Any, lists: list[list[torch.Tensor]], per_tensor: bool) -> Any:
        assert (flag.dtype, per_tensor) == (torch.int32, False)
        return torch.cat([each.flatten() for each in lists[0]]).norm().reshape(1), None

    def fake(name: str, **members: Any) -> None:
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)

    for name in ("apex", "apex.contrib"):
        fake(name)
    fake("apex.contrib.clip_grad", clip_grad_norm_=None)
    fake("apex.optimizers", FusedAdam=torch.optim.AdamW)
    fake("apex.multi_tensor_apply", multi_tensor_applier=lambda op, *more: op(65536, *more))
    fake("amp_C", multi_tensor_l2norm=norm)
    gpu = {clip: [each.name for each in contenders(clip, "cuda")] for clip in CLIPS}
    assert [clip for clip in CLIPS if APEX_NO_WAIT in gpu[clip]] == ["global"]
    check(next(each for each in contenders("global", "cuda") if each.name == APEX_NO_WAIT), CPU)


def test_settings_of_all_contenders_are_the_modules() -> None:
    """The float64 check reads the same constants, so a changed one changes both."""
    assert contender_steps.MAX_GRAD_NORM == 1.0
    assert measurement._GRAD_NORM < contender_steps.MAX_GRAD_NORM
