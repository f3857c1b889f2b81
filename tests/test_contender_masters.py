"""The check of contenders notices masters that are missing, and loss scales that are ignored."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import contender_steps
from contender_check import WrongResult, check
from contenders import APEX_CAPTURABLE, CLIPS, FUSED, OURS, PLAIN, Contender, contenders
from loss_scaling import TorchScaler, steady
from storage import Storage

CPU = torch.device("cpu")


def candidate(name: str, clip: str, dtype: str, master: str = "none") -> Contender:
    found = [each for each in contenders(clip, "cpu", dtype) if each.name == name]
    return next(each for each in found if each.storage.master == master)


@pytest.mark.parametrize(
    ("dtype", "done", "claimed"),
    [
        ("bf16", "none", "fp32"),
        ("bf16", "none", "remainder"),
        ("bf16", "fp32", "none"),
        ("bf16", "remainder", "none"),
        ("fp16", "none", "fp32"),
        ("fp16", "fp32", "none"),
    ],
)
@pytest.mark.parametrize("clip", CLIPS)
def test_contender_whose_masters_are_not_what_it_says_is_refused(
    clip: str, dtype: str, done: str, claimed: str
) -> None:
    """'fp32' for 'remainder' and the reverse would pass: only ties tell them apart."""
    honest = candidate(OURS, clip, dtype, done)
    check(honest, CPU)
    wrong = dataclasses.replace(honest, storage=Storage(dtype, claimed))
    with pytest.raises(WrongResult, match="float64"):
        check(wrong, CPU)


def test_plain_loop_without_its_copies_is_refused() -> None:
    """The plain loop run on 16 bits itself rounds moments and every operation."""
    wrong = dataclasses.replace(
        candidate(PLAIN, "none", "bf16", "fp32"), build=contender_steps.plain("none")
    )
    with pytest.raises(WrongResult, match="float64"):
        check(wrong, CPU)


# Loss scales


def without_dividing(clip: str) -> Callable[..., Any]:
    """The builder of AdamW without a scaler, whose gradients are 1024 times too large."""
    build = contender_steps.torch_adamw(clip, False, fused=True)
    return lambda groups, loss_scale: build(groups)


@pytest.mark.parametrize("clip", CLIPS)
def test_contender_that_ignores_the_loss_scale_is_refused(clip: str) -> None:
    wrong = dataclasses.replace(candidate(FUSED, clip, "fp16"), build=without_dividing(clip))
    with pytest.raises(WrongResult):
        check(wrong, CPU)


@pytest.mark.parametrize("name", [OURS, PLAIN])
def test_contender_that_updates_in_spite_of_an_overflow_is_refused(name: str) -> None:
    """Negative control of the last step of the check: gradients divided, and not looked at."""
    honest = candidate(name, "none", "fp16", "fp32")

    def build(groups: list[dict[str, Any]], loss_scale: float) -> Callable[[], object]:
        step = honest.build(groups)
        params = [param for group in groups for param in group["params"]]

        def careless() -> None:
            for param in params:
                param.grad = (param.grad / loss_scale).nan_to_num(posinf=1.0)
            step()

        return careless

    with pytest.raises(WrongResult, match="is updated in spite of an overflow"):
        check(dataclasses.replace(honest, build=build), CPU)


def test_scaler_takes_gradients_of_float16_where_torchs_does_not() -> None:
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = torch.optim.SGD([param], lr=1.0)
    for kind in (torch.amp.GradScaler, TorchScaler):
        scaler = steady(kind, 4.0, CPU)
        param.grad = torch.full_like(param, 8.0)
        if kind is TorchScaler:
            scaler.unscale_(optimizer)
            assert param.grad.tolist() == [2.0] * 3
        else:
            with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
                scaler.unscale_(optimizer)


def test_steady_scale_stays_unless_there_is_an_overflow() -> None:
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer, scaler = torch.optim.SGD([param], lr=0.0), steady(TorchScaler, 1.0, CPU)
    for _ in range(3000):  # torch's own doubles it after 2,000
        param.grad = torch.ones_like(param)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 1.0


class CapturableAdam(torch.optim.Optimizer):
    """Stands in for apex's FusedAdam with masters, as its step treats a scaler."""

    def __init__(self, params: Any, lr: float, betas: Any, eps: float, **settings: bool) -> None:
        assert settings == {"capturable": True, "master_weights": True}
        super().__init__(params, {})
        self.masters = [
            {**group, "params": [p.detach().float().requires_grad_() for p in group["params"]]}
            for group in self.param_groups
        ]
        self.inner = torch.optim.AdamW(self.masters, lr=lr, betas=betas, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, grad_scaler: Any) -> None:  # type: ignore[override]
        found_inf = grad_scaler._check_inf_per_device(self)[CPU]
        inverse = 1 / grad_scaler._get_scale_async()
        pairs = [
            pair
            for own, masters in zip(self.param_groups, self.masters, strict=True)
            for pair in zip(own["params"], masters["params"], strict=True)
        ]
        for param, master in pairs:
            master.grad = param.grad.float() * inverse
        if not found_inf:
            self.inner.step()
        for param, master in pairs:
            param.copy_(master)


@pytest.mark.parametrize("clip", ["global", "none"])
def test_apex_with_masters_is_called_as_its_step_expects(
    clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for apex, whose kernels need a GPU; the check on one is the real test."""

    def norm(chunk_size: int, flag: Any, lists: list[list[torch.Tensor]], per_tensor: bool) -> Any:
        return torch.cat([each.float().flatten() for each in lists[0]]).norm().reshape(1), None

    def fake(name: str, **members: Any) -> None:
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)

    fake("apex")
    fake("apex.optimizers", FusedAdam=CapturableAdam)
    fake("apex.multi_tensor_apply", multi_tensor_applier=lambda op, *more: op(65536, *more))
    fake("amp_C", multi_tensor_l2norm=norm)
    found = [each for each in contenders(clip, "cuda", "fp16") if each.name == APEX_CAPTURABLE]
    assert len(found) == 1
    check(found[0], CPU)
    assert not any(
        each.name == APEX_CAPTURABLE for each in contenders("per_tensor", "cuda", "fp16")
    )
