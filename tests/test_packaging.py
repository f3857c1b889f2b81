"""setup.py's decisions, when it compiles again, and what it left in this tree."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from setuptools import Distribution

import bertadam_cuda
from bertadam_cuda import _ext

ROOT = Path(__file__).resolve().parent.parent


sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]
setup = importlib.import_module("setup")
environment = importlib.import_module("environment")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*os.environ,):
        if name.startswith("BERTADAM_CUDA_") or name in {"CUDA_HOME", "CUDA_PATH", "MAX_JOBS"}:
            monkeypatch.delenv(name)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)


# Which compiler, and for which GPUs


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)


def torch_with_cuda(version: str | None) -> SimpleNamespace:
    return SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda=version))


@pytest.mark.usefixtures("no_nvcc")
def test_cpu_torch_without_nvcc_builds_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "torch", torch_with_cuda(None))
    assert setup.find_nvcc() is None


@pytest.mark.usefixtures("no_nvcc")
def test_cuda_torch_without_nvcc_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "torch", torch_with_cuda("13.0"))
    with pytest.raises(SystemExit, match="set BERTADAM_CUDA_FORCE_CUDA=0 for a CPU-only build"):
        setup.find_nvcc()
    monkeypatch.setenv("BERTADAM_CUDA_FORCE_CUDA", "0")
    assert setup.find_nvcc() is None


@pytest.mark.usefixtures("no_nvcc")
def test_forced_cuda_without_nvcc_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "torch", torch_with_cuda(None))
    monkeypatch.setenv("BERTADAM_CUDA_FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="BERTADAM_CUDA_FORCE_CUDA=1 needs nvcc"):
        setup.find_nvcc()


def test_wrong_cuda_home_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="has no bin/nvcc; correct it or unset it"):
        setup.find_nvcc()
    monkeypatch.setenv("BERTADAM_CUDA_FORCE_CUDA", "0")
    assert setup.find_nvcc() is None


def test_setting_that_is_no_switch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTADAM_CUDA_FORCE_CUDA", "maybe")
    with pytest.raises(SystemExit, match="'maybe', expected auto, 1 or 0"):
        setup.find_nvcc()


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_setting_that_is_no_count_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MAX_JOBS", value)
    with pytest.raises(SystemExit, match="expected a positive whole number"):
        setup.env_count("MAX_JOBS", 2)


@needs_nvcc
def test_nvcc_knows_its_own_runtime() -> None:
    nvcc = setup.find_nvcc()
    assert (Path(nvcc.library_dir) / "libcudart_static.a").exists()
    assert int(nvcc.version.split(".")[0]) >= 12


def nvcc_for(*known: int) -> object:
    nvcc = setup.Nvcc.__new__(setup.Nvcc)
    nvcc.version, nvcc.known = "13.0", [f"sm_{number}" for number in known]
    return nvcc


MODERN = (75, 80, 86, 89, 90, 100, 120)


@pytest.mark.parametrize(
    ("asked", "known", "expected"),
    [
        (None, MODERN, "sm_80 sm_86 sm_89 sm_90 sm_100 sm_120 compute_120"),
        (None, (80, 86, 89, 90), "sm_80 sm_86 sm_89 sm_90 compute_90"),
        ("9.0", MODERN, "sm_90"),
        ("8.0;9.0+PTX", MODERN, "sm_80 sm_90 compute_90"),
        ("8.0 9.0", MODERN, "sm_80 sm_90"),
        ("9.0a", MODERN, "sm_90a"),
    ],
)
def test_architectures_are_those_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, known: tuple[int, ...], expected: str
) -> None:
    if asked is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert " ".join(nvcc_for(*known).codes()) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("Hopper", "cannot read 'Hopper', expected the form"),
        ("90", "cannot read '90', expected the form"),
        ("7.0", "nvcc 13.0 cannot generate 7.0"),
        ("9.0;13.0", "nvcc 13.0 cannot generate 13.0"),
    ],
)
def test_unknown_architecture_is_an_error(
    monkeypatch: pytest.MonkeyPatch, asked: str, message: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(SystemExit, match=message):
        nvcc_for(*MODERN).codes()


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("TORCH_ERROR", ImportError("No module named 'torch'"), "pip install --no-build-isolation"),
        (
            "torch",
            SimpleNamespace(__version__="2.10.1+cpu"),
            "torch is 2.10.1.cpu, expected >= 2.11",
        ),
    ],
)
def test_compiling_without_a_usable_torch_is_an_error(
    monkeypatch: pytest.MonkeyPatch, attribute: str, value: object, message: str
) -> None:
    monkeypatch.setattr(setup, attribute, value)
    with pytest.raises(SystemExit, match=message):
        setup.BuildC(Distribution()).run()


# Objects are compiled again when, and only when, something of theirs changed


def test_objects_follow_their_headers_flags_and_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / "number.h").write_text("#define NUMBER 1\n")
    (tmp_path / "source.cpp").write_text('#include "number.h"\nint number() { return NUMBER; }\n')
    for name in ("number.h", "source.cpp"):
        os.utime(tmp_path / name, (1, 1))

    def compiled(*flags: str, identity: str = "g++ 1", extra: tuple[str, ...] = ()) -> bool:
        target = tmp_path / "out" / "source.cpp.o"
        setup.compile_object(["c++", *flags], identity, "source.cpp", target, *extra)
        return "source.cpp" in capfd.readouterr().out

    assert compiled()
    assert not compiled()
    assert not compiled(extra=("-pipe",))
    assert compiled("-O1")
    assert compiled("-O1", identity="g++ 2")
    assert not compiled("-O1", identity="g++ 2")
    (tmp_path / "number.h").write_text("#define NUMBER 2\n")
    os.utime(tmp_path / "number.h", (1, 1))
    assert compiled("-O1", identity="g++ 2")
    (tmp_path / "number.h").write_text("#define NUMBER nonsense\n")
    with pytest.raises(SystemExit, match=r"source\.cpp does not compile"):
        compiled("-O1", identity="g++ 2")
    (tmp_path / "number.h").write_text("#define NUMBER 2\n")
    assert compiled("-O1", identity="g++ 2"), "a failed compilation must not be taken for done"


def test_object_is_not_trusted_when_a_source_changed_while_it_was_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / "source.cpp").write_text("int number() { return 1; }\n")
    slow = tmp_path / "slow-compiler"
    slow.write_text('#!/bin/sh\nc++ "$@" && sleep 0.1 && echo "int x;" >> source.cpp\n')
    slow.chmod(0o755)
    for _ in range(2):
        setup.compile_object([str(slow)], "slow", "source.cpp", tmp_path / "source.cpp.o")
        assert "slow-compiler" in capfd.readouterr().out


# What is built here


def test_build_info_is_of_this_version_and_lists_the_instruction_sets() -> None:
    info = _ext.build_info()
    assert info["version"].split("+")[0] == bertadam_cuda.__version__
    assert info["isas"] == setup.ISAS
    assert bool(info["archs"]) == (info["nvcc"] is not None) == _ext.load().with_cuda


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_binary_needs_no_cuda_library() -> None:
    """It must load on a machine without driver and toolkit; the runtime is linked statically."""
    command = ["readelf", "-d", _ext.load().__file__]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = [line for line in listing.splitlines() if "NEEDED" in line]
    assert any("libtorch_cpu" in line or "libtorch.so" in line for line in needed)
    assert not [line for line in needed if "cuda" in line]


def test_metadata_lets_pip_keep_the_torch_that_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'requires = ["setuptools>=64", "wheel"]' in text
    assert 'dependencies = ["torch>=2.11"]' in text


# The interpreter that `make` works with


def test_interpreter_that_has_everything_is_used_as_it_is() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "environment.py"), "test"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == sys.executable
    assert done.stderr == ""


def test_missing_packages_and_wrong_versions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(sys.executable)
    wanted = ["torch", "pytest", f"pytest=={pytest.__version__}", "pytest==1.0", "no-such-package"]
    assert environment.missing(here, wanted) == ["pytest==1.0", "no-such-package"]
    monkeypatch.setattr(environment, "OLDEST_TORCH", (99, 0))
    assert environment.missing(here, ["torch", "pytest"]) == ["torch"]
