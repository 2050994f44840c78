"""The publisher: messages in, MoldUDP64 packets out on every line, and each message into the store.

A packet is built in place and leaves when it is full (messages or bytes), or when the loop says that nothing
more comes at once (`flush`).  A second without a packet brings a heartbeat: count 0 and the next number.  The
end of a session is announced by packets of count 0xFFFF.

Source: MoldUDP64 Protocol Specification 1.00.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from nimbus.feed.itch import SIZE_MAX
from nimbus.feed.moldudp64 import END_OF_SESSION, HEARTBEAT, MOLD
from nimbus.venue.lines import DATAGRAM_MAX, LINE_SIZE, Lines, offer, release_all
from nimbus.venue.store import LENGTH_SIZE, Store, keep, last_seq
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, put_u2, put_u8, store_i64
from ringbuf.records import record
from ringbuf.segment import Segment

HEARTBEAT_NS: Final = 1_000_000_000
SESSION_SIZE: Final = 10
MESSAGES_MAX: Final = 64
BYTES_MIN: Final = 20 + LENGTH_SIZE + SIZE_MAX

PUBLISHER = record(
    "PUBLISHER",
    """
    i8  store         STORE the messages go to (fixed)
    i8  lines         first LINE (fixed)
    i8  line_count    how many there are (fixed)
    i8  packet        address of the packet being built: header in place (fixed)
    i8  messages_max  messages in one packet (fixed)
    i8  bytes_max     bytes of one packet (fixed)
    i8  heartbeat_ns  silence that brings a heartbeat (fixed)
    i8  now_ns        time of the duty cycle, set by the loop
    i8  size          bytes of the packet being built, 0 = none
    i8  count         messages in it
    i8  sent_ns       when the last packet left
    i8  packets       packets with messages so far
    i8  heartbeats    heartbeats so far
    i8  ends          end-of-session packets so far
    2i8 pad           zero
    """,
)
COUNTED: Final = ("packets", "heartbeats", "ends")
_P, _M = PUBLISHER.at, MOLD.at
_MOLD_SIZE: Final = MOLD.size


@inlined
def next_seq(publisher: int) -> int:
    """Return the number that the next message will have."""
    return last_seq(load_i64(publisher + _P.store)) + 1


@kernel
def send_packet(publisher: int, size: int, first: int, count: int) -> None:
    """Complete the header of the packet in place and offer the packet to every line."""
    packet = load_i64(publisher + _P.packet)
    put_u8(packet + _M.seq, first)
    put_u2(packet + _M.count, count)
    line = load_i64(publisher + _P.lines)
    for _ in range(load_i64(publisher + _P.line_count)):
        offer(line, packet, size)
        line += LINE_SIZE
    store_i64(publisher + _P.sent_ns, load_i64(publisher + _P.now_ns))


@kernel
def flush(publisher: int) -> None:
    """Send the packet being built, if there is one."""
    count = load_i64(publisher + _P.count)
    if count == 0:
        return
    send_packet(publisher, load_i64(publisher + _P.size), next_seq(publisher) - count, count)
    store_i64(publisher + _P.size, 0)
    store_i64(publisher + _P.count, 0)
    store_i64(publisher + _P.packets, load_i64(publisher + _P.packets) + 1)


@kernel
def publish(publisher: int, message: int, size: int) -> int:
    """Give a message its number, keep it (the store has room), put it into a packet; return the number."""
    used = load_i64(publisher + _P.size)
    if used != 0 and used + LENGTH_SIZE + size > load_i64(publisher + _P.bytes_max):
        flush(publisher)
        used = 0
    seq = keep(load_i64(publisher + _P.store), message, size)
    used = max(used, _MOLD_SIZE)
    block = load_i64(publisher + _P.packet) + used
    put_u2(block, size)
    copy(block + LENGTH_SIZE, message, size)
    count = load_i64(publisher + _P.count) + 1
    store_i64(publisher + _P.size, used + LENGTH_SIZE + size)
    store_i64(publisher + _P.count, count)
    if count == load_i64(publisher + _P.messages_max):
        flush(publisher)
    return seq


@kernel
def beat(publisher: int) -> int:
    """Send a heartbeat when nothing was sent for long enough; return how many were sent (0 or 1)."""
    silence_ns = load_i64(publisher + _P.now_ns) - load_i64(publisher + _P.sent_ns)
    if load_i64(publisher + _P.count) != 0 or silence_ns < load_i64(publisher + _P.heartbeat_ns):
        return 0
    send_packet(publisher, _MOLD_SIZE, next_seq(publisher), HEARTBEAT)
    store_i64(publisher + _P.heartbeats, load_i64(publisher + _P.heartbeats) + 1)
    return 1


@kernel
def end_session(publisher: int, packets: int) -> None:
    """Send what is under way, then so many end-of-session packets (0 = nothing at all); may be repeated."""
    for _ in range(packets):
        flush(publisher)
        line = load_i64(publisher + _P.lines)
        for _line in range(load_i64(publisher + _P.line_count)):
            release_all(line)
            line += LINE_SIZE
        send_packet(publisher, _MOLD_SIZE, next_seq(publisher), END_OF_SESSION)
        store_i64(publisher + _P.ends, load_i64(publisher + _P.ends) + 1)


class Publisher:
    """Own the packet being built; `addr` goes to the kernels.

    session: 10 ASCII characters, padded with spaces; messages_max, bytes_max: of one packet.
    """

    def __init__(
        self,
        segment: Segment,
        store: Store,
        lines: Lines | None,
        *,
        session: str,
        messages_max: int = MESSAGES_MAX,
        bytes_max: int = DATAGRAM_MAX,
        heartbeat_ns: int = HEARTBEAT_NS,
    ) -> None:
        if not BYTES_MIN <= bytes_max <= DATAGRAM_MAX:
            msg = f"a packet has {BYTES_MIN} to {DATAGRAM_MAX} bytes, got {bytes_max}"
            raise ValueError(msg)
        if not session.isascii() or not session.isprintable() or not 0 < len(session) <= SESSION_SIZE:
            msg = f"a session id has 1 to {SESSION_SIZE} printable ASCII characters, got {session!r}"
            raise ValueError(msg)
        self.session = session.ljust(SESSION_SIZE)
        self.addr = segment.allocate("publisher", PUBLISHER.size)
        self._record: Any = segment.array("publisher", PUBLISHER)[0]
        packet = segment.allocate("publisher.packet", DATAGRAM_MAX)
        header = segment.words(packet, 2).view(np.uint8)
        header[:SESSION_SIZE] = list(self.session.encode())
        state = {
            "store": store.addr, "lines": lines.addr if lines else 0,
            "line_count": lines.count if lines else 0, "packet": packet, "messages_max": messages_max,
            "bytes_max": bytes_max, "heartbeat_ns": heartbeat_ns,
        }  # fmt: skip
        for field, value in state.items():
            self._record[field] = value

    def set_now(self, now_ns: int) -> None:
        """Set the time, as the loop does in each cycle; while no loop runs."""
        self._record["now_ns"] = now_ns

    def counters(self) -> dict[str, int]:
        """Return how many packets of each kind were sent."""
        return {name: int(self._record[name]) for name in COUNTED}
