"""Large batches from small ones: which are read, and that their gradients are averaged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import bert_model
import training
from bert_model import masked_loss
from pretrain_cases import Program, assert_same_run, losses, read_log, stop, write_corpus
from pretraining import load_text
from settings import complete
from training import Training

pytest_plugins = ("pretrain_program",)


def tiny_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Training:
    monkeypatch.setitem(bert_model.SIZES, "tiny", bert_model.BertSize(1, 32))
    micro = {"device": "cpu", "vocab_size": 200, "seq_len": 16, "batch": 4, "steps": 3, "lr": 1e-2}
    settings = complete({**micro, **given})
    _, texts = load_text(settings, [write_corpus(tmp_path / "corpus.txt")], tmp_path)
    return Training(settings, texts)


def without_overflow(run: Training) -> Training:
    """Begin with a loss scale that these gradients stand."""
    assert run.stepper.scaler is not None
    state = run.stepper.scaler.state_dict()
    run.stepper.scaler.load_state_dict({**state, "scale": 2.0**10})
    return run


def first_gradients(run: Training, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Those that the first update gets, without a loss scale."""
    scale = run.loss_scale or 1.0
    params = list(run.model.parameters())
    found: list[torch.Tensor] = []
    monkeypatch.setattr(
        *(run.stepper, "step"),
        lambda: found.extend(param.grad.detach().float() / scale for param in params),
    )
    run.advance()
    return found


def test_gradient_is_that_of_the_mean_over_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_training(tmp_path, monkeypatch, accumulate=3)
    params = list(run.model.parameters())
    parts = [masked_loss(run.model, run._batches[0][number]) for number in range(3)]
    mean = torch.stack(parts).mean()
    expected = torch.autograd.grad(mean, params)
    mean = mean.detach()
    found = first_gradients(run, monkeypatch)
    for one, other in zip(found, expected, strict=True):
        # Some float32 additions in another order.
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())
    assert float(run.losses[0]) == pytest.approx(float(mean), rel=1e-6)


def test_loss_scale_does_not_change_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float16 rounds to 11 bits, and tiny gradients are its smallest numbers."""
    wide = tiny_training(tmp_path, monkeypatch, accumulate=3)
    half = without_overflow(tiny_training(tmp_path, monkeypatch, accumulate=3, dtype="fp16"))
    pairs = zip(
        *(first_gradients(run, monkeypatch) for run in (half, wide)),
        strict=True,
    )
    for one, other in pairs:
        assert float((one - other).norm()) <= 0.02 * float(other.norm()) + 1e-4


def test_scaler_is_updated_once_per_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = without_overflow(tiny_training(tmp_path, monkeypatch, accumulate=4, dtype="fp16"))
    for _ in range(3):
        run.advance()
    assert run.stepper.scaler is not None
    assert run.stepper.scaler._get_growth_tracker() == 3


def test_every_batch_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_training(tmp_path, monkeypatch, accumulate=3)
    batches, numbers = run._batches[0], []

    class Noted:
        def __getitem__(self, number: int) -> Any:
            numbers.append(number)
            return batches[number]

    run._batches = [Noted()]  # type: ignore[list-item]
    for _ in range(2):
        run.advance()
    assert numbers == list(range(6))


def test_without_accumulation_a_step_is_one_backward(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_losses, computed = [], training.masked_loss

    def noted(model: Any, batch: Any) -> torch.Tensor:
        n_losses.append(model.training)
        return computed(model, batch)

    monkeypatch.setattr(training, "masked_loss", noted)
    for accumulate in (1, 2):
        n_losses.clear()
        assert program("--accumulate", accumulate, "--steps", 5) == 0
        assert sum(n_losses) == 5 * accumulate


@pytest.mark.parametrize(
    "more",
    [
        ("--optimizer", "reference"),
        ("--optimizer", "torch", "--clip", "global"),
        ("--dtype", "fp16"),
        ("--dtype", "bf16"),
    ],
    ids=lambda more: "-".join(more[1::2]),
)
def test_accumulated_run_learns_and_counts_its_sequences(
    program: Program, tmp_path: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(*more, "--accumulate", 3) == 0
    records = read_log(tmp_path / "out" / "log.jsonl")
    held_out = losses(records, "held_out")
    assert held_out[20] < held_out[0] - 0.5
    assert "20 steps of 24 x 16 tokens" in capsys.readouterr().out
    end = records[-1]
    assert end["tokens_per_s"] * end["seconds"] == pytest.approx(20 * 24 * 16)


def test_accumulated_run_continues_with_the_same_bits(program: Program, tmp_path: Path) -> None:
    file = stop(program, tmp_path, "--accumulate", 2)
    assert program("--resume", file, "--checkpoint", file, out="pieces") == 0
    assert_same_run(tmp_path)
