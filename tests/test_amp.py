"""bertadam_cuda.amp.GradScaler: torch's history of scales, without its read of all gradients."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from scaler_cases import CLIPS, SCALE, ScaledCase, attributes, make_scaler
from torch import Tensor, nn

from bertadam_cuda import BertAdam
from bertadam_cuda.amp import GradScaler

TORCH = torch.amp.GradScaler
clips = pytest.mark.parametrize("settings", CLIPS.values(), ids=CLIPS)
History = list[tuple[float, int]]


class Run:
    """Steps with overflows under one kind of scaler."""

    def __init__(self, kind: type[TORCH], **settings: Any) -> None:
        self.case = ScaledCase(**settings)
        self.scaler = make_scaler(kind, growth_interval=3)
        self.history: History = []

    def step(self, step: int, bad: float | None, unscale: bool = False) -> None:
        self.case.set_grads(step, self.scaler.get_scale(), bad)
        if unscale:
            self.scaler.unscale_(self.case.opt)
        self.scaler.step(self.case.opt)
        self.scaler.update()
        self.history.append((self.scaler.get_scale(), self.scaler._get_growth_tracker()))


def bad_at(step: int) -> float | None:
    return {2: math.inf, 3: -math.inf, 8: math.nan, 14: math.inf, 15: math.nan}.get(step)


def statistics(opt: BertAdam) -> list[Tensor | None]:
    return [opt.grad_norms, opt.grad_norm, opt.clip_coefs]


@clips
@pytest.mark.parametrize("unscale", [(), range(5, 12)], ids=["ready", "sometimes unscaled"])
def test_scales_and_steps_are_those_of_torch(settings: dict[str, Any], unscale: Any) -> None:
    ours, theirs = Run(GradScaler, **settings), Run(TORCH, **settings)
    for step in range(24):
        for run in (ours, theirs):
            run.step(step, bad_at(step), step in unscale)
        assert ours.case.memory() == theirs.case.memory(), step
    assert ours.history == theirs.history
    moves = {b / a for (a, _), (b, _) in zip(ours.history, ours.history[1:], strict=False)}
    assert moves == {0.5, 1.0, 2.0}, "it backed off, stayed and grew"
    assert int(ours.case.opt.skipped) == int(theirs.case.opt.skipped) > 0


def test_a_scale_that_forgets_an_overflow_would_be_noticed() -> None:
    """A negative control."""
    ours, theirs = Run(GradScaler), Run(TORCH)
    for step in range(6):
        ours.step(step, None if step == 2 else bad_at(step))
        theirs.step(step, bad_at(step))
    assert ours.history != theirs.history


@clips
def test_one_bad_gradient_leaves_out_the_whole_step(settings: dict[str, Any]) -> None:
    """Also per tensor, where each parameter would skip for itself without a scaler."""
    run = Run(GradScaler, **settings)
    run.step(0, None)
    before = run.case.memory()
    run.step(1, math.nan)
    assert run.case.memory() == before
    n_grads = sum(param.grad is not None for param in run.case.params)
    assert int(run.case.opt.skipped) == n_grads


@clips
def test_a_step_agrees_with_the_oracle(settings: dict[str, Any]) -> None:
    case, scaler = ScaledCase(**settings), make_scaler(GradScaler, growth_interval=2)
    for step in range(7):
        grads = case.set_grads(step, scaler.get_scale())
        before = [param.detach().clone() for param in case.params]
        scaler.step(case.opt)
        scaler.update()
        case.check_update(grads, before)
        assert attributes(case.opt) == set()


@clips
def test_statistics_are_those_without_a_scaler(settings: dict[str, Any]) -> None:
    case, plain = ScaledCase(**settings), ScaledCase(**settings)
    scaler = make_scaler(GradScaler)
    for step in range(3):
        case.set_grads(step, SCALE)
        plain.set_grads(step, 1.0)
        scaler.step(case.opt)
        scaler.update()
        plain.opt.step()
        for ours, theirs in zip(statistics(case.opt), statistics(plain.opt), strict=True):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))


@pytest.mark.parametrize("bad", [None, math.nan])
def test_a_null_step_under_a_scaler_does_not_count(bad: float | None) -> None:
    """As checkpointing tools take it: lr 0, gradients 0. With a NaN it is a skipped step."""
    param = nn.Parameter(torch.ones(3000))
    opt, scaler = BertAdam([param], lr=0.0), make_scaler(GradScaler)
    param.grad = torch.zeros(3000)
    if bad is not None:
        param.grad[7] = bad
    scaler.step(opt)
    scaler.update()
    assert opt.state[param]["step"].item() == 0
    assert scaler.get_scale() == (SCALE if bad is None else SCALE / 2)
    assert int(opt.skipped) == (0 if bad is None else 1)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows whenever torch looks through gradients."""
    reads: list[None] = []
    check = TORCH._unscale_grads_

    def counted(*args: Any) -> Any:
        reads.append(None)
        return check(*args)

    monkeypatch.setattr(TORCH, "_unscale_grads_", counted)
    return reads


def test_gradients_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_reads(monkeypatch)
    run = Run(GradScaler)
    for step in range(3):
        run.step(step, None)
    assert reads == []
    run.step(3, None, unscale=True)
    assert len(reads) == 1
    Run(TORCH).step(0, None)
    assert len(reads) == 2


def test_alternating_steps_keep_their_work_lists() -> None:
    """A plan made anew has new scratch memory."""
    case, scaler = ScaledCase(), make_scaler(GradScaler)

    def scratch(scaled: bool) -> int:
        case.set_grads(0, SCALE if scaled else 1.0)
        scaler.step(case.opt) if scaled else case.opt.step()
        scaler.update(SCALE)
        return int(case.opt._plans[0].scratch[0].data_ptr())

    used = [scratch(step % 2 == 0) for step in range(8)]
    assert len(set(used)) == 2
    assert used == used[:2] * 4


