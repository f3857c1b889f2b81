"""BertAdam in float64 NumPy, written from the semantics alone, and the comparison against it.

It never calls the package: schedules, clipping, skipping and counting are its own. The `check_*`
functions raise AssertionError with the tensor's name; the tests also show that each of them fails
for a small defect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEFAULTS: dict[str, Any] = {
    "warmup": -1,
    "t_total": -1,
    "schedule": "warmup_linear",
    "schedule_args": None,
    "b1": 0.9,
    "b2": 0.999,
    "e": 1e-6,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "bias_correction": False,
    "maximize": False,
}
DEFECTS = ("no decay", "lr x 1.01", "step off by one", "last chunk skipped")
CHUNK = 1024  # smaller than any chunk of the kernels, so the smallest part that one could forget


def expected_multiplier(
    schedule: str, position: int, warmup: float, t_total: float, args: dict[str, float] | None
) -> float:
    """Multiplier of lr inside an optimizer, from the table of formulas; args are complete."""
    if t_total == -1 or schedule == "none":
        return 1.0
    args = args or {}
    position = min(max(position, 0), t_total)
    x = position / t_total
    w = max(warmup, 0.0)
    stays_at_one = warmup == 0.0 and schedule in (
        "warmup_linear",
        "warmup_linear_decay_exp",
        "warmup_exp_decay_exp",
    )
    if stays_at_one:
        return 1.0
    if schedule == "warmup_cosine_warmup_restarts":
        cycles = args.get("cycles", 1)
        w *= cycles
        x = x * cycles - math.floor(x * cycles) if x < 1 else 1 - (math.ceil(cycles) - cycles)
    if x < w:
        powers = {
            "warmup_exp_decay_exp": args.get("degree", 2.0),
            "warmup_exp_decay_poly": args.get("warm_degree", 1.5),
        }
        return math.pow(x / w, powers.get(schedule, 1.0))
    y = (x - w) / (1 - w)
    match schedule:
        case "warmup_cosine":
            return math.cos(math.pi * x / 2) ** 2
        case "warmup_constant":
            return 1.0
        case "warmup_linear":
            return 1 - x
        case "warmup_linear_decay_exp" | "warmup_exp_decay_exp":
            exponent = (position - w * t_total) / args["decay_steps"]
            return math.exp(math.log(args["decay_rate"]) * exponent)
        case "warmup_exp_decay_poly":
            return math.pow(1 - x, args.get("degree", 2.0))
        case "warmup_poly":
            return math.pow(1 - x, args.get("degree", 0.5))
        case "warmup_linear_hf":
            return 1 - y
        case "warmup_cosine_hf":
            return math.cos(math.pi * args.get("cycles", 0.5) * y) ** 2
        case "warmup_cosine_hard_restarts":
            turns = args.get("cycles", 1) * y
            phase = turns - math.floor(turns) if x < 1 else 1 - (math.ceil(turns) - turns)
            return math.cos(math.pi * phase / 2) ** 2
        case "warmup_cosine_warmup_restarts":
            return math.cos(math.pi * y / 2) ** 2
    raise KeyError(schedule)


@dataclass
class OracleParam:
    """One parameter in float64, its moments and counters; arrays are flat."""

    name: str
    p: np.ndarray
    group: dict[str, Any]
    m: np.ndarray = field(init=False)
    v: np.ndarray = field(init=False)
    step: int = 0
    schedule_start: int = 0
    bias_correction_start: int = 0

    def __post_init__(self) -> None:
        self.p = np.asarray(self.p, dtype=np.float64).copy()
        self.m, self.v = np.zeros_like(self.p), np.zeros_like(self.p)

    def next_lr(self) -> float:
        """lr of the next update, rounded to float32 as the contract says."""
        group = self.group
        position = self.step - self.schedule_start
        factor = expected_multiplier(
            group["schedule"], position, group["warmup"], group["t_total"], group["schedule_args"]
        )
        return float(np.float32(group["lr"] * factor))


@dataclass
class Update:
    """What one step did to one parameter; None of it where there was no gradient or a skip."""

    name: str
    u: np.ndarray
    lr: float


class Oracle:
    """The whole optimizer: `groups` are dicts of settings with `params` = (name, array) pairs."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        clip: str = "per_tensor",
        on_nonfinite: str | None = None,
        defect: str | None = None,
    ) -> None:
        self.clip, self.on_nonfinite, self.defect = clip, on_nonfinite, defect
        self.params: list[OracleParam] = []
        self.norms: list[float] = []
        self.coefs: list[float] = []
        for group in groups:
            self.add_group(group)

    def add_group(self, group: dict[str, Any]) -> None:
        settings = {**DEFAULTS, **{key: group[key] for key in group if key != "params"}}
        for name, array in group["params"]:
            param = OracleParam(name, array, settings)
            param.step = 1 if self.defect == "step off by one" else 0
            self.params.append(param)

    def step(self, grads: Sequence[np.ndarray | None]) -> list[Update | None]:
        """Take one step; `grads` are flat arrays in the order of the parameters."""
        updates: list[Update | None] = [None] * len(self.params)
        given = [g is not None for g in grads]
        arrays = [np.zeros(0) if g is None else np.asarray(g, dtype=np.float64) for g in grads]
        with np.errstate(over="ignore"):
            self.norms = [math.sqrt(np.sum(g * g)) for g in arrays]
        self.coefs = [1.0] * len(self.params)
        if all(p.group["lr"] == 0 for p in self.params) and not any(g.any() for g in arrays):
            return updates
        any_clip = any(param.group["max_grad_norm"] > 0 for param in self.params)
        total = math.sqrt(sum(n * n for n in self.norms))
        for index, param in enumerate(self.params):
            if not given[index]:
                continue
            limit = param.group["max_grad_norm"]
            clips = any_clip if self.clip == "global" else limit > 0
            norm = total if self.clip == "global" else self.norms[index]
            if limit > 0:
                self.coefs[index] = math.nan if math.isnan(norm) else min(1, limit / (norm + 1e-6))
            skips = self.on_nonfinite == "skip" or (self.on_nonfinite is None and clips)
            if math.isfinite(norm) or not skips:
                updates[index] = self._update(param, arrays[index], self.coefs[index])
        return updates

    def _update(self, param: OracleParam, grad: np.ndarray, coef: float) -> Update:
        s = param.group
        g = (-grad if s["maximize"] else grad) * float(np.float32(coef))
        lr = param.next_lr() * (1.01 if self.defect == "lr x 1.01" else 1)
        m = param.m + (1 - s["b1"]) * (g - param.m)
        v = param.v + (1 - s["b2"]) * (g * g - param.v)
        t = param.step - param.bias_correction_start + 1
        m_hat = m / (1 - s["b1"] ** t) if s["bias_correction"] else m
        v_hat = v / (1 - s["b2"] ** t) if s["bias_correction"] else v
        with np.errstate(invalid="ignore", divide="ignore"):
            u = np.where(m == 0, 0.0, m_hat / (np.sqrt(v_hat) + s["e"]))
        if s["weight_decay"] > 0 and self.defect != "no decay":
            u = u + s["weight_decay"] * param.p
        done = len(param.p)
        if self.defect == "last chunk skipped" and done:
            done = (done - 1) // CHUNK * CHUNK
            u[done:] = 0.0
        param.m[:done], param.v[:done] = m[:done], v[:done]
        param.p = param.p - lr * u
        param.step += 1
        return Update(param.name, u, lr)


