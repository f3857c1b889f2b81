"""Whole iterations and scaled steps in CUDA graphs.

What is compared bit for bit is the optimizer's part. A matrix product may take another algorithm in
a graph, so the twin does not compute its own gradients: after each replay it gets copies of those
that the replay has left in the graph's memory, and makes a step with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capturable_cases import params_of
from graph_cases import MODES, SCHEDULE, Pair, bits, captured, on_side_stream
from scaler_cases import make_scaler
from torch import Tensor, nn

from bertadam_cuda import AdamW, BertAdam
from bertadam_cuda.amp import GradScaler

pytestmark = pytest.mark.gpu
modes = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
kinds = pytest.mark.parametrize("kind", [GradScaler, torch.amp.GradScaler], ids=["ours", "torch's"])


def scaled_step(opt: Any, scaler: Any) -> None:
    scaler.step(opt)
    scaler.update()


@modes
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scaled_replays_are_scaled_steps(
    kind: type[torch.amp.GradScaler], settings: dict[str, Any], dtype: torch.dtype
) -> None:
    """Step and update in one graph; infinities skip steps, and the scale goes down and up."""
    pair = Pair(dtype=dtype, master_weights="fp32", **SCHEDULE, **settings)
    mine, other = (make_scaler(kind, "cuda", growth_interval=3) for _ in range(2))
    for step in range(2):
        pair.draw(step, scale=other.get_scale())
        scaled_step(pair.opt, mine)
        scaled_step(pair.twin, other)
    graph = captured(lambda: scaled_step(pair.opt, mine))
    scales = []
    for step in range(2, 14):
        scales.append(other.get_scale())
        pair.draw(step, scale=scales[-1], bad=math.inf if step in (4, 5, 11) else None)
        graph.replay()
        scaled_step(pair.twin, other)
        assert mine.get_scale() == other.get_scale()
        pair.compare()
    assert int(pair.opt.skipped) == 3 * len(params_of(pair.opt))
    steps = itertools.pairwise(scales)
    assert {math.copysign(1.0, b - a) for a, b in steps if a != b} == {1.0, -1.0}


def test_scaled_steps_may_be_made_between_replays() -> None:
    pair = Pair(**SCHEDULE)
    mine, other = (make_scaler(GradScaler, "cuda", growth_interval=2) for _ in range(2))
    scaled_step(pair.opt, mine)
    scaled_step(pair.twin, other)
    graph = captured(lambda: scaled_step(pair.opt, mine))
    for step, kind in enumerate("rrerer"):
        pair.draw(step, scale=other.get_scale(), bad=math.nan if step == 3 else None)
        if kind == "r":
            graph.replay()
        else:
            scaled_step(pair.opt, mine)
        scaled_step(pair.twin, other)
        assert mine.get_scale() == other.get_scale()
        pair.compare()


class Iteration:
    """A model with its optimizer, and a graph of forward, backward and step."""

    def __init__(self, model: nn.Module, opt: Any, batch: Tensor, scaler: Any = None) -> None:
        self.model, self.opt, self.batch, self.scaler = model, opt, batch, scaler
        self.loss = torch.zeros((), device="cuda")

    def __call__(self) -> None:
        self.opt.zero_grad()
        loss = loss_of(self.model, self.batch)
        self.loss.copy_(loss.detach())
        if self.scaler is None:
            loss.backward()
            self.opt.step()
        else:
            self.scaler.scale(loss).backward()
            scaled_step(self.opt, self.scaler)

    def capture(self) -> torch.cuda.CUDAGraph:
        self.opt.zero_grad()  # so that gradients are the graph's
        graph = captured(self)
        self.grads = [param.grad for param in params_of(self.opt)]
        return graph


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = (model(batch) - batch).square().mean()
    return loss


def small_model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 64))
    return nn.Sequential(*layers).cuda()


def optimizers(
    make: Callable[..., Any], models: list[nn.Module], lr: float = 0.01, **settings: Any
) -> list[Any]:
    """One to capture, of the first model, and its twin."""
    on_device = torch.tensor(lr, dtype=torch.float64, device="cuda")
    return [
        make(models[0].parameters(), lr=on_device, capturable=True, **settings),
        make(models[1].parameters(), lr=lr, **settings),
    ]


def take_over(iteration: Iteration, twin: Any) -> None:
    """Give the twin the gradients of the last replay."""
    for grad, param in zip(iteration.grads, params_of(twin), strict=True):
        assert grad is not None
        param.grad = grad.clone()


def assert_equal_bits(ours: Any, theirs: Any, statistics: bool = True) -> None:
    found, expected = bits(ours, statistics), bits(theirs, statistics)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def follow(iteration: Iteration, twin: Any, n_steps: int) -> None:
    """Bring the twin and its parameters to where the warm-up has ended."""
    twin.load_state_dict(iteration.opt.state_dict())
    for mine, other in zip(params_of(twin), params_of(iteration.opt), strict=True):
        mine.data.copy_(other)
    for group in twin.param_groups:
        group["lr"] = float(group["lr"])
    assert float(next(iter(twin.state.values()))["step"]) == n_steps


@pytest.mark.parametrize("make", [BertAdam, AdamW])
@pytest.mark.parametrize("kind", [None, GradScaler, torch.amp.GradScaler])
def test_a_whole_iteration(make: Callable[..., Any], kind: Any) -> None:
    models = [small_model(), small_model()]
    opt, twin = optimizers(make, models, max_grad_norm=1.0, clip="per_tensor", **SCHEDULE)
    scalers = [None if kind is None else make_scaler(kind, "cuda") for _ in range(2)]
    batch = torch.zeros(32, 64, device="cuda")
    iteration = Iteration(models[0], opt, batch, scalers[0])
    batch.copy_(torch.randn(32, 64))
    on_side_stream(iteration, 3)
    follow(iteration, twin, 3)
    graph = iteration.capture()
    for step in range(8):
        batch.copy_(torch.randn(32, 64))
        bad = kind is not None and step == 4
        if bad:
            batch[0, 0] = math.inf
        loss = loss_of(models[1], batch)
        grads = torch.autograd.grad(loss, list(models[1].parameters()))
        graph.replay()
        take_over(iteration, twin)
        if scalers[1] is None:
            twin.step()
        else:
            scale = scalers[1].get_scale()
            scaled_step(twin, scalers[1])
            assert scalers[0].get_scale() == scalers[1].get_scale() == scale * (0.5 if bad else 1)
        assert_equal_bits(opt, twin)
        if bad:
            continue
        # Algorithms may differ, results not by much.
        torch.testing.assert_close(iteration.loss, loss.detach(), rtol=1e-4, atol=1e-5)
        for found, expected in zip(iteration.grads, grads, strict=True):
            assert found is not None
            unscaled = found if scalers[1] is None else found / scale
            torch.testing.assert_close(unscaled, expected, rtol=1e-3, atol=1e-6)


def test_two_graphs_of_one_model() -> None:
    """Of batches of two sizes; each has gradients of its own, and they take turns."""
    models = [small_model(), small_model()]
    opt, twin = optimizers(BertAdam, models, **SCHEDULE)
    iterations = [
        Iteration(models[0], opt, torch.randn(size, 64, device="cuda")) for size in (8, 32)
    ]
    for iteration in iterations:
        on_side_stream(iteration, 2)
    follow(iterations[0], twin, 4)
    graphs = [iteration.capture() for iteration in iterations]
    for which in (0, 1, 1, 0, 0, 1):
        iterations[which].batch.normal_()
        graphs[which].replay()
        take_over(iterations[which], twin)
        twin.step()
        assert_equal_bits(opt, twin)


class BertLike(nn.Module):
    """The shapes of BERT-base, 110 M parameters, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30_522, 768)
        layer = nn.TransformerEncoderLayer(768, 12, 3072, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.head = nn.Linear(768, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.words(tokens)))
        return scores


