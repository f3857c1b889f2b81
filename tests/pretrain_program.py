"""A pytest plugin with one fixture: the pretraining program on a micro model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pretrain_cases import MICRO, Program, write_corpus

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """The program's `main` with micro settings; what it sets in torch is put back afterwards."""
    for package in ("transformers", "tokenizers", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    if str(BENCH) not in sys.path:
        sys.path.insert(0, str(BENCH))
    import bert_model
    import pretrain_bert

    monkeypatch.setitem(bert_model.SIZES, "tiny", bert_model.BertSize(1, 32))
    corpus = write_corpus(tmp_path / "corpus.txt")
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled, threads = torch.utils.deterministic.fill_uninitialized_memory, torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*more: object, out: str = "out") -> int:
        fixed = [*MICRO, "--corpus", str(corpus), "--out", str(tmp_path / out)]
        return pretrain_bert.main([*fixed, *map(str, more)])

    yield run
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled
