"""LAMB against its reference in float64, step by step, with all options."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from layerwise_cases import LARGE, LambBeside, Settings, compare
from torch import nn

from bertadam_cuda import LAMB, AdamW

FLAGS = ("adam_w_mode", "grad_averaging", "use_nvlamb", "bias_correction")


def all_options() -> dict[str, Settings]:
    """Every combination of the flags and of pre_normalize, by a readable name."""
    cases = {}
    for *flags, always in itertools.product((True, False), repeat=len(FLAGS) + 1):
        options: Settings = dict(zip(FLAGS, flags, strict=True))
        names = [flag if value else f"no {flag}" for flag, value in options.items()]
        options["pre_normalize"] = "always" if always else "clip"
        cases[", ".join([*names, options["pre_normalize"]])] = options
    return cases


def three_groups(settings: Settings) -> list[Settings]:
    """With decay, without, and with a schedule, without clipping where that may be."""
    limit = 0.3 if settings.get("pre_normalize") == "always" else 0.0
    schedule = {"schedule": "warmup_poly", "warmup": 0.3, "t_total": 10}
    return [
        {"weight_decay": 0.1},
        {"weight_decay": 0.0, "lr": 0.03, "betas": (0.8, 0.99), "maximize": True},
        {"weight_decay": 0.2, "eps": 1e-3, "max_grad_norm": limit, **schedule},
    ]


OPTIONS = all_options()
options = pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)


@pytest.mark.filterwarnings("ignore:.*t_total")
@options
def test_steps_are_those_of_the_reference(settings: Settings) -> None:
    compare(LambBeside(three_groups(settings), lr=0.01, **settings), 12)


@pytest.mark.filterwarnings("ignore:.*t_total")
@pytest.mark.parametrize("clip", ["global", "per_tensor"])
@pytest.mark.parametrize("pre_normalize", ["clip", "always"])
@pytest.mark.parametrize(("max_grad_norm", "n_steps"), [(1.0, 50), (1e-3, 15), (1e3, 15)])
def test_many_steps_are_those_of_the_reference(
    clip: str, pre_normalize: str, max_grad_norm: float, n_steps: int
) -> None:
    settings = {"clip": clip, "pre_normalize": pre_normalize, "max_grad_norm": max_grad_norm}
    compare(LambBeside(three_groups(settings), lr=0.01, **settings), n_steps)


def test_a_tensor_of_many_parts_has_one_ratio() -> None:
    compare(LambBeside([{}, {"use_nvlamb": True}], LARGE, lr=0.01, weight_decay=0.1), 3)


class WithoutRatio(LambBeside):
    def adapts(self, settings: Settings) -> bool:
        return False


class RatioForAll(LambBeside):
    def adapts(self, settings: Settings) -> bool:
        return True


@pytest.mark.parametrize(
    ("settings", "defect"),
    [
        ({}, {"lr": 0.0101}),
        ({}, {"weight_decay": 0.0}),
        ({}, {"weight_decay": 0.1001}),
        ({}, {"adam_w_mode": False}),
        ({"adam_w_mode": False}, {"adam_w_mode": True}),
        ({}, {"grad_averaging": False}),
        ({}, {"bias_correction": False}),
        ({}, {"betas": (0.90001, 0.999)}),
        ({}, {"betas": (0.9, 0.99901)}),
        ({}, {"eps": 1e-5}),
        ({}, {"maximize": True}),
        ({}, {"max_grad_norm": 1.001}),
        ({}, {"max_grad_norm": 0.0}),
        ({}, {"clip": "per_tensor"}),
        ({"max_grad_norm": 1e3}, {"pre_normalize": "always"}),
        ({"weight_decay": 0.0}, {"use_nvlamb": True}),
    ],
    ids=str,
)
def test_a_small_difference_would_be_noticed(settings: Settings, defect: Settings) -> None:
    """A negative control of the comparison."""
    beside = LambBeside(defect=defect, **{"lr": 0.01, "weight_decay": 0.1, **settings})
    with pytest.raises(AssertionError, match=r"exp_avg|update|ratio"):
        compare(beside, 10)


@pytest.mark.parametrize(
    ("kind", "decay"), [(WithoutRatio, 0.1), (RatioForAll, 0.0)], ids=["none", "for all"]
)
def test_another_choice_of_what_adapts_would_be_noticed(
    kind: type[LambBeside], decay: float
) -> None:
    """A negative control; the same settings pass with the right choice."""
    compare(LambBeside(lr=0.01, weight_decay=decay), 3)
    with pytest.raises(AssertionError, match="ratio"):
        compare(kind(lr=0.01, weight_decay=decay), 3)


def test_a_new_phase_may_begin_the_bias_correction_anew() -> None:
    """As NVIDIA's script does from sequence length 128 to 512."""
    schedule = {"schedule": "warmup_poly", "warmup": 0.3, "t_total": 8}
    beside = LambBeside(lr=0.01, **schedule)
    compare(beside, 5)
    changes = {"lr": 0.004, "t_total": 6, "warmup": 0.2}
    beside.opt.reset_schedule(**changes, restart_bias_correction=True)
    for of in beside.expected:
        of.settings.update(changes)
        of.schedule_start = of.correction_start = of.step
    compare(beside, 8, first=5)


