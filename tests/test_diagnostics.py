"""`python -m bertadam_cuda`: its report, its exit code, and its own test of a step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bertadam_cuda
from bertadam_cuda import _ext
from bertadam_cuda.__main__ import coverage
from bertadam_cuda._self_test import bits_fault, step_fault

PACKAGE = Path(bertadam_cuda.__file__).parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the built package, to be damaged."""
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "bertadam_cuda", ignore=ignore))


def binary_of(package: Path) -> Path:
    (binary,) = package.glob("_C*.so")
    return binary


def report(package: Path) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "bertadam_cuda"],
        cwd=package.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_sound_installation_passes_and_names_its_versions(package: Path) -> None:
    code, text = report(package)
    assert code == 0, text
    info = json.loads((package / "_build_info.json").read_text())
    assert bertadam_cuda.__version__ in text
    assert torch.__version__ in text
    assert " ".join(info["isas"]) in text
    assert " ".join(info["archs"]) in text
    assert str(binary_of(package)) in text
    assert "step on cpu" in text
    assert "FAILED" not in text


def test_missing_binary_is_reported_with_the_build_command(package: Path) -> None:
    binary_of(package).unlink()
    code, text = report(package)
    assert code == 1
    assert "cannot be loaded" in text
    assert "pip install --no-build-isolation" in text


def test_corrupt_binary_is_reported_though_opening_it_ends_the_process(package: Path) -> None:
    """A truncated library raises SIGBUS."""
    binary = binary_of(package)
    content = binary.read_bytes()[:1000]
    binary.unlink()
    binary.write_bytes(content)
    code, text = report(package)
    assert code == 1
    assert "binary         FAILED" in text
    assert "pip install --no-build-isolation" in text


def test_binary_of_another_torch_is_not_even_opened(package: Path) -> None:
    path = package / "_build_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "1.13.1+cu117"}))
    binary_of(package).write_bytes(b"opening this would give another message")
    code, text = report(package)
    assert code == 1
    assert "compiled against torch 1.13.1+cu117" in text
    assert f"torch {torch.__version__} is installed" in text
    assert "cannot be loaded" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the extension is not built"),
        ("{", "_build_info.json is damaged"),
        ("[]", "_build_info.json is damaged"),
    ],
)
def test_build_info_that_is_missing_or_damaged_is_an_import_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "_build_info.json").write_text(content)
    monkeypatch.setattr(_ext, "__file__", str(tmp_path / "_ext.py"))
    with pytest.raises(ImportError, match=f"{message}.*pip install --no-build-isolation"):
        _ext.load.__wrapped__()


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        (["sm_80", "sm_90"], (9, 0), "sm_90"),
        (["sm_80"], (8, 6), "sm_80"),
        (["sm_86"], (8, 0), None),
        (["sm_80"], (9, 0), None),
        (["sm_80", "compute_80"], (9, 0), "compute_80"),
        (["sm_120", "compute_120"], (9, 0), None),
        (["sm_100"], (10, 3), "sm_100"),
        (["sm_90a"], (9, 0), "sm_90a"),
        (["sm_90a", "compute_90a"], (10, 0), None),
        (["sm_100a"], (10, 3), None),
        (["sm_100f"], (10, 3), "sm_100f"),
        (["compute_100f"], (12, 0), None),
        ([], (9, 0), None),
    ],
)
def test_coverage_follows_the_compatibility_of_machine_code_and_ptx(
    archs: list[str], capability: tuple[int, int], expected: str | None
) -> None:
    found = coverage(*capability, archs)
    assert (found.split()[0] if found else None) == expected


def test_self_test_passes_on_a_true_step() -> None:
    assert step_fault(torch.device("cpu")) is None


@pytest.mark.parametrize("sabotage", ["nothing", "lr", "no_decay", "last_element"])
def test_self_test_notices_a_wrong_step(monkeypatch: pytest.MonkeyPatch, sabotage: str) -> None:
    true_step = bertadam_cuda.BertAdam.step

    def wrong_step(self: bertadam_cuda.BertAdam) -> None:
        if sabotage == "nothing":
            for param in self.param_groups[0]["params"]:
                self._init_state(param)
            return
        params = self.param_groups[0]["params"]
        old = [param.detach().clone() for param in params]
        if sabotage == "lr":
            self.param_groups[0]["lr"] *= 1.01
        if sabotage == "no_decay":
            self.param_groups[0]["weight_decay"] = 0.0
        true_step(self)
        if sabotage == "lr":
            self.param_groups[0]["lr"] /= 1.01
        if sabotage == "last_element":
            with torch.no_grad():
                params[-1].flatten()[-1] = old[-1].flatten()[-1]

    monkeypatch.setattr(bertadam_cuda.BertAdam, "step", wrong_step)
    assert step_fault(torch.device("cpu")) is not None


@pytest.mark.gpu
def test_self_test_passes_on_every_gpu() -> None:
    for index in range(torch.cuda.device_count()):
        assert step_fault(torch.device("cuda", index)) is None
        assert bits_fault(torch.device("cuda", index)) is None


@pytest.mark.parametrize("rule", ["BertAdam", "Adam", "LAMB", "LARS"])
def test_self_test_notices_bits_that_differ(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """The first of a pair of runs has the last bit of one parameter wrong."""
    assert bits_fault(torch.device("cpu")) is None
    kind = getattr(bertadam_cuda, rule)
    true_step, seen = kind.step, []

    def wrong_step(self: torch.optim.Optimizer) -> None:
        true_step(self)
        seen.append(self)
        if all(other is self for other in seen):
            params = self.param_groups[0]["params"]
            params[-1].data.view(-1)[-1].view(torch.int32).add_(1)

    monkeypatch.setattr(kind, "step", wrong_step)
    fault = bits_fault(torch.device("cpu"))
    assert fault is not None
    assert fault.startswith(rule)
    assert "params[5]" in fault
