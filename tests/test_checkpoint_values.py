"""Values that no run can have left are refused, and the optimizer stays bitwise as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from checkpoint_cases import (
    LAYOUTS,
    File,
    assert_refused,
    layouts,
    make_optimizer,
    own_file,
    reference_file,
    snapshot,
    trained,
)


def phased_file() -> File:
    source = trained()
    source.reset_schedule(t_total=20, restart_bias_correction=True)
    return copy.deepcopy(source.state_dict())


@layouts
def test_good_file_of_each_layout_loads(layout: str) -> None:
    """The base of every corruption below: without it, refusal would prove nothing."""
    target = trained()
    before = snapshot(target)
    if LAYOUTS[layout][0] in (own_file, reference_file):
        target.load_state_dict(LAYOUTS[layout][0]())
    else:
        with pytest.warns(UserWarning, match="moments and steps"):
            target.load_state_dict(LAYOUTS[layout][0]())
    assert layout == "own" or snapshot(target)["bytes"] != before["bytes"]


#: What happens to a moment of parameter 3, the last one: all others were fine before it.
MOMENT_DAMAGE: dict[str, tuple[Callable[[torch.Tensor], object], type[Exception], str]] = {
    "transposed": (lambda t: t.transpose(0, 1), ValueError, r"has shape \(3, 2, 2, 2\)"),
    "flat": (lambda t: t.reshape(-1), ValueError, r"has shape \(24,\)"),
    "short": (lambda t: t[:1], ValueError, "the file belongs to another model"),
    "integer": (lambda t: t.long(), TypeError, "has dtype torch.int64"),
    "complex": (lambda t: t.to(torch.complex64), TypeError, "has dtype torch.complex64"),
    "sparse": (lambda t: t.to_sparse(), TypeError, "layout torch.sparse_coo"),
    "list": (lambda t: t.tolist(), TypeError, "has type list, expected a tensor"),
    "none": (lambda t: None, TypeError, "has type NoneType"),
    "meta": (lambda t: t.to("meta"), ValueError, "is on the meta device"),
    "nan": (lambda t: t.index_fill(0, torch.tensor(1), math.nan), ValueError, "values from nan"),
    "inf": (lambda t: t.index_fill(0, torch.tensor(1), math.inf), ValueError, "expected finite"),
    "too large": (lambda t: t.double() + 1e39, ValueError, "fit torch.float32"),
}


@layouts
@pytest.mark.parametrize("which", [1, 2], ids=["first", "second"])
@pytest.mark.parametrize("damage", MOMENT_DAMAGE)
def test_damaged_moment_is_refused(layout: str, which: int, damage: str) -> None:
    make, *keys = LAYOUTS[layout]
    file = make()
    change, kind, match = MOMENT_DAMAGE[damage]
    key = keys[which - 1]
    file["state"][3][key] = change(file["state"][3][key])
    name = ("exp_avg", "exp_avg_sq")[which - 1]
    label = rf"BertAdam\.load_state_dict: state of parameter 3 \('kernel'\): {name} "
    assert_refused(file, kind, f"^{label}.*{match}")


@layouts
def test_negative_second_moment_is_refused(layout: str) -> None:
    make, _, key = LAYOUTS[layout]
    file = make()
    file["state"][3][key].flatten()[5] = -1e-30
    file["state"][3][key][1, 2, 1, 1] = -1e-30
    assert_refused(file, ValueError, r"'kernel'\): exp_avg_sq has the negative value -1\.0+.*e-30")


STEP_DAMAGE: dict[str, tuple[object, type[Exception], str]] = {
    "negative": (-1, ValueError, r"step is -1, expected a whole number from 0 to 16777215"),
    "fraction": (2.5, ValueError, "step is 2.5, expected a whole number"),
    "nan": (math.nan, ValueError, "step is nan"),
    "infinite": (torch.tensor(math.inf), ValueError, "step is inf"),
    "too large": (2**24, ValueError, "step is 16777216"),
    "enormous": (10**400, ValueError, "expected a whole number"),
    "boolean": (True, TypeError, "step has type bool"),
    "flag tensor": (torch.tensor(True), TypeError, "step has type bool"),
    "string": ("3", TypeError, "step has type str"),
    "none": (None, TypeError, "step has type NoneType"),
    "vector": (torch.ones(2), TypeError, r"step is a tensor of shape \(2,\)"),
    "meta": (torch.ones((), device="meta"), TypeError, r"step is a tensor of shape \(\) on meta"),
}


@layouts
@pytest.mark.parametrize("damage", STEP_DAMAGE)
def test_damaged_step_is_refused(layout: str, damage: str) -> None:
    value, kind, match = STEP_DAMAGE[damage]
    file = LAYOUTS[layout][0]()
    holder = file["param_groups"][1] if layout == "apex" else file["state"][3]
    holder["step"] = value
    assert_refused(file, kind, match)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("schedule_start", 4.0, "schedule_start is 4, expected at most the step, 3"),
        ("schedule_start", math.nan, "schedule_start is nan"),
        ("bias_correction_start", -1.0, "bias_correction_start is -1.0"),
        ("bias_correction_start", 4.0, "bias_correction_start is 4, expected at most"),
    ],
)
def test_damaged_start_of_a_phase_is_refused(key: str, value: float, match: str) -> None:
    file = phased_file()
    file["state"][3][key] = torch.tensor(value)
    assert_refused(file, ValueError, match)


def test_failing_allocation_leaves_no_state_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_optimizer()
    create, calls = target._init_state, []

    def fails_at_the_third(param: torch.Tensor) -> None:
        calls.append(param)
        if len(calls) == 3:
            raise MemoryError
        create(param)

    monkeypatch.setattr(target, "_init_state", fails_at_the_third)
    before = snapshot(target)
    with pytest.raises(MemoryError):
        target.load_state_dict(reference_file())
    assert snapshot(target) == before
    assert not target.state
