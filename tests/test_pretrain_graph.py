"""Pretraining by replays of a CUDA graph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from bert_model import SIZES, masked_loss, random_bert
from graphed_training import N_WARM_UP, StaticBatch, make_capturable, most_hidden
from masking import masked_batch
from pretrain_cases import Program, losses, read_log

from bertadam_cuda import BertAdam

pytest_plugins = ("pretrain_program",)
CPU = torch.device("cpu")
#: With the micro model: the rate would be far too high for a GPU's preset.
ON_GPU = ("--device", "cuda", "--model", "tiny")


def batch_of(seed: int, n_sequences: int = 4, seq_len: int = 32) -> Any:
    generator = np.random.default_rng(seed)
    blocks = generator.integers(10, 100, (n_sequences, seq_len))
    return masked_batch(blocks, 100, generator)


def test_padding_leaves_the_loss_and_its_gradients() -> None:
    torch.manual_seed(0)
    model = random_bert(SIZES["tiny"], 100, 0.0)
    static = StaticBatch(4, 32, CPU)
    places = [tensor.data_ptr() for tensor in vars(static.batch).values()]
    for seed in range(3):
        batch = batch_of(seed)
        static.fill(batch)
        assert static.batch.labels.numel() > batch.labels.numel()
        found, expected = (
            torch.autograd.grad(masked_loss(model, each), list(model.parameters()))
            for each in (static.batch, batch)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(masked_loss(model, static.batch), masked_loss(model, batch))
    assert [tensor.data_ptr() for tensor in vars(static.batch).values()] == places


def test_there_is_room_for_any_batch() -> None:
    assert most_hidden(256 * 128) > 0.15 * 256 * 128
    assert most_hidden(4) == 4
    hidden = [batch_of(seed).labels.numel() for seed in range(200)]
    assert max(hidden) < most_hidden(4 * 32)
    static = StaticBatch(1, 3, CPU)
    with pytest.raises(RuntimeError, match="leave out --cuda-graph"):
        static.fill(batch_of(0))


def test_an_optimizer_becomes_capturable() -> None:
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    opt = BertAdam([{"params": params[:1]}, {"params": params[1:], "lr": 0.2}], lr=0.1, t_total=9)
    make_capturable(opt, CPU, "bertadam")
    for param in params:
        param.grad = torch.ones(3)
    opt.step()
    assert [float(group["lr"]) for group in opt.param_groups] == [0.1, 0.2]
    assert "schedule_start" in opt.state[params[0]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--cuda-graph needs a GPU; found cpu"),
        (("--compare", "reference"), "--cuda-graph: not with --compare"),
        (("--accumulate", "2"), "--cuda-graph is for one batch per step and one phase"),
        (("--phase2-steps", "2"), "--cuda-graph is for one batch per step and one phase"),
    ],
)
def test_what_cannot_be_is_refused(
    program: Program, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("--cuda-graph", *more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize(
    "more",
    [("--dtype", "fp32"), ("--autocast",), ("--dtype", "fp16")],
    ids=["fp32", "autocast", "fp16"],
)
def test_replays_learn_what_iterations_learn(
    program: Program, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Sums are longer by zeros, so losses differ in their last places, and drift."""
    found = {}
    for name, option in (("graph", ("--cuda-graph",)), ("eager", ())):
        assert program(*ON_GPU, "--dropout", "0", *more, *option, out=name) == 0
        records = read_log(tmp_path / name / "log.jsonl")
        found[name] = (losses(records, "train"), losses(records, "held_out"))
    assert len(found["graph"][0]) == 20 > N_WARM_UP
    for ours, theirs in zip(*found.values(), strict=True):
        assert ours == pytest.approx(theirs, rel=0.05)
    assert min(found["graph"][1].values()) < found["graph"][1][0] - 0.1


@pytest.mark.gpu
def test_a_checkpoint_of_replays_continues(program: Program, tmp_path: Path) -> None:
    saved = tmp_path / "saved.pt"
    options = (*ON_GPU, "--dropout", "0.1")
    assert program(*options, "--cuda-graph", "--checkpoint", saved, "--stop-after", 10) == 0
    for name, option in (("graph", ("--cuda-graph",)), ("eager", ())):
        assert program("--device", "cuda", "--resume", saved, *option, out=name) == 0
        assert max(losses(read_log(tmp_path / name / "log.jsonl"), "train")) == 19
