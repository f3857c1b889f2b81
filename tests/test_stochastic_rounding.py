"""Stochastic rounding: the generator, its bits, the expectation, and what they depend on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mixed_cases import clone_params, parameter, params_of, same, set_grads
from rounding_oracle import KNOWN_ANSWERS, philox, random_bits
from torch import Tensor

from bertadam_cuda import BertAdam, _ext, reference

_C = _ext.load()
N = 200_000
SEED = 0x1234_5678_9ABC_DEF0


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_the_generator_gives_the_published_answers(counter: Any, key: Any, expected: Any) -> None:
    assert _C.philox4x32(counter, key) == expected
    assert tuple(int(word) for word in philox(list(counter), key)) == expected
    # A negative control: a round less gives nothing of it.
    fewer = [int(word) for word in philox(list(counter), key, n_rounds=9)]
    assert not set(fewer) & set(expected)


def stepped(values: Tensor, seed: int = SEED, place: int = 0) -> tuple[Tensor, Tensor]:
    """The results of a step with stochastic rounding, and of the same step in float32.

    `place`: of the parameter in param_groups, among smaller ones.
    """
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        params = [parameter(torch.zeros(3), dtype) for _ in range(place)]
        params.append(parameter(values.bfloat16(), dtype))
        # With a large e updates are of any size, and so is what a rounding cuts off.
        settings = {"stochastic_rounding": True, "rounding_seed": seed, "max_grad_norm": 0.0}
        opt = BertAdam([{"params": [param]} for param in params], lr=0.1, e=1.0, **settings)
        generator = torch.Generator().manual_seed(5)
        params[-1].grad = torch.randn(len(values), generator=generator)
        opt.step()
        results.append(params[-1].detach())
    return results[0], results[1]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 255, 256, 257, 70_001])
@pytest.mark.parametrize(("seed", "place"), [(0, 0), (SEED, 3), (2**64 - 1, 1)])
def test_every_element_takes_its_documented_bits(n: int, seed: int, place: int) -> None:
    rounded, exact = stepped(torch.randn(n), seed, place)
    expected = torch.from_numpy(random_bits(n, seed, place, 0))
    assert torch.equal(rounded, reference.round_stochastically(exact, expected))
    if n > 1000:  # a negative control: other bits show
        shifted = reference.round_stochastically(exact, expected.roll(1))
        assert not torch.equal(rounded, shifted)


def test_the_step_is_part_of_the_key() -> None:
    param = parameter(torch.randn(1000), torch.bfloat16)
    twin = parameter(param.detach(), torch.float32)
    opts = [
        BertAdam([p], lr=0.01, max_grad_norm=0.0, stochastic_rounding=True) for p in (param, twin)
    ]
    for step in range(4):
        with torch.no_grad():
            twin.copy_(param)
        for opt in opts:
            set_grads(params_of(opt), step)
            opt.step()
        expected = torch.from_numpy(random_bits(1000, 0, 0, step))
        assert torch.equal(param, reference.round_stochastically(twin.detach(), expected))
        with torch.no_grad():
            opts[1].state[twin]["exp_avg"].copy_(opts[0].state[param]["exp_avg"])


def bias_in_deviations(rounded: Tensor, exact: Tensor) -> float:
    """The mean error, in standard deviations that an unbiased rounding of `exact` has."""
    bits = exact.view(torch.int32)
    share = (bits & 0xFFFF).double() / 2**16  # of rounding away from zero
    down = (bits & ~0xFFFF).view(torch.float32).double()
    up = ((bits & ~0xFFFF) + 2**16).view(torch.float32).double()
    variance = (share * (1 - share) * (up - down) ** 2).sum()
    return float((rounded.double() - exact.double()).sum() / variance.sqrt())


@pytest.mark.parametrize("seed", range(8))
def test_rounding_is_unbiased(seed: int) -> None:
    """Five deviations: by chance once in 1.7 million runs, but seeds are fixed."""
    values = torch.rand(N) + 1.0
    rounded, exact = stepped(values, seed)
    assert abs(bias_in_deviations(rounded, exact)) < 5.0
    # Negative controls: towards zero, and random bits that are one part in 64 too small.
    towards_zero = (exact.view(torch.int32) & ~0xFFFF).view(torch.float32)
    assert abs(bias_in_deviations(towards_zero, exact)) > 5.0
    small = torch.from_numpy(random_bits(N, seed, 0, 0)) * 63 // 64
    biased = reference.round_stochastically(exact, small)
    assert abs(bias_in_deviations(biased, exact)) > 5.0


def test_the_share_of_roundings_up_is_the_distance() -> None:
    """In 16 classes of the part that is cut off, within five deviations of each."""
    rounded, exact = stepped(torch.rand(N) + 1.0)
    bits = exact.view(torch.int32)
    went_up = rounded.float() > (bits & ~0xFFFF).view(torch.float32)
    share = (bits & 0xFFFF).double() / 2**16
    classes = (share * 16).long()
    for index in range(16):
        members = classes == index
        n, expected = int(members.sum()), float(share[members].sum())
        deviation = math.sqrt(float((share * (1 - share))[members].sum()))
        assert n > 1000
        assert abs(float(went_up[members].sum()) - expected) < 5 * deviation
        assert abs(0.5 * n - expected) > 5 * deviation or index in (7, 8)


def test_elements_parameters_and_steps_are_uncorrelated() -> None:
    base = random_bits(N, SEED, 0, 0) - 32767.5
    others = {
        "next element": np.roll(base, 1),
        "next call": np.roll(base, 8),
        "parameter": random_bits(N, SEED, 1, 0) - 32767.5,
        "step": random_bits(N, SEED, 0, 1) - 32767.5,
        "seed": random_bits(N, SEED + 1, 0, 0) - 32767.5,
    }
    scale = float((base**2).sum())
    for name, other in others.items():
        assert abs(float((base * other).sum()) / scale) < 5 / math.sqrt(N), name
    # A negative control.
    assert float((base * (base + others["step"])).sum()) / scale > 5 / math.sqrt(N)


def test_small_updates_add_up_in_the_mean() -> None:
    """100 updates of 1e-4, each an eightieth of the last place of 1; without it none is made."""
    moved = {}
    for stochastic in (True, False):
        param = parameter(torch.ones(N // 10), torch.bfloat16)
        opt = BertAdam(
            [param],
            lr=1e-4,
            weight_decay=0.0,
            b1=0.0,
            b2=0.0,
            max_grad_norm=0.0,
            stochastic_rounding=stochastic,
        )
        for _ in range(100):
            param.grad = torch.ones_like(param)
            opt.step()
        moved[stochastic] = 1.0 - float(param.detach().double().mean())
    # Each step's deviation is at most half the last place below 1, 2**-8.
    assert moved[True] == pytest.approx(0.01, abs=5 * 2**-9 * math.sqrt(100 / (N // 10)))
    assert moved[False] == 0.0


def test_what_fits_is_kept_and_the_rest_keeps_its_kind() -> None:
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -2.5, 2.0**-130])
    bits = torch.arange(0, 2**16, 255)
    for value in special:
        rounded = reference.round_stochastically(value.expand(len(bits)), bits)
        assert bool((rounded == value).all()) or value.isnan()
    param = parameter(special, torch.bfloat16)
    opt = BertAdam([param], lr=0.0, weight_decay=0.0, max_grad_norm=0.0, stochastic_rounding=True)
    for _ in range(20):
        param.grad = torch.ones(len(special))
        opt.step()
    kept = special.bfloat16()
    numbers = ~kept.isnan()
    assert torch.equal(param.isnan(), kept.isnan())
    assert torch.equal(param.view(torch.int16)[numbers], kept.view(torch.int16)[numbers])


@pytest.mark.parametrize("key", ["seed", "place", "step"])
def test_other_bits_come_with_another(key: str) -> None:
    params = [parameter(torch.randn(2000), torch.bfloat16) for _ in range(2)]
    with torch.no_grad():
        params[1].copy_(params[0])

    def trained(seed: int, place: int, first: int) -> Tensor:
        own = clone_params(params)
        opt = BertAdam(own, lr=0.01, stochastic_rounding=True, rounding_seed=seed)
        for param in own:
            param.grad = torch.ones(2000)
        opt.step()
        for param, start in zip(own, params, strict=True):
            with torch.no_grad():
                param.copy_(start)
                opt.state[param]["exp_avg"].zero_()
                opt.state[param]["exp_avg_sq"].zero_()
                opt.state[param]["step"].fill_(first)
        opt.step()
        return own[place].detach()

    base = trained(seed=1, place=0, first=5)
    assert torch.equal(trained(seed=1, place=0, first=5), base)
    other = {"seed": (2, 0, 5), "place": (1, 1, 5), "step": (1, 0, 6)}[key]
    assert not torch.equal(trained(*other), base)


def test_workers_and_neighbours_leave_no_trace() -> None:
    params = [parameter(torch.randn(n), torch.bfloat16) for n in (5, 150_000, 70_000, 9)]

    def trained(params: list[Any], workers: int) -> list[Tensor]:
        own = clone_params(params)
        opt = BertAdam(own, lr=0.1, stochastic_rounding=True)
        for plan in opt._plans:
            plan.workers = workers
        for param in own:
            param.grad = torch.ones_like(param)
        for _ in range(2):
            opt.step()
        return [param.detach() for param in own]

    expected = trained(params, 0)
    for workers in (1, 3):
        assert same(trained(params, workers), expected)
    # A parameter's bits are its own whatever the others are, but not in another place.
    others = [params[0], parameter(torch.ones(2), torch.float32), *params[2:]]
    assert same(trained(others, 0)[2:], expected[2:])
    assert not same(trained(others[1:], 0)[1:], expected[2:])
