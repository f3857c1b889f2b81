"""What the last step measured, as tensors on the device: reading them does not wait for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Statistics:
    """The statistics of an optimizer; the steps write them, nothing is computed for them alone."""

    param_groups: list[dict[str, Any]]
    _plans: list[Any]
    _stepped: bool
    _n_skipped: dict[torch.device, Tensor]

    @property
    def grad_norms(self) -> Tensor | None:
        """L2 norms of the last step's gradients before clipping: float64, one per parameter.

        Of the unscaled gradients, where there is a gradient scaler.
        In param_groups order; NaN where there was no gradient, or where neither clipping nor
        on_nonfinite='skip' asked for a norm. None if no norm pass ran. On the parameters' device
        (the first one's, if there are several); reading it does not synchronise. The next step
        overwrites it: clone what has to stay.
        """
        return self._per_parameter([plan.grad_norms for plan in self._plans])

    @property
    def clip_coefs(self) -> Tensor | None:
        """Factors in [0, 1] that clipping multiplied the last step's gradients by: float32.

        Like `grad_norms`; 0 where the update was skipped. A gradient scaler's factor is not in them
        (if its scale is no power of two, they may be off by one unit in the last place).
        """
        if self.grad_norms is None:
            return None
        return self._per_parameter([plan.clip_coefficients for plan in self._plans])

    @property
    def grad_norm(self) -> Tensor | None:
        """L2 norm over all gradients of the last step: 0-dim float64; None if no norm pass ran."""
        totals = [plan.total_norm for plan in self._plans]
        if self._stepped and len(totals) == 1 and totals[0] is not None:
            total: Tensor = totals[0]
            return total
        norms = self.grad_norms
        return None if norms is None else _pairwise_sum(norms.nan_to_num(nan=0.0).square()).sqrt()

    @property
    def skipped(self) -> Tensor:
        """Parameter updates left out for non-finite gradients since construction: 0-dim int64.

        A step that is left out as a whole, for a global norm or by a gradient scaler, counts once
        for every parameter that has a gradient.
        """
        counts = list(self._n_skipped.values()) or [torch.zeros((), dtype=torch.int64)]
        return torch.stack([count.to(counts[0].device) for count in counts]).sum()

    @property
    def trust_ratios(self) -> Tensor | None:
        """Factors of the last step's updates that LAMB and LARS took from norms: float32.

        Like `grad_norms`, but NaN where no update was made; 1 where a group asks for none. None:
        this optimizer has no trust ratio.
        """
        return self._per_parameter([plan.trust_ratios for plan in self._plans])

    def _per_parameter(self, values: list[Tensor | None]) -> Tensor | None:
        """Bring the plans' values into the order of param_groups."""
        if not self._stepped or any(value is None for value in values):
            return None
        if len(values) == 1:
            return values[0]
        by_device = {
            plan.device: iter(value)
            for plan, value in zip(self._plans, values, strict=True)
            if value is not None
        }
        params = [param for group in self.param_groups for param in group["params"]]
        return torch.stack([next(by_device[p.device]).to(params[0].device) for p in params])


def _pairwise_sum(values: Tensor) -> Tensor:
    """Add up in an order that depends on nothing but the length, on any device."""
    while len(values) > 1:
        values = torch.cat([values, values.new_zeros(len(values) % 2)])
        values = values[0::2] + values[1::2]
    return values.sum()
