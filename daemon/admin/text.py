"""How values look: in JSON money as decimal strings, times as RFC 3339 with nine digits; Prometheus text."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

PX_SCALE: Final = 10_000
_NS: Final = 1_000_000_000


def money(value: int) -> str:
    """Return an amount in 1/10,000 of the currency as an exact decimal string."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    return f"{sign}{size // PX_SCALE}.{size % PX_SCALE:04d}"


def average_px(basis: int, qty: int) -> str:
    """Return the average price of a position, rounded to 1/10,000; "0.0000" when flat."""
    return money((2 * abs(basis) + abs(qty)) // (2 * abs(qty))) if qty else money(0)


def time_text(at_ns: int) -> str | None:
    """Return Unix nanoseconds as RFC 3339 in UTC; None for 0 (never)."""
    if at_ns <= 0:
        return None
    moment = dt.datetime.fromtimestamp(at_ns // _NS, tz=dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ns % _NS:09d}Z"


def metric(name: str, kind: str, values: dict[str, Any]) -> str:
    """Return one metric in Prometheus text; `values` by label text, "" = none."""
    full = f"contrafusion_{name}"
    rows = "".join(f"{full}{labels} {value}\n" for labels, value in values.items())
    return f"# TYPE {full} {kind}\n{rows}" if rows else ""
