"""The profile measures real iterations, and a wrong measurement would be noticed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import profile_iteration
from contenders import APEX
from iteration_timing import N_WARM_UPS
from profile_cases import BATCHES, N_ITERATIONS, N_ROUNDS, Profiler, compare_with

pytest_plugins = ("profile_program",)


def test_slow_step_shows_up_in_every_measure(
    profiler: Profiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a step of known length, where a measurement mistake would be noticed."""
    sleep_ms = 60.0
    compare_with(monkeypatch, "slow", lambda groups: lambda: time.sleep(sleep_ms / 1e3))
    status, rows = profiler("--profile-batches", 2)
    assert status == 0
    assert len(rows) == 3
    for row in rows:
        if row["contender"] != "slow":
            assert float(row["iteration_ms"]) < sleep_ms
            continue
        for name in ("optimizer_ms", "optimizer_host_ms", "difference_ms"):
            assert 0.9 * sleep_ms < float(row[name]) < 1.5 * sleep_ms, name
        assert float(row["share_percent"]) > 60
        assert float(row["forward_backward_ms"]) < sleep_ms


def test_slow_forward_is_not_the_optimizers(
    profiler: Profiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the other part."""
    sleep_ms = 60.0
    loss = profile_iteration.masked_loss

    def slow_loss(*arguments: Any) -> torch.Tensor:
        time.sleep(sleep_ms / 1e3)
        return loss(*arguments)

    monkeypatch.setattr(profile_iteration, "masked_loss", slow_loss)
    compare_with(monkeypatch, "nothing", lambda groups: lambda: None)
    for row in profiler("--profile-batches", 2)[1]:
        assert float(row["forward_backward_ms"]) > 0.99 * sleep_ms
        for name in ("optimizer_ms", "optimizer_host_ms", "difference_ms"):
            assert float(row[name]) < sleep_ms / 2, name


def test_every_step_finds_new_gradients_of_all_parameters(
    profiler: Profiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step without gradients would do nothing, and be fast."""
    seen: list[float] = []

    def build(groups: Any) -> Callable[[], None]:
        params = [param for group in groups for param in group["params"]]
        assert len(params) == len(set(params)) > 10

        def step() -> None:
            assert not torch.are_deterministic_algorithms_enabled()
            seen.append(math.fsum(float(param.grad.norm()) for param in params))

        return step

    compare_with(monkeypatch, "watching", build)
    assert profiler()[0] == 0
    n_runs = N_ROUNDS + N_WARM_UPS
    assert len(seen) == len(BATCHES) * n_runs * N_ITERATIONS
    assert min(seen) > 0
    assert max(seen) < 2 * min(seen), "gradients are added up"
    assert len(set(seen[:N_ITERATIONS])) == N_ITERATIONS, "batches differ within a run"


def test_optimizers_really_update(profiler: Profiler, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    random_bert = profile_iteration.random_bert

    def kept_bert(*arguments: Any) -> torch.nn.Module:
        model = random_bert(*arguments)
        made.extend((model, {n: p.detach().clone() for n, p in model.named_parameters()}))
        return model

    monkeypatch.setattr(profile_iteration, "random_bert", kept_bert)
    assert profiler()[0] == 0
    model, before = made
    for name, param in model.named_parameters():
        change = (param.detach() - before[name]).abs().max()
        # At most 6.6 lr per update of BertAdam (README), and decay; four optimizers.
        n_updates = 4 * len(BATCHES) * (N_ROUNDS + N_WARM_UPS) * N_ITERATIONS
        assert 0 < change < 10 * profile_iteration.LR * n_updates, name


def test_loss_that_is_not_finite_is_no_training(
    profiler: Profiler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(groups: Any) -> Callable[[], object]:
        return lambda: groups[0]["params"][0].data.fill_(math.nan)

    compare_with(monkeypatch, "spoiling", spoil)
    assert profiler()[0] == 2
    assert "pretrain_bert: --profile: the loss became nan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "stored", "param_dtype"),
    [
        (("--autocast",), "fp32, bf16 autocast", torch.float32),
        (("--dtype", "bf16"), "bf16, master remainder", torch.bfloat16),
        (("--dtype", "bf16", "--master-weights", "none"), "bf16", torch.bfloat16),
    ],
    ids=["autocast", "bf16", "no-master"],
)
def test_bf16_reaches_the_model(
    profiler: Profiler,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    stored: str,
    param_dtype: torch.dtype,
) -> None:
    dtypes: set[torch.dtype] = set()
    params: set[torch.dtype] = set()
    loss = profile_iteration.masked_loss

    def watched_loss(model: Any, batch: Any) -> torch.Tensor:
        hook = model.cls.register_forward_hook(lambda *call: dtypes.add(call[-1].dtype))
        params.update(param.dtype for param in model.parameters())
        found = loss(model, batch)
        hook.remove()
        return found

    monkeypatch.setattr(profile_iteration, "masked_loss", watched_loss)
    status, rows = profiler(*more)
    assert status == 0
    assert dtypes == {torch.bfloat16}
    assert params == {param_dtype}
    assert rows[0]["dtype"] == stored
    assert [row["contender"] for row in rows if row["note"]] == [APEX] * len(BATCHES)
