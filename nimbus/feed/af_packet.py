"""AfPacketV2: frames of an interface from a ring that the Linux kernel fills (AF_PACKET, TPACKET_V2).

The ring is an array of frames of one size in shared memory.  The kernel copies a frame that passes the
filter into the next slot and sets TP_STATUS_USER; we read it and, at the next call, hand the slot back by
storing TP_STATUS_KERNEL.  No system call a packet.  It is a tap: the IP stack works on the frame as well.
A full ring drops, and the kernel counts what it dropped.

When the interface goes down its frames stop, and they go on when it is up again: the socket stays bound.
When it was removed and another one of the name appears, `refresh` binds to that one.  Both are counted.
Source: Documentation/networking/packet_mmap.rst; numbers: linux/if_packet.h, asm-generic/socket.h.
"""

from __future__ import annotations

import errno
import mmap
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from nimbus.feed.decode import Subscription
from nimbus.feed.filters import classic_filter, program_of
from nimbus.feed.interface import index_of, raise_refused, require_ethernet, require_up
from nimbus.feed.kinds import CLOSED, SOCKET_HEAD, SOURCE_AF_PACKET, SourceError
from nimbus.feed.membership import Membership
from nimbus.feed.packet import ETHERTYPE_VLAN
from nimbus.messages import LINK_ETHERNET, PACKET, STAMP_KERNEL
from ringbuf.atomics import load_acquire_u32, store_release_u32
from ringbuf.jit import inlined
from ringbuf.memory import (
    load_i64,
    load_u16,
    load_u32,
    prefetch,
    put_u2,
    store_i64,
    store_u8,
    store_u16,
    store_u32,
)
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment

SOL_PACKET: Final = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, PACKET_RESERVE, PACKET_IGNORE_OUTGOING = 5, 6, 10, 12, 23
TPACKET_V2: Final = 1
TP_STATUS_KERNEL, TP_STATUS_USER, TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 0, 1, 16, 64
ETH_P_ALL: Final = 3  # linux/if_ether.h; the tap before VLAN tags are dropped
SO_ATTACH_FILTER: Final = 26
SO_TIMESTAMPNS: Final = 35  # has Linux stamp frames once, at their arrival: all taps and sockets agree then
FRAMES_DEFAULT: Final = 131_072  # more than a second at 100,000 packets/s
FRAME_SIZE_DEFAULT: Final = 2_048  # room for frames of 1,978 bytes
BLOCK_SIZE: Final = 1 << 20
_HEADER_LINES: Final = 2  # of a frame: its headers and the first message
VLAN_ROOM: Final = 4  # in front of the frame, where its tag is put back

AF_PACKET_SOURCE = record(
    "AF_PACKET_SOURCE",
    f"""
    {SOCKET_HEAD}
    i8  ring        address of slot 0 (fixed)
    i8  end         address behind the last slot (fixed)
    i8  slot_size   bytes of a slot (fixed)
    i8  slot        address of the slot that is read next, or was read last
    i8  held        1 = that slot has been given out and not been handed back
    i8  tagged      frames whose VLAN tag was put back
    2i8 pad         zero
    """,
)
# struct tpacket2_hdr
_STATUS, _LENGTH, _SNAPLEN, _MAC, _SEC, _NSEC, _TCI, _TPID = 0, 4, 8, 12, 16, 20, 24, 26
_A, _P = AF_PACKET_SOURCE.at, PACKET.at


@inlined
def put_tag_back(frame: int, tci: int, tpid: int) -> int:
    """Insert a VLAN tag behind the addresses; return where the frame begins now: VLAN_ROOM bytes before."""
    first, last = load_i64(frame), load_u32(frame + 8)
    store_i64(frame - VLAN_ROOM, first)
    store_u32(frame - VLAN_ROOM + 8, last)
    put_u2(frame + 8, tpid)
    put_u2(frame + 10, tci)
    return frame - VLAN_ROOM


