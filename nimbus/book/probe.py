"""Books alone over a length-framed ITCH file in memory: what `contrafusion bench` and bench_book.py time.

The walk does what the feed does for such a file and no more: each length prefix is compared with the
bytes that are left and with the length of its type before the message is read.  It also looks a few
messages ahead and fetches what they will touch; a packet with several messages allows the same.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nimbus.book import order_map
from nimbus.book.book import apply
from nimbus.book.layout import BookState
from nimbus.book.owner import Books
from nimbus.book.reset import reset
from nimbus.book.snapshot import state_hash
from nimbus.feed.itch import ADD, MESSAGES
from nimbus.messages import CHANGE
from ringbuf.jit import kernel
from ringbuf.memory import load_u16, u1, u2, u8
from ringbuf.segment import Segment

PREFIX: Final = 2  # bytes of the big-endian length before each message
SIZES_LENGTH: Final = 256
LOOK_AHEAD: Final = 10  # messages between fetching a bucket and using it
_ADD = ADD.at
LOOK_MAX: Final = PREFIX + _ADD.order_ref + 8  # bytes read of a message that is only looked at


class Measurement(NamedTuple):
    """The result of measure(): ns for each message of every round, and what the books hold at the end."""

    messages: int
    refused: int
    ns_per_message: list[float]
    state_hash: int
    tops: int


@kernel
def walk(books: BookState, file: int, size: int, sizes: int, change: int) -> tuple[int, int, int]:
    """Apply every message of a file; sizes: 256 u2, the length of each type, 0 = unknown.

    Returns (messages applied, messages refused by the books, bytes walked); the last is less than size
    when a prefix reaches past the end, and then the walk has stopped there.
    """
    at, end, seq, refused = file, file + size, 0, 0
    ahead, safe_end = file, end - LOOK_MAX  # before safe_end a prefix and a reference may be read unchecked
    for _ in range(LOOK_AHEAD):
        ahead += u2(ahead) + PREFIX if ahead < safe_end else 0
    while end - at > PREFIX:
        length = u2(at)
        if length > end - at - PREFIX:
            break
        msg = at + PREFIX
        if length > 0 and length == load_u16(sizes + u1(msg) * 2):
            seq += 1
            if ahead < safe_end:
                order_map.warm_bucket(books, u8(ahead + PREFIX + _ADD.order_ref))
                ahead += u2(ahead) + PREFIX
            if msg + length < safe_end:
                order_map.warm_order(books, u8(msg + length + PREFIX + _ADD.order_ref))
            refused += apply(books, msg, seq, 0, change) < 0
        at = msg + length
    return seq, refused, at - file


def message_sizes() -> NDArray[np.uint16]:
    """Return the exact length of each ITCH type, by code; 0 = no such type."""
    sizes = np.zeros(SIZES_LENGTH, np.uint16)
    for declared in MESSAGES:
        sizes[declared.code] = declared.size
    return sizes


def measure(file: NDArray[np.uint8], rounds: int, books: Books | None = None) -> Measurement:
    """Time `rounds` runs of all books over a file in memory; the books are emptied before each.

    The first round also pays for pages that were never touched.  Raises ValueError when the file is not
    framed messages to its end.
    """
    books = books or Books(Segment.anonymous(1 << 30))
    sizes, change = message_sizes(), np.zeros(1, CHANGE.dtype)
    arguments = (sizes.ctypes.data, change.ctypes.data)
    walk(books.state, file.ctypes.data, 0, *arguments)  # compile
    times, messages, refused = [], 0, 0
    for _ in range(rounds):
        reset(books.state)
        before_tops, start = books.counters()["tops"], time.perf_counter_ns()
        messages, refused, walked = walk(books.state, file.ctypes.data, len(file), *arguments)
        times.append(time.perf_counter_ns() - start)
        if walked != len(file) or not messages:
            msg = f"not length-framed ITCH messages: stopped at byte {walked} of {len(file)}"
            raise ValueError(msg)
    tops = books.counters()["tops"] - before_tops
    hashed = state_hash(books.state)
    return Measurement(messages, refused, [t / messages for t in times], hashed, tops)
