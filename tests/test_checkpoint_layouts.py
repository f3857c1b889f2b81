"""Layouts of torch and apex, and files whose keys, groups or parameters do not fit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoint_cases import (
    LAYOUTS,
    File,
    apex_file,
    assert_moments,
    assert_refused,
    layouts,
    make_optimizer,
    own_file,
    params_of,
    reference_file,
    settings_of,
    snapshot,
    through_disk,
    torch_file,
    trained,
)

# torch and apex


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.Adam, {"fused": True}),
    ],
    ids=["Adam", "AdamW", "amsgrad", "fused"],
)
def test_torch_file_gives_moments_and_steps_and_one_warning(
    kind: type[torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    file = through_disk(torch_file(kind, lr=0.5, weight_decay=0.25, **settings))
    target = make_optimizer()
    before = copy.deepcopy(settings_of(target))
    with pytest.warns(UserWarning, match=r"torch Adam/AdamW.*keeps its settings") as caught:
        target.load_state_dict(file)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert ("AMSGrad's running maximum is left out" in str(caught[0].message)) == bool(
        settings.get("amsgrad")
    )
    assert settings_of(target) == before
    assert_moments(target, file["state"], ("exp_avg", "exp_avg_sq"))
    assert all(float(target.state[param]["step"]) == 5 for param in params_of(target))


@pytest.mark.parametrize("step", [5, torch.tensor([5], dtype=torch.int32)], ids=["int", "tensor"])
def test_apex_file_gives_every_parameter_the_step_of_its_group(step: object) -> None:
    file = apex_file()
    file["param_groups"][1]["step"] = step
    target = make_optimizer()
    before = copy.deepcopy(settings_of(target))
    with pytest.warns(UserWarning, match=r"apex FusedAdam.*keeps its settings") as caught:
        target.load_state_dict(file)
    assert len(caught) == 1
    assert settings_of(target) == before
    assert_moments(target, file["state"], ("exp_avg", "exp_avg_sq"))
    assert all(float(target.state[param]["step"]) == 5 for param in params_of(target))


def test_warning_as_error_loads_nothing() -> None:
    target = trained()
    before = snapshot(target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="apex"):
            target.load_state_dict(apex_file())
    assert snapshot(target) == before


# Refusal


@layouts
@pytest.mark.parametrize("which", [1, 2], ids=["first", "second"])
def test_missing_moment_is_refused(layout: str, which: int) -> None:
    make, *keys = LAYOUTS[layout]
    file = make()
    del file["state"][3][keys[which - 1]]
    assert_refused(file, ValueError, f"state of parameter 3 lacks '{keys[which - 1]}'")


@layouts
def test_missing_step_is_refused(layout: str) -> None:
    file = LAYOUTS[layout][0]()
    del (file["param_groups"][1] if layout == "apex" else file["state"][3])["step"]
    assert_refused(file, ValueError, "lacks 'step")


@layouts
def test_unknown_state_key_is_refused(layout: str) -> None:
    file = LAYOUTS[layout][0]()
    file["state"][3]["momentum_buffer"] = torch.zeros(())
    assert_refused(file, ValueError, "state of parameter 3 has the unknown 'momentum_buffer'")


@layouts
def test_state_of_an_unlisted_parameter_is_refused(layout: str) -> None:
    file = LAYOUTS[layout][0]()
    file["state"][4] = file["state"][3]
    assert_refused(file, ValueError, "state of parameter 4, which none of its param_groups lists")


@layouts
def test_other_number_of_groups_is_refused_with_both(layout: str) -> None:
    file = LAYOUTS[layout][0]()
    file["param_groups"][0]["params"] += file["param_groups"].pop()["params"]
    file["param_groups"][0].pop("param_names", None)
    assert_refused(file, ValueError, "the file has 1 parameter groups, the optimizer has 2; build")


@layouts
def test_other_number_of_parameters_is_refused_with_both(layout: str) -> None:
    file = LAYOUTS[layout][0]()
    first, second = file["param_groups"]
    first["params"], second["params"] = [0, 1, 2], [3]
    for group in (first, second):
        group.pop("param_names", None)
    assert_refused(
        file,
        ValueError,
        r"group 0 of the file has 3 parameters, param_groups\[0\] of the optimizer has 2",
    )


def test_groups_in_another_order_are_refused() -> None:
    """Both groups have two parameters, so only the shapes can tell."""
    file = reference_file()
    file["param_groups"].reverse()
    assert_refused(
        file, ValueError, r"state of parameter 0 \('weight'\): exp_avg has shape \(0, 5\)"
    )


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("lr", -1.0, "lr"),
        ("b1", 1.0, "b1"),
        ("warmup", 2.0, "warmup is 2.0"),
        ("t_total", 0, "t_total is 0"),
        ("schedule", "warmup_sine", "warmup_sine"),
        ("schedule", "warmup_linear_decay_exp", "decay_rate"),
    ],
)
@pytest.mark.parametrize("make", [own_file, reference_file], ids=["own", "reference"])
def test_refused_setting_of_a_file_is_refused_before_anything_is_written(
    make: Callable[[], File], key: str, value: object, match: str
) -> None:
    file = make()
    file["param_groups"][1][key] = value
    assert_refused(file, ValueError, match)


def listed_twice(file: File) -> None:
    file["param_groups"][1]["params"] = [1, 2]


def without_params(file: File) -> None:
    del file["param_groups"][1]["params"]


def one_layout_per_group(file: File) -> None:
    file["param_groups"][1] = {"lr": 1e-3, "betas": (0.9, 0.999), "params": [2, 3]}
    file["state"] = {}


def sgd_groups(file: File) -> None:
    file["param_groups"] = [{"lr": 1e-3, "momentum": 0.9, "params": [0, 1, 2, 3]}]


def entry_is_a_list(file: File) -> None:
    file["state"][3] = [1, 2]


def too_few_names(file: File) -> None:
    file["param_groups"][1]["param_names"] = ["nothing"]


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (listed_twice, ValueError, "list parameter 1 more than once"),
        (without_params, TypeError, r"param_groups\[1\] of the file is no group"),
        (one_layout_per_group, ValueError, "unknown layout"),
        (sgd_groups, ValueError, "unknown layout, the file's groups have 'lr', 'momentum'; known"),
        (entry_is_a_list, TypeError, "state of parameter 3 has type list"),
        (too_few_names, ValueError, "group 1 of the file has 2 params and 1 param_names"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_structure_is_refused(
    change: Callable[[File], None], kind: type[Exception], match: str
) -> None:
    file = own_file()
    change(file)
    assert_refused(file, kind, match)


@pytest.mark.parametrize(
    ("file", "kind", "match"),
    [
        (None, TypeError, "the state dict has type NoneType"),
        ([], TypeError, "the state dict has type list"),
        (
            {"model": {}, "optimizer": {}},
            ValueError,
            "lacks 'state', 'param_groups' and has 'model'",
        ),
        ({"state": {}, "param_groups": {}}, TypeError, "'param_groups' has type dict"),
        ({"state": [], "param_groups": []}, TypeError, "'state' list"),
    ],
    ids=["none", "list", "whole checkpoint", "groups", "state"],
)
def test_what_is_no_state_dict_is_refused(file: object, kind: type[Exception], match: str) -> None:
    assert_refused(file, kind, match)
