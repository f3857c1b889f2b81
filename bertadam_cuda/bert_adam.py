"""BertAdam: the optimizer that BERT was pretrained with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from . import _checkpoint_reference, schedules
from ._optimizer import FusedOptimizer
from ._settings import check_number


class BertAdam(FusedOptimizer):
    r"""Update parameters by Adam without bias correction, with decoupled decay and clipping.

    For each parameter p with a gradient g, at its own step t (counted from 0)::

        c = min(1, max_grad_norm / (||g|| + 1e-6))        if max_grad_norm > 0, else 1
        m = b1 * m + (1 - b1) * c * g
        v = b2 * v + (1 - b2) * (c * g)**2
        u = m / (sqrt(v) + e)
        u = u + weight_decay * p                          if weight_decay > 0
        p = p - lr * multiplier(t) * u;    t = t + 1

    so that with a warm-up the first update has lr 0. One launch per device does all of it for all
    parameters; all arithmetic and the moments are float32, whatever the parameters are, and CPU and
    GPU compute the same bits.

    Args:
        params: parameters, (name, parameter) pairs, or groups (dicts) that may override every
            setting below but those marked *. float32, bfloat16 or float16, each with gradients of
            any of these, in any mixture; dense in memory up to a permutation of the dimensions, on
            the CPU or CUDA devices (one launch each).
        lr: base learning rate, >= 0, in units of p; `group['lr']` is read at every step, so torch's
            lr schedulers work (on top of an own schedule they multiply, with one warning). Also a
            tensor of one element, see Adam.
        warmup: fraction of t_total spent on the warm-up, in [0, 1), or -1 for none (default).
        t_total: updates in the schedule, > 0, or -1 for a constant lr (default). Past it the lr
            keeps its value at t_total, with one warning.
        schedule: one of `bertadam_cuda.SCHEDULES`, or a callable position -> multiplier.
            Default 'warmup_linear'.
        b1, b2: decay rates of the moments, in [0, 1). Defaults 0.9, 0.999.
        e: added to sqrt(v), >= 0. Default 1e-6. With e=0 a zero moment gives a zero update.
        weight_decay: factor of p in the update, > 0; <= 0 is none. Default 0.01.
        max_grad_norm: limit of the norm; <= 0 turns clipping off. Default 1.0.
        clip*: 'per_tensor' (default, as the original), or 'global': one norm over all parameters,
            each group against its own limit (as google-research/bert).
        bias_correction: divide m by 1 - b1**(t+1) and v by 1 - b2**(t+1). Default False: early
            updates are larger than Adam's, 3.16 times at the first, at most 6.57 times.
        schedule_args: what the schedule takes beside t_total and warmup, e.g.
            {'decay_rate': 0.9, 'decay_steps': 250}. Default None.
        on_nonfinite*: 'skip' leaves everything that a non-finite norm covers as it is, step
            included; 'propagate' lets NaN through. Default None: 'skip' wherever a norm is
            computed, 'propagate' elsewhere. An explicit 'skip' without clipping buys a norm pass.
            A gradient scaler that finds one skips the whole step, whatever this is.
        master_weights*: what parameters of 16 bits are computed from; float32 ones need nothing.
            None (default): from themselves, rounded to nearest even after each step, which loses
            updates below half a unit in their last place. 'fp32': from a float32 copy in the
            state. 'remainder' (bfloat16 only): from the parameter and 16 bits more in the state,
            together the same float32; the parameter is rounded to nearest, ties away from zero.
            Masters begin as the parameter's value. If somebody else writes a parameter, call
            `sync_master_weights()`: else 'fp32' overwrites it at the next step, and 'remainder'
            adds its old remainder to it.
        stochastic_rounding*: round bfloat16 parameters without masters up or down at random so
            that the expectation is exact. Default False.
        rounding_seed*: of the random bits, in [0, 2**64). Default 0. The bits of an element depend
            on nothing but the seed, the parameter's place in param_groups, its step and the
            element's place in its memory: a resumed run continues with the same.
        capturable*: whether a CUDA graph may capture `step()`, whose docstring says how. Every
            multiplier is then computed before the first step (a million take about a second), for
            2**24 updates at most; a callable schedule needs t_total. Default False.
        maximize: ascend. Default False.

    With a gradient scaler (torch.amp.GradScaler, or `bertadam_cuda.amp.GradScaler`, which reads the
    gradients once less) the step itself divides by the scale: g is the gradient of the unscaled
    loss, c / scale one factor, rounded once.

    State per parameter: 'step' (0-dim float32), 'exp_avg' = m, 'exp_avg_sq' = v (float32, shape and
    layout of p); with master_weights also 'master_param' (float32) or 'param_remainder' (int16);
    after `reset_schedule` or with capturable=True also 'schedule_start', 'bias_correction_start'.
    The first step creates it for every parameter that requires grad. A step in which every lr is 0
    and every gradient is 0 does not count (an lr on the device is not known to be 0).

    Raises:
        ValueError, TypeError: bad settings, here or at the step after they were changed; parameters
            of another dtype, with gaps, overlapping, or sharing memory; float16 parameters with
            'remainder' or stochastic_rounding; masters that do not fit master_weights any more.
        RuntimeError: parameters on the meta device; sparse gradients; a capture that cannot be.

    Source: names, order, defaults and update of BertAdam in DeepSpeedExamples'
    bing_bert/pytorch_pretrained_bert/optimization.py. Differences: gradients are only read (the
    original scales p.grad in place); moments are float32 and norms float64 sums; non-finite
    gradients are skipped; all schedules work by name, and past t_total none turns negative or rises
    again; `get_lr` and `load_state_dict` as their docstrings say.

    Example:
        >>> import torch
        >>> from bertadam_cuda import BertAdam
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = BertAdam(model.parameters(), lr=1e-3, warmup=0.1, t_total=100)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> int(optimizer.state[model.weight]["step"])
        1
    """

    _rule_keys = ("b1", "b2", "e", "weight_decay")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float | Tensor,
        warmup: float = -1,
        t_total: float = -1,
        schedule: schedules.Schedule = "warmup_linear",
        b1: float = 0.9,
        b2: float = 0.999,
        e: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        *,
        clip: str = "per_tensor",
        bias_correction: bool = False,
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
            "warmup": warmup,
            "t_total": t_total,
            "schedule": schedule,
            "b1": b1,
            "b2": b2,
            "e": e,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "clip": clip,
            "bias_correction": bias_correction,
            "schedule_args": schedule_args,
            "on_nonfinite": on_nonfinite,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "rounding_seed": rounding_seed,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def _check_rule(self, group: dict[str, Any], where: str) -> None:
        check_number(group["b1"], "b1", where, least=0.0, below=1.0)
        check_number(group["b2"], "b2", where, least=0.0, below=1.0)
        check_number(group["e"], "e", where, least=0.0)
        check_number(group["weight_decay"], "weight_decay", where)

    def _rule_name(self, groups: list[dict[str, Any]]) -> str:
        return "Adam"

    def _rule_settings(self, group: dict[str, Any]) -> dict[str, float]:
        return {
            "beta1": group["b1"],
            "beta2": group["b2"],
            "eps": group["e"],
            "weight_decay": group["weight_decay"],
        }

    def to_reference_state_dict(self) -> dict[str, Any]:
        """Return a state dict in the layout of DeepSpeedExamples' BertAdam; nothing is aliased.

        State per parameter: 'step' (int), 'next_m', 'next_v'. Raises ValueError where a schedule
        is a callable. Synchronises on CUDA.
        """
        return _checkpoint_reference.to_reference(self)
