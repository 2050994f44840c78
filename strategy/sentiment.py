"""Sentiment of a text: a signed score and an embedding, from a provider chosen by configuration.

`hashed` is the provider of the base install.  Its score comes from the word list in lexicon.py; its
embedding is a signed feature hash of the words and word pairs, so texts that share words are close to each
other.  It is deterministic in every process and needs no weights.  `file` takes what the news file says.
A transformer goes behind the same Protocol.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import math
import re
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from nimbus.messages import NEWS_DIMENSIONS
from strategy.lexicon import BURDENS, DIMMERS, FALLING, INTENSIFIERS, NEGATIONS, RISING, VALENCE

CACHE_MAX: Final = 65_536  # texts; the oldest goes first
NEGATION_REACH: Final = 3  # a negation turns the next so many words
NEGATION_FACTOR: Final = -0.8
BURDEN_REACH: Final = 3  # words between "loss" and "narrowed"
SCORE_SOFTENER: Final = 3.0  # the score is sum / sqrt(sum^2 + this)
_WORD: Final = re.compile(r"\w+(?:[-']\w+)*")


@dataclass(slots=True, frozen=True)
class Sentiment:
    """What a provider says of a text: score in -1 .. 1; embedding: float32[768], length 1 (0: no text)."""

    score: float
    embedding: NDArray[np.float32]


class SentimentProvider(Protocol):
    """Whatever judges texts."""

    @property
    def name(self) -> str:
        """The name in the configuration and in the journal."""
        ...

    def assess(self, text: str, given: Sentiment | None = None) -> Sentiment:
        """Judge a text; `given` is what the news file said of it."""
        ...


def words(text: str) -> list[str]:
    """Return the lower-case words of a text; "n't" becomes a word of its own."""
    found: list[str] = []
    for word in _WORD.findall(text.lower().replace("\u2019", "'")):
        if word.endswith("n't"):
            found += [word[:-3], "not"]
        else:
            found.append(word.removesuffix("'s"))
    return found


def _turned(tokens: list[str], at: int) -> float:
    """Return the factor that negations, intensifiers and dimmers before a word put on its valence."""
    factor = 1.0
    for distance, word in enumerate(reversed(tokens[max(0, at - NEGATION_REACH) : at])):
        if word in NEGATIONS:
            factor *= NEGATION_FACTOR
        elif distance == 0 and word in INTENSIFIERS:
            factor *= 1.5
        elif distance == 0 and word in DIMMERS:
            factor *= 0.5
    following = tokens[at + 1] if at + 1 < len(tokens) else ""
    return factor * (1.5 if following in INTENSIFIERS else 0.5 if following in DIMMERS else 1.0)


def lexicon_score(text: str) -> float:
    """Return the signed score of a text, in -1 .. 1; 0 = no judging word.

    What moves a burden judges the other way round: "losses narrowed" is good, "costs rise" is bad; the
    burden itself then says nothing.
    """
    tokens, total = words(text), 0.0
    burdens = [at for at, word in enumerate(tokens) if word in BURDENS]
    moved: set[int] = set()
    for at, word in enumerate(tokens):
        if word not in RISING and word not in FALLING:
            continue
        near = [b for b in burdens if 0 < at - b <= BURDEN_REACH or 0 < b - at <= 2]
        direction = 1.0 if word in RISING else -1.0
        total += _turned(tokens, at) * direction * (-1.0 if near else 1.0)
        moved.update(near)
    for at, word in enumerate(tokens):
        if word in VALENCE and at not in moved:
            total += _turned(tokens, at) * VALENCE[word]
    return total / math.sqrt(total * total + SCORE_SOFTENER)


def _hash(feature: str) -> tuple[int, float]:
    word = int.from_bytes(
        hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest(), "little"
    )
    return (word >> 1) % NEWS_DIMENSIONS, 1.0 if word & 1 else -1.0


def hashed_embedding(text: str) -> NDArray[np.float32]:
    """Return the signed hash of the words and word pairs of a text; zeros only for the empty text."""
    tokens = words(text)
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
    values = np.zeros(NEWS_DIMENSIONS, np.float64)
    for feature, count in collections.Counter(tokens + pairs).items():
        index, sign = _hash(feature)
        values[index] += sign * math.sqrt(count)
    if text and not values.any():  # no words, or all of them cancelled out
        index, sign = _hash(f"text {text}")
        values[index] = sign
    length = math.sqrt(float(values @ values))
    return (values / length if length > 0 else values).astype(np.float32)


class HashedProvider:
    """Word list and feature hashing; keeps the answers for the latest texts."""

    name: Final = "hashed"

    def __init__(self, cache_max: int = CACHE_MAX) -> None:
        self._cache: dict[bytes, Sentiment] = {}
        self._cache_max = cache_max
        self.hits = 0

    def assess(self, text: str, given: Sentiment | None = None) -> Sentiment:
        """Judge a text; what the file said of it is ignored."""
        del given
        key = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
        known = self._cache.get(key)
        if known is not None:
            self.hits += 1
            return known
        made = Sentiment(lexicon_score(text), hashed_embedding(text))
        made.embedding.setflags(write=False)
        if len(self._cache) >= self._cache_max:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = made
        return made


class FileProvider:
    """What the news file says; another provider judges the items of which it says nothing."""

    name: Final = "file"

    def __init__(self, fallback: SentimentProvider) -> None:
        self._fallback = fallback
        self.fallbacks = 0

    def assess(self, text: str, given: Sentiment | None = None) -> Sentiment:
        """Return the given sentiment, else that of the fallback."""
        if given is not None:
            return given
        self.fallbacks += 1
        return self._fallback.assess(text)


def create_provider(name: str) -> SentimentProvider:
    """Return the provider of a name in the configuration; raises ValueError for an unknown one."""
    makers: dict[str, Any] = {"hashed": HashedProvider, "file": lambda: FileProvider(HashedProvider())}
    if name not in makers:
        msg = f"unknown sentiment provider {name!r}: one of {', '.join(makers)}"
        raise ValueError(msg)
    made: SentimentProvider = makers[name]()
    return made
