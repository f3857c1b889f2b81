"""LAMB and LARS beside their references in float64: the same parameters, gradients and settings.

After every step the states, the trust ratios and (p_old - p_new) / lr are compared; the reference
begins each step from our parameters, so that what is compared is a step and no sum of roundings
of p. Its states, counters, norms and schedules are its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from adam_cases import AdamTwin, within
from oracle import expected_multiplier
from torch import Tensor, nn

from bertadam_cuda import LAMB, LARS
from bertadam_cuda.reference import (
    clip_coefficient,
    gradient_norm,
    lamb_clip_coefficient,
    lamb_step,
    lars_step,
)

Settings = dict[str, Any]
Shapes = Sequence[tuple[int, ...]]
ULP = 2.0**-23
#: A moment takes one or two roundings of 6e-8 a step, of what it is made of, and one of the
#: clipping coefficient; they wander, and old ones decay with it.
MOMENT = 2e-6
#: An update has those of the moments and some more.
UPDATE = 1e-5
#: Sums in double of floats, a division, and one rounding.
RATIO = 1e-6
SHAPES = ((33, 5), (40,), (), (0,), (1500,))
#: As many, of one to four parts on the CPU.
LARGE = ((300, 700), (65_536,), (1,), (0,), (65_537,))
ZERO_PARAM, ZERO_GRAD = 1, 4  # places in either


def make_params(n_groups: int, shapes: Shapes) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for _ in range(n_groups) for shape in shapes]


def draw_grads(params: Sequence[nn.Parameter], step: int) -> list[Tensor | None]:
    """Of many sizes; some None. In the last group one is always 0; elsewhere every third time."""
    torch.manual_seed(step)
    grads: list[Tensor | None] = []
    for i, param in enumerate(params):
        grad = torch.randn_like(param) * 10.0 ** float(torch.empty(()).uniform_(-2, 1))
        if i % len(SHAPES) == ZERO_GRAD and (i == len(params) - 1 or (i + step) % 3 == 0):
            grad.zero_()
        grads.append(None if (i + step) % 7 == 3 else grad)
    return grads


@dataclass
class Expected:
    """What the reference knows of one parameter."""

    settings: Settings
    states: dict[str, Tensor]
    #: What the states would come to without signs: L2 decay and gradient may cancel.
    sizes: dict[str, Tensor]
    step: int = 0
    schedule_start: int = 0
    correction_start: int = 0
    #: Of the last step, empty where there was no gradient: the change of the parameter over lr and
    #: how far it may be off, ratio and its relative tolerance.
    last: dict[str, Any] = field(default_factory=dict)

    def lr(self) -> float:
        s, position = self.settings, self.step - self.schedule_start
        args = s["warmup"], s["t_total"], s["schedule_args"]
        return float(s["lr"]) * expected_multiplier(s["schedule"], position, *args)


class Beside:
    """One of our optimizers and its reference."""

    make: Callable[..., Any]
    names: tuple[str, ...]
    limit_of: Callable[[Settings, float], float]  # settings, norm -> clipping coefficient

    def __init__(
        self,
        groups: Sequence[Settings] = ({},),
        shapes: Shapes = SHAPES,
        defect: Settings | None = None,
        **settings: Any,
    ) -> None:
        """`defect`: settings that ours gets in all groups, and the reference does not."""
        torch.manual_seed(0)
        self.params = make_params(len(groups), shapes)
        n, tensors = len(SHAPES), self.params
        self.opt = type(self).make(
            [{"params": tensors[i * n : i * n + n], **group} for i, group in enumerate(groups)],
            **settings,
        )
        zeros = [torch.zeros_like(param, dtype=torch.float64) for param in self.params]
        self.expected = [
            Expected(dict(group), dict.fromkeys(self.names, zero), dict.fromkeys(self.names, zero))
            for group, zero in zip(
                [group for group in self.opt.param_groups for _ in group["params"]],
                zeros,
                strict=True,
            )
        ]
        for group in self.opt.param_groups:
            group.update(defect or {})

    def adapts(self, settings: Settings) -> bool:
        raise NotImplementedError

    def move(self, of: Expected, p: Tensor, g: Tensor) -> None:
        """Take the reference's step with a clipped gradient, and set `of.last`."""
        raise NotImplementedError

    def step(self, index: int) -> None:
        """Step both with the same gradients; some parameters are 0 before."""
        grads = draw_grads(self.params, index)
        for i, (param, grad) in enumerate(zip(self.params, grads, strict=True)):
            param.grad = grad
            if i % len(SHAPES) == ZERO_PARAM and (i + index) % 3 == 0:
                param.data.zero_()
        self.before = [param.detach().double() for param in self.params]
        self.opt.step()
        total = gradient_norm(*[grad for grad in grads if grad is not None])
        for of, p, grad in zip(self.expected, self.before, grads, strict=True):
            of.last = {}
            if grad is not None:
                norm = total if of.settings["clip"] == "global" else gradient_norm(grad)
                sign = -1 if of.settings["maximize"] else 1
                factor = sign * type(self).limit_of(of.settings, norm)
                self.move(of, p, factor * grad.double())
                of.step += 1

    def check(self) -> None:
        """Compare what the last step wrote; AssertionError names what differs."""
        ratios = self.opt.trust_ratios
        for i, (param, of) in enumerate(zip(self.params, self.expected, strict=True)):
            state = self.opt.state[param]
            assert float(state["step"]) == of.step, f"step of {i}"
            for name in self.names:
                error = state[name] - of.states[name]
                if error.numel():
                    within(f"{name} of {i}", error, MOMENT * of.sizes[name])
            if not of.last:
                assert math.isnan(ratios[i]), f"ratio of {i}"
                assert torch.equal(param.double(), self.before[i]), f"update of {i}"
                continue
            error = ratios[i].double() - of.last["ratio"]
            within(f"ratio of {i}", error, torch.tensor(of.last["ratio"] * of.last["slack"]))
            now, lr = param.detach().double(), of.last["lr"]
            rounding = ULP * torch.maximum(self.before[i].abs(), now.abs())
            if now.numel():
                error = self.before[i] - now - lr * of.last["update"]
                within(f"update of {i}", error, lr * of.last["limit"] + rounding)


