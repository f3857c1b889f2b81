"""Checkpoints of Adam and AdamW: torch's and ours, either way, and those of other optimizers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adam_cases import CLASSES, clones, make_params, params_of, train
from checkpoint_cases import apex_file, settings_of, snapshot, through_disk
from checkpoint_cases import make_params as file_params
from checkpoint_cases import reference_file as bert_adam_file
from checkpoint_cases import trained as trained_bert_adam
from torch import nn

from bertadam_cuda import Adam, AdamW, BertAdam

SETTINGS = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2, "maximize": True}
#: Of them and of our own: those that torch has, too.
SHARED = (*SETTINGS, "amsgrad", "decoupled_weight_decay")
kinds = pytest.mark.parametrize("kind", CLASSES)
amsgrads = pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])
Optimizer = torch.optim.Optimizer


def in_two_groups(make: Callable[..., Optimizer], params: list[nn.Parameter]) -> Any:
    return make([{"params": params[:2]}, {"params": params[2:]}])


def trained(make: Callable[..., Optimizer], **settings: Any) -> tuple[list[nn.Parameter], Any]:
    torch.manual_seed(1)
    params = make_params()
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0, "lr": 0.07}]
    opt = make(groups, **{**SETTINGS, **settings})
    train(opt, range(5))
    return params, opt


@pytest.mark.parametrize("direction", ["to ours", "to torch", "ours to ours"])
@amsgrads
@kinds
def test_a_file_is_loaded_with_its_settings_and_training_goes_on(
    kind: str, amsgrad: bool, direction: str
) -> None:
    """Without a warning. The target has other settings; amsgrad comes from the file, too."""
    ours, theirs = CLASSES[kind]
    source_class = theirs if direction == "to ours" else ours
    target_class = theirs if direction == "to torch" else ours
    params, source = trained(source_class, amsgrad=amsgrad)
    twins = clones(params)
    target = in_two_groups(target_class, twins)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.load_state_dict(through_disk(source.state_dict()))
    for group, saved in zip(target.param_groups, source.param_groups, strict=True):
        assert {key: group[key] for key in SHARED} == {key: saved[key] for key in SHARED}
    train(source, range(5, 15))
    train(target, range(5, 15))
    for param, twin in zip(params, twins, strict=True):
        assert set(source.state[param]) == set(target.state[twin])
        assert float(source.state[param]["step"]) == float(target.state[twin]["step"]) == 15
        # Float32 on either side: 10 updates of at most 0.07, a few roundings each.
        atol = 0 if direction == "ours to ours" else 3e-6
        torch.testing.assert_close(param, twin, rtol=0, atol=atol)


@pytest.mark.parametrize("lost", ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_a_state_that_is_not_loaded_would_be_noticed(lost: str) -> None:
    """A negative control of the comparison above."""
    params, source = trained(torch.optim.Adam, amsgrad=True)
    twins = clones(params)
    target = in_two_groups(Adam, twins)
    file = through_disk(source.state_dict())
    for entry in file["state"].values():
        entry[lost].zero_()
    target.load_state_dict(file)
    train(source, range(5, 15))
    train(target, range(5, 15))
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(params, twins, strict=True))


@pytest.mark.parametrize("before", [False, True], ids=["from plain", "from amsgrad"])
@amsgrads
def test_states_come_and_go_with_the_settings_of_the_file(before: bool, amsgrad: bool) -> None:
    """In place: tensors that are there stay where they are."""
    params, source = trained(torch.optim.AdamW, amsgrad=amsgrad)
    twins, target = trained(AdamW, amsgrad=before)
    memory = {key: value.data_ptr() for key, value in target.state[twins[0]].items()}
    target.load_state_dict(source.state_dict())
    state = target.state[twins[0]]
    assert set(state) == set(source.state[params[0]])
    for key in memory.keys() & state.keys():
        assert state[key].data_ptr() == memory[key]
    for key, value in source.state[params[0]].items():
        assert torch.equal(state[key], value)
        assert state[key].data_ptr() != value.data_ptr()


def test_adam_takes_the_decay_of_the_file_and_adamw_keeps_its_own() -> None:
    for source_class in (torch.optim.Adam, torch.optim.AdamW, Adam, AdamW):
        params, source = trained(source_class)
        decoupled = source.param_groups[0]["decoupled_weight_decay"]
        for target_class, expected in ((Adam, decoupled), (AdamW, True)):
            target = in_two_groups(target_class, clones(params))
            target.load_state_dict(source.state_dict())
            assert target.param_groups[0]["decoupled_weight_decay"] == expected


def test_how_a_step_is_made_is_not_taken_over() -> None:
    """fused, foreach and capturable of a file have no meaning here."""
    params, source = trained(torch.optim.Adam, fused=True)
    file = source.state_dict()
    file["param_groups"][0]["capturable"] = True
    target = in_two_groups(Adam, clones(params))
    target.load_state_dict(file)
    assert target.param_groups[0]["fused"] is None
    assert target.param_groups[0]["capturable"] is False
    target.step()


def test_a_learning_rate_in_a_tensor_is_copied() -> None:
    params, source = trained(torch.optim.Adam)
    source.param_groups[0]["lr"] = torch.tensor(0.25)
    target = in_two_groups(Adam, clones(params))
    target.load_state_dict(source.state_dict())
    assert float(target.param_groups[0]["lr"]) == 0.25
    assert target.param_groups[0]["lr"] is not source.param_groups[0]["lr"]


@pytest.mark.parametrize("make", [bert_adam_file, apex_file, None], ids=["DS", "apex", "BertAdam"])
def test_files_of_another_family_give_moments_and_steps(make: Callable[[], Any] | None) -> None:
    file = make() if make else trained_bert_adam().state_dict()
    params = file_params()
    target = in_two_groups(AdamW, params)
    before = copy.deepcopy(settings_of(target))
    with pytest.warns(UserWarning, match="moments and steps are loaded, and the optimizer keeps"):
        target.load_state_dict(through_disk(file))
    after = settings_of(target)
    for group in after:
        group.pop("param_names", None)
    assert after == before
    names = ("next_m", "next_v") if make is bert_adam_file else ("exp_avg", "exp_avg_sq")
    for index, param in enumerate(params):
        for key, name in zip(("exp_avg", "exp_avg_sq"), names, strict=True):
            assert torch.equal(target.state[param][key], file["state"][index][name])


def test_our_adamw_file_gives_bert_adam_moments_and_steps() -> None:
    params, source = trained(AdamW, amsgrad=True)
    target = in_two_groups(lambda groups: BertAdam(groups, lr=0.1), clones(params))
    with pytest.warns(UserWarning, match="layout of bertadam_cuda Adam/AdamW.*maximum is left out"):
        target.load_state_dict(source.state_dict())
    for param, twin in zip(params, params_of(target), strict=True):
        assert set(target.state[twin]) == {"step", "exp_avg", "exp_avg_sq"}
        assert torch.equal(target.state[twin]["exp_avg"], source.state[param]["exp_avg"])


def negative_maximum(file: dict[str, Any]) -> None:
    file["state"][3]["max_exp_avg_sq"][0] = -1.0


def no_maximum(file: dict[str, Any]) -> None:
    del file["state"][3]["max_exp_avg_sq"]


def differing_amsgrad(file: dict[str, Any]) -> None:
    file["param_groups"][1]["amsgrad"] = False


def bad_beta(file: dict[str, Any]) -> None:
    file["param_groups"][1]["betas"] = (0.9, 1.0)


def unknown_state(file: dict[str, Any]) -> None:
    file["state"][3]["mu_product"] = torch.zeros(())


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (negative_maximum, "max_exp_avg_sq has the negative value -1.0"),
        (no_maximum, "state of parameter 3 lacks 'max_exp_avg_sq'"),
        (differing_amsgrad, r"param_groups\[1\]: amsgrad is False but True"),
        (bad_beta, r"betas\[1\] is 1.0"),
        (unknown_state, "has the unknown 'mu_product'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_file_is_refused_and_changes_nothing(
    damage: Callable[[dict[str, Any]], None], match: str
) -> None:
    params, source = trained(torch.optim.Adam, amsgrad=True)
    file = copy.deepcopy(source.state_dict())
    damage(file)
    _, with_state = trained(Adam)
    for target in (with_state, in_two_groups(Adam, clones(params))):
        before = snapshot(target)
        with pytest.raises(ValueError, match=match):
            target.load_state_dict(file)
        assert snapshot(target) == before
