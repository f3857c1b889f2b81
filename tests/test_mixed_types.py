"""Parameters and gradients of any supported dtype: accuracy, mixtures, bits, refusals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from bert_cases import bits
from mixed_cases import (
    DTYPES,
    MODES,
    ROWS,
    Row,
    clone_params,
    master_of,
    mixed_params,
    parameter,
    params_of,
    same,
    set_grads,
    train,
    ulp,
    values_of,
)
from torch import Tensor, nn

from bertadam_cuda import BertAdam, _ext, reference

_C = _ext.load()
N = 20_000
LR, B1, B2, E, DECAY = 2.0**-7, 0.9, 0.999, 1e-6, 0.01
rows = pytest.mark.parametrize("row", ROWS, ids=str)
modes = pytest.mark.parametrize("mode", MODES)


def towards_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = x.to(dtype)
    return torch.where(
        rounded.double().abs() > x.abs(),
        torch.nextafter(rounded, torch.zeros_like(rounded)),
        rounded,
    )


def errors_of_a_step(row: Row, defect: str = "") -> dict[str, float]:
    """Errors against float64 of the same stored values, each in the unit that it is promised in."""
    param = parameter(torch.randn(N), row.param)
    settings = {"b1": B1, "b2": B2, "e": E, "weight_decay": DECAY}
    opt = BertAdam([param], LR, max_grad_norm=0.0, **settings, **row.settings)
    for _ in range(2):
        param.grad = torch.randn(N).mul(10.0 ** torch.empty(N).uniform_(-3, 1)).to(row.grad)
        p = master_of(opt, param) if opt.state[param] else param.detach().float().clone()
        state = opt.state[param]
        m, v = (
            state[key].clone() if state else torch.zeros(N) for key in ("exp_avg", "exp_avg_sq")
        )
        opt.step()
    assert param.grad is not None
    g = param.grad.double() * (1 + 1e-6 * (defect == "gradient"))
    exact = reference.bert_adam_step(p, g, m, v, lr=LR, **settings)
    m_addend = torch.maximum((B1 * m.double()).abs(), ((1 - B1) * g).abs())
    # From the stored moments, which may have lost digits to cancellation: 4 ulp of the update's
    # larger addend, times lr, and one rounding of the result.
    state = opt.state[param]
    direction = state["exp_avg"].double() / (state["exp_avg_sq"].double().sqrt() + E)
    decay = DECAY * p.double()
    p_exact = p.double() - LR * (1 + 1e-3 * (defect == "lr")) * (direction + decay)
    u_addend = torch.maximum(direction.abs(), decay.abs())
    p_float = LR * 4 * ulp(u_addend) + 0.5 * ulp(p_exact)
    last_places = 1.0 if row.settings["stochastic_rounding"] else 0.5
    is_rounded = row.param != torch.float32
    p_stored = p_float + (last_places * ulp(p_exact, row.param) if is_rounded else 0.0)
    stored = towards_zero(p_exact, row.param) if defect == "towards zero" else param.detach()
    found = {
        "m": (state["exp_avg"], exact.exp_avg, ulp(m_addend)),
        "v": (state["exp_avg_sq"], exact.exp_avg_sq, ulp(exact.exp_avg_sq)),
        "p": (stored, p_exact, p_stored),
    }
    if row.settings["master_weights"]:
        found["master"] = (master_of(opt, param), p_exact, p_float)
    return {
        name: ((value.double() - wanted).abs() / unit).max().item()
        for name, (value, wanted, unit) in found.items()
    }


@rows
def test_a_step_is_as_accurate_as_its_storage(row: Row) -> None:
    errors = errors_of_a_step(row)
    assert errors["m"] <= 1.5
    assert errors["v"] <= 1.0
    assert errors["p"] <= 1.0
    assert errors.get("master", 0.0) <= 1.0


@rows
def test_defects_would_be_noticed(row: Row) -> None:
    """Negative controls: gradients off by a millionth, an lr by a thousandth, another rounding."""
    errors = errors_of_a_step(row, "gradient")
    assert errors["m"] > 1.5
    assert errors["v"] > 1.0
    is_exact = row.param == torch.float32 or row.settings["master_weights"]
    key = "p" if row.param == torch.float32 else "master"
    assert not is_exact or errors_of_a_step(row, "lr")[key] > 1.0
    if row.param != torch.float32 and not row.settings["stochastic_rounding"]:
        assert errors_of_a_step(row, "towards zero")["p"] > 1.0


@modes
def test_a_mixture_gives_the_bits_that_each_parameter_gets_alone(mode: str) -> None:
    """Alone with one exception: random bits depend on the place in param_groups."""
    params = mixed_params(mode)
    opt = BertAdam(params, lr=0.1, **MODES[mode])
    singles = [BertAdam([param], lr=0.1, **MODES[mode]) for param in clone_params(params)]
    for step in range(3):
        set_grads(params, step)
        opt.step()
        for single, param in zip(singles, params, strict=True):
            params_of(single)[0].grad = param.grad
            single.step()
    for param, single in zip(params, singles, strict=True):
        alone = params_of(single)[0]
        if mode != "stochastic" or param.dtype == torch.float32 or param is params[0]:
            assert bits(param) == bits(alone)
        assert set(opt.state[param]) == set(single.state[alone])


@modes
def test_the_result_differs_from_that_of_other_gradients(mode: str) -> None:
    """A negative control of the equalities here: another gradient of one parameter shows."""
    params = mixed_params(mode)
    opts = [BertAdam(clone_params(params), lr=0.1, **MODES[mode]) for _ in range(2)]
    for opt in opts:
        set_grads(params_of(opt), 0)
    images = params_of(opts[1])[-2]
    assert images.grad is not None
    images.grad = images.grad + images.grad.square()
    for opt in opts:
        opt.step()
    assert not same(values_of(opts[0]), values_of(opts[1]))


@pytest.fixture
def _restore_isa() -> Iterator[None]:
    yield
    _C.set_cpu_isa(_C.cpu_isas()[-1])


@modes
@pytest.mark.usefixtures("_restore_isa")
def test_instruction_sets_and_workers_give_the_same_bits(mode: str) -> None:
    params = mixed_params(mode, sizes=(1, 15, 16, 17, 255, 257, 1025, 70_001))

    def run(workers: int) -> list[Tensor]:
        opt = BertAdam(clone_params(params), lr=0.1, **MODES[mode])
        for plan in opt._plans:
            plan.workers = workers
        train(opt, 0, 3)
        return values_of(opt)

    expected = run(0)
    for isa in _C.cpu_isas():
        _C.set_cpu_isa(isa)
        for workers in (1, 2, 7):
            assert same(run(workers), expected), (isa, workers)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_norms_are_those_of_the_same_values_in_float32(dtype: torch.dtype) -> None:
    grad = torch.randn(70_001).mul(10.0 ** torch.empty(70_001).uniform_(-4, 3)).to(dtype)
    norms = []
    for of_dtype in (grad, grad.float()):
        param = parameter(torch.zeros(70_001), torch.float32)
        param.grad = of_dtype
        opt = BertAdam([param], lr=0.1)
        opt.step()
        assert opt.grad_norms is not None
        norms.append(opt.grad_norms.item())
    assert norms[0] == norms[1] > 0


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_nonfinite_gradient_of_16_bits_skips_its_parameter(
    dtype: torch.dtype, value: float
) -> None:
    params = [parameter(torch.randn(3000), dtype) for _ in range(2)]
    opt = BertAdam(params, lr=0.1, master_weights="fp32")
    train(opt, 0, 1)
    before = values_of(opt)
    for param in params:
        param.grad = torch.randn(3000).to(dtype)
    params[1].grad[2999] = value  # type: ignore[index]
    opt.step()
    after = values_of(opt)
    half = len(before) // 2
    assert same(before[half:], after[half:])
    assert not same(before[:half], after[:half])
    assert opt.skipped.item() == 1


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_null_steps_leave_every_bit(dtype: torch.dtype) -> None:
    """A learning rate of 0 rounds nothing, and with zero gradients the step does not count."""
    for mode in MODES:
        if dtype == torch.float16 and mode in ("remainder", "stochastic"):
            continue
        values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        param = parameter(values[values.isfinite()], dtype)
        kept = bits(param)
        opt = BertAdam([param], lr=0.0, max_grad_norm=0.0, **MODES[mode])
        param.grad = torch.zeros_like(param)
        opt.step()
        assert opt.state[param]["step"].item() == 0
        param.grad = torch.ones_like(param)
        opt.step()
        assert opt.state[param]["step"].item() == 1
        assert bits(param) == kept


def test_a_gradient_of_another_dtype_and_layout_is_converted() -> None:
    params = [parameter(torch.randn(30, 40), torch.bfloat16) for _ in range(2)]
    params[1].data.copy_(params[0])
    opts = [BertAdam([param], lr=0.1) for param in params]
    grad = torch.randn(40, 30).half().t()
    params[0].grad, params[1].grad = grad, grad.contiguous()
    for opt in opts:
        opt.step()
    assert same(values_of(opts[0]), values_of(opts[1]))


@modes
def test_every_tensor_that_a_step_writes_counts_a_version(mode: str) -> None:
    params = mixed_params(mode)
    opt = BertAdam(params, lr=0.1, **MODES[mode])
    train(opt, 0, 1)
    tensors = [t for p in params for t in (p, *opt.state[p].values())]
    before = [tensor._version for tensor in tensors]
    train(opt, 1, 2)
    assert [tensor._version for tensor in tensors] == [version + 1 for version in before]


def test_float32_parameters_are_the_same_in_every_mode() -> None:
    params = [nn.Parameter(torch.randn(1000)) for _ in range(3)]
    runs = []
    for settings in MODES.values():
        opt = BertAdam(clone_params(params), lr=0.1, **settings)
        train(opt, 0, 3)
        assert all(set(s) == {"step", "exp_avg", "exp_avg_sq"} for s in opt.state.values())
        runs.append(values_of(opt))
    assert all(same(run, runs[0]) for run in runs[1:])
