"""Parameter shapes of models as data, so that a benchmark of the step needs no model.

Names follow the transformers library, whose configurations the tests compare these with. Tied
weights appear once. This file knows neither torch nor the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable

#: Name of a parameter -> its shape, in the model's order.
Shapes = dict[str, tuple[int, ...]]


def bert(
    hidden: int, layers: int, intermediate: int, vocabulary: int = 30522, positions: int = 512
) -> Shapes:
    """BertForPreTraining: the decoder is the word embedding, its bias that of the predictions."""
    shapes: Shapes = {
        "bert.embeddings.word_embeddings.weight": (vocabulary, hidden),
        "bert.embeddings.position_embeddings.weight": (positions, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
        **_layer_norm("bert.embeddings.LayerNorm", hidden),
    }
    for layer in range(layers):
        prefix = f"bert.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{prefix}.attention.self.{part}", hidden, hidden)
        shapes |= _linear(f"{prefix}.attention.output.dense", hidden, hidden)
        shapes |= _layer_norm(f"{prefix}.attention.output.LayerNorm", hidden)
        shapes |= _linear(f"{prefix}.intermediate.dense", intermediate, hidden)
        shapes |= _linear(f"{prefix}.output.dense", hidden, intermediate)
        shapes |= _layer_norm(f"{prefix}.output.LayerNorm", hidden)
    return {
        **shapes,
        **_linear("bert.pooler.dense", hidden, hidden),
        "cls.predictions.bias": (vocabulary,),
        **_linear("cls.predictions.transform.dense", hidden, hidden),
        **_layer_norm("cls.predictions.transform.LayerNorm", hidden),
        **_linear("cls.seq_relationship", 2, hidden),
    }


def modern_bert_large() -> Shapes:
    """ModernBertForMaskedLM, large: no biases but the decoder's, no first attention norm."""
    hidden, layers, intermediate, vocabulary = 1024, 28, 2624, 50368
    shapes: Shapes = {
        "model.embeddings.tok_embeddings.weight": (vocabulary, hidden),
        "model.embeddings.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        if layer > 0:
            shapes[f"{prefix}.attn_norm.weight"] = (hidden,)
        shapes[f"{prefix}.attn.Wqkv.weight"] = (3 * hidden, hidden)
        shapes[f"{prefix}.attn.Wo.weight"] = (hidden, hidden)
        shapes[f"{prefix}.mlp_norm.weight"] = (hidden,)
        shapes[f"{prefix}.mlp.Wi.weight"] = (2 * intermediate, hidden)
        shapes[f"{prefix}.mlp.Wo.weight"] = (hidden, intermediate)
    return {
        **shapes,
        "model.final_norm.weight": (hidden,),
        "head.dense.weight": (hidden, hidden),
        "head.norm.weight": (hidden,),
        "decoder.bias": (vocabulary,),
    }


def gpt2_xl() -> Shapes:
    """GPT2LMHeadModel, XL; its matrices are stored (in, out)."""
    hidden, layers = 1600, 48
    shapes: Shapes = {
        "transformer.wte.weight": (50257, hidden),
        "transformer.wpe.weight": (1024, hidden),
    }
    for layer in range(layers):
        prefix = f"transformer.h.{layer}"
        shapes |= _layer_norm(f"{prefix}.ln_1", hidden)
        shapes |= _linear(f"{prefix}.attn.c_attn", hidden, 3 * hidden, bias=3 * hidden)
        shapes |= _linear(f"{prefix}.attn.c_proj", hidden, hidden)
        shapes |= _layer_norm(f"{prefix}.ln_2", hidden)
        shapes |= _linear(f"{prefix}.mlp.c_fc", hidden, 4 * hidden, bias=4 * hidden)
        shapes |= _linear(f"{prefix}.mlp.c_proj", 4 * hidden, hidden, bias=hidden)
    return {**shapes, **_layer_norm("transformer.ln_f", hidden)}


def equal_tensors(count: int, n_elements: int) -> Shapes:
    """`count` matrices of the same length: what a plan does with many small or few large ones."""
    return {f"matrix.{index}.weight": (n_elements,) for index in range(count)}


def _linear(name: str, rows: int, columns: int, bias: int | None = None) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (bias or rows,)}


def _layer_norm(name: str, hidden: int) -> Shapes:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}


MODELS: dict[str, Callable[[], Shapes]] = {
    # A dozen tensors that finish in milliseconds, for tests and for trying out.
    "bert-toy": lambda: bert(32, 1, 64, vocabulary=100, positions=16),
    "bert-base": lambda: bert(768, 12, 3072),
    "bert-large": lambda: bert(1024, 24, 4096),
    "modernbert-large": modern_bert_large,
    "gpt2-xl": gpt2_xl,
    "10000x1000": lambda: equal_tensors(10_000, 1_000),
    "20x16M": lambda: equal_tensors(20, 16 * 2**20),
    "1x1e9": lambda: equal_tensors(1, 10**9),
}


def decays(name: str) -> bool:
    """Whether BERT training decays the parameter: neither a bias nor a norm."""
    return not name.endswith("bias") and not any(
        part.lower().endswith("norm") or part.startswith("ln_") for part in name.split(".")
    )


def count_elements(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
