"""Parameters of 16 bits under bertadam_cuda.amp.GradScaler: steps, reloads, a model that trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scaler_cases import MASTERS, everything, half_step, make_half, make_scaler
from torch import nn

from bertadam_cuda import BertAdam
from bertadam_cuda.amp import GradScaler

TORCH = torch.amp.GradScaler


masters = pytest.mark.parametrize(("dtype", "settings"), MASTERS, ids=str)


@masters
@pytest.mark.parametrize("clip", ["per_tensor", "global"])
def test_parameters_of_16_bits(dtype: torch.dtype, settings: dict[str, Any], clip: str) -> None:
    results = []
    for kind in (GradScaler, TORCH):
        params, opt = make_half(dtype, clip=clip, **settings)
        scaler = make_scaler(kind, growth_interval=2)
        for step in range(9):
            half_step(params, opt, scaler, step)
        results.append([scaler.state_dict(), *everything(params, opt)])
        assert [opt.state[param]["step"].item() for param in params] == [7.0] * 3
        assert int(opt.skipped) == 6
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1:], results[1][1:]))


@masters
def test_2n_steps_equal_n_steps_a_reload_and_n_more(
    dtype: torch.dtype, settings: dict[str, Any], tmp_path: Any
) -> None:
    n = 6
    whole = make_half(dtype, **settings)
    scaler = make_scaler(GradScaler, growth_interval=2)
    for step in range(2 * n):
        half_step(*whole, scaler, step)
        if step == n - 1:
            params, opt = whole
            saved = [param.detach().clone() for param in params]
            file = {"params": saved, "opt": opt.state_dict(), "scaler": scaler.state_dict()}
            torch.save(file, tmp_path / "half.pt")
    loaded = torch.load(tmp_path / "half.pt", weights_only=True)
    params, opt = make_half(dtype, **settings)
    for param, values in zip(params, loaded["params"], strict=True):
        param.data.copy_(values)
    opt.load_state_dict(loaded["opt"])
    again = make_scaler(GradScaler, init_scale=3.0)
    again.load_state_dict(loaded["scaler"])
    for step in range(n, 2 * n):
        half_step(params, opt, again, step)
    assert all(map(torch.equal, everything(params, opt), everything(*whole)))
    assert again.state_dict() == scaler.state_dict()
    assert int(opt.skipped) > 0


def test_a_training_loop_with_overflows() -> None:
    """fp16 gradients of a real loss: the first scale overflows, and training goes on below it."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).half()
    opt = BertAdam(model.parameters(), lr=1e-2, master_weights="fp32")
    scaler = GradScaler("cpu", init_scale=2.0**24)
    x = torch.randn(64, 8).half()
    losses = []
    for _ in range(60):
        opt.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() < 2.0**24
    assert int(opt.skipped) > 0
    assert losses[-1] < 0.5 * losses[0]
