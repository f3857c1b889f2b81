"""Parameters, gradients and settings for the tests of BertAdam, and the run beside the oracle.

A case builds the optimizer and the oracle from the same groups, draws the same gradients for both,
and compares them after every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle, Update, check_moments, check_step, check_update
from torch import nn

from bertadam_cuda import BertAdam

CHUNK_EDGES = (1, 3, 1023, 1024, 1025, 4095, 4096, 4097, 8191, 8192, 8193, 16383, 16384, 16385)
# Settings that belong to the optimizer; all others may differ between groups.
PER_OPTIMIZER = ("clip", "on_nonfinite")
REFUSED = (TypeError, ValueError, RuntimeError)
ALL_CHECKS = ("moments", "update", "step")
Grads = list[torch.Tensor | None]


def flat(tensor: torch.Tensor) -> np.ndarray:
    """The elements in logical order, as a copy."""
    return tensor.detach().reshape(-1).clone().numpy()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).clone().view(torch.uint8).numpy().tobytes()


def misaligned(size: int, offset: int = 1) -> nn.Parameter:
    """A parameter that starts `offset` elements into a larger buffer."""
    return nn.Parameter(torch.randn(size + offset + 5)[offset : offset + size])


def many_shapes() -> list[tuple[str, nn.Parameter]]:
    """Every shape and layout that an optimizer meets, sizes around the edges of chunks first."""
    tensors: dict[str, torch.Tensor] = {f"size_{n}": torch.randn(n) for n in CHUNK_EDGES}
    tensors["zero_dim"] = torch.randn(())
    tensors["empty"] = torch.randn(0)
    tensors["empty_2d"] = torch.randn(3, 0)
    tensors["matrix"] = torch.randn(33, 65)
    tensors["transposed"] = torch.randn(40, 30).t()
    tensors["channels_last"] = torch.randn(4, 8, 5, 3).to(memory_format=torch.channels_last)
    params = [(name, nn.Parameter(tensor)) for name, tensor in tensors.items()]
    return [*params, ("misaligned_1", misaligned(1030)), ("misaligned_3", misaligned(4099, 3))]


def draw_grads(params: list[nn.Parameter], seed: int, none_rate: float = 0.0) -> Grads:
    """Gradients of widely differing size, so that some are clipped; some None.

    The tolerance of a moment is relative to the tensor's largest element. Where there are only a
    few, all could cancel (0.9 m + 0.1 g = 0), so theirs keep their signs.
    """
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    grads: Grads = []
    for index, param in enumerate(params):
        scale = float(10.0 ** generator.uniform(-3, 1))
        grad = torch.randn_like(param) * scale
        if param.numel() < 32:
            grad = grad.abs() * (-1.0) ** index
        skips = not param.requires_grad or generator.random() < none_rate
        grads.append(None if skips else grad)
    return grads


class Case:
    """Groups of named parameters with settings; `defect` goes to the oracle."""

    def __init__(
        self, groups: list[dict[str, Any]], *, defect: str | None = None, **settings: Any
    ) -> None:
        """`groups`: dicts of settings with `params` = (name, parameter) pairs."""
        self.named = [pair for group in groups for pair in group["params"]]
        self.params: list[nn.Parameter] = [param for _, param in self.named]
        settings = {"lr": 0.1, **settings}
        shared = {key: settings.pop(key) for key in PER_OPTIMIZER if key in settings}
        self.oracle = Oracle(
            [{**settings, **group, "params": _arrays(group["params"])} for group in groups],
            defect=defect,
            **shared,
        )
        self.opt = BertAdam([_as_torch(group) for group in groups], **settings, **shared)

    def step(self, grads: Grads, checks: tuple[str, ...] = ALL_CHECKS) -> list[Update | None]:
        """Step both and compare; AssertionError names the tensor that differs."""
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad
        before = [flat(param) for param in self.params]
        self.opt.step()
        updates = self.oracle.step([None if grad is None else flat(grad) for grad in grads])
        self.compare(before, updates, checks)
        return updates

    def compare(
        self, before: list[np.ndarray], updates: list[Update | None], checks: tuple[str, ...]
    ) -> None:
        rows = zip(self.params, self.oracle.params, before, updates, strict=True)
        for param, expected, p_old, update in rows:
            state = self.opt.state.get(param)
            if state is None:
                assert not param.requires_grad, f"{expected.name}: has no state"
                assert update is None
                continue
            if "step" in checks:
                check_step(expected.name, state["step"].item(), expected.step)
            if "moments" in checks:
                check_moments(f"{expected.name}.exp_avg", flat(state["exp_avg"]), expected.m)
                check_moments(f"{expected.name}.exp_avg_sq", flat(state["exp_avg_sq"]), expected.v)
            if update is None:
                assert flat(param).tobytes() == p_old.tobytes(), f"{expected.name}: was written"
            elif "update" in checks:
                check_update(expected.name, p_old, flat(param), update.u, update.lr)


def _as_torch(group: dict[str, Any]) -> dict[str, Any]:
    names, params = zip(*group["params"], strict=True)
    return {**group, "params": list(params), "param_names": list(names)}


def _arrays(named: list[tuple[str, nn.Parameter]]) -> list[tuple[str, np.ndarray]]:
    return [(name, flat(param)) for name, param in named]


def random_groups(seed: int, n_groups: int = 3, **fixed: Any) -> list[dict[str, Any]]:
    """`many_shapes` dealt to groups with random settings; `fixed` holds for every group."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    named = many_shapes()
    owners = generator.integers(n_groups, size=len(named))
    owners[:n_groups] = range(n_groups)

    def choice(*options: Any) -> Any:
        return options[generator.integers(len(options))]

    return [
        {
            "params": [named[i] for i in np.flatnonzero(owners == index)],
            "lr": choice(0.02, 0.05, 0.1),
            "b1": choice(0.9, 0.5, 0.0),
            "b2": choice(0.999, 0.98),
            "e": choice(1e-6, 1e-8, 1e-3),
            "weight_decay": choice(0.01, 0.1),
            "bias_correction": bool(generator.integers(2)),
            "maximize": bool(generator.integers(2)),
            "warmup": choice(-1, 0, 0.1, 0.3),
            "t_total": choice(-1, 12, 25, 60),
            **fixed,
        }
        for index in range(n_groups)
    ]


