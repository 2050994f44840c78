"""DpdkBridge: frames of a DPDK port, from the ring that the bridge (a process in C) fills.

Either side may die at any time and come back. The ring outlives both, and its indexes are the truth: a bridge
that starts again takes the ring over and the reader need not notice; a reader that starts again goes on at
the oldest frame that was not handed back. When a bridge has made a new segment (other sizes, or somebody
removed the file), `refresh` maps it, and the hot loop moves over once the old ring is empty: nothing in it is
lost.

The file's first two bytes are locks, which the system gives back however a process ends: byte 0 is held by
the bridge, byte 1 by the reader. So there is one producer and one consumer, and a dead bridge is seen at
once; one that hangs is seen by its heartbeat.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import struct
from typing import Any, Final, NamedTuple

import numpy as np

from nimbus.feed.dpdk_layout import (
    BRIDGE_AREA,
    BRIDGE_POLLING,
    BRIDGE_STOPPED,
    DPDK_BRIDGE,
    DPDK_FRAME,
    DPDK_LAYOUT_VERSION,
    FRAME_SIZE_MAX,
    FRAME_SIZE_MIN,
    RING_AREA,
    SEGMENT_DEFAULT,
    frame_record,
)
from nimbus.feed.kinds import CLOSED, SOURCE_DPDK, SourceError
from nimbus.messages import LINK_ETHERNET, PACKET, STAMP_USER
from ringbuf.atomics import load_acquire, store_release
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u32, store_i64, store_u8, store_u16, store_u32
from ringbuf.records import record
from ringbuf.segment import Segment, SegmentError
from ringbuf.spsc import HEADER_SIZE as RING_HEADER_SIZE
from ringbuf.spsc import RECORD_SIZE as RING_RECORD_SIZE
from ringbuf.spsc import RingView, attach_ring, front, pop, recover_consumer

BAD_FRAME: Final = -1  # status: a record whose size cannot be; counted, and the next call goes on behind it
HEARTBEAT_MAX_NS: Final = 1_000_000_000  # a bridge silent for longer hangs
LOCK_BRIDGE, LOCK_READER = 0, 1  # bytes of the file; segment.h has the same
PROGRAM: Final = "contrafusion-dpdk-bridge"
_ATTEMPTS: Final = 3
_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock on a 64-bit Linux
_PAGE_WORDS: Final = 512

DPDK_SOURCE = record(
    "DPDK_SOURCE",
    """
    i8  kind        SOURCE_DPDK
    i8  ring        address of the ring being read (market loop)
    i8  held        1 = its oldest record is given out and not handed back
    i8  received    frames given so far
    i8  damaged     records refused because their size cannot be
    11i8 pad0       zero
    i8  wanted      address of the ring to be read once that one is empty (control loop)
    15i8 pad1       zero
    """,
)
# What a bridge counts, in the order it is shown; the ring has `written` and `dropped`.
BRIDGE_COUNTERS: Final = ("oversized", "rx_missed", "rx_errors", "rx_nombuf")
_D, _F, _P = DPDK_SOURCE.at, DPDK_FRAME.at, PACKET.at
_HEAD_SIZE: Final = DPDK_FRAME.size


@inlined
def next_bridge_frame(source: int, packet: int) -> int:
    """Hand the last frame's slot back and fill the PACKET from the next one: 1, 0, or BAD_FRAME."""
    ring = load_i64(source + _D.ring)
    if load_i64(source + _D.held) != 0:
        pop(ring)
        store_i64(source + _D.held, 0)
    slot = front(ring)
    if slot == 0:
        wanted = load_acquire(source + _D.wanted)  # pairs with _follow(): the ring is mapped
        if wanted != ring:
            recover_consumer(wanted)
            store_release(source + _D.ring, wanted)  # pairs with _ring_in_use(): the old is done with
        return 0
    store_i64(source + _D.held, 1)
    size, wire_size = load_u32(slot + _F.size), load_u32(slot + _F.wire_size)
    if size > load_i64(ring + RING_RECORD_SIZE) - _HEAD_SIZE or size > wire_size:
        store_i64(source + _D.damaged, load_i64(source + _D.damaged) + 1)
        return BAD_FRAME
    number = load_i64(source + _D.received) + 1
    store_i64(source + _D.received, number)
    store_i64(packet + _P.frame_at, slot + _HEAD_SIZE)
    store_i64(packet + _P.recv_ns, load_i64(slot + _F.recv_ns))
    store_i64(packet + _P.number, number)
    store_u32(packet + _P.size, size)
    store_u32(packet + _P.wire_size, wire_size)
    store_u16(packet + _P.link, LINK_ETHERNET)
    store_u8(packet + _P.stamp, STAMP_USER)
    store_u8(packet + _P.line, 0)
    return 1


@kernel
def _ring_in_use(source: int) -> int:
    """Return the ring that the hot loop reads."""
    return load_acquire(source + _D.ring)  # pairs with store_release in next_bridge_frame: the old is done


