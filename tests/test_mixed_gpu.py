"""Low precision on a GPU: blocks, retention, several devices, long runs."""

from __future__ import annotations

import pytest
import torch
from backends import as_integers, to_device
from mixed_backends import CLIPS, mixture, run
from mixed_cases import (
    DTYPES,
    MODES,
    clone_params,
    masters_of,
    params_of,
    same,
    set_grads,
    train,
    values_of,
)
from torch import nn

from bertadam_cuda import BertAdam

pytestmark = pytest.mark.gpu
modes = pytest.mark.parametrize("mode", MODES)


@pytest.mark.parametrize("blocks", [1, 2, 132, 10_000])
@modes
def test_any_number_of_blocks_gives_the_same_bits(mode: str, blocks: int) -> None:
    params = mixture(mode)
    expected = run(params, "cpu", DTYPES, **MODES[mode])
    assert same(run(params, "cuda", DTYPES, workers=blocks, **MODES[mode]), expected)


def large_params(dtypes: tuple[torch.dtype, ...]) -> list[nn.Parameter]:
    """More chunks than the ring of one block has slots, and one tensor more than all rings."""
    sizes = [(6_000_001,), (1000, 1000), (70_000,), (3,), (2048, 1024)]
    return [
        nn.Parameter(torch.randn(size).to(dtypes[i % len(dtypes)])) for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("clip", "retained_draws"),
    [*(("per tensor", n) for n in (-1, 0, 7, 10**6)), ("global", -1)],  # global: nothing is kept
)
@modes
def test_retention_leaves_no_trace(mode: str, clip: str, retained_draws: int) -> None:
    """What is kept on chip, in slots of gradients of several sizes, changes no bit."""
    params = large_params(DTYPES[1::-1])
    settings = {**MODES[mode], **CLIPS[clip]}
    expected = run(params, "cpu", DTYPES, n_steps=2, **settings)
    for blocks in (0, 5, 10_000):
        how = {"workers": blocks, "retained_draws": retained_draws, **settings}
        assert same(run(params, "cuda", DTYPES, n_steps=2, **how), expected), blocks


@modes
def test_parameters_on_cpu_and_gpu_in_one_optimizer(mode: str) -> None:
    """Random bits count parameters over all devices."""
    dtypes = (torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16)
    devices = ("cpu", "cuda", "cuda", "cpu", "cuda")
    values = [torch.randn(5000) for _ in dtypes]
    pairs = list(zip(values, dtypes, strict=True))
    mixed = [
        nn.Parameter(x.to(dtype).to(device))
        for (x, dtype), device in zip(pairs, devices, strict=True)
    ]
    plain = [nn.Parameter(x.to(dtype)) for x, dtype in pairs]
    opts = [BertAdam(params, lr=0.1, **MODES[mode]) for params in (mixed, plain)]
    for step in range(3):
        for params in (mixed, plain):
            torch.manual_seed(step)
            for param in params:
                param.grad_dtype = None
                param.grad = torch.randn(5000).bfloat16().to(param.device)
        for opt in opts:
            opt.step()
    assert same([p.detach().cpu() for p in mixed], [p.detach() for p in plain])


@pytest.mark.parametrize("to", ["fp32", "remainder"])
@pytest.mark.parametrize("of", ["fp32", "remainder"])
def test_a_run_may_move_to_the_gpu_with_its_masters(of: str, to: str) -> None:
    cpu = BertAdam(clone_params(mixture("remainder")), lr=0.02, **MODES[of])
    for param in params_of(cpu):
        param.grad_dtype = None
    train(cpu, 0, 3)
    moved = [nn.Parameter(to_device(param.detach(), "cuda")) for param in params_of(cpu)]
    gpu = BertAdam(moved, lr=0.02, **MODES[to])
    gpu.load_state_dict(cpu.state_dict())
    for step in range(3, 6):
        set_grads(params_of(cpu), step)
        for ours, theirs in zip(moved, params_of(cpu), strict=True):
            ours.grad_dtype = None
            assert theirs.grad is not None
            ours.grad = to_device(theirs.grad, "cuda")
        for opt in (cpu, gpu):
            opt.step()
    assert same([master.cpu() for master in masters_of(gpu)], masters_of(cpu))


def test_a_remainder_is_the_copy_bit_for_bit_on_the_gpu() -> None:
    opts = []
    for mode in ("fp32", "remainder"):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(n, device="cuda").bfloat16()) for n in (1, 300, 70_000)]
        opt = BertAdam(params, lr=0.01, **MODES[mode])
        for step in range(1000):
            torch.manual_seed(step)
            for param in params:
                param.grad = torch.randn_like(param)
            opt.step()
        opts.append(opt)
    assert same(masters_of(opts[0]), masters_of(opts[1]))
    assert not same(masters_of(opts[0]), [p.detach().float() for p in params_of(opts[0])])


@modes
def test_a_hundred_runs_on_the_gpu_give_the_same_bits(mode: str) -> None:
    params = [
        nn.Parameter(torch.randn(shape, device="cuda").bfloat16())
        for shape in [(1024, 1024), (4096,), (3000, 101)]
    ]
    results = set()
    for _ in range(100):
        opt = BertAdam([nn.Parameter(p.detach().clone()) for p in params], lr=0.1, **MODES[mode])
        for step in range(3):
            torch.manual_seed(step)
            for param in params_of(opt):
                param.grad = torch.randn_like(param)
            opt.step()
        bits = [as_integers(tensor).numpy().tobytes() for tensor in values_of(opt)]
        results.add(b"".join(bits))
    assert len(results) == 1
