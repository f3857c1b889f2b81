"""The proof that a contender computes what it says, before it is timed.

A few steps are compared with the formulas in float64, whose results are rounded after each step as
the contender keeps them. The formulas are those of reference.py: AdamW's result is BertAdam's with
bias correction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from contender_steps import BETAS, EPS, LR, MAX_GRAD_NORM
from contenders import Contender, split_groups
from storage import DTYPES
from timing import prepare
from torch import Tensor, nn

from bertadam_cuda.reference import (
    bert_adam_step,
    clip_coefficient,
    gradient_norm,
    lamb_step,
    split_master,
)


class WrongResult(Exception):
    """A contender does not compute its own semantics."""


@dataclass(frozen=True)
class _Case:
    """One tensor: its shape, its size of an element, and the norm of its gradient."""

    shape: tuple[int, ...]
    size: float
    grad_norm: float


def _cases(dtype: torch.dtype) -> list[_Case]:
    """Tensors, of which the first decays. Limits of 1 clip some of their gradients.

    The last one is so large that an update is a fraction of what 16 bits can tell apart: who has
    masters adds the fractions up.
    """
    large = 1.0 if dtype == torch.float32 else 4 * LR / torch.finfo(dtype).eps
    return [
        _Case((16, 12), 0.03, 3.0),
        _Case((200,), 1e-3, 2.5),
        _Case((7,), 1e-3, 0.3),
        _Case((300,), large, 3.0),
    ]


#: So much that 16 bits show it: 3 % of the parameter per step.
_WEIGHT_DECAY = 30.0
#: Factors on the norms, one per step: Adam forgets a constant one, and with it the clipping.
_SCALES = (1.0, 0.25, 3.0)
_LOSS_SCALE = 1024.0
#: Of the change along its expected direction, beside what rounding of single elements makes of it.
_SYSTEMATIC = 2e-3
_ROUNDED_OTHERWISE = 0.01


def check(contender: Contender, device: torch.device) -> None:
    """Compare a few steps with float64; raise WrongResult if they differ.

    An element may be off by what rounding can do to it (`_Expected.slack`). Because 16 bits hide
    small mistakes in that, there is more: the changes of all elements of a tensor together may be
    off by 0.2 %, and by the slack over the square root of their number (roundings are independent,
    a wrong lr is not); and where only what is stored is rounded to 16 bits, 1 % of the elements
    may be rounded otherwise. Errors of float32, 2**-23, make that one in thousands.
    """
    expected = _Expected(contender, device)
    params = [nn.Parameter(start.clone()) for start in expected.starts]
    groups = split_groups(params[:1], params[1:], _WEIGHT_DECAY)
    loss_scale = _LOSS_SCALE if contender.scaled else 1.0
    step = contender.build(groups, loss_scale) if contender.scaled else contender.build(groups)
    for t, scale in enumerate(_SCALES, start=1):
        grads = [scale * grad for grad in expected.random_gradients()]
        # A step may scale its gradients in place.
        for param, grad in zip(params, grads, strict=True):
            param.grad = (loss_scale * grad).to(device, param.dtype)
        expected.advance(t, [param.grad.double() / loss_scale for param in params])
        prepare(step)
        step()
        for i, param in enumerate(params):
            _compare(contender, t, i, param.detach(), expected)
        if contender.storage.dtype != "fp32" and not contender.rounds_every_operation:
            _check_roundings(contender, t, params, expected)
    if contender.scaled:
        _check_overflow(contender, step, params)


class _Expected:
    """What the parameters should be, by the formulas and the contender's storage.

    `slack` per tensor: how far rounding may take an element. Each step: a neighbouring value of
    the parameter or master, as large as the largest; of the update, 1e-5 of the largest, or where
    moments have 16 bits the roundings of up to eight operations, four times the precision, and one
    step between subnormal values of the smallest v. At the end, a neighbouring parameter.
    """

    def __init__(self, contender: Contender, device: torch.device) -> None:
        self._contender, storage = contender, contender.storage
        self._dtype, self._moment_dtype = DTYPES[storage.dtype], DTYPES[storage.moments]
        self._generator = torch.Generator().manual_seed(0)
        self._cases = _cases(self._dtype)
        self.starts = [
            (case.size * self._random(case.shape)).to(device, self._dtype) for case in self._cases
        ]
        self._values = [start.double() for start in self.starts]
        self._moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self._values]
        self.slack = [0.0] * len(self._cases)

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        """Of either sign, magnitudes from 0.5 to 1.5: a second moment of 16 bits needs no zeros."""
        signs = torch.randn(shape, generator=self._generator).sign()
        return signs * (0.5 + torch.rand(shape, generator=self._generator))

    def random_gradients(self) -> list[Tensor]:
        randoms = [self._random(case.shape) for case in self._cases]
        return [
            x * (case.grad_norm / x.norm()) for x, case in zip(randoms, self._cases, strict=True)
        ]

    def advance(self, t: int, grads: list[Tensor]) -> None:
        """Do one step; the gradients are those before clipping, in float64."""
        contender = self._contender
        master = contender.storage.master
        kept = self._dtype if master == "none" else torch.float32
        precision = torch.finfo(self._moment_dtype)
        arithmetic = max(1e-5, 4 * precision.eps)
        for i, grad in enumerate(clipped(contender, grads)):
            state = (self._values[i], grad, *self._moments[i])
            decay = _WEIGHT_DECAY if i == 0 else 0.0
            new, largest = stepped(contender, state, decay, t)
            self._values[i] = rounded(new[0], kept)
            self._moments[i] = tuple(rounded(moment, self._moment_dtype) for moment in new[1:])
            coarse = precision.smallest_normal * precision.eps / float(new[2].min())
            of_update = (arithmetic + coarse) * largest
            self.slack[i] += of_update + torch.finfo(kept).eps * float(new[0].abs().max())

    def param(self, i: int) -> Tensor:
        """The visible parameter."""
        master = self._values[i]
        if self._contender.storage.master == "remainder":
            return split_master(master)[0].double()
        return rounded(master, self._dtype)

    def allowed(self, i: int) -> float:
        """The slack, and a neighbouring value of what a master is rounded to."""
        if self._contender.storage.master == "none":
            return self.slack[i]
        return self.slack[i] + torch.finfo(self._dtype).eps * float(self._values[i].abs().max())


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).double()


def stepped(
    contender: Contender, state: tuple[Tensor, ...], weight_decay: float, t: int
) -> tuple[tuple[Tensor, ...], float]:
    """New parameter and moments in float64, and the largest change without rounding.

    `state`: parameter, clipped gradient, moments.
    """
    correction = t if contender.bias_correction else None
    if contender.optimizer == "lamb":
        more = {"decoupled_decay": weight_decay, "bias_correction_step": correction}
        result = lamb_step(*state, lr=LR, betas=BETAS, eps=EPS, **more)
        rate = LR * result.trust_ratio
    else:
        more = {"weight_decay": weight_decay, "bias_correction_step": correction}
        result = bert_adam_step(*state, lr=LR, b1=BETAS[0], b2=BETAS[1], e=EPS, **more)
        rate = LR
    new = (result.param, result.exp_avg, result.exp_avg_sq)
    return new, rate * float(result.update.abs().max())


def clipped(contender: Contender, grads: list[Tensor]) -> list[Tensor]:
    """Gradients as the contender's update sees them."""
    if contender.clip == "none":
        return grads
    dtype, rounding = DTYPES[contender.storage.dtype], contender.rounding

    def keep(x: float, round_it: bool) -> float:
        return float(rounded(torch.tensor(x, dtype=torch.float64), dtype)) if round_it else x

    norms = [keep(gradient_norm(grad), rounding.norm) for grad in grads]
    if contender.clip == "global":
        norms = [keep(math.hypot(*norms), rounding.norm)] * len(grads)
    # LAMB's has no 1e-6 in it, which at these norms is less than float32 tells apart.
    coefficients = [clip_coefficient(norm, MAX_GRAD_NORM) for norm in norms]
    if rounding.coefficient:
        sums = [keep(norm + 1e-6, rounding.norm) for norm in norms]
        coefficients = [min(1.0, keep(MAX_GRAD_NORM / total, True)) for total in sums]
    found = [grad * c for grad, c in zip(grads, coefficients, strict=True)]
    return [rounded(g, dtype) for g in found] if rounding.gradient else found


