"""Recorder: a live session's packets as pcapng, off the hot path, by a tap and a cold thread of its own.

The ring is TPACKET_V3: Linux packs frames tightly into blocks and gives a block when it is full or RETIRE_MS
old, so a slow disk is borne for long.  A kernel turns a block into pcapng packets in one go; the thread
writes them.  What the ring had no room for is lost, counted, and noted in the file; nothing here ever holds
up the loop that trades.  Times are Linux's, in nanoseconds, the same that AfPacketV2 and UdpSocket give.

Frames that AF_XDP takes never reach a tap: with that source the feed has to be recorded elsewhere.
Sources: linux/if_packet.h; IETF draft-ietf-opsawg-pcapng, sections 4.1 to 4.6.
"""

from __future__ import annotations

import errno
import os
import pathlib
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np

from nimbus.feed.af_packet import (
    PACKET_STATISTICS,
    SO_ATTACH_FILTER,
    SOL_PACKET,
    TP_STATUS_KERNEL,
    TP_STATUS_USER,
    TP_STATUS_VLAN_TPID_VALID,
    TP_STATUS_VLAN_VALID,
    VLAN_ROOM,
    open_ring,
)
from nimbus.feed.decode import Subscription
from nimbus.feed.filters import NOTHING, program_of
from nimbus.feed.packet import ETHERTYPE_VLAN
from nimbus.feed.pcapng import OPTION_APPLICATION, RECORDED_BY
from ringbuf.affinity import name_thread
from ringbuf.atomics import load_acquire_u32, store_release_u32
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, load_u16, load_u32, put_u2, store_i64, store_u32
from ringbuf.records import record
from ringbuf.segment import Segment

TPACKET_V3: Final = 2
BLOCK_SIZE: Final = 1 << 20
RETIRE_MS: Final = 10
RING_MIB_DEFAULT: Final = 64  # two seconds of 200-byte frames at 100,000/s
FRAME_SIZE_NOMINAL: Final = 2_048  # asked for by struct tpacket_req3, and not used by Linux
WAIT_MS: Final = 50
CLOSE_WAIT_S: Final = 2.0
LINK_TYPE_ETHERNET: Final = 1
# struct tpacket_block_desc, struct tpacket3_hdr
_BLOCK_STATUS, _BLOCK_PACKETS, _BLOCK_FIRST = 8, 12, 16
_NEXT, _SEC, _NSEC, _SNAPLEN, _LENGTH, _STATUS, _MAC, _TCI, _TPID = 0, 4, 8, 12, 16, 20, 24, 32, 36
# pcapng blocks
SECTION_HEADER, INTERFACE_DESCRIPTION, INTERFACE_STATISTICS, ENHANCED_PACKET = 0x0A0D0D0A, 1, 5, 6
BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_PACKET_HEAD: Final = 28  # of an enhanced packet block
_PACKET_OVERHEAD: Final = 32  # with the length behind it

RECORDER = record(
    "RECORDER",
    """
    i8  ring        address of block 0 (fixed)
    i8  blocks      how many there are (fixed)
    i8  next        the one that is read next
    i8  buffer      address of BLOCK_SIZE bytes for the packets of one block (fixed)
    i8  recorded    frames put into the buffer so far
    i8  unfit       frames that it had no room for: impossible while a slot's header outweighs a block's
    2i8 pad         zero
    """,
)
_A = RECORDER.at


@inlined
def _put_packet(to: int, room: int, frame: int) -> int:
    """Write the frame at a struct tpacket3_hdr as an enhanced packet block; return its bytes, 0 = no room."""
    status, data, size = load_u32(frame + _STATUS), frame + load_u16(frame + _MAC), load_u32(frame + _SNAPLEN)
    tag = VLAN_ROOM if status & TP_STATUS_VLAN_VALID != 0 and size >= 12 else 0
    total = _PACKET_OVERHEAD + ((size + tag + 3) & -4)
    if total > room:
        return 0
    ns = load_u32(frame + _SEC) * 1_000_000_000 + load_u32(frame + _NSEC)
    store_u32(to + total - 8, 0)  # padding; what is data of these bytes is written over it
    store_u32(to, ENHANCED_PACKET)
    store_u32(to + 4, total)
    store_u32(to + 8, 0)  # the only interface
    store_u32(to + 12, ns >> 32)
    store_u32(to + 16, ns)
    store_u32(to + 20, size + tag)
    store_u32(to + 24, load_u32(frame + _LENGTH) + tag)
    at = to + _PACKET_HEAD
    if tag != 0:
        copy(at, data, 12)
        put_u2(at + 12, load_u16(frame + _TPID) if status & TP_STATUS_VLAN_TPID_VALID else ETHERTYPE_VLAN)
        put_u2(at + 14, load_u16(frame + _TCI))
        copy(at + 16, data + 12, size - 12)
    else:
        copy(at, data, size)
    store_u32(to + total - 4, total)
    return total


