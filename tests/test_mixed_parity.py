"""Low precision: the same bits from CPU and GPU, for every row of types and for mixtures of all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backends import SIZES, Grads, Twin, as_integers, odd_grads, to_device
from mixed_cases import (
    DTYPES,
    MODES,
    ROWS,
    Row,
    clone_params,
    masters_of,
    params_of,
    same,
    set_grads,
    train,
    values_of,
)
from torch import Tensor, nn

from bertadam_cuda import BertAdam

CLIPS: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "global": {"clip": "global"},
    "no clip": {"max_grad_norm": 0.0},
    "propagate": {"on_nonfinite": "propagate"},
    "null steps": {"lr": 0.0},
}
rows = pytest.mark.parametrize("row", ROWS, ids=str)
modes = pytest.mark.parametrize("mode", MODES)
clips = pytest.mark.parametrize("clip", CLIPS)
#: Three workers in place of a GPU: what shows that the comparison works where there is none.
backends = pytest.mark.parametrize(
    ("device", "workers"),
    [("cpu", 3), pytest.param("cuda", 0, marks=pytest.mark.gpu)],
    ids=["cpu", "cuda"],
)


def cast(tensor: Tensor, dtype: torch.dtype, offset: int) -> Tensor:
    """A copy with the same strides, `offset` elements behind an aligned address."""
    buffer = torch.empty(tensor.numel() + 8, dtype=dtype)
    return buffer.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


def odd_shapes() -> list[Tensor]:
    images = torch.randn(8, 3, 5, 7).to(memory_format=torch.channels_last)
    flat = [torch.randn(size) for size in SIZES]
    return [torch.randn(()), *flat, images, torch.randn(40, 30).t()]


def odd_params(dtypes: tuple[torch.dtype, ...]) -> list[nn.Parameter]:
    """Every size at many alignments; the dtypes take turns."""
    return [
        nn.Parameter(cast(tensor, dtypes[i % len(dtypes)], i % 8))
        for i, tensor in enumerate(odd_shapes())
    ]


def mixture(mode: str) -> list[nn.Parameter]:
    return odd_params(DTYPES if mode in ("plain", "fp32") else DTYPES[:2])


def cast_grads(params: list[nn.Parameter], step: int, dtypes: tuple[torch.dtype, ...]) -> Grads:
    """Gradients of all kinds, in dtypes that change from step to step where there are several."""
    floats = odd_grads([nn.Parameter(param.detach().float()) for param in params], step)
    grads: Grads = []
    for i, grad in enumerate(floats):
        dtype = dtypes[(i + step) % len(dtypes)]
        grads.append(None if grad is None else cast(grad, dtype, (3 * i + step) % 8))
    return grads


def run(
    params: list[nn.Parameter],
    device: str,
    grad_dtypes: tuple[torch.dtype, ...],
    n_steps: int = 4,
    workers: int = 0,
    retained_draws: int = -1,
    **settings: Any,
) -> list[Tensor]:
    twin = Twin(copy.deepcopy(params), device, **settings)
    for param in twin.params:
        param.grad_dtype = None
    for step in range(n_steps):
        for plan in twin.opt._plans:
            plan.workers = workers
            if device == "cuda":
                plan.retained_draws = retained_draws
        twin.step(cast_grads(params, step, grad_dtypes))
    return twin.bits()


@rows
@clips
@backends
def test_every_row_of_types_gives_the_bits_of_the_cpu(
    row: Row, clip: str, device: str, workers: int
) -> None:
    params = odd_params((row.param,))
    settings = {**row.settings, **CLIPS[clip]}
    expected = run(params, "cpu", (row.grad,), **settings)
    assert same(run(params, device, (row.grad,), workers=workers, **settings), expected)


@modes
@clips
@backends
def test_mixtures_give_the_bits_of_the_cpu(mode: str, clip: str, device: str, workers: int) -> None:
    params = mixture(mode)
    settings = {**MODES[mode], **CLIPS[clip]}
    expected = run(params, "cpu", DTYPES, **settings)
    assert same(run(params, device, DTYPES, workers=workers, **settings), expected)


@modes
def test_a_difference_of_one_bit_would_be_noticed(mode: str) -> None:
    """A negative control: a bit of a gradient, of a parameter and of a master."""
    params = mixture(mode)
    expected = run(params, "cpu", DTYPES, **MODES[mode])
    assert same(run(params, "cpu", DTYPES, **MODES[mode]), expected)
    assert not same(run(params, "cpu", (*DTYPES[1:], DTYPES[0]), **MODES[mode]), expected)
    for tensor in expected:
        if tensor.numel() > 0:
            tensor[-1] ^= 1
            assert not same(run(params, "cpu", DTYPES, **MODES[mode]), expected)
            break


@pytest.mark.gpu
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


@pytest.mark.gpu
@pytest.mark.parametrize("retained_draws", [-1, 0, 7, 10**6], ids=lambda n: f"retained {n}")
@pytest.mark.parametrize("clip", ["per tensor", "global"])
@modes
def test_retention_leaves_no_trace(mode: str, clip: str, retained_draws: int) -> None:
    """What is kept on chip, in slots of gradients of several sizes, changes no bit."""
    params = large_params(DTYPES[1::-1])
    settings = {**MODES[mode], **CLIPS[clip]}
    expected = run(params, "cpu", DTYPES, n_steps=2, **settings)
    for blocks in (0, 5, 10_000):
        how = {"workers": blocks, "retained_draws": retained_draws, **settings}
        assert same(run(params, "cuda", DTYPES, n_steps=2, **how), expected), blocks


def any_values(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Every bit pattern is as likely: denormals, infinities and NaN among them, and some zeros."""
    generator = torch.Generator().manual_seed(seed)
    if dtype in (torch.float32, torch.int32):
        bits = torch.randint(-(2**31), 2**31, (n,), generator=generator).to(torch.int32)
    else:
        bits = torch.randint(-(2**15), 2**15, (n,), generator=generator).to(torch.int16)
    values = bits.view(dtype).clone()
    values[::17] = 0
    return values