def check_moments(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Every element within 1e-6 of the tensor's largest: 20 roundings of 6e-8, at most."""
    limit = 1e-6 * np.abs(expected).max(initial=0.0)
    error = np.abs(found.astype(np.float64) - expected).max(initial=0.0)
    # Written so that NaN fails.
    assert error <= limit, f"{name}: differs by {error:.3g}, allowed {limit:.3g}"


def check_update(name: str, p_old: np.ndarray, p_new: np.ndarray, u: np.ndarray, lr: float) -> None:
    """(p_old - p_new) / lr within 1e-5 of u, relative to its largest, plus one ulp(p) / lr."""
    if lr == 0:
        assert p_old.tobytes() == p_new.tobytes(), f"{name}: changed although lr is 0"
        return
    moved = (p_old.astype(np.float64) - p_new.astype(np.float64)) / lr
    ulp = np.spacing(np.maximum(np.abs(p_old), np.abs(p_new))).astype(np.float64)
    limit = 1e-5 * np.abs(u).max(initial=0.0) + ulp / lr
    excess = (np.abs(moved - u) - limit).max(initial=-math.inf)
    assert excess <= 0, f"{name}: update exceeds its tolerance by {excess:.3g}"


def check_step(name: str, found: float, expected: int) -> None:
    assert found == expected, f"{name}: step is {found}, expected {expected}"
