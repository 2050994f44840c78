"""The level-3 books as dicts and lists: slow, obvious, and the specification of nimbus/book.

Written from TotalView-ITCH 5.0, not from the kernels.  A message is refused whole
or applied whole; each refusal and each oddity is counted by name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

TOP_CHANGED, TRADED, STATE_CHANGED, DEPTH_CHANGED = 1, 2, 4, 8
STALE, CROSSED, ONE_SIDED, HALTED, INCOMPLETE, FAULTY = 1, 2, 4, 8, 16, 32
REFUSALS = (
    "", "unknown_ref", "duplicate_ref", "full", "bad_locate", "bad_px", "bad_qty", "bad_side", "bad_state",
)  # fmt: skip
_, UNKNOWN_REF, DUPLICATE_REF, FULL, BAD_LOCATE, BAD_PX, BAD_QTY, BAD_SIDE, BAD_STATE = REFUSALS
PX_MAX = 1_999_999_900
MASK = 2**64 - 1
HALT_CODES = {"Q": 1, "B": 2, "X": 4}


@dataclass
class Order:
    ref: int
    locate: int
    side: str
    px: int
    qty: int
    stamp: int


@dataclass
class Symbol:
    text: bytes | None = None
    state: str = ""
    short_sale: int = 0
    halted_markets: set[str] = field(default_factory=set)
    marks: int = 0
    top: tuple[int, int, int, int] = (0, 0, 0, 0)  # bid px, bid qty, ask px, ask qty as published
    status: int = ONE_SIDED
    update: int = 0
    notices: dict[str, bytes] = field(default_factory=dict)


def number(message: bytes, at: int, size: int) -> int:
    return int.from_bytes(message[at : at + size], "big")


def header(message: bytes, seq: int) -> dict[str, int]:
    return {
        "seq": seq, "exch_ns": number(message, 5, 6), "locate": number(message, 1, 2), "cause": message[0],
    }  # fmt: skip


def fold(state: int, value: int) -> int:
    mixed = ((state ^ (value & MASK)) * 1099511628211) & MASK
    return mixed ^ (mixed >> 32)


class Refused(Exception):  # noqa: N818
    """The message is refused for the reason it carries."""


class ReferenceBooks:
    def __init__(self, symbols_max: int, live_orders_max: int, levels_max: int) -> None:
        self.symbols_max, self.live_orders_max, self.levels_max = symbols_max, live_orders_max, levels_max
        self.counters: Counter[str] = Counter()
        self.clear()

    def clear(self) -> None:
        self.orders: dict[int, Order] = {}
        self.queues: dict[tuple[int, str, int], list[Order]] = {}  # (locate, side, px) -> first to last
        self.symbols: dict[int, Symbol] = {}
        self.prices: dict[tuple[int, str], set[int]] = {}
        self.stamp = 0
        self.phase = self.breaker_level = ""

    # ---- what others ask

    def levels(self, locate: int, side: str) -> list[tuple[int, int, int]]:
        """Return (px, qty, orders) of one side, best first."""
        prices = sorted(self.prices.get((locate, side), ()), reverse=side == "B")
        queues = [(px, self.queues[locate, side, px]) for px in prices]
        return [(px, sum(o.qty for o in queue), len(queue)) for px, queue in queues]

    def state_hash(self) -> int:
        """Return the hash of all orders, as a signed 64-bit integer."""
        result = 0xCBF29CE484222325
        for locate, side in sorted({(locate, side) for locate, side, _ in self.queues}):  # 'B' < 'S'
            for px, _, _ in self.levels(locate, side):
                result = fold(fold(result, 2 * locate + (side == "S")), px)
                for order in self.queues[locate, side, px]:
                    result = fold(fold(result, order.ref), order.qty)
        return result - 2**64 if result >= 2**63 else result

    def symbol(self, locate: int) -> Symbol:
        return self.symbols.setdefault(locate, Symbol())

    # ---- one message

    def apply(self, message: bytes, seq: int) -> tuple[int, dict[str, int]]:
        """Apply one message; return (flags or minus the number of the refusal, the CHANGE fields)."""
        handlers = {
            b"A": self.add, b"F": self.add, b"E": self.take, b"C": self.take, b"X": self.take,
            b"D": self.take, b"U": self.replace, b"P": self.trade, b"Q": self.trade, b"B": self.broken,
            b"S": self.system, b"W": self.breaker, b"R": self.announce, b"H": self.trading,
            b"Y": self.reg_sho, b"h": self.halt, b"J": self.notice, b"I": self.notice, b"N": self.notice,
            b"O": self.notice,
        }  # fmt: skip
        handler = handlers.get(message[:1], lambda _message, _change: 0)
        change = header(message, seq)
        try:
            flags = handler(message, change)
        except Refused as refusal:
            self.counters[str(refusal)] += 1
            return -REFUSALS.index(str(refusal)), header(message, seq)
        change["flags"] = flags
        if change["locate"] < self.symbols_max:
            change["status"] = self.symbol(change["locate"]).status
        return flags, change

    def locate_in(self, message: bytes) -> int:
        locate = number(message, 1, 2)
        if not 0 < locate < self.symbols_max:
            raise Refused(BAD_LOCATE)
        return locate

    def check_px_qty(self, px: int, qty: int) -> None:
        if not 0 < px <= PX_MAX:
            raise Refused(BAD_PX)
        if qty == 0:
            raise Refused(BAD_QTY)

    def full(self, locate: int) -> None:
        self.symbol(locate).marks |= FAULTY
        self.publish(locate)
        raise Refused(FULL)

    def join(self, order: Order) -> None:
        self.orders[order.ref] = order
        self.queues.setdefault((order.locate, order.side, order.px), []).append(order)
        self.prices.setdefault((order.locate, order.side), set()).add(order.px)

    def leave(self, order: Order) -> None:
        del self.orders[order.ref]
        key = (order.locate, order.side, order.px)
        self.queues[key].remove(order)
        if not self.queues[key]:
            del self.queues[key]
            self.prices[order.locate, order.side].remove(order.px)

    def publish(self, locate: int) -> int:
        """Publish the top when anything in it differs; return the flags."""
        symbol, best = self.symbol(locate), []
        for side in "BS":
            prices = self.prices.get((locate, side))
            px = 0 if not prices else (max(prices) if side == "B" else min(prices))
            best += [px, sum(o.qty for o in self.queues[locate, side, px]) if px else 0]
        bid, ask = best[0], best[2]
        status = symbol.marks
        status |= ONE_SIDED if not bid or not ask else CROSSED if bid >= ask else 0
        status |= HALTED if symbol.state not in {"", "T"} or symbol.halted_markets else 0
        flags = (TOP_CHANGED if tuple(best) != symbol.top else 0) | (
            STATE_CHANGED if status != symbol.status else 0
        )
        symbol.update += flags != 0
        self.counters["tops"] += bool(flags & TOP_CHANGED)
        symbol.top, symbol.status = tuple(best), status
        return flags

    def add(self, message: bytes, change: dict[str, int]) -> int:
        locate, ref, side = self.locate_in(message), number(message, 11, 8), chr(message[19])
        qty, px = number(message, 20, 4), number(message, 32, 4)
        if side not in "BS":
            raise Refused(BAD_SIDE)
        self.check_px_qty(px, qty)
        if ref in self.orders:
            raise Refused(DUPLICATE_REF)
        new_level = (locate, side, px) not in self.queues
        if len(self.orders) == self.live_orders_max or (new_level and len(self.queues) == self.levels_max):
            self.full(locate)
        if self.symbol(locate).text is None:
            self.counters["unannounced"] += 1
        self.stamp += 1
        self.join(Order(ref, locate, side, px, qty, self.stamp))
        change |= {
            "order_ref": ref, "px": px, "qty": qty, "left_qty": qty, "stamp": self.stamp,
            "new_stamp": self.stamp, "side": ord(side),
        }  # fmt: skip
        return DEPTH_CHANGED | self.publish(locate)

    def find(self, message: bytes, change: dict[str, int]) -> Order:
        order = self.orders.get(number(message, 11, 8))
        if order is None:
            raise Refused(UNKNOWN_REF)
        change |= {
            "order_ref": order.ref, "px": order.px, "stamp": order.stamp, "locate": order.locate,
            "side": ord(order.side),
        }  # fmt: skip
        return order

    def take(self, message: bytes, change: dict[str, int]) -> int:
        order, kind = self.find(message, change), message[:1]
        wanted = order.qty if kind == b"D" else number(message, 19, 4)
        if wanted == 0:
            raise Refused(BAD_QTY)
        self.counters["oversize"] += wanted > order.qty
        self.counters["other_locate"] += number(message, 1, 2) != order.locate
        flags = DEPTH_CHANGED
        if kind in {b"E", b"C"}:
            px = order.px if kind == b"E" else number(message, 32, 4)
            if kind == b"C" and message[31:32] != b"Y":
                self.counters["hidden"] += 1
            elif not 0 < px <= PX_MAX:
                self.counters["bad_px"] += 1
            else:
                change |= {"trade_px": px, "trade_qty": wanted, "printable": 1}
                flags |= TRADED
        taken = min(wanted, order.qty)
        order.qty -= taken
        change |= {"qty": taken, "left_qty": order.qty}
        if order.qty == 0:
            self.leave(order)
        return flags | self.publish(order.locate)

    def replace(self, message: bytes, change: dict[str, int]) -> int:
        order = self.find(message, change)
        ref, qty, px = number(message, 19, 8), number(message, 27, 4), number(message, 31, 4)
        self.check_px_qty(px, qty)
        if ref in self.orders:
            raise Refused(DUPLICATE_REF)
        new_level = (order.locate, order.side, px) not in self.queues
        if new_level and len(self.queues) == self.levels_max:  # counted while the old order stands
            self.full(order.locate)
        self.counters["other_locate"] += number(message, 1, 2) != order.locate
        self.leave(order)
        self.stamp += 1
        self.join(Order(ref, order.locate, order.side, px, qty, self.stamp))
        change |= {
            "qty": order.qty, "new_ref": ref, "new_px": px, "new_qty": qty, "new_stamp": self.stamp,
        }  # fmt: skip
        return DEPTH_CHANGED | self.publish(order.locate)

    def trade(self, message: bytes, change: dict[str, int]) -> int:
        locate = self.locate_in(message)
        cross = message[:1] == b"Q"
        qty = number(message, 11, 8) if cross else number(message, 20, 4)
        px = number(message, 27, 4) if cross else number(message, 32, 4)
        if cross and qty == 0:  # no cross took place
            return 0
        if not 0 < qty < 2**63:
            raise Refused(BAD_QTY)
        if not 0 < px <= PX_MAX:
            raise Refused(BAD_PX)
        self.counters["unannounced"] += self.symbol(locate).text is None
        change |= {"trade_px": px, "trade_qty": qty, "printable": 1}
        return TRADED

    def broken(self, _message: bytes, _change: dict[str, int]) -> int:
        self.counters["broken"] += 1
        return 0

    def system(self, message: bytes, change: dict[str, int]) -> int:
        self.phase, change["locate"] = chr(message[11]), 0
        return STATE_CHANGED

    def breaker(self, message: bytes, change: dict[str, int]) -> int:
        self.breaker_level, change["locate"] = chr(message[11]), 0
        return STATE_CHANGED

    def announce(self, message: bytes, _change: dict[str, int]) -> int:
        self.symbol(self.locate_in(message)).text = message[11:19]
        return 0

    def state_published(self, locate: int, changed: bool) -> int:
        symbol = self.symbol(locate)
        before = symbol.update
        flags = self.publish(locate)
        symbol.update = before + bool(flags or changed)
        return STATE_CHANGED if flags or changed else 0

    def trading(self, message: bytes, _change: dict[str, int]) -> int:
        locate, state = self.locate_in(message), chr(message[19])
        if state not in "THPQ":
            raise Refused(BAD_STATE)
        symbol = self.symbol(locate)
        changed, symbol.state = symbol.state != state, state
        return self.state_published(locate, changed)

    def reg_sho(self, message: bytes, _change: dict[str, int]) -> int:
        locate, action = self.locate_in(message), chr(message[19])
        if action not in "012":
            raise Refused(BAD_STATE)
        symbol = self.symbol(locate)
        changed, symbol.short_sale = symbol.short_sale != int(action), int(action)
        return self.state_published(locate, changed)

    def halt(self, message: bytes, _change: dict[str, int]) -> int:
        locate, market, action = self.locate_in(message), chr(message[19]), chr(message[20])
        if market not in HALT_CODES or action not in "HT":
            raise Refused(BAD_STATE)
        halted = self.symbol(locate).halted_markets
        halted.add(market) if action == "H" else halted.discard(market)
        return self.state_published(locate, changed=False)

    def notice(self, message: bytes, _change: dict[str, int]) -> int:
        self.symbol(self.locate_in(message)).notices[chr(message[0])] = message
        return 0
