"""The rule's arithmetic in ulps, against float64 of the same formulas on the same stored values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bertadam_cuda import BertAdam, _ext

_C = _ext.load()
N = 400_000


def ulp(x: Tensor) -> Tensor:
    """The distance to the next float32 of larger magnitude, as float64."""
    single = x.abs().float()
    return torch.nextafter(single, torch.full_like(single, torch.inf)).double() - single.double()


def random_values(low: float, high: float) -> Tensor:
    return torch.randn(N) * 10.0 ** torch.empty(N).uniform_(low, high)


def one_step(
    grad: Tensor, m: Tensor, v: Tensor, p: Tensor, **settings: float
) -> tuple[Tensor, Tensor, Tensor]:
    param = nn.Parameter(p.clone())
    opt = BertAdam([param], **{"lr": 1.0, "max_grad_norm": 0.0, "weight_decay": 0.0, **settings})
    param.grad = torch.zeros_like(param)
    opt.step()
    with torch.no_grad():
        param.copy_(p)
        opt.state[param]["exp_avg"].copy_(m)
        opt.state[param]["exp_avg_sq"].copy_(v)
    param.grad = grad
    opt.step()
    return opt.state[param]["exp_avg"], opt.state[param]["exp_avg_sq"], param.detach()


def errors_in_ulps(b1: float, b2: float) -> dict[str, float]:
    """The largest errors of m, v and u; of m and u in ulps of their larger addend."""
    grad, m, p = random_values(-6, 1), random_values(-6, 1), torch.zeros(N)
    v = random_values(-6, 1).square()
    m_new, v_new, p_new = one_step(grad, m, v, p, b1=b1, b2=b2, e=1e-6)
    g64, m64, v64 = grad.double(), m.double(), v.double()
    m_addend = torch.maximum((b1 * m64).abs(), ((1 - b1) * g64).abs())
    v_exact = b2 * v64 + (1 - b2) * g64 * g64
    u_exact = m_new.double() / (v_new.double().sqrt() + 1e-6)
    return {
        "m": ((m_new - (b1 * m64 + (1 - b1) * g64)).abs() / ulp(m_addend)).max().item(),
        "v": ((v_new - v_exact).abs() / ulp(v_exact)).max().item(),
        "u": ((-p_new - u_exact).abs() / ulp(u_exact)).max().item(),
    }


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.5, 0.98), (0.0, 0.0), (0.95, 0.9999)])
def test_a_step_is_as_accurate_as_promised(b1: float, b2: float) -> None:
    errors = errors_in_ulps(b1, b2)
    assert errors["m"] <= 1.5
    assert errors["v"] <= 1.0
    assert errors["u"] <= 4.0


def test_a_single_float_coefficient_would_be_noticed() -> None:
    """A negative control: 1 - float(b2), as some kernels have it, is far beyond one ulp of v."""
    grad, v = random_values(-6, 1), random_values(-6, 1).square()
    b2 = torch.tensor(0.999)
    naive = b2 * v + (1 - b2) * grad * grad
    exact = 0.999 * v.double() + (1 - 0.999) * grad.double() ** 2
    assert ((naive - exact).abs() / ulp(exact)).max() > 100


def long_run(b2: float, n_steps: int) -> tuple[Tensor, Tensor]:
    """v after many steps with random gradients, and what float64 makes of it."""
    param = nn.Parameter(torch.zeros(64))
    opt = BertAdam([param], lr=1e-9, max_grad_norm=0.0, b2=b2)
    exact = torch.zeros(64, dtype=torch.float64)
    for _ in range(n_steps):
        param.grad = torch.randn(64)
        opt.step()
        exact = b2 * exact + (1 - b2) * param.grad.double() ** 2
    return opt.state[param]["exp_avg_sq"].double(), exact


def test_moments_do_not_drift_over_a_hundred_thousand_steps() -> None:
    """Roundings of the stored value wander about 20 ulp; coefficients of one float drift 110."""
    v, exact = long_run(b2=0.999, n_steps=100_000)
    assert ((v - exact).abs() / ulp(exact)).max() < 60
    # A negative control: where v settles with both coefficients rounded to one float.
    b2, complement = torch.tensor([0.999, 1 - 0.999]).double().tolist()
    drifted = exact * (complement / (1 - b2))
    assert ((drifted - exact).abs() / ulp(exact)).min() > 60


def test_an_overflowing_square_gives_infinity_and_no_nan() -> None:
    grad = torch.full((N,), 1e30)
    _, v, p = one_step(grad, torch.zeros(N), torch.zeros(N), torch.ones(N))
    assert bool(v.isinf().all())
    assert torch.equal(p, torch.ones(N))


@pytest.mark.parametrize(
    ("norm", "limit", "skip", "expected"),
    [
        (0.5, 1.0, True, 1.0),
        (4.0, 1.0, True, 1.0 / (4.0 + 1e-6)),
        (1.0, 1.0, True, 1.0 / (1.0 + 1e-6)),
        (4.0, 0.0, True, 1.0),
        (4.0, -1.0, True, 1.0),
        (torch.inf, 1.0, True, -1.0),
        (torch.nan, 0.0, True, -1.0),
        (torch.inf, 1.0, False, 0.0),
        (torch.nan, 1.0, False, torch.nan),
        (torch.nan, 0.0, False, 1.0),
        (5.0, torch.inf, True, 1.0),
    ],
)
def test_clip_coefficient(norm: float, limit: float, skip: bool, expected: float) -> None:
    found = _C.clip_coefficient(norm, limit, skip, 1.0)
    assert found == pytest.approx(torch.tensor(expected).item(), rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("scale", [1024.0, 3.0, 0.25, 7e-5, 1e20])
@pytest.mark.parametrize("norm", [0.5, 4.0, 1e-3, 1e9])
def test_a_coefficient_is_clipping_times_unscaling_rounded_once(norm: float, scale: float) -> None:
    inverse, skips = _C.unscaling(scale, 0.0)
    assert not skips
    assert inverse == 1.0 / torch.tensor(scale).double().item()
    clip = min(1.0, 1.0 / (norm + 1e-6))
    found = _C.clip_coefficient(norm, 1.0, True, inverse)
    assert found == torch.tensor(clip * inverse, dtype=torch.float64).float().item()
    again = _C.without_unscaling(found, inverse)
    assert again <= 1.0
    expected = torch.tensor(clip, dtype=torch.float64).float()
    assert abs(again - expected.item()) <= ulp(expected).item()
    if scale in (1024.0, 0.25):
        assert again == expected.item()


def test_a_product_of_rounded_factors_would_be_noticed() -> None:
    """A negative control: unscaling and clipping rounded apart differ in some of the last bits."""
    norms = [1.0 + 0.01 * i for i in range(100)]
    third = _C.unscaling(3.0, 0.0)[0]
    once = [_C.clip_coefficient(norm, 1.0, True, third) for norm in norms]
    apart = [_C.clip_coefficient(norm, 1.0, True, 1.0) * torch.tensor(third) for norm in norms]
    assert any(float(a) != b for a, b in zip(apart, once, strict=True))


@pytest.mark.parametrize("skip", [True, False])
def test_a_scaled_coefficient_keeps_the_codes(skip: bool) -> None:
    found = _C.clip_coefficient(torch.nan, 1.0, skip, 1.0 / 1024)
    assert found == pytest.approx(-1.0 if skip else torch.nan, nan_ok=True)


@pytest.mark.parametrize("found_inf", [1.0, 2.0, 1e-30, -1.0, torch.inf, torch.nan])
def test_whatever_is_not_zero_skips_the_step(found_inf: float) -> None:
    assert _C.unscaling(2.0, found_inf)[1]


@pytest.mark.parametrize("scale", [0.0, -0.0, -2.0, 1e-45, torch.inf, -torch.inf, torch.nan])
def test_a_scale_that_no_loss_had_skips_the_step(scale: float) -> None:
    assert _C.unscaling(scale, 0.0)[1]
    assert not _C.unscaling(2.0**-126, 0.0)[1]
    assert not _C.unscaling(2.0**127, 0.0)[1]
