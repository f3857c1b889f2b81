"""LAMB with the arguments of apex FusedLAMB, and NVLAMB."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from . import schedules
from ._betas import as_numbers, check_betas
from ._optimizer import FusedOptimizer
from ._settings import check_flags, check_number


class LAMB(FusedOptimizer):
    r"""Update parameters by LAMB as apex FusedLAMB does, in one launch per device.

    For each parameter p with a gradient g, at its own step t (counted from 1), n being the norm of
    all gradients::

        c = min(1, max_grad_norm / n)                     if max_grad_norm > 0, else 1
        g = c * g                                         -c * g if maximize
        g = g + weight_decay * p                          unless adam_w_mode
        m = beta1 * m + (1 - beta1) * g                   without (1 - ...) unless grad_averaging
        v = beta2 * v + (1 - beta2) * g**2
        u = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps)
        u = u + weight_decay * p                          if adam_w_mode
        r = ||p|| / ||u||                                 if weight_decay != 0 or use_nvlamb
                                                          and neither norm is 0; else 1
        p = p - lr * multiplier(t - 1) * r * u

    The norms of p and u are those of the one parameter: of its master, where it has one. All
    arithmetic and the moments are float32, norms are float64 sums, and CPU and GPU compute the same
    bits.

    Args:
        params: parameters, (name, parameter) pairs, or groups (dicts) that may override every
            setting below but those marked *. For dtypes and layouts see BertAdam.
        lr: learning rate, >= 0. Default 1e-3. Also a tensor of one element on the CPU, see Adam.
        bias_correction: default True; False leaves out 1 - beta1**t and 1 - beta2**t.
        betas: decay rates of the moments, a tuple of two numbers in [0, 1). Default (0.9, 0.999).
        eps: added to the root, >= 0. Default 1e-6.
        weight_decay: factor of p, >= 0. Default 0.01. With 0 a group has no trust ratio either, so
            that biases and norms are usually one: see `param_groups_weight_decay`.
        amsgrad: only False: LAMB has no such variant.
        adam_w_mode: default True: the decay is part of the update. False: of the gradient.
        grad_averaging: default True; False adds g to m as it is.
        set_grad_none*: what zero_grad() does by default: True (default) removes gradients, False
            fills them with zeros.
        max_grad_norm: limit of the norm, each group's own; <= 0 turns clipping off. Default 1.0.
        use_nvlamb: NVLAMB: a trust ratio for every parameter, decayed or not. Default False, which
            is what NVIDIA's BERT scripts for PyTorch use.
        pre_normalize: 'clip' (default); 'always': c = max_grad_norm / n also where that is above 1
            (c = 1 for n = 0), as NVIDIA's article on NVLAMB words it.
        clip*: 'global' (default), one norm over all parameters; or 'per_tensor'.
        schedule, warmup, t_total, schedule_args: a schedule of the lr beside torch's schedulers,
            see BertAdam. Default 'none'. NVIDIA's for BERT is 'warmup_poly'.
        on_nonfinite*, master_weights*, stochastic_rounding*, rounding_seed*: see BertAdam.
        maximize: ascend. Default False.
        capturable*: whether a CUDA graph may capture `step()`, see BertAdam. Default False.

    State per parameter: 'step' (0-dim float32), 'exp_avg' = m, 'exp_avg_sq' = v (float32, shape and
    layout of p); masters as BertAdam's. The first step creates it for every parameter that requires
    grad. `trust_ratios` has the last step's r.

    Checkpoints of apex (FusedLAMB, FusedAdam), torch's Adam and AdamW, and the other classes here
    give moments and steps; settings stay.

    Raises: as BertAdam.

    Source: names, order, defaults and update of apex/optimizers/fused_lamb.py, after You et al.
    2020 (https://arxiv.org/abs/1904.00962), algorithm 2. Differences: gradients are only read (apex
    leaves u in p.grad, rounded to its dtype before its norm is taken); max_grad_norm <= 0 turns
    clipping off (apex: 0 clears all gradients, a negative one turns them around) and is each
    group's own (apex: the constructor's for all); steps are counted per parameter, not per group;
    moments are float32 also for parameters of 16 bits; bfloat16 works; non-finite gradients are
    skipped; a step in which every lr is 0 and every gradient is 0 does not count; with eps=0 a zero
    moment gives a zero quotient; amsgrad raises ValueError. adam_w_mode and use_nvlamb are settings
    of groups and saved.

    Example:
        >>> import torch
        >>> from bertadam_cuda import LAMB, param_groups_weight_decay
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LAMB(param_groups_weight_decay(model, 0.01), lr=6e-3)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.trust_ratios.shape
        torch.Size([2])
    """

    _rule_keys = (
        *("betas", "eps", "weight_decay", "amsgrad", "adam_w_mode", "grad_averaging"),
        *("set_grad_none", "use_nvlamb", "pre_normalize"),
    )
    _rule_per_optimizer = ("set_grad_none",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        adam_w_mode: bool = True,
        grad_averaging: bool = True,
        set_grad_none: bool = True,
        max_grad_norm: float = 1.0,
        use_nvlamb: bool = False,
        *,
        pre_normalize: str = "clip",
        clip: str = "global",
        schedule: schedules.Schedule = "none",
        warmup: float = -1,
        t_total: float = -1,
        schedule_args: dict[str, float] | None = None,
        on_nonfinite: str | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": as_numbers(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "adam_w_mode": adam_w_mode,
            "grad_averaging": grad_averaging,
            "set_grad_none": set_grad_none,
            "max_grad_norm": max_grad_norm,
            "use_nvlamb": use_nvlamb,
            "pre_normalize": pre_normalize,
            "clip": clip,
            "schedule": schedule,
            "warmup": warmup,
            "t_total": t_total,
            "schedule_args": schedule_args,
            "on_nonfinite": on_nonfinite,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "rounding_seed": rounding_seed,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch.optim.Optimizer does; one that is refused leaves no trace."""
        if isinstance(param_group, dict) and "betas" in param_group:
            param_group["betas"] = as_numbers(param_group["betas"])
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Remove gradients, or fill them with zeros.

        Args:
            set_to_none: True or False as in torch.optim.Optimizer; None (default) is the setting
                set_grad_none.
        """
        if set_to_none is None:
            set_to_none = self.param_groups[0]["set_grad_none"]
        super().zero_grad(set_to_none=set_to_none)

    def _check_rule(self, group: dict[str, Any], where: str) -> None:
        check_betas(group["betas"], where)
        check_number(group["eps"], "eps", where, least=0.0)
        check_number(group["weight_decay"], "weight_decay", where, least=0.0)
        flags = ("amsgrad", "adam_w_mode", "grad_averaging", "set_grad_none", "use_nvlamb")
        check_flags(group, flags, where)
        if group["amsgrad"]:
            raise ValueError(
                f"{where}: amsgrad is True, expected False; LAMB has no AMSGrad variant"
            )
        if group["pre_normalize"] not in ("clip", "always"):
            raise ValueError(
                f"{where}: pre_normalize is {group['pre_normalize']!r}, expected one of 'clip', "
                "'always'"
            )
        if group["pre_normalize"] == "always" and not 0 < group["max_grad_norm"] < math.inf:
            raise ValueError(
                f"{where}: pre_normalize is 'always' and max_grad_norm is "
                f"{group['max_grad_norm']}, which is then the norm of all gradients; expected a "
                "finite number > 0"
            )

    def _rule_name(self, groups: list[dict[str, Any]]) -> str:
        return "Lamb"

    def _rule_settings(self, group: dict[str, Any]) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        decay = "weight_decay" if group["adam_w_mode"] else "l2_decay"
        return {
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": 0.0,
            decay: group["weight_decay"],
            "grad_averaging": group["grad_averaging"],
            "adapts": group["use_nvlamb"] or group["weight_decay"] != 0,
            "clip_epsilon": 0.0,
            "normalizes_always": group["pre_normalize"] == "always",
        }
