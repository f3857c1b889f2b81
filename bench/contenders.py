"""The optimizer steps that are compared, and the proof that each computes what it says.

A contender is a function from parameter groups to a call that does one step, clipping included.
All of them get the same parameters, gradients, groups and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from plain_bert_adam import PlainBertAdam
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bertadam_cuda import BertAdam
from bertadam_cuda.reference import bert_adam_step, clip_coefficient, gradient_norm

Groups = list[dict[str, Any]]
Step = Callable[[], object]
Clip = Callable[[list[Tensor], float], object]

LR, BETAS, EPS, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-3, (0.9, 0.999), 1e-6, 0.01, 1.0
CLIPS = ("per_tensor", "global", "none")
_GPU, _CPU = ("cuda",), ("cpu",)
OURS = "bertadam_cuda"
FUSED = "torch AdamW(fused)"
PLAIN = "plain BertAdam loop"
APEX = "apex FusedAdam"
APEX_NO_WAIT = "apex FusedAdam, no wait"
DEEPSPEED_CPU = "DeepSpeedCPUAdam"

# Bytes per fp32 parameter, each tensor that an operation reads or writes counted once.
_UPDATE = 28.0  # p, g, m, v read; p, m, v written
_NORM = 4.0  # g read
_SCALE = 8.0  # g read and written
# mul p, lerp m, mul v, addcmul v, sqrt, div, add, addcdiv p (torch/optim/adam.py, multi-tensor)
_FOREACH = 8.0 + 12 + 8 + 12 + 8 + 8 + 8 + 16
# mul m, add m, mul v, addcmul v, sqrt, + e, /, decay * p, +=, lr * u, p -=  (plain_bert_adam.py)
_PLAIN = 8.0 + 12 + 8 + 12 + 8 + 8 + 12 + 8 + 12 + 8 + 12


class WrongResult(Exception):
    """A contender does not compute its own semantics."""


@dataclass(frozen=True)
class Contender:
    """One way to do the step.

    name: as in the table.
    clip: one of CLIPS.
    bytes_per_param: memory traffic, as counted above.
    build: makes the step for some parameter groups.
    bias_correction: whether its semantics have one.
    only_on: set for those from a package that may be missing, which run on one kind of device.
    """

    name: str
    clip: str
    bytes_per_param: float
    build: Callable[[Groups], Step]
    bias_correction: bool
    only_on: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.name}, clip {self.clip}"

    @property
    def optional(self) -> bool:
        return bool(self.only_on)


def contenders(clip: str, device: str) -> list[Contender]:
    """Return what can clip in this way on this device, our own first."""
    clip_bytes = 0.0 if clip == "none" else _NORM + _SCALE
    # A tensor's gradient stays on the chip from its norm to its update. The norm over all tensors
    # is known after the last one, so all gradients are read again.
    own_bytes = _UPDATE + (_NORM if clip == "global" else 0.0)
    fused, foreach = _torch_adamw(clip, fused=True), _torch_adamw(clip, foreach=True)
    clipped_update = _UPDATE + clip_bytes
    every = [
        Contender(OURS, clip, own_bytes, _bert_adam(BertAdam, clip), False),
        Contender(FUSED, clip, clipped_update, fused, True),
        Contender("torch AdamW(foreach)", clip, _FOREACH + clip_bytes, foreach, True),
        Contender(PLAIN, clip, _PLAIN + clip_bytes, _bert_adam(PlainBertAdam, clip), False),
        Contender(APEX, clip, clipped_update, _apex(clip), True, _GPU),
        Contender("DeepSpeed FusedAdam", clip, clipped_update, _deepspeed_fused(clip), True, _GPU),
        Contender(DEEPSPEED_CPU, clip, clipped_update, _deepspeed_cpu(clip), True, _CPU),
    ]
    if clip == "global":
        every.append(
            Contender(APEX_NO_WAIT, clip, clipped_update, _apex(clip, _apex_norm), True, _GPU)
        )
    return [contender for contender in every if device in (contender.only_on or device)]


def _bert_adam(kind: Callable[..., torch.optim.Optimizer], clip: str) -> Callable[[Groups], Step]:
    def build(groups: Groups) -> Step:
        limits = {
            "max_grad_norm": 0.0 if clip == "none" else MAX_GRAD_NORM,
            "clip": "global" if clip == "global" else "per_tensor",
        }
        return kind(groups, lr=LR, b1=BETAS[0], b2=BETAS[1], e=EPS, **limits).step

    return build


def _torch_adamw(clip: str, **implementation: bool) -> Callable[[Groups], Step]:
    def build(groups: Groups) -> Step:
        optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, **implementation)
        return _clipped(optimizer.step, clip, groups)

    return build


def _apex(clip: str, clip_global: Clip | None = None) -> Callable[[Groups], Step]:
    def build(groups: Groups) -> Step:
        from apex.contrib.clip_grad import clip_grad_norm_ as apex_clip
        from apex.optimizers import FusedAdam

        optimizer = FusedAdam(groups, lr=LR, betas=BETAS, eps=EPS)
        # Its l2norm and scale kernels; it has nothing for one tensor at a time.
        return _clipped(optimizer.step, clip, groups, clip_global or apex_clip)

    return build


def _apex_norm(params: list[Tensor], max_norm: float) -> None:
    """Clip as apex does, without its wait: apex hands the coefficient to its scale kernel from the
    host, so nothing can be launched until the norm is there. torch's scale takes it on the device.
    """
    import amp_C
    from apex.multi_tensor_apply import multi_tensor_applier

    grads = [param.grad for param in params]
    unused_flag = torch.zeros(1, dtype=torch.int32, device=grads[0].device)
    norm, _ = multi_tensor_applier(amp_C.multi_tensor_l2norm, unused_flag, [grads], False)
    torch._foreach_mul_(grads, (max_norm / (norm[0] + 1e-6)).clamp(max=1.0))


def _deepspeed_fused(clip: str) -> Callable[[Groups], Step]:
    def build(groups: Groups) -> Step:
        from deepspeed.ops.adam import FusedAdam

        optimizer = FusedAdam(groups, lr=LR, betas=BETAS, eps=EPS)
        return _clipped(optimizer.step, clip, groups)

    return build


def _deepspeed_cpu(clip: str) -> Callable[[Groups], Step]:
    def build(groups: Groups) -> Step:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer = DeepSpeedCPUAdam(groups, lr=LR, betas=BETAS, eps=EPS, adamw_mode=True)
        return _clipped(optimizer.step, clip, groups)

    return build


def _clipped(
    step: Step,
    clip: str,
    groups: Groups,
    clip_global: Clip = clip_grad_norm_,
) -> Step:
    """Put torch's clipping before a step that has none of its own."""
    params = [param for group in groups for param in group["params"]]

    def per_tensor() -> None:
        for param in params:
            clip_grad_norm_(param, MAX_GRAD_NORM)
        step()

    def over_all() -> None:
        clip_global(params, MAX_GRAD_NORM)
        step()

    return {"none": step, "per_tensor": per_tensor, "global": over_all}[clip]