@inlined
def next_ring_frame(source: int, packet: int) -> int:
    """Hand the last slot back and fill the PACKET from the next one: 1, or 0 when it is empty.

    Lengths in the slot are the kernel's and fit the slot.
    """
    slot = load_i64(source + _A.slot)
    if load_i64(source + _A.held) != 0:
        # Pairs with the kernel's smp_rmb() before it fills the slot: our reads of the frame are over.
        store_release_u32(slot + _STATUS, TP_STATUS_KERNEL)
        store_i64(source + _A.held, 0)
        slot += load_i64(source + _A.slot_size)
        if slot == load_i64(source + _A.end):
            slot = load_i64(source + _A.ring)
        store_i64(source + _A.slot, slot)
    # Pairs with the kernel's smp_wmb() before it sets the status: the frame is visible afterwards.
    status = load_acquire_u32(slot + _STATUS)
    if status & TP_STATUS_USER == 0:
        return 0
    store_i64(source + _A.held, 1)
    for line in range(_HEADER_LINES):  # they are in the caches of the core that received it
        prefetch(slot + load_u16(slot + _MAC) + line * CACHE_LINE)
    frame, size, wire_size = slot + load_u16(slot + _MAC), load_u32(slot + _SNAPLEN), load_u32(slot + _LENGTH)
    if status & TP_STATUS_VLAN_VALID != 0:
        tpid = load_u16(slot + _TPID) if status & TP_STATUS_VLAN_TPID_VALID != 0 else ETHERTYPE_VLAN
        frame = put_tag_back(frame, load_u16(slot + _TCI), tpid)
        size, wire_size = size + VLAN_ROOM, wire_size + VLAN_ROOM
        store_i64(source + _A.tagged, load_i64(source + _A.tagged) + 1)
    number = load_i64(source + _A.received) + 1
    store_i64(source + _A.received, number)
    store_i64(packet + _P.frame_at, frame)
    store_i64(packet + _P.recv_ns, load_u32(slot + _SEC) * 1_000_000_000 + load_u32(slot + _NSEC))
    store_i64(packet + _P.number, number)
    store_u32(packet + _P.size, size)
    store_u32(packet + _P.wire_size, wire_size)
    store_u16(packet + _P.link, LINK_ETHERNET)
    store_u8(packet + _P.stamp, STAMP_KERNEL)
    store_u8(packet + _P.line, 0)
    return 1


class Ring(NamedTuple):
    """A packet socket with its ring mapped."""

    sock: socket.socket
    memory: mmap.mmap
    address: int


