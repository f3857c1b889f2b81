"""How numbers are kept between steps, and the bytes that a step therefore moves.

Parameters and gradients have one dtype. Moments are float32 with most implementations and have the
parameters' dtype with others. A master is the float32 behind a parameter of 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: dtype -> the masters that its parameters can have.
MASTERS = {"fp32": ("none",), "bf16": ("none", "fp32", "remainder"), "fp16": ("none", "fp32")}


@dataclass(frozen=True)
class Storage:
    """dtype: of parameters and gradients; master: one of MASTERS; moments: their dtype."""

    dtype: str = "fp32"
    master: str = "none"
    moments: str = "fp32"

    def __post_init__(self) -> None:
        if self.master not in MASTERS[self.dtype]:
            raise ValueError(
                f"storage: {self.dtype} with master {self.master}, expected one of"
                f" {', '.join(MASTERS[self.dtype])}"
            )

    @property
    def update_bytes(self) -> float:
        """Per parameter: what an update cannot do without, each read and each write once."""
        size, moment = DTYPES[self.dtype].itemsize, DTYPES[self.moments].itemsize
        param = {
            "none": 2 * size,
            "fp32": 8 + size,  # the parameter is written from its master, and not read
            "remainder": 2 * size + 4,
        }[self.master]
        return float(param + size + 4 * moment)

    @property
    def param_bytes(self) -> float:
        """A pass that reads the parameters, or their masters."""
        size = DTYPES[self.dtype].itemsize
        return float({"none": size, "fp32": 4, "remainder": size + 2}[self.master])

    @property
    def norm_bytes(self) -> float:
        """A pass that reads the gradients."""
        return float(DTYPES[self.dtype].itemsize)

    @property
    def scale_bytes(self) -> float:
        """A pass that multiplies the gradients in place."""
        return 2.0 * DTYPES[self.dtype].itemsize


FP32 = Storage()


def necessary_bytes(dtype: str, optimizer: str = "adam") -> float:
    """Per parameter: a step without masters, whose moments are float32.

    LAMB's parameters are read twice: for their norm, and once that and the update's are known.
    """
    kept = Storage(dtype)
    return kept.update_bytes + (kept.param_bytes if optimizer == "lamb" else 0.0)
