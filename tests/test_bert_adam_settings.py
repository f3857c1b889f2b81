"""Settings that BertAdam refuses: in the constructor, per group, and when changed later."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bert_cases import one_parameter, snapshot
from torch import nn

from bertadam_cuda import BertAdam

REFUSED = (TypeError, ValueError)
BAD: list[tuple[str, Any]] = [
    ("lr", -1e-9),
    ("lr", math.nan),
    ("lr", math.inf),
    ("lr", "0.1"),
    ("lr", None),
    ("warmup", 1.0),
    ("warmup", -0.5),
    ("warmup", math.nan),
    ("t_total", 0),
    ("t_total", -2),
    ("t_total", math.nan),
    ("schedule", "warmup_sine"),
    ("schedule", None),
    ("schedule_args", {"degree": 2.0}),
    ("b1", 1.0),
    ("b1", -0.1),
    ("b1", math.nan),
    ("b2", 1.0),
    ("b2", -0.1),
    ("b2", math.nan),
    ("e", -1e-8),
    ("e", math.nan),
    ("weight_decay", math.nan),
    ("max_grad_norm", math.nan),
    ("max_grad_norm", "1"),
    ("bias_correction", "yes"),
    ("maximize", None),
    ("clip", "norm"),
    ("clip", None),
    ("on_nonfinite", "ignore"),
    ("master_weights", "fp16"),
    ("master_weights", True),
    ("stochastic_rounding", "yes"),
    ("stochastic_rounding", None),
    ("rounding_seed", -1),
    ("rounding_seed", 2**64),
    ("rounding_seed", 1.0),
    ("rounding_seed", True),
    ("capturable", None),
    ("capturable", "yes"),
]
PER_OPTIMIZER = [
    ("clip", "global"),
    ("on_nonfinite", "skip"),
    ("master_weights", "fp32"),
    ("stochastic_rounding", True),
    ("rounding_seed", 1),
    ("capturable", True),
]


def ids(value: Any) -> str:
    return repr(value)


@pytest.mark.parametrize(("key", "value"), BAD, ids=ids)
def test_the_constructor_refuses(key: str, value: Any) -> None:
    param = nn.Parameter(torch.ones(2))
    with pytest.raises(REFUSED, match=f"(?s)BertAdam.*{key}"):
        BertAdam([param], **{"lr": 0.1, key: value})


@pytest.mark.parametrize(("key", "value"), BAD, ids=ids)
def test_groups_are_refused_by_number(key: str, value: Any) -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], key: value}]
    with pytest.raises(REFUSED, match=rf"(?s)BertAdam.*param_groups\[1\].*{key}"):
        BertAdam(groups, lr=0.1)


@pytest.mark.parametrize(("key", "value"), BAD, ids=ids)
def test_a_setting_that_is_changed_later_is_refused_and_nothing_is_written(
    key: str, value: Any
) -> None:
    _, opt = one_parameter([1.0, 2.0], [1.0, 1.0])
    opt.step()
    opt.param_groups[0][key] = value
    before = snapshot(opt)
    with pytest.raises(REFUSED, match=rf"(?s)BertAdam.*{key}"):
        opt.step()
    assert str(snapshot(opt)) == str(before)  # as text, since NaN differs from itself


@pytest.mark.parametrize(("key", "value"), BAD, ids=ids)
def test_a_bad_group_that_is_added_is_refused_and_not_kept(key: str, value: Any) -> None:
    _, opt = one_parameter([1.0, 2.0], [1.0, 1.0])
    opt.step()
    before = snapshot(opt)
    with pytest.raises(REFUSED, match=rf"(?s)BertAdam.*{key}"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], key: value})
    assert snapshot(opt) == before


@pytest.mark.parametrize(("key", "value"), PER_OPTIMIZER)
def test_settings_of_the_whole_optimizer_may_not_differ_between_groups(
    key: str, value: Any
) -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    with pytest.raises(ValueError, match=f"(?s)BertAdam.*{key}"):
        BertAdam([{"params": params[:1]}, {"params": params[1:], key: value}], lr=0.1)
    opt = BertAdam([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    opt.param_groups[1][key] = value
    with pytest.raises(ValueError, match=f"(?s)BertAdam.*{key}"):
        opt.step()
    for group in opt.param_groups:
        group[key] = value
    opt.step()


def test_a_setting_that_was_removed_is_refused() -> None:
    _, opt = one_parameter([1.0], [1.0])
    for key in ("lr", "b1", "clip", "schedule"):
        value = opt.param_groups[0].pop(key)
        with pytest.raises((KeyError, ValueError), match=key):
            opt.step()
        opt.param_groups[0][key] = value
    opt.step()


def test_differentiable_is_refused() -> None:
    param = nn.Parameter(torch.ones(2))
    with pytest.raises(REFUSED, match="differentiable"):
        BertAdam([param], lr=0.1, differentiable=True)  # type: ignore[call-arg]
    with pytest.raises(REFUSED, match="differentiable"):
        BertAdam([{"params": [param], "differentiable": True}], lr=0.1)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="betas"):
        BertAdam([nn.Parameter(torch.ones(2))], lr=0.1, betas=(0.9, 0.999))  # type: ignore[call-arg]


def test_lr_is_required() -> None:
    with pytest.raises(TypeError, match="lr"):
        BertAdam([nn.Parameter(torch.ones(2))])  # type: ignore[call-arg]


def test_edges_of_the_ranges_are_accepted() -> None:
    edges: list[dict[str, Any]] = [
        {"lr": 0},
        {"lr": 1},
        {"warmup": 0},
        {"warmup": 0.999, "t_total": 1},
        {"t_total": 1},
        {"t_total": 7386.0},
        {"b1": 0, "b2": 0},
        {"b1": 0.0, "b2": 0.999999},
        {"e": 0},
        {"max_grad_norm": -1},
        {"max_grad_norm": 0},
        {"max_grad_norm": math.inf},
        {"weight_decay": 0},
        {"on_nonfinite": "skip"},
        {"on_nonfinite": "propagate"},
        {"master_weights": None, "stochastic_rounding": False, "capturable": False},
        {"schedule_args": {}},
        {"schedule": "none"},
    ]
    for settings in edges:
        param, opt = one_parameter([1.0, 2.0], [1.0, 1.0], **settings)
        opt.step()
        assert param.isfinite().all(), settings