def open_ring(
    interface: str, subscriptions: Sequence[Subscription], version: int, request: bytes, size: int
) -> Ring:
    """Open a packet socket with a receive ring, and bind it last, so that nothing unfiltered gets in.

    version: TPACKET_*; request: struct tpacket_req or tpacket_req3; size: bytes of the ring.
    Raises SourceError.
    """
    instructions = classic_filter(subscriptions)
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: receives nothing yet
    except OSError as error:
        raise_refused("a packet socket (AF_PACKET)", "CAP_NET_RAW", error)
    try:
        require_up(sock, interface)
        require_ethernet(sock, interface)
        program, _keep = program_of(instructions)
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, version)
        sock.setsockopt(SOL_PACKET, PACKET_RESERVE, VLAN_ROOM)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        memory = mmap.mmap(sock.fileno(), size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        sock.bind((interface, ETH_P_ALL))
    except OSError as error:
        sock.close()
        what = f"interface {interface}: no ring of {size:,} bytes"
        if error.errno in {errno.ENOMEM, errno.EAGAIN}:
            msg = f"{what}: memory is short, use fewer slots"
            raise SourceError(msg) from None
        raise_refused(what, "CAP_NET_RAW", error)
    except SourceError:
        sock.close()
        raise
    address = np.frombuffer(memory, np.uint8).ctypes.data
    return Ring(sock, memory, int(address))


class AfPacketV2:
    """Own a packet socket, its ring and its AF_PACKET_SOURCE record; `state` goes to kernels.

    Hot words are written by the loop that calls next_frame; everything here belongs to one cold thread.
    """

    def __init__(
        self,
        segment: Segment,
        interface: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        frames: int = FRAMES_DEFAULT,
        frame_size: int = FRAME_SIZE_DEFAULT,
        name: str = "af_packet",
    ) -> None:
        """Tap `interface` for what is subscribed (IPv4; () = every UDP datagram) and join the groups.

        frames, frame_size: slots of the ring, rounded up to whole MiB, and bytes of each, a power of two;
        70 of them are headers, longer frames are cut and count as `snapped`.  name: area in the segment.
        Raises SourceError, one line.
        """
        if frame_size < 256 or frame_size > BLOCK_SIZE or frame_size & (frame_size - 1) or frames < 1:
            msg = f"{frames} slots of {frame_size} bytes: sizes are powers of two from 256 to {BLOCK_SIZE:,}"
            raise SourceError(msg)
        blocks = -(-frames * frame_size // BLOCK_SIZE)
        size = blocks * BLOCK_SIZE
        request = struct.pack("IIII", BLOCK_SIZE, blocks, frame_size, size // frame_size)
        self.interface, self.frames = interface, size // frame_size
        self._ring: Ring | None = open_ring(interface, subscriptions, TPACKET_V2, request, size)
        self._sock, address = self._ring.sock, self._ring.address
        self._index = index_of(self._sock, interface)
        self._cold = dict.fromkeys(("offered", "dropped", "link_downs", "socket_errors", "rebinds"), 0)
        try:
            self.state = segment.allocate(name, AF_PACKET_SOURCE.size)
            groups = [wanted.group for wanted in subscriptions if wanted.group is not None]
            self._membership = Membership(groups, interface)
        except BaseException:
            self._release()
            raise
        self._record: Any = segment.array(name, AF_PACKET_SOURCE)[0]
        self._record["kind"], self._record["fd"] = SOURCE_AF_PACKET, self._sock.fileno()
        self._record["ring"] = self._record["slot"] = address
        self._record["end"], self._record["slot_size"] = address + size, frame_size

    @property
    def fd(self) -> int:
        """Descriptor of the packet socket."""
        return int(self._record["fd"])

    def refresh(self) -> None:
        """Read the kernel's counters and errors, and bind again to an interface that was made anew.

        To be called now and then by the cold thread; counters() does.
        """
        offered, dropped = struct.unpack("II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._cold["offered"] += offered  # reading sets both to 0, and the first includes the second
        self._cold["dropped"] += dropped
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error != 0:
            self._cold["link_downs" if error == errno.ENETDOWN else "socket_errors"] += 1
        try:
            index = index_of(self._sock, self.interface)
            if index != self._index:
                self._sock.bind((self.interface, ETH_P_ALL))
                self._membership.join(index)
                self._index = index
                self._cold["rebinds"] += 1
        except (OSError, SourceError):
            return  # gone, or gone again: the next call tries once more

    def counters(self) -> dict[str, int]:
        """Return the counters; `offered = received + dropped` (+ what lies in the ring unread).

        offered: frames that passed the filter; dropped: of these, for want of a free slot; received: given
        out; tagged: of these, with a VLAN tag; link_downs: times the interface went down; rebinds: times
        another interface of the name was bound to; socket_errors: other errors.
        """
        self.refresh()
        hot = {name: int(self._record[name]) for name in ("received", "tagged")}
        both = {name: self._cold[name] + int(self._record[name]) for name in ("link_downs", "socket_errors")}
        return hot | self._cold | both

    def close(self) -> None:
        """Leave the groups, close the socket and unmap the ring; no kernel may use the source any more."""
        if self._ring is not None:
            self._record["kind"] = CLOSED
            self._membership.close()
            self._release()

    def _release(self) -> None:
        if self._ring is not None:
            self._ring.sock.close()
            self._ring.memory.close()  # it has a descriptor of its own: the socket lives until here
            self._ring = None
