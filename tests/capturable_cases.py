"""Twins of capturable optimizers, and the comparison of their bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from backends import as_integers
from bert_cases import draw_grads
from torch import nn

from bertadam_cuda import LAMB, LARS, Adam, AdamW, BertAdam

STARTS = {"schedule_start", "bias_correction_start"}
CLASSES: dict[str, Callable[..., Any]] = {
    make.__name__: make for make in (BertAdam, Adam, AdamW, LAMB, LARS)
}


def assert_same_bits(ours: Any, theirs: Any) -> None:
    """Parameters and states; `ours` may have starts that are 0."""
    for mine, other in zip(params_of(ours), params_of(theirs), strict=True):
        assert torch.equal(as_integers(mine), as_integers(other))
        state, expected = ours.state[mine], theirs.state[other]
        assert set(state) - STARTS == set(expected) - STARTS
        for key in set(state) | set(expected):
            values = [each.get(key, torch.zeros(())) for each in (state, expected)]
            assert torch.equal(*map(as_integers, values)), key


def params_of(opt: Any) -> list[nn.Parameter]:
    return [param for group in opt.param_groups for param in group["params"]]


def train(opt: Any, steps: range) -> None:
    for step in steps:
        for param, grad in zip(params_of(opt), draw_grads(params_of(opt), step, 0.2), strict=True):
            param.grad = grad
        opt.step()
