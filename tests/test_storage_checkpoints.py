"""Checkpoints of low precision: resumed bit for bit, converted, checked first."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import snapshot
from mixed_cases import (
    MODES,
    clone_params,
    masters_of,
    mixed_params,
    parameter,
    params_of,
    same,
    train,
    values_of,
)
from torch import nn

from bertadam_cuda import BertAdam, reference

N_STEPS = 3
SETTINGS: dict[str, Any] = {"lr": 0.02, "t_total": 20, "warmup": 0.2}
File = dict[str, Any]


def make(mode: str, params: list[nn.Parameter], **settings: Any) -> BertAdam:
    return BertAdam(clone_params(params), **{**SETTINGS, **MODES[mode], **settings})


def through_a_file(state_dict: File) -> File:
    memory = io.BytesIO()
    torch.save(state_dict, memory)
    memory.seek(0)
    loaded: File = torch.load(memory, weights_only=True)
    return loaded


def saved(mode: str, **settings: Any) -> tuple[BertAdam, File]:
    """An optimizer after N_STEPS, whose parameters fit every mode, and its file."""
    opt = make(mode, mixed_params("remainder"), **settings)
    train(opt, 0, N_STEPS)
    return opt, through_a_file(opt.state_dict())


def resumed(opt: BertAdam, file: File, mode: str, **settings: Any) -> BertAdam:
    """Another optimizer, as a new process makes it: model first, then `file`."""
    twin = make(mode, params_of(opt), **settings)
    twin.load_state_dict(file)
    return twin


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(mode: str) -> None:
    unbroken = make(mode, mixed_params(mode))
    broken = make(mode, params_of(unbroken))
    train(unbroken, 0, 2 * N_STEPS)
    train(broken, 0, N_STEPS)
    twin = resumed(broken, through_a_file(broken.state_dict()), mode)
    assert same(values_of(twin), values_of(broken))
    train(twin, N_STEPS, 2 * N_STEPS)
    assert same(values_of(twin), values_of(unbroken))


@pytest.mark.parametrize("mode", ["fp32", "remainder", "stochastic"])
def test_what_makes_it_exact_is_in_the_file(mode: str) -> None:
    """A negative control: without masters, or with another seed, the run differs."""
    opt, file = saved(mode)
    for group in file["param_groups"]:
        group["rounding_seed"] = 1
    for entry in file["state"].values():
        entry.pop("master_param", None)
        entry.pop("param_remainder", None)
    twin = resumed(opt, file, mode)
    for each in (opt, twin):
        train(each, N_STEPS, 2 * N_STEPS)
    assert not same(masters_of(opt), masters_of(twin))


@pytest.mark.parametrize("n_before", [0, 2], ids=["fresh", "trained"])
@pytest.mark.parametrize("to", ["fp32", "remainder"])
@pytest.mark.parametrize("of", ["fp32", "remainder"])
def test_masters_are_converted_exactly(of: str, to: str, n_before: int) -> None:
    opt, file = saved(of)
    twin = make(to, params_of(opt))
    train(twin, 50, 50 + n_before)
    with torch.no_grad():
        for param, loaded in zip(params_of(twin), params_of(opt), strict=True):
            param.copy_(loaded)
    kept = [id(tensor) for state in twin.state.values() for tensor in state.values()]
    twin.load_state_dict(file)
    assert n_before == 0 or kept == [id(t) for s in twin.state.values() for t in s.values()]
    assert same(masters_of(twin), masters_of(opt))
    assert twin.param_groups[0]["master_weights"] == to
    for each in (opt, twin):
        train(each, N_STEPS, 2 * N_STEPS)
    assert same(masters_of(twin), masters_of(opt))


def test_a_copy_that_becomes_a_remainder_brings_its_parameter_along() -> None:
    """On a tie the two forms round it differently; a master that is ahead wins."""
    param = parameter(torch.ones(3), torch.bfloat16)
    opt = BertAdam([param], lr=0.0, master_weights="fp32")
    train(opt, 0, 1)
    ties = torch.tensor([1.0 + 2**-8, 1.0 + 3 * 2**-8, 5.0])
    opt.state[param]["master_param"].copy_(ties)
    twin = resumed(opt, opt.state_dict(), "remainder", lr=0.0)
    assert same(masters_of(twin), [ties])
    assert params_of(twin)[0].tolist() == [1.0 + 2**-7, 1.0 + 2 * 2**-7, 5.0]


@pytest.mark.parametrize("mode", ["fp32", "remainder"])
@pytest.mark.parametrize("of", ["plain", "stochastic"])
def test_without_masters_in_the_file_they_begin_as_the_parameters(of: str, mode: str) -> None:
    opt, file = saved(of)
    twin = make(mode, params_of(opt))
    train(twin, 50, 52)  # its own masters are forgotten
    with torch.no_grad():
        for param, loaded in zip(params_of(twin), params_of(opt), strict=True):
            param.copy_(loaded)
    twin.load_state_dict(file)
    assert same(masters_of(twin), [p.detach().float() for p in params_of(opt)])


@pytest.mark.parametrize("of", ["fp32", "remainder"])
@pytest.mark.parametrize("to", ["plain", "stochastic"])
def test_masters_that_have_no_place_are_left_out_with_a_warning(of: str, to: str) -> None:
    opt, file = saved(of)
    twin = make(to, params_of(opt))
    with pytest.warns(UserWarning, match=r"masters.*master_weights=None.*'fp32' or 'remainder'"):
        twin.load_state_dict(file)
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in twin.state.values())
    assert same([*params_of(twin)], [*params_of(opt)])


def test_that_warning_as_an_error_loads_nothing() -> None:
    opt, file = saved("fp32")
    twin = make("plain", params_of(opt))
    before = snapshot(twin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="masters"):
            twin.load_state_dict(file)
    assert snapshot(twin) == before


def test_settings_of_the_file_win_but_for_the_storage() -> None:
    opt, file = saved("stochastic", rounding_seed=7, b1=0.7)
    twin = resumed(opt, file, "remainder", rounding_seed=3)
    group = twin.param_groups[0]
    assert (group["rounding_seed"], group["b1"]) == (7, 0.7)
    assert (group["master_weights"], group["stochastic_rounding"]) == ("remainder", False)


@pytest.mark.parametrize("mode", ["fp32", "remainder"])
def test_loading_its_own_state_dict_changes_nothing(mode: str) -> None:
    opt, _ = saved(mode)
    before = values_of(opt)
    opt.load_state_dict(opt.state_dict())
    assert same(values_of(opt), before)


@pytest.mark.parametrize("mode", ["fp32", "remainder"])
def test_nothing_aliases_the_file(mode: str) -> None:
    opt, file = saved(mode)
    twin = resumed(opt, file, mode)
    before = values_of(twin)
    for tensor in [tensor for entry in file["state"].values() for tensor in entry.values()]:
        tensor.zero_()
    assert same(values_of(twin), before)


def put(key: str, change: Callable[[torch.Tensor], Any]) -> Callable[[File], None]:
    """A defect of the last parameter's master."""

    def spoil(file: File) -> None:
        last = max(index for index, entry in file["state"].items() if key in entry)
        file["state"][last][key] = change(file["state"][last][key])

    return spoil


