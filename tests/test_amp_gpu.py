"""Scalers on a GPU: the bits of the CPU, for every stage, gradient and way to clip."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from backends import Twin, odd_grads, odd_params, same, to_device
from scaler_cases import (
    CLIPS,
    MASTERS,
    ScaledCase,
    attributes,
    everything,
    half_step,
    make_half,
    make_scaler,
)
from torch import Tensor, nn

from bertadam_cuda import BertAdam
from bertadam_cuda.amp import GradScaler

pytestmark = pytest.mark.gpu
TORCH = torch.amp.GradScaler
kinds = pytest.mark.parametrize("kind", [GradScaler, TORCH], ids=["ours", "torch's"])
clips = pytest.mark.parametrize("settings", CLIPS.values(), ids=CLIPS)
#: Steps with infinities or NaN, among ten.
BAD = {1: math.inf, 2: math.nan, 6: -math.inf}


def scaled_run(
    kind: type[TORCH], device: str, unscale: bool, blocks: int = 0, **settings: Any
) -> tuple[list[Any], list[Tensor]]:
    """The history of scales, and everything that the steps wrote, of sizes at all edges."""
    torch.manual_seed(0)
    twin = Twin(copy.deepcopy(odd_params()), device, **settings)
    scaler = make_scaler(kind, device, growth_interval=2)
    history: list[Any] = []
    for step in range(10):
        for plan in twin.opt._plans:
            plan.workers = blocks
        scale = scaler.get_scale()
        for index, (param, grad) in enumerate(
            zip(twin.params, odd_grads(odd_params(), step), strict=True)
        ):
            if grad is not None:
                grad = grad.nan_to_num(0.0, 0.0, 0.0) * scale
                if step in BAD and index == 9 - step:
                    grad.view(-1)[-1:] = BAD[step]
            param.grad = None if grad is None else to_device(grad, device)
        if unscale:
            scaler.unscale_(twin.opt)
        scaler.step(twin.opt)
        scaler.update()
        history.append((scaler.get_scale(), scaler._get_growth_tracker()))
        assert attributes(twin.opt) == set()
    return history, twin.bits()


@clips
@kinds
@pytest.mark.parametrize("unscale", [False, True], ids=["ready", "unscaled"])
def test_cpu_and_gpu_give_the_same_bits(
    kind: type[TORCH], settings: dict[str, Any], unscale: bool
) -> None:
    scales, expected = scaled_run(kind, "cpu", unscale, **settings)
    found_scales, found = scaled_run(kind, "cuda", unscale, **settings)
    assert found_scales == scales
    assert same(found, expected)
    assert {scale for scale, _ in scales} != {1024.0}


@clips
@pytest.mark.parametrize("blocks", [1, 2, 132, 10_000])
def test_any_number_of_blocks_finds_the_same_infinities(
    settings: dict[str, Any], blocks: int
) -> None:
    expected = scaled_run(GradScaler, "cpu", False, **settings)
    found = scaled_run(GradScaler, "cuda", False, blocks, **settings)
    assert found[0] == expected[0]
    assert same(found[1], expected[1])


def set_by_hand(device: str, scale: float | None, found_inf: float | None) -> BertAdam:
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(70_000).to(device))
    opt = BertAdam([param], lr=0.1)
    for step in range(2):
        param.grad = torch.randn(70_000).to(device)
        if step == 1 and scale is not None:
            opt.grad_scale = torch.tensor(scale, device=device)
        if step == 1 and found_inf is not None:
            opt.found_inf = torch.tensor(found_inf, device=device)
        opt.step()
    return opt


@pytest.mark.parametrize("found_inf", [None, 0.0, 1.0, 2.0, math.nan])
@pytest.mark.parametrize("scale", [None, 3.0, 2.0**20, 0.0, -1.0, math.inf, math.nan])
def test_attributes_by_hand_mean_the_same(scale: float | None, found_inf: float | None) -> None:
    """Scales that are no power of two round the coefficient; those that no loss had skip."""
    results = []
    for device in ("cpu", "cuda"):
        opt = set_by_hand(device, scale, found_inf)
        param = opt.param_groups[0]["params"][0]
        tensors = [param.detach(), *opt.state[param].values(), opt.skipped, opt.clip_coefs]
        results.append([tensor.cpu() for tensor in tensors])
    assert all(map(torch.equal, *results))


@kinds
def test_a_large_tensor_is_skipped_as_one(kind: type[TORCH]) -> None:
    """More chunks than all rings hold, an infinity in the last element."""
    param = nn.Parameter(torch.randn(40_000_001, device="cuda"))
    small = nn.Parameter(torch.randn(5, device="cuda"))
    opt, scaler = BertAdam([small, param], lr=0.1), make_scaler(kind, "cuda")
    for step in range(4):
        small.grad, param.grad = torch.ones_like(small), torch.ones_like(param)
        if step == 1:
            param.grad[-1] = math.inf
        before = [small.detach().clone(), param.detach().clone()]
        scaler.step(opt)
        scaler.update()
        unchanged = [torch.equal(old, new) for old, new in zip(before, (small, param), strict=True)]
        assert unchanged == [step == 1] * 2
    assert [opt.state[p]["step"].item() for p in (small, param)] == [3, 3]
    assert int(opt.skipped) == 2


@pytest.mark.parametrize("clip", ["per_tensor", "global"])
@pytest.mark.parametrize(("dtype", "settings"), MASTERS, ids=str)
def test_parameters_of_16_bits_give_the_same_bits(
    dtype: torch.dtype, settings: dict[str, Any], clip: str
) -> None:
    results = []
    for device in ("cpu", "cuda"):
        params, opt = make_half(dtype, device, clip=clip, **settings)
        scaler = make_scaler(GradScaler, device, growth_interval=2)
        for step in range(9):
            half_step(params, opt, scaler, step)
        results.append([scaler.state_dict(), *[t.cpu() for t in everything(params, opt)]])
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1:], results[1][1:]))


@kinds
def test_nothing_waits_for_the_device(kind: type[TORCH]) -> None:
    case, scaler = ScaledCase(device="cuda"), make_scaler(kind, "cuda")
    case.set_grads(6, 1024.0)
    for _ in range(2):
        scaler.step(case.opt)
        scaler.update()
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        scaler.step(case.opt)
        scaler.update()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def launches(run: Any) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    on_device = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_device)


def test_a_step_under_our_scaler_is_still_one_launch() -> None:
    case = ScaledCase(device="cuda")
    counts = []
    for kind in (GradScaler, TORCH):
        scaler = make_scaler(kind, "cuda")
        case.set_grads(6, 1024.0)
        scaler.step(case.opt)
        scaler.update()
        counts.append(launches(lambda scaler=scaler: scaler.step(case.opt)))
        scaler.update()
    assert counts[0] == 1
    assert counts[1] > counts[0], "torch's looks at the gradients first"


def test_parameters_on_cpu_and_gpu_are_left_to_torchs_check() -> None:
    params = [nn.Parameter(torch.ones(3000, device=device)) for device in ("cpu", "cuda")]
    opt, scaler = BertAdam(params, lr=0.1), make_scaler(GradScaler, "cuda")
    for bad in (None, math.nan):
        for param in params:
            param.grad = torch.full_like(param, 1024.0)
        if bad is not None:
            params[1].grad[0] = bad
        before = [param.detach().clone() for param in params]
        scaler.step(opt)
        scaler.update()
        same_as_before = [torch.equal(a, b) for a, b in zip(before, params, strict=True)]
        assert same_as_before == [bad is not None] * 2
    assert scaler.get_scale() == 512.0
    assert int(opt.skipped) == 2


def test_a_scale_on_another_device_is_brought_over() -> None:
    case = ScaledCase(device="cuda")
    grads = case.set_grads(0, 8.0)
    before = [param.detach().clone() for param in case.params]
    case.opt.grad_scale, case.opt.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    case.opt.step()
    case.check_update(grads, before)


@clips
@kinds
def test_a_gpu_step_agrees_with_the_oracle(kind: type[TORCH], settings: dict[str, Any]) -> None:
    case, scaler = ScaledCase(device="cuda", **settings), make_scaler(kind, "cuda")
    for step in range(6):
        bad = math.inf if step == 3 else None
        grads = case.set_grads(step, scaler.get_scale(), bad)
        before, memory = [p.detach().clone() for p in case.params], case.memory()
        scaler.step(case.opt)
        scaler.update()
        if bad is None:
            case.check_update(grads, before)
        else:
            assert case.memory() == memory
