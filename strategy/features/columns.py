"""The feature vector: one table of 32 columns that names them, places them and documents them.

A new feature is one line here and one store in `update.py` or `bars.py`; nothing else counts columns.
Units: bp = 1/10,000 of the mid; /s = per second; 1 = a plain ratio or z-score.  "decay T" is a sum whose
terms fade as exp(-age/T), by time and never by count.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ringbuf.records import record

COLUMNS: Final = 32
BP: Final = 1e4  # basis points in 1

_TABLE: Final = """
spread            bp    ask less bid | two-sided book
microprice        bp    weighted mid (Pb*qa + Pa*qb)/(qa + qb) less mid | two-sided book
imbalance_top     1     (qb - qa)/(qb + qa) of the best level; one side empty gives +-1 | any quote
imbalance_five    1     the same over the five best levels | any quote
ofi_1s            1     order-flow imbalance, decay 1 s, over the mean depth of a side | 1 s
ofi_10s           1     the same, decay 10 s | 10 s
ofi_60s           1     the same, decay 60 s | 60 s
trade_sign_10s    1     shares bought less sold by aggressors over all traded, decay 10 s | a print
trade_sign_60s    1     the same, decay 60 s | a print
signed_volume_10s 1     shares bought less sold by aggressors, decay 10 s, over the mean depth | 10 s
volatility_10s    bp    square root per second of each event's squared mid return, decay 10 s | 10 s
volatility_60s    bp    the same, decay 60 s | 60 s
volatility_300s   bp    the same from the returns of 1-s bars, decay 300 s | 60 s
arrival_1s        /s    events, decay 1 s | 1 s
arrival_10s       /s    events, decay 10 s | 10 s
trades_10s        /s    prints, decay 10 s | 10 s
cancel_share_10s  1     cancels and deletes over all events, decay 10 s | 10 s
vwap              bp    mid less the volume-weighted price of prints, decay 300 s | a print
return_1s         bp    log return of the mid since the whole second at least 1 s ago | history
return_5s         bp    the same, 5 s | history
return_30s        bp    the same, 30 s | history
return_1min       bp    the same, 60 s | history
return_5min       bp    log return since the whole minute at least 5 min ago | history
return_30min      bp    the same, 30 min | history
realised_60s      bp    root of the summed squared mid changes of the last 60 bars, over the mid | 61 bars
rsi_14            1     Wilder's relative strength, 0 .. 100 | 15 bars
ema_20            bp    close less its 20-bar exponential mean | 20 bars
macd              bp    12-bar less 26-bar exponential mean, both seeded on bar 26 | 34 bars
macd_signal       bp    9-bar exponential mean of it | 34 bars
atr_14            bp    Wilder's average true range | 15 bars
bollinger_20      1     close less 20-bar mean in population standard deviations, 0 when flat | 20 bars
since_trade       s     time since the last print, at most 600 | a print
"""


class Feature(NamedTuple):
    """One column: its name, unit, meaning, and what must have been seen before it is warm."""

    name: str
    unit: str
    meaning: str
    warm: str


def _parse(table: str) -> tuple[Feature, ...]:
    features = []
    for line in filter(str.strip, table.splitlines()):
        name, unit, words = line.split(maxsplit=2)
        meaning, warm = words.split(" | ")
        features.append(Feature(name, unit, meaning, warm))
    return tuple(features)


FEATURES: Final = _parse(_TABLE)
NAMES: Final = tuple(feature.name for feature in FEATURES)
VECTOR: Final = record("FEATURE_VECTOR", "\n".join(f"f8 {f.name} {f.unit}: {f.meaning}" for f in FEATURES))
INDEX: Final = {name: index for index, name in enumerate(NAMES)}
assert len(FEATURES) == COLUMNS, "the plan, the row and the warm mask hold 32 columns"


def markdown() -> str:
    """Return the table of docs/features.md."""
    rows = [f"| {i} | `{f.name}` | {f.unit} | {f.meaning} | {f.warm} |" for i, f in enumerate(FEATURES)]
    return "\n".join(["| column | name | unit | meaning | warm after |", "|---|---|---|---|---|", *rows, ""])