@kernel
def _follow(source: int, ring: int) -> None:
    """Send the hot loop to another ring, once its present one is empty."""
    store_release(source + _D.wanted, ring)  # pairs with load_acquire in next_bridge_frame: it is mapped


@kernel
def _hand_back(source: int) -> None:
    """Hand the frame in hand back; the hot loop has ended."""
    if load_i64(source + _D.held) != 0:
        pop(load_i64(source + _D.ring))
        store_i64(source + _D.held, 0)


def warm_bridge() -> None:
    """Compile the kernels of the cold side: in the middle of a day is no time for it."""
    blank = np.zeros(DPDK_SOURCE.size + RING_HEADER_SIZE, np.uint8)
    source = int(blank.ctypes.data)
    _ring_in_use(source)
    _follow(source, 0)
    _hand_back(source)
    recover_consumer(source + DPDK_SOURCE.size)


class BridgeStatus(NamedTuple):
    """How the bridge does.

    state: starting, polling, silent (it runs, and its heartbeat has stood for HEARTBEAT_MAX_NS), stopped
    (by a signal) or dead (killed); pid: of the bridge that had the ring last; generation: bridges this ring
    has had; silent_ns: age of the heartbeat.
    """

    state: str
    pid: int
    generation: int
    silent_ns: int


class _Mapping:
    """One segment of a bridge, mapped, checked and locked for reading."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        try:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags)
        except FileNotFoundError:
            raise _refusal(path, f"no such segment: start {PROGRAM} first") from None
        except OSError as error:
            raise _refusal(path, f"cannot open: {error.strerror}") from None
        self._segment: Segment | None = None
        try:
            self._map()
        except BaseException:
            self.close()
            raise

    def _map(self) -> None:
        try:
            segment = Segment.attach(self.path, layout_version=DPDK_LAYOUT_VERSION, writable=True)
        except SegmentError as error:
            msg = f"source dpdk: {error}: not a ring of this version of {PROGRAM}"
            raise SourceError(msg) from None
        self._segment = segment
        if BRIDGE_AREA not in segment.areas or segment.areas[BRIDGE_AREA][1] < DPDK_BRIDGE.size:
            raise _refusal(self.path, "a segment without a DPDK ring")
        self._bridge: Any = segment.array(BRIDGE_AREA, DPDK_BRIDGE)[0]
        frame_size = int(self._bridge["frame_size"])
        if not FRAME_SIZE_MIN <= frame_size <= FRAME_SIZE_MAX:
            raise _refusal(self.path, f"frames of {frame_size} bytes: the segment is damaged")
        try:
            self.ring = attach_ring(segment, RING_AREA, frame_record(frame_size))
        except SegmentError as error:
            msg = f"source dpdk: {error}"
            raise SourceError(msg) from None
        self.view = RingView(segment, RING_AREA)
        if not _try_lock(self._descriptor, LOCK_READER):
            raise _refusal(self.path, "another reader takes its frames")
        _touch(segment, self.ring, RING_HEADER_SIZE + self.view.capacity * self.view.record_size)

    @property
    def is_named(self) -> bool:
        """Whether the file of this name is still this one, or there is none."""
        try:
            there = self.path.stat()
        except OSError:
            return True
        mine = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    @property
    def has_bridge(self) -> bool:
        """Whether a living process holds the bridge's lock."""
        return _is_locked(self._descriptor, LOCK_BRIDGE)

    @property
    def generation(self) -> int:
        """Number of the bridge that has the ring, or had it last."""
        return int(self._bridge["generation"])

    def status(self, now_ns: int) -> BridgeStatus:
        """Return how its bridge does; now_ns: CLOCK_MONOTONIC."""
        assert self._segment is not None
        silent_ns, word = max(now_ns - int(self._bridge["heartbeat_ns"]), 0), int(self._bridge["state"])
        if not self.has_bridge:
            state = "stopped" if word == BRIDGE_STOPPED else "dead"
        elif silent_ns > HEARTBEAT_MAX_NS:
            state = "silent"
        else:
            state = "polling" if word == BRIDGE_POLLING else "starting"
        return BridgeStatus(state, self._segment.owner.pid, self.generation, silent_ns)

    def counters(self) -> dict[str, int]:
        """Return what the bridges of this ring counted."""
        ring = {"written": self.view.pushed, "dropped": self.view.refused}
        ring["offered"] = int(self._bridge["received"])
        return ring | {name: int(self._bridge[name]) for name in BRIDGE_COUNTERS}

    def close(self) -> None:
        """Unmap, and give the lock back."""
        self._bridge = None
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        os.close(self._descriptor)


