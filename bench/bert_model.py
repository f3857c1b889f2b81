"""BERT with random weights, in the sizes of Google's miniatures, and its masked-token loss.

The architecture is transformers' BertForMaskedLM; nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from masking import MaskedBatch
from transformers import BertConfig, BertForMaskedLM

MAX_POSITIONS = 512
HEAD_WIDTH = 64


@dataclass(frozen=True)
class BertSize:
    """Layers and hidden width; heads are 64 wide, the inner layer is four times the width."""

    n_layers: int
    hidden: int


# Turc et al. 2019, "Well-Read Students Learn Better", table 1; base and large: Devlin et al. 2019.
SIZES = {
    "tiny": BertSize(2, 128),
    "mini": BertSize(4, 256),
    "small": BertSize(4, 512),
    "base": BertSize(12, 768),
    "large": BertSize(24, 1024),
}


def random_bert(size: BertSize, vocab_size: int, dropout: float) -> BertForMaskedLM:
    """Build a BERT whose initial weights come from torch's global generator."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=size.hidden,
        num_hidden_layers=size.n_layers,
        num_attention_heads=max(1, size.hidden // HEAD_WIDTH),
        intermediate_size=4 * size.hidden,
        max_position_embeddings=MAX_POSITIONS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForMaskedLM(config)


def masked_loss(model: BertForMaskedLM, batch: MaskedBatch) -> torch.Tensor:
    """Mean cross entropy in nats over the chosen tokens.

    Only they pass the output layer, as in Google's run_pretraining.py (gather_indexes): the model's
    own forward would compute logits over the vocabulary for all tokens, most of the time of a
    small BERT. Blocks are full, so there is no padding and no attention mask.
    """
    hidden = model.bert(input_ids=batch.input_ids).last_hidden_state
    chosen = hidden.flatten(0, 1).index_select(0, batch.positions)
    return torch.nn.functional.cross_entropy(model.cls(chosen).float(), batch.labels)
