"""The one way to packets: whatever the source, `next_frame` fills a PACKET.

A source is an int64, the address of its record; the record's first word is its kind, which selects the
walker here (functions are never passed into kernels).  A PACKET's bytes stay where they are until the next
call on the same source, which hands the previous frame back.

`Sources` puts up to eight of them behind one address; `next_of` polls them in turn, one frame at a time, so
that a busy line cannot starve a quiet one.  To look at a ring costs nothing, to ask a socket is a system
call: a socket that had nothing is passed over for the next PATIENCE frames of others, and asked at once when
none of them has one.  Polling is the caller's loop.  A loop that may sleep calls `wait_readable` after
`next_of` has given nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np

from nimbus.feed.af_packet import next_ring_frame
from nimbus.feed.af_xdp import next_xdp_frame
from nimbus.feed.capture import next_packet
from nimbus.feed.dpdk import next_bridge_frame
from nimbus.feed.kinds import (
    SOCKET_HEAD,
    SOURCE_AF_PACKET,
    SOURCE_AF_XDP,
    SOURCE_CAPTURE,
    SOURCE_DPDK,
    SOURCE_NAMES,
    SOURCE_UDP,
    UNKNOWN_SOURCE,
    SourceError,
)
from nimbus.feed.udp import next_datagram
from ringbuf.jit import external, inlined, kernel
from ringbuf.memory import load_i32, load_i64, load_u16, store_i64
from ringbuf.records import record
from ringbuf.segment import Segment

__all__ = [
    "SOURCES_MAX", "SOURCE_AF_PACKET", "SOURCE_AF_XDP", "SOURCE_CAPTURE", "SOURCE_DPDK", "SOURCE_NAMES",
    "SOURCE_UDP", "Source", "SourceError", "Sources", "next_frame", "next_of", "wait_readable",
    "warm_sources",
]  # fmt: skip

SOURCES_MAX: Final = 8
PATIENCE: Final = 16  # frames of others for which a socket that had nothing is not asked again
BLIND_WAIT_MS: Final = 1  # longest sleep when a source has no descriptor to wake it
POLLIN, POLLERR = 1, 8  # asm-generic/poll.h
SOL_SOCKET, SO_ERROR = 1, 4  # asm-generic/socket.h
ENETDOWN: Final = 100  # asm-generic/errno.h

SOURCES = record(
    "SOURCES",
    f"""
    i8  count       sources in use (fixed)
    i8  next        the one to be asked first
    i8  status      the last negative status one of them gave, 0 = none ever
    i8  faults      how often one of them gave it
    i8  waits       times the loop slept
    i8  blind       1 = a source has no descriptor, so sleeps are short (fixed)
    2i8 pad         zero
    {SOURCES_MAX}i8 source  addresses (fixed)
    {SOURCES_MAX}i8 pollfd  struct pollfd of each: descriptor, or -1, and events
    {SOURCES_MAX}i8 patience  what `passes` becomes when it had nothing: PATIENCE of a socket, else 0 (fixed)
    {SOURCES_MAX}i8 passes  times it is still to be passed over
    """,
)
_S = SOURCES.at
_H = record("SOCKET_HEAD", SOCKET_HEAD).at
_REVENTS_AT: Final = 6  # struct pollfd: int fd, short events, short revents

_poll = external("poll", "intc", "intp", "intp", "intc")
_getsockopt = external("getsockopt", "intc", "intc", "intc", "intc", "intp", "intp")


class Source(Protocol):
    """An owner of a source: its address, its descriptor (-1 = none), what it counted."""

    state: int

    @property
    def fd(self) -> int:
        """Descriptor that poll(2) can wait for; -1 = none."""
        ...

    def counters(self) -> dict[str, int]:
        """Return what was received, dropped, refused; cold."""
        ...

    def close(self) -> None:
        """Give everything back to the system; no kernel may use the source any more."""
        ...


@kernel
def next_frame(source: int, packet: int) -> int:
    """Fill the PACKET with the source's next frame: 1; 0 = nothing now; below 0 = the source is at fault.

    Of a capture 0 says that the chunk is used up and its owner must refill it.
    """
    kind = load_i64(source)
    if kind == SOURCE_CAPTURE:
        return next_packet(source, packet)
    if kind == SOURCE_AF_PACKET:
        return next_ring_frame(source, packet)
    if kind == SOURCE_UDP:
        return next_datagram(source, packet)
    if kind == SOURCE_AF_XDP:
        return next_xdp_frame(source, packet)
    if kind == SOURCE_DPDK:
        return next_bridge_frame(source, packet)
    return UNKNOWN_SOURCE


@inlined
def _ask(sources: int, index: int, packet: int) -> int:
    """Ask one source; count a fault."""
    status = next_frame(load_i64(sources + _S.source + index * 8), packet)
    if status == 0:
        store_i64(sources + _S.passes + index * 8, load_i64(sources + _S.patience + index * 8))
    elif status < 0:
        store_i64(sources + _S.status, status)
        store_i64(sources + _S.faults, load_i64(sources + _S.faults) + 1)
    return status


@kernel
def next_of(sources: int, packet: int) -> int:
    """Fill the PACKET with the next frame of any source, in turn: 1; 0 = none has one now.

    Below 0: none has one and at least one is at fault (counted); the others go on being asked.
    """
    count = load_i64(sources + _S.count)
    index, worst, passed = load_i64(sources + _S.next), 0, 0  # passed: a bit for each source
    for turn in range(2 * count):
        passes = load_i64(sources + _S.passes + index * 8)
        if turn < count and passes > 0:
            store_i64(sources + _S.passes + index * 8, passes - 1)
            passed |= 1 << index
        elif turn < count or passed >> index & 1 != 0:
            status = _ask(sources, index, packet)
            if status > 0:
                store_i64(sources + _S.next, index + 1 if index + 1 < count else 0)
                return status
            worst = min(worst, status)
        index = index + 1 if index + 1 < count else 0
        if turn + 1 == count and passed == 0:
            break
    return worst


@kernel
def kind_of(source: int) -> int:
    """Return the source's kind."""
    return load_i64(source)


