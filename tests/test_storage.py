"""Bytes per parameter follow from how each implementation keeps its numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from contenders import APEX, APEX_CAPTURABLE, CLIPS, FUSED, OURS, contenders
from storage import DTYPES, MASTERS, Storage, necessary_bytes


@pytest.mark.parametrize(
    ("storage", "n_bytes"),
    [
        (Storage(), 28),
        (Storage("bf16"), 22),
        (Storage("bf16", "fp32"), 28),
        (Storage("bf16", "remainder"), 26),
        (Storage("bf16", moments="bf16"), 14),
        (Storage("fp16"), 22),
        (Storage("fp16", "fp32"), 28),
    ],
    ids=str,
)
def test_update_reads_and_writes_each_tensor_once(storage: Storage, n_bytes: int) -> None:
    assert storage.update_bytes == n_bytes


@pytest.mark.parametrize(
    ("dtype", "master"), [("fp32", "fp32"), ("fp32", "remainder"), ("fp16", "remainder")]
)
def test_master_that_a_dtype_cannot_have_is_refused(dtype: str, master: str) -> None:
    with pytest.raises(ValueError, match=f"storage: {dtype} with master {master}, expected one of"):
        Storage(dtype, master)


def counted(dtype: str, name: str, device: str = "cuda") -> dict[tuple[str, str], float]:
    return {
        (each.clip, each.storage.master): each.bytes_per_param
        for clip in CLIPS
        for each in contenders(clip, device, dtype)
        if each.name == name
    }


def test_ours_reads_gradients_again_where_all_tensors_decide() -> None:
    """For one norm over all of them, and for an overflow in any of them."""
    update = {"none": 22, "fp32": 28, "remainder": 26}
    assert counted("bf16", OURS) == {
        (clip, master): update[master] + (2 if clip == "global" else 0)
        for clip in CLIPS
        for master in MASTERS["bf16"]
    }
    assert counted("fp16", OURS) == {
        (clip, master): {"none": 24, "fp32": 30}[master]
        for clip in CLIPS
        for master in MASTERS["fp16"]
    }


def test_others_count_their_passes_over_the_gradients() -> None:
    """Two bytes for a norm, four to scale or unscale; torch's moments have 16 bits, apex's 32."""
    assert counted("bf16", FUSED) == {
        ("per_tensor", "none"): 14 + 6,
        ("global", "none"): 14 + 6,
        ("none", "none"): 14,
    }
    # Without clipping: a pass that looks for infinity (4), and gradients written by the step (2).
    assert counted("fp16", FUSED)["none", "none"] == 14 + 6
    assert counted("fp16", FUSED)["global", "none"] == 14 + 4 + 6
    assert counted("bf16", APEX)["global", "none"] == 22 + 6
    assert counted("fp16", APEX_CAPTURABLE) == {
        ("global", "fp32"): 28 + 6 + 2,
        ("none", "fp32"): 28 + 4 + 2,
    }


def test_shares_of_a_dtype_are_compared_at_the_bytes_without_masters() -> None:
    assert {dtype: necessary_bytes(dtype) for dtype in DTYPES} == {
        "fp32": 28,
        "bf16": 22,
        "fp16": 22,
    }
