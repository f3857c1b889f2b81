"""The formulas of the learning-rate schedules, each once, as training scripts call them.

They give what their originals give, also outside [0, 1]; clamping belongs to the optimizer's use
of them (`schedules`). This file knows neither torch nor the optimizers.
"""

from __future__ import annotations

import math


def warmup_cosine(x: float, warmup: float = 0.002) -> float:
    """Return x/warmup in the warm-up, then (1 + cos(pi x)) / 2.

    Args:
        x: fraction of the training done, step / total steps.
        warmup: fraction of the training spent on the linear ramp.

    The cosine is not rebased to the end of the warm-up. As in DeepSpeedExamples' bing_bert
    `optimization.py`, which calls `torch.cos` on a float here and raises; this one works.
    """
    if x < warmup:
        return x / warmup
    return 0.5 * (1.0 + math.cos(math.pi * x))


def warmup_constant(x: float, warmup: float = 0.002) -> float:
    """Return x/warmup in the warm-up, then 1 (args as `warmup_cosine`)."""
    if x < warmup:
        return x / warmup
    return 1.0


def warmup_linear(x: float, warmup: float = 0.002) -> float:
    """Return x/warmup in the warm-up, then 1 - x (args as `warmup_cosine`).

    As the original: warmup=0 gives 1 for every x, and beyond x=1 the value is negative.
    """
    if warmup == 0.0:
        return 1.0
    if x < warmup:
        return x / warmup
    return 1.0 - x


def warmup_linear_decay_exp(
    global_step: float,
    decay_rate: float,
    decay_steps: float,
    total_steps: float,
    warmup: float = 0.002,
) -> float:
    """Return a linear ramp, then decay_rate ** ((step - warmup * total) / decay_steps).

    Args:
        global_step: number of updates done.
        decay_rate: factor per `decay_steps` updates.
        decay_steps: number of updates in which the value falls by `decay_rate`.
        total_steps: number of updates of the whole training.
        warmup: fraction of `total_steps` spent on the ramp; 0 gives 1 for every step.
    """
    return warmup_exp_decay_exp(
        global_step, decay_rate, decay_steps, total_steps, warmup=warmup, degree=1.0
    )


def warmup_exp_decay_exp(
    global_step: float,
    decay_rate: float,
    decay_steps: float,
    total_steps: float,
    warmup: float = 0.002,
    degree: float = 2.0,
) -> float:
    """Return (x/warmup) ** degree in the warm-up, then the decay of `warmup_linear_decay_exp`.

    Args: as `warmup_linear_decay_exp`; `degree` is the exponent of the ramp.
    """
    x = global_step / total_steps
    if warmup == 0.0:
        return 1.0
    if x < warmup:
        return _power(x / warmup, degree)
    return exponential_decay(global_step - warmup * total_steps, decay_rate, decay_steps)


def warmup_exp_decay_poly(
    global_step: float,
    total_steps: float,
    warmup: float = 0.002,
    warm_degree: float = 1.5,
    degree: float = 2.0,
) -> float:
    """Return (x/warmup) ** warm_degree in the warm-up, then (1 - x) ** degree.

    Args: x = global_step / total_steps; the others as `warmup_linear_decay_exp`. As the original,
    the value rises again beyond total_steps, and is complex there for a fractional degree.
    """
    x = global_step / total_steps
    if x < warmup:
        return _power(x / warmup, warm_degree)
    return _power(1.0 - x, degree)


def warmup_poly(x: float, warmup: float = 0.002, degree: float = 0.5) -> float:
    """Return x/warmup in the warm-up, then (1 - x) ** degree (NVIDIA DeepLearningExamples BERT)."""
    if x < warmup:
        return x / warmup
    return _power(1.0 - x, degree)


def warmup_linear_hf(x: float, warmup: float = 0.002) -> float:
    """Return x/warmup in the warm-up, then a line from 1 at its end to 0 at x=1.

    As WarmupLinearSchedule of pytorch-pretrained-BERT 0.6.2; a negative warmup counts as 0.
    """
    warmup = max(warmup, 0.0)
    if x < warmup:
        return x / warmup
    return max(0.0, (1.0 - x) / (1.0 - warmup))


def warmup_cosine_hf(x: float, warmup: float = 0.002, cycles: float = 0.5) -> float:
    """Return x/warmup in the warm-up, then (1 + cos(2 pi cycles y)) / 2.

    y = (x - warmup) / (1 - warmup). As WarmupCosineSchedule of pytorch-pretrained-BERT 0.6.2.
    """
    warmup = max(warmup, 0.0)
    if x < warmup:
        return x / warmup
    return 0.5 * (1.0 + math.cos(2.0 * math.pi * cycles * _rebased(x, warmup)))


def warmup_cosine_hard_restarts(x: float, warmup: float = 0.002, cycles: float = 1.0) -> float:
    """Return x/warmup in the warm-up, then `cycles` cosines from 1 to 0, one after the other.

    As WarmupCosineWithHardRestartsSchedule of pytorch-pretrained-BERT 0.6.2, except that the
    last cycle ends at x=1: the original begins another one there, with its full value.
    """
    warmup = max(warmup, 0.0)
    if x < warmup:
        return x / warmup
    phase = _cycle_phase(cycles * _rebased(x, warmup), ends=x == 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * phase))


def warmup_cosine_warmup_restarts(x: float, warmup: float = 0.002, cycles: float = 1.0) -> float:
    """Return `cycles` repetitions of a ramp followed by a cosine from 1 to 0.

    Each ramp takes `warmup` of the whole training, so warmup * cycles < 1. As
    WarmupCosineWithWarmupRestartsSchedule of pytorch-pretrained-BERT 0.6.2; ends at x=1 as
    `warmup_cosine_hard_restarts` does.
    """
    warmup = max(warmup, 0.0) * cycles
    phase = _cycle_phase(cycles * x, ends=x == 1.0)
    if phase < warmup:
        return phase / warmup
    return 0.5 * (1.0 + math.cos(math.pi * _rebased(phase, warmup)))


def none(x: float, warmup: float = -1) -> float:
    """Return 1: no schedule, and no warm-up either."""
    return 1.0


def _power(base: float, exponent: float) -> float:
    result: float = base**exponent
    return result


def exponential_decay(steps: float, decay_rate: float, decay_steps: float) -> float:
    return _power(decay_rate, steps / decay_steps)


def _rebased(x: float, warmup: float) -> float:
    """Progress from the end of the warm-up: 0 at x=warmup, 1 at x=1."""
    return (x - warmup) / (1.0 - warmup)


def _cycle_phase(cycles_done: float, *, ends: bool) -> float:
    """Progress in the current cycle; the one that completes at the very end counts as done."""
    phase = cycles_done % 1.0
    return 1.0 if ends and phase == 0.0 else phase
