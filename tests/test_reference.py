"""The float64 rules against torch, against the NumPy oracle, and against numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle import Oracle

from bertadam_cuda.reference import (
    adam_step,
    bert_adam_step,
    clip_coefficient,
    gradient_norm,
    lamb_clip_coefficient,
    lamb_step,
    lars_step,
)


def test_clip_coefficient_by_hand() -> None:
    assert clip_coefficient(4.0, 1.0) == 1.0 / (4.0 + 1e-6)
    assert clip_coefficient(1.0, 1.0) == 1.0 / (1.0 + 1e-6), "just below 1 at the limit itself"
    assert clip_coefficient(0.5, 1.0) == 1.0
    assert clip_coefficient(0.0, 1.0) == 1.0
    assert clip_coefficient(math.inf, 1.0) == 0.0
    assert math.isnan(clip_coefficient(math.nan, 1.0))
    assert clip_coefficient(100.0, 0.0) == clip_coefficient(100.0, -1.0) == 1.0


def test_gradient_norm_runs_over_all_gradients() -> None:
    assert gradient_norm(torch.tensor([3.0, 0.0]), torch.tensor(4.0), torch.empty(0)) == 5.0
    assert gradient_norm() == 0.0


def test_one_step_by_hand() -> None:
    p, g, m, v = (torch.tensor([value]) for value in (2.0, 3.0, 1.0, 4.0))
    result = bert_adam_step(
        p, g, m, v, lr=0.1, b1=0.5, b2=0.75, e=0.5, weight_decay=0.25, clip_coef=2.0
    )
    assert result.exp_avg.item() == 0.5 * 1 + 0.5 * 6
    assert result.exp_avg_sq.item() == 0.75 * 4 + 0.25 * 36
    update = 3.5 / (math.sqrt(12) + 0.5) + 0.25 * 2
    assert result.update.item() == pytest.approx(update, rel=1e-15)
    assert result.param.item() == pytest.approx(2 - 0.1 * update, rel=1e-15)
    assert [t.item() for t in (p, g, m, v)] == [2, 3, 1, 4], "inputs are not written"


def test_zero_moments_with_zero_epsilon_give_zero() -> None:
    zeros = torch.zeros(3)
    result = bert_adam_step(torch.ones(3), zeros, zeros, zeros, lr=1.0, e=0.0, weight_decay=0.0)
    assert torch.equal(result.param, torch.ones(3, dtype=torch.float64))


def test_bias_corrected_steps_equal_torch_adamw() -> None:
    torch.manual_seed(0)
    p = torch.randn(50, dtype=torch.float64)
    theirs = p.clone().requires_grad_()
    adamw = torch.optim.AdamW([theirs], lr=0.01, eps=1e-6, weight_decay=0.1)
    m = v = torch.zeros_like(p)
    for t in range(1, 30):
        theirs.grad = torch.randn_like(p)
        adamw.step()
        p, m, v, _ = bert_adam_step(
            p, theirs.grad, m, v, lr=0.01, weight_decay=0.1, bias_correction_step=t
        )
    torch.testing.assert_close(p, theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip", ["per_tensor", "global"])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_rules_agree_with_the_oracle(clip: str, bias_correction: bool) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(size) for size in (7, 1, 30)]
    named = [(f"p{index}", array) for index, array in enumerate(arrays)]
    group = {"params": named, "lr": 0.0625, "bias_correction": bias_correction, "warmup": 0.5}
    oracle = Oracle([group], clip=clip)
    p = [torch.from_numpy(array).clone() for array in arrays]
    m, v = ([torch.zeros_like(tensor) for tensor in p] for _ in range(2))
    for t in range(1, 12):
        grads = [generator.standard_normal(array.shape) for array in arrays]
        oracle.step(grads)
        tensors = [torch.from_numpy(grad) for grad in grads]
        for i, tensor in enumerate(tensors):
            norm = gradient_norm(*tensors) if clip == "global" else gradient_norm(tensor)
            coefficient = float(np.float32(clip_coefficient(norm, 1.0)))
            p[i], m[i], v[i], _ = bert_adam_step(
                p[i],
                tensor,
                m[i],
                v[i],
                lr=0.0625,
                clip_coef=coefficient,
                bias_correction_step=t if bias_correction else None,
            )
    for i, param in enumerate(oracle.params):
        np.testing.assert_allclose(param.p, p[i].numpy(), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(param.m, m[i].numpy(), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(param.v, v[i].numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_steps_equal_torch(decoupled: bool, amsgrad: bool) -> None:
    torch.manual_seed(0)
    p = torch.randn(50, dtype=torch.float64)
    theirs = p.clone().requires_grad_()
    settings = {"decoupled_weight_decay": decoupled, "amsgrad": amsgrad}
    adam = torch.optim.Adam([theirs], lr=0.01, weight_decay=0.1, **settings)
    decay = {"decoupled_decay" if decoupled else "l2_decay": 0.1}
    states = [torch.zeros_like(p) for _ in range(2 + amsgrad)]
    for t in range(1, 30):
        theirs.grad = torch.randn_like(p) * t % 7
        adam.step()
        new = adam_step(p, theirs.grad, *states, lr=0.01, bias_correction_step=t, **decay)
        p, states = new.param, [value for value in new[1:4] if value is not None]
    torch.testing.assert_close(p, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_clip_coefficient_of_lamb_by_hand() -> None:
    assert lamb_clip_coefficient(4.0, 1.0) == lamb_clip_coefficient(4.0, 1.0, always=True) == 0.25
    assert lamb_clip_coefficient(1.0, 1.0) == 1.0, "nothing beside the norm"
    assert lamb_clip_coefficient(0.5, 1.0) == 1.0
    assert lamb_clip_coefficient(0.5, 1.0, always=True) == 2.0
    assert lamb_clip_coefficient(0.0, 1.0, always=True) == 1.0
    assert lamb_clip_coefficient(9.0, 0.0) == lamb_clip_coefficient(9.0, -1.0, always=True) == 1.0
    assert math.isnan(lamb_clip_coefficient(math.nan, 1.0))


@pytest.mark.parametrize("decoupled", [False, True])
def test_lamb_without_its_ratio_equals_torch(decoupled: bool) -> None:
    torch.manual_seed(0)
    p = torch.randn(50, dtype=torch.float64)
    theirs = p.clone().requires_grad_()
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    adam = kind([theirs], lr=0.01, eps=1e-6, weight_decay=0.1)
    decay = {"decoupled_decay": 0.1 * decoupled, "l2_decay": 0.1 * (not decoupled)}
    m = v = torch.zeros_like(p)
    for t in range(1, 30):
        theirs.grad = torch.randn_like(p)
        adam.step()
        new = lamb_step(
            p, theirs.grad, m, v, lr=0.01, adapts=False, bias_correction_step=t, **decay
        )
        p, m, v = new[:3]
    torch.testing.assert_close(p, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_a_lamb_step_by_hand() -> None:
    p, g, m, v = (torch.tensor(x) for x in ([3.0, 4.0], [1.0, 2.0], [2.0, 0.0], [4.0, 0.0]))
    new = lamb_step(
        *(p, g, m, v), lr=0.1, betas=(0.5, 0.75), eps=0.5, decoupled_decay=0.25, beta3=1.0
    )
    assert new.exp_avg.tolist() == [0.5 * 2 + 1, 2.0]
    assert new.exp_avg_sq.tolist() == [0.75 * 4 + 0.25, 1.0]
    u = [2 / (math.sqrt(3.25) + 0.5) + 0.75, 2 / 1.5 + 1.0]
    assert new.update.tolist() == pytest.approx(u, rel=1e-15)
    assert new.trust_ratio == pytest.approx(5 / math.hypot(*u), rel=1e-15)
    expected = [3 - 0.1 * new.trust_ratio * u[0], 4 - 0.1 * new.trust_ratio * u[1]]
    assert new.param.tolist() == pytest.approx(expected, rel=1e-15)
    again = lamb_step(p, g, m, v, lr=0.1, betas=(0.5, 0.75), eps=0.5, decoupled_decay=0.25)
    assert again.exp_avg.tolist() == [0.5 * 2 + 0.5, 1.0], "beta3 is 1 - beta1 by default"
    zeros = torch.zeros(2)
    assert lamb_step(zeros, g, m, v, lr=0.1).trust_ratio == 1.0
    assert lamb_step(p, zeros, zeros, zeros, lr=0.1, decoupled_decay=0.0).trust_ratio == 1.0


def test_a_lars_step_by_hand() -> None:
    p, g, buffer = (torch.tensor(x) for x in ([3.0, 4.0], [0.0, 2.0], [1.0, 2.0]))
    settings = {"lr": 0.5, "momentum": 0.5, "weight_decay": 0.25, "trust_coefficient": 2.0}
    new = lars_step(p, g, buffer, eps=0.75, **settings)
    assert new.trust_ratio == 2 * 5 / (2 + 0.25 * 5 + 0.75)
    d = [0.5 * 2.5 * 0.75, 0.5 * 2.5 * 3.0]
    assert new.momentum_buffer.tolist() == [0.5 + d[0], 1.0 + d[1]]
    assert new.param.tolist() == [3 - 0.5 - d[0], 4 - 1.0 - d[1]]
    nesterov = lars_step(p, g, buffer, eps=0.75, nesterov=True, **settings)
    assert nesterov.param.tolist() == [
        value - (0.5 * (0.5 * old + step) + step)
        for value, old, step in zip([3, 4], [1, 2], d, strict=True)
    ]
    for other in (
        lars_step(torch.zeros(2), g, buffer, **settings),
        lars_step(p, torch.zeros(2), buffer, **settings),
        lars_step(p, g, buffer, adapts=False, **settings),
    ):
        assert other.trust_ratio == 1.0


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_without_its_ratio_equals_torch_at_a_constant_lr(nesterov: bool) -> None:
    torch.manual_seed(0)
    p = torch.randn(50, dtype=torch.float64)
    theirs = p.clone().requires_grad_()
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
    sgd, buffer = torch.optim.SGD([theirs], **settings), torch.zeros_like(p)
    for _ in range(30):
        theirs.grad = torch.randn_like(p)
        sgd.step()
        p, buffer, _, _ = lars_step(p, theirs.grad, buffer, adapts=False, **settings)
    torch.testing.assert_close(p, theirs.detach(), rtol=1e-12, atol=1e-12)
