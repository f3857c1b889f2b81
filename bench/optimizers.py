"""The optimizers that a pretraining run can use, behind one small interface.

An optimizer comes with what it needs around `step`: clipping of gradients and the schedule, which
BertAdam does itself and torch's optimizers leave to the training loop.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from loss_scaling import OurScaler
from phases import Phase, phase_index
from plain_bert_adam import PlainBertAdam
from settings import Settings
from torch.nn.utils import clip_grad_norm_

import bertadam_cuda
from bertadam_cuda.param_groups import param_groups_weight_decay

BETAS = (0.9, 0.999)
EPS = 1e-6
#: So that one lr fits adapted tensors and the others; LARS's own 0.001 wants an lr of about 1,
#: which plain momentum on biases does not stand.
TRUST_COEFFICIENT = 1.0


@dataclass
class Stepper:
    """An optimizer, and what is called before and after it in every step.

    A scaler goes with an optimizer that clips by itself. One without `reset_schedule` has the
    schedules of all phases in a function of the step.
    """

    optimizer: torch.optim.Optimizer
    clip: Callable[[], object] | None = None
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    scaler: torch.amp.GradScaler | None = None
    reset_schedule: Callable[..., None] | None = None

    def begin_phase(self, phase: Phase) -> None:
        """Begin the schedule of another phase; moments and steps stay."""
        if self.reset_schedule is not None:
            self.reset_schedule(lr=phase.lr, t_total=phase.n_steps, warmup=phase.warmup)

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradients that `step` takes."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Clip, update, and advance the schedule."""
        if self.clip is not None:
            self.clip()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """State of the parts; without functions, which the constructor makes again."""
        optimizer = self.optimizer.state_dict()
        groups = [
            {name: value for name, value in group.items() if not callable(value)}
            for group in optimizer["param_groups"]
        ]
        scheduler = self.scheduler.state_dict() if self.scheduler is not None else {}
        return {
            "optimizer": {**optimizer, "param_groups": groups},
            "scheduler": scheduler,
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a stepper that was built with the same settings."""
        own_groups = self.optimizer.state_dict()["param_groups"]
        saved = state["optimizer"]
        groups = [
            {**own, **group} for own, group in zip(own_groups, saved["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])


def build_stepper(model: torch.nn.Module, settings: Settings) -> Stepper:
    """Make the run's optimizer for the model's parameters; biases and norms are not decayed."""
    groups = param_groups_weight_decay(model, settings.weight_decay)
    return BUILDERS[settings.optimizer](groups, settings)


def lr_multiplier(settings: Settings) -> Callable[[int], float]:
    """Multiplier of the first phase's lr as a function of the updates done, over all phases."""
    phases = settings.phases
    if len(phases) == 1:
        return phases[0].multiplier()
    by_phase = [(phase.first_step, phase.lr / settings.lr, phase.multiplier()) for phase in phases]

    def multiplier(step: int) -> float:
        first_step, ratio, of_phase = by_phase[phase_index(phases, step)]
        return ratio * of_phase(step - first_step)

    return multiplier


def _bertadam(groups: list[dict[str, Any]], settings: Settings) -> Stepper:
    return _ours(bertadam_cuda.BertAdam(groups, **_our_settings(settings)), settings)


def _adamw(groups: list[dict[str, Any]], settings: Settings) -> Stepper:
    more = {"betas": BETAS, "eps": EPS, **_our_settings(settings)}
    return _ours(bertadam_cuda.AdamW(groups, **more), settings)


def _lamb(groups: list[dict[str, Any]], settings: Settings) -> Stepper:
    more = {"betas": BETAS, "eps": EPS, **_our_settings(settings)}
    use_nvlamb = settings.optimizer == "nvlamb"
    return _ours(bertadam_cuda.LAMB(groups, use_nvlamb=use_nvlamb, **more), settings)


def _lars(groups: list[dict[str, Any]], settings: Settings) -> Stepper:
    """Biases and norms are not adapted, so that their lr is that of plain momentum."""
    decayed, rest = groups
    more = {"trust_coefficient": TRUST_COEFFICIENT, **_our_settings(settings)}
    return _ours(bertadam_cuda.LARS([decayed, {**rest, "adapt": False}], **more), settings)


def _our_settings(settings: Settings) -> dict[str, Any]:
    """What every optimizer of this package takes."""
    first = settings.phases[0]
    return {
        "lr": first.lr,
        "schedule": first.schedule,
        "warmup": first.warmup,
        "t_total": first.n_steps,
        "schedule_args": first.schedule_args or None,
        "master_weights": None if settings.master_weights == "none" else settings.master_weights,
        "stochastic_rounding": settings.stochastic_rounding,
        "rounding_seed": settings.seed,
        "max_grad_norm": _limit(settings),
        "clip": _norm_kind(settings),
    }


def _ours(optimizer: Any, settings: Settings) -> Stepper:
    scaler = OurScaler(torch.device(settings.device).type) if settings.dtype == "fp16" else None
    return Stepper(optimizer, scaler=scaler, reset_schedule=optimizer.reset_schedule)


def _reference(groups: list[dict[str, Any]], settings: Settings) -> Stepper:
    return Stepper(
        PlainBertAdam(
            groups,
            settings.lr,
            schedule=lr_multiplier(settings),
            max_grad_norm=_limit(settings),
            clip=_norm_kind(settings),
            reduction_chunks=settings.reduction_chunks,
        )
    )


def _torch(groups: list[dict[str, Any]], settings: Settings) -> Stepper:
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=BETAS, eps=EPS, fused=True)
    return _with_loop_parts(optimizer, settings)


def _apex(groups: list[dict[str, Any]], settings: Settings) -> Stepper:
    try:
        fused_adam = importlib.import_module("apex.optimizers").FusedAdam
    except ImportError as error:
        raise ImportError(
            f"pretrain_bert: --optimizer apex needs NVIDIA apex with its CUDA extensions ({error});"
            " build it from https://github.com/NVIDIA/apex, or use --optimizer torch"
        ) from error
    optimizer = fused_adam(groups, lr=settings.lr, betas=BETAS, eps=EPS, adam_w_mode=True)
    return _with_loop_parts(optimizer, settings)


BUILDERS: dict[str, Callable[[list[dict[str, Any]], Settings], Stepper]] = {
    "bertadam": _bertadam,
    "adamw": _adamw,
    "lamb": _lamb,
    "nvlamb": _lamb,
    "lars": _lars,
    "reference": _reference,
    "torch": _torch,
    "apex": _apex,
}


def _with_loop_parts(optimizer: torch.optim.Optimizer, settings: Settings) -> Stepper:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    limit = settings.max_grad_norm
    clips: dict[str, Callable[[], object] | None] = {
        "per_tensor": lambda: [clip_grad_norm_(param, limit) for param in params],
        "global": lambda: clip_grad_norm_(params, limit),
        "none": None,
    }
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_multiplier(settings))
    return Stepper(optimizer, clips[settings.clip] if limit > 0 else None, scheduler)


def _limit(settings: Settings) -> float:
    return 0.0 if settings.clip == "none" else settings.max_grad_norm


def _norm_kind(settings: Settings) -> str:
    return "per_tensor" if settings.clip == "none" else settings.clip
