"""Features by brute force: every number is recounted from the whole list of events.  The specification.

Written from the table of strategy/features/columns.py; plain floats, math.exp and math.log, no state.
"""

import itertools
import math
from typing import NamedTuple

S = 1_000_000_000
SILENCE_BARS = 64


class Event(NamedTuple):
    """One market event of one symbol."""

    ns: int
    bid_px: int
    ask_px: int
    bid_qty: int
    ask_qty: int
    bid_depth: int
    ask_depth: int
    cause: str
    trade_px: int = 0
    trade_qty: int = 0
    resting: str = ""


def order_flow(a, b):
    """Cont, Kukanov, Stoikov: what left and what came between two quotes."""
    bid = (b.bid_qty if b.bid_px >= a.bid_px else 0) - (a.bid_qty if b.bid_px <= a.bid_px else 0)
    old, new = a.ask_px or math.inf, b.ask_px or math.inf
    ask = (b.ask_qty if new <= old else 0) - (a.ask_qty if new >= old else 0)
    return bid - ask


def mid_path(events):
    """Return (ns, doubled mid) of each event with a two-sided, uncrossed book."""
    return [(e.ns, e.bid_px + e.ask_px) for e in events if 0 < e.bid_px < e.ask_px]


def bars(events):
    """Return closed 1-s bars (second, high, low, close, time of the last event in it)."""
    path = mid_path(events)
    last_second, result, force = events[-1].ns // S, [], None
    second = path[0][0] // S if path else last_second
    while second < last_second:
        inside = [mid for ns, mid in path if ns // S == second]
        if not inside and result:
            following = min(e.ns // S for e in events if e.ns // S > second)
            started = max(e.ns // S for e in events if e.ns // S < second)
            if following - started > SILENCE_BARS and second < following - SILENCE_BARS + 1:
                second += 1  # of a long silence the last 63 seconds count
                continue
        seen = inside if force is None else [force, *inside]
        force = seen[-1]
        stamps = [e.ns for e in events if e.ns // S == second]
        result.append((second, max(seen), min(seen), force, max(stamps, default=None)))
        second += 1
    return result


def vector(events):
    """Return {column: value} of the columns that are not indicators on bars; None = not warm."""
    e, t = events[-1], events[-1].ns
    path, closed = mid_path(events), bars(events)
    two_sided = 0 < e.bid_px < e.ask_px
    age = (t - events[0].ns) / S

    def fade(pairs, tau):
        return sum(x * math.exp(-((t - ns) / S) / tau) for ns, x in pairs)

    def rate(pairs, tau):
        weight = tau * (1 - math.exp(-age / tau))
        return fade(pairs, tau) / weight if weight else math.nan

    flows = [(b.ns, order_flow(a, b)) for a, b in itertools.pairwise(events)]
    stays = [
        ((a.bid_qty + a.ask_qty) / 2, math.exp(-(t - b.ns) / S / 300) - math.exp(-(t - a.ns) / S / 300))
        for a, b in itertools.pairwise(events)
    ]
    weight = sum(w for _, w in stays)
    depth = max(sum(d * w for d, w in stays) / weight, 1) if weight > 0 else 1
    trades = [x for x in events if x.trade_qty]
    sign = {"S": 1, "B": -1, "": 0}
    signed = [(x.ns, sign[x.resting] * x.trade_qty) for x in trades]
    volume = [(x.ns, x.trade_qty) for x in trades]
    moves = [(ns, math.log(b / a) ** 2) for (_, a), (ns, b) in itertools.pairwise(path)]
    closes = [c[3] for c in closed]
    before = [path[0][1], *closes[:-1]] if closed else []
    slow = [
        (bar[4], math.log(bar[3] / b) ** 2)
        for bar, b in zip(closed, before, strict=True)
        if bar[4] is not None
    ]
    ones = [(x.ns, 1) for x in events]
    cancels = [(x.ns, 1) for x in events if x.cause in "XD"]
    mid = path[-1][1] / 2 if path else math.nan

    def ratio(a, b):
        return (a - b) / (a + b) if a + b else None

    def since(seconds, scale):
        instant = (t // (scale * S)) * scale - seconds
        first = path[0][0] // (scale * S) * scale if path else math.inf
        if not two_sided or instant - scale < first:
            return None
        then = [m for ns, m in path if ns < instant * S]
        return 1e4 * math.log(path[-1][1] / then[-1])

    weighted = None
    if two_sided:
        weighted = (e.bid_px * e.ask_qty + e.ask_px * e.bid_qty) / (e.bid_qty + e.ask_qty)
    vwap = fade([(x.ns, x.trade_px * x.trade_qty) for x in trades], 300), fade(volume, 300)
    out = {
        "spread": 1e4 * (e.ask_px - e.bid_px) / mid if two_sided else None,
        "microprice": 1e4 * (weighted - mid) / mid if two_sided else None,
        "imbalance_top": ratio(e.bid_qty, e.ask_qty),
        "imbalance_five": ratio(e.bid_depth, e.ask_depth),
        "trade_sign_10s": fade(signed, 10) / fade(volume, 10) if trades else None,
        "trade_sign_60s": fade(signed, 60) / fade(volume, 60) if trades else None,
        "vwap": 1e4 * (mid / (vwap[0] / vwap[1]) - 1) if trades and two_sided else None,
        "since_trade": min((t - trades[-1].ns) / S, 600) if trades else None,
        "return_1s": since(1, 1),
        "return_5s": since(5, 1),
        "return_30s": since(30, 1),
        "return_1min": since(60, 1),
        "return_5min": since(300, 60),
        "return_30min": since(1800, 60),
    }
    timed = {
        "ofi_1s": (1, fade(flows, 1) / depth),
        "ofi_10s": (10, fade(flows, 10) / depth),
        "ofi_60s": (60, fade(flows, 60) / depth),
        "signed_volume_10s": (10, fade(signed, 10) / depth),
        "volatility_10s": (10, 1e4 * math.sqrt(rate(moves, 10))),
        "volatility_60s": (60, 1e4 * math.sqrt(rate(moves, 60))),
        "volatility_300s": (60, 1e4 * math.sqrt(rate(slow, 300))),
        "arrival_1s": (1, rate(ones, 1)),
        "arrival_10s": (10, rate(ones, 10)),
        "trades_10s": (10, rate(volume and [(x.ns, 1) for x in trades], 10)),
        "cancel_share_10s": (10, fade(cancels, 10) / fade(ones, 10)),
    }
    return out | {name: value if age >= needed else None for name, (needed, value) in timed.items()}


def realised(events):
    """Return the root of the summed squared changes of the last 60 bars over the last close, in bp."""
    closes = [c[3] for c in bars(events)]
    if len(closes) < 61:
        return None
    changes = [b - a for a, b in zip(closes[-61:], closes[-60:], strict=False)]
    return 1e4 * math.sqrt(sum(c * c for c in changes)) / closes[-1]
