"""Replayable dropout masks: a counter-based generator and the bank of mask words the hot path reads.

A mask word belongs to one hidden unit; bit s says whether sample s keeps the unit.  A bank is drawn once,
away from the hot path, from (seed, digest of the weights), and a row of it is picked by (symbol, sequence):
the same run replays the same masks, and no random number is drawn between two ticks.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

SAMPLES: Final = 32  # Monte-Carlo samples of one inference: the bits of a mask word
DROP_PROBABILITY: Final = 1 / 8  # keep = a | b | c of three fair words: all three are 0 in 1/8 of the bits
BANK_ROWS: Final = 512  # a power of two

KEEP_BITS: Final = 16  # resolution of a probability of one's own: 1/65,536

PHILOX_ROUNDS: Final = 10
PHILOX_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
PHILOX_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_WORD_BITS: Final = np.uint64(32)
_LOW: Final = np.uint64(0xFFFFFFFF)


def philox(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Return Philox4x32-10 of each counter: array [n, 4] in, array [n, 4] out.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    a, b, c, d = (counters[:, i].astype(np.uint64) for i in range(4))
    left, right = key
    for _ in range(PHILOX_ROUNDS):
        first, second = a * PHILOX_MULTIPLIERS[0], c * PHILOX_MULTIPLIERS[1]
        a = (second >> _WORD_BITS) ^ b ^ np.uint64(left)
        c = (first >> _WORD_BITS) ^ d ^ np.uint64(right)
        b, d = second & _LOW, first & _LOW
        left, right = (left + PHILOX_KEY_STEPS[0]) & 0xFFFFFFFF, (right + PHILOX_KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def bank_key(seed: int, weights_digest: str) -> tuple[int, int]:
    """Return the generator's key for a run's seed and a model's weights."""
    digest = hashlib.blake2b(f"{seed} {weights_digest}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def mask_bank(
    key: tuple[int, int], units: int, *, rows: int = BANK_ROWS, number: int = 0
) -> NDArray[np.uint32]:
    """Draw bank `number`: an array [rows, units] of keep words; each bit is 0 with probability 1/8.

    The counter of a word is (unit, row, bank number, 0), so any word can be drawn again alone.
    """
    counters = np.zeros((rows * units, 4), np.uint32)
    counters[:, 0] = np.tile(np.arange(units, dtype=np.uint32), rows)
    counters[:, 1] = np.repeat(np.arange(rows, dtype=np.uint32), units)
    counters[:, 2] = number
    words = philox(counters, key)
    return (words[:, 0] | words[:, 1] | words[:, 2]).reshape(rows, units)


def keep_level(drop_probability: float) -> int:
    """Return the probability of keeping, in units of 2^-16; raises ValueError outside [0, 1)."""
    if not 0 <= drop_probability < 1:
        msg = f"drop probability {drop_probability} is not in [0, 1)"
        raise ValueError(msg)
    return max(round((1 - drop_probability) * (1 << KEEP_BITS)), 1)


def keep_words(
    key: tuple[int, int], rows: int, units: int, level: int, *, number: int = 0
) -> NDArray[np.uint32]:
    """Draw dropout words [rows, units]; each bit is 1 with probability level/2^16.

    A bit is the comparison of the level with 16 fair bits, the highest first, so a probability of 1 - 1/8
    needs three of them and gives the words of `mask_bank`.  The counter is (unit, row, number, call).
    """
    if level >= 1 << KEEP_BITS:
        return np.full((rows, units), 0xFFFFFFFF, np.uint32)
    lowest = (level & -level).bit_length() - 1
    words = np.zeros(rows * units, np.uint32)
    for call in range((KEEP_BITS - 1 - lowest) // 4, -1, -1):
        counters = np.zeros((rows * units, 4), np.uint32)
        counters[:, 0] = np.tile(np.arange(units, dtype=np.uint32), rows)
        counters[:, 1] = np.repeat(np.arange(rows, dtype=np.uint32), units)
        counters[:, 2], counters[:, 3] = number, call
        fair = philox(counters, key)
        for n in (3, 2, 1, 0):
            bit = level >> (KEEP_BITS - 1 - 4 * call - n) & 1
            words = fair[:, n] | words if bit else fair[:, n] & words
    return words.reshape(rows, units)
