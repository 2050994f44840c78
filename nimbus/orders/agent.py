"""The orders agent: intents in, FIX messages out; reports in, states, positions and fills out.

Kernels: `take_intent`, `receive`, `cancel_all`, `mark`; each takes the address of one ORDERS record.  All of
it is written by the orders loop alone, except the LIMITS cell (one cold writer), the SESSION words and the
kill switch (one writer per word).  The owner below is cold: it allocates, and reads for reports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from nimbus.fix.codec import Codec
from nimbus.fix.parse import create_fields
from nimbus.journal.log import Stream
from nimbus.messages import FILL, POSITION, TOP_OF_BOOK, WIRE
from nimbus.orders.executions import EXECUTIONS_MAX, create_executions
from nimbus.orders.kill_switch import KillSwitch
from nimbus.orders.pool import DAY_ORDERS_MAX, OPEN_ORDERS_MAX, Pool
from nimbus.orders.positions import realised, set_mark, unrealised_px2
from nimbus.orders.reports import receive
from nimbus.orders.risk import RISK, SESSION, Limits, Reason, position_at
from nimbus.orders.send import cancel_all, take_intent
from nimbus.orders.state import ALARMS, COUNTERS, ORDERS
from nimbus.orders.states import STATUS_NAMES, create_table
from ringbuf import seqlock
from ringbuf.jit import kernel
from ringbuf.memory import load_i64
from ringbuf.segment import Segment
from ringbuf.spsc import create_ring

__all__ = ["Orders", "cancel_all", "mark", "receive", "take_intent"]

OUT_CAPACITY, IN_CAPACITY, FILLS_CAPACITY = 1_024, 4_096, 4_096
JOURNAL_RESERVE_PART: Final = 8  # one part in eight of the journal ring is kept for cancels and executions
UNIT: Final = 10_000  # of the currency
_ORDERS = ORDERS.at
_ORDER_NUMBERS: Final = (
    "cause_seq", "px", "qty", "cum_qty", "leaves_qty", "cost", "tif", "strategy", "tag", "created_ns",
    "sent_ns", "updated_ns", "book_update",
)  # fmt: skip


@kernel
def mark(orders: int, locate: int, mark_px2: int) -> None:
    """Set twice the mark price of a symbol; the caller has checked locate < symbols_max."""
    set_mark(position_at(load_i64(orders + _ORDERS.risk), locate), mark_px2)


class Orders:
    """Owns pool, positions, limits, codec and rings of one account; `addr` goes to the kernels.

    symbols, symbols_stride: where the 8-byte symbol of each locate stands (book rows).  tops: address of the
    TOP_OF_BOOK cell of locate 0.  stream: the journal stream of the loop that runs this agent.
    Rings not given are created here: `out`, `inbound` (WIRE), `fills` (FILL).
    """

    def __init__(
        self, segment: Segment, *, symbols: int, symbols_max: int, tops: int, stream: Stream,
        symbols_stride: int = 8, day_orders_max: int = DAY_ORDERS_MAX, open_orders_max: int = OPEN_ORDERS_MAX,
        executions_max: int = EXECUTIONS_MAX, comp_ids: tuple[str, str] = ("CONTRAFUSION", "VENUE"),
        timestamp_digits: int = 3, out: int = 0, inbound: int = 0, fills: int = 0,
        limits: dict[str, Any] | None = None, name: str = "orders",
    ) -> None:  # fmt: skip
        self._segment, self._tops, self._stream = segment, tops, stream
        self.epoch = stream.epoch
        self.addr = segment.allocate(name, ORDERS.size)
        self._state = segment.array(name, ORDERS)
        self.out = out or create_ring(segment, f"{name}.out", OUT_CAPACITY, WIRE)
        self.inbound = inbound or create_ring(segment, f"{name}.in", IN_CAPACITY, WIRE)
        self.fills = fills or create_ring(segment, f"{name}.fills", FILLS_CAPACITY, FILL)
        self.pool = Pool(
            segment,
            f"{name}.pool",
            epoch=stream.epoch,
            orders_max=day_orders_max,
            open_orders_max=open_orders_max,
        )
        self.codec = Codec.for_orders(
            segment, f"{name}.codec", comp_ids=comp_ids, symbols=symbols, symbols_max=symbols_max,
            symbols_stride=symbols_stride, epoch=stream.epoch, timestamp_digits=timestamp_digits,
        )  # fmt: skip
        self.limits = Limits(segment, f"{name}.limits")
        self.limits.set(**(limits or {}))
        self.kill_switch = KillSwitch(segment, f"{name}.kill_switch")
        positions = segment.allocate(f"{name}.positions", symbols_max * POSITION.size)
        self._positions = segment.array(f"{name}.positions", POSITION)
        self.session = segment.allocate(f"{name}.session", SESSION.size)
        self._session = segment.array(f"{name}.session", SESSION)
        risk = segment.allocate(f"{name}.risk", RISK.size)
        self._risk = segment.array(f"{name}.risk", RISK)
        self._write(self._risk[0], {
            "limits": self.limits.cell, "tops": tops, "positions": positions, "pool": self.pool.addr,
            "kill_switch": self.kill_switch.addr, "session": self.session, "stream": stream.addr,
            "journal_reserve": stream.capacity // JOURNAL_RESERVE_PART, "symbols_max": symbols_max,
        })  # fmt: skip
        self._write(self._state[0], {
            "pool": self.pool.addr, "risk": risk, "codec": self.codec.addr, "session": self.session,
            "table": create_table(segment, f"{name}.states"),
            "fields": create_fields(segment, f"{name}.fields"),
            "executions": create_executions(segment, f"{name}.executions", executions_max),
            "stream": stream.addr, "kill_switch": self.kill_switch.addr, "out": self.out,
            "inbound": self.inbound, "fills": self.fills, "next_seq": 1,
        })  # fmt: skip

    @staticmethod
    def _write(row: Any, values: dict[str, int]) -> None:
        for field, value in values.items():
            row[field] = value

    def log_on(self, *, logged_on: bool = True) -> None:
        """Set the session word: in replay the session starts logged on."""
        if bool(self._session[0]["logged_on"]) != logged_on:  # an equal store would take the line away
            self._session[0]["logged_on"] = logged_on

    def set_resending(self, *, resending: bool) -> None:
        """Set the session word that holds new orders back while a gap is open (R20)."""
        if bool(self._session[0]["resending"]) != resending:
            self._session[0]["resending"] = resending

    @property
    def next_seq(self) -> int:
        """MsgSeqNum of the next message out."""
        return int(self._state[0]["next_seq"])

    def counters(self) -> dict[str, int]:
        """Return every counter by name."""
        return {name: int(self._state[0][name]) for name in COUNTERS}

    def alarms(self) -> dict[str, int]:
        """Return the counters that stand for an alarm, those above zero."""
        return {name: int(self._state[0][name]) for name in ALARMS if self._state[0][name]}

    def denials(self) -> dict[str, int]:
        """Return how many intents were denied for each reason, as {"R4 NOTIONAL": n}."""
        counts = self._state[0]["denied_by_reason"]
        return {f"R{reason.value} {reason.name}": int(counts[reason]) for reason in Reason if counts[reason]}

    def last_denial(self) -> tuple[int, int]:
        """Return (observed, limit) of the last denial."""
        return int(self._risk[0]["observed"]), int(self._risk[0]["limit"])

    def position_row(self, locate: int) -> Any:
        """Return the POSITION row of a locate (a live view)."""
        return self._positions[locate]

    def position_hash(self) -> int:
        """Return a 64-bit hash of every POSITION row that ever held something, with its locate.

        It does not depend on the capacities, nor on anything but what orders and reports led to, and the
        marks: refresh them first.
        """
        rows = self._positions.view(np.int64).reshape(len(self._positions), -1)
        digest = hashlib.blake2b(digest_size=8)
        for locate in np.flatnonzero(rows.any(axis=1)).tolist():
            digest.update(locate.to_bytes(8, "little") + rows[locate].tobytes())
        return int.from_bytes(digest.digest(), "little", signed=True)

    def _mark_px2(self, locate: int) -> tuple[int, bool]:
        """Return (twice the mark price, stale): the mid of a good book, else the last mark."""
        cell = self._tops + locate * seqlock.cell_size(TOP_OF_BOOK) + seqlock.VALUE_AT
        top = self._segment.words(cell, TOP_OF_BOOK.size // 8).view(TOP_OF_BOOK.dtype)[0]
        if top["bid_px"] and top["ask_px"] and not top["status"]:
            return int(top["bid_px"] + top["ask_px"]), False
        return int(self._positions[locate]["mark_px2"]), True

    def refresh_marks(self) -> None:
        """Mark every symbol with a position to the mid of its book, where that is good (cold)."""
        for locate in self._positions["fills"].nonzero()[0]:
            mark_px2, stale = self._mark_px2(int(locate))
            if not stale:
                mark(self.addr, int(locate), mark_px2)

    def positions(
        self, symbol_text: Callable[[int], str], *, refresh: bool = True
    ) -> dict[str, dict[str, Any]]:
        """Return every symbol that traded or has open orders; money in the currency, before fees.

        refresh: mark them first; not while the orders loop runs in another thread, which owns the marks.
        Integers stand beside the money: *_px4 is 1/10,000, unrealised twice that (*_px4x2), both exact.
        """
        if refresh:
            self.refresh_marks()
        rows = self._positions
        found: dict[str, dict[str, Any]] = {}
        for locate in ((rows["fills"] != 0) | (rows["open_orders"] != 0)).nonzero()[0]:
            row, addr = rows[locate], int(self._risk[0]["positions"]) + int(locate) * POSITION.size
            held, basis = int(row["position_qty"]), int(row["basis"])
            symbol = symbol_text(int(locate))
            if not symbol or symbol in found:  # announced no more, or twice: no position hides another
                symbol = f"{symbol}@{int(locate)}"
            found[symbol] = {
                "locate": int(locate),
                "qty": held,
                "average_px": basis / held / UNIT if held else 0.0,
                "mark_px": int(row["mark_px2"]) / 2 / UNIT,
                "mark_stale": self._mark_px2(int(locate))[1],
                "realized_pnl": realised(addr) / UNIT,
                "unrealized_pnl": unrealised_px2(addr) / 2 / UNIT,
                "realized_pnl_px4": realised(addr),
                "unrealized_pnl_px4x2": unrealised_px2(addr),
                "bought_qty": int(row["bought_qty"]),
                "sold_qty": int(row["sold_qty"]),
                "fills": int(row["fills"]),
                "open_orders": int(row["open_orders"]),
            }
        return found

    def orders(
        self, symbol_text: Callable[[int], str], *, open_only: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield every order of the day, oldest first, as plain values."""
        for row in self.pool.taken:
            status = chr(row["status"])
            if open_only and status in "248C":
                continue
            yield {
                "order": int(row["number"]),
                "cl_ord_id": bytes(row["cl_ord_id"]).decode("ascii"),
                "symbol": symbol_text(int(row["locate"])),
                "side": chr(row["side"]),
                "status": STATUS_NAMES[status],
                "pending": int(row["pending"]),
                "decision": int(row["decision"]),
                **{n: int(row[n]) for n in _ORDER_NUMBERS},
            }