@rows
@backends
@pytest.mark.parametrize("norms", [0.0, 1e300], ids=["without norms", "with norms"])
@pytest.mark.parametrize("lr", [1e-3, 1.0])
def test_values_of_any_size_give_the_bits_of_the_cpu(
    row: Row, lr: float, norms: float, device: str, workers: int
) -> None:
    """Conversions, roundings and masters for all that bits can hold, denormals included."""
    n = 200_003
    param, grad = any_values(n, row.param, 1), any_values(n, row.grad, 2)
    m, v = any_values(n, torch.float32, 3), any_values(n, torch.float32, 4).abs()
    if norms:
        grad = grad.where(grad.isfinite(), torch.ones((), dtype=row.grad))
    masters = {
        None: {},
        "fp32": {"master_param": any_values(n, torch.float32, 5)},
        "remainder": {"param_remainder": any_values(n, torch.int16, 6)},
    }[None if row.param == torch.float32 else row.settings["master_weights"]]

    def step_on(device: str, workers: int) -> list[Tensor]:
        twin = nn.Parameter(param.to(device, copy=True))
        twin.grad_dtype = None
        settings = {"max_grad_norm": norms, "on_nonfinite": "propagate", **row.settings}
        opt = BertAdam([twin], lr=lr, weight_decay=0.0, **settings)
        opt._plans[0].workers = workers
        opt.state[twin] = {
            "step": torch.zeros((), device=device),
            "exp_avg": m.to(device, copy=True),
            "exp_avg_sq": v.to(device, copy=True),
            **{key: value.to(device, copy=True) for key, value in masters.items()},
        }
        twin.grad = grad.to(device, copy=True)
        opt.step()
        return [as_integers(t) for t in (twin, *opt.state[twin].values())]

    expected = step_on("cpu", 0)
    assert not torch.equal(expected[0], as_integers(param))
    assert same(step_on(device, workers), expected)


@pytest.mark.filterwarnings("ignore:.*past t_total")
@modes
@backends
def test_a_hundred_steps_of_a_model_give_the_same_bits(
    mode: str, device: str, workers: int
) -> None:
    shapes = [(3000, 64), (64,), (64, 64), (256, 64), (256,), (64, 256), (2, 64), (2,)] * 2
    params = [
        nn.Parameter((torch.randn(shape) * 0.02).to(DTYPES[1] if i % 3 else DTYPES[0]))
        for i, shape in enumerate(shapes)
    ]
    settings = {"t_total": 100, "warmup": 0.1, "lr": 0.01, **MODES[mode]}
    twins = [Twin(params, where, **settings) for where in ("cpu", device)]
    for twin in twins:
        for param in twin.params:
            param.grad_dtype = None
    for step in range(100):
        for plan in twins[1].opt._plans:
            plan.workers = workers
        torch.manual_seed(step)
        grads: Grads = [
            torch.randn(param.shape).mul(2.0 ** (step % 9 - 6)).to(DTYPES[(i + step // 10) % 2])
            for i, param in enumerate(params)
        ]
        for twin in twins:
            twin.step(grads)
        if step % 25 == 24:
            assert same(twins[0].bits(), twins[1].bits()), f"step {step}"


@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
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
