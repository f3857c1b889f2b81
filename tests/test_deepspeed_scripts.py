"""What the training scripts of DeepSpeedExamples do with the optimizer and its schedules.

The scripts' use is described in our own words, with the numbers of their published recipes; the
expected values are the formulas' values worked out by hand, and the float64 oracle's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import Case, bits, draw_grads
from oracle import Oracle
from torch import nn

import bertadam_cuda
from bertadam_cuda import (
    BertAdam,
    param_groups_weight_decay,
    warmup_exp_decay_exp,
    warmup_exp_decay_poly,
    warmup_linear,
    warmup_linear_decay_exp,
)

# Recipes of bing_bert: sequence length 128 with batch 64k, the 512 phase after it, Adam with 4k.
PHASE_128 = {"lr": 11e-3, "warmup": 0.06, "rate": 0.90, "decay_step": 250, "total": 7500}
PHASE_512 = {"lr": 2e-3, "warmup": 0.02, "rate": 0.90, "decay_step": 150, "total": 7500}
ADAM_4K = {"lr": 4e-4, "warmup": 0.1, "rate": 0.99, "decay_step": 520, "total": 125000}
NO_DECAY = ["bias", "LayerNorm.bias", "LayerNorm.weight"]
FUSED_KERNEL_NO_DECAY = [
    "attn_nw",
    "attn_nb",
    "norm_w",
    "norm_b",
    "attn_qkvb",
    "attn_ob",
    "inter_b",
    "output_b",
]


class Model(nn.Module):
    """Names as in the scripts' models, a pooler and a layer of the fused kernel included."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert = nn.Module()
        self.bert.embeddings = nn.Embedding(13, 6)
        self.bert.LayerNorm = nn.LayerNorm(6)
        self.bert.attention = nn.Linear(6, 6)
        self.bert.pooler = nn.Linear(6, 6)
        self.qa_outputs = nn.Linear(6, 2)
        self.kernel = nn.ParameterDict({"attn_nw": torch.ones(6), "attn_qkvw": torch.ones(6)})


def grouped(model: nn.Module, no_decay: list[str]) -> list[dict[str, Any]]:
    """The groups that every script builds: pooler dropped, two keys, no names."""
    named = [pair for pair in model.named_parameters() if "pooler" not in pair[0]]
    exempt = [any(part in name for part in no_decay) for name, _ in named]
    return [
        {"params": [p for (_, p), out in zip(named, exempt, strict=True) if out is is_exempt],
         "weight_decay": 0.0 if is_exempt else 0.01}
        for is_exempt in (False, True)
    ]  # fmt: skip


def beside_the_oracle(groups: list[dict[str, Any]], opt: BertAdam, **settings: Any) -> Case:
    """A case around an optimizer that the test made as a script does."""
    case = Case.__new__(Case)
    named = [[(f"p{i}.{k}", p) for k, p in enumerate(g["params"])] for i, g in enumerate(groups)]
    case.named = [pair for pairs in named for pair in pairs]
    case.params = [param for _, param in case.named]
    arrays = [[(name, p.detach().reshape(-1).numpy()) for name, p in pairs] for pairs in named]
    case.oracle = Oracle(
        [{**settings, "weight_decay": g["weight_decay"], "params": pairs}
         for g, pairs in zip(groups, arrays, strict=True)]
    )  # fmt: skip
    case.opt = opt
    return case


def write_lr(case: Case, lr: float) -> None:
    """What the scripts do before every step; the oracle is told the same."""
    for group in (*case.opt.param_groups, *(param.group for param in case.oracle.params)):
        group["lr"] = lr


@pytest.mark.filterwarnings("ignore:.*t_total")
def test_squad_fp32_constructs_bert_adam_with_its_own_schedule() -> None:
    """t_total is a float there, since the number of epochs is one."""
    groups = grouped(Model(), NO_DECAY)
    settings = {"lr": 3e-3, "warmup": 0.1, "t_total": 20 * 2.0}
    opt = BertAdam(groups, **settings)
    case = beside_the_oracle(groups, opt, **settings)
    for step in range(45):
        case.step(draw_grads(case.params, seed=step))
        if step == 21:
            assert opt.get_lr() == pytest.approx([3e-3 * (1 - 22 / 40)] * len(case.params))
    assert opt.get_lr() == [0.0] * len(case.params), "not negative past t_total"


