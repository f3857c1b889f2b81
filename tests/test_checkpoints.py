"""Every layout loads in place, aliases nothing and keeps what the file does not say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from checkpoint_cases import (
    SHAPES,
    assert_moments,
    assert_same_bits,
    make_optimizer,
    params_of,
    reference_file,
    settings_of,
    snapshot,
    tensors_of,
    through_disk,
    train,
    trained,
)

from bertadam_cuda import BertAdam

# Own layout


@pytest.mark.parametrize("stepped", [False, True], ids=["fresh", "stepped"])
def test_own_file_read_with_weights_only_restores_every_bit(stepped: bool) -> None:
    source = trained(clip="global", schedule="warmup_exp_decay_poly", schedule_args={"degree": 3.0})
    target = make_optimizer(seed=1)
    if stepped:
        train(target, range(50, 52))
    target.load_state_dict(through_disk(source.state_dict()))
    for own, param in zip(params_of(target), params_of(source), strict=True):
        own.data.copy_(param)
    assert_same_bits(target, source)
    assert settings_of(target) == settings_of(source)


def test_own_file_from_before_the_first_step_brings_all_settings() -> None:
    source = make_optimizer(schedule="warmup_poly", schedule_args={"degree": 3.0})
    target = make_optimizer()
    target.load_state_dict(through_disk(source.state_dict()))
    assert settings_of(target) == settings_of(source)


def test_load_keeps_tensors_groups_and_memory_layout() -> None:
    target = trained()
    before = snapshot(target)
    target.load_state_dict(trained(n_steps=5).state_dict())
    after = snapshot(target)
    assert after["memory"] == before["memory"]
    assert after["groups"] == before["groups"]
    assert after["bytes"] != before["bytes"]
    kernel = params_of(target)[3]
    assert target.state[kernel]["exp_avg"].stride() == kernel.stride()


def test_nothing_is_shared_between_file_and_optimizer() -> None:
    settings: dict[str, Any] = {"schedule": "warmup_poly", "schedule_args": {"degree": 0.5}}
    file = trained(**settings).state_dict()
    untouched = copy.deepcopy(file)
    target = make_optimizer(**settings)
    target.load_state_dict(file)
    train(target, range(3, 6))
    target.param_groups[0]["schedule_args"]["degree"] = 9.0
    for index, entry in untouched["state"].items():
        for key, value in entry.items():
            assert torch.equal(file["state"][index][key], value)
    assert file["param_groups"] == untouched["param_groups"]


def test_deepcopy_of_a_file_loads_as_the_file() -> None:
    file = trained().state_dict()
    first, second = make_optimizer(), make_optimizer()
    first.load_state_dict(file)
    second.load_state_dict(copy.deepcopy(file))
    assert_same_bits(first, second)


def test_own_state_dict_with_two_entries_exchanged_loads_both() -> None:
    """Copying in place from the optimizer's own tensors would read one after it was written."""
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = BertAdam(params, lr=1e-2)
    train(optimizer, range(2))
    file = optimizer.state_dict()
    old = [entry["exp_avg"].clone() for entry in file["state"].values()]
    assert not torch.equal(*old)
    file["state"][0], file["state"][1] = file["state"][1], file["state"][0]
    optimizer.load_state_dict(file)
    assert torch.equal(optimizer.state[params[0]]["exp_avg"], old[1])
    assert torch.equal(optimizer.state[params[1]]["exp_avg"], old[0])


def test_parameter_without_an_entry_gets_the_zero_state() -> None:
    file = trained().state_dict()
    del file["state"][0]
    file["state"][1] = {}
    stepped, fresh = trained(), make_optimizer()
    for target in (stepped, fresh):
        target.load_state_dict(file)
    weight, scale = params_of(stepped)[:2]
    for param in (weight, scale):
        assert [float(value.abs().sum()) for value in stepped.state[param].values()] == [0, 0, 0]
    assert [bool(fresh.state.get(param)) for param in params_of(fresh)] == [
        False,
        False,
        True,
        True,
    ]


def test_starts_of_a_phase_are_loaded_and_zeroed_where_the_file_has_none() -> None:
    source = trained()
    plain = copy.deepcopy(source.state_dict())
    source.reset_schedule(t_total=20, restart_bias_correction=True)
    phased = copy.deepcopy(source.state_dict())
    target = make_optimizer()
    target.load_state_dict(phased)
    weight = params_of(target)[0]
    assert float(target.state[weight]["schedule_start"]) == 3
    assert float(target.state[weight]["bias_correction_start"]) == 3
    start = target.state[weight]["schedule_start"]
    target.load_state_dict(plain)
    assert float(start) == 0
    assert float(target.state[weight].get("schedule_start", 0)) == 0
    assert float(target.state[weight].get("bias_correction_start", 0)) == 0


