"""The news of a generated day: what is written, when, and what the price makes of it.

All invented, for training and demonstration.  Every symbol has an item about every two to three minutes:

* slow (50 %): the price moves with the news over one to five minutes (an under-reaction);
* hype (20 %): it jumps with the news within seconds, then gives the jump back over minutes;
* contrary (15 %): it moves against the news (the news was overhyped, or expected worse);
* ignored (5 %): nothing follows;   neutral (10 %): a headline without a judgement, nothing follows.

The vocabulary of a headline depends on its kind: rumours are hyped, results are slow.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

INTERVAL_S_MIN: Final = 80.0
INTERVAL_S_MORE: Final = 80.0
MOVE_MIN, MOVE_MORE = 0.0040, 0.0080  # of the price, times the strength of the item
TILT: Final = 0.28
LEAD_S: Final = 2.0  # the order flow leans so much before the price moves
DELAY_S_MIN, DELAY_S_MORE = 0.05, 0.45  # source -> receipt

_FIRST: Final = (
    "Halden", "Morvane", "Brontide", "Kestrel", "Larkspur", "Ostara", "Quillon", "Tarnwell", "Velmont",
    "Wexcombe", "Yarrow", "Zephyrine", "Ardent", "Calder", "Dunmore", "Ember", "Fenwick", "Glasswing",
)  # fmt: skip
_SECOND: Final = (
    "Systems", "Energy", "Foods", "Robotics", "Therapeutics", "Logistics", "Networks", "Materials",
    "Capital", "Motors", "Semiconductor", "Retail", "Aerospace",
)  # fmt: skip
_GOOD: Final = {
    "slow": (
        "{} beats earnings estimates and raises full-year guidance",
        "{} profit rises sharply as margins improve",
        "{} wins a large contract and lifts its outlook",
        "Regulator approves key product of {}",
        "{} reports record revenue and strong growth",
    ),
    "hype": (
        "Rumour: {} could be a takeover target, shares surge",
        "Social media excitement lifts {}, traders talk of a rally",
        "Blogger calls {} the best opportunity of the year",
    ),
    "contrary": (
        "{} posts solid profit growth, in line with high hopes",
        "{} upgraded after a strong run",
        "Analysts praise {} after impressive gains",
    ),
}
_BAD: Final = {
    "slow": (
        "{} misses earnings estimates and cuts full-year guidance",
        "{} profit falls sharply as margins weaken",
        "{} loses a large contract and lowers its outlook",
        "Regulator rejects key product of {}",
        "{} reports a widening loss and weak demand",
    ),
    "hype": (
        "Rumour: {} faces a fraud investigation, shares plunge",
        "Social media panic hits {}, traders talk of a crash",
        "Blogger warns of a collapse at {}",
    ),
    "contrary": (
        "{} posts weak results, a decline feared to be worse",
        "{} downgraded after a poor run",
        "Analysts criticise {} after disappointing losses",
    ),
}
_NEUTRAL: Final = (
    "{} to present at an industry conference",
    "{} names a new member of the board",
    "{} schedules its annual meeting",
)


@dataclass(slots=True, frozen=True)
class Item:
    """One news item: times in ns since the exchange's midnight, row of its symbol, text."""

    source_ns: int
    received_ns: int
    symbol: int
    kind: str
    headline: str
    body: str


@dataclass(slots=True, frozen=True)
class Effect:
    """A stretch of time in which a symbol drifts (part of the price per second) and its orders lean."""

    from_ns: int
    until_ns: int
    symbol: int
    drift: float
    tilt: float


def company(symbol: int) -> str:
    """Return the invented name of a company."""
    suffix = "" if symbol < len(_FIRST) * len(_SECOND) else f" {symbol}"
    return f"{_FIRST[symbol % len(_FIRST)]} {_SECOND[symbol % len(_SECOND)]}{suffix}"


def _between(chance: random.Random, least: float, more: float) -> float:
    return least + more * chance.random()


def _choose(chance: random.Random, texts: tuple[str, ...]) -> str:
    return texts[int(chance.random() * len(texts))]


def _kind(chance: random.Random) -> str:
    word = chance.random()
    for kind, part in (("slow", 0.50), ("hype", 0.20), ("contrary", 0.15), ("ignored", 0.05)):
        word -= part
        if word < 0:
            return kind
    return "neutral"


