"""The vocabulary and the blocks are those of the text; masks have BERT's statistics."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import masking
import vocabulary
from corpus import Corpus, load_corpus
from masking import MaskedBatch, TrainingBatches, held_out_batches, masked_batch
from pretrain_cases import write_corpus
from vocabulary import CLS_ID, MASK_ID, PAD_ID, SEP_ID, SPECIAL_TOKENS, UNK_ID

N_SPECIAL = len(SPECIAL_TOKENS)
VOCAB_SIZE = 1000


def random_blocks(n_blocks: int, seq_len: int, special_fraction: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    ids = rng.integers(N_SPECIAL, VOCAB_SIZE, (n_blocks, seq_len))
    special = rng.random(ids.shape) < special_fraction
    return np.where(special, rng.integers(0, N_SPECIAL, ids.shape), ids)


def assert_binomial(n_hits: int, n_trials: int, probability: float) -> None:
    """Within 5 sigma: a correct generator fails once in 1.7 million seeds, and the seed is set."""
    sigma = math.sqrt(n_trials * probability * (1 - probability))
    excess = (n_hits - n_trials * probability) / sigma
    assert abs(excess) <= 5, f"{n_hits / n_trials:.4f}, not {probability:.4f}: {excess:.1f} sigma"


def originals(batch: MaskedBatch) -> np.ndarray:
    """The ids before masking, put together from what the model sees and what it must predict."""
    ids = batch.input_ids.clone()
    ids.view(-1)[batch.positions] = batch.labels
    return ids.numpy()


def assert_statistics(blocks: np.ndarray, batch: MaskedBatch) -> None:
    """15 % of the ordinary tokens are chosen; 80 % become [MASK], 10 % random, 10 % stay."""
    n_chosen = len(batch.positions)
    assert_binomial(n_chosen, int((blocks >= N_SPECIAL).sum()), 0.15)
    seen = batch.input_ids.view(-1)[batch.positions]
    same = 1 / (VOCAB_SIZE - N_SPECIAL)  # a random token can be the old one
    assert_binomial(int((seen == MASK_ID).sum()), n_chosen, 0.8)
    assert_binomial(int((seen == batch.labels).sum()), n_chosen, 0.1 + 0.1 * same)
    swapped = seen[(seen != MASK_ID) & (seen != batch.labels)]
    assert_binomial(len(swapped), n_chosen, 0.1 * (1 - same))
    assert N_SPECIAL <= int(swapped.min()) <= int(swapped.max()) < VOCAB_SIZE
    assert_binomial(int((swapped < (N_SPECIAL + VOCAB_SIZE) / 2).sum()), len(swapped), 0.5)


# Masks


def test_masks_have_the_statistics_of_bert() -> None:
    blocks = random_blocks(4000, 128, special_fraction=0.1)
    assert_statistics(blocks, masked_batch(blocks, VOCAB_SIZE, np.random.default_rng(1)))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("MASKED_FRACTION", 0.147),
        ("MASKED_FRACTION", 0.153),
        ("MASK_TOKEN_FRACTION", 0.79),
        ("MASK_TOKEN_FRACTION", 0.81),
        ("RANDOM_TOKEN_FRACTION", 0.09),
        ("RANDOM_TOKEN_FRACTION", 0.11),
    ],
)
def test_statistics_refuse_other_fractions(
    name: str, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative controls: the bounds are tight enough to see an error of a point."""
    monkeypatch.setattr(masking, name, wrong)
    blocks = random_blocks(4000, 128, special_fraction=0.1)
    with pytest.raises(AssertionError, match="sigma"):
        assert_statistics(blocks, masked_batch(blocks, VOCAB_SIZE, np.random.default_rng(1)))


def test_special_tokens_and_padding_are_never_touched() -> None:
    blocks = random_blocks(500, 64, special_fraction=0.5)
    assert {PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID} <= set(np.unique(blocks))
    batch = masked_batch(blocks, VOCAB_SIZE, np.random.default_rng(2))
    special = blocks < N_SPECIAL
    assert (batch.input_ids.numpy()[special] == blocks[special]).all()
    assert not special.flat[batch.positions.numpy()].any()
    assert (batch.labels >= N_SPECIAL).all()


def test_what_is_not_chosen_is_left_alone() -> None:
    blocks = random_blocks(100, 64)
    batch = masked_batch(blocks, VOCAB_SIZE, np.random.default_rng(3))
    assert (originals(batch) == blocks).all()
    assert batch.input_ids.dtype == batch.labels.dtype == batch.positions.dtype == torch.int64


def test_at_least_one_token_is_chosen() -> None:
    """One ordinary token: 85 of 100 generators leave it, and a mean of nothing would be NaN."""
    block = np.array([[CLS_ID, SEP_ID, 17, SEP_ID]])
    for seed in range(100):
        batch = masked_batch(block, VOCAB_SIZE, np.random.default_rng(seed))
        assert batch.positions.tolist() == [2]
        assert batch.labels.tolist() == [17]