def test_squad_fp32_also_writes_lr_so_that_the_schedule_applies_twice() -> None:
    """The script multiplies by warmup_linear itself; the original then multiplies once more."""
    groups = grouped(Model(), NO_DECAY)
    opt = BertAdam(groups, lr=3e-3, warmup=0.25, t_total=8)
    case = beside_the_oracle(groups, opt, lr=3e-3, warmup=0.25, t_total=8)
    for global_step in range(8):
        factor = warmup_linear(global_step / 8, 0.25)
        write_lr(case, 3e-3 * factor)
        assert opt.get_lr() == pytest.approx([3e-3 * factor**2] * len(case.params))
        case.step(draw_grads(case.params, seed=global_step))


def test_glue_writes_lr_from_warmup_linear_called_with_a_fraction() -> None:
    """lr 2e-5, warm-up 0.1 of 1000 steps: 1e-5 at step 50, 1.8e-5 at step 100, 1e-5 at 500."""
    groups = grouped(Model(), NO_DECAY)
    opt = BertAdam(groups, lr=2e-5)
    case = beside_the_oracle(groups, opt, lr=2e-5)
    expected = {0: 0.0, 50: 1e-5, 100: 1.8e-5, 500: 1e-5, 999: 2e-8}
    for global_step, known in expected.items():
        lr = 2e-5 * warmup_linear(global_step / 1000, 0.1)
        assert lr == pytest.approx(known, rel=1e-12)
        write_lr(case, lr)
        assert opt.get_lr() == pytest.approx([known] * len(case.params))
        case.step(draw_grads(case.params, seed=global_step))


def linear_then_exponential(step: int, recipe: dict[str, float]) -> float:
    """Schedule "LE", the default of bing_bert; arguments by position."""
    decay = recipe["rate"], recipe["decay_step"]
    return recipe["lr"] * warmup_linear_decay_exp(step, *decay, recipe["total"], recipe["warmup"])


def square_then_exponential(step: int, recipe: dict[str, float]) -> float:
    """Schedule "EE"."""
    decay = recipe["rate"], recipe["decay_step"]
    return recipe["lr"] * warmup_exp_decay_exp(step, *decay, recipe["total"], recipe["warmup"])


def power_then_polynomial(step: int, recipe: dict[str, float]) -> float:
    """Schedule "EP"."""
    return recipe["lr"] * warmup_exp_decay_poly(step, recipe["total"], recipe["warmup"])


@pytest.mark.parametrize(
    ("schedule", "recipe", "known"),
    [
        (linear_then_exponential, PHASE_128, {0: 0, 225: 5.5e-3, 450: 11e-3, 700: 9.9e-3}),
        (square_then_exponential, PHASE_128, {0: 0, 225: 2.75e-3, 450: 11e-3, 950: 8.91e-3}),
        (power_then_polynomial, PHASE_128, {225: 11e-3 * 0.5**1.5, 3750: 2.75e-3, 7500: 0}),
        (linear_then_exponential, ADAM_4K, {6250: 2e-4, 12500: 4e-4, 13020: 3.96e-4}),
        (square_then_exponential, PHASE_512, {75: 5e-4, 150: 2e-3, 300: 1.8e-3}),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 10e-4])
def test_bing_bert_writes_lr_from_its_schedules_and_an_offset(
    schedule: Callable[..., float], recipe: dict[str, float], known: dict[int, float], offset: float
) -> None:
    groups = grouped(Model(), NO_DECAY)
    opt = BertAdam(groups, lr=recipe["lr"], max_grad_norm=1.0)
    case = beside_the_oracle(groups, opt, lr=recipe["lr"])
    for global_step, expected in known.items():
        lr = schedule(global_step, recipe) + offset
        assert lr == pytest.approx(expected + offset, rel=1e-12)
        write_lr(case, lr)
        case.step(draw_grads(case.params, seed=global_step))


