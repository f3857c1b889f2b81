from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

with_cuda: bool
cuda_chunk_elements: int
rules: dict[str, tuple[str, ...]]
leaf_elements: int
type_rows: list[tuple[str, str, str | None, bool]]

def cuda_info() -> dict[str, Any]: ...
def cpu_isas() -> list[str]: ...
def set_cpu_isa(name: str) -> None: ...
def plan(
    n_elements: list[int],
    needs_norm: list[bool],
    part_elements: int,
    items_per_draw: int,
    wait_for_all: bool,
    in_turn: bool,
    retained_draws: int,
    surveys: bool = False,
) -> dict[str, Any]: ...
def sum_of_squares(grad: Tensor, chunk_elements: int) -> float: ...
def clip_coefficient(
    norm: float, max_grad_norm: float, skip_nonfinite: bool, inverse_scale: float
) -> float: ...
def without_unscaling(coefficient: float, inverse_scale: float) -> float: ...
def unscaling(scale: float, found_inf: float) -> tuple[float, bool]: ...
def split(x: float) -> tuple[float, float]: ...
def encode_bfloat16(values: Tensor) -> Tensor: ...
def encode_float16(values: Tensor) -> Tensor: ...
def decode_bfloat16(bits: Tensor) -> Tensor: ...
def decode_float16(bits: Tensor) -> Tensor: ...
def philox4x32(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> tuple[int, int, int, int]: ...
def is_observed() -> bool: ...
def is_capturing(device: torch.device) -> bool: ...

class CapturedSteps:
    @property
    def n_launches(self) -> int: ...

class StepPlan:
    workers: int
    retained_draws: int
    def __init__(
        self,
        where: str,
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        device: torch.device,
        n_skipped: Tensor,
        *,
        rule: str,
        master_weights: str | None,
        stochastic_rounding: bool,
        rounding_seed: int,
        captured: CapturedSteps | None,
    ) -> None: ...
    def set_group(
        self,
        index: int,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        l2_decay: float = 0.0,
        max_grad_norm: float,
        clip_epsilon: float = 1e-6,
        normalizes_always: bool = False,
        maximize: bool,
        grad_averaging: bool = True,
        adapts: bool = False,
        nesterov: bool = False,
        momentum: float = 0.0,
        trust_coefficient: float = 0.0,
        multipliers: Tensor,
        corrections: Tensor | None,
    ) -> None: ...
    def set_lr(self, index: int, lr: float, on_device: Tensor | None) -> None: ...
    def configure(
        self, *, clip_by_total_norm: bool, skip_nonfinite: bool, group_needs_norm: list[bool]
    ) -> None: ...
    def inspect(self, param_groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> bool: ...
    def create_states(self, init_state: Callable[[Tensor], None]) -> None: ...
    @property
    def counters_changed(self) -> bool: ...
    @property
    def grad_norms(self) -> Tensor | None: ...
    @property
    def total_norm(self) -> Tensor | None: ...
    @property
    def clip_coefficients(self) -> Tensor: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def n_copies(self) -> int: ...
    @property
    def scratch(self) -> list[Tensor]: ...
    @property
    def scratch_layout(self) -> dict[str, int]: ...
    @property
    def n_threads(self) -> int: ...

class Scaling:
    def __init__(
        self, where: str, *, grad_scale: object, found_inf: object, finds_inf: bool
    ) -> None: ...

class Stepper:
    def __init__(self, plans: list[StepPlan]) -> None: ...
    def accept(self, param_groups: list[dict[str, Any]], rates_may_change: bool) -> None: ...
    def step(
        self, param_groups: list[dict[str, Any]], state: dict[Tensor, Any], scaling: Scaling | None
    ) -> bool: ...
