"""CaptureSource: a capture file of any kind as a row of PACKETs, walked by a kernel chunk by chunk.

A plain file is mapped whole; a compressed one, or a pipe, comes through one buffer that holds a chunk and
the record cut by its end.  The kind is recognised by content, never by name.

    source = CaptureSource.open(path)
    while True:
        run a kernel that calls next_packet(source.state, packet) until it gives 0 or less
        if not source.refill():
            break
"""

from __future__ import annotations

import datetime as dt
import mmap
import os
import pathlib
import stat
from typing import Any, BinaryIO, Final, Self, cast

import numpy as np
from numpy.typing import NDArray

from nimbus.feed import pcap
from nimbus.feed.itch import MESSAGES, SIZE
from nimbus.feed.pcap import FORMAT_ITCH, FORMAT_PCAP, FORMAT_PCAPNG, SOURCE, next_itch, next_pcap
from nimbus.feed.pcapng import BLOCK_SIZE_MAX, RECORDED_BY, application_of, link_of, next_pcapng
from nimbus.feed.stream import ByteStream, StreamError, is_compressed
from ringbuf.jit import kernel
from ringbuf.memory import load_i64
from ringbuf.segment import Segment

CHUNK_SIZE: Final = 4 * 1024 * 1024
PCAP_HEADER_SIZE: Final = 24
HEAD_SIZE: Final = 8_192  # looked at to recognise a raw ITCH file
PCAP_MAGICS: Final = {  # first four bytes -> (big-endian, ns per unit of the fraction)
    b"\xd4\xc3\xb2\xa1": (0, 1_000),
    b"\xa1\xb2\xc3\xd4": (1, 1_000),
    b"\x4d\x3c\xb2\xa1": (0, 1),
    b"\xa1\xb2\x3c\x4d": (1, 1),
}
PCAPNG_MAGIC: Final = b"\x0a\x0d\x0d\x0a"
LINK_NAMES: Final = {
    0: "BSD loopback (NULL)", 6: "Token Ring", 8: "SLIP", 9: "PPP", 10: "FDDI", 50: "PPP in HDLC framing",
    51: "PPPoE", 104: "Cisco HDLC", 105: "IEEE 802.11", 107: "Frame Relay", 108: "OpenBSD loopback",
    117: "pflog", 127: "IEEE 802.11 radiotap", 147: "user 0", 187: "Bluetooth H4", 189: "Linux USB",
    192: "PPI", 195: "IEEE 802.15.4", 220: "Linux USB (mmapped)", 227: "CAN", 239: "NFLOG", 249: "USBPcap",
    251: "Bluetooth LE", 252: "Wireshark exported PDU", 253: "NETLINK",
}  # fmt: skip

_S = SOURCE.at
_FAILURES: Final = {
    pcap.RECORD_TOO_LONG: "record of {value} bytes: a frame has at most 262,144 and must fit its block",
    pcap.BLOCK_SIZE: "pcapng block length {value}: must be a multiple of 4 from 12 to 16,777,216",
    pcap.BLOCK_MISMATCH: "the two lengths of the pcapng block differ (the second is {value})",
    pcap.BYTE_ORDER: "pcapng section without a byte-order magic (0x{value:08x})",
    pcap.NO_INTERFACE: "packet of interface {value}, which the pcapng section has not declared",
    pcap.RESOLUTION: "if_tsresol 0x{value:02x} is beyond 64-bit times",
    pcap.INTERFACE_COUNT: "more than {value} interfaces in one pcapng section",
    pcap.ZERO_LENGTH: "message length 0: not an end mark, since data follows; was the file written without"
    " its length prefixes?",
    pcap.BLOCK_SHORT: "pcapng block of {value} bytes is too short for its kind",
}


class CaptureError(Exception):
    """A capture cannot be used, or not any further; the text is one line."""


@kernel
def next_packet(source: int, packet: int) -> int:
    """Fill the PACKET with the next frame: 1; 0 = chunk used up, call refill; below 0 = refill will raise."""
    status = load_i64(source + _S.status)
    if status < 0:
        return status
    kind = load_i64(source + _S.format)
    if kind == FORMAT_PCAP:
        return next_pcap(source, packet)
    if kind == FORMAT_PCAPNG:
        return next_pcapng(source, packet)
    return next_itch(source, packet)