class LambBeside(Beside):
    make = LAMB
    names = ("exp_avg", "exp_avg_sq")

    @staticmethod
    def limit_of(settings: Settings, norm: float) -> float:
        always = settings["pre_normalize"] == "always"
        return lamb_clip_coefficient(norm, settings["max_grad_norm"], always)

    def adapts(self, settings: Settings) -> bool:
        return settings["use_nvlamb"] or settings["weight_decay"] > 0

    def move(self, of: Expected, p: Tensor, g: Tensor) -> None:
        s, decay = of.settings, of.settings["weight_decay"]
        l2, decoupled = (0.0, decay) if s["adam_w_mode"] else (decay, 0.0)
        beta1, beta2 = s["betas"]
        beta3 = 1 - beta1 if s["grad_averaging"] else 1.0
        t = of.step - of.correction_start + 1 if s["bias_correction"] else None
        options: Settings = {"betas": s["betas"], "eps": s["eps"], "bias_correction_step": t}
        options |= {"l2_decay": l2, "decoupled_decay": decoupled, "beta3": beta3}
        adapts = self.adapts(s)
        new = lamb_step(p, g, *of.states.values(), lr=of.lr(), adapts=adapts, **options)
        of.states = {"exp_avg": new.exp_avg, "exp_avg_sq": new.exp_avg_sq}
        size, (m, v) = g.abs() + l2 * p.abs(), of.sizes.values()
        m, v = beta1 * m + beta3 * size, beta2 * v + (1 - beta2) * size**2
        of.sizes = {"exp_avg": m, "exp_avg_sq": v}
        # The addends of the update without signs, and what cancels in v makes its root less exact.
        root = (new.exp_avg_sq / (1 if t is None else 1 - beta2**t)).sqrt() + s["eps"]
        quotient = (
            m / (1 if t is None else 1 - beta1**t) / root * v / new.exp_avg_sq.clamp_min(1e-60)
        )
        off = UPDATE * (quotient + decoupled * p.abs())
        length = gradient_norm(new.update)
        slack = RATIO + (gradient_norm(off) / length if adapts and length > 0 else 0.0)
        of.last = {"lr": of.lr(), "ratio": new.trust_ratio, "slack": slack}
        of.last["update"] = new.trust_ratio * new.update
        of.last["limit"] = new.trust_ratio * (off + slack * new.update.abs())


class LarsBeside(Beside):
    make = LARS
    names = ("momentum_buffer",)

    @staticmethod
    def limit_of(settings: Settings, norm: float) -> float:
        return clip_coefficient(norm, settings["max_grad_norm"])

    def adapts(self, settings: Settings) -> bool:
        return settings["adapt"]

    def move(self, of: Expected, p: Tensor, g: Tensor) -> None:
        s = of.settings
        keys = "momentum", "weight_decay", "trust_coefficient", "eps", "nesterov"
        options: Settings = {key: s[key] for key in keys}
        (buffer,), adapts = of.states.values(), self.adapts(s)
        new = lars_step(p, g, buffer, lr=of.lr(), adapts=adapts, **options)
        of.states = {"momentum_buffer": new.momentum_buffer}
        step = of.lr() * new.trust_ratio * (g.abs() + s["weight_decay"] * p.abs())
        size = s["momentum"] * of.sizes["momentum_buffer"] + step
        of.sizes = {"momentum_buffer": size}
        # The buffer has the learning rate in it: that of an update is 1.
        of.last = {"lr": 1.0, "ratio": new.trust_ratio, "slack": RATIO, "update": new.update}
        of.last["limit"] = MOMENT * (s["momentum"] * size + step if s["nesterov"] else size)


def compare(beside: Beside, n_steps: int, first: int = 0) -> None:
    for step in range(first, first + n_steps):
        beside.step(step)
        beside.check()


def lamb_groups(params: list[nn.Parameter]) -> list[Settings]:
    """Three groups that differ in everything a group may differ in."""
    settings: list[Settings] = [
        {"weight_decay": 0.1},
        {"lr": 0.3, "betas": (0.8, 0.99), "maximize": True, "grad_averaging": False},
        {"weight_decay": 0.2, "adam_w_mode": False, "eps": 1e-3, "t_total": 7, "warmup": 0.4},
    ]
    settings[2]["schedule"] = "warmup_poly"
    return [{"params": params[i::3], **group} for i, group in enumerate(settings)]


def lars_groups(params: list[nn.Parameter]) -> list[Settings]:
    """Three groups that differ in everything a group may differ in."""
    settings: list[Settings] = [
        {"weight_decay": 0.1, "trust_coefficient": 0.02},
        {"lr": 0.3, "adapt": False, "maximize": True, "momentum": 0.5},
        {"nesterov": True, "weight_decay": 0.2, "eps": 1e-3, "t_total": 7, "warmup": 0.4},
    ]
    settings[2]["schedule"] = "warmup_poly"
    return [{"params": params[i::3], **group} for i, group in enumerate(settings)]


class LambTwin(AdamTwin):
    """LAMB in the place of BertAdam, for `backends.run`."""

    make = LAMB
    groups = staticmethod(lamb_groups)


class LarsTwin(AdamTwin):
    """LARS in the place of BertAdam, for `backends.run`."""

    make = LARS
    groups = staticmethod(lars_groups)