def _compare(contender: Contender, t: int, i: int, found: Tensor, expected: _Expected) -> None:
    start, wanted = expected.starts[i].double(), expected.param(i)
    error, allowed = float((found.double() - wanted).abs().max()), expected.allowed(i)
    where = f"{contender.label}: after step {t} tensor {i}"
    # A NaN is no smaller than anything.
    if not error <= allowed:
        raise WrongResult(
            f"{where} differs from float64 by {error:.3g}, expected at most {allowed:.3g}"
        )
    change = wanted - start
    square = float(change.square().sum())
    if square == 0:  # all updates are below what its parameters can show
        return
    along = float(((found.double() - start) * change).sum()) / square
    noise = allowed / math.sqrt(square)  # (allowed / rms of the change) / sqrt(elements)
    if not abs(along - 1) <= _SYSTEMATIC + noise:
        raise WrongResult(
            f"{where} changes {along:.4g} times as much as in float64, expected 1 within"
            f" {_SYSTEMATIC + noise:.2g}"
        )


def _check_roundings(
    contender: Contender, t: int, params: list[nn.Parameter], expected: _Expected
) -> None:
    pairs = [(param.detach().double(), expected.param(i)) for i, param in enumerate(params)]
    differ = sum(int((found != wanted).sum()) for found, wanted in pairs)
    share = differ / sum(found.numel() for found, _ in pairs)
    if share > _ROUNDED_OTHERWISE:
        raise WrongResult(
            f"{contender.label}: after step {t} {100 * share:.2g} % of the elements differ from"
            f" rounded float64, expected at most {100 * _ROUNDED_OTHERWISE:g} %"
        )


def _check_overflow(contender: Contender, step: object, params: list[nn.Parameter]) -> None:
    """An infinite gradient has to leave all parameters as they are."""
    before = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.ones_like(param)
    params[1].grad[3] = math.inf
    step()  # type: ignore[operator]
    for i, (param, old) in enumerate(zip(params, before, strict=True)):
        if not torch.equal(param.detach(), old):
            raise WrongResult(f"{contender.label}: tensor {i} is updated in spite of an overflow")
