"""Load the compiled part once, and explain what to do when that is impossible."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ._version import __version__

REMEDY = "in the source tree run: pip install --no-build-isolation --no-deps --force-reinstall ."


def build_info() -> dict[str, Any]:
    """What setup.py recorded about the binary; empty where nothing is built."""
    path = Path(__file__).with_name("_build_info.json")
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ImportError(f"bertadam_cuda: {path} is damaged ({error}); {REMEDY}") from error
    if not isinstance(info, dict):
        raise ImportError(f"bertadam_cuda: {path} is damaged (no table); {REMEDY}")
    return info


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


@functools.cache
def load() -> ModuleType:
    """Import `bertadam_cuda._C`.

    Raises ImportError, with the command that mends it, when the binary is missing, damaged, or
    compiled against another minor version of torch. The versions are compared before the binary is
    opened: one of another torch may load and then misread every tensor.
    """
    info = build_info()
    built_with = info.get("torch")
    if built_with is None:
        raise ImportError(f"bertadam_cuda {__version__}: the extension is not built; {REMEDY}")
    if _minor(str(built_with)) != _minor(torch.__version__):
        raise ImportError(
            f"bertadam_cuda {__version__} was compiled against torch {built_with}, but torch "
            f"{torch.__version__} is installed, expected {_minor(str(built_with))}.*; {REMEDY}"
        )
    try:
        return importlib.import_module("bertadam_cuda._C")
    except ImportError as error:
        raise ImportError(
            f"bertadam_cuda {__version__}: the extension, built for Python "
            f"{info.get('python')} and torch {built_with}, cannot be loaded: {error}; {REMEDY}"
        ) from error
