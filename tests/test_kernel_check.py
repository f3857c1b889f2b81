""".ci/check_kernels.py finds what it is for: a spill, and arithmetic that flushes denormals."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]
setup = importlib.import_module("setup")
check_kernels = importlib.import_module("check_kernels")

CLEAN = "__global__ void clean(float* p) { p[threadIdx.x] = sqrtf(p[threadIdx.x]) / p[32]; }\n"
SPILLING = """
__global__ void spilling(float* p) {
  float a[96], sum = 0;
#pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = p[i * 32 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) sum = sum * a[i] + a[95 - i];
#pragma unroll
  for (int i = 0; i < 96; ++i) p[i] = a[i] * sum;
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize(
    ("code", "flags", "expected"),
    [
        (CLEAN, [], []),
        (CLEAN, ["-use_fast_math"], ["flushes denormals: div"]),
        (CLEAN, ["-ftz=true"], ["flushes denormals: div"]),
        (SPILLING, [], []),
        (SPILLING, ["--maxrregcount=32"], ["spilling"]),
        ("nonsense", [], ["does not compile"]),
    ],
    ids=["clean", "fast math", "ftz", "enough registers", "spill", "does not compile"],
)
def test_kernel_check_finds_what_it_is_for(
    tmp_path: Path, code: str, flags: list[str], expected: list[str]
) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(code)
    command = [setup.find_nvcc().path, *setup.NVCC_FLAGS.split(), *flags]
    kernels, faults = check_kernels.check(source, "90", command)
    assert len(faults) == len(expected)
    assert all(part in fault for part, fault in zip(expected, faults, strict=True))
    assert len(kernels) == (0 if code == "nonsense" else 1)
    assert all(kernel.registers > 0 for kernel in kernels)


def test_denormals_are_judged_by_instructions_not_by_names() -> None:
    ptx = """
    // mul.ftz.f32 in a comment
    .file 1 "add.ftz.f32"
    mul.rn.f32 %f1, %f2, %f3;
    add.s32 %r.ftz, %r1, %r2;
    @%p1 mul.ftz.f32 %f1, %f2, %f3;
    fma.rn.ftz.f32 %f1, %f2, %f3, %f4;
    { sub.ftz.f32 %f1, %f2, %f3; }
    rcp.approx.ftz.f32 %f1, %f2;
    rsqrt.approx.ftz.f64 %fd1, %fd2;
    """
    assert check_kernels.flushing_instructions(ptx) == [
        "fma.rn.ftz.f32",
        "mul.ftz.f32",
        "rsqrt.approx.ftz.f64",
        "sub.ftz.f32",
    ]