@inlined
def _clear_error(source: int) -> None:
    """Take the pending error from the source's socket and count it: else poll(2) would never sleep again."""
    store_i64(source + _H.error, 0)
    store_i64(source + _H.error_size, 4)
    _getsockopt(load_i64(source + _H.fd), SOL_SOCKET, SO_ERROR, source + _H.error, source + _H.error_size)
    error = load_i32(source + _H.error)
    if error == ENETDOWN:
        store_i64(source + _H.link_downs, load_i64(source + _H.link_downs) + 1)
    elif error != 0:
        store_i64(source + _H.socket_errors, load_i64(source + _H.socket_errors) + 1)


@kernel
def wait_readable(sources: int, timeout_ms: int) -> int:
    """Sleep until a source has a packet, at most timeout_ms; return how many have something (0 = none).

    To be called after next_of gave 0 or less: a frame that has not been handed back counts as readable.
    A sleep costs about 15 us of latency.  With a source that has no descriptor it is BLIND_WAIT_MS at most.
    """
    count = load_i64(sources + _S.count)
    if load_i64(sources + _S.blind) != 0:
        timeout_ms = min(timeout_ms, BLIND_WAIT_MS)
    store_i64(sources + _S.waits, load_i64(sources + _S.waits) + 1)
    ready = _poll(sources + _S.pollfd, count, timeout_ms)  # EINTR: just another turn of the loop
    if ready <= 0:
        return 0
    for index in range(count):
        if load_u16(sources + _S.pollfd + index * 8 + _REVENTS_AT) & POLLERR:
            _clear_error(load_i64(sources + _S.source + index * 8))
    return int(ready)


def warm_sources() -> None:
    """Compile next_of and wait_readable, and through them the walker of every kind, without a source."""
    blank = np.zeros(1, SOURCES.dtype)
    at = int(blank.ctypes.data)
    next_of(at, at)
    wait_readable(at, 0)


class Sources:
    """Own a SOURCES record over sources that others own: `state` goes to next_of and wait_readable."""

    def __init__(self, segment: Segment, owners: Sequence[Source], name: str = "sources") -> None:
        """Reserve `name` in the segment.  The owners are polled in this order at first, then in turn."""
        if not 1 <= len(owners) <= SOURCES_MAX:
            msg = f"{len(owners)} packet sources, 1 to {SOURCES_MAX} are possible"
            raise SourceError(msg)
        self.owners = tuple(owners)
        self.state = segment.allocate(name, SOURCES.size)
        self._record: Any = segment.array(name, SOURCES)[0]
        descriptors = [owner.fd for owner in owners]
        self._record["count"] = len(owners)
        self._record["blind"] = any(fd < 0 for fd in descriptors)
        for index, (owner, fd) in enumerate(zip(owners, descriptors, strict=True)):
            self._record["source"][index] = owner.state
            self._record["pollfd"][index] = (fd & 0xFFFF_FFFF) | POLLIN << 32
            self._record["patience"][index] = PATIENCE if kind_of(owner.state) == SOURCE_UDP else 0

    def counters(self) -> dict[str, int]:
        """Return `faults` and `waits`, and each owner's counters as `NUMBER_NAME.counter`."""
        counts = {name: int(self._record[name]) for name in ("faults", "waits")}
        for index, owner in enumerate(self.owners):
            counts |= {f"{index}.{name}": value for name, value in owner.counters().items()}
        return counts

    @property
    def status(self) -> int:
        """The last negative status a source gave, 0 = none ever."""
        return int(self._record["status"])

    def close(self) -> None:
        """Close the owners, the last one first."""
        for owner in reversed(self.owners):
            owner.close()
