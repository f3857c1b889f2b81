"""Arguments, groups and statistics of LAMB and LARS, and what is refused."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import pytest
import torch
from layerwise_cases import LambBeside, LarsBeside, compare
from torch import nn

from bertadam_cuda import LAMB, LARS, BertAdam

#: apex/optimizers/fused_lamb.py, FusedLAMB.__init__.
APEX = {
    "lr": 1e-3,
    "bias_correction": True,
    "betas": (0.9, 0.999),
    "eps": 1e-6,
    "weight_decay": 0.01,
    "amsgrad": False,
    "adam_w_mode": True,
    "grad_averaging": True,
    "set_grad_none": True,
    "max_grad_norm": 1.0,
    "use_nvlamb": False,
}
kinds = pytest.mark.parametrize("kind", [LAMB, LARS])


def one_parameter() -> nn.Parameter:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    return param


def test_the_arguments_of_lamb_are_those_of_apex() -> None:
    """Names, order and defaults; the package's own follow, by name only."""
    own = list(inspect.signature(LAMB).parameters.values())[1:]
    assert {p.name: p.default for p in own if p.kind is p.POSITIONAL_OR_KEYWORD} == APEX
    assert [p.name for p in own[: len(APEX)]] == list(APEX)


@kinds
def test_the_common_arguments_are_those_of_every_class(kind: type[Any]) -> None:
    names = inspect.signature(BertAdam).parameters.keys() - {"b1", "b2", "e"}
    assert names <= inspect.signature(kind).parameters.keys()
    assert kind([one_parameter()], lr=0.1).param_groups[0].keys() > names - {"params"}


