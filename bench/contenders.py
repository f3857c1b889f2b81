"""The optimizer steps that are compared: what each is called, how it clips and what it moves.

A contender is a function from parameter groups to a call that does one step, clipping included.
All of them get the same parameters, gradients, groups and settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import contender_steps as steps
from contender_steps import Build, Groups
from storage import FP32, MASTERS, Storage
from torch import Tensor

WEIGHT_DECAY = 0.01
CLIPS = ("per_tensor", "global", "none")
_GPU, _CPU = ("cuda",), ("cpu",)
OURS = "bertadam_cuda"
OUR_ADAMW = "bertadam_cuda AdamW"
FUSED = "torch AdamW(fused)"
FOREACH = "torch AdamW(foreach)"
PLAIN = "plain BertAdam loop"
APEX = "apex FusedAdam"
APEX_NO_WAIT = "apex FusedAdam, no wait"
APEX_CAPTURABLE = "apex FusedAdam(capturable)"
DEEPSPEED = "DeepSpeed FusedAdam"
DEEPSPEED_CPU = "DeepSpeedCPUAdam"

# Bytes per fp32 parameter, each tensor that an operation reads or writes counted once:
# mul p, lerp m, mul v, addcmul v, sqrt, div, add, addcdiv p (torch/optim/adam.py, multi-tensor)
_FOREACH_BYTES = 8.0 + 12 + 8 + 12 + 8 + 8 + 8 + 16
# mul m, add m, mul v, addcmul v, sqrt, + e, /, decay * p, +=, lr * u, p -=  (plain_bert_adam.py)
_PLAIN_BYTES = 8.0 + 12 + 8 + 12 + 8 + 8 + 12 + 8 + 12 + 8 + 12


@dataclass(frozen=True)
class Rounding:
    """Which results of clipping are rounded to the gradients' dtype; of our own, none."""

    norm: bool = False
    coefficient: bool = False
    gradient: bool = False


EXACT = Rounding()
#: torch keeps all of them in the gradients' dtype.
ROUNDED = Rounding(norm=True, coefficient=True, gradient=True)
#: apex's norm is float32.
NORM_EXACT = Rounding(coefficient=True, gradient=True)


@dataclass(frozen=True)
class Contender:
    """One way to do the step.

    name: as in the table.
    clip: one of CLIPS.
    bytes_per_param: memory traffic, as counted in this file.
    build: makes the step for some parameter groups.
    bias_correction: whether its semantics have one.
    only_on: set for those from a package that may be missing, which run on one kind of device.
    storage: how it keeps parameters, gradients and state.
    rounding: of its clipping.
    scaled: whether its gradients carry a loss scale, which its builder gets as second argument.
    rounds_every_operation: to the dtype of the storage, instead of what it stores.
    optimizer: whose formulas it computes, 'adam' or 'lamb'.
    """

    name: str
    clip: str
    bytes_per_param: float
    build: Build
    bias_correction: bool
    only_on: tuple[str, ...] = ()
    storage: Storage = FP32
    rounding: Rounding = EXACT
    scaled: bool = False
    rounds_every_operation: bool = False
    optimizer: str = "adam"

    @property
    def label(self) -> str:
        master = self.storage.master
        return f"{self.name}, clip {self.clip}" + (f", master {master}" if master != "none" else "")

    @property
    def optional(self) -> bool:
        return bool(self.only_on)


def contenders(clip: str, device: str, dtype: str = "fp32") -> list[Contender]:
    """Return what can clip in this way on this device, our own first.

    Gradients of fp16 carry a loss scale: there each goes with a scaler.
    """
    every = [*_ours(clip, dtype), *_torch(clip, dtype), _plain(clip, dtype), *_others(clip, dtype)]
    return [contender for contender in every if device in (contender.only_on or device)]


def _ours(clip: str, dtype: str) -> list[Contender]:
    """One for each master that the dtype can have.

    A tensor's gradient stays on the chip from its norm to its update. What all tensors decide, the
    norm over all or an overflow anywhere, is known after the last one, so all are read again.
    """
    scaled = dtype == "fp16"
    found = []
    for master in MASTERS[dtype]:
        storage = Storage(dtype, master)
        again = storage.norm_bytes if clip == "global" or scaled else 0.0
        n_bytes, build = storage.update_bytes + again, steps.ours(clip, master, scaled)
        found.append(Contender(OURS, clip, n_bytes, build, False, storage=storage, scaled=scaled))
    if dtype == "fp32":
        # The same memory traffic; only its rule is another.
        found.append(Contender(OUR_ADAMW, clip, n_bytes, steps.our_adamw(clip), True))
    return found