@kernel
def pack_block(recorder: int) -> int:
    """Write the next block's frames into the buffer and hand it back; return the bytes, 0 = not ready."""
    index = load_i64(recorder + _A.next)
    block, to = load_i64(recorder + _A.ring) + index * BLOCK_SIZE, load_i64(recorder + _A.buffer)
    # Pairs with Linux's smp_wmb() before it sets the status: the block's frames are visible afterwards.
    if load_acquire_u32(block + _BLOCK_STATUS) & TP_STATUS_USER == 0:
        return 0
    frame, used, put = block + load_u32(block + _BLOCK_FIRST), 0, 0
    count = load_u32(block + _BLOCK_PACKETS)
    for _ in range(count):
        size = _put_packet(to + used, BLOCK_SIZE - used, frame)
        used += size
        put += 1 if size > 0 else 0
        frame += load_u32(frame + _NEXT)
    store_i64(recorder + _A.recorded, load_i64(recorder + _A.recorded) + put)
    store_i64(recorder + _A.unfit, load_i64(recorder + _A.unfit) + count - put)
    # Pairs with Linux's smp_rmb(): our reads of the frames are over.
    store_release_u32(block + _BLOCK_STATUS, TP_STATUS_KERNEL)
    store_i64(recorder + _A.next, index + 1 if index + 1 < load_i64(recorder + _A.blocks) else 0)
    return used


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def file_head(interface: str) -> bytes:
    """Return section header and interface description: little-endian, Ethernet, nanoseconds."""
    section = struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1)
    section += _option(OPTION_APPLICATION, RECORDED_BY) + _option(0, b"")
    options = _option(2, interface.encode()) + _option(9, b"\x09") + _option(0, b"")  # if_name, if_tsresol
    described = struct.pack("<HHI", LINK_TYPE_ETHERNET, 0, 0) + options
    return _block(SECTION_HEADER, section) + _block(INTERFACE_DESCRIPTION, described)


def file_tail(now_ns: int, offered: int, dropped: int) -> bytes:
    """Return interface statistics: frames that passed the filter, and of these the lost ones."""
    options = (
        _option(4, struct.pack("<Q", offered)) + _option(5, struct.pack("<Q", dropped)) + _option(0, b"")
    )
    stamp = struct.pack("<III", 0, now_ns >> 32, now_ns & 0xFFFF_FFFF)
    return _block(INTERFACE_STATISTICS, stamp + options)