def refused(kind: type[Any], settings: dict[str, Any], error: type[Exception], match: str) -> None:
    """By the constructor and, once they were changed, by the step, which then changes nothing."""
    with pytest.raises(error, match=match) as caught:
        kind([one_parameter()], **{"lr": 0.1, **settings})
    assert str(caught.value).startswith(f"{kind.__name__}: param_groups[0]")
    param = one_parameter()
    opt = kind([param], lr=0.1)
    opt.step()
    before = param.detach().clone()
    opt.param_groups[0].update(settings)
    with pytest.raises(error, match=match):
        opt.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"amsgrad": True}, ValueError, "amsgrad is True, expected False; LAMB has no AMSGrad"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] is 1.0"),
        ({"betas": 0.9}, TypeError, "betas is 0.9, expected a tuple of two numbers"),
        ({"eps": -1e-8}, ValueError, "eps is -1e-08"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay is -0.1"),
        ({"adam_w_mode": 0}, TypeError, "adam_w_mode is 0, expected True or False"),
        ({"grad_averaging": 0}, TypeError, "grad_averaging is 0, expected True or False"),
        ({"use_nvlamb": None}, TypeError, "use_nvlamb is None, expected True or False"),
        ({"set_grad_none": 0}, TypeError, "set_grad_none is 0, expected True or False"),
        ({"pre_normalize": True}, ValueError, "pre_normalize is True, expected one of 'clip', 'a"),
        (
            {"pre_normalize": "always", "max_grad_norm": 0.0},
            ValueError,
            "pre_normalize is 'always' and max_grad_norm is 0.0, .* expected a finite number > 0",
        ),
        (
            {"pre_normalize": "always", "max_grad_norm": math.inf},
            ValueError,
            "max_grad_norm is inf",
        ),
        ({"max_grad_norm": math.nan}, ValueError, "max_grad_norm is nan"),
        ({"lr": -1.0}, ValueError, "lr is -1.0, expected a finite number >= 0"),
    ],
    ids=str,
)
def test_bad_settings_of_lamb_are_refused(
    settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    refused(LAMB, settings, error, match)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"momentum": 1.0}, ValueError, "momentum is 1.0, expected a finite number >= 0 and < 1"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay is -0.1"),
        ({"trust_coefficient": -1}, ValueError, "trust_coefficient is -1"),
        ({"trust_coefficient": math.inf}, ValueError, "trust_coefficient is inf"),
        ({"eps": "0"}, TypeError, "eps has type str"),
        ({"nesterov": 1}, TypeError, "nesterov is 1, expected True or False"),
        ({"nesterov": True, "momentum": 0}, ValueError, "nesterov is True and momentum is 0"),
        ({"adapt": None}, TypeError, "adapt is None, expected True or False"),
        ({"bias_correction": True}, ValueError, "bias_correction is True, expected False"),
        ({"lr": math.nan}, ValueError, "lr is nan"),
    ],
    ids=str,
)
def test_bad_settings_of_lars_are_refused(
    settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    refused(LARS, settings, error, match)


def test_what_holds_for_the_whole_optimizer_must_agree() -> None:
    groups = [{"params": [one_parameter()]}, {"params": [one_parameter()], "set_grad_none": False}]
    with pytest.raises(ValueError, match=r"param_groups\[1\]: set_grad_none is False but True"):
        LAMB(groups)


@pytest.mark.parametrize("set_grad_none", [True, False])
def test_set_grad_none_is_what_zero_grad_does_by_default(set_grad_none: bool) -> None:
    """In copies, too."""
    param = one_parameter()
    opt = LAMB([param], set_grad_none=set_grad_none)
    for optimizer in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        (param,) = optimizer.param_groups[0]["params"]
        param.grad = torch.ones(3)
        optimizer.zero_grad()
        assert (param.grad is None) == set_grad_none
        assert set_grad_none or torch.equal(param.grad, torch.zeros(3))
        param.grad = torch.ones(3)
        optimizer.zero_grad(set_to_none=not set_grad_none)
        assert (param.grad is None) != set_grad_none


def test_betas_may_be_tensors() -> None:
    opt = LAMB([one_parameter()], betas=(torch.tensor(0.5), torch.tensor([0.25])))
    assert opt.param_groups[0]["betas"] == (0.5, 0.25)
    opt.add_param_group({"params": [one_parameter()], "betas": [torch.tensor(0.75), 0.5]})
    assert opt.param_groups[1]["betas"] == (0.75, 0.5)


@pytest.mark.parametrize(
    ("beside", "changes"),
    [
        (LambBeside(lr=0.01), {"weight_decay": 0.0, "use_nvlamb": True, "betas": (0.5, 0.9)}),
        (LambBeside(lr=0.01), {"adam_w_mode": False, "grad_averaging": False}),
        (LambBeside(lr=0.01), {"pre_normalize": "always", "max_grad_norm": 7.0}),
        (LarsBeside(lr=0.5), {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
        (LarsBeside(lr=0.5), {"adapt": False, "trust_coefficient": 0.1}),
        (LarsBeside(lr=0.5, adapt=False), {"adapt": True}),
    ],
    ids=str,
)
def test_settings_may_change_between_steps(beside: Any, changes: dict[str, Any]) -> None:
    compare(beside, 3)
    beside.opt.param_groups[0].update(changes)
    for of in beside.expected:
        of.settings.update(changes)
    compare(beside, 3, first=3)


@kinds
def test_statistics_are_in_the_order_of_param_groups(kind: type[Any]) -> None:
    params = [one_parameter() for _ in range(4)]
    params[1].grad = None
    params[3].grad = torch.full((3,), 2.0)
    opt = kind([{"params": params[:1]}, {"params": params[1:]}], lr=0.1, max_grad_norm=1.0)
    assert opt.trust_ratios is None
    opt.step()
    assert opt.trust_ratios.isnan().tolist() == [False, True, False, False]
    expected = torch.tensor([3**0.5, math.nan, 3**0.5, 12**0.5], dtype=torch.float64)
    torch.testing.assert_close(opt.grad_norms, expected, equal_nan=True)
    assert opt.trust_ratios[0] == opt.trust_ratios[2]
    assert opt.trust_ratios[0] != opt.trust_ratios[3] or kind is LAMB
    assert int(opt.skipped) == 0


@pytest.mark.parametrize("beside", [LambBeside(lr=0.01), LarsBeside(lr=0.5)], ids=["LAMB", "LARS"])
def test_copies_and_pickles_go_on_alike(beside: Any) -> None:
    compare(beside, 3)
    twins = [copy.deepcopy(beside.opt), pickle.loads(pickle.dumps(beside.opt))]
    compare(beside, 1, first=3)
    for twin in twins:
        for param, source in zip(twin.param_groups[0]["params"], beside.params, strict=True):
            param.grad = source.grad
        # The case sets its zero parameter anew before a step.
        twin.param_groups[0]["params"][1].data.copy_(beside.before[1])
        twin.step()
        for param, source in zip(twin.param_groups[0]["params"], beside.params, strict=True):
            assert torch.equal(param, source)


@kinds
def test_a_step_of_nothing_does_not_count(kind: type[Any]) -> None:
    """As checkpointing tools take it: lr 0 and gradients 0."""
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.zeros(3)
    opt = kind([param], lr=0.0)
    opt.step()
    assert set(opt.state[param]) > {"step"}
    assert float(opt.state[param]["step"]) == 0
    param.grad[0] = 1.0
    opt.step()
    assert float(opt.state[param]["step"]) == 1
    assert torch.equal(param, torch.ones(3))
