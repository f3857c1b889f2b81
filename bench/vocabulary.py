"""WordPiece vocabulary of a corpus, trained once and cached, and text as blocks of token ids.

The tokens are BERT's (uncased, `##` inside words, five special tokens); the ids depend on the
text and on the size alone.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from corpus import Corpus, Document
from tokenizers import BertWordPieceTokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_TOKENS))
MAX_CHARACTERS = 1000  # rarer ones become [UNK]; also the library's default
MIN_VOCAB_SIZE = 200


@dataclass(frozen=True)
class EncodedCorpus:
    """Blocks of token ids, each `[CLS] ... [SEP]` and full: int64 arrays [n_blocks, seq_len]."""

    train: np.ndarray
    held_out: np.ndarray
    vocab_size: int
    digest: str  # of the ids: equal digests mean equal batches


def encode_corpus(corpus: Corpus, vocab_size: int, seq_len: int, cache: Path) -> EncodedCorpus:
    """Tokenize both parts of the corpus with its own vocabulary.

    Raises:
        ValueError: one part is shorter than a block of `seq_len` tokens.
    """
    tokens = cached_vocabulary(corpus, vocab_size, cache)
    tokenizer = wordpiece(tokens)
    parts = []
    for name, documents in (("training", corpus.train), ("held-out", corpus.held_out)):
        blocks = packed_blocks(tokenizer, documents, seq_len)
        if len(blocks) == 0:
            raise ValueError(
                f"vocabulary: the {name} text of {corpus.source} is shorter than one block of"
                f" {seq_len} tokens; give more text or a smaller --seq-len"
            )
        parts.append(blocks)
    digest = hashlib.sha256(b"".join(blocks.tobytes() for blocks in parts)).hexdigest()
    return EncodedCorpus(parts[0], parts[1], len(tokens), digest)


def packed_blocks(
    tokenizer: BertWordPieceTokenizer, documents: Iterable[Document], seq_len: int
) -> np.ndarray:
    """Documents end to end, `[SEP]` after each, cut into full blocks; the rest is dropped."""
    texts = [" ".join(document) for document in documents]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    stream = np.array([i for e in encodings for i in (*e.ids, SEP_ID)], dtype=np.int64)
    n_inner = seq_len - 2
    n_blocks = len(stream) // n_inner
    blocks = np.empty((n_blocks, seq_len), dtype=np.int64)
    blocks[:, 0] = CLS_ID
    blocks[:, 1:-1] = stream[: n_blocks * n_inner].reshape(n_blocks, n_inner)
    blocks[:, -1] = SEP_ID
    return blocks


def cached_vocabulary(corpus: Corpus, vocab_size: int, cache: Path) -> list[str]:
    """The tokens in order of id, from `cache` if this text was trained on before."""
    name = f"{corpus.digest[:16]}-{vocab_size}-tokenizers-{tokenizers.__version__}.txt"
    file = cache / name
    if file.exists():
        return file.read_text(encoding="utf-8").splitlines()
    tokens = trained_vocabulary([text for doc in corpus.train for text in doc], vocab_size)
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    unfinished.replace(file)  # a run that is killed leaves no half vocabulary behind
    return tokens


def trained_vocabulary(texts: Sequence[str], vocab_size: int) -> list[str]:
    """Train a WordPiece vocabulary whose ids are the same in every process.

    The library numbers the `##` characters in the order of a randomly seeded hash table and
    breaks ties between merges by these numbers. Naming them first, in sorted order, as if they
    were special tokens, leaves nothing to chance.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocabulary: size {vocab_size}, expected at least {MIN_VOCAB_SIZE}")
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    counts = Counter(c for text in texts for c in tokenizer.normalizer.normalize_str(text))
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    alphabet = sorted(ranked[: min(MAX_CHARACTERS, vocab_size // 4)])
    tokenizer.train_from_iterator(
        texts,
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{c}" for c in alphabet)],
        show_progress=False,
    )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return sorted(ids, key=ids.__getitem__)


def wordpiece(tokens: Sequence[str]) -> BertWordPieceTokenizer:
    """A tokenizer with these tokens, where the `##` characters are ordinary again."""
    return BertWordPieceTokenizer({token: i for i, token in enumerate(tokens)}, lowercase=True)
