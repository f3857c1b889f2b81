"""Checkpoints of LAMB and LARS: their own, and what they take from apex, torch and each other."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoint_cases import (
    apex_file,
    assert_same_bits,
    layout_groups,
    make_params,
    params_of,
    settings_of,
    through_disk,
    torch_file,
    train,
)
from checkpoint_cases import trained as trained_bert_adam
from torch import nn

from bertadam_cuda import LAMB, LARS, AdamW, BertAdam

N = 6  # half of a run
LAMB_SETTINGS: dict[str, Any] = {
    "betas": (0.8, 0.95),
    "eps": 1e-3,
    "weight_decay": 0.2,
    "adam_w_mode": False,
    "grad_averaging": False,
    "max_grad_norm": 0.5,
    "use_nvlamb": True,
    "pre_normalize": "always",
}
LARS_SETTINGS: dict[str, Any] = {
    "momentum": 0.7,
    "weight_decay": 0.2,
    "trust_coefficient": 0.02,
    "eps": 1e-3,
    "nesterov": True,
    "adapt": False,
}
SCHEDULE = {"schedule": "warmup_poly", "warmup": 0.3, "t_total": 11}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LAMB": (LAMB, LAMB_SETTINGS),
    "LARS": (LARS, LARS_SETTINGS),
}
kinds = pytest.mark.parametrize("kind", KINDS)
storages = pytest.mark.parametrize(
    "storage", [{}, {"master_weights": "remainder"}, {"stochastic_rounding": True}], ids=str
)


def make(kind: str, seed: int = 0, storage: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Two groups; of bfloat16 where a storage is asked for."""
    params = make_params(seed)
    if storage:
        params = [nn.Parameter(param.detach().bfloat16()) for param in params]
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0}]
    return KINDS[kind][0](groups, **{"lr": 0.05, **(storage or {}), **settings})


