"""What shows that a step has noticed a change, and that it has not looked twice.

A step that goes through `_bring_up_to_date` has looked at everything in Python. The oracle of a
change is a copy of the optimizer, made after it: a copy has read everything anew.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from bert_cases import parameter, snapshot

from bertadam_cuda import BertAdam


def count_updates(opt: BertAdam) -> list[None]:
    """A list that grows whenever a step brings the optimizer up to date."""
    calls: list[None] = []
    update = opt._bring_up_to_date

    def counted() -> None:
        calls.append(None)
        update()

    opt._bring_up_to_date = counted  # type: ignore[method-assign]
    return calls


def memory(opt: BertAdam) -> list[Any]:
    """Parameters and states; a copy's groups have one more of torch's defaults."""
    shot = snapshot(opt)
    return [shot["params"], shot["state"]]


def assert_steps_like_a_copy(opt: BertAdam, n_steps: int = 2) -> None:
    other = copy.deepcopy(opt)
    pairs = zip(opt.param_groups, other.param_groups, strict=True)
    for group, copied in pairs:
        for param, twin in zip(group["params"], copied["params"], strict=True):
            twin.grad = None if param.grad is None else param.grad.clone()
    for _ in range(n_steps):
        opt.step()
        other.step()
    assert memory(opt) == memory(other)


def of(opt: BertAdam) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = opt.state[parameter(opt)]
    return state
