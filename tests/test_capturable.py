"""What capturable=True changes where nothing is captured: tables, states and lr tensors, no bits.

Captures themselves need a GPU: test_graphs_gpu.py.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import Twin, odd_grads, odd_params
from bert_cases import draw_grads, one_parameter, snapshot, trained
from capturable_cases import CLASSES, STARTS, assert_same_bits, params_of, train
from torch import nn

from bertadam_cuda.amp import GradScaler

classes = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)
#: Settings under which a step and its tables differ.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "global": {"clip": "global"},
    "no clip": {"max_grad_norm": 0.0},
    "bias correction": {"bias_correction": True},
    "schedule": {"schedule": "warmup_cosine", "warmup": 0.3, "t_total": 6},
    "callable": {"schedule": lambda position: 1.0 / (1 + position), "t_total": 5},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_steps_have_the_same_bits(settings: dict[str, Any]) -> None:
    """Sizes at all edges, gradients that are not there or not finite, three kinds of groups."""
    params = odd_params()
    ours, theirs = (
        Twin(copy.deepcopy(params), "cpu", capturable=capturable, **settings)
        for capturable in (True, False)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one schedule ends
        for step in range(8):
            ours.step(odd_grads(params, step))
            theirs.step(odd_grads(params, step))
            assert_same_bits(ours.opt, theirs.opt)
            norms, expected = (
                torch.zeros(()) if twin.opt.grad_norms is None else twin.opt.grad_norms
                for twin in (ours, theirs)
            )
            assert torch.equal(norms.nan_to_num(-1.0), expected.nan_to_num(-1.0))


@classes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masters", [None, "fp32", "remainder"])
def test_every_class_and_master_has_the_same_bits(
    make: Callable[..., Any], dtype: torch.dtype, masters: str | None
) -> None:
    opts = []
    for capturable in (True, False):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(size).to(dtype)) for size in (1, 700, 5000)]
        opts.append(
            make(params, lr=0.1, master_weights=masters, capturable=capturable, max_grad_norm=1.0)
        )
        train(opts[-1], range(4))
    assert_same_bits(*opts)


def test_scaled_steps_have_the_same_bits() -> None:
    opts = []
    for capturable in (True, False):
        opt = trained(capturable=capturable)
        scaler = GradScaler("cpu", init_scale=4.0)
        for step in range(4):
            for param, grad in zip(params_of(opt), draw_grads(params_of(opt), step), strict=True):
                param.grad = scaler.scale(grad)
            if step == 2:
                params_of(opt)[0].grad[0] = torch.inf  # type: ignore[index]
            scaler.step(opt)
            scaler.update()
        assert scaler.get_scale() == 2.0
        opts.append(opt)
    assert_same_bits(*opts)


# tables


def tables_of(opt: Any) -> list[int]:
    return sorted(len(table.values) for table in opt._tables._kept.values())


def test_tables_are_whole_from_the_first_step_on() -> None:
    settings = {"t_total": 40_000, "warmup": 0.5, "bias_correction": True}
    windowed, whole = trained(1, **settings), trained(1, capturable=True, **settings)
    assert tables_of(windowed) == [2**14 + 1, 2**14 + 1]
    corrections, multipliers = tables_of(whole)  # these of 0.999 are 1 from t = 37,414 on
    assert (corrections, multipliers) == (37_414, 40_001)
    assert whole._next_event == 40_001  # the warning at the end of the schedule
    values = [table.values for table in whole._tables._kept.values()]
    ends = {tuple(value[-1].reshape(-1).tolist()) for value in values}
    assert ends == {(1.0, 1.0), (0.0,)}


def test_corrections_end_where_they_are_constant() -> None:
    _, opt = one_parameter([1.0], [1.0], bias_correction=True, b2=0.9999, capturable=True)
    opt.step()
    (length,) = (n for n in tables_of(opt) if n > 1)
    assert 370_000 < length < 380_000


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "callable": ({"schedule": lambda position: 1.0}, "schedule is a callable and t_total is -1"),
    "length": ({"t_total": 2**24 + 1}, "t_total is 16777217.*16777216"),
}


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD)
def test_schedules_that_have_no_whole_table_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"BertAdam: param_groups\[0\]: {message}"):
        one_parameter([1.0], [1.0], capturable=True, **settings)
    opt = trained(capturable=True)
    before = snapshot(opt)
    with pytest.raises(ValueError, match=message):
        opt.reset_schedule(**{"t_total": -1, **settings})
    assert snapshot(opt) == before
    opt.param_groups[1].update({"t_total": -1, **settings})
    with pytest.raises(ValueError, match=rf"param_groups\[1\]: {message}"):
        opt.step()
    one_parameter([1.0], [1.0], **settings)[1].step()


# states


def test_states_have_their_starts_from_the_first_step_on() -> None:
    expected = {"step", "exp_avg", "exp_avg_sq"}
    for capturable in (False, True):
        opt = trained(1, capturable=capturable)
        for param in params_of(opt):
            assert set(opt.state[param]) == expected | (STARTS if capturable else set())
            assert float(opt.state[param].get("schedule_start", 0.0)) == 0.0


def test_a_new_phase_moves_the_starts_in_place() -> None:
    opt = trained(3, capturable=True)
    before = [opt.state[param][key] for param in params_of(opt) for key in sorted(STARTS)]
    opt.reset_schedule(restart_bias_correction=True)
    after = [opt.state[param][key] for param in params_of(opt) for key in sorted(STARTS)]
    assert all(new is old and float(new) == 3.0 for new, old in zip(after, before, strict=True))


def test_capturable_may_be_set_later() -> None:
    ours, theirs = trained(), trained()
    for group in ours.param_groups:
        group["capturable"] = True
    ours.step()
    theirs.step()
    assert_same_bits(ours, theirs)
    assert all(set(ours.state[param]) >= STARTS for param in params_of(ours))


@pytest.mark.parametrize("capturable", [False, True])
def test_checkpoints_continue_with_the_same_bits(capturable: bool) -> None:
    """Whatever the file's optimizer was; an optimizer keeps its own setting."""
    source = trained(3, capturable=not capturable, t_total=20, warmup=0.2)
    source.reset_schedule()
    train(source, range(2))
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target = trained(1, capturable=capturable)
    for mine, other in zip(params_of(target), params_of(source), strict=True):
        mine.data.copy_(other)
    target.load_state_dict(torch.load(buffer))
    assert [group["capturable"] for group in target.param_groups] == [capturable] * 2
    for opt in (source, target):
        train(opt, range(2, 6))
    assert_same_bits(target, source)


def test_a_file_without_starts_sets_them_to_zero() -> None:
    file = trained(3).state_dict()
    opt = trained(1, capturable=True)
    opt.reset_schedule()
    opt.load_state_dict(file)
    for param in params_of(opt):
        assert {float(opt.state[param][key]) for key in STARTS} == {0.0}
        assert float(opt.state[param]["step"]) == 3.0


def test_copies_do_not_share_what_captures_hold() -> None:
    opt = trained(capturable=True)
    held = opt._captured
    assert held.n_launches == 0
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert other._captured is not held
        train(other, range(1))
    opt.load_state_dict(opt.state_dict())
    opt.reset_schedule()
    opt.add_param_group({"params": [("c", nn.Parameter(torch.ones(2)))]})
    opt.__setstate__(opt.__getstate__())
    opt.step()
    assert opt._captured is held
