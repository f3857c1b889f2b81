"""The canonical norm tree, against its definition written down once more in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bertadam_cuda import BertAdam, _ext

_C = _ext.load()
LEAF, ACCUMULATORS = 1024, 128
SIZES = (0, 1, 127, 128, 129, 1023, 1024, 1025, 3000, 8192, 8193, 70_001, 300_000)


def leaf_sum(squares: np.ndarray) -> float:
    padded = np.zeros(LEAF)
    padded[: len(squares)] = squares
    sums = np.zeros(ACCUMULATORS)
    for row in padded.reshape(-1, ACCUMULATORS):
        sums = sums + row
    while len(sums) > 1:
        half = len(sums) // 2
        sums = sums[:half] + sums[half:]
    return float(sums[0])


def pairwise_sum(values: list[float]) -> float:
    while len(values) > 1:
        values = [*values, 0.0] if len(values) % 2 else values
        values = [values[i] + values[i + 1] for i in range(0, len(values), 2)]
    return values[0] if values else 0.0


def sum_of_squares(grad: torch.Tensor) -> float:
    squares = grad.numpy().astype(np.float64) ** 2
    return pairwise_sum([leaf_sum(squares[i : i + LEAF]) for i in range(0, len(squares), LEAF)])


def random_grad(size: int) -> torch.Tensor:
    """Values over ten decades, so that the order of additions shows in the last bits."""
    return torch.randn(size) * 10.0 ** torch.empty(size).uniform_(-5, 5)


@pytest.mark.parametrize("size", SIZES)
def test_the_tree_is_the_documented_one(size: int) -> None:
    grad = random_grad(size)
    assert _C.sum_of_squares(grad, 8 * LEAF) == sum_of_squares(grad)


def test_another_order_would_be_noticed() -> None:
    """A negative control: plain sums of the same squares differ in their last bits."""
    grad = random_grad(300_000)
    squares = grad.numpy().astype(np.float64) ** 2
    assert float(np.add.accumulate(squares)[-1]) != sum_of_squares(grad)
    assert float(squares.reshape(-1, 1000).sum(1).sum()) != sum_of_squares(grad)


@pytest.mark.parametrize("leaves", [1, 2, 4, 16, 64])
def test_the_chunk_size_leaves_no_trace(leaves: int) -> None:
    grad = random_grad(300_001)
    assert _C.sum_of_squares(grad, leaves * LEAF) == sum_of_squares(grad)


def test_the_tree_is_accurate() -> None:
    grad = random_grad(300_000)
    exact = math.fsum((grad.double() ** 2).tolist())
    # 8 additions in a leaf's column, 7 halvings, 9 levels of leaves: 24 roundings of half an ulp.
    assert sum_of_squares(grad) == pytest.approx(exact, rel=24 * 2**-53, abs=0)


@pytest.mark.parametrize("clip", ["per_tensor", "global"])
def test_the_optimizer_reports_norms_of_the_tree(clip: str) -> None:
    sizes = (5, 0, 40_000, 16_384, 16_385)
    params = [nn.Parameter(torch.zeros(size)) for size in sizes]
    for param in params:
        param.grad = random_grad(param.numel())
    params[3].grad = None
    opt = BertAdam(params, lr=0.1, clip=clip)
    opt.step()
    sums = [0.0 if p.grad is None else sum_of_squares(p.grad) for p in params]
    norms = [
        math.nan if p.grad is None else math.sqrt(s) for p, s in zip(params, sums, strict=True)
    ]
    expected = torch.tensor(norms, dtype=torch.float64)
    assert opt.grad_norms is not None
    assert opt.grad_norm is not None
    torch.testing.assert_close(opt.grad_norms, expected, rtol=0, atol=0, equal_nan=True)
    if clip == "global":
        assert opt.grad_norm.item() == math.sqrt(pairwise_sum(sums))
    else:
        assert opt.grad_norm.item() == pytest.approx(math.sqrt(pairwise_sum(sums)), rel=1e-15)