def test_rewarmup_restarts_the_schedule_at_the_restored_step() -> None:
    """Global step 7038 is restored; from there the 512 phase counts from 0."""
    restored = 7038
    lrs = [square_then_exponential(restored + k - restored, PHASE_512) for k in (0, 75, 150, 300)]
    assert lrs == pytest.approx([0.0, 5e-4, 2e-3, 1.8e-3], rel=1e-12)
    groups = grouped(Model(), NO_DECAY)
    opt = BertAdam(groups, lr=11e-3)
    for param in (p for group in groups for p in group["params"]):
        param.grad = torch.ones_like(param)
    opt.step()
    for state in opt.state.values():
        state["step"].fill_(restored)
    continued = opt.state_dict()
    for global_step in (restored + 75, restored + 300):
        lr = square_then_exponential(global_step - restored, PHASE_512)
        for group in opt.param_groups:
            group["lr"] = lr
        opt.step()
        assert opt.get_lr() == pytest.approx([lr] * len(continued["state"]))
    assert {state["step"].item() for state in opt.state.values()} == {restored + 2}


def test_reset_schedule_is_rewarmup_inside_the_optimizer() -> None:
    """Bit for bit the parameters that a script gets that writes lr before every step."""
    models = Model(), Model()
    groups = [grouped(model, NO_DECAY) for model in models]
    inside, written = (BertAdam(g, lr=11e-3, t_total=-1) for g in groups)
    params = [[p for group in pair for p in group["params"]] for pair in groups]
    phase = {"lr": 2e-3, "warmup": 0.02, "rate": 0.9, "decay_step": 3, "total": 100}
    for global_step in range(14):
        grads = draw_grads(params[0], seed=global_step)
        for tensors in params:
            for param, grad in zip(tensors, grads, strict=True):
                param.grad = grad
        if global_step == 5:
            inside.reset_schedule(
                lr=phase["lr"],
                t_total=100,
                warmup=phase["warmup"],
                schedule="warmup_exp_decay_exp",
                schedule_args={"decay_rate": phase["rate"], "decay_steps": phase["decay_step"]},
            )
        if global_step >= 5:
            for group in written.param_groups:
                group["lr"] = square_then_exponential(global_step - 5, phase)
        assert inside.get_lr() == pytest.approx(written.get_lr(), rel=1e-12)
        inside.step()
        written.step()
        assert [bits(p) for p in params[0]] == [bits(p) for p in params[1]]


@pytest.mark.parametrize("no_decay", [NO_DECAY, NO_DECAY + FUSED_KERNEL_NO_DECAY])
def test_the_helper_makes_the_groups_of_the_scripts(no_decay: list[str]) -> None:
    model = Model()
    kept = [pair for pair in model.named_parameters() if "pooler" not in pair[0]]
    ours = param_groups_weight_decay(kept, 0.01, no_decay)
    for found, expected in zip(ours, grouped(model, no_decay), strict=True):
        assert found["weight_decay"] == expected["weight_decay"]
        assert all(a is b for a, b in zip(found["params"], expected["params"], strict=True))
    assert ("kernel.attn_nw" in ours[1]["param_names"]) == ("attn_nw" in no_decay)
    assert "kernel.attn_qkvw" in ours[0]["param_names"]


@pytest.mark.parametrize(
    "name",
    [
        "BertAdam",
        "SCHEDULES",
        "warmup_cosine",
        "warmup_constant",
        "warmup_linear",
        "warmup_linear_decay_exp",
        "warmup_exp_decay_exp",
        "warmup_exp_decay_poly",
    ],
)
def test_the_names_that_the_scripts_import_exist(name: str) -> None:
    assert hasattr(bertadam_cuda, name)
    assert name in bertadam_cuda.__all__
