"""The shapes are those of the models that they name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from model_shapes import MODELS, count_elements, decays


@pytest.mark.parametrize(
    ("model", "n_tensors", "n_decayed", "n_elements"),
    [("bert-base", 206, 78, 110_106_428), ("bert-large", 398, 150, 336_226_108)],
)
def test_bert_has_the_known_numbers(
    model: str, n_tensors: int, n_decayed: int, n_elements: int
) -> None:
    shapes = MODELS[model]()
    assert len(shapes) == n_tensors
    assert sum(map(decays, shapes)) == n_decayed
    assert count_elements(shapes) == n_elements


def test_synthetic_sets_have_the_sizes_in_their_names() -> None:
    sizes = {name: (len(MODELS[name]()), count_elements(MODELS[name]())) for name in MODELS}
    assert sizes["10000x1000"] == (10_000, 10_000_000)
    assert sizes["20x16M"] == (20, 20 * 2**24)
    assert sizes["1x1e9"] == (1, 10**9)


@pytest.mark.parametrize("model", ["bert-base", "bert-large", "modernbert-large", "gpt2-xl"])
def test_shapes_are_those_of_transformers(model: str) -> None:
    transformers = pytest.importorskip("transformers")
    kinds: dict[str, tuple[str, str, dict[str, int]]] = {
        "bert-base": ("Bert", "ForPreTraining", {}),
        "bert-large": (
            "Bert",
            "ForPreTraining",
            {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
            },
        ),
        "modernbert-large": (
            "ModernBert",
            "ForMaskedLM",
            {
                "hidden_size": 1024,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "intermediate_size": 2624,
            },
        ),
        "gpt2-xl": ("GPT2", "LMHeadModel", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    }
    family, head, settings = kinds[model]
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.device("meta"):
        built = getattr(transformers, family + head)(config)
    expected = {name: tuple(param.shape) for name, param in built.named_parameters()}
    assert list(MODELS[model]().items()) == list(expected.items())
