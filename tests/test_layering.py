"""The arrows between the layers: core <- {cuda, cpu} <- binding <- _C <- _optimizer <- the classes.

Every rule is a function from a path and its text to a list of faults, so that each is also shown a
made-up file that breaks it.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
Rule = Callable[[str, str], list[str]]

LAYERS = {
    "core": {"core"},
    "cuda": {"core", "cuda"},
    "cpu": {"core", "cpu"},
    "binding": {"core", "cuda", "cpu", "binding"},
}
TORCH_HEADER = re.compile(r"(torch|ATen|c10|pybind11)/|Python\.h")
CUDA_HEADER = re.compile(
    r"(cuda|cub|thrust|nv|cooperative_groups)/|(cuda|cooperative_groups|nv|vector_types)\w*\.h"
)
# Conversions that a GPU has instructions for.
CUDA_HEADERS_OF_CORE = {"csrc/core/dtypes.h": {"cuda_bf16.h", "cuda_fp16.h"}}
RULE_MAY_INCLUDE = {
    "core/portable.h",
    "core/scalars.h",
    "core/rules/adam.h",
    "core/rules/descent.h",
    "core/rules/trust_ratio.h",
}

# Modules of the package that may load the compiled part; below them nothing may reach it.
LOADERS = {"_ext", "_optimizer", "__main__"}
PURE = {"reference", "schedules"}
CLASSES = {"adam", "bert_adam", "lamb", "lars"}


def includes(text: str) -> list[tuple[str, bool]]:
    """Each included name, and whether it is quoted: ours."""
    found = re.findall(r'(?m)^\s*#\s*include\s*([<"])([^>"]+)[>"]', text)
    return [(name, quote == '"') for quote, name in found]


def layer_faults(path: str, text: str) -> list[str]:
    """A layer includes only the layers below it, by a path from csrc/."""
    layer = Path(path).parts[1]
    if layer not in LAYERS:
        return [f"{path}: {layer} is no layer"]
    ours = [name for name, quoted in includes(text) if quoted]
    return [f"{path}: includes {name}" for name in ours if name.split("/")[0] not in LAYERS[layer]]


def foreign_header_faults(path: str, text: str) -> list[str]:
    """Only the binding sees torch, and only cuda sees the CUDA runtime; core some conversions."""
    layer = Path(path).parts[1]
    names = [name for name, _ in includes(text)]
    faults = [n for n in names if layer != "binding" and TORCH_HEADER.match(n)]
    faults += [
        n for n in names if layer != "cuda" and CUDA_HEADER.match(n) and n not in ours_in(text)
    ]
    allowed = CUDA_HEADERS_OF_CORE.get(path, set())
    return [f"{path}: includes {name}" for name in faults if name not in allowed]


def ours_in(text: str) -> set[str]:
    return {name for name, quoted in includes(text) if quoted and name.split("/")[0] in LAYERS}


def rule_faults(path: str, text: str) -> list[str]:
    """A rule knows mathematics: of ours it includes the host/device macro, the scalars, Adam,
    which others vary, and how a parameter is moved.
    """
    if not path.startswith("csrc/core/rules/"):
        return []
    ours = [name for name, quoted in includes(text) if quoted]
    return [f"{path}: includes {name}" for name in ours if name not in RULE_MAY_INCLUDE]


def imported_modules(text: str) -> set[str]:
    """The package's own modules that a Python file imports, "_C" among them, however it does so."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "bertadam_cuda" if node.level else node.module or ""
            base += f".{node.module}" if node.level and node.module else ""
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if re.fullmatch(r"bertadam_cuda(\.\w+)+", node.value) else []
        found |= {name.split(".")[1] for name in names if re.match(r"bertadam_cuda\.", name)}
    return found


def binary_faults(path: str, text: str) -> list[str]:
    """Only the optimizer and the diagnostics load the compiled part, and only _ext imports it."""
    module = Path(path).stem
    imported = imported_modules(text)
    faults = []
    if "_C" in imported and not (module in LOADERS or path.startswith("tests/")):
        faults.append(f"{path}: imports _C")
    if "_ext" in imported and path.startswith("bertadam_cuda/") and module not in LOADERS:
        faults.append(f"{path}: imports _ext")
    return faults


