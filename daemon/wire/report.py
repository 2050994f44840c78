"""What `bench wire` shows: a table, the percentile distributions as text, and a picture of them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

NAMES: Final = {
    "echo": "echo: packet in, fixed order out",
    "rule": "daemon, fixed rule",
    "pruned": "daemon, 32 samples, 80 % pruned",
    "model": "daemon, 32 samples, dense",
}
SHARES: Final = (0.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)
_COLOURS: Final = ("#57606a", "#1f6feb", "#1a7f37", "#bc4c00")
_WIDTH, _HEIGHT, _MARGIN = 760, 320, 56
_US: Final = 1e3


def _us(ns: float) -> str:
    return f"{ns / _US:,.1f}"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return tick-to-trade of each run, and what the daemon itself measured, in microseconds."""
    head = ("p50", "p90", "p99", "p99.9", "max", "orders", "p50 ratio")
    lines = [f"{'tick-to-trade at the venue, us':<34}" + "".join(f"{name:>10}" for name in head)]
    for key, row in rows.items():
        names = ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")
        cells = [*(_us(row[name]) for name in names), f"{row['orders']:,}", f"{row['ratio_p50']:.2f}"]
        lines.append(f"{NAMES[key]:<34}" + "".join(f"{cell:>10}" for cell in cells))
    lines.append("")
    lines.append(f"{'inside the daemon, us':<34} {'p50':>8} {'p99':>8} {'p99.9':>8} {'max':>8} {'count':>9}")
    for key, row in rows.items():
        for stage, seen in row.get("stages", {}).items():
            if seen["count"]:
                values = " ".join(f"{_us(seen[name]):>8}" for name in ("p50", "p99", "p99.9", "max"))
                lines.append(f"{key + ': ' + stage:<34} {values} {seen['count']:>9,}")
    return "\n".join(lines)


def distribution(ticks_ns: Sequence[int]) -> str:
    """Return a percentile distribution in the columns of HdrHistogram's text output."""
    total = len(ticks_ns)
    lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>17}", ""]
    for share in SHARES:
        count = max(1, math.ceil(total * share / 100.0))
        inverse = f"{1.0 / (1.0 - share / 100.0):>17.2f}" if share < 100.0 else f"{'inf':>17}"
        lines.append(f"{ticks_ns[count - 1]:>12} {share / 100.0:>14.6f} {count:>10} {inverse}")
    mean = sum(ticks_ns) / total
    lines.append(f"#[Mean = {mean:.1f}, Max = {ticks_ns[-1]}, Total count = {total}]")
    return "\n".join(lines) + "\n"


def picture(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return an SVG: latency over the share of orders, both logarithmic, a line for each run."""
    nines = 4.0  # the right edge is 99.99 %
    low = math.floor(math.log10(max(1, min(row["ticks_ns"][0] for row in rows.values()))))
    high = math.ceil(math.log10(max(row["ticks_ns"][-1] for row in rows.values())))

    def place(share: float, ns: float) -> str:
        x = min(-math.log10(max(1.0 - share, 10.0**-nines)), nines) / nines
        y = (math.log10(max(ns, 1.0)) - low) / max(high - low, 1)
        return f"{_MARGIN + x * (_WIDTH - 1.5 * _MARGIN):.1f},{_HEIGHT - 32 - y * (_HEIGHT - 64):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="12">',
        '<title>tick-to-trade by percentile</title><rect width="100%" height="100%" fill="#fff"/>',
    ]
    for power in range(low, high + 1):
        left, right = place(0.0, 10.0**power), place(1.0, 10.0**power)
        y = left.split(",")[1]
        parts.append(f'<polyline points="{left} {right}" stroke="#d0d7de"/>')
        parts.append(f'<text x="4" y="{float(y) + 4:.1f}">{10.0**power / _US:g} us</text>')
    for share in (0.0, 0.9, 0.99, 0.999, 0.9999):
        x = place(share, 1.0).split(",")[0]
        parts.append(f'<text x="{float(x) - 14:.1f}" y="{_HEIGHT - 12}">{share * 100:g} %</text>')
    for index, (key, row) in enumerate(rows.items()):
        ticks, colour = row["ticks_ns"], _COLOURS[index % len(_COLOURS)]
        points = " ".join(place(rank / len(ticks), ns) for rank, ns in enumerate(ticks))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>')
        label = html.escape(f"{NAMES[key]}: p50 {_us(row['p50_ns'])} us")
        parts.append(f'<text x="{_MARGIN + 8}" y="{20 + 16 * index}" fill="{colour}">{label}</text>')
    return "".join(parts) + "</svg>\n"