def add_the_other_master(file: File) -> None:
    entry = next(entry for entry in file["state"].values() if "master_param" in entry)
    entry["param_remainder"] = entry["master_param"].to(torch.int16)


DEFECTS: dict[str, tuple[str, Callable[[File], None], str]] = {
    "shape": ("fp32", put("master_param", lambda t: t.new_zeros(2, 9)), "master_param has shape"),
    "nan": ("fp32", put("master_param", lambda t: t * torch.nan), "master_param has values"),
    "inf": ("fp32", put("master_param", lambda t: t.double() + 1e39), "master_param has values"),
    "integers": ("fp32", put("master_param", lambda t: t.int()), "master_param has dtype"),
    "both": ("fp32", add_the_other_master, "master_param and param_remainder, expected one"),
    "remainder's shape": (
        "remainder",
        put("param_remainder", lambda t: t.new_zeros(2, 9)),
        "param_remainder has shape",
    ),
    "remainder's dtype": (
        "remainder",
        put("param_remainder", lambda t: t.float()),
        "param_remainder has dtype torch.float32.*int16",
    ),
}


@pytest.mark.parametrize("to", ["plain", "fp32", "remainder"])
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_bad_master_is_refused_and_nothing_is_loaded(defect: str, to: str) -> None:
    of, spoil, message = DEFECTS[defect]
    opt, file = saved(of)
    spoil(file)
    twin = make(to, params_of(opt))
    train(twin, 50, 51)
    before = snapshot(twin)
    with pytest.raises((TypeError, ValueError), match=message):
        twin.load_state_dict(file)
    assert snapshot(twin) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_remainder_is_refused_by_a_parameter_that_is_not_bfloat16(dtype: torch.dtype) -> None:
    opt = BertAdam([parameter(torch.randn(4), torch.bfloat16)], lr=0.1, master_weights="remainder")
    train(opt, 0, 1)
    twin = BertAdam([("w", parameter(torch.randn(4), dtype))], lr=0.1, master_weights="fp32")
    with pytest.raises(ValueError, match=rf"'w'.*param_remainder.*{dtype}.*'fp32'"):
        twin.load_state_dict(opt.state_dict())
    assert not twin.state


