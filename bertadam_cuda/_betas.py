"""The decay rates of two moments as torch passes them: a pair `betas`, also of tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._settings import check_number


def as_numbers(betas: Any) -> Any:
    """Return what torch accepts as a tuple of numbers; all else as it is, to be refused by name."""
    if not isinstance(betas, (tuple, list)):
        return betas
    return tuple(
        beta.item() if isinstance(beta, Tensor) and beta.numel() == 1 else beta for beta in betas
    )


def check_betas(betas: object, where: str) -> None:
    """Raise TypeError or ValueError unless `betas` is a tuple of two numbers in [0, 1)."""
    if not isinstance(betas, tuple) or len(betas) != 2:
        raise TypeError(f"{where}: betas is {betas!r}, expected a tuple of two numbers")
    for index, beta in enumerate(betas):
        check_number(beta, f"betas[{index}]", where, least=0.0, below=1.0)
