"""A whole orders agent in memory, with the venue's codec across the rings: what the scenarios play on."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from nimbus.fix.codec import REPORT, Codec
from nimbus.fix.template import encode_cancel_reject, encode_report
from nimbus.journal.log import Stream
from nimbus.messages import BUY, FILL, INTENT, INTENT_CANCEL, INTENT_NEW, PAPER, SELL, TOP_OF_BOOK, WIRE
from nimbus.orders import kill_switch
from nimbus.orders.agent import Orders, receive, take_intent
from ringbuf import seqlock
from ringbuf.segment import Segment
from ringbuf.spsc import claim, front, pop, publish

NOW = 1_764_111_111_123_456_789  # 2025-11-25 22:51:51 UTC
SYMBOLS = {1: b"AAPL    ", 2: b"MSFT    ", 3: b"BRK.A   "}
SYMBOLS_MAX = 8


def bytes_at(addr: int, size: int) -> bytes:
    return ctypes.string_at(addr, size)


def view(addr: int, record: Any) -> Any:
    """Return the record at an address as one writable numpy row."""
    return np.frombuffer((ctypes.c_char * record.size).from_address(addr), record.dtype)[0:1]


def fields_of(message: bytes) -> dict[int, str]:
    pairs = (field.split("=", 1) for field in message.decode("ascii").rstrip("\x01").split("\x01"))
    return {int(tag): value for tag, value in pairs}


class Rig:
    def __init__(self, *, limits: dict[str, Any] | None = None, journal: int = 4096, **settings: Any) -> None:
        segment = self.segment = Segment.anonymous(1 << 26)
        self.symbols = segment.allocate("symbols", 8 * SYMBOLS_MAX)
        for locate, text in SYMBOLS.items():
            segment.words(self.symbols + 8 * locate, 1)[0] = int.from_bytes(text, "little")
        self.tops = seqlock.create_cells(segment, "tops", SYMBOLS_MAX, TOP_OF_BOOK)
        self.stream = Stream(segment, 2, epoch=7, capacity=journal)
        self.orders = Orders(
            segment, symbols=self.symbols, symbols_max=SYMBOLS_MAX, tops=self.tops, stream=self.stream,
            day_orders_max=settings.pop("day_orders_max", 4096),
            executions_max=settings.pop("executions_max", 4096),
            limits=limits, **settings,
        )  # fmt: skip
        self.venue = Codec.for_venue(
            segment, "venue", comp_ids=("VENUE", "CONTRAFUSION"), symbols=self.symbols,
            symbols_max=SYMBOLS_MAX,
            epoch=7,
        )  # fmt: skip
        self._intent = segment.allocate("intent", INTENT.size)
        self._report = segment.allocate("report", REPORT.size)
        self.venue_seq, self.exec_id, self.decision = 0, 0, 0
        for locate in SYMBOLS:
            self.top(locate)

    def arm(self) -> None:
        self.orders.kill_switch.set(kill_switch.OPERATOR, PAPER)
        self.orders.log_on()

    def top(
        self, locate: int = 1, *, bid: int = 1_000_000, ask: int = 1_000_200, now_ns: int = NOW, **more: int
    ) -> None:
        cell = self.tops + locate * seqlock.cell_size(TOP_OF_BOOK)
        row = view(seqlock.begin_write(cell), TOP_OF_BOOK)
        values = {
            "update": 1,
            "recv_ns": now_ns,
            "bid_px": bid,
            "ask_px": ask,
            "state": ord("T"),
            "status": 0,
        }
        for field, value in (values | more).items():
            row[field] = value
        seqlock.end_write(cell)

    def intent(self, **values: Any) -> int:
        row = view(self._intent, INTENT)
        row[:] = np.zeros(1, INTENT.dtype)
        self.decision += 1
        base = {
            "decision": self.decision, "cause_seq": 5000 + self.decision, "px": 1_000_100, "qty": 100,
            "locate": 1,
            "kind": INTENT_NEW, "side": BUY, "sigma": 0.01, "mean": 0.001, "strategy": 1, "book_update": 1,
            "recv_ns": NOW,
        }  # fmt: skip
        for field, value in (base | values).items():
            row[field] = value
        return self._intent

    def send(self, now_ns: int = NOW, **values: Any) -> int:
        return take_intent(self.orders.addr, self.intent(**values), now_ns)

    def cancel(self, order: int, now_ns: int = NOW) -> int:
        return self.send(now_ns, kind=INTENT_CANCEL, order=order)

    def wires(self) -> list[bytes]:
        """Pop every message on its way to the venue."""
        found = []
        while wire := front(self.orders.out):
            row = view(wire, WIRE)[0]
            found.append(bytes(row["bytes"][: row["size"]]))
            pop(self.orders.out)
        return found

    def fills(self) -> list[Any]:
        """Pop every FILL on its way to the strategy."""
        found = []
        while fill := front(self.orders.fills):
            found.append(view(fill, FILL)[0].copy())
            pop(self.orders.fills)
        return found

    def order(self, number: int) -> Any:
        return self.orders.pool.taken[number - 1]

    def deliver(self, message: bytes, due_ns: int = NOW) -> None:
        wire = claim(self.orders.inbound)
        row = view(wire, WIRE)
        row["due_ns"], row["size"] = due_ns, len(message)
        row["bytes"][0, : len(message)] = list(message)
        publish(self.orders.inbound)

    def receive(self, now_ns: int = NOW) -> int:
        return receive(self.orders.addr, now_ns)

    def report(
        self, number: int, exec_type: str, status: str, *, qty: int = 0, px: int = 0, **more: Any
    ) -> bytes:
        """Return the venue's report on an order: leaves and cum follow from what it has, unless given."""
        order = self.order(number)
        cum = int(order["cum_qty"]) + qty
        row = view(self._report, REPORT)
        row[:] = np.zeros(1, REPORT.dtype)
        self.exec_id += 1
        self.venue_seq += 1
        values = {
            "order_id": 900 + number, "exec_id": self.exec_id, "px": order["px"], "qty": order["qty"],
            "last_qty": qty,
            "last_px": px, "cum_qty": cum, "cost": int(order["cost"]) + qty * px, "locate": order["locate"],
            "leaves_qty": 0 if status in "248C" else max(int(order["qty"]) - cum, 0), "side": order["side"],
            "exec_type": ord(exec_type), "ord_status": ord(status), "cl_ord_id": order["cl_ord_id"],
        }  # fmt: skip
        for field, value in (values | more).items():
            row[field] = value
        target = (ctypes.c_char * 480)()
        at = ctypes.addressof(target)
        encode = encode_cancel_reject if exec_type == "9" else encode_report
        size = encode(self.venue.addr, at, self._report, self.venue_seq, NOW)
        assert size > 0, size
        return target.raw[:size]

    def reports(self, number: int, exec_type: str, status: str, **more: Any) -> None:
        """Deliver a report and let the agent take it."""
        self.deliver(self.report(number, exec_type, status, **more))
        assert self.receive() == 1

    def cancel_answer(self, number: int, exec_type: str, status: str, **more: Any) -> None:
        order = self.order(number)
        ids = {"cl_ord_id": order["cancel_id"], "orig_cl_ord_id": order["cl_ord_id"]}
        self.reports(number, exec_type, status, **(ids | more))

    def position(self, locate: int = 1) -> Any:
        return self.orders.position_row(locate)


__all__ = ["NOW", "SELL", "Rig"]
