"""The rules in float64 PyTorch, short enough to be checked against the formulas by eye.

For reading and for tests: it imports nothing of the extension, and no optimizer uses it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AdamResult(NamedTuple):
    """New values after one update, all float64; `update` is the direction before lr."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None
    update: Tensor


class BertAdamResult(NamedTuple):
    """New values after one update, all float64; `update` is the direction before lr."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    update: Tensor


class LambResult(NamedTuple):
    """New values after one update, all float64; `update` is the direction before ratio and lr."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    update: Tensor
    trust_ratio: float


class LarsResult(NamedTuple):
    """New values after one update, all float64; `update` is what `param` has lost."""

    param: Tensor
    momentum_buffer: Tensor
    update: Tensor
    trust_ratio: float


def split_master(master: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bfloat16 and the int16 that together are a finite float32 tensor, exactly.

    The bfloat16 is the nearest, ties away from zero; the int16 is what its bits, as the upper half
    of a float32's, lack. Source: apex, DistributedFusedAdam(store_param_remainders=True).
    """
    bits = master.float().view(torch.int32).long()
    upper = torch.div(bits + 2**15, 2**16, rounding_mode="floor")
    return upper.to(torch.int16).view(torch.bfloat16), (bits - upper * 2**16).to(torch.int16)


def round_stochastically(x: Tensor, random_bits: Tensor) -> Tensor:
    """Return float32 as bfloat16: away from zero where the bits cut off exceed 65535 - random_bits.

    `random_bits`: whole numbers below 65536, so that the expectation over them is x.
    """
    bits = x.float().view(torch.int32).long()
    lower = bits % 2**16
    upper = (bits - lower) // 2**16 + (lower + random_bits >= 2**16)
    return upper.to(torch.int16).view(torch.bfloat16)


def gradient_norm(*grads: Tensor) -> float:
    """Return the Euclidean norm over all elements of all gradients."""
    squares = [grad.detach().double().square().sum() for grad in grads]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def clip_coefficient(norm: float, max_grad_norm: float) -> float:
    """Return min(1, max_grad_norm / (norm + 1e-6)), or 1 where max_grad_norm <= 0 (no clipping).

    A norm of NaN gives NaN. Source: torch.nn.utils.clip_grad_norm_, which BertAdam calls.
    """
    if max_grad_norm <= 0:
        return 1.0
    coefficient = max_grad_norm / (norm + 1e-6)
    return 1.0 if coefficient > 1 else coefficient


def bert_adam_step(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    e: float = 1e-6,
    weight_decay: float = 0.01,
    clip_coef: float = 1.0,
    bias_correction_step: int | None = None,
) -> BertAdamResult:
    """Return the result of one BertAdam update of one parameter; nothing is written in place.

    m' = b1*m + (1-b1)*g', v' = b2*v + (1-b2)*g'^2 with g' = clip_coef*g,
    u = m' / (sqrt(v') + e) + weight_decay*p, p' = p - lr*u.
    `bias_correction_step` = t, from 1, divides m' by 1-b1^t and v' by 1-b2^t inside u; None is
    the original's form without it. `lr` is the scheduled one. Where m' = 0, m'/(sqrt(v')+e) is 0
    also for e = 0. Source: DeepSpeedExamples, bing_bert, `BertAdam.step`.
    """
    p, g, m, v = (tensor.detach().double() for tensor in (p, g, m, v))
    g = clip_coef * g
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    t = bias_correction_step
    m_hat = m if t is None else m / (1 - b1**t)
    v_hat = v if t is None else v / (1 - b2**t)
    u = torch.where(m == 0, m, m_hat / (v_hat.sqrt() + e))
    if weight_decay > 0:
        u = u + weight_decay * p
    return BertAdamResult(p - lr * u, m, v, u)


def adam_step(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    max_v: Tensor | None = None,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    l2_decay: float = 0.0,
    decoupled_decay: float = 0.0,
    bias_correction_step: int | None = None,
) -> AdamResult:
    """Return the result of one Adam update of one parameter; nothing is written in place.

    `g`: clipped, and negated to maximise. g' = g + l2_decay*p, m' = b1*m + (1-b1)*g',
    v' = b2*v + (1-b2)*g'^2, w = v' or, where `max_v` is given (AMSGrad), max(max_v, v');
    u = m'/(1-b1^t) / (sqrt(w/(1-b2^t)) + eps) + decoupled_decay*p, p' = p - lr*u.
    `bias_correction_step` = t, from 1; None is without. Where m' = 0 its quotient is 0 also for
    eps = 0. Source: torch.optim.adam, `_single_tensor_adam`.
    """
    p, g, m, v = (tensor.detach().double() for tensor in (p, g, m, v))
    g = g + l2_decay * p
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    max_v = None if max_v is None else torch.maximum(max_v.double(), v)
    root = v if max_v is None else max_v
    t = bias_correction_step
    m_hat = m if t is None else m / (1 - betas[0] ** t)
    root = root if t is None else root / (1 - betas[1] ** t)
    u = torch.where(m == 0, m, m_hat / (root.sqrt() + eps)) + decoupled_decay * p
    return AdamResult(p - lr * u, m, v, max_v, u)


def lamb_clip_coefficient(norm: float, max_grad_norm: float, always: bool = False) -> float:
    """Return min(1, max_grad_norm / norm); `always`: without the 1, but 1 for a norm of 0.

    1 where max_grad_norm <= 0. Source: apex, multi_tensor_lamb.cu; without the 1, NVIDIA's article.
    """
    if max_grad_norm <= 0 or norm == 0:
        return 1.0
    coefficient = max_grad_norm / norm
    return 1.0 if coefficient > 1 and not always else coefficient


def lamb_step(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    l2_decay: float = 0.0,
    decoupled_decay: float = 0.01,
    beta3: float | None = None,
    adapts: bool = True,
    bias_correction_step: int | None = None,
) -> LambResult:
    """Return the result of one LAMB update of one parameter; nothing is written in place.

    `g`: clipped, and negated to maximise. u is that of `adam_step`, with m' = b1*m + beta3*g'
    (None: 1-b1); p' = p - lr*r*u, r = ||p||/||u|| where `adapts` and neither is 0, else 1.
    Source: apex, multi_tensor_lamb.cu, LAMBStage1Functor and LAMBStage2Functor.
    """
    p, g, m, v = (tensor.detach().double() for tensor in (p, g, m, v))
    g = g + l2_decay * p
    m = betas[0] * m + (1 - betas[0] if beta3 is None else beta3) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    t = bias_correction_step
    m_hat = m if t is None else m / (1 - betas[0] ** t)
    v_hat = v if t is None else v / (1 - betas[1] ** t)
    u = torch.where(m == 0, m, m_hat / (v_hat.sqrt() + eps)) + decoupled_decay * p
    p_norm, u_norm = gradient_norm(p), gradient_norm(u)
    ratio = p_norm / u_norm if adapts and p_norm != 0 and u_norm != 0 else 1.0
    return LambResult(p - lr * ratio * u, m, v, u, ratio)


def lars_step(
    p: Tensor,
    g: Tensor,
    buffer: Tensor,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 1e-8,
    nesterov: bool = False,
    adapts: bool = True,
) -> LarsResult:
    """Return the result of one LARS update of one parameter; nothing is written in place.

    `g`: clipped, and negated to maximise. d = lr*r*(g + weight_decay*p), b' = momentum*b + d,
    p' = p - b', or p - (momentum*b' + d) for Nesterov; r = trust_coefficient*||p|| / (||g|| +
    weight_decay*||p|| + eps) where `adapts` and neither norm is 0, else 1. Source: You, Gitman,
    Ginsburg 2017, algorithm 1; Nesterov as torch.optim.SGD.
    """
    p, g, buffer = (tensor.detach().double() for tensor in (p, g, buffer))
    p_norm, g_norm = gradient_norm(p), gradient_norm(g)
    ratio = 1.0
    if adapts and p_norm != 0 and g_norm != 0:
        ratio = trust_coefficient * p_norm / (g_norm + weight_decay * p_norm + eps)
    d = lr * ratio * (g + weight_decay * p)
    buffer = momentum * buffer + d
    update = momentum * buffer + d if nesterov else buffer
    return LarsResult(p - update, buffer, update, ratio)
