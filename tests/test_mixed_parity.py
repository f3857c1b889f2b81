"""Low precision: the same bits from CPU and GPU, for every row of types and for mixtures of all."""

from __future__ import annotations

import pytest
import torch
from backends import Grads, Twin, as_integers
from mixed_backends import CLIPS, mixture, odd_params, run
from mixed_cases import DTYPES, MODES, ROWS, Row, same
from torch import Tensor, nn

from bertadam_cuda import BertAdam

rows = pytest.mark.parametrize("row", ROWS, ids=str)
modes = pytest.mark.parametrize("mode", MODES)
clips = pytest.mark.parametrize("clip", CLIPS)
#: Three workers in place of a GPU: what shows that the comparison works where there is none.
backends = pytest.mark.parametrize(
    ("device", "workers"),
    [("cpu", 3), pytest.param("cuda", 0, marks=pytest.mark.gpu)],
    ids=["cpu", "cuda"],
)


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
