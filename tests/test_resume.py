"""Training continues after a reload as if it had never stopped.

Run as a program, this file is the new process: `test_resume.py IN OUT FIRST LAST CASE`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import (
    assert_same_bits,
    make_optimizer,
    make_params,
    params_of,
    reference_file,
    through_disk,
    train,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from plain_bert_adam import PlainBertAdam

import bertadam_cuda
from bertadam_cuda import BertAdam

PACKAGE_HOME = Path(bertadam_cuda.__file__).parent.parent
N = 6  # half of a run
RESET_AT = 4  # a new phase begins in the first half
CASES: dict[str, dict[str, Any]] = {
    "per_tensor": {"schedule": "warmup_linear", "warmup": 0.3, "t_total": 11},
    "global": {
        "clip": "global",
        "max_grad_norm": 0.5,
        "schedule": "warmup_exp_decay_exp",
        "schedule_args": {"decay_rate": 0.9, "decay_steps": 2, "degree": 2.0},
        "bias_correction": True,
        "t_total": 30,
    },
    "no_clip": {"max_grad_norm": 0.0, "schedule": "warmup_cosine", "t_total": 9},
}


def train_case(optimizer: BertAdam, steps: range) -> None:
    for step in steps:
        if step == RESET_AT:
            optimizer.reset_schedule(
                lr=5e-3, t_total=10, warmup=0.25, restart_bias_correction=step % 2 == 0
            )
        train(optimizer, range(step, step + 1))


def save(path: Path, optimizer: BertAdam) -> None:
    params = [param.detach() for param in params_of(optimizer)]
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, path)


def restore(path: Path, optimizer: BertAdam) -> None:
    checkpoint = torch.load(path, weights_only=True)
    for param, saved in zip(params_of(optimizer), checkpoint["params"], strict=True):
        param.data.copy_(saved)
    optimizer.load_state_dict(checkpoint["optimizer"])


@pytest.mark.parametrize("case", CASES)
def test_2n_steps_equal_n_steps_and_n_more_in_a_new_process(case: str, tmp_path: Path) -> None:
    whole, half = make_optimizer(**CASES[case]), make_optimizer(**CASES[case])
    train_case(whole, range(2 * N))
    train_case(half, range(N))
    save(tmp_path / "half.pt", half)
    arguments = [tmp_path / "half.pt", tmp_path / "whole.pt", N, 2 * N, case]
    subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        check=True,
        # The package that is tested here, wherever it was imported from.
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE_HOME), *sys.path])},
    )
    # Other settings and parameters, all of which the file replaces.
    reloaded = make_optimizer(seed=3, lr=0.5, clip=CASES[case].get("clip", "per_tensor"))
    restore(tmp_path / "whole.pt", reloaded)
    assert_same_bits(reloaded, whole)
    assert float(whole.state[params_of(whole)[0]]["step"]) == 2 * N


def test_reload_before_the_first_step_changes_nothing() -> None:
    straight, reloaded = make_optimizer(), make_optimizer()
    file = through_disk(make_optimizer().state_dict())
    reloaded.load_state_dict(file)
    assert not reloaded.state
    for optimizer in (straight, reloaded):
        train(optimizer, range(N))
    assert_same_bits(reloaded, straight)


def test_load_into_an_optimizer_that_has_stepped_forgets_its_past() -> None:
    straight, other = make_optimizer(), make_optimizer(seed=5, lr=0.3, t_total=7)
    train_case(other, range(RESET_AT + 1))
    train(straight, range(N))
    other.load_state_dict(through_disk(straight.state_dict()))
    for param, source in zip(params_of(other), params_of(straight), strict=True):
        param.data.copy_(source)
    for optimizer in (straight, other):
        train(optimizer, range(N, 2 * N))
    left, right = without_starts(other), without_starts(straight)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def without_starts(optimizer: BertAdam) -> dict[str, torch.Tensor]:
    """A start of 0 and none at all mean the same."""
    found: dict[str, torch.Tensor] = {}
    for index, param in enumerate(params_of(optimizer)):
        found[f"param {index}"] = param.detach()
        for key, value in optimizer.state[param].items():
            if key.endswith("_start"):
                assert float(value) == 0
            else:
                found[f"{key} of {index}"] = value
    return found


def test_loading_between_two_halves_of_one_optimizer_changes_nothing() -> None:
    straight, reloaded = make_optimizer(), make_optimizer()
    for optimizer in (straight, reloaded):
        train_case(optimizer, range(N))
    reloaded.load_state_dict(reloaded.state_dict())
    for optimizer in (straight, reloaded):
        train_case(optimizer, range(N, 2 * N))
    assert_same_bits(reloaded, straight)


def test_loaded_position_counts_though_the_optimizer_had_planned_for_another() -> None:
    """A schedule without an end: what was tabulated for the first steps says nothing of 10**4."""
    settings: dict[str, Any] = {"schedule": lambda position: 1 / (1 + position), "t_total": -1}
    file = make_optimizer(**settings).state_dict()
    stepped, fresh = make_optimizer(**settings), make_optimizer(**settings)
    train(stepped, range(1))
    for param, source in zip(params_of(stepped), params_of(fresh), strict=True):
        param.data.copy_(source)
    moments = reference_file()["state"].values()
    file["state"] = {
        index: {"step": 10**4, "exp_avg": entry["next_m"], "exp_avg_sq": entry["next_v"]}
        for index, entry in enumerate(moments)
    }
    before = params_of(fresh)[0].detach().clone()
    for optimizer in (stepped, fresh):
        optimizer.load_state_dict(file)
        train(optimizer, range(1))
    assert_same_bits(stepped, fresh)
    # lr is 1e-2 / (1 + 10**4), and 1e-2 / 2 where the load went unnoticed.
    assert 0 < float((params_of(fresh)[0].detach() - before).abs().max()) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_cpu_file_continues_on_a_gpu_with_the_same_bits(case: str, tmp_path: Path) -> None:
    """The file stays on the CPU; state, counters included, is on the parameter's device."""
    straight = make_optimizer(**CASES[case])
    train_case(straight, range(N))
    save(tmp_path / "half.pt", straight)
    params = [torch.nn.Parameter(param.cuda()) for param in make_params(seed=4)]
    moved = BertAdam([{"params": params[:2]}, {"params": params[2:]}], lr=1.0, **CASES[case])
    train(moved, range(20, 22))
    restore(tmp_path / "half.pt", moved)
    for optimizer in (straight, moved):
        train_case(optimizer, range(N, 2 * N))
    for own, expected in zip(params, params_of(straight), strict=True):
        assert torch.equal(own.detach().cpu(), expected)
        for key, value in moved.state[own].items():
            assert value.is_cuda, key
            assert torch.equal(value.cpu(), straight.state[expected][key]), key


