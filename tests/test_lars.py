"""LARS against its reference in float64, step by step, with all options."""

from __future__ import annotations

import itertools

import pytest
import torch
from layerwise_cases import LARGE, LarsBeside, Settings, compare
from torch import nn

from bertadam_cuda import LARS

CLIPS: dict[str, Settings] = {
    "no clip": {},
    "global": {"max_grad_norm": 0.5},
    "per tensor": {"max_grad_norm": 0.5, "clip": "per_tensor"},
}


def all_options() -> dict[str, Settings]:
    """Every combination of clipping, momentum and its kind, and maximize, by a readable name."""
    cases = {}
    kinds: list[Settings] = [{}, {"nesterov": True}, {"momentum": 0.0}]
    for clip, kind, maximize in itertools.product(CLIPS, kinds, (False, True)):
        settings = {**CLIPS[clip], **kind, "maximize": maximize}
        cases[", ".join([clip, *kind, *["maximize"] * maximize])] = settings
    return cases


GROUPS: list[Settings] = [
    {"weight_decay": 0.1},
    {"adapt": False, "lr": 0.03},
    {"weight_decay": 0.2, "eps": 1e-2, "schedule": "warmup_poly", "warmup": 0.3, "t_total": 10},
]
OPTIONS = all_options()
options = pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)


@pytest.mark.filterwarnings("ignore:.*t_total")
@options
def test_steps_are_those_of_the_reference(settings: Settings) -> None:
    compare(LarsBeside(GROUPS, lr=0.5, trust_coefficient=0.02, **settings), 20)


def test_a_hundred_steps_with_the_defaults_are_those_of_the_reference() -> None:
    compare(LarsBeside([{}, {"weight_decay": 1e-4}], lr=2.0), 100)


def test_a_tensor_of_many_parts_has_one_ratio() -> None:
    compare(LarsBeside([{}, {"nesterov": True}], LARGE, lr=2.0, weight_decay=0.1), 3)


class WithoutRatio(LarsBeside):
    def adapts(self, settings: Settings) -> bool:
        return False


@pytest.mark.parametrize(
    ("settings", "defect"),
    [
        ({}, {"lr": 0.505}),
        ({}, {"weight_decay": 0.0}),
        ({}, {"weight_decay": 0.1001}),
        ({}, {"momentum": 0.90001}),
        ({}, {"nesterov": True}),
        ({"nesterov": True}, {"nesterov": False}),
        ({}, {"trust_coefficient": 0.020001}),
        ({}, {"eps": 1e-2}),
        ({}, {"maximize": True}),
        ({}, {"adapt": False}),
        ({"adapt": False}, {"adapt": True}),
        ({}, {"max_grad_norm": 0.5}),
        ({"max_grad_norm": 0.5}, {"max_grad_norm": 0.501}),
    ],
    ids=str,
)
def test_a_small_difference_would_be_noticed(settings: Settings, defect: Settings) -> None:
    """A negative control of the comparison."""
    common = {"lr": 0.5, "trust_coefficient": 0.02, "weight_decay": 0.1}
    beside = LarsBeside(defect=defect, **{**common, **settings})
    with pytest.raises(AssertionError, match=r"momentum_buffer|update|ratio"):
        compare(beside, 10)


def test_a_missing_ratio_would_be_noticed() -> None:
    """A negative control."""
    with pytest.raises(AssertionError, match="momentum_buffer"):
        compare(WithoutRatio(lr=0.5), 3)


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_a_ratio_it_is_sgd_with_momentum(nesterov: bool) -> None:
    """torch's in float64, at a constant lr: there the buffer may have the lr in it or not."""
    param = nn.Parameter(torch.linspace(-1, 1, 300))
    twin = nn.Parameter(param.detach().double())
    settings: Settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
    opt, oracle = LARS([param], adapt=False, **settings), torch.optim.SGD([twin], **settings)
    for _ in range(20):
        param.grad = torch.randn(300)
        twin.grad = param.grad.double()
        opt.step()
        oracle.step()
        # At most 20 roundings of p, which is below 8: half an ulp of 4.8e-7 each.
        torch.testing.assert_close(param.double(), twin, rtol=0, atol=5e-6)


def test_a_new_learning_rate_leaves_what_is_in_the_buffer_alone() -> None:
    """apex LARC and torch's SGD would scale old gradients with it."""
    param = nn.Parameter(torch.zeros(1))
    opt = LARS([param], lr=1.0, momentum=0.5, adapt=False)
    param.grad = torch.ones(1)
    opt.step()
    opt.param_groups[0]["lr"] = 0.0
    opt.step()
    assert param.tolist() == [-1.5]


@pytest.mark.parametrize(
    ("p", "grad", "settings", "ratio"),
    [
        (0.0, 1.0, {}, 1.0),
        (2.0, 0.0, {"weight_decay": 0.5}, 1.0),
        (2.0, 1.0, {"adapt": False}, 1.0),
        (2.0, 1.0, {}, 2.0),
        (2.0, 1.0, {"weight_decay": 0.5}, 1.0),
        (2.0, 1.0, {"eps": 4.0}, 8.0 / (4.0 + 4.0)),
        (2.0, 1.0, {"max_grad_norm": 2.0, "clip": "per_tensor"}, 4.0),
        (2.0, -1.0, {"maximize": True}, 2.0),
    ],
    ids=["no parameter", "no gradient", "no adapt", "plain", "decay", "eps", "clip", "maximize"],
)
def test_ratios_by_hand(p: float, grad: float, settings: Settings, ratio: float) -> None:
    """Sixteen elements: a norm is four times one of them."""
    param = nn.Parameter(torch.full((16,), p))
    opt = LARS([param], lr=0.5, trust_coefficient=1.0, **{"eps": 0.0, **settings})
    param.grad = torch.full((16,), grad)
    opt.step()
    # The limit has 1e-6 beside the norm of 4; a ratio and a product are rounded once each.
    torch.testing.assert_close(opt.trust_ratios, torch.tensor([ratio]), rtol=5e-7, atol=0)
    g = 0.5 * grad if "max_grad_norm" in settings else abs(grad)
    expected = p - 0.5 * ratio * (g + settings.get("weight_decay", 0.0) * p)
    torch.testing.assert_close(param.detach(), torch.full((16,), expected), rtol=1e-6, atol=1e-6)
