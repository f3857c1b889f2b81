"""Compile CUDA sources and fail on a register spill or on arithmetic that flushes denormals.

    python .ci/check_kernels.py [--archs 80 90 100] [FILE ...]

Without files: all of csrc/cuda, with the flags of setup.py. Denormals are judged on the PTX: there
`.ftz` says what was asked for, while in machine code the exact division and square root use it too.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


#: Where exact square roots and divisions start from (csrc/cuda/ranged_math.cuh); what is out of
#: their range is recomputed, and inside it there is nothing to flush.
APPROXIMATIONS = r"\b(rsqrt|rcp)\.approx\.ftz\.f32\b"


@dataclass(frozen=True)
class Kernel:
    name: str
    registers: int
    spilled_bytes: int


def kernels_in(log: str) -> list[Kernel]:
    """What `ptxas -v` says about every function."""
    found = []
    for entry in re.split(r"Compiling entry function|Function properties for", log)[1:]:
        name = re.search(r"[\w$.]+", entry)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        if name and spills:
            spilled_bytes = int(spills[1]) + int(spills[2])
            found.append(Kernel(name[0], int(registers[1]) if registers else 0, spilled_bytes))
    return found


def flushing_instructions(ptx: str) -> list[str]:
    """The PTX instructions with an .ftz modifier; comments and names do not count."""
    code = re.sub(r"//.*|/\*.*?\*/|\"[^\"]*\"", "", ptx)
    code = re.sub(APPROXIMATIONS, "", code)
    return sorted(set(re.findall(r"(?<![%$\w.])[a-z]\w*(?:\.\w+)*\.ftz\b[\w.]*", code)))


def check(source: Path, arch: str, command: Sequence[str]) -> tuple[list[Kernel], list[str]]:
    """Compile `source` for sm_`arch`; return its kernels and what is wrong with them."""
    where = f"{source.name}, sm_{arch}"
    with tempfile.TemporaryDirectory() as temporary:
        keep = ["--keep", "--keep-dir", temporary, "-o", f"{temporary}/out.cubin"]
        options = ["-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", *keep]
        done = subprocess.run(
            [*command, *options, str(source)], capture_output=True, text=True, cwd=ROOT
        )
        if done.returncode:
            return [], [f"{where}: does not compile:\n{done.stdout}{done.stderr}"]
        (ptx,) = Path(temporary).glob("*.ptx")
        flushing = flushing_instructions(ptx.read_text())
    kernels = kernels_in(done.stdout + done.stderr)
    faults = [
        f"{where}: {k.name} spills {k.spilled_bytes} bytes" for k in kernels if k.spilled_bytes
    ]
    if flushing:
        faults.append(f"{where}: flushes denormals: {', '.join(flushing)}")
    return kernels, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=["80", "90", "100"])
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    setup = importlib.import_module("setup")  # the place that knows nvcc and its flags
    nvcc = setup.find_nvcc()
    if nvcc is None:
        print("check_kernels: no nvcc here, nothing is checked")
        return 0
    command = [nvcc.path, *setup.NVCC_FLAGS.split(), "-Icsrc"]
    files = options.files or [ROOT / name for name in setup.sources("cuda/**/*.cu")]
    work = [(source, arch) for source in files for arch in options.archs]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(lambda item: check(*item, command), work))
    n_kernels, faults = 0, []
    for (source, arch), (kernels, found) in zip(work, results, strict=True):
        n_kernels += len(kernels)
        faults += found
        for kernel in kernels:
            print(f"sm_{arch}  {kernel.registers:3} registers  {source.name}  {kernel.name}")
    if not n_kernels:
        faults.append("no kernel was found in what was compiled")
    for fault in faults:
        print(f"FAULT  {fault}")
    print(f"check_kernels: {n_kernels} kernels compiled, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
