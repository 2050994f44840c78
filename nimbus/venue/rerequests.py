"""The rerequest server: a MoldUDP64 request packet in, one packet with the messages asked for out (unicast).

A request is 20 bytes: session, first number, count.  The answer holds as many of the messages as fit into one
packet and were asked for; whoever wants more asks again.  A request for another session, for what is not
published yet, or for what is not kept any more is counted and not answered.  Served by the venue's hot loop,
at most REQUESTS_MAX a cycle, so that a storm of requests slows the feed and never stops it.

Source: MoldUDP64 Protocol Specification 1.00, "Request Packet".
"""

from __future__ import annotations

import socket
from typing import Any, Final

import numpy as np

from nimbus.feed.moldudp64 import MOLD
from nimbus.venue.lines import DATAGRAM_MAX, happens
from nimbus.venue.publisher import SESSION_SIZE, Publisher
from nimbus.venue.store import LENGTH_SIZE, SLOT_SIZE, Store, block_at, last_seq, oldest_seq
from ringbuf.jit import external, inlined, kernel
from ringbuf.memory import copy, load_i64, load_u16, put_u2, put_u8, store_i64, u2, u8
from ringbuf.records import record
from ringbuf.segment import Segment

REQUESTS_MAX: Final = 4
_FLAGS: Final = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
_REQUEST_ROOM: Final = 64
_ADDRESS_SIZE: Final = 16  # struct sockaddr_in

_recvfrom = external("recvfrom", "intp", "intc", "intp", "intp", "intc", "intp", "intp")
_sendto = external("sendto", "intp", "intc", "intp", "intp", "intc", "intp", "intc")

REREQUESTS = record(
    "REREQUESTS",
    f"""
    i8  fd            bound UDP socket, -1 = there is no server (fixed)
    i8  store         STORE (fixed)
    i8  reply         address of the reply: session in place (fixed)
    i8  bytes_max     bytes of one reply (fixed)
    i8  messages_max  messages in one reply (fixed)
    i8  lost_ppm      replies in a million that are lost (fixed)
    i8  key           of the draws (fixed)
    i8  address_size  in and out of recvfrom
    i8  requests      datagrams received
    i8  replies       replies sent
    i8  messages      messages in them
    i8  lost          replies lost on purpose
    i8  foreign       not a request of this session
    i8  beyond        asked for what is not published yet
    i8  too_old       asked for what is not kept any more
    i8  errors        replies the socket did not take
    {_REQUEST_ROOM}u1 request  the request in hand
    {_ADDRESS_SIZE}u1 address  where it came from
    6i8 pad           zero
    """,
)
COUNTED: Final = ("requests", "replies", "messages", "lost", "foreign", "beyond", "too_old", "errors")
_R, _M = REREQUESTS.at, MOLD.at
_MOLD_SIZE: Final = MOLD.size


@inlined
def _count(server: int, counter: int, by: int) -> None:
    store_i64(server + counter, load_i64(server + counter) + by)


@kernel
def _fill(server: int, first: int, count: int) -> int:
    """Write the reply with the messages from first on; return its bytes.  At least one is kept."""
    store, reply = load_i64(server + _R.store), load_i64(server + _R.reply)
    size, filled = _MOLD_SIZE, 0
    for seq in range(first, first + min(count, load_i64(server + _R.messages_max))):
        block = block_at(store, seq)
        block_size = LENGTH_SIZE + u2(block)
        if size + block_size > load_i64(server + _R.bytes_max):
            break
        copy(reply + size, block, block_size)
        size += block_size
        filled += 1
    put_u8(reply + _M.seq, first)
    put_u2(reply + _M.count, filled)
    _count(server, _R.messages, filled)
    return size


@kernel
def answer(server: int, size: int) -> int:
    """Judge the request in place (`size` bytes); write the reply and return its bytes, 0 = none is due."""
    request, reply, store = server + _R.request, load_i64(server + _R.reply), load_i64(server + _R.store)
    if size != _MOLD_SIZE or u8(request) != u8(reply) or load_u16(request + 8) != load_u16(reply + 8):
        _count(server, _R.foreign, 1)
        return 0
    first, count, last = u8(request + _M.seq), u2(request + _M.count), last_seq(store)
    if count == 0 or first < 1:
        _count(server, _R.foreign, 1)
        return 0
    if first > last:
        _count(server, _R.beyond, 1)
        return 0
    if first < oldest_seq(store):
        _count(server, _R.too_old, 1)
        return 0
    return _fill(server, first, min(count, last - first + 1))


@kernel
def serve(server: int, limit: int) -> int:
    """Answer up to `limit` requests; return how many datagrams were taken."""
    fd = load_i64(server + _R.fd)
    if fd < 0:
        return 0
    for taken in range(limit):
        store_i64(server + _R.address_size, _ADDRESS_SIZE)
        size = _recvfrom(
            fd, server + _R.request, _REQUEST_ROOM, _FLAGS, server + _R.address, server + _R.address_size
        )
        if size < 0:
            return taken
        _count(server, _R.requests, 1)
        reply_size = answer(server, size)
        if reply_size == 0:
            continue
        if happens(load_i64(server + _R.key), load_i64(server + _R.requests), load_i64(server + _R.lost_ppm)):
            _count(server, _R.lost, 1)
            continue
        reply = load_i64(server + _R.reply)
        sent = _sendto(fd, reply, reply_size, _FLAGS, server + _R.address, _ADDRESS_SIZE)
        _count(server, _R.replies if sent == reply_size else _R.errors, 1)
    return limit


class Rerequests:
    """Own the server's socket and record; `addr` goes to the kernels.

    address: host and port to listen on (port 0 = any), None = no server.  Raises OSError.
    """

    def __init__(
        self,
        segment: Segment,
        store: Store,
        publisher: Publisher,
        address: tuple[str, int] | None,
        *,
        messages_max: int = 0xFFFE,
        bytes_max: int = DATAGRAM_MAX,
        lost_ppm: int = 0,
        seed: int = 1,
    ) -> None:
        self.addr = segment.allocate("rerequests", REREQUESTS.size)
        self._record: Any = segment.array("rerequests", REREQUESTS)[0]
        reply = segment.allocate("rerequests.reply", DATAGRAM_MAX + SLOT_SIZE)
        segment.words(reply, 2).view(np.uint8)[:SESSION_SIZE] = list(publisher.session.encode())
        self._socket: socket.socket | None = None
        state = {
            "fd": -1, "store": store.addr, "reply": reply, "bytes_max": bytes_max,
            "messages_max": messages_max, "lost_ppm": lost_ppm, "key": seed * 0x27D4EB2F,
        }  # fmt: skip
        for field, value in state.items():
            self._record[field] = value
        if address is not None:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                self._socket.bind(address)
            except OSError:
                self._socket.close()
                raise
            self._record["fd"] = self._socket.fileno()

    @property
    def port(self) -> int:
        """The port it listens on, 0 = none."""
        return int(self._socket.getsockname()[1]) if self._socket else 0

    def counters(self) -> dict[str, int]:
        """Return how often each thing happened."""
        return {name: int(self._record[name]) for name in COUNTED}

    def close(self) -> None:
        """Close the socket; no kernel may serve any more."""
        self._record["fd"] = -1
        if self._socket is not None:
            self._socket.close()