def upward_faults(path: str, text: str) -> list[str]:
    """Below the classes nothing imports them; the oracle and the schedules import no optimizer."""
    module = Path(path).stem
    if not path.startswith("bertadam_cuda/") or module in {"__init__", "__main__", "_self_test"}:
        return []
    forbidden = set() if module in CLASSES else set(CLASSES)
    if module in PURE:
        forbidden |= LOADERS | {"_C"}
    return [f"{path}: imports {name}" for name in sorted(imported_modules(text) & forbidden)]


def symbol_faults(path: str, text: str) -> list[str]:
    """In what `nm -P` lists of an object for one instruction set, every global name is its own.

    The linker keeps one of several equal inline functions, for all callers; were it the AVX-512
    one, a machine without AVX-512 would die in code that has nothing to do with the worker.
    """
    isa = re.fullmatch(r"worker\.cpp\.(\w+)\.o", Path(path).name)
    assert isa is not None
    own = f"{len(isa[1])}{isa[1]}"  # as a mangled namespace
    rows = (line.split() for line in text.splitlines())
    names = [row[0] for row in rows if len(row) > 1 and (row[1].isupper() or row[1] in "uvw")]
    return [f"{path}: shares {name}" for name in names if own not in name]


def files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


CPP = files("csrc/**/*.h", "csrc/**/*.cuh", "csrc/**/*.cu", "csrc/**/*.cpp")
PYTHON = files("bertadam_cuda/*.py", "bench/**/*.py", "tests/**/*.py")


