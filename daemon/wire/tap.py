"""The tap: one packet socket at the venue's end that sees market data leave and orders arrive, on one clock.

Both stamps are the same kernel's, taken at the same interface.  An order's ClOrdID ends with the sequence
number of the message behind it, so the pairs are exact; what finds no partner is counted, and so are frames
that the tap itself dropped.  Market data is known by its ports, orders by the acceptor's port.

Run as a process of the venue's namespace, python -m daemon.wire.tap INTERFACE MARKET_PORT ORDER_PORT
OUT.json, it says "ready" on stdout, and ends at SIGTERM.
"""

from __future__ import annotations

import contextlib
import pathlib
import signal
import socket
import struct
import sys
from typing import Final

import orjson

from nimbus.feed.af_packet import ETH_P_ALL, PACKET_STATISTICS, SOL_PACKET
from nimbus.feed.moldudp64 import END_OF_SESSION, MOLD
from nimbus.feed.udp import SO_TIMESTAMPNS

SO_RCVBUFFORCE: Final = 33
BUFFER_SIZE: Final = 64 << 20
FRAME_SIZE: Final = 2_048
POLL_S: Final = 0.2
_ETHERNET, _IPV4, _UDP, _TCP = 14, 0x0800, 17, 6
_ORDER, _ID, _ID_SIZE, _CAUSE_SIZE = b"\x0135=D\x01", b"\x0111=", 16, 7
_BASE: Final = 32


class Tap:
    """Pairs of (message sent, order received); feed it frames with their time.

    ticks_ns: for each order the time from the packet of its cause; unmatched: orders without one.
    """

    def __init__(self, market_port: int, order_port: int) -> None:
        self._market_port, self._order_port = market_port, order_port
        self._sent: dict[int, int] = {}
        self._seen: set[bytes] = set()
        self.ticks_ns: list[int] = []
        self.packets = self.orders = self.unmatched = self.repeats = 0

    def take(self, frame: bytes, at_ns: int) -> None:
        """Look at one Ethernet frame."""
        if len(frame) < _ETHERNET + 20 or struct.unpack_from(">H", frame, 12)[0] != _IPV4:
            return
        header, protocol = (frame[_ETHERNET] & 15) * 4, frame[_ETHERNET + 9]
        at = _ETHERNET + header
        if len(frame) < at + 8:
            return
        target = struct.unpack_from(">H", frame, at + 2)[0]
        if protocol == _UDP and target == self._market_port:
            self._take_market(frame[at + 8 :], at_ns)
        elif protocol == _TCP and target == self._order_port and len(frame) > at + 20:
            end = _ETHERNET + struct.unpack_from(">H", frame, _ETHERNET + 2)[0]
            self._take_orders(frame[at + (frame[at + 12] >> 4) * 4 : end], at_ns)

    def _take_market(self, payload: bytes, at_ns: int) -> None:
        if len(payload) < MOLD.size:
            return
        first, count = struct.unpack_from(">QH", payload, MOLD.at.seq)
        if count == END_OF_SESSION:
            return
        self.packets += 1
        for seq in range(first, first + count):
            self._sent.setdefault(seq, at_ns)

    def _take_orders(self, payload: bytes, at_ns: int) -> None:
        """Take each NewOrderSingle of a TCP segment; messages are not cut on a quiet wire."""
        at = payload.find(_ORDER)
        while at >= 0:
            begin = payload.find(_ID, at) + len(_ID)
            name = payload[begin : begin + _ID_SIZE]
            if begin >= len(_ID) and len(name) == _ID_SIZE:
                self._take_order(name, at_ns)
            at = payload.find(_ORDER, at + 1)

    def _take_order(self, name: bytes, at_ns: int) -> None:
        if name in self._seen:  # a segment sent again
            self.repeats += 1
            return
        self._seen.add(name)
        self.orders += 1
        with contextlib.suppress(ValueError):
            sent_ns = self._sent.get(int(name[-_CAUSE_SIZE:], _BASE))
            if sent_ns is not None:
                self.ticks_ns.append(at_ns - sent_ns)
                return
        self.unmatched += 1

    def result(self, dropped: int) -> dict[str, object]:
        """Return what was seen as plain values."""
        return {
            "ticks_ns": self.ticks_ns, "packets": self.packets, "orders": self.orders,
            "unmatched": self.unmatched, "repeats": self.repeats, "dropped": dropped,
        }  # fmt: skip


def listen(interface: str) -> socket.socket:
    """Open the packet socket of the tap; both directions, stamped by the kernel."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_SIZE)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.bind((interface, ETH_P_ALL))
    sock.settimeout(POLL_S)
    return sock


def main(interface: str, market_port: str, order_port: str, out: str) -> None:
    """Tap until SIGTERM, then write what was seen."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    tap, sock = Tap(int(market_port), int(order_port)), listen(interface)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not stopped:
        with contextlib.suppress(TimeoutError):
            frame, control, _flags, _address = sock.recvmsg(FRAME_SIZE, 64)
            for level, kind, data in control:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack("qq", data[:16])
                    tap.take(frame, seconds * 1_000_000_000 + nanoseconds)
    _seen, dropped = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    pathlib.Path(out).write_bytes(orjson.dumps(tap.result(dropped)))


if __name__ == "__main__":
    main(*sys.argv[1:])
