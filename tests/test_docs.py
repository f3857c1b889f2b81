"""The examples in the documentation run."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import bertadam_cuda.adam
import bertadam_cuda.amp
import bertadam_cuda.bert_adam
import bertadam_cuda.lamb
import bertadam_cuda.lars
import bertadam_cuda.param_groups
import bertadam_cuda.schedules

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    bertadam_cuda.adam,
    bertadam_cuda.amp,
    bertadam_cuda.bert_adam,
    bertadam_cuda.lamb,
    bertadam_cuda.lars,
    bertadam_cuda.param_groups,
    bertadam_cuda.schedules,
)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module, verbose=False).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Adam", "AdamW", "BertAdam", "LAMB", "LARS"])
def test_an_optimizer_has_an_example(name: str) -> None:
    text = getattr(bertadam_cuda, name).__doc__
    assert text is not None
    assert len(doctest.DocTestParser().get_examples(text)) >= 5


def test_examples_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    targets = re.findall(r"^    make ([a-z-]+)", text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
