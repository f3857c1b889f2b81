"""Adam and AdamW against torch's in float64, step by step, with all options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adam_cases import CLASSES, STATES, Pair, all_options, clones, make_params, train
from oracle import expected_multiplier
from torch import nn

from bertadam_cuda import LAMB, LARS, Adam, AdamW, BertAdam, _ext
from bertadam_cuda._masters import join
from bertadam_cuda.reference import adam_step, clip_coefficient, gradient_norm

_C = _ext.load()
OPTIONS = all_options()
options = pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
kinds = pytest.mark.parametrize("kind", CLASSES)


def compare(pair: Pair, n_steps: int, spoil: Callable[[Pair], None] = lambda pair: None) -> None:
    for step in range(n_steps):
        pair.step(step)
        spoil(pair)
        pair.check()


@options
def test_a_hundred_steps_are_those_of_torch(settings: dict[str, Any]) -> None:
    compare(Pair(**settings), 100)


@pytest.mark.parametrize(
    ("settings", "defect"),
    [
        ({"weight_decay": 0.1}, {"weight_decay": 0.0}),
        ({"weight_decay": 0.1}, {"weight_decay": 0.1001}),
        ({"weight_decay": 0.1}, {"decoupled_weight_decay": True}),
        ({"kind": "AdamW"}, {"weight_decay": 0.0}),
        ({}, {"betas": (0.9, 0.99901)}),
        ({}, {"betas": (0.90001, 0.999)}),
        ({}, {"eps": 1e-5}),
        ({}, {"bias_correction": False}),
        ({"maximize": True}, {"maximize": False}),
        ({"maximize": True, "weight_decay": 0.1}, {"maximize": True, "max_grad_norm": 1.0}),
    ],
    ids=str,
)
def test_a_small_difference_would_be_noticed(
    settings: dict[str, Any], defect: dict[str, Any]
) -> None:
    """A negative control of the comparison."""
    pair = Pair(**settings, defect=defect)
    with pytest.raises(AssertionError, match=r"exp_avg|update"):
        compare(pair, 10)


@pytest.mark.parametrize("wrong", ["forgotten", "after its correction"])
def test_another_maximum_would_be_noticed(wrong: str) -> None:
    """A negative control: the gradients make the maximum matter, and so does its place."""

    def spoil(pair: Pair) -> None:
        for param in pair.params:
            state = pair.opt.state[param]
            t, v = float(state["step"]), state["exp_avg_sq"]
            corrected = torch.maximum(state["max_exp_avg_sq"], v / (1 - 0.9**t))
            state["max_exp_avg_sq"].copy_(v if wrong == "forgotten" else corrected)

    pair = Pair(amsgrad=True, betas=(0.9, 0.9))
    with pytest.raises(AssertionError, match=r"max_exp_avg_sq|update"):
        compare(pair, 20, spoil)


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("clip", ["global", "per_tensor"])
@options
def test_the_common_settings_are_those_of_the_reference(
    settings: dict[str, Any], clip: str, bias_correction: bool
) -> None:
    """What torch does not have: clipping, a schedule, and moments that are not corrected."""
    settings = dict(settings)
    ours, _ = CLASSES[settings.pop("kind")]
    schedule = {"schedule": "warmup_linear", "warmup": 0.5, "t_total": 8}
    more = {"clip": clip, "max_grad_norm": 0.5, "bias_correction": bias_correction, "eps": 1e-3}
    params = make_params()[1:]  # a single element may cancel with its decay
    opt = ours(params, lr=0.25, **settings, **schedule, **more)
    decoupled = opt.param_groups[0]["decoupled_weight_decay"]
    decay = {"decoupled_decay" if decoupled else "l2_decay": settings["weight_decay"]}
    names = STATES[: 2 + settings["amsgrad"]]
    states = [[torch.zeros_like(p, dtype=torch.float64) for _ in names] for p in params]
    for step in range(8):
        before = [param.detach().clone() for param in params]
        train(opt, range(step, step + 1))
        total = gradient_norm(*[param.grad for param in params if param.grad is not None])
        lr = 0.25 * expected_multiplier("warmup_linear", step, 0.5, 8, None)
        for i, param in enumerate(params):
            assert param.grad is not None
            norm = total if clip == "global" else gradient_norm(param.grad)
            factor = float(torch.tensor(clip_coefficient(norm, 0.5)))
            grad = param.grad.double() * (-factor if settings["maximize"] else factor)
            t = step + 1 if bias_correction else None
            new = adam_step(
                before[i], grad, *states[i], lr=lr, eps=1e-3, bias_correction_step=t, **decay
            )
            states[i] = [value for value in new[1:4] if value is not None]
            for name, expected in zip(names, states[i], strict=True):
                found = opt.state[param][name].double()
                assert (found - expected).abs().max() <= 1e-6 * expected.abs().max(), name
            limit = 1e-5 * lr * new.update.abs().max() + 2.0**-23 * before[i].abs().max()
            assert (param.double() - new.param).abs().max() <= limit


def test_adamw_is_bert_adam_with_other_settings() -> None:
    """Bit for bit: one rule."""
    params = make_params()
    twins = clones(params)
    first = AdamW(params, lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1)
    second = BertAdam(
        twins, 0.01, b1=0.8, b2=0.99, weight_decay=0.1, max_grad_norm=0, bias_correction=True
    )
    train(first, range(5))
    train(second, range(5))
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)
        assert first.state[param].keys() == second.state[twin].keys()


def test_a_nan_stays_in_the_maximum() -> None:
    param = nn.Parameter(torch.zeros(4))
    twin = nn.Parameter(torch.zeros(4))
    opt, oracle = Adam([param], amsgrad=True), torch.optim.Adam([twin], amsgrad=True)
    for values in ([1.0, torch.nan, 2.0, -torch.inf], [1.0, 1.0, 0.0, 0.0]):
        param.grad = torch.tensor(values)
        twin.grad = param.grad.clone()
        opt.step()
        oracle.step()
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        found, expected = opt.state[param][key], oracle.state[twin][key]
        assert torch.equal(found.isnan(), expected.isnan()), key
        assert torch.equal(found.isinf(), expected.isinf()), key


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("mode", ["fp32", "remainder"])
def test_masters_are_the_parameters_of_a_float32_run(mode: str, amsgrad: bool) -> None:
    """Bit for bit, with bfloat16 parameters: how they are kept is nothing to a rule."""
    params = [nn.Parameter(param.detach().bfloat16()) for param in make_params()]
    twins = [nn.Parameter(param.detach().float()) for param in params]
    settings = {"lr": 0.01, "weight_decay": 0.1, "amsgrad": amsgrad}
    opt, plain = Adam(params, master_weights=mode, **settings), Adam(twins, **settings)
    for step in range(5):
        train(opt, range(step, step + 1))  # gradients of bfloat16
        for param, twin in zip(params, twins, strict=True):
            assert param.grad is not None
            twin.grad = param.grad.float()
        plain.step()
    for param, twin in zip(params, twins, strict=True):
        state = opt.state[param]
        own = state["master_param"] if mode == "fp32" else join(param, state["param_remainder"])
        assert torch.equal(own, twin)
        for key in plain.state[twin]:
            assert torch.equal(state[key], plain.state[twin][key])


def test_every_rule_belongs_to_a_class_and_names_its_states() -> None:
    """What the binary lists is what the classes choose from, and what their states hold."""
    chosen = set()
    plain = (Adam([one()]), Adam([one()], amsgrad=True), AdamW([one()]), BertAdam([one()], 0.1))
    for opt in (*plain, LAMB([one()]), LARS([one()], 0.1)):
        rule = opt._rule_name(opt.param_groups)
        opt.step()
        (state,) = opt.state.values()
        assert tuple(state) == ("step", *_C.rules[rule])
        chosen.add(rule)
    assert chosen == set(_C.rules)


def one() -> nn.Parameter:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    return param