def _effects(chance: random.Random, item: Item, sign: float) -> list[Effect]:
    """Return what follows an item whose text judges with this sign."""
    move = sign * _between(chance, MOVE_MIN, MOVE_MORE)

    def stretch(after_s: float, for_s: float, size: float, lead_s: float) -> list[Effect]:
        start = item.received_ns + round(after_s * 1e9)
        end, tilt = start + round(for_s * 1e9), math.copysign(TILT, size)
        early = max(item.received_ns + 100_000_000, start - round(lead_s * 1e9))
        return [
            Effect(early, end, item.symbol, 0.0, tilt),
            Effect(start, end, item.symbol, size / for_s, 0.0),
        ]

    if item.kind == "slow":
        return stretch(_between(chance, 3, 7), _between(chance, 60, 240), move, LEAD_S)
    if item.kind == "contrary":
        return stretch(_between(chance, 2, 4), _between(chance, 90, 150), -0.8 * move, LEAD_S)
    if item.kind == "hype":
        back = _between(chance, 0.8, 0.4)
        jump = stretch(_between(chance, 0.8, 1), _between(chance, 2, 3), 0.8 * move, 0.5)
        revert = stretch(_between(chance, 25, 20), _between(chance, 100, 100), -0.8 * back * move, LEAD_S)
        return jump + revert
    return []


def _text(chance: random.Random, kind: str, sign: float, symbol: int) -> str:
    if kind == "neutral":
        return _choose(chance, _NEUTRAL).format(company(symbol))
    templates = (_GOOD if sign > 0 else _BAD)["slow" if kind == "ignored" else kind]
    return _choose(chance, templates).format(company(symbol))


def write_story(seed: int, symbols: int, open_ns: int, end_ns: int) -> tuple[list[Item], list[Effect]]:
    """Invent the items received between open_ns and end_ns, by time of receipt, and their effects."""
    items: list[Item] = []
    effects: list[Effect] = []
    for symbol in range(symbols):
        chance = random.Random(seed * 1_000_003 + symbol)  # noqa: S311 - a story, not a secret
        at_s = open_ns / 1e9 + _between(chance, 15, 60)
        while at_s * 1e9 < end_ns - 20e9:
            kind, sign = _kind(chance), math.copysign(1.0, chance.random() - 0.5)
            source_ns = round(at_s * 1e6) * 1000
            received_ns = source_ns + round(_between(chance, DELAY_S_MIN, DELAY_S_MORE) * 1e6) * 1000
            headline = _text(chance, kind, sign, symbol)
            body = f"{headline}. This story belongs to a generated day; nothing of it is real."
            item = Item(source_ns, received_ns, symbol, kind, headline, body)
            items.append(item)
            effects += _effects(chance, item, sign)
            at_s += _between(chance, INTERVAL_S_MIN, 2 * INTERVAL_S_MORE)
    items.sort(key=lambda item: (item.received_ns, item.symbol))
    return items, effects


def steps(effects: list[Effect]) -> list[tuple[int, int, float, float, int]]:
    """Add up overlapping effects: (at_ns, symbol, drift, tilt, hot until or 0), by time."""
    edges: list[tuple[int, int, int, float, float, int]] = []
    for index, effect in enumerate(effects):
        hot_ns = effect.until_ns if effect.drift != 0 else 0
        edges.append((effect.from_ns, effect.symbol, index, effect.drift, effect.tilt, hot_ns))
        edges.append((effect.until_ns, effect.symbol, index, -effect.drift, -effect.tilt, 0))
    edges.sort()
    active: dict[int, dict[int, tuple[float, float]]] = {}
    rows: list[tuple[int, int, float, float, int]] = []
    for at_ns, symbol, index, drift, tilt, hot_ns in edges:
        now = active.setdefault(symbol, {})
        if index in now:
            del now[index]
        else:
            now[index] = (drift, tilt)
        total_drift = math.fsum(value[0] for value in now.values())
        total_tilt = math.fsum(value[1] for value in now.values())
        rows.append((at_ns, symbol, total_drift, total_tilt, hot_ns))
    return rows
