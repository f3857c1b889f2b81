"""Conversions between float32 and the 16-bit storage types, against torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bertadam_cuda import _ext

_C = _ext.load()
TYPES = {
    "bfloat16": (torch.bfloat16, _C.encode_bfloat16, _C.decode_bfloat16),
    "float16": (torch.float16, _C.encode_float16, _C.decode_float16),
}
Row = tuple[torch.dtype, Callable[..., torch.Tensor], Callable[..., torch.Tensor]]


def all_values(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def difficult_floats(dtype: torch.dtype) -> torch.Tensor:
    """Every value of `dtype`, the ties between neighbours, what lies beside them, and noise."""
    values = all_values(dtype).float()
    exact = values.sort().values
    ties = (exact[1:].double() + exact[:-1].double()).div(2).float()
    beside = [torch.nextafter(ties, torch.full_like(ties, end)) for end in (-torch.inf, torch.inf)]
    noise = torch.randint(-(2**31), 2**31 - 1, (200_000,), dtype=torch.int64).int()
    return torch.cat([values, ties, *beside, noise.view(torch.float32)])


@pytest.mark.parametrize("row", TYPES.values(), ids=TYPES)
def test_decoding_is_exact(row: Row) -> None:
    dtype, _, decode = row
    values = all_values(dtype)
    decoded = decode(values.view(torch.int16).int() & 0xFFFF)
    torch.testing.assert_close(decoded, values.float(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(decoded.signbit(), values.signbit() | values.isnan() & decoded.signbit())


@pytest.mark.parametrize("row", TYPES.values(), ids=TYPES)
def test_encoding_rounds_to_nearest_even(row: Row) -> None:
    dtype, encode, _ = row
    floats = difficult_floats(dtype)
    encoded = encode(floats).to(torch.int16).view(dtype)
    torch.testing.assert_close(encoded, floats.to(dtype), rtol=0, atol=0, equal_nan=True)
    numbers = ~floats.isnan()
    assert torch.equal(encoded.signbit()[numbers], floats.signbit()[numbers])


@pytest.mark.parametrize("row", TYPES.values(), ids=TYPES)
def test_the_floats_tell_other_roundings_apart(row: Row) -> None:
    """A negative control: rounding towards zero gives other bits for many of them."""
    dtype, _, _ = row
    floats = difficult_floats(dtype)
    floats = floats[floats.abs() < 60_000]
    rounded = floats.to(dtype).float()
    truncated = torch.where(
        rounded.abs() > floats.abs(), torch.nextafter(rounded, torch.zeros(())), rounded
    )
    assert (truncated != rounded).float().mean() > 0.2


@pytest.mark.parametrize("x", [0.1, 0.9, 0.999, 1 - 0.999, 1 - 0.9999, 1e-30, 1.0, 0.0])
def test_two_floats_hold_a_coefficient_to_48_bits(x: float) -> None:
    hi, lo = _C.split(x)
    assert abs((hi + lo) - x) <= abs(x) * 2.0**-47
    assert hi == torch.tensor(x, dtype=torch.float32).item()
