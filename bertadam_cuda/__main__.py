"""Print what is installed and try it: `python -m bertadam_cuda`.

Versions, how the binary was built, and which visible GPUs it covers; a real BertAdam step on the
CPU and on each of them against the float64 rule, and steps of every rule on each against the CPU's.
The exit code is 1 if anything is wrong. It must work when the binary is missing or broken, for that
is when it is needed: whatever touches the binary runs in a child process, because a damaged one can
kill the process that opens it.
"""

from __future__ import annotations

import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import _ext
from ._self_test import bits_fault, step_fault
from ._version import __version__

_CHILD = "--try-binary"


class _Row(NamedTuple):
    name: str
    value: str
    ok: bool = True


def main(arguments: list[str]) -> int:
    """Print the report; return the exit code."""
    if arguments == [_CHILD]:
        return _print(_binary_rows())
    code = _print(_version_rows()) | _try_binary()
    print("\nFAILED, see above." if code else "\nAll is well.")
    return code


def _print(rows: Iterator[_Row]) -> int:
    code = 0
    for name, value, ok in rows:
        print(f"{name:<14} {'' if ok else 'FAILED: '}{value}", flush=True)
        code |= not ok
    return code


def _try_binary() -> int:
    child = subprocess.run([sys.executable, "-m", "bertadam_cuda", _CHILD])
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        killed = f"the process that tried it was ended by {name}; {_ext.REMEDY}"
        return _print(iter([_Row("binary", killed, ok=False)]))
    return 1 if child.returncode else 0


def _version_rows() -> Iterator[_Row]:
    yield _Row("bertadam_cuda", f"{__version__} in {Path(__file__).parent}")
    yield _Row("python", f"{platform.python_version()}, {platform.platform()}")
    yield _Row("C library", " ".join(platform.libc_ver()).strip() or "unknown")
    yield _Row("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    yield _Row("driver", _kernel_driver())
    try:
        info = _ext.build_info()
    except ImportError as error:
        yield _Row("built", str(error), ok=False)
        return
    if not info:
        return  # the next lines say so
    yield _Row("built", f"version {info.get('version')}, Python {info.get('python')}")
    yield _Row("  with torch", f"{info.get('torch')}, CUDA {info.get('torch_cuda') or 'none'}")
    yield _Row("  with nvcc", str(info.get("nvcc") or "none: CPU only"))
    yield _Row("  for GPUs", " ".join(info.get("archs") or ["none"]))
    yield _Row("  for CPUs", " ".join(info.get("isas") or ["none"]))


def _binary_rows() -> Iterator[_Row]:
    try:
        binary, archs = _ext.load(), _ext.build_info()["archs"]
    except ImportError as error:
        yield _Row("binary", str(error), ok=False)
        return
    yield _Row("binary", str(binary.__file__))
    yield _Row("dtypes", _described(binary.type_rows))
    if binary.with_cuda:
        yield _runtime_row(binary.cuda_info())
    yield from _self_tests(torch.device("cpu"))
    for index in range(torch.cuda.device_count()):
        yield from _gpu_rows(index, archs)


def _described(type_rows: list[tuple[str, str, str | None, bool]]) -> str:
    """Say what parameters can be, and with which masters or rounding."""
    kept: dict[str, list[str]] = {}
    for param, _, master_weights, stochastic in type_rows:
        how = "stochastic rounding" if stochastic else master_weights
        names = kept.setdefault(param, [])
        if how is not None and how not in names:
            names.append(how)
    return ", ".join(
        f"{param} ({', '.join(names)})" if names else param for param, names in kept.items()
    )


def _runtime_row(cuda_info: dict[str, Any]) -> _Row:
    def version(number: int) -> str:
        return f"{number // 1000}.{number % 1000 // 10}" if number else "none"

    runtime, driver = version(cuda_info["runtime"]), version(cuda_info["driver"])
    described = f"runtime {runtime} (static), driver {driver}"
    if cuda_info["error"] and torch.cuda.is_available():  # without a GPU an error is the rule
        return _Row("CUDA", f"{described}: {cuda_info['error']}", ok=False)
    return _Row("CUDA", described)


def _gpu_rows(index: int, archs: list[str]) -> Iterator[_Row]:
    gpu = torch.cuda.get_device_properties(index)
    described = f"{gpu.name}, sm_{gpu.major}{gpu.minor}"
    how = coverage(gpu.major, gpu.minor, archs)
    if how is None:
        remedy = f"rebuild with TORCH_CUDA_ARCH_LIST={gpu.major}.{gpu.minor}"
        yield _Row(f"cuda:{index}", f"{described} is not covered by the build; {remedy}", ok=False)
        return
    yield _Row(f"cuda:{index}", f"{described}, covered by {how}")
    yield from _self_tests(torch.device("cuda", index))


def coverage(major: int, minor: int, archs: list[str]) -> str | None:
    """Return what of the build runs on a GPU of this compute capability, or None.

    Machine code serves its own major version from its minor upwards, PTX everything from its
    version upwards; both only their own version where the name ends in "a", and only their own
    major where it ends in "f".
    """
    for kind, described in (("sm", "machine code"), ("compute", "PTX, compiled by the driver")):
        for arch in archs:
            parts = re.fullmatch(kind + r"_(\d+)(\d)([af]?)", arch)
            if parts is None:
                continue
            built = (int(parts[1]), int(parts[2]))
            same_major = built[0] == major
            fits = built <= (major, minor) and (same_major or (kind == "compute" and not parts[3]))
            if fits and (parts[3] != "a" or built == (major, minor)):
                return f"{arch} ({described})"
    return None


def _kernel_driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "no NVIDIA driver"
    found = re.search(r"\d{3,}\.\d[\d.]*", text)
    return f"NVIDIA {found[0] if found else text.splitlines()[0]}"


def _self_tests(device: torch.device) -> Iterator[_Row]:
    yield _self_test(f"step on {device}", step_fault, device, "agrees with the float64 rule")
    if device.type == "cuda":
        yield _self_test(f"bits on {device}", bits_fault, device, "are the CPU's, for every rule")


def _self_test(
    name: str, find_fault: Callable[[torch.device], str | None], device: torch.device, sound: str
) -> _Row:
    try:
        fault = find_fault(device)
    except Exception as error:  # whatever goes wrong belongs into the report
        fault = f"{type(error).__name__}: {error}"
    return _Row(name, fault or sound, ok=fault is None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
