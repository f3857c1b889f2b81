"""Adam and AdamW beside torch's in float64: the same parameters, gradients and settings.

torch's optimizer is the oracle (`foreach=False` is its single-tensor loop). After every step the
states, and (p_old - p_new) / lr, are compared; between the steps the oracle's parameters are set to
ours, so that what is compared is a step and no sum of roundings of p.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from backends import Grads, Twin
from torch import Tensor, nn

from bertadam_cuda import Adam, AdamW

#: Ours and torch's by name.
CLASSES: dict[str, tuple[type[Adam], type[torch.optim.Adam]]] = {
    "Adam": (Adam, torch.optim.Adam),
    "AdamW": (AdamW, torch.optim.AdamW),
}
STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
SIZES = (1, 7, 1023, 1025, 5000)


def all_options() -> dict[str, dict[str, Any]]:
    """Every combination of amsgrad, maximize, weight_decay and its kind, by a readable name."""
    cases = {}
    for amsgrad, maximize, decay in itertools.product((False, True), (False, True), (0.0, 0.1)):
        for kind in ("Adam", "Adam decoupled", "AdamW"):
            name = " ".join(
                [kind, *["amsgrad"] * amsgrad, *["maximize"] * maximize, *["decay"] * (decay > 0)]
            )
            options: dict[str, Any] = {"amsgrad": amsgrad, "maximize": maximize}
            options |= {"weight_decay": decay}
            options |= {"decoupled_weight_decay": True} if kind == "Adam decoupled" else {}
            cases[name] = {"kind": kind.split()[0], **options}
    return cases


def make_params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(size)) for size in SIZES]


def doubles(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().double()) for param in params]


def draw_grads(params: list[nn.Parameter], step: int) -> list[Tensor]:
    """Of sizes that change with the step, so that AMSGrad's maximum is an old one at times."""
    torch.manual_seed(step)
    scale = 10.0 ** float(torch.empty(()).uniform_(-2, 1))
    return [torch.randn_like(param) * scale for param in params]


class Pair:
    """One of our optimizers and the oracle."""

    def __init__(self, kind: str = "Adam", **settings: Any) -> None:
        """`settings`: of both; a `defect` is a dict of other settings for ours."""
        defect = settings.pop("defect", {})
        ours, theirs = CLASSES[kind]
        torch.manual_seed(0)
        self.params = make_params()
        self.twins = doubles(self.params)
        #: What the states would come to without signs: L2 decay and gradient may cancel.
        self.sizes = {key: [torch.zeros_like(twin) for twin in self.twins] for key in STATES}
        settings = {"lr": 0.01, "eps": 1e-6, **settings}
        self.opt = ours(self.params, **{**settings, **defect})
        self.oracle = theirs(self.twins, foreach=False, **settings)

    def step(self, index: int) -> None:
        """Step both with the same gradients."""
        decay = self.oracle.param_groups[0]["weight_decay"]
        for i, grad in enumerate(draw_grads(self.params, index)):
            param, twin = self.params[i], self.twins[i]
            with torch.no_grad():
                twin.copy_(param)
            param.grad, twin.grad = grad, grad.double()
            self._grow(i, twin.grad.abs() + decay * twin.detach().abs())
        self.before = [param.detach().double() for param in self.params]
        self.opt.step()
        self.oracle.step()

    def _grow(self, i: int, grad: Tensor) -> None:
        sizes, (beta1, beta2) = self.sizes, self.oracle.param_groups[0]["betas"]
        m, v = sizes["exp_avg"][i], sizes["exp_avg_sq"][i]
        sizes["exp_avg"][i] = beta1 * m + (1 - beta1) * grad
        sizes["exp_avg_sq"][i] = beta2 * v + (1 - beta2) * grad.square()
        largest = torch.maximum(sizes["max_exp_avg_sq"][i], sizes["exp_avg_sq"][i])
        sizes["max_exp_avg_sq"][i] = largest

    def check(self) -> None:
        """Compare what the last step wrote; AssertionError names what differs.

        A moment has taken one rounding of 6e-8 a step, of what it is made of; they wander, and old
        ones decay with it. An update has those of the moments and some more, and p one of its own.
        """
        for i, (param, twin) in enumerate(zip(self.params, self.twins, strict=True)):
            state, expected = self.opt.state[param], self.oracle.state[twin]
            assert set(state) == set(expected)
            assert float(state["step"]) == float(expected["step"])
            for key in set(expected) - {"step"}:
                within(f"{key} of {i}", state[key] - expected[key], 2e-6 * self.sizes[key][i])
            lr = self.oracle.param_groups[0]["lr"]
            u, moved = ((self.before[i] - new.detach().double()) / lr for new in (twin, param))
            ulp = 2.0**-23 * torch.maximum(self.before[i].abs(), twin.detach().abs())
            within(f"update of {i}", moved - u, 1e-5 * self._update_size(i) + ulp / lr)

    def _update_size(self, i: int) -> Tensor:
        """What the addends of an update would come to without signs, and with an exact root."""
        group, expected = self.oracle.param_groups[0], self.oracle.state[self.twins[i]]
        t, (beta1, beta2) = float(expected["step"]), group["betas"]
        key = "max_exp_avg_sq" if "max_exp_avg_sq" in expected else "exp_avg_sq"
        root = (expected[key] / (1 - beta2**t)).sqrt() + group["eps"]
        moment = self.sizes["exp_avg"][i] / (1 - beta1**t) / root
        return (
            moment * self.sizes[key][i] / expected[key]
            + group["weight_decay"] * self.before[i].abs()
        )


def within(name: str, error: Tensor, limit: Tensor) -> None:
    # Written so that NaN fails.
    worst = float((error.abs() / limit.clamp_min(1e-300)).max())
    assert worst <= 1, f"{name}: {worst:.3g} times its tolerance"


def train(optimizer: torch.optim.Optimizer, steps: range) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in steps:
        for param, grad in zip(params, draw_grads(params, step), strict=True):
            param.grad = grad
        optimizer.step()


def params_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def clones(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return copy.deepcopy(params)


def adam_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Three groups that differ in everything a group may differ in."""
    settings: list[dict[str, Any]] = [
        {"weight_decay": 0.1},
        {"lr": 0.3, "betas": (0.8, 0.99), "maximize": True},
        {"weight_decay": 0.2, "decoupled_weight_decay": True, "eps": 1e-3, "t_total": 7},
    ]
    return [{"params": params[i::3], **group} for i, group in enumerate(settings)]


class AdamTwin(Twin):
    """Adam in the place of BertAdam, for `backends.run`."""

    make = Adam
    groups = staticmethod(adam_groups)

    def step(self, grads: Grads) -> None:
        """One norm over all would skip every step: some gradient is never finite."""
        if self.opt.param_groups[0]["clip"] == "global":
            grads = [g if g is None else g.nan_to_num_(1.0, 1.0, -1.0) for g in grads]
        super().step(grads)
