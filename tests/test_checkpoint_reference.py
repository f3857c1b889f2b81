"""Files of the original BertAdams, in and out."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import (
    assert_same_bits,
    make_optimizer,
    params_of,
    reference_file,
    settings_of,
    snapshot,
    through_disk,
    train,
    trained,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from plain_bert_adam import PlainBertAdam

from bertadam_cuda import BertAdam, schedules

REFERENCE_KEYS = {"lr", "schedule", "warmup", "t_total", "b1", "b2", "e", "weight_decay"}
REFERENCE_KEYS |= {"max_grad_norm", "params"}


class _PickledSchedule:
    """What an object of pytorch-pretrained-BERT 0.6.2 holds; warmup as its constructor left it."""

    def __init__(self, warmup: float, t_total: float, cycles: float | None = None) -> None:
        self.warmup, self.t_total = float(warmup), float(t_total)
        self.warned_for_t_total_at_progress = -1
        if cycles is not None:
            self.cycles = cycles


class ConstantLR(_PickledSchedule): ...


class WarmupConstantSchedule(_PickledSchedule): ...


class WarmupLinearSchedule(_PickledSchedule): ...


class WarmupCosineSchedule(_PickledSchedule): ...


class WarmupCosineWithHardRestartsSchedule(_PickledSchedule): ...


class WarmupCosineWithWarmupRestartsSchedule(_PickledSchedule): ...


class OtherSchedule(_PickledSchedule): ...


def hf_file(schedule: object) -> dict[str, Any]:
    file = reference_file()
    for group in file["param_groups"]:
        del group["warmup"], group["t_total"]
        group["schedule"] = schedule
    return file


def test_settings_of_a_reference_file_win_and_others_stay() -> None:
    target = trained(clip="global", maximize=True)
    file = reference_file()
    target.load_state_dict(through_disk(file))
    for group, new in zip(target.param_groups, file["param_groups"], strict=True):
        assert {key: group[key] for key in REFERENCE_KEYS - {"params"}} == {
            key: new[key] for key in REFERENCE_KEYS - {"params"}
        }
        assert (group["clip"], group["maximize"]) == ("global", True)
    for index, param in enumerate(params_of(target)):
        state, entry = target.state[param], file["state"][index]
        assert float(state["step"]) == 5
        assert torch.equal(state["exp_avg"], entry["next_m"])
        assert torch.equal(state["exp_avg_sq"], entry["next_v"])


def test_arguments_of_the_replaced_schedule_go_with_it() -> None:
    target = trained(schedule="warmup_poly", schedule_args={"degree": 0.5})
    target.load_state_dict(reference_file())
    assert [group["schedule_args"] for group in target.param_groups] == [None, None]


def test_reference_file_from_before_the_first_step_brings_its_settings() -> None:
    file = reference_file()
    file["state"] = {}
    target = trained(schedule="warmup_poly", schedule_args={"degree": 0.5})
    target.load_state_dict(file)
    assert target.param_groups[0]["t_total"] == 50
    assert target.param_groups[0]["schedule_args"] is None
    assert all(float(target.state[param]["step"]) == 0 for param in params_of(target))


def test_weight_decay_rate_of_the_first_releases_is_weight_decay() -> None:
    file = reference_file()
    for group in file["param_groups"]:
        group["weight_decay_rate"] = group.pop("weight_decay")
    target = make_optimizer()
    target.load_state_dict(file)
    assert [group["weight_decay"] for group in target.param_groups] == [0.1, 0.0]
    assert "weight_decay_rate" not in target.param_groups[0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ConstantLR(0.1, 50), ("none", 0.1, 50, None)),
        (WarmupConstantSchedule(0.1, 50), ("warmup_constant", 0.1, 50, None)),
        (WarmupLinearSchedule(0.1, 50), ("warmup_linear_hf", 0.1, 50, None)),
        (WarmupLinearSchedule(0.0, -1), ("warmup_linear_hf", 0.0, -1, None)),
        (WarmupCosineSchedule(0.1, 50, 0.5), ("warmup_cosine_hf", 0.1, 50, {"cycles": 0.5})),
        (
            WarmupCosineWithHardRestartsSchedule(0.1, 50, 3.0),
            ("warmup_cosine_hard_restarts", 0.1, 50, {"cycles": 3.0}),
        ),
        # Its constructor multiplies: 0.1 of the training, in each of 4 cycles.
        (
            WarmupCosineWithWarmupRestartsSchedule(0.4, 50, 4.0),
            ("warmup_cosine_warmup_restarts", 0.1, 50, {"cycles": 4.0}),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, _PickledSchedule) else "",
)
def test_pickled_schedule_objects_give_name_and_numbers(
    schedule: _PickledSchedule, expected: tuple[str, float, int, dict[str, float] | None]
) -> None:
    target = make_optimizer()
    target.load_state_dict(through_disk(hf_file(schedule), weights_only=False))
    for group in target.param_groups:
        found = tuple(group[key] for key in ("schedule", "warmup", "t_total", "schedule_args"))
        assert found == expected
        assert isinstance(group["t_total"], int)
    assert "pytorch_pretrained_bert" not in sys.modules


def test_pickled_restarts_continue_with_the_multipliers_of_the_original() -> None:
    """WarmupCosineWithWarmupRestartsSchedule(warmup=0.1, t_total=50, cycles=4).get_lr(step)."""
    target = make_optimizer()
    target.load_state_dict(hf_file(WarmupCosineWithWarmupRestartsSchedule(0.4, 50, 4.0)))
    group = target.param_groups[0]
    rule = schedules.multiplier(
        group["schedule"], group["warmup"], group["t_total"], group["schedule_args"]
    )
    # x = step * 4 / 50 mod 1: 0.32 on the first ramp, which ends at 0.4, and 0.04 on the second.
    assert rule(4) == pytest.approx(0.32 / 0.4, rel=1e-12)
    assert rule(13) == pytest.approx(0.04 / 0.4, rel=1e-12)
    assert target.get_lr()[0] == pytest.approx(group["lr"] * rule(5), rel=1e-12)


def test_unknown_schedule_object_is_refused_by_name() -> None:
    target = trained()
    before = snapshot(target)
    with pytest.raises(ValueError, match="group 0 of the file has a schedule of type Other"):
        target.load_state_dict(hf_file(OtherSchedule(0.1, 50)))
    assert snapshot(target) == before


# Out


def test_reference_layout_has_the_originals_keys_and_plain_values() -> None:
    source = trained()
    file = through_disk(source.to_reference_state_dict())
    assert set(file) == {"state", "param_groups"}
    assert [group["params"] for group in file["param_groups"]] == [[0, 1], [2, 3]]
    for group, own in zip(file["param_groups"], source.param_groups, strict=True):
        assert set(group) == REFERENCE_KEYS
        assert all(group[key] == own[key] for key in REFERENCE_KEYS - {"params"})
    for index, param in enumerate(params_of(source)):
        entry, state = file["state"][index], source.state[param]
        assert list(entry) == ["step", "next_m", "next_v"]
        assert type(entry["step"]) is int
        assert entry["step"] == 3
        assert torch.equal(entry["next_m"], state["exp_avg"])
        assert torch.equal(entry["next_v"], state["exp_avg_sq"])


def test_reference_layout_shares_nothing_with_the_optimizer() -> None:
    source = trained()
    file = source.to_reference_state_dict()
    before = copy.deepcopy(file)
    train(source, range(3, 5))
    for index, entry in file["state"].items():
        assert torch.equal(entry["next_m"], before["state"][index]["next_m"])
        assert torch.equal(entry["next_v"], before["state"][index]["next_v"])


def test_reference_layout_goes_in_and_out_without_losing_a_bit() -> None:
    source, target = trained(), make_optimizer(lr=0.5)
    target.load_state_dict(source.to_reference_state_dict())
    for own, param in zip(params_of(target), params_of(source), strict=True):
        own.data.copy_(param)
    assert_same_bits(target, source)
    assert settings_of(target) == settings_of(source)


def test_plain_loop_loads_the_reference_layout() -> None:
    source = trained()
    plain = PlainBertAdam(
        [{"params": params_of(source)[:2]}, {"params": params_of(source)[2:]}], lr=1.0
    )
    plain.load_state_dict(source.to_reference_state_dict())
    weight = params_of(source)[0]
    assert plain.state[weight]["step"] == 3
    assert torch.equal(plain.state[weight]["next_v"], source.state[weight]["exp_avg_sq"])
    assert plain.param_groups[1]["weight_decay"] == 0.0


def test_reference_layout_before_the_first_step_has_no_state() -> None:
    file = make_optimizer().to_reference_state_dict()
    assert file["state"] == {}
    assert len(file["param_groups"]) == 2


def test_reference_step_is_the_position_in_the_phase() -> None:
    source = trained()
    source.reset_schedule(t_total=20)
    train(source, range(3, 5))
    entries = source.to_reference_state_dict()["state"]
    assert [entry["step"] for entry in entries.values()] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"clip": "global"}, "clip='global'"),
        ({"bias_correction": True}, "bias_correction=True"),
        ({"maximize": True}, "maximize=True"),
        ({"schedule": "warmup_poly"}, "schedule='warmup_poly'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_setting_without_an_equal_in_the_original_is_named_once(
    settings: dict[str, Any], named: str
) -> None:
    source = make_optimizer(**settings)
    with pytest.warns(UserWarning, match="has no equal of") as caught:
        source.to_reference_state_dict()
    assert len(caught) == 1
    assert named in str(caught[0].message)
    assert caught[0].filename == __file__


def test_callable_schedule_has_no_reference_layout() -> None:
    source = BertAdam(params_of(make_optimizer()), lr=1e-3, schedule=lambda position: 1.0)
    with pytest.raises(ValueError, match=r"schedule of param_groups\[0\] is a callable"):
        source.to_reference_state_dict()
