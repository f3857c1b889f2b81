"""LARS: momentum with a learning rate for every layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from . import schedules
from ._optimizer import FusedOptimizer
from ._settings import check_flags, check_number


class LARS(FusedOptimizer):
    r"""Update parameters by LARS, momentum with layer-wise rates, in one launch per device.

    For each parameter p with a gradient g, at its own step t (counted from 0)::

        c = min(1, max_grad_norm / (||g|| + 1e-6))        if max_grad_norm > 0, else 1
        g = c * g                                         -c * g if maximize
        r = trust_coefficient * ||p|| / (||g|| + weight_decay * ||p|| + eps)
                                                          if adapt and neither norm is 0; else 1
        d = lr * multiplier(t) * r * (g + weight_decay * p)
        b = momentum * b + d
        p = p - b                                         p - (momentum * b + d) if nesterov

    The norm of p is that of its master, where it has one. All arithmetic and the buffer are
    float32, norms are float64 sums, and CPU and GPU compute the same bits.

    Args:
        params: parameters, (name, parameter) pairs, or groups (dicts) that may override every
            setting below but those marked *. Groups of biases and norms usually have
            {'adapt': False, 'weight_decay': 0.0}. For dtypes and layouts see BertAdam.
        lr: learning rate, >= 0. Also a tensor of one element on the CPU, see Adam.
        momentum: decay rate of the buffer, in [0, 1). Default 0.9.
        weight_decay: factor of p, >= 0. Default 0.
        trust_coefficient: factor of the ratio of the norms, >= 0. Default 0.001.
        eps: added to the denominator of the ratio, >= 0. Default 1e-8.
        nesterov: default False. True needs a momentum.
        adapt: False: r = 1, momentum as it always was. Default True.
        max_grad_norm: limit of the norm; <= 0 turns clipping off. Default 0.0.
        clip*: 'global' (default), one norm over all parameters; or 'per_tensor'.
        schedule, warmup, t_total, schedule_args: a schedule of the lr beside torch's schedulers,
            see BertAdam. Default 'none'.
        bias_correction: only False: the buffer is no average.
        on_nonfinite*: see BertAdam. The norms in r do not count: without clipping None is
            'propagate', and 'skip' buys a pass over the gradients.
        master_weights*, stochastic_rounding*, rounding_seed*: see BertAdam.
        maximize: ascend. Default False.
        capturable*: whether a CUDA graph may capture `step()`, see BertAdam. Default False.

    State per parameter: 'step' (0-dim float32), 'momentum_buffer' = b (float32, shape and layout of
    p); masters as BertAdam's. The first step creates it for every parameter that requires grad.
    `trust_ratios` has the last step's r.

    Checkpoints of torch's SGD, also under apex LARC, give their buffers times the file's lr, which
    here is part of them. Steps begin at 0, since SGD counts none; settings stay.

    Raises: as BertAdam.

    Source: You, Gitman, Ginsburg 2017 (https://arxiv.org/abs/1708.03888), algorithm 1; eps and the
    cases of a zero norm are apex's. Differences of apex LARC (apex/parallel/LARC.py): it multiplies
    p.grad by r and leaves the rest to torch's SGD, which takes the lr after the buffer, so that a
    new lr acts on old gradients at once; by default it uses min(r / lr, 1) for r and a
    trust_coefficient of 0.02; where a norm is 0 it does not decay.

    Example:
        >>> import torch
        >>> from bertadam_cuda import LARS
        >>> model = torch.nn.Linear(4, 2)
        >>> groups = [{"params": [model.weight]}, {"params": [model.bias], "adapt": False}]
        >>> optimizer = LARS(groups, lr=1.0, weight_decay=1e-4)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> float(optimizer.trust_ratios[1])
        1.0
    """

    _rule_keys = (
        *("momentum", "weight_decay", "trust_coefficient", "eps", "nesterov"),
        "adapt",
    )

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        nesterov: bool = False,
        *,
        adapt: bool = True,
        max_grad_norm: float = 0.0,
        clip: str = "global",
        schedule: schedules.Schedule = "none",
        warmup: float = -1,
        t_total: float = -1,
        schedule_args: dict[str, float] | None = None,
        bias_correction: bool = False,
        on_nonfinite: str | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "nesterov": nesterov,
            "adapt": adapt,
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
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def _check_rule(self, group: dict[str, Any], where: str) -> None:
        check_number(group["momentum"], "momentum", where, least=0.0, below=1.0)
        for key in ("weight_decay", "trust_coefficient", "eps"):
            check_number(group[key], key, where, least=0.0)
        check_flags(group, ("nesterov", "adapt"), where)
        if group["nesterov"] and group["momentum"] == 0:
            raise ValueError(f"{where}: nesterov is True and momentum is 0, expected a momentum")
        if group["bias_correction"]:
            raise ValueError(
                f"{where}: bias_correction is True, expected False; the buffer of LARS is no "
                "average that begins at 0"
            )

    def _rule_name(self, groups: list[dict[str, Any]]) -> str:
        return "Lars"

    def _rule_settings(self, group: dict[str, Any]) -> dict[str, float]:
        return {
            "beta1": 0.0,
            "beta2": 0.0,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "momentum": group["momentum"],
            "nesterov": group["nesterov"],
            "trust_coefficient": group["trust_coefficient"],
            "adapts": group["adapt"],
        }
