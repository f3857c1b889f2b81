"""Adam and AdamW with the arguments and results of torch.optim's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from . import schedules
from ._betas import as_numbers, check_betas
from ._optimizer import FusedOptimizer
from ._settings import check_flags, check_number


class Adam(FusedOptimizer):
    r"""Update parameters by Adam as torch.optim.Adam does, in one launch per device.

    For each parameter p with a gradient g, at its own step t (counted from 1)::

        c = min(1, max_grad_norm / (||g|| + 1e-6))        if max_grad_norm > 0, else 1
        g = c * g                                         -c * g if maximize
        g = g + weight_decay * p                          unless decoupled_weight_decay
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = max(w, v)                                     if amsgrad, else v
        u = m / (1 - beta1**t) / (sqrt(w / (1 - beta2**t)) + eps)
        u = u + weight_decay * p                          if decoupled_weight_decay
        p = p - lr * multiplier(t - 1) * u

    All arithmetic and the moments are float32, whatever the parameters are, and CPU and GPU compute
    the same bits.

    Args:
        params: parameters, (name, parameter) pairs, or groups (dicts) that may override every
            setting below but those marked *. For dtypes and layouts see BertAdam.
        lr: learning rate, >= 0. Default 1e-3. A float, or a tensor of one element on the CPU, which
            is read at every step, so schedulers may write it in place. With capturable=True also
            one float32 or float64 on the parameters' CUDA device, where the steps read it; its
            value is looked at once, here. Otherwise every step would have to wait for it.
        betas: decay rates of the moments, a tuple of two numbers in [0, 1). Default (0.9, 0.999).
            Tensors are read once, here. A scheduler that changes them at every step (OneCycleLR
            with cycle_momentum=True) has a table of bias corrections made anew each time, which
            takes some 10 ms and, on CUDA, waits for the device.
        eps: added to the root, >= 0. Default 1e-8.
        weight_decay: factor of p, >= 0. Default 0.
        amsgrad*: divide by the root of the largest v so far. Default False.
        foreach, fused: accepted as torch has them, without effect: every step is one launch.
        maximize: ascend. Default False.
        capturable*: whether a CUDA graph may capture `step()`, see BertAdam. Default False.
        differentiable: only False: the step has no graph.
        decoupled_weight_decay: decay as AdamW does. Default False: the decay is part of the
            gradient, after clipping.
        max_grad_norm: limit of the norm; <= 0 turns clipping off. Default 0.0.
        clip*: 'global' (default), one norm over all parameters, as clip_grad_norm_ before the step;
            or 'per_tensor'.
        schedule, warmup, t_total, schedule_args: a schedule of the lr beside torch's schedulers,
            see BertAdam. Default 'none'.
        bias_correction: default True; False leaves out 1 - beta1**t and 1 - beta2**t.
        on_nonfinite*, master_weights*, stochastic_rounding*, rounding_seed*: see BertAdam.

    State per parameter: 'step' (0-dim float32), 'exp_avg' = m, 'exp_avg_sq' = v, and with amsgrad
    'max_exp_avg_sq' = w (float32, shape and layout of p); masters as BertAdam's. The first step
    creates it for every parameter that requires grad.

    Checkpoints of torch's Adam and AdamW load with their settings, amsgrad included, and continue;
    `state_dict()` loads into them. Files of BertAdam and apex give moments and steps.

    Raises: as BertAdam.

    Source: torch.optim.adam, `_single_tensor_adam` (torch 2.13). Differences: amsgrad must agree
    over all groups; moments are float32 also for parameters of 16 bits; 'step' is on the
    parameter's device; float64, complex and sparse tensors are refused; a step in which every lr is
    0 and every gradient is 0 does not count; with eps=0 a zero moment gives a zero update, not NaN.

    Example:
        >>> import torch
        >>> from bertadam_cuda import Adam
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = Adam(model.parameters(), lr=1e-3, amsgrad=True)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'step']
    """

    _rule_keys = (
        *("betas", "eps", "weight_decay", "amsgrad"),
        *("decoupled_weight_decay", "differentiable"),
    )
    _rule_per_optimizer = ("amsgrad",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float = 0.0,
        clip: str = "global",
        schedule: schedules.Schedule = "none",
        warmup: float = -1,
        t_total: float = -1,
        schedule_args: dict[str, float] | None = None,
        bias_correction: bool = True,
        on_nonfinite: str | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": as_numbers(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
            "max_grad_norm": max_grad_norm,
            "clip": clip,
            "schedule": schedule,
            "warmup": warmup,
            "t_total": t_total,
            "schedule_args": schedule_args,
            "bias_correction": bias_correction,
            "on_nonfinite": on_nonfinite,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "rounding_seed": rounding_seed,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch.optim.Optimizer does; one that is refused leaves no trace."""
        if isinstance(param_group, dict) and "betas" in param_group:
            param_group["betas"] = as_numbers(param_group["betas"])
        super().add_param_group(param_group)

    def _check_rule(self, group: dict[str, Any], where: str) -> None:
        check_betas(group["betas"], where)
        check_number(group["eps"], "eps", where, least=0.0)
        check_number(group["weight_decay"], "weight_decay", where, least=0.0)
        check_flags(group, ("amsgrad", "decoupled_weight_decay"), where)

    def _rule_name(self, groups: list[dict[str, Any]]) -> str:
        return "Amsgrad" if groups[0]["amsgrad"] else "Adam"

    def _rule_settings(self, group: dict[str, Any]) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        decay = "weight_decay" if group["decoupled_weight_decay"] else "l2_decay"
        return {
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": 0.0,
            decay: group["weight_decay"],
        }


class AdamW(Adam):
    r"""Update parameters by AdamW as torch.optim.AdamW does, in one launch per device.

    `Adam` with decoupled_weight_decay=True: the decay is scaled by the learning rate alone, and is
    no part of the moments::

        p = p - lr * (m / (1 - beta1**t) / (sqrt(w / (1 - beta2**t)) + eps) + weight_decay * p)

    Args: those of Adam without decoupled_weight_decay; weight_decay is 0.01 by default.

    Source: torch.optim.adamw (torch 2.13), after Loshchilov & Hutter 2019, algorithm 2.
    Differences: those of Adam. torch multiplies p by 1 - lr * weight_decay before it subtracts the
    rest, which is the same but for rounding.

    Example:
        >>> import torch
        >>> from bertadam_cuda import AdamW
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["weight_decay"]
        0.01
    """

    _fixed_settings = ("decoupled_weight_decay",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float = 0.0,
        clip: str = "global",
        schedule: schedules.Schedule = "none",
        warmup: float = -1,
        t_total: float = -1,
        schedule_args: dict[str, float] | None = None,
        bias_correction: bool = True,
        on_nonfinite: str | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            max_grad_norm=max_grad_norm,
            clip=clip,
            schedule=schedule,
            warmup=warmup,
            t_total=t_total,
            schedule_args=schedule_args,
            bias_correction=bias_correction,
            on_nonfinite=on_nonfinite,
            master_weights=master_weights,
            stochastic_rounding=stochastic_rounding,
            rounding_seed=rounding_seed,
        )

    def _check_rule(self, group: dict[str, Any], where: str) -> None:
        super()._check_rule(group, where)
        if not group["decoupled_weight_decay"]:
            raise ValueError(
                f"{where}: decoupled_weight_decay is False, expected True; use Adam for L2 decay"
            )
