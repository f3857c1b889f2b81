"""CUDA sources of the tests, compiled for the GPU at hand and loaded by ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TOO_LONG = 30.0  # seconds after which a step counts as hanging


def load_cuda(name: str, folder: Path) -> ctypes.CDLL:
    """Build tests/`name` in `folder` and load it; without nvcc the test is skipped."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip(f"nvcc is needed to build {name}")
    library = folder / f"{Path(name).stem}.so"
    major, minor = torch.cuda.get_device_capability()
    flags = ["-std=c++17", "-shared", "-Xcompiler", "-fPIC", f"-arch=sm_{major}{minor}"]
    source = ROOT / "tests" / name
    command = [nvcc, *flags, f"-I{ROOT / 'csrc'}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def wait(event: torch.cuda.Event) -> None:
    start = time.perf_counter()
    while not event.query():
        assert time.perf_counter() - start < TOO_LONG, "the step does not end"
        time.sleep(0.001)


def occupy(
    library: ctypes.CDLL, n_sms: int, us: int, stream: torch.cuda.Stream, n_shares: int = 1
) -> None:
    """Hold `n_sms` SMs for `us`, from when the stream gets there; see occupy_sms.cu."""
    nanoseconds = ctypes.c_ulonglong(us * 1000)
    error = library.occupy_sms(n_sms, nanoseconds, n_shares, ctypes.c_void_p(stream.cuda_stream))
    assert error == 0, f"CUDA error {error}"
