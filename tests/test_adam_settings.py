"""torch's arguments, group keys and schedulers with Adam and AdamW, and what is refused."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adam_cases import CLASSES, clones, make_params, train
from torch import Tensor, nn
from torch.optim import lr_scheduler

from bertadam_cuda import Adam, AdamW

kinds = pytest.mark.parametrize("kind", CLASSES)


def one_parameter() -> nn.Parameter:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    return param


@kinds
def test_the_arguments_are_those_of_torch(kind: str) -> None:
    """Names, order, kinds and defaults; the package's own follow, by name only."""
    ours, theirs = (inspect.signature(c).parameters for c in CLASSES[kind])
    for name, argument in theirs.items():
        assert (ours[name].default, ours[name].kind) == (argument.default, argument.kind), name
    positional = [p for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == [
        p.name for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]


@kinds
def test_groups_have_the_keys_of_torch(kind: str) -> None:
    ours, theirs = (c([one_parameter()]).param_groups[0] for c in CLASSES[kind])
    for key in theirs:
        if key != "params":
            assert ours[key] == theirs[key], key


@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_foreach_and_fused_have_no_effect(flag: str) -> None:
    params = make_params()
    twins = clones(params)
    train(AdamW(params), range(2))
    train(AdamW(twins, **{flag: True}), range(2))
    assert all(map(torch.equal, params, twins))


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"lr": -1.0}, ValueError, "lr is -1.0, expected a finite number >= 0"),
        ({"lr": torch.tensor(-1.0)}, ValueError, "lr is -1.0"),
        ({"lr": torch.tensor(math.nan)}, ValueError, "lr is nan"),
        ({"lr": torch.ones(2)}, ValueError, r"lr is a tensor of shape \(2,\)"),
        ({"lr": "0.1"}, TypeError, "lr has type str"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] is 1.0"),
        ({"betas": (-0.1, 0.9)}, ValueError, r"betas\[0\] is -0.1"),
        ({"betas": (0.9,)}, TypeError, r"betas is \(0.9,\), expected a tuple of two numbers"),
        ({"betas": 0.9}, TypeError, "betas is 0.9, expected a tuple"),
        ({"betas": ("a", 0.9)}, TypeError, r"betas\[0\] has type str"),
        ({"eps": -1e-8}, ValueError, "eps is -1e-08"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay is -0.1"),
        ({"amsgrad": 1}, TypeError, "amsgrad is 1, expected True or False"),
        ({"maximize": 1}, TypeError, "maximize is 1"),
        ({"capturable": None}, ValueError, "capturable is None, expected one of False, True"),
        ({"differentiable": True}, ValueError, "differentiable=True is not supported"),
        ({"clip": "norm"}, ValueError, "clip is 'norm', expected one of 'per_tensor', 'global'"),
        ({"schedule": "sine"}, ValueError, "sine"),
    ],
    ids=str,
)
@kinds
def test_bad_settings_are_refused_by_constructor_and_step(
    kind: str, settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    ours, _ = CLASSES[kind]
    with pytest.raises(error, match=match) as caught:
        ours([one_parameter()], **settings)
    assert str(caught.value).startswith(f"{kind}: param_groups[0]")
    param = one_parameter()
    opt = ours([param])
    opt.step()
    before = param.detach().clone()
    opt.param_groups[0].update(settings)
    with pytest.raises(error, match=match):
        opt.step()
    assert torch.equal(param, before)


def test_groups_that_differ_in_amsgrad_are_refused() -> None:
    first, second = one_parameter(), one_parameter()
    with pytest.raises(ValueError, match=r"param_groups\[1\]: amsgrad is True but False in"):
        Adam([{"params": [first]}, {"params": [second], "amsgrad": True}])


def test_adamw_keeps_its_kind_of_decay() -> None:
    with pytest.raises(ValueError, match="decoupled_weight_decay is False, expected True; use A"):
        AdamW([{"params": [one_parameter()], "decoupled_weight_decay": False}])


def test_amsgrad_in_the_middle_of_training_is_refused_for_want_of_a_maximum() -> None:
    param = one_parameter()
    opt = Adam([param])
    opt.step()
    before = param.detach().clone()
    opt.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="its state has no 'max_exp_avg_sq'; load a complete"):
        opt.step()
    assert torch.equal(param, before)
    opt.param_groups[0]["amsgrad"] = False
    opt.step()
    assert not torch.equal(param, before)
    opt.state.clear()
    opt.param_groups[0]["amsgrad"] = True
    opt.step()
    assert "max_exp_avg_sq" in opt.state[param]


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_every_state_is_checked_and_counted(key: str) -> None:
    """A wrong dtype is refused by the state's name, shared memory too; versions are bumped."""
    param = nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    opt = Adam([param], amsgrad=True)
    opt.step()
    good = opt.state[param][key]
    version = good._version
    opt.step()
    assert good._version == version + 1
    opt.state[param][key] = good.double()
    with pytest.raises(
        TypeError, match=f"state '{key}' has dtype float64 .*expected dense float32"
    ):
        opt.step()
    opt.state[param][key] = param.detach()
    with pytest.raises(ValueError, match="share memory"):
        opt.step()
    del opt.state[param][key]
    with pytest.raises(ValueError, match=f"its state has no '{key}'"):
        opt.step()
    opt.state[param][key] = good
    opt.step()


