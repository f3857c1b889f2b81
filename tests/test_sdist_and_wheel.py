"""What an sdist and a wheel hold, and that both can be used."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

import bertadam_cuda

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bertadam_cuda"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The sources as a fresh clone has them."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json", ".*_cache", "runs")
    target = tmp_path / "clone"
    for top in ("csrc", "bertadam_cuda", "tests", "bench", ".ci"):
        shutil.copytree(ROOT / top, target / top, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and path.name not in (".git", ".gitignore"):  # a worktree has a file .git
            shutil.copy(path, target)
    return target


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def without_torch(tmp_path: Path) -> Mapping[str, str]:
    """An environment in which `import torch` fails."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('there is no torch')\n")
    return {"PYTHONPATH": str(tmp_path / "broken")}


def sdist_of(clone: Path, environment: Mapping[str, str]) -> Path:
    done = python("setup.py", "-q", "sdist", cwd=clone, **environment)
    assert done.returncode == 0, done.stderr
    (archive,) = (clone / "dist").glob("*.tar.gz")
    return archive


def test_sdist_needs_no_torch_and_holds_every_source_and_nothing_built(
    clone: Path, tmp_path: Path
) -> None:
    sources = {str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_file()}
    (clone / "bertadam_cuda" / "_build_info.json").write_text("{}")
    (clone / "bertadam_cuda" / "_C.cpython-311-x86_64-linux-gnu.so").write_text("binary")
    (clone / "tests" / "__pycache__").mkdir()
    (clone / "tests" / "__pycache__" / "conftest.pyc").write_text("bytecode")
    with tarfile.open(sdist_of(clone, without_torch(tmp_path))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        folders = {m.name.split("/", 1)[1] for m in archive if m.isdir() and "/" in m.name}
        (info,) = (
            name for name in archive.getnames() if name.count("/") == 1 and "PKG-INFO" in name
        )
        member = archive.extractfile(info)
        assert member is not None
        metadata = email.message_from_bytes(member.read())
    generated = {"PKG-INFO", "setup.cfg"}
    shipped = {n for n in names - folders - generated if ".egg-info" not in n}
    assert shipped == sources
    assert metadata["Version"] == bertadam_cuda.__version__
    assert "Apache-2.0" in (metadata["License-Expression"], metadata["License"])
    requirements = metadata.get_all("Requires-Dist") or []
    assert "torch>=2.11" in {line.replace(" ", "") for line in requirements}


def test_build_without_torch_says_what_to_do(clone: Path, tmp_path: Path) -> None:
    done = python("setup.py", "build_ext", cwd=clone, **without_torch(tmp_path))
    assert done.returncode == 1
    assert "torch is not importable where the build runs (there is no torch)" in done.stderr
    assert "pip install --no-build-isolation ." in done.stderr


@pytest.mark.slow
def test_wheel_from_the_sdist_installs_and_passes_its_own_test(clone: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist_of(clone, {})) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    settings = {"BERTADAM_CUDA_FORCE_CUDA": "0", "BERTADAM_CUDA_LOCAL_VERSION": "cpu"}
    # What pip runs without build isolation.
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    built = python("-c", code, cwd=source, PYTHONPATH="", **settings)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (source / "dist").glob("bertadam_cuda-*+cpu-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/", 1)[1] for name in archive.namelist()}
        modules = {p.name for pattern in ("*.py", "*.pyi") for p in PACKAGE.glob(pattern)}
        assert modules | {"py.typed", "_build_info.json"} <= names
        info = json.loads(archive.read("bertadam_cuda/_build_info.json"))
        archive.extractall(tmp_path / "installed")
    assert info["nvcc"] is None
    assert info["version"] == f"{bertadam_cuda.__version__}+cpu"
    tried = python(
        "-m",
        "bertadam_cuda",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "installed"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert tried.returncode == 0, tried.stdout
