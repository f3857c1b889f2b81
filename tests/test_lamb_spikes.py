"""LAMB's losses jump at times and are back at once: so do those of a plain loop in float64.

A tensor moves by lr times its length however little of it still has a gradient. Where that is a few
rows they jump, and jump back. Whoever sees it in a run need not look for it in the kernels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from bert_model import BertSize, masked_loss, random_bert
from masking import masked_batch
from plain_lamb import PlainLAMB

from bertadam_cuda import LAMB, param_groups_weight_decay, warmup_linear

VOCABULARY, N_STEPS, T_TOTAL, WARMUP, LR = 512, 50, 300, 0.15, 0.1  # a rate that is too high
SHARED = {"lr": LR, "max_grad_norm": 0.0}


def losses(plain: bool) -> list[float]:
    """On one batch of tokens by their frequencies, masked anew at every step."""
    torch.manual_seed(0)
    model = random_bert(BertSize(2, 64), VOCABULARY, 0.0).train()
    if plain:
        model.double()
    frequencies = 1 / np.arange(1, VOCABULARY - 9)
    tokens = np.random.default_rng(0).choice(
        np.arange(10, VOCABULARY), size=(128, 32), p=frequencies / frequencies.sum()
    )
    groups = param_groups_weight_decay(model, 0.01)
    opt: torch.optim.Optimizer
    if plain:
        opt = PlainLAMB(groups, **SHARED)
    else:
        schedule = {"schedule": "warmup_linear", "warmup": WARMUP, "t_total": T_TOTAL}
        opt = LAMB(groups, use_nvlamb=True, **SHARED, **schedule)
    found = []
    for step in range(N_STEPS):
        if plain:
            for group in opt.param_groups:
                group["lr"] = LR * warmup_linear(step / T_TOTAL, WARMUP)
        loss = masked_loss(model, masked_batch(tokens, VOCABULARY, np.random.default_rng(step)))
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        found.append(loss.item())
    return found


@pytest.mark.slow
def test_ours_jumps_where_float64_does_and_is_back_in_two_steps() -> None:
    ours, plain = losses(plain=False), losses(plain=True)
    jumps = [
        [step for step in range(20, N_STEPS - 2) if run[step] > run[step - 1] + 2]
        for run in (ours, plain)
    ]
    assert jumps[0] == jumps[1]
    assert len(jumps[0]) == 1
    (jump,) = jumps[0]
    for run in (ours, plain):
        assert run[jump + 2] < run[jump - 1]
    print(f"step {jump}: {plain[jump - 1]:.2f}, {plain[jump]:.2f}, {plain[jump + 2]:.2f}")
