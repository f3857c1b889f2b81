"""An optimizer whose steps a CUDA graph replays, and its twin, whose steps are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from backends import as_integers
from capturable_cases import STARTS, params_of
from torch import Tensor, nn

from bertadam_cuda import BertAdam

SIZES = (1, 3, 1025, 8193, 70_001, 300_000)
#: Warm-up and decay that the tests' steps go through, and do not end.
SCHEDULE: dict[str, Any] = {"schedule": "warmup_linear", "t_total": 40, "warmup": 0.1}
MODES: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "global": {"clip": "global"},
    "no clip": {"max_grad_norm": 0.0},
}
STORAGES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "fp32": (torch.float32, {}),
    "bf16 remainder": (torch.bfloat16, {"master_weights": "remainder"}),
    "bf16 master": (torch.bfloat16, {"master_weights": "fp32"}),
    "bf16 stochastic": (torch.bfloat16, {"stochastic_rounding": True}),
}


class Pair:
    """Equal parameters, gradients and settings; the twin is not capturable."""

    def __init__(
        self,
        make: Callable[..., Any] = BertAdam,
        dtype: torch.dtype = torch.float32,
        sizes: tuple[int, ...] = SIZES,
        **settings: Any,
    ) -> None:
        self.lr = torch.tensor(0.1, dtype=torch.float64, device="cuda")
        self.opt = make(new_groups(sizes, dtype), lr=self.lr, capturable=True, **settings)
        self.twin = make(new_groups(sizes, dtype), lr=0.1, **settings)

    def draw(self, step: int, scale: float = 1.0, bad: float | None = None) -> None:
        """Write the gradients of a step where gradients are; `bad` into the last one."""
        torch.manual_seed(step)
        pairs = list(zip(params_of(self.opt), params_of(self.twin), strict=True))
        for index, both in enumerate(pairs):
            grad = torch.randn(both[0].shape) * scale
            if bad is not None and index == len(pairs) - 1:
                grad.view(-1)[-1] = bad
            for param in both:
                assert param.grad is not None
                param.grad.copy_(grad)

    def step(self) -> None:
        self.opt.step()
        self.twin.step()

    def warm_up(self, n_steps: int = 2) -> None:
        for step in range(n_steps):
            self.draw(step)
            self.step()

    def capture(self, **how: Any) -> torch.cuda.CUDAGraph:
        return captured(self.opt.step, **how)

    def compare(self, statistics: bool = True) -> None:
        """Bit for bit."""
        found, expected = bits(self.opt, statistics), bits(self.twin, statistics)
        assert list(found) == list(expected)
        for name in found:
            assert torch.equal(found[name], expected[name]), name


def new_groups(sizes: tuple[int, ...], dtype: torch.dtype) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(size).to("cuda", dtype)) for size in sizes]
    for param in params:
        param.grad = torch.zeros_like(param)
    return [{"params": params[::2]}, {"params": params[1::2], "weight_decay": 0.0}]


def bits(opt: Any, statistics: bool = True) -> dict[str, Tensor]:
    """Everything that steps write, on the CPU."""
    tensors: dict[str, Tensor] = {"skipped": opt.skipped}
    for index, param in enumerate(params_of(opt)):
        tensors[f"parameter {index}"] = param
        for key in sorted(set(opt.state[param]) - STARTS):
            tensors[f"{key} {index}"] = opt.state[param][key]
    if statistics:
        for name in ("grad_norms", "grad_norm", "clip_coefs", "trust_ratios"):
            value = getattr(opt, name)
            if value is not None:
                tensors[name] = value
    return {name: as_integers(tensor) for name, tensor in tensors.items()}


def captured(function: Callable[[], Any], **how: Any) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **how):
        function()
    return graph


def on_side_stream(function: Callable[[], Any], n_times: int) -> None:
    """Warm up as captures ask for: not on the default stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(n_times):
            function()
    torch.cuda.current_stream().wait_stream(stream)
