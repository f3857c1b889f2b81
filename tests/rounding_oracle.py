"""Random bits and stochastic rounding in NumPy, written from the paper and the contract alone."""

from __future__ import annotations

import numpy as np

# Salmon, Moraes, Dror, Shaw 2011: multipliers and key increments of Philox4x32.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = np.uint64(0xFFFFFFFF)
#: Counter, key and result of 10 rounds, from the authors' kat_vectors (Random123).
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counter: list[np.ndarray], key: tuple[int, int], n_rounds: int = 10) -> list[np.ndarray]:
    """Four words for each counter, whose words are arrays."""
    x0, x1, x2, x3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    for i in range(n_rounds):
        k0, k1 = (np.uint64((k + i * w) % 2**32) for k, w in zip(key, WEYL, strict=True))
        a, b = np.uint64(MULTIPLIERS[0]) * x0, np.uint64(MULTIPLIERS[1]) * x2
        shift = np.uint64(32)
        x0, x1, x2, x3 = (b >> shift) ^ x1 ^ k0, b & MASK, (a >> shift) ^ x3 ^ k1, a & MASK
    return [x0, x1, x2, x3]


def random_bits(n: int, seed: int, ordinal: int, step: int) -> np.ndarray:
    """16 bits for each of n elements: 8 from a call, the lower half of a word before the upper."""
    calls = np.arange((n + 7) // 8, dtype=np.uint64)
    counter = [
        calls & MASK,
        calls >> np.uint64(32),
        *(np.full_like(calls, x) for x in (ordinal, step)),
    ]
    words = np.stack(philox(counter, (seed % 2**32, seed // 2**32)), axis=1)
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], axis=2)
    return halves.reshape(-1)[:n].astype(np.int64)
