"""The messages of a snapshot, from the slow books: what a server would send after so many messages."""

from __future__ import annotations

import struct

from days import ADD
from reference.book import ReferenceBooks

STATES = b"SRHYLVWKJhINO"  # in the order they are sent: S is about the market, R names the locate


class BookImage:
    """Slow books that eat messages; `messages` rebuilds them from nothing."""

    def __init__(self) -> None:
        self.books, self.applied = ReferenceBooks(64, 1 << 20, 1 << 20), 0
        self.states: dict[tuple[int, ...], bytes] = {}

    def apply(self, message: bytes) -> None:
        self.applied += 1
        self.books.apply(message, self.applied)
        code, locate = message[0], message[1:3]
        if code in STATES:
            detail = message[19:20] if code == ord("h") else message[11:15] if code == ord("L") else b""
            self.states[STATES.index(code), *locate, *detail] = message

    def messages(self) -> list[bytes]:
        out = [message for _, message in sorted(self.states.items())]
        for (locate, side, px), queue in self.books.queues.items():
            text = self.books.symbol(locate).text or b" " * 8
            for order in queue:
                fields = (order.ref, side.encode(), order.qty, text, px)
                out.append(ADD(b"A", locate, 0, bytes(6), *fields))
        return out


def datagrams(capture: bytes) -> list[tuple[int, int, bytes]]:
    """Return (first, count, MoldUDP64 bytes) of a generated capture."""
    out, at = [], 24
    while at < len(capture):
        size = struct.unpack_from("<I", capture, at + 8)[0]
        mold = capture[at + 16 : at + 16 + size][14 + 20 + 8 :]
        out.append((*struct.unpack_from(">QH", mold, 10), mold))
        at += 16 + size
    return out
