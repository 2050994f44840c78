"""What the admin endpoint shows of a running system: snapshots of its memory as plain values."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from bicep.plan import MODE_SAMPLES
from daemon.admin.fills import RecentFills, Trade
from daemon.admin.text import average_px, metric, money, time_text
from daemon.config import config_hash
from daemon.rung_control import RungControl
from daemon.system import System
from daemon.threads import HotLoop
from nimbus.messages import BUY, TAG_NAMES, TOP_OF_BOOK
from ringbuf.jit import source_digest
from ringbuf.seqlock import cell_size
from ringbuf.seqlock import read as read_cell

_SYMBOL_ORDERS_MAX: Final = 100
_MS: Final = 1_000_000


class SystemViews:
    """Reads of one system; everything here runs on the control loop and writes nothing."""

    def __init__(
        self, system: System, loops: Sequence[HotLoop], fills: RecentFills,
        rungs: RungControl | None = None,
    ) -> None:  # fmt: skip
        self._system, self._loops, self._fills, self._rungs = system, tuple(loops), fills, rungs
        self._top_addr = system.segment.allocate("admin.top", TOP_OF_BOOK.size)
        self._top: Any = system.segment.array("admin.top", TOP_OF_BOOK)[0]
        self._started_ns = time.monotonic_ns()
        self._hashes = {  # of what runs, not of what lies on the disk by now; the code's takes milliseconds
            "config": config_hash(system.config), "code": source_digest(), "model": system.model.id,
        }  # fmt: skip
        self._pulses = {loop.name: (-1, self._started_ns) for loop in loops}  # pulse, when it last moved

    def _age_ns(self, loop: HotLoop) -> int:
        pulse, now_ns = loop.pulse(), time.monotonic_ns()
        if pulse != self._pulses[loop.name][0]:
            self._pulses[loop.name] = (pulse, now_ns)
        return now_ns - self._pulses[loop.name][1]

    def _agent(self, loop: HotLoop) -> dict[str, Any]:
        return {
            "name": loop.name, "placement": loop.placement, "core": loop.thread.core,
            "running": loop.thread.is_running, "beats": loop.beats(), "age_ns": self._age_ns(loop),
        }  # fmt: skip

    def health(self) -> tuple[bool, dict[str, Any]]:
        """State, hashes and the heartbeat of each hot loop; one whose capture has ended is healthy."""
        system, agents = self._system, [self._agent(loop) for loop in self._loops]
        limit_ns = system.config.run.heartbeat_max_ms * _MS
        stale = any(agent["running"] and agent["age_ns"] > limit_ns for agent in agents)
        faulty = any(loop.thread.error is not None for loop in self._loops)
        return not (stale or faulty), {
            "state": system.orders.kill_switch.state,
            "role": "alone",
            "epoch": system.config.epoch,
            "uptime_ns": time.monotonic_ns() - self._started_ns,
            "hashes": self._hashes,
            "agents": agents,
            "clock": {"source": system.clock.kind_name, "market": time_text(system.now_ns)},
        }

    def positions(self) -> list[dict[str, Any]]:
        """One row per symbol that traded or has open orders."""
        rows = self._system.orders.positions(self._system.books.symbol_text, refresh=False)
        return [self._position(symbol, rows[symbol]["locate"]) for symbol in sorted(rows)]

    def _mark_px2(self, locate: int) -> int:
        """Return twice the mid of a locate's book as last published, 0 when a side is empty."""
        cell = self._system.books.state.tops + locate * cell_size(TOP_OF_BOOK)
        if read_cell(cell, self._top_addr, TOP_OF_BOOK.size) < 0:
            return 0
        bid_px, ask_px = int(self._top["bid_px"]), int(self._top["ask_px"])
        return bid_px + ask_px if bid_px and ask_px else 0

    def _position(self, symbol: str, locate: int) -> dict[str, Any]:
        system = self._system
        held = system.orders.position_row(locate).copy()
        qty, limit = int(held["position_qty"]), system.config.risk.position_max
        basis, mark_px2 = int(held["basis"]), self._mark_px2(locate)
        return {
            "symbol": symbol,
            "qty": qty,
            "avg_px": average_px(basis, qty),
            "mark_px": money(mark_px2 // 2),
            "realized_pnl": money(int(held["cash"]) + basis),
            "unrealized_pnl": money((qty * mark_px2 - 2 * basis) // 2 if mark_px2 else 0),
            "open_buy_qty": int(held["open_buy_qty"]),
            "open_sell_qty": int(held["open_sell_qty"]),
            "limit_qty": limit,
            "limit_used": round(abs(qty) / limit, 4),
            "as_of": time_text(system.now_ns),
        }

    def position(self, symbol: str) -> dict[str, Any] | None:
        """One known symbol with its last orders and fills; None for one the feed has not announced."""
        locate = self._system.books.locate_of(symbol)
        if locate < 0:
            return None
        mine = [order for order in self.orders() if order["symbol"] == symbol]
        return self._position(symbol, locate) | {
            "orders": mine[-_SYMBOL_ORDERS_MAX:],
            "fills": [self._fill(symbol, trade) for trade in self._fills.last(locate)],
        }

    def _fill(self, symbol: str, trade: Trade) -> dict[str, Any]:
        order = self._system.orders.pool.taken[trade.order - 1]
        return {
            "exec_id": trade.exec_id,
            "cl_ord_id": bytes(order["cl_ord_id"]).decode("ascii"),
            "symbol": symbol,
            "side": "buy" if trade.side == BUY else "sell",
            "qty": trade.qty,
            "price": money(trade.px),
            "liquidity": trade.liquidity,
            "strategy": trade.strategy,
            "contradiction": TAG_NAMES[int(order["tag"])],
            "at": time_text(trade.now_ns),
        }

    def orders(self) -> list[dict[str, Any]]:
        """Every order of the day, oldest first."""
        return [
            {
                "cl_ord_id": row["cl_ord_id"],
                "symbol": row["symbol"],
                "side": "buy" if row["side"] == chr(BUY) else "sell",
                "type": "limit",
                "qty": row["qty"],
                "price": money(row["px"]),
                "leaves_qty": row["leaves_qty"],
                "cum_qty": row["cum_qty"],
                "avg_px": average_px(row["cost"], row["cum_qty"]),
                "state": row["status"],
                "strategy": row["strategy"],
                "created_at": time_text(row["created_ns"]),
                "updated_at": time_text(row["updated_ns"]),
            }
            for row in self._system.orders.orders(self._system.books.symbol_text)
        ]

    def latency(self) -> list[dict[str, Any]]:
        """Percentiles of every stage."""
        rows = []
        for name, histogram in self._system.histograms.items():
            shares = (50.0, 90.0, 99.0, 99.9)
            values = histogram.percentiles(list(shares)) if histogram.count else [0] * len(shares)
            names = ("p50_ns", "p90_ns", "p99_ns", "p999_ns")
            rows.append(
                {"name": name, "count": histogram.count, **dict(zip(names, map(int, values), strict=True)),
                 "max_ns": int(histogram.largest) if histogram.count else 0}
            )  # fmt: skip
        return rows

    def bicep(self) -> dict[str, Any]:
        """Return what an inference computes now, and, where NANopt chooses, what it sees."""
        plan = self._system.model.plan
        if plan is None:
            return {"adaptive": False, "density": None, "samples": None}
        rung, mode = plan.rung
        now = {
            "density": plan.densities[rung],
            "samples": MODE_SAMPLES[mode],
            "changes": self._system.rungs.taken,
        }
        return {"adaptive": self._rungs is not None} | (self._rungs.status() if self._rungs else {}) | now

    def metrics(self) -> str:
        """Prometheus text: counters as they stand in memory."""
        system = self._system
        feed, books, orders = system.feed.counters(), system.books.counters(), system.orders.counters()
        lines = [
            metric("feed_packets_total", "counter", {"": feed["frames"]}),
            metric("feed_messages_total", "counter", {"": int(system.control["heartbeat"])}),
            metric("feed_next_seq", "gauge", {"": int(system.feed.record["expected"])}),
            metric("feed_gaps_total", "counter", {"": feed["gaps"]}),
            metric("feed_refused_total", "counter", _labelled("reason", system.feed.refused())),
            metric("book_updates_total", "counter", {"": books["tops"]}),
            metric(
                "book_invalid_total", "counter", _labelled("reason", {"unknown_ref": books["unknown_ref"]})
            ),
            metric("decision_total", "counter", _labelled("reason", system.strategy.model.counts())),
            metric("orders_sent_total", "counter", {"": orders["sent"]}),
            metric("orders_denied_total", "counter", _labelled("reason", system.orders.denials())),
            metric("fills_total", "counter", {"": orders["trades"]}),
            metric("journal_lost_total", "counter", {"": int(system.control["journal_lost"])}),
            metric(
                "agent_heartbeat_age_seconds",
                "gauge",
                _labelled("agent", {loop.name: self._age_ns(loop) / 1e9 for loop in self._loops}),
            ),
            metric("state", "gauge", _labelled("state", {system.orders.kill_switch.state: 1})),
        ]
        if self._rungs:
            seen = self.bicep()
            lines += [
                metric("rung_density", "gauge", {"": seen["density"]}),
                metric("rung_samples", "gauge", {"": seen["samples"]}),
                metric("rung_changes_total", "counter", {"": seen["changes"]}),
                metric("inference_gain", "gauge", {"": seen["gain"]}),
                metric("slo_miss", "gauge", {"": int(seen["slo_miss"])}),
            ]
        positions = {row["symbol"]: row["qty"] for row in self.positions()}
        lines.append(metric("position_qty", "gauge", _labelled("symbol", positions)))
        return "".join(lines)


def _labelled(label: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f'{{{label}="{name}"}}': value for name, value in values.items()}
