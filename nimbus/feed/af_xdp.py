"""AfXdp: subscribed frames of one receive queue, taken from the driver before the IP stack (AF_XDP).

Copy mode, without any library.  UMEM is memory of ours in chunks; the fill ring names the chunks that Linux
may fill, the receive ring the chunks that it has filled.  A frame is handed back by putting its chunk on the
fill ring.  What is taken here is seen by no other socket: nobody else on the machine receives the feed.
Everything that is not subscribed goes on to the stack (xdp_program.py).

There is no receive time from Linux: recv_ns is read here, when the frame is found (STAMP_USER).  When the
interface goes down its frames stop, and go on when it is up again.  When it is removed the source is dead
(counter `removed`) and must be opened anew.
Sources: Documentation/networking/af_xdp.rst; numbers: linux/if_xdp.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from nimbus.feed.decode import Subscription
from nimbus.feed.interface import LinkWatch, index_of, raise_refused, require_up
from nimbus.feed.kinds import CLOSED, SOCKET_HEAD, SOURCE_AF_XDP, SourceError
from nimbus.feed.membership import Membership
from nimbus.feed.xdp_program import CAPABILITIES, MODES, XdpProgram, xdp_code
from nimbus.messages import LINK_ETHERNET, PACKET, STAMP_USER
from ringbuf.atomics import load_acquire_u32, store_release_u32
from ringbuf.jit import external, inlined
from ringbuf.memory import load_i64, load_u32, store_i64, store_u8, store_u16, store_u32
from ringbuf.records import record
from ringbuf.segment import Segment

AF_XDP, SOL_XDP = 44, 283
XDP_MMAP_OFFSETS, XDP_RX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 1, 2, 4, 5, 6
XDP_STATISTICS: Final = 7
XDP_COPY: Final = 2  # of sxdp_flags
XDP_PGOFF_RX_RING, XDP_UMEM_PGOFF_FILL_RING = 0, 0x1_0000_0000
FRAMES_DEFAULT: Final = 131_072  # more than a second at 100,000 packets/s
CHUNK_SIZES: Final = (2_048, 4_096)  # Linux keeps 256 bytes of each to itself
BIND_TRIES, BIND_PAUSE_S = 100, 0.02
CLOCK_REALTIME: Final = 0
_U32: Final = 0xFFFF_FFFF

AF_XDP_SOURCE = record(
    "AF_XDP_SOURCE",
    f"""
    {SOCKET_HEAD}
    i8  umem           address of chunk 0 (fixed)
    i8  chunk_mask     clears the offset within a chunk (fixed)
    i8  mask           entries of either ring, a power of two, minus 1 (fixed)
    i8  rx_producer_at address of the receive ring's producer index, Linux's (fixed)
    i8  rx_consumer_at address of its consumer index, ours (fixed)
    i8  rx_at          address of its struct xdp_desc entries (fixed)
    i8  fill_producer_at  address of the fill ring's producer index, ours (fixed)
    i8  fill_at        address of its u64 entries (fixed)

    i8  consumed       frames handed back: the receive ring's consumer index, not wrapped
    i8  filled         chunks offered: the fill ring's producer index, not wrapped
    i8  held           1 = a frame has been given out and not been handed back
    i8  chunk          offset of its chunk in the UMEM
    i8  seconds        struct timespec of clock_gettime
    i8  nanoseconds    its second word
    2i8 pad            zero
    """,
)
_A, _P = AF_XDP_SOURCE.at, PACKET.at
_DESC_SIZE, _DESC_LENGTH, _FILL_SIZE = 16, 8, 8  # struct xdp_desc: u64 addr, u32 len, u32 options
_clock_gettime = external("clock_gettime", "intc", "intc", "intp")


@inlined
def _hand_back(source: int) -> None:
    """Offer the chunk of the last frame to Linux again."""
    mask, filled = load_i64(source + _A.mask), load_i64(source + _A.filled)
    store_i64(load_i64(source + _A.fill_at) + (filled & mask) * _FILL_SIZE, load_i64(source + _A.chunk))
    # Pairs with Linux's load_acquire of the index: entry and our reads of the frame come before it.
    store_release_u32(load_i64(source + _A.fill_producer_at), filled + 1)
    store_i64(source + _A.filled, filled + 1)
    consumed = load_i64(source + _A.consumed) + 1
    # Pairs with Linux's load_acquire of the index: the descriptor has been read.
    store_release_u32(load_i64(source + _A.rx_consumer_at), consumed)
    store_i64(source + _A.consumed, consumed)
    store_i64(source + _A.held, 0)


@inlined
def next_xdp_frame(source: int, packet: int) -> int:
    """Hand the last frame back and fill the PACKET from the next one: 1, or 0 when there is none.

    Offsets and lengths in the ring are Linux's and lie within the UMEM.
    """
    if load_i64(source + _A.held) != 0:
        _hand_back(source)
    consumed = load_i64(source + _A.consumed)
    # Pairs with Linux's store_release of the index: descriptor and frame are visible afterwards.
    if load_acquire_u32(load_i64(source + _A.rx_producer_at)) == consumed & _U32:
        return 0
    entry = load_i64(source + _A.rx_at) + (consumed & load_i64(source + _A.mask)) * _DESC_SIZE
    offset, size = load_i64(entry), load_u32(entry + _DESC_LENGTH)
    store_i64(source + _A.held, 1)
    store_i64(source + _A.chunk, offset & load_i64(source + _A.chunk_mask))
    _clock_gettime(CLOCK_REALTIME, source + _A.seconds)
    number = load_i64(source + _A.received) + 1
    store_i64(source + _A.received, number)
    store_i64(packet + _P.frame_at, load_i64(source + _A.umem) + offset)
    recv_ns = load_i64(source + _A.seconds) * 1_000_000_000 + load_i64(source + _A.nanoseconds)
    store_i64(packet + _P.recv_ns, recv_ns)
    store_i64(packet + _P.number, number)
    store_u32(packet + _P.size, size)
    store_u32(packet + _P.wire_size, size)
    store_u16(packet + _P.link, LINK_ETHERNET)
    store_u8(packet + _P.stamp, STAMP_USER)
    store_u8(packet + _P.line, 0)
    return 1


class AfXdp:
    """Own an AF_XDP socket, its UMEM and rings, and its AF_XDP_SOURCE record; `state` goes to kernels.

    program: to be passed to the source of another receive queue of the interface; close that one first.
    remarks: what the operator should know, one line each.
    """

    def __init__(
        self,
        segment: Segment,
        interface: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        queue: int = 0,
        mode: str = "generic",
        frames: int = FRAMES_DEFAULT,
        chunk_size: int = CHUNK_SIZES[0],
        program: XdpProgram | None = None,
        name: str = "af_xdp",
    ) -> None:
        """Take what is subscribed (IPv4; () = every UDP datagram) out of a receive queue of `interface`.

        mode: "generic" (any driver) or "native" (the driver's own XDP); frames: chunks and ring entries, a
        power of two; chunk_size: 2,048 or 4,096, of which frames may have 256 less; program: of a source on
        another queue, which has the subscriptions then; name: area in the segment.
        Raises SourceError, one line.
        """
        if mode not in MODES or frames < 1 or frames & (frames - 1) or chunk_size not in CHUNK_SIZES:
            msg = f"af_xdp: mode {mode!r}, {frames} chunks of {chunk_size} bytes: {_WANTED}"
            raise SourceError(msg)
        self.interface, self.frames, self.remarks = interface, frames, list[str]()
        self._removed, self._socket_errors = 0, 0
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._stack.close)
            self._open(subscriptions, queue, mode, chunk_size, program)
            self.state = segment.allocate(name, AF_XDP_SOURCE.size)
            undo.pop_all()
        self._record: Any = segment.array(name, AF_XDP_SOURCE)[0]
        self._describe(chunk_size)

    def _open(
        self, subscriptions: Sequence[Subscription], queue: int, mode: str, chunk_size: int,
        program: XdpProgram | None,
    ) -> None:  # fmt: skip
        self._sock = self._stack.enter_context(_socket())
        xdp_code(subscriptions, 0)  # refuse what cannot be subscribed before anything is made
        groups = [wanted.group for wanted in subscriptions if wanted.group is not None]
        membership = self._stack.enter_context(contextlib.closing(Membership(groups, self.interface)))
        self._ask = membership.sock  # an AF_XDP socket answers no ioctl
        require_up(self._ask, self.interface)
        self._watch = LinkWatch(self.interface)
        self._index = index_of(self._ask, self.interface)
        self.program = program or self._stack.enter_context(
            contextlib.closing(XdpProgram(self._ask, self.interface, subscriptions, mode))
        )
        if self.program.queues > 1 and program is None:
            self.remarks.append(
                f"interface {self.interface} has {self.program.queues} receive queues, {queue} is read: "
                f"`ethtool -L {self.interface} combined 1`, or one source for each"
            )
        self._map_rings(chunk_size)
        self._bind(queue)

    def _map_rings(self, chunk_size: int) -> None:
        """Register the UMEM, make both rings and map them; offer every chunk before anything is bound."""
        size, sock = self.frames * chunk_size, self._sock
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE  # shared: a fork must not copy it
        try:
            self._umem = self._stack.enter_context(contextlib.closing(mmap.mmap(-1, size, flags)))
            umem = struct.pack("<QQIIII", _address(self._umem), size, chunk_size, 0, 0, 0)
            sock.setsockopt(SOL_XDP, XDP_UMEM_REG, umem)  # struct xdp_umem_reg
            for option in (XDP_UMEM_FILL_RING, XDP_RX_RING):
                sock.setsockopt(SOL_XDP, option, self.frames)
            sock.setsockopt(SOL_XDP, XDP_UMEM_COMPLETION_RING, 1)  # asked for, and not used
        except OSError as error:
            what = f"interface {self.interface}: no UMEM of {size:,} bytes"
            if error.errno in {errno.ENOBUFS, errno.ENOMEM}:
                msg = f"{what}: memory may not be locked, raise LimitMEMLOCK (or CAP_IPC_LOCK), or use fewer"
                raise SourceError(msg) from None
            raise_refused(what, CAPABILITIES, error)
        # struct xdp_mmap_offsets: producer, consumer, desc, flags of rx, tx, fill, completion.
        offsets = struct.unpack("<16Q", sock.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, 128))
        self._rx_offsets, self._fill_offsets = offsets[0:3], offsets[8:11]
        self._rx = self._map(self._rx_offsets[2] + self.frames * _DESC_SIZE, XDP_PGOFF_RX_RING)
        self._fill = self._map(self._fill_offsets[2] + self.frames * _FILL_SIZE, XDP_UMEM_PGOFF_FILL_RING)
        producer, _consumer, entries = self._fill_offsets
        chunks = np.arange(self.frames, dtype="<u8") * chunk_size
        self._fill[entries : entries + chunks.nbytes] = chunks.tobytes()
        self._fill[producer : producer + 4] = struct.pack("<I", self.frames)

    def _map(self, size: int, offset: int) -> mmap.mmap:
        memory = mmap.mmap(self._sock.fileno(), size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=offset)
        return self._stack.enter_context(contextlib.closing(memory))

    def _bind(self, queue: int) -> None:
        """Bind to the queue and tell the program.  struct sockaddr_xdp is unknown to Python's socket."""
        address = struct.pack("<HHIII", AF_XDP, XDP_COPY, self._index, queue, 0)
        libc, reasons = ctypes.CDLL(None, use_errno=True), {errno.EINVAL: "there is none of that number"}
        for _ in range(BIND_TRIES):
            if libc.bind(self._sock.fileno(), address, len(address)) == 0:
                break
            code = ctypes.get_errno()
            if code != errno.EBUSY:
                msg = f"interface {self.interface}: receive queue {queue}: "
                raise SourceError(msg + reasons.get(code, errno.errorcode.get(code, str(code))))
            time.sleep(BIND_PAUSE_S)  # Linux lets go of a closed socket's queue a little later
        else:
            msg = f"interface {self.interface}: receive queue {queue}: another AF_XDP socket reads it"
            raise SourceError(msg)
        self.program.add(queue, self._sock.fileno())

    def _describe(self, chunk_size: int) -> None:
        rx, fill = _address(self._rx), _address(self._fill)
        words = {
            "kind": SOURCE_AF_XDP, "fd": self._sock.fileno(), "umem": _address(self._umem),
            "chunk_mask": -chunk_size, "mask": self.frames - 1, "filled": self.frames,
            "rx_producer_at": rx + self._rx_offsets[0], "rx_consumer_at": rx + self._rx_offsets[1],
            "rx_at": rx + self._rx_offsets[2], "fill_producer_at": fill + self._fill_offsets[0],
            "fill_at": fill + self._fill_offsets[2],
        }  # fmt: skip
        for word, value in words.items():
            self._record[word] = value

    @property
    def fd(self) -> int:
        """Descriptor of the socket."""
        return int(self._record["fd"])

    def refresh(self) -> None:
        """Take note of errors and of the interface's state; cold, now and then."""
        self._watch.look(self._ask)
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._socket_errors += error not in {0, errno.ENETDOWN}  # that one comes with a removal
        with contextlib.suppress(SourceError):
            self._removed |= index_of(self._ask, self.interface) != self._index
            return
        self._removed = 1

    def counters(self) -> dict[str, int]:
        """Return the counters; `redirected to us = received + dropped` (+ what lies unread).

        dropped: for want of a chunk or of room in the ring, or longer than a chunk; link_downs: times the
        interface was found down; removed: 1 = it is gone, and the source with it; socket_errors: others.
        """
        self.refresh()
        # struct xdp_statistics: rx_dropped (an empty fill ring included), two of no use here, rx_ring_full
        dropped, _, _, full, _, _ = struct.unpack("<6Q", self._sock.getsockopt(SOL_XDP, XDP_STATISTICS, 48))
        return {
            "received": int(self._record["received"]),
            "dropped": dropped + full,
            "link_downs": self._watch.downs + int(self._record["link_downs"]),
            "socket_errors": self._socket_errors + int(self._record["socket_errors"]),
            "removed": self._removed,
        }

    def close(self) -> None:
        """Detach the program, close the socket, unmap everything; no kernel may use the source any more."""
        self._record["kind"] = CLOSED
        self._stack.close()


_WANTED: Final = f"modes are {', '.join(MODES)}, chunks a power of two of 2,048 or 4,096 bytes"


def _socket() -> socket.socket:
    try:
        return socket.socket(AF_XDP, socket.SOCK_RAW, 0)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            msg = "source af_xdp: this Linux has no AF_XDP (CONFIG_XDP_SOCKETS), use the source af_packet"
            raise SourceError(msg) from None
        raise_refused("source af_xdp", CAPABILITIES, error)


def _address(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)
