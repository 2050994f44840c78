"""The report of a replay: one self-contained HTML file, no script, no outside request.

What limits the evidence stands in the first screen: which model answered, what it was trained on, and
what the paper venue assumes.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:68rem;padding:0 1rem;color:#1c2733}
h1{font-size:1.6rem;margin-bottom:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p.note{color:#46586a}p.limits{border-left:4px solid #b7791f;padding:.4rem .8rem;background:#fdf6e7}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .9rem .2rem 0;text-align:right;border-bottom:1px solid #e3e9ef}
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:#46586a}
.row{display:flex;flex-wrap:wrap;gap:2.5rem}.big{font-size:1.5rem;font-weight:600}
.card{min-width:8rem}.card span{display:block;color:#46586a;font-size:.85rem}
svg{width:100%;height:auto;background:#f7f9fb}code{font-size:.85rem;word-break:break-all}
"""
_WIDTH, _HEIGHT, _MARGIN = 960, 240, 48
_REPEATABLE: Final = (
    "Two replays of one capture with the same configuration and model give the same journal hash."
)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return an HTML table; every cell is escaped."""
    top = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def line_chart(points: Sequence[tuple[float, float]], label: str, unit: str) -> str:
    """Return an SVG step line of (x in [0, 1], value) with its extremes written at the left."""
    if not points:
        return f"<p class=note>No {html.escape(label)}.</p>"
    low, high = min(0.0, *(y for _, y in points)), max(0.0, *(y for _, y in points))
    span = (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = _MARGIN + x * (_WIDTH - 1.5 * _MARGIN)
        return across, _HEIGHT - 20 - (y - low) / span * (_HEIGHT - 40)

    path, last_y = [], place(*points[0])[1]
    for x, y in points:
        at_x, at_y = place(x, y)
        path.append(f"{at_x:.1f},{last_y:.1f} {at_x:.1f},{at_y:.1f}")
        last_y = at_y
    zero = place(0, 0.0)[1]
    title = html.escape(f"{label}: lowest {low:,.2f}, highest {high:,.2f} {unit}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{title}</title>'
        f'<line x1="{_MARGIN}" y1="{zero:.1f}" x2="{_WIDTH - _MARGIN / 2}" y2="{zero:.1f}" stroke="#a8b6c4"/>'
        f'<polyline fill="none" stroke="#1f6feb" stroke-width="1.5" points="{" ".join(path)}"/>'
        f'<text x="4" y="16" font-size="12">{high:,.2f}</text>'
        f'<text x="4" y="{_HEIGHT - 8}" font-size="12">{low:,.2f} {html.escape(unit)}</text></svg>'
    )


def cards(values: Mapping[str, Any]) -> str:
    """Return a row of figures with their names."""
    one = "<div class=card><span>{}</span><div class=big>{}</div></div>"
    return (
        "<div class=row>"
        + "".join(one.format(html.escape(name), html.escape(str(value))) for name, value in values.items())
        + "</div>"
    )


def counts(title: str, values: Mapping[str, int]) -> str:
    """Return a two-column table under a heading; "none" when there is nothing to count."""
    rows = [(name, f"{count:,}") for name, count in values.items() if count]
    return f"<div><h2>{html.escape(title)}</h2>{table(('', 'count'), rows) if rows else '<p>none</p>'}</div>"


def render(summary: Mapping[str, Any], equity: Sequence[tuple[float, float]], limits: str) -> str:
    """Return the whole page.

    summary: as in summary.json; equity: (share of the session, profit in dollars); limits: what a reader
    must know before believing the figures.
    """
    model, pnl = summary["model"], summary["pnl"]
    latency = [
        (stage, *(f"{values[key]:,}" for key in ("count", "p50", "p99", "p99.9", "max")))
        for stage, values in summary["latency_ns"].items()
    ]
    positions = [
        (symbol, f"{row['qty']:,}", f"{row['avg_px']:.4f}", f"{row['realized_pnl']:,.2f}",
         f"{row['unrealized_pnl']:,.2f}", row["fills"])
        for symbol, row in summary["positions"].items()
    ]  # fmt: skip
    identity = [(key, summary[key]) for key in ("journal_hash", "book_state_hash", "config_hash", "seed")]
    capture, name = html.escape(summary["capture"]), html.escape(model["id"])
    figures = {
        "messages": f"{sum(summary['messages'].values()):,}",
        "messages a second": f"{summary['throughput_msgs_per_s']:,.0f}",
        "decisions": f"{sum(summary['decisions'].values()):,}",
        "orders": f"{summary['orders']:,}",
        "fills": f"{summary['fills']:,}",
        "profit, dollars": f"{pnl['total']:,.2f}",
    }
    rungs = {
        f"{r['density']:g}, {r['samples'] or 'no'} samples": r["decisions"] for r in summary.get("rungs", [])
    }
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f"<title>Contrafusion replay of {capture}</title><style>{STYLE}</style></head><body>",
        f"<h1>Replay of {capture}</h1>",
        f"<p class=note>Model {name}, trained on {html.escape(model['trained_on'])}.</p>",
        f"<p class=limits>{html.escape(limits)}</p>",
        cards(figures),
        "<h2>Profit over the session, before fees</h2>",
        line_chart(equity, "profit", "dollars"),
        "<h2>Positions</h2>",
        table(("symbol", "shares", "average price", "realised", "unrealised", "fills"), positions),
        "<h2>Latency by stage, nanoseconds</h2>",
        table(("stage", "count", "p50", "p99", "p99.9", "max"), latency),
        "<div class=row>",
        counts("Decisions by tag", summary["decisions"]),
        counts("Decisions by reason", summary["decision_reasons"]),
        counts("Decisions by rung", rungs),
        counts("Denied or rejected orders", summary["rejects"]),
        counts("Messages", summary["messages"]),
        counts("Refused input", summary["refused"]),
        "</div><h2>Identity</h2>",
        table(("", "value"), identity),
        f"<p class=note>{_REPEATABLE}</p></body></html>",
    ]
    return "".join(parts)
