"""The risk checks with Decimal: the slow twin of nimbus/orders/risk.py, from the document's table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any


@dataclass
class World:
    """Everything the checks look at."""

    state: str
    limits: dict[str, Any]
    top: dict[str, Any]
    position: dict[str, int]
    open_count: int
    taken: int
    pool: tuple[int, int]  # orders_max, open_orders_max
    session: dict[str, int]
    tokens: Decimal
    now_ns: int
    symbols_max: int


def tokens_now(tokens: Decimal, elapsed_ns: int, limits: dict[str, Any]) -> Decimal:
    """Return the tokens after elapsed_ns."""
    grown = tokens + Decimal(limits["rate_per_s"]) * max(elapsed_ns, 0) / Decimal(10**9)
    return min(Decimal(limits["rate_burst"]), grown)


def _r24(i: dict[str, Any], w: World) -> bool:
    return (
        not math.isfinite(i["mean"])
        or not math.isfinite(i["sigma"])
        or not 0 <= i["sigma"] <= w.limits["sigma_max"]
        or not 0 <= i["qty"] < 10**7
        or not 0 < i["px"] < 10**10
        or i["side"] not in b"BS"
        or i["tif"] not in (0, 3)
        or not 0 < i["locate"] < w.symbols_max
        or not 0 <= i["cause_seq"] < 2**35
    )


def _r5(i: dict[str, Any], w: World) -> bool:
    both = w.top["bid_px"] and w.top["ask_px"]
    reference = Decimal(w.top["bid_px"] + w.top["ask_px"] if both else w.position["mark_px2"]) / 2
    if reference == 0:
        return True
    away = Decimal(w.limits["collar_bp"]) / 10_000
    if i["side"] == ord("B"):
        return Decimal(i["px"]) > reference * (1 + away)
    return Decimal(i["px"]) < reference * (1 - away)


def _r19(i: dict[str, Any], w: World) -> bool:
    bad = {1, 2, 8, 16, 32}  # stale, crossed, halted, incomplete, faulty; one-sided (4) is R5's matter
    heard = max(w.top["recv_ns"], min(i["recv_ns"], w.now_ns))
    return (
        w.top["update"] == 0
        or any(w.top["status"] & bit for bit in bad)
        or w.top["state"] not in (0, ord("T"))
        or w.now_ns - heard > w.limits["stale_after_ns"]
    )


def _r2(i: dict[str, Any], w: World) -> bool:
    held = w.position["position_qty"]
    if w.state != "REDUCING":
        return False
    if i["side"] == ord("B"):
        return held + w.position["open_buy_qty"] + i["qty"] > max(0, held)
    return held - w.position["open_sell_qty"] - i["qty"] < min(0, held)


def _r11(i: dict[str, Any], w: World) -> bool:
    held, limit = w.position["position_qty"], w.limits["position_max"]
    if i["side"] == ord("B"):
        return held + w.position["open_buy_qty"] + i["qty"] > limit
    return held - w.position["open_sell_qty"] - i["qty"] < -limit


def _closes_all(i: dict[str, Any], w: World) -> bool:
    """Say whether an odd lot may leave since nothing is left: all that is held and not yet on its way out."""
    held, buys = w.position["position_qty"], i["side"] == ord("B")
    rest = -held - w.position["open_buy_qty"] if buys else held - w.position["open_sell_qty"]
    return 0 < i["qty"] == rest


def check(i: dict[str, Any], w: World) -> int:
    """Return 0 or the first reason in the order of the document."""
    if w.state not in ("PAPER", "LIVE", "REDUCING"):
        return 1
    if _r24(i, w):
        return 24
    s, lim = w.session, w.limits
    if not s["logged_on"] or s["link"] or s["resending"] or s["send_buffer_used"] or s["journal_low"]:
        return 20
    if (
        w.open_count >= min(lim["open_orders_max"], w.pool[1])
        or w.taken >= w.pool[0]
        or w.position["open_orders"] >= lim["symbol_open_orders_max"]
    ):
        return 15
    if i["qty"] > lim["qty_max"] or ((i["qty"] < 1 or i["qty"] % lim["lot_qty"]) and not _closes_all(i, w)):
        return 3
    if Decimal(i["qty"]) * Decimal(i["px"]) > lim["notional_max"]:
        return 4
    for reason, denies in ((19, _r19), (5, _r5)):
        if denies(i, w):
            return reason
    if w.tokens < 1:
        return 9
    return 2 if _r2(i, w) else 11 if _r11(i, w) else 0