class Recorder:
    """Own the tap, the thread and the files; `close` ends the recording with everything that came before it.

    error: "" or why the recording ended early (a full disk); files: what was written, oldest first.
    """

    def __init__(
        self,
        segment: Segment,
        interface: str,
        folder: pathlib.Path,
        subscriptions: Sequence[Subscription] = (),
        *,
        ring_mib: int = RING_MIB_DEFAULT,
        file_mib: int = 0,
        prefix: str = "packets",
        name: str = "recorder",
    ) -> None:
        """Tap `interface` for what is subscribed, to FOLDER/PREFIX-NUMBER.pcapng.

        subscriptions: as of the feed, and (None, port) for the replies of a rerequest server; () = every
        IPv4 UDP datagram; ring_mib: memory that a stalled disk may fill; file_mib: a new file begins when one
        is that large, 0 = never; name: area in the segment.
        Raises SourceError, or OSError when the first file cannot be made.
        """
        self.interface, self.error, self.files = interface, "", list[pathlib.Path]()
        self._folder, self._prefix, self._file_size = pathlib.Path(folder), prefix, file_mib << 20
        blocks = max(ring_mib, 1)
        size = blocks * BLOCK_SIZE
        slots = size // FRAME_SIZE_NOMINAL
        request = struct.pack("7I", BLOCK_SIZE, blocks, FRAME_SIZE_NOMINAL, slots, RETIRE_MS, 0, 0)
        names = ("offered", "recorded", "dropped", "bytes", "link_downs", "socket_errors")
        self._counts, self._stop = dict.fromkeys(names, 0), threading.Event()
        self._file, self._written = -1, 0
        self._ring = open_ring(interface, subscriptions, TPACKET_V3, request, size)
        try:
            self.state = segment.allocate(name, RECORDER.size)
            self._buffer = np.empty(BLOCK_SIZE, np.uint8)
            self._record: Any = segment.array(name, RECORDER)[0]
            self._record["ring"], self._record["blocks"] = self._ring.address, blocks
            self._record["buffer"] = self._buffer.ctypes.data
            pack_block(self.state)  # compiled before the first packet
            self._begin_file()
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def counters(self) -> dict[str, int]:
        """Return the counters as the thread saw them last; exact once closed: `offered = recorded + dropped`.

        offered: frames that passed the filter; recorded: of these, in the files; dropped: of these, for want
        of room in the ring; bytes, files: written; link_downs, socket_errors: of the tap.  After an error
        the frames that were under way to the disk are in neither.
        """
        return self._counts | {"files": len(self.files)}

    def close(self) -> None:
        """Stop the tap, write what it holds, end the file, join the thread."""
        if not self._stop.is_set():
            program, _keep = program_of(NOTHING)
            self._ring.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            self._stop.set()
            self._thread.join()
            self._release()

    def _release(self) -> None:
        self._ring.sock.close()
        self._ring.memory.close()

    # ------------------------------------------------------------ the thread

    def _main(self) -> None:
        name_thread("recorder")
        try:
            self._record_all()
        except OSError as error:
            self.error = f"{self.files[-1]}: {error.strerror}"
            self._cut_file()
            while not self._stop.wait(WAIT_MS / 1_000):
                self._collect()  # the ring fills up: what is lost is still counted
        self._collect()

    def _record_all(self) -> None:
        """Write blocks until the stop, then what the tap let through before it."""
        poll = select.poll()
        poll.register(self._ring.sock, select.POLLIN)
        while not self._stop.is_set():
            if self._move() == 0:
                poll.poll(WAIT_MS)
            self._collect()
        until = time.monotonic() + CLOSE_WAIT_S  # Linux retires the last block by a timer
        while self._counts["recorded"] + self._counts["dropped"] < self._counts["offered"]:
            if self._move() > 0:
                until = time.monotonic() + CLOSE_WAIT_S
            elif time.monotonic() > until:
                break
            else:
                time.sleep(RETIRE_MS / 1_000)
            self._collect()
        self._end_file()

    def _move(self) -> int:
        """Write the next block, if one is ready; return its bytes."""
        size = pack_block(self.state)
        if size > 0:
            if self._file_size and self._written >= self._file_size:
                self._end_file()
                self._begin_file()
            self._write(memoryview(cast("Any", self._buffer))[:size])
            self._counts["recorded"] = int(self._record["recorded"])
        return size

    def _collect(self) -> None:
        """Add up what Linux counted; reading resets it."""
        sock = self._ring.sock
        offered, dropped, _ = struct.unpack("III", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
        self._counts["offered"] += offered
        self._counts["dropped"] += dropped
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._counts["link_downs" if error == errno.ENETDOWN else "socket_errors"] += 1

    # ------------------------------------------------------------ files

    def _begin_file(self) -> None:
        number = len(self.files)
        self._folder.mkdir(parents=True, exist_ok=True)
        while (path := self._folder / f"{self._prefix}-{number:05d}.pcapng").exists():
            number += 1  # of an earlier session
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self.files.append(path)
        self._written = 0
        self._write(memoryview(file_head(self.interface)))

    def _write(self, text: memoryview) -> None:
        """Write all of it; what is only half there after an error is cut off again."""
        left = text
        while left:
            left = left[os.write(self._file, left) :]
        self._written += len(text)
        self._counts["bytes"] += len(text)

    def _end_file(self) -> None:
        self._write(memoryview(file_tail(time.time_ns(), self._counts["offered"], self._counts["dropped"])))
        os.fsync(self._file)
        os.close(self._file)
        self._file = -1

    def _cut_file(self) -> None:
        """Leave whole blocks behind."""
        if self._file >= 0:
            os.ftruncate(self._file, self._written)
            os.close(self._file)
            self._file = -1