@storages
@kinds
def test_2n_steps_equal_n_steps_a_reload_and_n_more(kind: str, storage: dict[str, Any]) -> None:
    """The file has settings that the target had otherwise; a new phase begins in the first half."""
    settings = {**KINDS[kind][1], **SCHEDULE}
    whole = make(kind, storage=storage, **settings)
    train(whole, range(N - 2))
    whole.reset_schedule(lr=0.03, t_total=10, warmup=0.25)
    train(whole, range(N - 2, N))
    file = through_disk(whole.state_dict())
    saved = [param.detach().clone() for param in params_of(whole)]
    train(whole, range(N, 2 * N))
    reloaded = make(kind, seed=3, storage=storage)
    for param, values in zip(params_of(reloaded), saved, strict=True):
        param.data.copy_(values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reloaded.load_state_dict(file)
    assert settings_of(reloaded) == settings_of(whole)
    train(reloaded, range(N, 2 * N))
    assert_same_bits(reloaded, whole)
    assert torch.equal(reloaded.trust_ratios, whole.trust_ratios)
    # A negative control: without the states it would have gone on otherwise.
    for param, values in zip(params_of(reloaded), saved, strict=True):
        param.data.copy_(values)
    reloaded.state.clear()
    train(reloaded, range(N, 2 * N))
    with pytest.raises(AssertionError):
        assert_same_bits(reloaded, whole)


def test_how_zero_grad_works_is_not_taken_over() -> None:
    target = make("LAMB")
    target.load_state_dict(make("LAMB", set_grad_none=False).state_dict())
    assert target.param_groups[0]["set_grad_none"] is True


def apex_lamb_file(source: LAMB) -> dict[str, Any]:
    """What apex FusedLAMB would have saved: the step in the groups, two flags nowhere."""
    file = through_disk(source.state_dict())
    keys = ("lr", "bias_correction", "betas", "eps", "weight_decay", "grad_averaging")
    for group in file["param_groups"]:
        own = {key: group[key] for key in (*keys, "max_grad_norm", "params")}
        group.clear()
        group.update(own, step=N)
    for entry in file["state"].values():
        assert float(entry.pop("step")) == N
    return file


def test_a_file_of_apex_fused_lamb_goes_on() -> None:
    """Bit for bit, where the settings are given again: a file of apex lacks two of them."""
    source = make("LAMB", use_nvlamb=True)
    train(source, range(N))
    target = make("LAMB", use_nvlamb=True)
    for param, values in zip(params_of(target), params_of(source), strict=True):
        param.data.copy_(values)
    with pytest.warns(UserWarning, match="layout of apex FusedLAMB, so moments and steps are"):
        target.load_state_dict(apex_lamb_file(source))
    assert_same_bits(target, source)
    for optimizer in (source, target):
        train(optimizer, range(N, 2 * N))
    assert_same_bits(target, source)


def test_a_file_of_apex_fused_lamb_before_its_first_step_leaves_the_settings() -> None:
    file = apex_lamb_file_without_state()
    for target in (make("LAMB"), AdamW(make_groups())):
        before = copy.deepcopy(settings_of(target))
        with pytest.warns(UserWarning, match="apex FusedLAMB"):
            target.load_state_dict(file)
        assert settings_of(target) == before
        assert not target.state


def apex_lamb_file_without_state() -> dict[str, Any]:
    settings = {"lr": 9.0, "betas": (0.1, 0.1), "grad_averaging": True, "max_grad_norm": 1.0}
    return {"state": {}, "param_groups": layout_groups(settings)}


def make_groups() -> list[dict[str, Any]]:
    params = make_params()
    return [{"params": params[:2]}, {"params": params[2:]}]


def lamb_file() -> dict[str, Any]:
    source = make("LAMB")
    train(source, range(5))
    return source.state_dict()


#: Files with two moments, of whatever optimizer.
MOMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "apex FusedAdam": apex_file,
    "torch Adam/AdamW": lambda: torch_file(torch.optim.AdamW),
    "bertadam_cuda Adam/AdamW": lambda: torch_file(AdamW),
    "bertadam_cuda BertAdam": lambda: trained_bert_adam(5).state_dict(),
    "bertadam_cuda LAMB": lamb_file,
}
TARGETS: dict[str, Callable[[], Any]] = {
    "LAMB": lambda: make("LAMB"),
    "AdamW": lambda: AdamW(make_groups()),
    "BertAdam": lambda: BertAdam(make_groups(), lr=0.1),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("title", MOMENTS)
def test_moments_and_steps_go_from_family_to_family(title: str, target: str) -> None:
    """With one warning and the settings of the target; within a family those of the file win."""
    opt, file = TARGETS[target](), through_disk(MOMENTS[title]())
    before = copy.deepcopy(settings_of(opt))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.load_state_dict(file)
    family = title == "torch Adam/AdamW" or title.startswith("bertadam_cuda")
    if family and target in title:
        assert not caught
    else:
        assert [f"layout of {title}, so moments" in str(w.message) for w in caught] == [True]
        for group in settings_of(opt):
            group.pop("param_names", None)
            assert group in before
    for index, param in enumerate(params_of(opt)):
        assert float(opt.state[param]["step"]) == 5
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(opt.state[param][key], file["state"][index][key])


def test_amsgrad_of_a_file_is_left_out() -> None:
    target = make("LAMB")
    with pytest.warns(UserWarning, match="running maximum is left out, because this optimizer"):
        target.load_state_dict(torch_file(torch.optim.Adam, amsgrad=True))
    assert "amsgrad" in target.param_groups[0]
    assert target.param_groups[0]["amsgrad"] is False
    train(target, range(1))


def lars_file() -> dict[str, Any]:
    source = make("LARS")
    train(source, range(2))
    return source.state_dict()


@pytest.mark.parametrize(
    ("make_file", "targets", "lacking"),
    [
        (apex_file, ["LARS"], "'momentum_buffer'.*layout of apex FusedAdam"),
        (lamb_file, ["LARS"], "'momentum_buffer'.*layout of bertadam_cuda LAMB"),
        (lars_file, TARGETS, "'exp_avg', 'exp_avg_sq'.*layout of bertadam_cuda LARS"),
        (
            lambda: torch_file(torch.optim.SGD, lr=0.1, momentum=0.8),
            TARGETS,
            "'exp_avg', 'exp_avg_sq'.*layout of torch SGD",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_files_with_other_states_are_refused(
    make_file: Callable[[], dict[str, Any]], targets: list[str], lacking: str
) -> None:
    for name in targets:
        target = make("LARS") if name == "LARS" else TARGETS[name]()
        with pytest.raises(ValueError, match=f"lacks {lacking}"):
            target.load_state_dict(make_file())
        assert not target.state
