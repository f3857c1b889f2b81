"""Dynamic masking of BERT: which tokens a model has to predict, drawn anew in every epoch.

Batch number i is a function of (blocks, seed, i) alone. So a run that is resumed, or compared
with another one, sees the same batches without any state of a random generator being kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from vocabulary import MASK_ID, SPECIAL_TOKENS

# Devlin et al. 2019, section 3.1: 15 % of the tokens are predicted; of these 80 % are replaced by
# [MASK], 10 % by a random token, 10 % are kept.
MASKED_FRACTION = 0.15
MASK_TOKEN_FRACTION = 0.8
RANDOM_TOKEN_FRACTION = 0.1

# First words of the generators' seeds: independent streams for each purpose.
_ORDER, _MASKS, _HELD_OUT = range(3)


@dataclass(frozen=True)
class MaskedBatch:
    """Input ids [batch, seq_len], and what is predicted: positions in the flat ids, labels."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> MaskedBatch:
        """Copy to `device`; to a GPU from pinned memory, so that the host need not wait."""
        if device.type == "cpu":
            return self
        tensors = (self.input_ids, self.positions, self.labels)
        return MaskedBatch(*(t.pin_memory().to(device, non_blocking=True) for t in tensors))


def masked_batch(
    blocks: np.ndarray, vocab_size: int, generator: np.random.Generator
) -> MaskedBatch:
    """Choose each ordinary token with probability 15 % and hide it; special tokens stay.

    At least one token is chosen, so that a mean over the chosen ones exists.
    """
    maskable = blocks >= len(SPECIAL_TOKENS)
    chosen = maskable & (generator.random(blocks.shape) < MASKED_FRACTION)
    if not chosen.any():
        chosen.flat[generator.choice(np.flatnonzero(maskable))] = True
    fate = generator.random(blocks.shape)
    random_ids = generator.integers(len(SPECIAL_TOKENS), vocab_size, blocks.shape)
    hidden = chosen & (fate < MASK_TOKEN_FRACTION)
    swapped = chosen & ~hidden & (fate < MASK_TOKEN_FRACTION + RANDOM_TOKEN_FRACTION)
    input_ids = np.where(hidden, MASK_ID, np.where(swapped, random_ids, blocks))
    return MaskedBatch(
        input_ids=torch.from_numpy(input_ids),
        positions=torch.from_numpy(np.flatnonzero(chosen)),
        labels=torch.from_numpy(blocks[chosen]),
    )


class TrainingBatches:
    """The endless sequence of training batches: every epoch is a new order with new masks."""

    def __init__(self, blocks: np.ndarray, vocab_size: int, batch: int, seed: int) -> None:
        self._blocks = blocks
        self._vocab_size = vocab_size
        self._batch = batch
        self._seed = seed
        self._order = (-1, np.empty(0, dtype=np.int64))  # of one epoch; drawn again when needed

    def __getitem__(self, index: int) -> MaskedBatch:
        places = range(index * self._batch, (index + 1) * self._batch)
        rows = [self._row(place) for place in places]
        generator = np.random.default_rng((_MASKS, self._seed, index))
        return masked_batch(self._blocks[rows], self._vocab_size, generator)

    def _row(self, place: int) -> int:
        epoch, within = divmod(place, len(self._blocks))
        if self._order[0] != epoch:
            generator = np.random.default_rng((_ORDER, self._seed, epoch))
            self._order = (epoch, generator.permutation(len(self._blocks)))
        return int(self._order[1][within])


def held_out_batches(blocks: np.ndarray, vocab_size: int, batch: int) -> list[MaskedBatch]:
    """The validation set: masked once, the same for every seed, so that runs are comparable."""
    starts = range(0, len(blocks), batch)
    return [
        masked_batch(
            blocks[start : start + batch],
            vocab_size,
            np.random.default_rng((_HELD_OUT, start)),
        )
        for start in starts
    ]