def _torch(clip: str, dtype: str) -> list[Contender]:
    storage, scaled = Storage(dtype, moments=dtype), dtype == "fp16"
    foreach_bytes = _FOREACH_BYTES * storage.norm_bytes / 4 + _clip_bytes(clip, storage)
    fused_bytes = storage.update_bytes + _clip_bytes(clip, storage)
    if scaled:
        foreach_bytes += storage.scale_bytes
        # Unscaled by itself, the fused kernel writes the gradients, and a pass before looks for
        # infinity.
        fused_bytes += storage.scale_bytes + (storage.norm_bytes if clip == "none" else 0.0)
    more = {"storage": storage, "rounding": ROUNDED, "scaled": scaled}
    fused = steps.torch_adamw(clip, scaled, fused=True)
    foreach = steps.torch_adamw(clip, scaled, foreach=True)
    return [
        Contender(FUSED, clip, fused_bytes, fused, True, **more),
        Contender(FOREACH, clip, foreach_bytes, foreach, True, **more, rounds_every_operation=True),
    ]


def _plain(clip: str, dtype: str) -> Contender:
    n_bytes = _PLAIN_BYTES + _clip_bytes(clip, FP32)
    if dtype == "fp32":
        return Contender(PLAIN, clip, n_bytes, steps.plain(clip), False)
    storage, scaled = Storage(dtype, "fp32"), dtype == "fp16"
    # Gradients become float32, masters become parameters.
    n_bytes += 2 * (4 + storage.norm_bytes) + (FP32.scale_bytes if scaled else 0.0)
    build = steps.plain_with_masters(clip, scaled)
    return Contender(PLAIN, clip, n_bytes, build, False, storage=storage, scaled=scaled)


def _others(clip: str, dtype: str) -> list[Contender]:
    """apex and DeepSpeed. apex's FusedAdam has masters of fp16 parameters only, if capturable."""
    own, like_params, scaled = Storage(dtype), Storage(dtype, moments=dtype), dtype == "fp16"
    clip_bytes = _clip_bytes(clip, own)
    n_bytes = like_params.update_bytes + clip_bytes + (own.scale_bytes if scaled else 0.0)
    fused = Contender(
        *(DEEPSPEED, clip, n_bytes, steps.deepspeed_fused(clip, scaled), True, _GPU),
        *(like_params, ROUNDED, scaled),
    )
    if scaled:
        if clip == "per_tensor":
            return [fused]
        masters = Storage(dtype, "fp32")
        # Its kernel writes the unscaled gradients.
        n_bytes = masters.update_bytes + own.norm_bytes + (clip_bytes or own.scale_bytes)
        build = steps.apex_with_masters(clip)
        shown = (APEX_CAPTURABLE, clip, n_bytes, build, True, _GPU)
        return [Contender(*shown, masters, NORM_EXACT, True), fused]
    n_bytes = own.update_bytes + clip_bytes
    apex = Contender(APEX, clip, n_bytes, steps.apex(clip), True, _GPU, own, ROUNDED)
    cpu = steps.deepspeed_cpu(clip)
    found = [apex, fused, Contender(DEEPSPEED_CPU, clip, n_bytes, cpu, True, _CPU, own, ROUNDED)]
    if clip == "global":
        build = steps.apex(clip, steps.apex_norm)
        found.append(Contender(APEX_NO_WAIT, clip, n_bytes, build, True, _GPU, own, NORM_EXACT))
    return found


def _clip_bytes(clip: str, storage: Storage) -> float:
    """Of a norm and a scale before the update."""
    return 0.0 if clip == "none" else storage.norm_bytes + storage.scale_bytes


def split_groups(
    decayed: Sequence[Tensor], rest: Sequence[Tensor], weight_decay: float = WEIGHT_DECAY
) -> Groups:
    """BERT's two groups; an empty one is left out."""
    groups: Groups = [
        {"params": list(decayed), "weight_decay": weight_decay},
        {"params": list(rest), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
