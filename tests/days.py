"""ITCH streams for tests, from a seed: orderly days that any book builder agrees on, and hostile ones."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

HEADER = ">cHH6s"


def _pack(fields: str):
    """Return what packs a message: type, locate, tracking, 6 bytes of time, fields."""
    return struct.Struct(HEADER + fields).pack


ADD, ADD_MPID, EXECUTED, EXECUTED_PX = _pack("QcI8sI"), _pack("QcI8sI4s"), _pack("QIQ"), _pack("QIQcI")
CANCEL, DELETE, REPLACE = _pack("QI"), _pack("Q"), _pack("QQII")
TRADE, CROSS, BROKEN = _pack("QcI8sIQ"), _pack("Q8sIQc"), _pack("Q")
SYSTEM, DIRECTORY, ACTION, REG_SHO = _pack("c"), _pack("8sccIcc2scccccIc"), _pack("8scc4s"), _pack("8sc")
HALT, COLLAR, NOII, RETAIL = _pack("8scc"), _pack("8sIIII"), _pack("QQc8sIIIcc"), _pack("8sc")
LISTING, BREAKER = _pack("8scIIIQII"), _pack("c")
OPEN_NS = 34_200_000_000_000


def symbol(locate: int) -> bytes:
    return b"SYM%05d" % locate


def directory(locate: int, ns: bytes, text: bytes | None = None) -> bytes:
    text = symbol(locate) if text is None else text
    rest = (b"Q", b"N", 100, b"N", b"C", b"Z ", b"P", b"N", b"N", b"1", b"N", 0, b"N")
    return DIRECTORY(b"R", locate, 0, ns, text, *rest)


def framed(messages: list[bytes]) -> bytes:
    """Put the 2-byte length before each message: the form of a raw ITCH file."""
    return b"".join(struct.pack(">H", len(m)) + m for m in messages)


class Day:
    """A market with a mid price for each symbol: adds around it, young deletes, trades at the best."""

    def __init__(self, seed: int, symbols: int, orders_each: int = 40) -> None:
        self.random, self.symbols, self.orders_each = random.Random(seed), symbols, orders_each
        self.ns, self.ref, self.match = OPEN_NS, 0, 0
        self.live: list[list[list[int]]] = [[] for _ in range(symbols + 1)]  # [ref, side, px, qty] by locate
        self.mids = [self.random.randrange(2_000, 40_000) for _ in range(symbols + 1)]
        self.weights = [0.0] + [1 / rank for rank in range(1, symbols + 1)]

    def opening(self) -> list[bytes]:
        ns = self.ns.to_bytes(6, "big")
        out = [SYSTEM(b"S", 0, 0, ns, b"O")]
        for locate in range(1, self.symbols + 1):
            out.append(directory(locate, ns))
            out.append(ACTION(b"H", locate, 0, ns, symbol(locate), b"T", b" ", b"    "))
        return [*out, SYSTEM(b"S", 0, 0, ns, b"Q")]

    def messages(self, count: int) -> list[bytes]:
        """Return the opening, `count` messages of trading, and the close."""
        out, rand = self.opening(), self.random
        locates = rand.choices(range(self.symbols + 1), self.weights, k=count)
        for locate in locates:
            self.ns += int(rand.expovariate(1 / 3_000))
            out.append(self.step(locate, self.ns.to_bytes(6, "big"), rand.random()))
        return [*out, *(SYSTEM(b"S", 0, 0, self.ns.to_bytes(6, "big"), e) for e in (b"M", b"E", b"C"))]

    def px_for(self, locate: int, side: int) -> int:
        away = 1 + min(int(self.random.expovariate(0.45)), 60)
        return 100 * max(self.mids[locate] + (away if side else -away), 1)

    def step(self, locate: int, ns: bytes, draw: float) -> bytes:
        live, rand = self.live[locate], self.random
        if rand.random() < 0.005:
            self.mids[locate] = max(self.mids[locate] + rand.choice((-1, 1)), 100)
        if draw < 0.44 or len(live) < self.orders_each:
            side = rand.randrange(2)
            qty, px = rand.choice((100, 100, 200, 300, rand.randrange(1, 1_000))), self.px_for(locate, side)
            self.ref += rand.randrange(1, 4)
            live.append([self.ref, side, px, qty])
            fields = (locate, 0, ns, self.ref, b"BS"[side : side + 1], qty, symbol(locate), px)
            return ADD(b"A", *fields) if draw > 0.03 else ADD_MPID(b"F", *fields, b"MPID")
        if draw > 0.985:
            self.match += 1
            fields = (locate, 0, ns, 0, b"B", 100, symbol(locate), self.mids[locate] * 100, self.match)
            return TRADE(b"P", *fields)
        young = len(live) - 1 - min(int(rand.expovariate(0.05)), len(live) - 1)
        index = young if rand.random() < 0.7 else rand.randrange(len(live))
        order = live[index]
        if draw < 0.85:
            return self.delete(locate, ns, index)
        if draw < 0.91:
            old, qty, px = order[0], rand.choice((100, 200, order[3])), self.px_for(locate, order[1])
            self.ref += rand.randrange(1, 4)
            live.pop(index)
            live.append([self.ref, order[1], px, qty])
            return REPLACE(b"U", locate, 0, ns, old, self.ref, qty, px)
        if draw < 0.925 and order[3] > 1:
            cut = rand.randrange(1, order[3])
            order[3] -= cut
            return CANCEL(b"X", locate, 0, ns, order[0], cut)
        return self.execute(locate, ns, draw)

    def delete(self, locate: int, ns: bytes, index: int) -> bytes:
        return DELETE(b"D", locate, 0, ns, self.live[locate].pop(index)[0])

    def execute(self, locate: int, ns: bytes, draw: float) -> bytes:
        """Execute the best of a few orders, wholly more often than not."""
        live, rand = self.live[locate], self.random
        side = rand.randrange(2)
        index = min(range(len(live)), key=lambda i: (live[i][1] != side, live[i][2] * (1 if side else -1)))
        order = live[index]
        qty = order[3] if rand.random() < 0.7 else rand.randrange(1, order[3] + 1)
        order[3] -= qty
        if order[3] == 0:
            live.pop(index)
        self.match += 1
        if draw < 0.98:
            return EXECUTED(b"E", locate, 0, ns, order[0], qty, self.match)
        printable = b"Y" if rand.random() < 0.8 else b"N"
        return EXECUTED_PX(b"C", locate, 0, ns, order[0], qty, self.match, printable, order[2] + 100)


def make_day(seed: int, messages: int, symbols: int, orders_each: int = 40) -> list[bytes]:
    """Return an orderly day: every reference known, nothing oversize, prices on the cent grid."""
    return Day(seed, symbols, orders_each).messages(messages)


def hostile(seed: int, count: int, symbols: int, refs: int) -> Iterator[bytes]:
    """Yield messages of every type the books know, a good part of them wrong in every way there is.

    refs: roughly how many references are in play; some are sparse 64-bit numbers.
    """
    rand = random.Random(seed)
    known = [rand.getrandbits(64) for _ in range(refs // 4)] + [k << 12 for k in range(refs // 8)]
    pool, mids = (
        known + list(range(refs - len(known))),
        [rand.randrange(50, 2_000) for _ in range(symbols + 9)],
    )
    for n in range(count):
        locate, ns = rand.randrange(1, symbols + 1), (OPEN_NS + n * 1_000).to_bytes(6, "big")
        if rand.random() < 0.01:
            locate = rand.choice((0, symbols + 1, symbols + 8, 40_000, 65_535))
        mid = mids[locate % len(mids)]
        px = 100 * mid + rand.randrange(-12, 13) * rand.choice((1, 50, 100))
        if rand.random() < 0.01:
            px = rand.choice((0, 1, 1_999_999_900, 1_999_999_901, 2**31, 2**32 - 1))
        qty = rand.choice((0, 1, 100, 200, 5_000, rand.randrange(1, 1_000), 2**32 - 1 if n % 50 == 0 else 7))
        yield _one(rand, rand.choice(pool), rand.choice(pool), (locate, 0, ns), px, qty)


def _one(rand: random.Random, ref: int, new_ref: int, at: tuple[int, int, bytes], px: int, qty: int) -> bytes:
    side, text = rand.choice(b"BBBBSSSSX"), symbol(at[0])
    code = rand.choice(b"AAAAAAAAAFFEEECXXDDDDUUUUUPPQBHYhRJINOSWLVK")
    kind, state = bytes((code,)), rand.choice((b"T", b"T", b"H", b"P", b"Q", b"?"))
    flag = rand.choice((b"Y", b"N"))
    match code:
        case 65:
            return ADD(kind, *at, ref, bytes((side,)), qty, text, px)
        case 70:
            return ADD_MPID(kind, *at, ref, bytes((side,)), qty, text, px, b"MPID")
        case 69:
            return EXECUTED(kind, *at, ref, qty, 1)
        case 67:
            return EXECUTED_PX(kind, *at, ref, qty, 1, flag, px)
        case 88:
            return CANCEL(kind, *at, ref, qty)
        case 68:
            return DELETE(kind, *at, ref)
        case 85:
            return REPLACE(kind, *at, ref, new_ref, qty, px)
        case 80:
            return TRADE(kind, *at, 0, b"B", qty, text, px, 1)
        case 81:
            return CROSS(kind, *at, rand.choice((qty, 2**63 + 5)), text, px, 1, b"O")
        case 66:
            return BROKEN(kind, *at, 1)
        case _:
            return _state(rand, kind, at, state, text)


def _state(rand: random.Random, kind: bytes, at: tuple[int, int, bytes], state: bytes, text: bytes) -> bytes:
    match kind:
        case b"H":
            return ACTION(kind, *at, text, state, b" ", b"    ")
        case b"Y":
            return REG_SHO(kind, *at, text, rand.choice((b"0", b"1", b"2", b"3")))
        case b"h":
            return HALT(kind, *at, text, rand.choice((b"Q", b"B", b"X", b"Z")), state)
        case b"R":
            return directory(at[0], at[2], rand.choice((text, text, b"OTHER   ")))
        case b"J":
            return COLLAR(kind, *at, text, 10, 11, 9, 1)
        case b"I":
            return NOII(kind, *at, 5, 6, b"B", text, 1, 2, 3, b"O", b"1")
        case b"N":
            return RETAIL(kind, *at, text, b"B")
        case b"O":
            return LISTING(kind, *at, text, b"Y", 1, 2, 3, 4, 5, 6)
        case b"S":
            return SYSTEM(kind, *at, rand.choice((b"O", b"S", b"Q", b"M", b"E", b"C")))
        case b"W":
            return BREAKER(kind, *at, rand.choice((b"1", b"2", b"3")))
        case b"L":
            return struct.pack(HEADER + "4s8sccc", kind, *at, b"MPID", text, b"Y", b"N", b"A")
        case b"V":
            return struct.pack(HEADER + "QQQ", kind, *at, 1, 2, 3)
        case _:
            return struct.pack(HEADER + "8sIcI", kind, *at, text, 1, b"A", 1)