def test_steps_without_the_scaler_in_between_change_no_bit() -> None:
    mixed, plain = ScaledCase(), ScaledCase()
    scaler = make_scaler(GradScaler)
    for step in range(8):
        plain.set_grads(step, 1.0)
        plain.opt.step()
        mixed.set_grads(step, SCALE if step % 3 else 1.0)
        scaler.step(mixed.opt) if step % 3 else mixed.opt.step()
        scaler.update(SCALE)
    assert mixed.memory() == plain.memory()


@pytest.mark.parametrize("bad", [None, "ours", "torch's"])
def test_several_optimizers_share_a_scaler(bad: str | None) -> None:
    """Each skips for itself; the scale knows of all of them, foreign ones included."""
    histories = []
    for kind in (GradScaler, TORCH):
        scaler = make_scaler(kind, growth_interval=2)
        first, second = ScaledCase(seed=1), ScaledCase(seed=2, clip="global")
        foreign = nn.Parameter(torch.ones(4))
        other = torch.optim.SGD([foreign], lr=0.1)
        history: list[Any] = []
        for step in range(5):
            now = step == 2
            first.set_grads(step, scaler.get_scale(), math.inf if now and bad == "ours" else None)
            second.set_grads(step, scaler.get_scale())
            foreign.grad = torch.full((4,), scaler.get_scale())
            if now and bad == "torch's":
                foreign.grad[0] = math.nan
            for opt in (first.opt, other, second.opt):
                scaler.step(opt)
            scaler.update()
            history += [scaler.get_scale(), first.memory(), second.memory(), foreign.tolist()]
        histories.append(history)
        assert int(first.opt.skipped) == (5 if bad == "ours" else 0)
        assert int(second.opt.skipped) == 0
    assert histories[0] == histories[1]


def test_state_dicts_are_interchangeable_with_torch() -> None:
    run = Run(GradScaler)
    for step in range(4):
        run.step(step, bad_at(step))
    other = TORCH("cpu")
    other.load_state_dict(run.scaler.state_dict())
    assert other.state_dict() == run.scaler.state_dict()
    assert pickle.loads(pickle.dumps(run.scaler)).state_dict() == run.scaler.state_dict()


@pytest.mark.parametrize("bad", [None, math.inf])
def test_an_error_in_the_step_records_nothing(bad: float | None) -> None:
    run = Run(GradScaler)
    run.step(0, None)
    run.case.set_grads(1, SCALE, bad)
    before = run.case.memory()
    run.case.opt.param_groups[0]["b1"] = 2.0
    with pytest.raises(ValueError, match="b1"):
        run.scaler.step(run.case.opt)
    assert attributes(run.case.opt) == set()
    assert run.case.memory() == before
    run.case.opt.param_groups[0]["b1"] = 0.9
    run.scaler.step(run.case.opt)
    run.scaler.update()
    assert (run.case.memory() == before) == (bad is not None)
    assert run.scaler.get_scale() == (SCALE if bad is None else SCALE / 2)


def test_a_users_grad_scale_is_multiplied_in() -> None:
    case, scaler = ScaledCase(), make_scaler(GradScaler)
    grads = case.set_grads(0, SCALE * 8)
    before = [param.detach().clone() for param in case.params]
    case.opt.grad_scale = torch.tensor(8.0)
    scaler.step(case.opt)
    case.check_update(grads, before)
    assert attributes(case.opt) == set()


def test_misuse_is_refused_as_torch_refuses_it() -> None:
    case = ScaledCase()
    with pytest.raises(AssertionError, match="_scale is None"):
        GradScaler("cpu").step(case.opt)
    scaler = make_scaler(GradScaler)
    case.set_grads(0, SCALE)
    with pytest.raises(RuntimeError, match="Closure use"):
        scaler.step(case.opt, closure=lambda: 0.0)
    with pytest.raises(RuntimeError, match="closure"):
        scaler.step(case.opt, lambda: 0.0)
    scaler.step(case.opt)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.step(case.opt)
    with pytest.raises(RuntimeError, match="after step"):
        scaler.unscale_(case.opt)


def test_a_disabled_scaler_only_steps() -> None:
    case, plain = ScaledCase(), ScaledCase()
    scaler = GradScaler("cpu", enabled=False)
    for each in (case, plain):
        each.set_grads(0, 1.0)
    scaler.step(case.opt)
    scaler.update()
    plain.opt.step()
    assert case.memory() == plain.memory()


def test_a_copied_optimizer_steps_under_the_scaler() -> None:
    """Its plans are not made yet: its devices are read from its parameters."""
    case, scaler = ScaledCase(), make_scaler(GradScaler)
    opt = copy.deepcopy(case.opt)
    params = [param for group in opt.param_groups for param in group["params"]]
    case.set_grads(0, SCALE)
    for param, source in zip(params, case.params, strict=True):
        param.grad = None if source.grad is None else source.grad.clone()
    scaler.step(case.opt)
    scaler.step(opt)
    assert all(map(torch.equal, params, case.params))


def test_hooks_of_the_step_run() -> None:
    case, scaler = ScaledCase(), make_scaler(GradScaler)
    calls: list[str] = []
    case.opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    case.opt.register_step_post_hook(lambda *_: calls.append("post"))
    case.set_grads(0, SCALE)
    scaler.step(case.opt)
    assert calls == ["pre", "post"]
