"""LAMB and LARS with parameters of 16 bits: masters, remainders, both roundings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layerwise_cases import lamb_groups, lars_groups
from mixed_cases import (
    MODES,
    master_of,
    mixed_params,
    parameter,
    params_of,
    set_grads,
)
from rounding_oracle import random_bits
from torch import Tensor, nn

from bertadam_cuda import LAMB, LARS, reference

KINDS: dict[str, Any] = {
    "LAMB": lambda params, **settings: LAMB(lamb_groups(params), lr=0.05, **settings),
    "LARS": lambda params, **settings: LARS(lars_groups(params), lr=0.5, **settings),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def step_both(opts: list[Any], step: int) -> None:
    """With the same gradients, whose dtypes change; the second optimizer's are float32."""
    set_grads(params_of(opts[0]), step)
    for param, twin in zip(params_of(opts[0]), params_of(opts[1]), strict=True):
        assert param.grad is not None
        twin.grad = param.grad.float()
    for opt in opts:
        opt.step()


def float_twins(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter(param.detach(), torch.float32) for param in params]


@kinds
@pytest.mark.parametrize("mode", ["fp32", "remainder"])
def test_masters_are_the_parameters_of_a_float32_run(kind: str, mode: str) -> None:
    """Bit for bit, ratios too: their norms are those of the masters."""
    torch.manual_seed(0)
    params = mixed_params(mode)
    opts = [KINDS[kind](params, **MODES[mode]), KINDS[kind](float_twins(params))]
    for step in range(6):
        step_both(opts, step)
        assert torch.equal(opts[0].trust_ratios, opts[1].trust_ratios)
    for param, twin in zip(params_of(opts[0]), params_of(opts[1]), strict=True):
        assert torch.equal(master_of(opts[0], param), twin)
        for key, value in opts[1].state[twin].items():
            assert torch.equal(opts[0].state[param][key], value), key
    # A negative control: without masters norms become others.
    torch.manual_seed(0)
    plain = KINDS[kind](mixed_params(mode))
    for step in range(6):
        set_grads(params_of(plain), step)
        plain.step()
    assert not torch.equal(plain.trust_ratios, opts[0].trust_ratios)


def one_step(kind: str, params: list[nn.Parameter], **settings: Any) -> tuple[Any, list[Tensor]]:
    """An optimizer after a step from `params`, and the same step in float32."""
    opts = [KINDS[kind](params, **settings), KINDS[kind](float_twins(params))]
    step_both(opts, 0)
    assert torch.equal(opts[0].trust_ratios, opts[1].trust_ratios)
    return opts[0], [param.detach() for param in params_of(opts[1])]


@kinds
def test_without_a_master_the_parameter_is_rounded_to_nearest_even(kind: str) -> None:
    opt, exact = one_step(kind, mixed_params("plain"))
    rounded = 0
    for param, value in zip(params_of(opt), exact, strict=True):
        assert torch.equal(param, value.to(param.dtype))
        rounded += int((param.float() != value).sum())
    assert rounded > 1000


@kinds
def test_stochastic_rounding_takes_the_documented_bits(kind: str) -> None:
    params = [parameter(torch.randn(n), torch.bfloat16) for n in (300, 1, 7, 70_001)]
    opt, exact = one_step(kind, params, stochastic_rounding=True, rounding_seed=7)
    for place, (param, value) in enumerate(zip(params_of(opt), exact, strict=True)):
        bits = torch.from_numpy(random_bits(param.numel(), 7, place, 0))
        assert torch.equal(param, reference.round_stochastically(value, bits))
        if param.numel() > 100:  # a negative control: other bits show
            assert not torch.equal(param, reference.round_stochastically(value, bits.roll(1)))