@pytest.mark.parametrize(
    ("rule", "paths"),
    [
        (layer_faults, CPP),
        (foreign_header_faults, CPP),
        (rule_faults, CPP),
        (binary_faults, PYTHON),
        (upward_faults, PYTHON),
    ],
)
def test_sources_keep_to(rule: Rule, paths: list[Path]) -> None:
    assert paths
    assert [f for path in paths for f in rule(str(path.relative_to(ROOT)), path.read_text())] == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (layer_faults, "csrc/core/plan.h", '#include "cuda/tuning.h"'),
        (layer_faults, "csrc/core/plan.h", '#include "cpu/worker.h"'),
        (layer_faults, "csrc/cuda/launch.h", '#include "cpu/worker.h"'),
        (layer_faults, "csrc/cpu/worker.cpp", '  #  include "cuda/launch.h"'),
        (layer_faults, "csrc/cpu/worker.cpp", '#include "binding/checks.h"'),
        (layer_faults, "csrc/cpu/worker.cpp", '#include "worker.h"'),
        (layer_faults, "csrc/utils/worker.cpp", ""),
        (foreign_header_faults, "csrc/core/plan.h", "#include <torch/extension.h>"),
        (foreign_header_faults, "csrc/cpu/worker.cpp", "#include <ATen/Parallel.h>"),
        (foreign_header_faults, "csrc/cuda/launch.cu", "#include <c10/core/Stream.h>"),
        (foreign_header_faults, "csrc/cuda/launch.cu", '#include "pybind11/pybind11.h"'),
        (foreign_header_faults, "csrc/cpu/worker.cpp", "#include <Python.h>"),
        (foreign_header_faults, "csrc/core/storage.h", "#include <cuda_bf16.h>"),
        (foreign_header_faults, "csrc/core/dtypes.h", "#include <cuda_runtime.h>"),
        (foreign_header_faults, "csrc/core/plan.h", "#include <cuda_runtime.h>"),
        (foreign_header_faults, "csrc/binding/module.cpp", "#include <cuda_runtime_api.h>"),
        (foreign_header_faults, "csrc/cpu/worker.cpp", "#include <cooperative_groups.h>"),
        (foreign_header_faults, "csrc/cpu/worker.cpp", "#include <cuda/atomic>"),
        (rule_faults, "csrc/core/rules/adam.h", '#include "core/plan.h"'),
        (rule_faults, "csrc/core/rules/adam.h", '#include "core/rules/clip.h"'),
        (binary_faults, "bertadam_cuda/schedules.py", "from . import _C"),
        (binary_faults, "bertadam_cuda/bert_adam.py", "def f():\n    from ._ext import load"),
        (binary_faults, "bertadam_cuda/__init__.py", "import bertadam_cuda._C as c"),
        (binary_faults, "bench/timing.py", "from bertadam_cuda import _C"),
        (binary_faults, "bench/timing.py", "importlib.import_module('bertadam_cuda._C')"),
        (upward_faults, "bertadam_cuda/_optimizer.py", "from .bert_adam import BertAdam"),
        (upward_faults, "bertadam_cuda/_checkpoint.py", "from .adam import AdamW"),
        (upward_faults, "bertadam_cuda/reference.py", "from . import _optimizer"),
        (upward_faults, "bertadam_cuda/schedules.py", "from ._ext import load"),
        (upward_faults, "bertadam_cuda/amp.py", "from .bert_adam import BertAdam"),
        (upward_faults, "bertadam_cuda/_statistics.py", "from .lamb import LAMB"),
        (upward_faults, "bertadam_cuda/_planning.py", "from . import lars"),
        (binary_faults, "bertadam_cuda/amp.py", "from ._ext import load"),
    ],
)
def test_rule_notices_a_made_up_breach(rule: Rule, path: str, text: str) -> None:
    assert len(rule(path, text)) == 1


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (layer_faults, "csrc/binding/module.cpp", '#include "cuda/launch.h"'),
        (foreign_header_faults, "csrc/binding/module.cpp", '#include "cuda/launch.h"'),
        (foreign_header_faults, "csrc/binding/module.cpp", "#include <torch/csrc/utils/pybind.h>"),
        (foreign_header_faults, "csrc/cuda/launch.cu", "#include <cuda_runtime.h>"),
        (rule_faults, "csrc/core/rules/adam.h", '#include "core/scalars.h"\n#include <math.h>'),
        (rule_faults, "csrc/core/rules/amsgrad.h", '#include "core/rules/adam.h"'),
        (binary_faults, "tests/test_plan.py", "from bertadam_cuda import _C"),
        (upward_faults, "bertadam_cuda/__init__.py", "from .bert_adam import BertAdam"),
    ],
)
def test_rule_allows_what_follows_the_arrows(rule: Rule, path: str, text: str) -> None:
    assert rule(path, text) == []


def test_importing_the_package_does_not_load_the_binary() -> None:
    code = "import sys, bertadam_cuda; sys.exit('bertadam_cuda._C' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def symbols(path: Path) -> str:
    command = ["nm", "-P", "--defined-only", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")


@needs_nm
def test_objects_of_the_instruction_sets_share_no_symbol() -> None:
    objects = files("build/temp*/objects/csrc/cpu/worker.cpp.*.o")
    if not objects:
        pytest.skip("no objects in build/: the package was built elsewhere")
    assert [fault for path in objects for fault in symbol_faults(path.name, symbols(path))] == []
    assert all(symbols(path).strip() for path in objects)


@needs_nm
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("namespace avx2 { int f(int x) { return x; } }", 0),
        ("inline int g(int x) { return x; } namespace avx2 { auto f() { return &g; } }", 1),
        ("template <class T> T g() { return 1; } namespace avx2 { auto f = &g<int>; }", 1),
        ("int f(int x) { return x; }", 1),
    ],
)
def test_symbol_rule_notices_a_shared_function(tmp_path: Path, code: str, expected: int) -> None:
    source, target = tmp_path / "worker.cpp", tmp_path / "worker.cpp.avx2.o"
    source.write_text(code)
    subprocess.run(["g++", "-std=c++17", "-c", str(source), "-o", str(target)], check=True)
    assert len(symbol_faults(target.name, symbols(target))) == expected