class DpdkBridge:
    """Own the reading end of a bridge's ring and a DPDK_SOURCE record; `state` goes to kernels.

    Hot words are written by the loop that calls next_frame; everything here belongs to one cold thread.
    """

    def __init__(
        self, segment: Segment, path: str | os.PathLike[str] = SEGMENT_DEFAULT, *, name: str = "dpdk"
    ) -> None:
        """Attach to the segment that a bridge made at `path`; name: area of the record in `segment`.

        What lies in the ring from before is read first. Raises SourceError, one line.
        """
        warm_bridge()
        self.path = pathlib.Path(path)
        self._mapping: _Mapping | None = _open(self.path)
        self._next: _Mapping | None = None
        self._past: dict[str, int] = {}  # counters of the segments before this one
        self._generation, self._restarts, self._segments = self._mapping.generation, 0, 1
        self.trouble = ""  # why a new segment could not be followed, empty = nothing is wrong
        recover_consumer(self._mapping.ring)
        try:
            self.state = segment.allocate(name, DPDK_SOURCE.size)
        except BaseException:
            self._mapping.close()
            raise
        self._record: Any = segment.array(name, DPDK_SOURCE)[0]
        self._record["ring"] = self._record["wanted"] = self._mapping.ring
        self._record["kind"] = SOURCE_DPDK

    @property
    def fd(self) -> int:
        """Return -1: a ring has no descriptor that poll(2) could wait for."""
        return -1

    def refresh(self) -> None:
        """Notice a bridge that was started again, and follow it to a new segment.

        To be called now and then by the cold thread; counters() does. A new file is followed when its name
        stands for it and no bridge holds the old one; the hot loop changes over when the old ring is empty.
        """
        if self._mapping is None:
            return
        if self._next is not None:
            if _ring_in_use(self.state) != self._next.ring:
                return
            self._leave()
        generation = self._mapping.generation
        self._restarts += generation - self._generation
        self._generation = generation
        if self._mapping.is_named or self._mapping.has_bridge:
            self.trouble = ""
            return
        try:
            self._next = _open(self.path)
        except SourceError as error:
            self.trouble = str(error)
            return
        self.trouble = ""
        _follow(self.state, self._next.ring)

    def _leave(self) -> None:
        """Close the old segment: the hot loop reads the next one."""
        assert self._mapping is not None
        assert self._next is not None
        for counter, value in self._mapping.counters().items():
            self._past[counter] = self._past.get(counter, 0) + value
        self._mapping.close()
        self._mapping, self._next = self._next, None
        self._generation = 0  # of another ring: its bridges are all new to us
        self._segments += 1

    def status(self, now_ns: int) -> BridgeStatus:
        """Return how the bridge does; now_ns: CLOCK_MONOTONIC.  Call refresh() first."""
        assert self._mapping is not None, "the source is closed"
        return (self._next or self._mapping).status(now_ns)

    def counters(self) -> dict[str, int]:
        """Return the counters.

        received: given out; damaged: refused; waiting: in the ring.  Of all the bridges of the rings read:
        offered = written + dropped (a burst apart for a moment), dropped for want of room, oversized (cut),
        rx_missed, rx_errors, rx_nombuf (lost before the bridge had them).  restarts: bridges since ours;
        segments: rings read.
        """
        self.refresh()
        counts = {name: int(self._record[name]) for name in ("received", "damaged")}
        bridge, waiting = dict(self._past), -int(self._record["held"])  # given out, not handed back
        for mapping in filter(None, (self._mapping, self._next)):
            waiting += mapping.view.used
            for counter, value in mapping.counters().items():
                bridge[counter] = bridge.get(counter, 0) + value
        lives = {"restarts": self._restarts, "segments": self._segments}
        return counts | {"waiting": waiting} | bridge | lives

    def close(self) -> None:
        """Hand the last frame back and unmap; no kernel may use the source any more."""
        if self._mapping is None:
            return
        self._record["kind"] = CLOSED
        _hand_back(self.state)
        for mapping in filter(None, (self._mapping, self._next)):
            mapping.close()
        self._mapping = self._next = None


def _refusal(path: pathlib.Path, reason: str) -> SourceError:
    return SourceError(f"source dpdk: {path}: {reason}")


def _open(path: pathlib.Path) -> _Mapping:
    """Map the file that has the name now; between its opening and its mapping it may have been replaced."""
    for _ in range(_ATTEMPTS):
        mapping = _Mapping(path)
        if mapping.is_named:
            return mapping
        mapping.close()
    raise _refusal(path, "is replaced again and again")


def _lock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def _try_lock(descriptor: int, byte: int) -> bool:
    """Take the lock of a byte until the descriptor is closed; say whether it was free."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK, byte))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_locked(descriptor: int, byte: int) -> bool:
    """Say whether somebody else has the lock of a byte."""
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, byte))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _touch(segment: Segment, address: int, size: int) -> None:
    """Read a word of each page, so that the hot loop meets none that is not mapped yet."""
    segment.words(address, size // 8)[::_PAGE_WORDS].max()