# lr as a tensor, and schedulers


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learning_rate_in_a_tensor_is_read_at_every_step(shape: tuple[int, ...]) -> None:
    param, twin = one_parameter(), one_parameter()
    rate = torch.full(shape, 0.5)
    ours, theirs = Adam([param], lr=rate), Adam([twin], lr=0.5)
    for lr in (0.5, 0.25, 0.25, 0.0, 1.0):
        rate.fill_(lr)
        theirs.param_groups[0]["lr"] = lr
        ours.step()
        theirs.step()
        assert torch.equal(param, twin), lr
        assert ours.get_lr() == [lr]
    assert ours.param_groups[0]["lr"] is rate


def test_a_number_may_take_the_place_of_a_tensor() -> None:
    param, twin = one_parameter(), one_parameter()
    ours, theirs = Adam([param], lr=torch.tensor(0.5)), Adam([twin], lr=0.5)
    for lr in (0.5, 0.25, torch.tensor(0.75), 0.125):
        ours.param_groups[0]["lr"] = lr
        theirs.param_groups[0]["lr"] = float(lr)
        for _ in range(2):
            ours.step()
            theirs.step()
            assert torch.equal(param, twin), lr


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_bad_value_written_into_the_tensor_is_refused(value: float) -> None:
    param = one_parameter()
    opt = Adam([param], lr=torch.tensor(0.5))
    opt.step()
    before = param.detach().clone()
    opt.param_groups[0]["lr"].fill_(value)
    with pytest.raises(ValueError, match="lr is"):
        opt.step()
    assert torch.equal(param, before)
    opt.param_groups[0]["lr"].fill_(0.5)
    opt.step()
    assert not torch.equal(param, before)


Scheduler = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
SCHEDULERS: dict[str, Scheduler] = {
    "step": lambda opt: lr_scheduler.StepLR(opt, 3, 0.5),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 10),
    "lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "one cycle": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=12),
    "cyclic": lambda opt: lr_scheduler.CyclicLR(opt, 0.001, 0.1, 4, cycle_momentum=False),
}


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
@kinds
def test_schedulers_of_torch_do_what_they_do_to_torch(
    kind: str, name: str, as_tensor: bool
) -> None:
    """OneCycleLR moves betas, too. No warning: the default schedule is none."""
    params = make_params()
    twins = clones(params)
    optimizers = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make, mine in zip(CLASSES[kind], (params, twins), strict=True):
            # A tensor of double, as torch computes a scheduler's product in the tensor's dtype.
            lr: float | Tensor = torch.tensor(0.01, dtype=torch.float64) if as_tensor else 0.01
            opt = make(mine, lr=lr, eps=1e-3)
            optimizers.append((opt, SCHEDULERS[name](opt)))
        for step in range(10):
            for opt, scheduler in optimizers:
                train(opt, range(step, step + 1))
                scheduler.step()
    ours, theirs = (opt.param_groups[0] for opt, _ in optimizers)
    assert float(ours["lr"]) == float(theirs["lr"])
    assert ours["betas"] == theirs["betas"]
    assert isinstance(ours["lr"], Tensor) == as_tensor
    for param, twin in zip(params, twins, strict=True):
        # Both in float32: 10 updates of at most 0.1, a few roundings each.
        torch.testing.assert_close(param, twin, rtol=0, atol=3e-6)


def test_changing_betas_keep_few_tables() -> None:
    param = one_parameter()
    opt = Adam([param])
    for step in range(100):
        opt.param_groups[0]["betas"] = (0.5 + step / 1000, 0.9)
        opt.step()
    assert len(opt._tables._kept) <= 64


@kinds
def test_copies_and_pickles_go_on_alike(kind: str) -> None:
    params = make_params()
    opt = CLASSES[kind][0](params, lr=torch.tensor(0.01), amsgrad=True, weight_decay=0.1)
    train(opt, range(2))
    twins = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    train(opt, range(2, 4))
    for twin in twins:
        train(twin, range(2, 4))
        for param, other in zip(params, twin.param_groups[0]["params"], strict=True):
            assert torch.equal(param, other)