#: Shapes, and norms of the gradients: two clipped and one not, by a per-tensor limit of 1.
_CHECK_SHAPES = (((257, 33), 40.0), ((1000,), 6.0), ((7,), 0.05))
#: Factors on those norms, one per step. Adam forgets a constant scale, and with it the clipping.
_CHECK_SCALES = (1.0, 0.2, 3.0)


def check(contender: Contender, device: torch.device) -> None:
    """Compare a few steps with the formulas in float64; raise WrongResult if they differ.

    The formulas are those of reference.py: AdamW's result is BertAdam's with bias correction, and
    a contender clips as its `clip` says. Per step an element may be off by 1e-5 of the largest
    update and by one rounding of the largest parameter.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [shape for shape, _ in _CHECK_SHAPES]
    params = [nn.Parameter(torch.randn(s, generator=generator).to(device)) for s in shapes]
    step = contender.build(split_groups(params[:1], params[1:]))
    exact = [param.detach().double() for param in params]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in exact]
    slack = 0.0
    for t, scale in enumerate(_CHECK_SCALES, start=1):
        for param, (shape, norm) in zip(params, _CHECK_SHAPES, strict=True):
            grad = torch.randn(shape, generator=generator)
            param.grad = (grad * (scale * norm / grad.norm())).to(device)
        # Before the step, which may scale the gradients in place.
        updates = _expected_updates(contender, t, params, exact, moments)
        step()
        slack += 1e-5 * LR * max(float(update.abs().max()) for update in updates)
        slack += 2**-23 * max(float(p.abs().max()) for p in exact)
        _compare(contender, t, params, exact, slack)


def _expected_updates(
    contender: Contender,
    t: int,
    params: list[nn.Parameter],
    exact: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
) -> list[Tensor]:
    """Advance `exact` and `moments` by one step; returns the updates before lr."""
    grads = [param.grad for param in params]
    coefs = _expected_coefficients(contender.clip, grads)
    updates = []
    for i, (grad, (m, v)) in enumerate(zip(grads, moments, strict=True)):
        result = bert_adam_step(
            exact[i],
            grad,
            m,
            v,
            lr=LR,
            b1=BETAS[0],
            b2=BETAS[1],
            e=EPS,
            weight_decay=WEIGHT_DECAY if i == 0 else 0.0,
            clip_coef=coefs[i],
            bias_correction_step=t if contender.bias_correction else None,
        )
        exact[i], moments[i] = result.param, (result.exp_avg, result.exp_avg_sq)
        updates.append(result.update)
    return updates


def _expected_coefficients(clip: str, grads: Sequence[Tensor]) -> list[float]:
    if clip == "none":
        return [1.0] * len(grads)
    if clip == "per_tensor":
        return [clip_coefficient(gradient_norm(grad), MAX_GRAD_NORM) for grad in grads]
    return [clip_coefficient(gradient_norm(*grads), MAX_GRAD_NORM)] * len(grads)


def _compare(
    contender: Contender, t: int, params: list[nn.Parameter], exact: list[Tensor], slack: float
) -> None:
    for i, (param, expected) in enumerate(zip(params, exact, strict=True)):
        error = float((param.detach().double() - expected).abs().max())
        # A NaN is no smaller than anything.
        if not error <= slack:
            raise WrongResult(
                f"{contender.label}: after step {t} tensor {i} differs from "
                f"float64 by {error:.3g}, expected at most {slack:.3g}"
            )


def split_groups(decayed: Sequence[Tensor], rest: Sequence[Tensor]) -> Groups:
    """BERT's two groups; an empty one is left out."""
    groups: Groups = [
        {"params": list(decayed), "weight_decay": WEIGHT_DECAY},
        {"params": list(rest), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