def test_without_a_ratio_it_is_adamw_and_gradients_are_only_read() -> None:
    """Bit for bit: one rule behind the ratio. apex would leave the update in p.grad."""
    param, twin = (nn.Parameter(torch.linspace(-1, 1, 300)) for _ in range(2))
    first = LAMB([param], lr=0.01, weight_decay=0.0, max_grad_norm=0.0, betas=(0.8, 0.99))
    second = AdamW([twin], lr=0.01, weight_decay=0.0, betas=(0.8, 0.99), eps=1e-6)
    for _ in range(5):
        param.grad = torch.randn(300)
        twin.grad = param.grad.clone()
        first.step()
        second.step()
        assert torch.equal(param.grad, twin.grad)
        assert torch.equal(param, twin)
    assert second.trust_ratios is None


@pytest.mark.parametrize(
    ("p", "grad", "settings", "ratio"),
    [
        (0.0, 1.0, {}, 1.0),
        (2.0, 0.0, {"weight_decay": 0.0, "use_nvlamb": True}, 1.0),
        (2.0, 0.0, {}, 100.0),
        (2.0, 1.0, {"weight_decay": 0.0}, 1.0),
        (2.0, 1.0, {"weight_decay": 0.0, "use_nvlamb": True, "eps": 0.0}, 2.0),
        (2.0, 5.0, {"weight_decay": 0.5, "eps": 0.0}, 1.0),
    ],
    ids=["no parameter", "no update", "decay alone", "no decay", "nvlamb", "decay"],
)
def test_ratios_by_hand(p: float, grad: float, settings: dict[str, Any], ratio: float) -> None:
    """The first update is 1 for whatever gradient, and the decay."""
    param = nn.Parameter(torch.full((16,), p))
    opt = LAMB([param], lr=0.5, **settings)
    assert opt.trust_ratios is None
    param.grad = torch.full((16,), grad)
    opt.step()
    assert opt.trust_ratios.dtype == torch.float32
    # The update itself has a few roundings.
    torch.testing.assert_close(opt.trust_ratios, torch.tensor([ratio]), rtol=1e-6, atol=0)
    decay = opt.param_groups[0]["weight_decay"]
    expected = p - 0.5 * ratio * ((grad > 0) + decay * p)
    torch.testing.assert_close(param.detach(), torch.full((16,), expected), rtol=1e-5, atol=1e-6)


def test_a_gradient_at_the_limit_is_left_as_it_is() -> None:
    """No 1e-6 beside the norm: clipping by torch would shrink it."""
    param = nn.Parameter(torch.zeros(2))
    opt = LAMB([param], max_grad_norm=5.0, lr=0.0)
    param.grad = torch.tensor([3.0, 4.0])
    opt.step()
    assert opt.clip_coefs.tolist() == [1.0]
    opt.param_groups[0]["max_grad_norm"] = 2.5
    opt.step()
    assert opt.clip_coefs.tolist() == [0.5]
    opt.param_groups[0].update(pre_normalize="always", max_grad_norm=10.0)
    opt.step()
    assert opt.clip_coefs.tolist() == [2.0]
    param.grad.zero_()
    opt.param_groups[0]["lr"] = 0.1
    opt.step()
    assert opt.clip_coefs.tolist() == [1.0]
