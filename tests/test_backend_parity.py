"""The same bits from every instruction set, worker count and block count, and from CPU and GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import Twin, as_integers, odd_params, run, same
from torch import nn

from bertadam_cuda import BertAdam, _ext

_C = _ext.load()
MODES: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "global": {"clip": "global"},
    "no clip": {"max_grad_norm": 0.0},
    "no clip, skip": {"max_grad_norm": 0.0, "on_nonfinite": "skip"},
    "propagate": {"on_nonfinite": "propagate"},
    "global, propagate": {"clip": "global", "on_nonfinite": "propagate"},
    "null steps": {"lr": 0.0},
}
modes = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)


@pytest.fixture
def _restore_isa() -> Iterator[None]:
    yield
    _C.set_cpu_isa(_C.cpu_isas()[-1])


@modes
@pytest.mark.usefixtures("_restore_isa")
def test_instruction_sets_give_the_same_bits(settings: dict[str, Any]) -> None:
    params = odd_params()
    expected = run(params, "cpu", **settings)
    for isa in _C.cpu_isas():
        _C.set_cpu_isa(isa)
        assert same(run(params, "cpu", **settings), expected), isa


@modes
def test_the_steps_that_are_compared_move_the_parameters(settings: dict[str, Any]) -> None:
    """One gradient that is not finite skips a whole step of global clipping."""
    params = odd_params()
    moved = run(params, "cpu", **settings)[: 4 * len(params) : 4]
    unmoved = [as_integers(param) for param in params]
    assert same(moved, unmoved) == (settings.get("lr") == 0.0)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="sse9"):
        _C.set_cpu_isa("sse9")


@modes
def test_any_number_of_cpu_workers_gives_the_same_bits(settings: dict[str, Any]) -> None:
    params = odd_params()
    expected = run(params, "cpu", workers=1, **settings)
    for workers in (2, 7, 100):
        assert same(run(params, "cpu", workers=workers, **settings), expected), workers


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_cpu_step_runs_on_as_many_threads_as_torch(n_threads: int) -> None:
    """at::parallel_for is serial in a binary that was compiled without OpenMP."""
    before = torch.get_num_threads()
    param = nn.Parameter(torch.randn(1_000_000))
    param.grad = torch.randn(1_000_000)
    opt = BertAdam([param], lr=0.1)
    torch.set_num_threads(n_threads)
    try:
        opt.step()
    finally:
        torch.set_num_threads(before)
    assert opt._plans[0].n_threads == n_threads


def test_a_difference_of_one_bit_would_be_noticed() -> None:
    """A negative control of the comparison."""
    params = odd_params()
    expected = run(params, "cpu")
    for tensor in expected:
        if tensor.numel() > 0:
            tensor[-1] ^= 1
            assert not same(run(params, "cpu"), expected)
            tensor[-1] ^= 1
            break
    assert same(run(params, "cpu"), expected)


@pytest.mark.gpu
@modes
def test_gpu_gives_the_bits_of_the_cpu(settings: dict[str, Any]) -> None:
    params = odd_params()
    assert same(run(params, "cuda", **settings), run(params, "cpu", **settings))


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", [1, 2, 132, 10_000])
@modes
def test_any_number_of_blocks_gives_the_same_bits(settings: dict[str, Any], blocks: int) -> None:
    params = odd_params()
    expected = run(params, "cpu", **settings)
    assert same(run(params, "cuda", workers=blocks, **settings), expected)


def large_params() -> list[nn.Parameter]:
    """More chunks than the ring of one block has slots, and one tensor more than all rings."""
    sizes = [(6_000_001,), (1000, 1000), (70_000,), (3,), (2048, 1024)]
    return [nn.Parameter(torch.randn(size)) for size in sizes]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("mode", "retained_draws"),
    [
        *(("per tensor", n) for n in (-1, 0, 7, 10**6)),
        ("global", -1),  # where all norms are waited for, nothing is kept
        ("null steps", -1),
    ],
)
def test_retention_leaves_no_trace(mode: str, retained_draws: int) -> None:
    """What is kept on chip, and a block that helps because too few are there, change no bit."""
    params = large_params()
    expected = run(params, "cpu", n_steps=2, **MODES[mode])
    for blocks in (0, 1, 5, 10_000):
        how = {"workers": blocks, "retained_draws": retained_draws, **MODES[mode]}
        assert same(run(params, "cuda", n_steps=2, **how), expected), blocks


def any_floats(n: int) -> torch.Tensor:
    """Every bit pattern is as likely: denormals, infinities and NaN among them, and some zeros."""
    bits = torch.randint(-(2**31), 2**31, (n,)).to(torch.int32)
    values = bits.view(torch.float32).clone()
    values[::17] = 0.0
    return values


@pytest.mark.gpu
@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e30])
@pytest.mark.parametrize("clip", [0.0, 1e300], ids=["no norms", "norms"])
def test_arguments_of_any_size_give_the_bits_of_the_cpu(eps: float, clip: float) -> None:
    """Roots and quotients in and out of the range in which a GPU computes them without branches."""
    torch.manual_seed(7)
    n = 500_003
    param, m, v, grad = (any_floats(n) for _ in range(4))
    grad = grad.where(grad.isfinite(), torch.ones(())) if clip else grad

    def step_on(device: str) -> list[torch.Tensor]:
        twin = nn.Parameter(param.to(device, copy=True))
        settings = {"max_grad_norm": clip, "on_nonfinite": "propagate", "bias_correction": True}
        opt = BertAdam([twin], lr=1.0, e=eps, **settings)
        opt.state[twin] = {
            "step": torch.zeros((), device=device),
            "exp_avg": m.to(device, copy=True),
            "exp_avg_sq": v.abs().to(device, copy=True),
        }
        twin.grad = grad.to(device, copy=True)
        opt.step()
        return [as_integers(t) for t in (twin, *opt.state[twin].values())]

    expected = step_on("cpu")
    assert not torch.equal(expected[0], as_integers(param))
    assert same(step_on("cuda"), expected)


def bert_base() -> list[nn.Parameter]:
    """The 206 parameters of BERT-base (BertForPreTraining, decoder tied): 110.1 M elements."""
    shapes: list[tuple[int, ...]] = [(30522, 768), (512, 768), (2, 768), (768,), (768,)]
    for _ in range(12):
        shapes += [(768, 768), (768,)] * 4 + [(768,), (768,)]
        shapes += [(3072, 768), (3072,), (768, 3072), (768,), (768,), (768,)]
    shapes += [(768, 768), (768,), (768, 768), (768,), (768,), (768,), (30522,)]
    shapes += [(2, 768), (2,)]
    return [nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["per tensor", "global", "no clip"])
def test_bert_base_for_100_steps(mode: str) -> None:
    params = bert_base()
    assert sum(param.numel() for param in params) == 110_106_428
    settings = {"t_total": 100, "warmup": 0.1, **MODES[mode]}
    twins = [Twin(params, device, **settings) for device in ("cpu", "cuda")]
    noise = [torch.randn(param.shape, device="cuda") for param in params]
    for step in range(100):
        # New gradients from old ones, exactly: other elements, other sizes.
        scale = 2.0 ** (step % 9 - 6)
        grads = [g.flatten().roll(1009 * step + 1).view_as(g) * scale for g in noise]
        for twin in twins:
            twin.step(grads)
        if step % 25 == 24:
            assert same(twins[0].bits(), twins[1].bits()), f"step {step}"


@pytest.mark.gpu
def test_a_hundred_runs_give_the_same_bits() -> None:
    params = [nn.Parameter(torch.randn(shape)) for shape in [(1024, 4096), (4096,), (3000, 1001)]]
    results = set()
    for _ in range(100):
        twin = Twin(params, "cuda", clip="per_tensor")
        for step in range(3):
            torch.manual_seed(step)
            twin.step([torch.randn_like(param) for param in params])
        results.add(b"".join(as_integers(t).numpy().tobytes() for t in twin.bits()))
    assert len(results) == 1


@pytest.mark.gpu
def test_parameters_on_cpu_and_gpu_in_one_optimizer() -> None:
    torch.manual_seed(3)
    params = [nn.Parameter(torch.randn(5000, device=d)) for d in ("cpu", "cuda", "cpu", "cuda")]
    twins = [nn.Parameter(param.detach().cpu().clone()) for param in params]
    mixed, plain = BertAdam(params, lr=0.1), BertAdam(twins, lr=0.1)
    for _ in range(3):
        for param, twin in zip(params, twins, strict=True):
            twin.grad = torch.randn(5000)
            param.grad = twin.grad.to(param.device)
        mixed.step()
        plain.step()
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param.cpu(), twin)
    assert mixed.grad_norms is not None
    assert plain.grad_norms is not None
    assert torch.equal(mixed.grad_norms.cpu(), plain.grad_norms)
    with pytest.raises(ValueError, match="clip='global'"):
        BertAdam(params, lr=0.1, clip="global")