def test_a_state_dict_may_be_loaded_after_master_weights_was_changed() -> None:
    opt, file = saved("fp32")
    for group in opt.param_groups:
        group["master_weights"] = "remainder"
    masters = masters_of(opt)
    opt.load_state_dict(file)
    assert same(masters_of(opt), masters)
    train(opt, N_STEPS, N_STEPS + 1)


def apex_file(opt: BertAdam, masters: bool, remainders: bool = False) -> File:
    """As apex's FusedAdam writes it; with masters as TransformerEngine's does."""
    state: dict[int, dict[str, Any]] = {}
    for index, param in enumerate(params_of(opt)):
        own = opt.state[param]
        state[index] = {key: own[key].clone() for key in ("exp_avg", "exp_avg_sq")}
        if masters:
            master = own.get("master_param", param.detach().float())
            is_split = remainders and param.dtype == torch.bfloat16
            state[index]["master_param"] = reference.split_master(master)[1] if is_split else master
    group = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "step": N_STEPS}
    return {"state": state, "param_groups": [{**group, "params": list(state)}]}


@pytest.mark.filterwarnings("ignore:.*layout of apex")
@pytest.mark.parametrize("to", ["fp32", "remainder"])
@pytest.mark.parametrize("remainders", [False, True])
def test_masters_of_transformer_engine_are_taken_over(to: str, remainders: bool) -> None:
    opt, _ = saved("fp32")
    twin = make(to, params_of(opt))
    with torch.no_grad():
        for param, master in zip(params_of(twin), masters_of(opt), strict=True):
            if remainders and param.dtype == torch.bfloat16:
                param.copy_(reference.split_master(master)[0])
    twin.load_state_dict(apex_file(opt, masters=True, remainders=remainders))
    assert same(masters_of(twin), masters_of(opt))
    for each in (opt, twin):
        train(each, N_STEPS, N_STEPS + 2)
    assert same(masters_of(twin), masters_of(opt))


@pytest.mark.filterwarnings("ignore:.*layout of")
@pytest.mark.parametrize("mode", ["fp32", "remainder"])
def test_masters_begin_as_the_parameters_after_a_file_of_apex_or_torch(mode: str) -> None:
    opt, _ = saved("fp32")
    twin = make(mode, params_of(opt))
    twin.load_state_dict(apex_file(opt, masters=False))
    assert same(masters_of(twin), [param.detach().float() for param in params_of(opt)])
    params = [parameter(torch.randn(5), torch.float32)]
    theirs = torch.optim.AdamW(params)
    params[0].grad = torch.randn(5)
    theirs.step()
    halves = [parameter(params[0].detach(), torch.bfloat16)]
    ours = BertAdam(halves, lr=0.1, **MODES[mode])
    ours.load_state_dict(theirs.state_dict())
    assert same(masters_of(ours), [halves[0].detach().float()])
    assert ours.state[halves[0]]["exp_avg"].dtype == torch.float32


def test_the_layout_of_the_original_says_that_it_has_no_masters() -> None:
    for mode, lost in (("fp32", "master_weights='fp32'"), ("stochastic", "stochastic_rounding")):
        opt, _ = saved(mode)
        with pytest.warns(UserWarning, match=lost):
            opt.to_reference_state_dict()
