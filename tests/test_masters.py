"""Masters: the float32 behind 16-bit parameters, as a copy or as parameter and remainder."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from bert_cases import assert_step_is_refused
from mixed_cases import (
    MODES,
    clone_params,
    master_of,
    masters_of,
    mixed_params,
    parameter,
    params_of,
    same,
    set_grads,
    train,
    values_of,
)
from torch import Tensor

from bertadam_cuda import BertAdam, _masters, reference

with_masters = pytest.mark.parametrize("mode", ["fp32", "remainder"])


def bfloat16_params(sizes: tuple[int, ...] = (1, 300, 1500)) -> list[torch.nn.Parameter]:
    return [parameter(torch.randn(size), torch.bfloat16) for size in sizes]


def awkward_floats() -> Tensor:
    """Ties of bfloat16 and what lies beside them, denormals, signed zeros, the largest, noise."""
    upper = torch.arange(0, 0x7F80, 37, dtype=torch.int32) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    bits = (upper[:, None] + lower).flatten()
    noise = torch.randint(0, 0x7F800000, (100_000,), dtype=torch.int32)
    positive = torch.cat([bits, noise]).view(torch.float32)
    return torch.cat([positive, -positive])


def run_both(n_steps: int, **settings: Any) -> tuple[BertAdam, BertAdam]:
    """The same training with a copy and with remainders."""
    params = mixed_params("remainder", sizes=(1, 33, 500))
    opts = [
        BertAdam(clone_params(params), **{"lr": 0.01, **settings, **MODES[mode]})
        for mode in ("fp32", "remainder")
    ]
    for opt in opts:
        train(opt, 0, n_steps)
    return opts[0], opts[1]


def assert_equal_training(left: BertAdam, right: BertAdam) -> None:
    assert same(masters_of(left), masters_of(right))
    for ours, theirs in zip(params_of(left), params_of(right), strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(left.state[ours][key], right.state[theirs][key]), key


def test_a_remainder_is_the_copy_bit_for_bit_after_300_steps() -> None:
    left, right = run_both(300)
    assert_equal_training(left, right)
    differ = [int((p != q).sum()) for p, q in zip(params_of(left), params_of(right), strict=True)]
    assert sum(differ) < 10  # on ties only
    # A negative control: the parameters alone are far from the masters.
    assert not same(masters_of(left), [p.detach().float() for p in params_of(left)])


@pytest.mark.slow
def test_a_remainder_is_the_copy_bit_for_bit_after_10000_steps() -> None:
    assert_equal_training(*run_both(10_000, t_total=10_000, warmup=0.1))


@pytest.mark.parametrize("lr", [1e-30, 1e-3, 3e37])
def test_a_remainder_is_the_copy_where_nothing_is_ordinary(lr: float) -> None:
    """Values of every size, updates that overflow, non-finite gradients that propagate."""
    values = awkward_floats()
    opts = []
    for mode in ("fp32", "remainder"):
        param = parameter(values.bfloat16(), torch.bfloat16)
        opt = BertAdam([param], lr=lr, weight_decay=0.0, max_grad_norm=0.0, **MODES[mode])
        for step in range(4):
            torch.manual_seed(step)
            scale = 10.0 ** torch.empty(len(values)).uniform_(-30, 9)
            param.grad = torch.randn(len(values)) * scale
            param.grad[:: 101 + step] = torch.nan
            opt.step()
        opts.append(opt)
    left, right = (master_of(opt, params_of(opt)[0]) for opt in opts)
    numbers = ~left.isnan()
    assert torch.equal(left.isnan(), right.isnan())
    assert torch.equal(left[numbers], right[numbers])
    for opt in opts:  # a NaN shows in the parameter, too
        param = params_of(opt)[0]
        assert torch.equal(param.isnan(), master_of(opt, param).isnan())
    assert 0.005 < float(left.isnan().float().mean()) < 0.1


def test_the_parameter_is_the_master_rounded() -> None:
    params = bfloat16_params((20_000,))
    for mode in ("fp32", "remainder"):
        opt = BertAdam(clone_params(params), lr=0.01, **MODES[mode])
        train(opt, 0, 3)
        param = params_of(opt)[0]
        master = master_of(opt, param)
        expected = master.bfloat16() if mode == "fp32" else reference.split_master(master)[0]
        assert torch.equal(param, expected)
        assert not torch.equal(param.float(), master)


def test_splitting_is_exact_and_ties_go_away_from_zero() -> None:
    values = awkward_floats()
    param, remainder = _masters.split(values)
    expected_param, expected_remainder = reference.split_master(values)
    assert torch.equal(param.view(torch.int16), expected_param.view(torch.int16))
    assert torch.equal(remainder, expected_remainder)
    assert torch.equal(_masters.join(param, remainder).view(torch.int32), values.view(torch.int32))
    # Nearest; a half goes away from zero where bfloat16() goes to even.
    finite = param.isfinite()
    differs = (param != values.bfloat16()) & finite
    is_tie = values.view(torch.int32) & 0xFFFF == 0x8000
    assert bool(is_tie[differs].all())
    assert bool((param.float().abs() > values.abs())[is_tie & finite].all())


def test_a_remainder_of_a_parameter_rounded_to_even_would_be_noticed() -> None:
    """A negative control: to even, the difference does not fit in 16 bits on half of the ties."""
    values = awkward_floats()
    param = values.bfloat16()
    remainder = _masters.split(values)[1]
    joined = _masters.join(param, remainder)
    assert not torch.equal(joined.view(torch.int32), values.view(torch.int32))


@with_masters
def test_small_updates_are_lost_without_masters_only(mode: str) -> None:
    moved = {}
    for name in ("plain", mode):
        param = parameter(torch.ones(1000), torch.bfloat16)
        opt = BertAdam([param], lr=1e-4, weight_decay=0.0, **MODES[name])
        for _ in range(100):
            param.grad = torch.ones(1000)
            opt.step()
        moved[name] = not torch.equal(param, torch.ones(1000, dtype=torch.bfloat16))
    assert moved == {"plain": False, mode: True}


@with_masters
def test_masters_begin_as_the_parameters_with_their_layout(mode: str) -> None:
    params = mixed_params(mode)
    opt = BertAdam(params, lr=0.0, **MODES[mode])
    kept = [param.detach().float().clone() for param in params]
    set_grads(params, 0)
    opt.step()
    assert same(masters_of(opt), kept)
    key = {"fp32": "master_param", "remainder": "param_remainder"}[mode]
    for param in params:
        assert (key in opt.state[param]) == (param.dtype != torch.float32)
        if key in opt.state[param]:
            assert opt.state[param][key].stride() == param.stride()
            assert not opt.state[param][key].requires_grad


def test_an_overwritten_parameter_loses_against_its_copy_unless_synced() -> None:
    params = bfloat16_params((1000,))
    left, right = (BertAdam(clone_params(params), lr=0.01, master_weights="fp32") for _ in "ab")
    for opt in (left, right):
        train(opt, 0, 2)
        with torch.no_grad():
            params_of(opt)[0].fill_(7.0)
    right.sync_master_weights()
    assert bool((master_of(right, params_of(right)[0]) == 7.0).all())
    for opt in (left, right):
        train(opt, 2, 3)
    assert params_of(left)[0].abs().max() < 6.0
    assert bool(((params_of(right)[0] - 7.0).abs() < 0.1).all())


def test_an_overwritten_parameter_keeps_its_remainder_unless_synced() -> None:
    params = bfloat16_params((1000,))
    opt = BertAdam(params, lr=0.01, master_weights="remainder")
    train(opt, 0, 2)
    with torch.no_grad():
        params[0].fill_(7.0)
    master = master_of(opt, params[0])
    assert bool(((master - 7.0).abs() <= 2**-6).all())
    assert not bool((master == 7.0).all())
    opt.sync_master_weights()
    assert bool((master_of(opt, params[0]) == 7.0).all())


def test_syncing_keeps_the_tensors_and_leaves_parameters_without_state_alone() -> None:
    for mode in ("fp32", "remainder", "plain"):
        params = mixed_params(mode)
        opt = BertAdam(params, lr=0.1, **MODES[mode])
        opt.sync_master_weights()
        assert not opt.state
        train(opt, 0, 2)
        before = [id(t) for state in opt.state.values() for t in state.values()]
        opt.sync_master_weights()
        assert [id(t) for state in opt.state.values() for t in state.values()] == before
        train(opt, 2, 3)


@pytest.mark.parametrize("first", ["plain", "fp32", "remainder"])
@pytest.mark.parametrize("second", ["plain", "fp32", "remainder"])
def test_another_master_weights_needs_a_sync_and_then_works(first: str, second: str) -> None:
    params = mixed_params("remainder")
    opt = BertAdam(params, lr=0.1, **MODES[first])
    train(opt, 0, 2)
    for group in opt.param_groups:
        group["master_weights"] = MODES[second].get("master_weights")
    set_grads(params, 2)
    if first != second:
        assert_step_is_refused(opt, r"(?s)BertAdam.*(master_param|param_remainder).*sync_master_we")
        opt.sync_master_weights()
    opt.step()
    keys = {"plain": set(), "fp32": {"master_param"}, "remainder": {"param_remainder"}}[second]
    assert set(opt.state[params[-1]]) - {"step", "exp_avg", "exp_avg_sq"} == keys


def test_a_module_that_is_cast_needs_a_sync_and_then_goes_on() -> None:
    param = parameter(torch.randn(100), torch.float32)
    opt = BertAdam([("w", param)], lr=0.1, master_weights="fp32")
    train(opt, 0, 2)
    param.grad = None
    param.data = param.data.bfloat16()
    set_grads([param], 2)
    with pytest.raises(ValueError, match=r"'w'.*no 'master_param'.*sync_master_weights"):
        opt.step()
    opt.sync_master_weights()
    train(opt, 2, 4)
    assert opt.state[param]["step"].item() == 4
    assert torch.equal(param, opt.state[param]["master_param"].bfloat16())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_train_on_with_the_same_bits(mode: str, how: str) -> None:
    opt = BertAdam(mixed_params(mode), lr=0.1, **MODES[mode])
    train(opt, 0, 2)
    if how == "deepcopy":
        twin = copy.deepcopy(opt)
    else:
        for param in params_of(opt):
            param.grad = None
        twin = pickle.loads(pickle.dumps(opt))
    for param in params_of(twin):
        param.grad_dtype = None
    for each in (opt, twin):
        train(each, 2, 4)
    assert same(values_of(opt), values_of(twin))
