"""The LAMB steps that are compared, and how they are put together.

All compute NVLAMB: a trust ratio for every tensor, decayed or not. LAMB clips by the norm of all
gradients itself; there is no mode per tensor, and apex's cannot be turned off.
"""

from __future__ import annotations

from typing import Any

import torch
from contender_steps import BETAS, EPS, LR, MAX_GRAD_NORM, Build, Groups, Step
from contenders import OURS, Contender
from plain_lamb import PlainLAMB
from storage import FP32, necessary_bytes
from timing import Prepared
from torch import nn

from bertadam_cuda import LAMB

CLIPS = ("global", "none")
PLAIN_LAMB = "plain LAMB loop"
APEX_LAMB = "apex FusedLAMB"
_SETTINGS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS}

# Bytes per fp32 parameter, each tensor that an operation reads or writes counted once.
# norm of g; g, p, m, v -> u in the place of g, m, v; norms of p and u; p, u -> p
# (apex: l2norm, LAMBStage1Functor, l2norm twice, LAMBStage2Functor)
_APEX_BYTES = 4.0 + 28 + 8 + 12
# mul m, add m, mul v, addcmul v, / , sqrt, + eps, /, div, decay, norms of p and u, lr * r * u, p -=
# (plain_lamb.py)
_PLAIN_BYTES = 8.0 + 12 + 8 + 12 + 8 + 8 + 8 + 8 + 12 + 12 + 8 + 8 + 12


def lamb_contenders(clip: str, device: str, dtype: str = "fp32") -> list[Contender]:
    """Return what can clip in this way on this device, our own first.

    Ours is counted with what a step cannot do without: each array once as in Adam, gradients once
    more for a norm over all, parameters once more after the norms, with updates kept on the chip.
    """
    if dtype != "fp32" or clip not in CLIPS:
        return []
    clips = clip == "global"
    n_bytes = necessary_bytes(dtype, "lamb") + (FP32.norm_bytes if clips else 0.0)
    # A norm, and a product that is read and written.
    plain_bytes = _PLAIN_BYTES + (FP32.norm_bytes + FP32.scale_bytes if clips else 0.0)
    found = [
        Contender(OURS, clip, n_bytes, ours(clip), True, optimizer="lamb"),
        Contender(PLAIN_LAMB, clip, plain_bytes, plain(clip), True, optimizer="lamb"),
    ]
    if clips and device == "cuda":
        apex = Contender(APEX_LAMB, clip, _APEX_BYTES, apex_lamb, True, ("cuda",), optimizer="lamb")
        found.append(apex)
    return found


def ours(clip: str) -> Build:
    settings = {**_SETTINGS, "max_grad_norm": _limit(clip), "use_nvlamb": True}
    return lambda groups: LAMB(groups, **settings).step


def plain(clip: str) -> Build:
    return lambda groups: PlainLAMB(groups, **_SETTINGS, max_grad_norm=_limit(clip)).step


def apex_lamb(groups: Groups) -> Step:
    """FusedLAMB on gradients of its own, because it leaves its updates in them.

    Its parameters are the others' memory under another name. What it overwrote is brought back
    before each call, outside of the time that is measured.
    """
    from apex.optimizers import FusedLAMB

    params, twins, own_groups = [], [], []
    for group in groups:
        own = [nn.Parameter(param.detach()) for param in group["params"]]
        own_groups.append({**group, "params": own})
        params += group["params"]
        twins += own
    for twin in twins:
        twin.grad = torch.empty_like(twin)
    optimizer = FusedLAMB(own_groups, **_SETTINGS, max_grad_norm=MAX_GRAD_NORM, use_nvlamb=True)

    def restore() -> None:
        torch._foreach_copy_([t.grad for t in twins], [param.grad for param in params])

    return Prepared(optimizer.step, restore)


def _limit(clip: str) -> float:
    return 0.0 if clip == "none" else MAX_GRAD_NORM