# Batches


def test_another_epoch_has_the_same_blocks_in_another_order_with_other_masks() -> None:
    blocks = random_blocks(32, 64)
    batches = TrainingBatches(blocks, VOCAB_SIZE, batch=32, seed=0)
    chosen = []
    for epoch in range(2):
        batch = batches[epoch]
        original = originals(batch)
        order = np.lexsort(original.T)
        assert (original[order] == blocks[np.lexsort(blocks.T)]).all()
        assert (original != blocks).any()
        mask = np.zeros(original.shape, dtype=bool)
        mask.flat[batch.positions.numpy()] = True
        chosen.append((original, mask[order]))
    assert (chosen[0][0] != chosen[1][0]).any(), "the order is the same"
    both = (chosen[0][1] & chosen[1][1]).sum()
    assert_binomial(int(both), blocks.size, 0.15**2)  # masks are independent


def assert_equal_batches(one: MaskedBatch, other: MaskedBatch, *, equal: bool = True) -> None:
    assert torch.equal(one.input_ids, other.input_ids) is equal
    assert torch.equal(one.positions, other.positions) is equal


def test_batch_depends_on_seed_and_number_alone() -> None:
    """Also across the end of an epoch: 10 blocks are no multiple of 4."""
    blocks = random_blocks(10, 64)
    forward = TrainingBatches(blocks, VOCAB_SIZE, batch=4, seed=0)
    first = [forward[i] for i in range(8)]
    backward = TrainingBatches(blocks, VOCAB_SIZE, batch=4, seed=0)
    for i in reversed(range(8)):
        assert_equal_batches(backward[i], first[i])
    other_seed = TrainingBatches(blocks, VOCAB_SIZE, batch=4, seed=1)
    assert_equal_batches(other_seed[0], first[0], equal=False)
    assert_equal_batches(first[0], first[1], equal=False)
    rows = np.concatenate([originals(batch) for batch in first[:5]])
    assert (np.unique(rows, axis=0, return_counts=True)[1] == 2).all(), "two epochs, each row twice"


def test_held_out_batches_are_the_whole_text_and_always_the_same() -> None:
    blocks = random_blocks(10, 64)
    once, again = (held_out_batches(blocks, VOCAB_SIZE, batch=4) for _ in range(2))
    assert [len(batch.input_ids) for batch in once] == [4, 4, 2]
    for one, other in zip(once, again, strict=True):
        assert_equal_batches(one, other)
    assert (np.concatenate([originals(batch) for batch in once]) == blocks).all()


# Vocabulary


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus([write_corpus(tmp_path_factory.mktemp("text") / "corpus.txt")])


def test_vocabulary_is_the_same_each_time(text: Corpus, tmp_path: Path) -> None:
    """The library's own training gives another order of ids in nearly every call."""
    found = [vocabulary.cached_vocabulary(text, 300, tmp_path / str(i)) for i in range(4)]
    assert all(tokens == found[0] for tokens in found)
    assert tuple(found[0][:N_SPECIAL]) == SPECIAL_TOKENS
    assert len(set(found[0])) == len(found[0]) <= 300


def test_vocabulary_is_read_from_the_cache_of_the_same_text(text: Corpus, tmp_path: Path) -> None:
    tokens = vocabulary.cached_vocabulary(text, 300, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text("\n".join([*tokens, "added"]) + "\n", encoding="utf-8")
    assert vocabulary.cached_vocabulary(text, 300, tmp_path)[-1] == "added"
    assert len(vocabulary.cached_vocabulary(text, 250, tmp_path)) <= 250


def test_blocks_are_full_and_give_the_text_back(text: Corpus, tmp_path: Path) -> None:
    encoded = vocabulary.encode_corpus(text, 300, 32, tmp_path)
    tokenizer = vocabulary.wordpiece(vocabulary.cached_vocabulary(text, 300, tmp_path))
    for blocks, documents in ((encoded.train, text.train), (encoded.held_out, text.held_out)):
        assert (blocks[:, 0] == CLS_ID).all()
        assert (blocks[:, -1] == SEP_ID).all()
        assert (blocks != PAD_ID).all()
        inner = blocks[:, 1:-1].ravel().tolist()
        read = " ".join(tokenizer.decode(inner, skip_special_tokens=True).split())
        whole = " ".join(line for document in documents for line in document)
        cut = whole[: len(read)]
        assert read == cut
        assert len(whole) - len(cut) < 32 * 8  # less than a block is dropped
    assert encoded.digest == vocabulary.encode_corpus(text, 300, 32, tmp_path / "other").digest
    assert encoded.digest != vocabulary.encode_corpus(text, 300, 16, tmp_path).digest


def test_errors_say_what_is_too_small(text: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocabulary: size 100, expected at least 200"):
        vocabulary.encode_corpus(text, 100, 32, tmp_path)
    with pytest.raises(ValueError, match=r"the held-out text of .* is shorter than one block"):
        vocabulary.encode_corpus(text, 300, 1000, tmp_path)