def snapshot(opt: BertAdam) -> dict[str, Any]:
    """Bits of all parameters, gradients and state, and the groups' settings."""
    params = [param for group in opt.param_groups for param in group["params"]]
    return {
        "params": [bits(p) for p in params if p.layout == torch.strided and not p.is_meta],
        "state": [
            {key: bits(value) for key, value in opt.state[p].items()} if p in opt.state else None
            for p in params
        ],
        "groups": [
            {key: value for key, value in group.items() if key != "params"}
            for group in opt.param_groups
        ],
    }


def one_parameter(
    values: Any, grad: Any, make: Callable[..., BertAdam] = BertAdam, **settings: Any
) -> tuple[nn.Parameter, BertAdam]:
    """A parameter with its gradient set and an optimizer for it alone."""
    param = nn.Parameter(torch.as_tensor(values, dtype=torch.float32).clone())
    param.grad = None if grad is None else torch.as_tensor(grad, dtype=torch.float32).clone()
    return param, make([param], **{"lr": 0.1, **settings})


def trained(n_steps: int = 2, **settings: Any) -> BertAdam:
    """An optimizer with two named groups, gradients set and some steps done."""
    torch.manual_seed(0)
    groups = [
        {"params": [(name, nn.Parameter(torch.randn(3, 4))) for name in names]}
        for names in (("a.weight", "a.bias"), ("b.weight", "b.bias"))
    ]
    opt = BertAdam(groups, **{"lr": 0.1, "t_total": 100, **settings})
    for group in opt.param_groups:
        for param in group["params"]:
            param.grad = torch.randn_like(param)
    for _ in range(n_steps):
        opt.step()
    return opt


def parameter(opt: BertAdam, index: int = 1) -> nn.Parameter:
    return opt.param_groups[1]["params"][index]


def assert_step_is_refused(
    opt: BertAdam, message: str, before: dict[str, Any] | None = None, keep: bool = True
) -> None:
    before = snapshot(opt) if before is None else before
    with pytest.raises(REFUSED, match=message):
        opt.step()
    if keep:
        assert snapshot(opt) == before