def test_extra_group_keys_and_names_of_the_file_win() -> None:
    source = trained()
    torch.optim.lr_scheduler.ConstantLR(source, factor=1.0)
    file = source.state_dict()
    file["param_groups"][0]["param_names"] = ["first", "second"]
    del file["param_groups"][1]["param_names"]
    target = make_optimizer()
    target.load_state_dict(file)
    assert target.param_groups[0]["initial_lr"] == 1e-2
    assert target.param_groups[0]["param_names"] == ["first", "second"]
    assert target.param_groups[1]["param_names"] == ["nothing", "kernel"]


@pytest.mark.parametrize("absent", ["maximize", "clip", "on_nonfinite", "schedule_args", "e"])
def test_setting_that_an_older_file_lacks_stays(absent: str) -> None:
    file = trained().state_dict()
    for group in file["param_groups"]:
        del group[absent]
    settings: dict[str, Any] = {"maximize": True, "clip": "global", "e": 1e-3}
    target = make_optimizer(**settings)
    expected = [group[absent] for group in settings_of(target)]
    target.load_state_dict(file)
    assert [group[absent] for group in settings_of(target)] == expected


# Counters and dtypes


@pytest.mark.parametrize(
    "step",
    [7, 7.0, torch.tensor(7), torch.tensor(7.0), torch.tensor([7.0]), torch.tensor(7.0).bfloat16()],
    ids=["int", "float", "int64", "float32", "one-element", "bfloat16"],
)
def test_step_of_any_kind_becomes_the_float32_counter(step: object) -> None:
    file = reference_file()
    for entry in file["state"].values():
        entry["step"] = step
    target = make_optimizer()
    target.load_state_dict(file)
    for param in params_of(target):
        counter = target.state[param]["step"]
        assert (counter.dtype, tuple(counter.shape), float(counter)) == (torch.float32, (), 7.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_moments_of_another_dtype_are_converted(dtype: torch.dtype) -> None:
    file = reference_file()
    for entry in file["state"].values():
        entry["next_m"], entry["next_v"] = entry["next_m"].to(dtype), entry["next_v"].to(dtype)
    target = make_optimizer()
    target.load_state_dict(file)
    assert_moments(target, file["state"], ("next_m", "next_v"))


# Hooks


def test_hooks_run_in_the_order_of_the_base_class() -> None:
    events: list[str] = []
    target, file = make_optimizer(), trained().state_dict()
    lr = target.param_groups[0]["lr"]

    def pre(name: str, replacement: dict[str, Any] | None = None):
        def hook(optimizer: BertAdam, state_dict: dict[str, Any]) -> dict[str, Any] | None:
            # Nothing is looked at before the hooks have run.
            assert not optimizer.state
            events.append(name)
            state_dict.setdefault("seen", []).append(name)
            return replacement

        return hook

    def post(name: str):
        def hook(optimizer: BertAdam) -> None:
            assert optimizer.param_groups[0]["lr"] == 0.5 != lr
            assert optimizer.state
            events.append(name)

        return hook

    other = copy.deepcopy(file)
    other["param_groups"][0]["lr"] = 0.5
    target.register_load_state_dict_pre_hook(pre("replaces", other))
    target.register_load_state_dict_pre_hook(pre("last"))
    target.register_load_state_dict_pre_hook(pre("first"), prepend=True)
    removed = target.register_load_state_dict_pre_hook(pre("removed"))
    removed.remove()
    target.register_load_state_dict_post_hook(post("post"))
    target.register_load_state_dict_post_hook(post("post first"), prepend=True)
    target.load_state_dict(file)
    assert events == ["first", "replaces", "last", "post first", "post"]
    assert "seen" not in file


def test_failed_load_runs_no_post_hook() -> None:
    target = trained()
    target.register_load_state_dict_post_hook(lambda _: pytest.fail("post hook ran"))
    with pytest.raises(ValueError, match="unknown layout"):
        target.load_state_dict({"state": {}, "param_groups": [{"params": []}]})


def test_shapes_of_the_cases_are_kept() -> None:
    """Guards the table: the zero-dim, empty and channels-last cases must stay in it."""
    optimizer = trained()
    assert [tuple(param.shape) for param in params_of(optimizer)] == list(SHAPES)
    assert len(dict(tensors_of(optimizer))) == 4 * len(SHAPES)
