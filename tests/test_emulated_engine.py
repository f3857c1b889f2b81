"""The CUDA engine's source, run by fibers on the host: the bits of the CPU in any order of events.

Everything but the hardware's own words is the engine itself; tests/emulation tells which those are.
What it cannot show is the arithmetic of ranged_math.cuh, and whatever of a GPU's memory the late
copies and stores of the emulation do not come to: that is for the tests marked gpu.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EMULATION = ROOT / "tests" / "emulation"
FLAGS = [
    *("-std=c++20", "-O1", "-march=native", "-ffp-contract=off", "-fno-math-errno"),
    *("-fno-trapping-math", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-fno-extern-tls-init"),
]
TOO_LONG = 120.0  # seconds for a seed, which takes two


def compiled(source: Path, csrc: Path, out: Path, *defines: str) -> Path:
    cxx = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or "c++"]
    includes = [f"-I{EMULATION}", f"-I{csrc}"]
    command = [*cxx, *FLAGS, *defines, *includes, "-c", str(source), "-o", str(out)]
    subprocess.run(command, check=True)
    return out


def linked(objects: list[Path], out: Path) -> Path:
    cxx = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or "c++"]
    subprocess.run([*cxx, *map(str, objects), "-o", str(out), "-pthread"], check=True)
    return out


@pytest.fixture(scope="module")
def cpu_backend(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("cpu")
    csrc = ROOT / "csrc"
    return [
        compiled(csrc / "cpu/worker.cpp", csrc, out / "worker.o", "-DBERTADAM_ISA=baseline"),
        compiled(csrc / "cpu/dispatch.cpp", csrc, out / "dispatch.o"),
    ]


def engine(csrc: Path, out: Path, cpu_backend: list[Path], architecture: int) -> Path:
    source = EMULATION / "emulated_steps.cpp"
    steps = compiled(source, csrc, out / "steps.o", f"-D__CUDA_ARCH__={architecture}")
    return linked([steps, *cpu_backend], out / "emulated_steps")


def run(program: Path, seed: int, seconds: float = TOO_LONG) -> str | None:
    """What a seed's steps found wrong, if anything."""
    try:
        done = subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "it does not end"
    return (
        done.stdout + done.stderr or f"exit status {done.returncode}" if done.returncode else None
    )


@pytest.mark.parametrize("architecture", [800, 900])
def test_steps_in_any_order_of_events_give_the_bits_of_the_cpu(
    architecture: int, cpu_backend: list[Path], tmp_path: Path
) -> None:
    program = engine(ROOT / "csrc", tmp_path, cpu_backend, architecture)
    assert [run(program, seed) for seed in range(6)] == [None] * 6


MUTATIONS = {
    "does not wait for copies": (
        "cuda/update_warp.cuh",
        "    block_.ring.full[slot].wait(ahead_.cursor.parity);\n",
        "",
    ),
    "believes words of any epoch": (
        "cuda/memory.cuh",
        "return has_epoch(pair.words[0], epoch) && has_epoch(pair.words[1], epoch);",
        "return true;",
    ),
    "reads the remainder where the parameter is": (
        "cuda/elements.cuh",
        "kMasterWord = kReadsParam ? 2 : 0;",
        "kMasterWord = 0;",
    ),
    "reads no learning rate in memory": (
        "core/scalars.h",
        "if (lr_float64 != nullptr) return *lr_float64;",
        "",
    ),
    "applies what is not surveyed": (
        "cuda/applier.cuh",
        "        ring.surveyed[here_.slot].wait(here_.parity);\n",
        "",
    ),
    "adds up what is not surveyed": (
        "cuda/trust_ratios.cuh",
        "      ring.surveyed[here.slot].wait(here.parity);\n",
        "",
    ),
    "turns gradients into updates from their beginning": (
        "cuda/ring.cuh",
        "return (Types::kMostGradBytes - element_bytes) * kPartElements;",
        "return 0;",
    ),
    "forgets what it postponed": (
        "cuda/producer.cuh",
        "        n = resumes(first) ? 1 : 0;\n",
        "        n = 0;\n",
    ),
    "keeps the tables of another tensor": (
        "cuda/producer.cuh",
        "fills && item.tensor != entry.tensor;",
        "fills && entry.tensor == kNoTensor;",
    ),
    "never helps": ("cuda/producer.cuh", "return !block_.all_prepared();", "return false;"),
    "puts off updates where there is no norm left": (
        "cuda/producer.cuh",
        "return !block_.all_prepared();",
        "return true;",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_engine_is_found_out(
    mutation: str, cpu_backend: list[Path], tmp_path: Path
) -> None:
    """Negative controls."""
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    name, right, wrong = MUTATIONS[mutation]
    text = (csrc / name).read_text()
    assert text.count(right) == 1
    (csrc / name).write_text(text.replace(right, wrong))
    program = engine(csrc, tmp_path, cpu_backend, 900)
    assert any(run(program, seed, seconds=20.0) for seed in range(8))