class BertIteration(Iteration):
    """Forward and backward on tokens instead of numbers."""

    def __call__(self) -> None:
        self.opt.zero_grad()
        scores = self.model(self.batch)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), self.batch.flatten() % 2)
        self.loss.copy_(loss.detach())
        loss.backward()
        self.opt.step()


@pytest.mark.slow
def test_a_thousand_replays_of_a_bert_are_a_thousand_steps() -> None:
    """Forward, backward and step of BERT-base's shapes, through warm-up and decay.

    The twin's steps are made of the gradients that each replay has left behind: so both are given
    the same ones, dropout and all, and every bit of 110 M parameters has to agree at the end.
    """
    torch.manual_seed(0)
    models = [BertLike().cuda(), BertLike().cuda()]
    settings = {"schedule": "warmup_linear", "t_total": 1010, "warmup": 0.1}
    opt, twin = optimizers(BertAdam, models, lr=1e-4, **settings)
    tokens = torch.randint(64, (2, 32), device="cuda")  # few, so that there is something to learn
    iteration = BertIteration(models[0], opt, tokens)
    on_side_stream(iteration, 3)
    follow(iteration, twin, 3)
    graph = iteration.capture()
    losses = torch.zeros(1000, device="cuda")
    copies = [torch.empty_like(grad) for grad in iteration.grads if grad is not None]
    for param, grad in zip(params_of(twin), copies, strict=True):
        param.grad = grad
    for step in range(1000):
        tokens.random_(64)
        graph.replay()
        losses[step] = iteration.loss
        torch._foreach_copy_(copies, iteration.grads)
        twin.step()
    assert_equal_bits(opt, twin)
    assert opt.get_lr() == twin.get_lr()
    assert losses[-100:].mean() < losses[:100].mean()