class CaptureSource:
    """Own a capture file and its SOURCE record.

    state: address of the SOURCE record; truncated: the last record was cut; warnings: one line each.
    is_recording: it was recorded from a live session, with every line and what repaired them.
    """

    def __init__(self, path: os.PathLike[str] | str, file: BinaryIO, segment: Segment) -> None:
        self.path = os.fspath(path)
        self.state = segment.allocate("source", SOURCE.size)
        self.truncated = self.is_recording = False
        self._segment = segment
        self._record = segment.array("source", SOURCE)[0]
        self._file = file
        self._map: mmap.mmap | None = None
        self._stream: ByteStream | None = None
        self._buffer: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._notes: list[str] = []
        self._damage = ""

    @classmethod
    def open(
        cls,
        path: os.PathLike[str] | str,
        date: dt.date | None = None,
        segment: Segment | None = None,
    ) -> Self:
        """Open the capture at path and make its first chunk ready.

        date: the day of a raw ITCH file; its times count from that day's midnight (default 1970-01-01).
        segment: where to put the SOURCE record ("source"), default one of its own.
        Raises CaptureError, one line, when the file is not a capture that can be read.
        """
        try:
            file = pathlib.Path(path).open("rb")  # noqa: SIM115 - kept open by the source
        except OSError as error:
            msg = f"{os.fspath(path)}: {error.strerror or error}"
            raise CaptureError(msg) from error
        source = cls(path, file, segment or Segment.anonymous(SOURCE.size + 4_096))
        try:
            source._begin(date or dt.date(1970, 1, 1))
        except BaseException:
            source.close()
            raise
        return source

    @property
    def packets(self) -> int:
        """Packets given so far."""
        return int(self._record["packets"])

    @property
    def fd(self) -> int:
        """No descriptor: a capture never has to be waited for."""
        return -1

    def counters(self) -> dict[str, int]:
        """Return what the walk counted."""
        return {"received": self.packets, "backwards": self.backwards}

    @property
    def backwards(self) -> int:
        """Packets whose time lay before that of the packet in front of them."""
        return int(self._record["backwards"])

    @property
    def offset(self) -> int:
        """Byte of the (decompressed) file where the next record begins."""
        return int(self._record["at"] - self._record["origin"])

    @property
    def warnings(self) -> list[str]:
        """One line for each oddity of the file met so far."""
        backwards = [f"time goes backwards {self.backwards} times"] if self.backwards else []
        return self._notes + backwards

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; no kernel may use the source any more."""
        self._record["end"] = self._record["at"] = 0
        self._buffer = np.empty(0, np.uint8)
        self._file.close()
        if self._map is not None:
            self._map.close()

    def refill(self) -> bool:
        """Bring the next chunk; return False at the end of the capture.

        The packets given so far must be done with.  Raises CaptureError when the walk met a defect.
        """
        record = self._record
        if record["status"] < 0:
            at = int(record["error_at"] - record["origin"])
            self._fail(_failure(int(record["status"]), int(record["error_value"])), at)
        if record["need"] == 0:  # the present chunk was not used up
            return bool(record["at"] < record["end"])
        left = int(record["end"] - record["at"])
        if record["last"] == 0:
            self._slide(left, int(record["need"]))
            record["need"] = 0
            return True
        if self._damage:
            self._fail(self._damage)
        if left > 0 and not self.truncated:
            self.truncated = True
            self._notes.append(f"the last record is cut at byte {self.offset}: all before it was used")
        return False

    def _fail(self, reason: str, at: int | None = None) -> None:
        where = "" if at is None else f" at byte {at}"
        msg = f"{self.path}: {reason}{where}"
        raise CaptureError(msg)

    def _begin(self, date: dt.date) -> None:
        """Map the file or start its stream, recognise it, and step over its header."""
        regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        if regular and not is_compressed(self._file.read(4)):
            self._map_whole()
        else:
            if regular:
                self._file.seek(0)
            try:
                self._stream = ByteStream(self._file)
            except OSError as error:
                self._fail(error.strerror or str(error))
            self._slide(0, HEAD_SIZE)
        head = bytes(self._buffer[: min(HEAD_SIZE, int(self._record["end"] - self._record["at"]))])
        if not head:
            self._fail(self._damage or "empty file", 0)
        self._record["midnight_ns"] = (date - dt.date(1970, 1, 1)).days * 86_400_000_000_000
        self._recognise(head)

    def _map_whole(self) -> None:
        if os.fstat(self._file.fileno()).st_size == 0:
            self._fail("empty file", 0)
        try:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            self._fail(error.strerror or str(error))
        else:
            self._map.madvise(mmap.MADV_SEQUENTIAL)
            self._buffer = np.frombuffer(self._map, np.uint8)
            self._set_chunk(len(self._buffer), offset=0)
            self._record["last"] = 1

    def _set_chunk(self, size: int, offset: int) -> None:
        start = self._buffer.ctypes.data
        self._record["at"], self._record["end"], self._record["origin"] = start, start + size, start - offset

    def _slide(self, left: int, need: int) -> None:
        """Move the `left` unread bytes to the front of the buffer and fill the rest from the stream."""
        assert self._stream is not None
        offset, old = (self.offset if len(self._buffer) else 0), self._buffer
        start = int(self._record["at"]) - old.ctypes.data if len(old) else 0
        if len(old) < need + HEAD_SIZE:
            size = CHUNK_SIZE if need < CHUNK_SIZE // 2 else BLOCK_SIZE_MAX + CHUNK_SIZE
            self._buffer = np.empty(size, np.uint8)
        self._buffer[:left] = old[start : start + left].copy()
        view, filled = memoryview(cast("Any", self._buffer)), left
        try:
            while filled < len(view):
                size = self._stream.read_into(view[filled:])
                if size == 0:
                    self._end_of_stream()
                    break
                filled += size
        except StreamError as error:
            self._damage, self._record["last"] = str(error), 1  # told when all before it was used
        except OSError as error:
            self._fail(error.strerror or str(error))
        self._set_chunk(filled, offset)

    def _end_of_stream(self) -> None:
        assert self._stream is not None
        self._record["last"] = 1
        if self._stream.truncated:
            self.truncated = True
            self._notes.append(f"the {self._stream.name} data is cut: all before it was used")
        if self._stream.trailing:
            self._notes.append(f"bytes behind the {self._stream.name} data were ignored")

    def _recognise(self, head: bytes) -> None:
        """Set format and header state from the first bytes."""
        record = self._record
        if head[:4] in PCAP_MAGICS:
            big_endian, fraction_ns = PCAP_MAGICS[head[:4]]
            if len(head) < PCAP_HEADER_SIZE:
                self._fail(f"pcap header of {PCAP_HEADER_SIZE} bytes is cut", len(head))
            number = int.from_bytes(head[20:24], "big" if big_endian else "little") & 0xFFFF
            link = int(link_of(number))
            if link == 0:
                self._fail(_failure(pcap.UNKNOWN_LINK, number), 20)
            record["format"], record["big_endian"], record["fraction_ns"] = (
                FORMAT_PCAP,
                big_endian,
                fraction_ns,
            )
            record["link"] = link
            record["at"] += PCAP_HEADER_SIZE
        elif head[:4] == PCAPNG_MAGIC:
            record["format"] = FORMAT_PCAPNG
            self.is_recording = application_of(head) == RECORDED_BY
        elif _is_itch(head):
            record["format"] = FORMAT_ITCH
        elif len(head) > 2 and head[:2] == b"\0\0" and SIZE[head[2]]:
            self._fail(_failure(pcap.ZERO_LENGTH, 0), 0)
        else:
            letters = "".join(sorted(m.letter for m in MESSAGES))
            known = f"pcap, pcapng, or ITCH 5.0 with 2-byte lengths (types {letters})"
            self._fail(f"not a capture: begins with 0x{head[:4].hex()}, which is none of {known},", 0)


def _failure(status: int, value: int) -> str:
    if status == pcap.UNKNOWN_LINK:
        name = LINK_NAMES.get(value, "unnamed")
        return f"link type {value} ({name}) is not supported: only Ethernet, Linux cooked and raw IP are"
    return _FAILURES[status].format(value=value)


def _is_itch(head: bytes) -> bool:
    """Say whether the bytes begin like length-framed ITCH: one of the messages fits the table."""
    at = 0
    while len(head) - at >= 3:
        size = int.from_bytes(head[at : at + 2], "big")
        if size == 0:
            return False
        if SIZE[head[at + 2]] == size:
            return True
        at += 2 + size
    return False
