"""Print the Python interpreter to work with, after installing what is missing.

    python3 .ci/environment.py test|pretrain|check ...

An interpreter that has torch is used as it is: on a GPU node that torch fits the driver and nothing
need be downloaded. Tools that it lacks go into .venv, which then sees its packages. Without torch,
.venv gets torch itself as well.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

VENV = Path(__file__).resolve().parent.parent / ".venv"
TORCH, OLDEST_TORCH = "torch==2.13.0", (2, 11)
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
BUILD = ("pip", "setuptools", "wheel", "ninja")
PURPOSES = {
    "test": (*BUILD, "numpy", "pytest"),
    "pretrain": (*BUILD, "numpy", "transformers", "tokenizers", "matplotlib", "tqdm"),
    # Pinned: another version formats otherwise.
    "check": (*BUILD, "numpy", "pytest", "ruff==0.17.6", "mypy==2.4.1", "clang-format==23.1.5"),
}
OPTIONAL = {"pip", "wheel", "ninja"}  # no reason to leave an interpreter that has torch

PROBE = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def say(message: str) -> None:
    print(f"environment: {message}", file=sys.stderr, flush=True)


def missing(python: Path, requirements: list[str]) -> list[str]:
    """What `python` does not have, in the version asked for; torch also when it is too old."""
    names = [requirement.split("==")[0] for requirement in requirements]
    probe = [str(python), "-c", PROBE, *names]
    found = json.loads(subprocess.run(probe, check=True, capture_output=True, text=True).stdout)
    version = found.get("torch", "0.0").split(".")
    if (int(version[0]), int(version[1])) < OLDEST_TORCH:
        found.pop("torch", None)
    return [
        requirement
        for requirement, name in zip(requirements, names, strict=True)
        if name not in found or requirement not in (name, f"{name}=={found[name]}")
    ]


def pip(python: Path, *arguments: str) -> None:
    say(f"pip install {' '.join(arguments)}")
    command = [str(python), "-m", "pip", "install"]
    if missing(python, ["pip"]):
        command = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    # Python makes bytecode as it imports; to make all of torch's at once takes half a minute.
    command += ["-q", "--no-compile", *arguments]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, stdout=sys.stderr, env=environment)
    if done.returncode:
        sys.exit(f"environment: cannot install {' '.join(arguments)} into {python}; do so yourself")


def virtual_environment(*, sees_outer: bool) -> Path:
    python = VENV / "bin" / "python"
    if python.exists():
        return python
    say(f"creating {VENV}")
    command = [sys.executable, "-m", "venv", str(VENV)]
    command += ["--system-site-packages"] if sees_outer else []
    if subprocess.run(command, capture_output=True).returncode:
        # A Debian without python3-venv: no pip for the venv, but the outer one can serve it.
        subprocess.run([*command, "--clear", "--without-pip"], check=True)
    if sees_outer and sys.prefix != sys.base_prefix:
        # "system" means the base installation; an outer venv has to be named.
        (place,) = glob.glob(str(VENV / "lib" / "python*" / "site-packages"))
        packages = [path for path in sys.path if path.endswith("site-packages")]
        Path(place, "outer.pth").write_text("\n".join(packages) + "\n")
    return python


def torch_source() -> list[str]:
    """Where there is no GPU, prefer the CPU wheel, a tenth of the size, if it can be reached."""
    if glob.glob("/dev/nvidia[0-9]*"):
        return []
    try:
        urllib.request.urlopen(f"{CPU_WHEELS}/torch/", timeout=5).close()
    except OSError:
        return []
    return ["--extra-index-url", CPU_WHEELS]


def prepare(purposes: list[str]) -> Path:
    outer = Path(sys.executable)
    names = list(dict.fromkeys(name for purpose in purposes for name in PURPOSES[purpose]))
    has_torch = not missing(outer, ["torch"])
    if has_torch and not set(missing(outer, names)) - OPTIONAL:
        return outer
    python = virtual_environment(sees_outer=has_torch)
    lacking = missing(python, ["torch", *names])
    if "torch" in lacking:
        packages = [name for name in lacking if name != "torch"]
        pip(python, *torch_source(), TORCH, *packages)
    elif set(lacking) - OPTIONAL:
        pip(python, *lacking)
    return python


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - the only file that an older Python reads
        sys.exit(
            f"environment: Python is {sys.version.split()[0]}, expected >= 3.10; make PYTHON=..."
        )
    unknown = [name for name in sys.argv[1:] if name not in PURPOSES]
    if unknown or not sys.argv[1:]:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(PURPOSES)} ...")
    print(prepare(sys.argv[1:]))
