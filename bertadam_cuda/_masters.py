"""Masters: the float32 values that stand behind parameters of 16 bits.

Which of them a parameter's state holds, how they begin, and how one form becomes the other. A step
computes with them by csrc/core/storage.h; this file is for state and checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Keys of the state: TransformerEngine's FusedAdam has the first, apex's DistributedFusedAdam the
#: second, which holds the same bits here.
MASTER_PARAM = "master_param"
PARAM_REMAINDER = "param_remainder"
KEYS = (MASTER_PARAM, PARAM_REMAINDER)

#: master_weights, and what it adds to the state of a parameter of 16 bits.
_ADDED = {
    None: None,
    "fp32": (MASTER_PARAM, torch.float32),
    "remainder": (PARAM_REMAINDER, torch.int16),
}
_HALF, _UPPER = 0x8000, 16  # of the lower half of a float32's bits; where the upper half begins


def key_of(param: Tensor, master_weights: str | None) -> str | None:
    """Return the key of the parameter's master; None where it keeps none, as float32 does."""
    added = _ADDED[master_weights]
    return None if added is None or param.dtype == torch.float32 else added[0]


def new_master(param: Tensor, master_weights: str | None) -> dict[str, Tensor]:
    """Return what the state of `param` needs beside its moments, made from the parameter."""
    added = _ADDED[master_weights]
    if added is None or param.dtype == torch.float32:
        return {}
    key, dtype = added
    master = torch.empty_like(param, dtype=dtype, requires_grad=False)
    write_from_param(master, param)
    return {key: master}


@torch.no_grad()
def write_from_param(master: Tensor, param: Tensor) -> None:
    """Set a master, of either form, so that it is the parameter's value."""
    if master.dtype == torch.int16:
        master.zero_()
    else:
        master.copy_(param)


def fit(state: dict[str, Tensor], param: Tensor, master_weights: str | None) -> None:
    """Give a state the master that it should have, if it lacks it, and no other."""
    wanted = key_of(param, master_weights)
    if wanted not in state:
        state.update(new_master(param, master_weights))
    for key in KEYS:
        if key != wanted:
            state.pop(key, None)


def sync(state: dict[str, Tensor], param: Tensor, master_weights: str | None) -> None:
    """The same, and make the master anew from the parameter."""
    fit(state, param, master_weights)
    wanted = key_of(param, master_weights)
    if wanted is not None:
        write_from_param(state[wanted], param)


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """Return a finite float32 tensor as bfloat16 parameter and int16 remainder, exactly.

    The parameter is the nearest bfloat16, ties away from zero; the remainder is the signed
    difference of the bits.
    """
    bits = master.detach().float().view(torch.int32)
    param = (bits + _HALF) >> _UPPER
    return param.to(torch.int16).view(torch.bfloat16), bits.to(torch.int16)


def join(param: Tensor, remainder: Tensor) -> Tensor:
    """Return the float32 tensor that `split` made these two from."""
    upper = param.detach().view(torch.int16).int() << _UPPER
    return (upper + remainder.int()).view(torch.float32)