# Against the plain loop in float64


def plain_optimizer(params: list[torch.nn.Parameter], **settings: Any) -> PlainBertAdam:
    return PlainBertAdam([{"params": params[:2]}, {"params": params[2:]}], lr=1.0, **settings)


def continued(file: dict[str, Any]) -> tuple[BertAdam, PlainBertAdam, float]:
    """Load `file` into both, step both N times; also how far two parameters may be apart."""
    ours = make_optimizer()
    exact = [torch.nn.Parameter(param.detach().double()) for param in make_params()]
    plain = plain_optimizer(exact)
    ours.load_state_dict(file)
    # The base class casts the file's moments to float64.
    plain.load_state_dict(reference_file())
    slack = 0.0
    for step in range(N):
        generator = torch.Generator().manual_seed(step)
        before = [param.detach().clone() for param in exact]
        for own, param in zip(params_of(ours), exact, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            param.grad = own.grad.double()
        ours.step()
        plain.step()
        moved = max(
            float((old - new.detach()).abs().max())
            for old, new in zip(before, exact, strict=True)
            if old.numel()
        )
        largest = max(float(param.detach().abs().max()) for param in exact if param.numel())
        # 1e-5 of the update, and one rounding of p to float32.
        slack += 1e-5 * moved + 2**-23 * largest
    return ours, plain, slack


def distances(ours: BertAdam, plain: PlainBertAdam) -> tuple[float, float]:
    """Largest distance of the parameters, and of the moments relative to their largest element."""
    in_params, in_moments = 0.0, 0.0
    for own, exact in zip(params_of(ours), params_of(plain), strict=True):
        if not own.numel():
            continue
        in_params = max(in_params, float((own.detach().double() - exact.detach()).abs().max()))
        for key, reference_key in (("exp_avg", "next_m"), ("exp_avg_sq", "next_v")):
            expected = plain.state[exact][reference_key]
            error = (ours.state[own][key].double() - expected).abs().max() / expected.abs().max()
            in_moments = max(in_moments, float(error))
    return in_params, in_moments


def test_reference_file_continues_as_the_plain_loop_does() -> None:
    ours, plain, slack = continued(through_disk(reference_file()))
    in_params, in_moments = distances(ours, plain)
    assert in_params <= slack
    assert in_moments <= 1e-6
    for own, exact in zip(params_of(ours), params_of(plain), strict=True):
        assert float(ours.state[own]["step"]) == plain.state[exact]["step"] == 5 + N


def with_later_step(file: dict[str, Any]) -> None:
    for entry in file["state"].values():
        entry["step"] += 1


def with_larger_lr(file: dict[str, Any]) -> None:
    for group in file["param_groups"]:
        group["lr"] *= 1.01


def without_decay(file: dict[str, Any]) -> None:
    for group in file["param_groups"]:
        group["weight_decay"] = 0.0


def with_exchanged_moments(file: dict[str, Any]) -> None:
    for entry in file["state"].values():
        entry["next_m"], entry["next_v"] = entry["next_v"], entry["next_m"].abs()


@pytest.mark.parametrize(
    "damage",
    [with_later_step, with_larger_lr, without_decay, with_exchanged_moments],
    ids=lambda damage: damage.__name__,
)
def test_comparison_with_the_plain_loop_notices(damage: Any) -> None:
    """Negative controls: the tolerances above must be too tight for each of these."""
    file = reference_file()
    damage(file)
    ours, plain, slack = continued(file)
    in_params, in_moments = distances(ours, plain)
    assert in_params > slack or in_moments > 1e-6


if __name__ == "__main__":
    source, target, first, last, case = sys.argv[1:]
    optimizer = make_optimizer(seed=9, clip=CASES[case].get("clip", "per_tensor"))
    restore(Path(source), optimizer)
    train_case(optimizer, range(int(first), int(last)))
    save(Path(target), optimizer)
