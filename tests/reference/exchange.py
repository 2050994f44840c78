"""The matching engine as plain Python over the reference books: slow, obvious, and its specification.

Written from the rules of nimbus/venue/engine_flow.py and engine_orders.py, not from the kernels.  There are
no capacities but FILLS_MAX.  `sent` holds every published message, `said` what our orders were told:
(kind, number, reason, last px, last qty, leaves, liquidity).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from reference.book import HALTED, Order, ReferenceBooks, number

PRIVATE = 0x4346 << 48
FILLS_MAX = 256
ADDED, REMOVED = 1, 2
OTHER = {"B": "S", "S": "B"}


@dataclass
class Own:
    """An order of ours."""

    number: int
    locate: int
    side: str
    px: int
    qty: int
    leaves: int
    resting: bool = False


def is_private(ref: int) -> bool:
    return ref >> 48 == 0x4346


def with_qty(message: bytes, qty: int) -> bytes:
    """Return an A, F, E, C, X or U message with another quantity."""
    at = {b"A": 20, b"F": 20, b"U": 27}.get(message[:1], 19)
    return message[:at] + qty.to_bytes(4, "big") + message[at + 4 :]


class Exchange:
    """A flow of messages and our orders; everything else follows from them."""

    def __init__(self, symbols_max: int) -> None:
        self.published = ReferenceBooks(symbols_max, 1 << 30, 1 << 30)
        self.recorded = ReferenceBooks(symbols_max, 1 << 30, 1 << 30)
        self.own: dict[int, Own] = {}
        self.touched: set[int] = set()
        self.sent: list[bytes] = []
        self.said: list[tuple[str, int, str, int, int, int, int]] = []
        self.ns = self.matches = self.hits = 0
        self.lost = 0

    # ---- published messages

    def send(self, message: bytes, *, must_fit: bool = True) -> bool:
        status, _ = self.published.apply(message, len(self.sent) + 1)
        if status < 0 and must_fit:
            return False
        self.sent.append(message)
        return True

    def head(self, letter: bytes, locate: int, ref: int) -> bytes:
        return struct.pack(">cHH6sQ", letter, locate, 0, self.ns.to_bytes(6, "big"), ref)

    def delete(self, locate: int, ref: int) -> None:
        self.send(self.head(b"D", locate, ref))

    def hit(self, order: Order, qty: int) -> None:
        """Execute shares of a published order at its price."""
        self.matches += 1
        self.hits += 1
        px, ref = order.px, order.ref
        self.send(self.head(b"E", order.locate, ref) + struct.pack(">IQ", qty, PRIVATE + self.matches))
        if is_private(ref):
            own = self.own[ref - PRIVATE]
            own.leaves -= qty
            own.resting = own.leaves > 0
            self.said.append(("traded", own.number, "", px, qty, own.leaves, ADDED))

    def queue(self, locate: int, side: str, limit: int) -> Iterator[Order]:
        """Yield the published orders of a side as far as a limit, in order of price and time."""
        for px, _, _ in self.published.levels(locate, side):
            if px < limit if side == "B" else px > limit:
                return
            yield from list(self.published.queues[locate, side, px])

    def is_halted(self, locate: int) -> bool:
        return bool(self.published.symbol(locate).status & HALTED)

    # ---- the flow

    def meet(self, locate: int, side: str, limit: int, qty: int, before: int | None) -> int:
        """Let shares of the flow meet what the recording does not have; return how many are left."""
        self.hits = 0
        if self.is_halted(locate):
            return qty
        for order in self.queue(locate, side, limit):
            if order.ref == before or qty == 0 or self.hits == FILLS_MAX:
                break
            known = self.recorded.orders.get(order.ref)
            extra = order.qty - (known.qty if known else 0)
            part = min(max(extra, 0), qty)
            if part:
                qty -= part
                self.hit(order, part)
        return qty

    def flow(self, message: bytes) -> None:
        """Let a message of the background flow happen."""
        letter = message[:1]
        refs = [number(message, 11, 8)] if letter in b"AFECXDU" else []
        refs += [number(message, 19, 8)] if letter == b"U" else []
        if any(is_private(ref) for ref in refs):
            return
        self.ns = max(self.ns, number(message, 5, 6))
        status, change = self.recorded.apply(message, 0)
        handler = {
            b"A": self.arrive, b"F": self.arrive, b"E": self.execute, b"C": self.execute,
            b"X": self.shrink, b"D": self.shrink, b"U": self.replace,
        }.get(letter)  # fmt: skip
        if status < 0 or handler is None or change["locate"] not in self.touched:
            self.send(message, must_fit=status >= 0)
        else:
            handler(message, change, change["locate"], chr(change["side"]))

    def put(self, message: bytes, qty: int) -> None:
        """Send a message with the quantity that is left, if any is."""
        if qty > 0:
            self.send(with_qty(message, qty))

    def arrive(self, message: bytes, change: dict[str, int], locate: int, side: str) -> None:
        self.put(message, self.meet(locate, OTHER[side], change["px"], change["qty"], None))

    def execute(self, message: bytes, change: dict[str, int], locate: int, side: str) -> None:
        prints = message[:1] == b"E" or message[31:32] == b"Y"
        ref, qty = change["order_ref"], change["qty"]
        has = self.published.orders[ref].qty if ref in self.published.orders else 0
        left = self.meet(locate, side, change["px"], qty, ref) if prints else qty
        if left == qty and has == qty + change["left_qty"]:
            self.send(message)  # also where it says more than the order has
            return
        self.put(message, min(left, has))
        left -= min(left, has)
        if left and prints:
            left = self.meet(locate, side, change["px"], left, None)
        self.lost += left

    def shrink(self, message: bytes, change: dict[str, int], locate: int, _side: str) -> None:
        order = self.published.orders.get(change["order_ref"])
        if order is None:
            return
        if message[:1] == b"D" or order.qty == change["qty"] + change["left_qty"]:
            self.send(message)
        elif change["left_qty"] == 0:
            self.delete(locate, order.ref)
        else:
            self.put(message, min(change["qty"], order.qty))

    def replace(self, message: bytes, change: dict[str, int], locate: int, side: str) -> None:
        order = self.published.orders.get(change["order_ref"])
        if order is None:
            return
        wanted = max(change["new_qty"] + order.qty - change["qty"], 0)
        left = self.meet(locate, OTHER[side], change["new_px"], wanted, None)
        if left > 0:
            self.put(message, left)
        else:
            self.delete(locate, order.ref)

    # ---- our orders

    def tell(self, kind: str, own: Own, reason: str = "") -> None:
        self.said.append((kind, own.number, reason, 0, 0, own.leaves, 0))

    def new(self, side: str, px: int, qty: int, *, symbol: bytes, ioc: bool) -> None:
        locates = [k for k, known in self.published.symbols.items() if known.text == symbol]
        own = Own(len(self.own) + 1, locates[-1] if locates else 0, side, px, qty, 0)
        self.own[own.number] = own
        if not locates:
            self.tell("rejected", own, "unknown symbol")
            return
        if self.is_halted(own.locate):
            self.tell("rejected", own, "symbol is halted")
            return
        own.leaves = qty
        self.touched.add(own.locate)
        self.tell("accepted", own)
        self.hits = 0
        for order in self.queue(own.locate, OTHER[side], px):
            if own.leaves == 0 or self.hits == FILLS_MAX:
                break
            part = min(order.qty, own.leaves)
            self.hit(order, part)
            own.leaves -= part
            self.said.append(("traded", own.number, "", order.px, part, own.leaves, REMOVED))
        if own.leaves == 0:
            return
        swept = next(self.queue(own.locate, OTHER[side], px), None) is not None
        if swept or ioc:
            own.leaves = 0
            self.tell("canceled", own, "order met too many" if swept else "immediate or cancel")
            return
        own.resting = True
        tail = struct.pack(">cI8sI", side.encode(), own.leaves, symbol, px)
        self.send(self.head(b"A", own.locate, PRIVATE + own.number) + tail)

    def cancel(self, name: int) -> None:
        own = self.own.get(name)
        if own is None or not own.resting:
            reason = "too late" if own else "unknown order"
            self.tell("cancel rejected", own or Own(name, 0, "B", 0, 0, 0), reason)
            return
        self.delete(own.locate, PRIVATE + name)
        own.resting, own.leaves = False, 0
        self.tell("canceled", own)
