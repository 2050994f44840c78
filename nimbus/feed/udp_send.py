"""UdpSender: datagrams out, by a plain send(2) on a connected UDP socket from inside the kernel.

A plain send was measured faster than a TX ring, so there is none.  `send_datagram` sends one; `send_paced`
sends a table of them at a rate, for load.  Numbers: asm-generic/socket.h, linux/socket.h.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, Final

import numpy as np

from nimbus.feed.interface import interface_with, ipv4, require_up
from nimbus.feed.kinds import SourceError
from ringbuf.atomics import load_acquire, pause
from ringbuf.jit import external, inlined, kernel
from ringbuf.memory import load_i32, load_i64, store_i64
from ringbuf.records import record
from ringbuf.segment import Segment

SO_SNDBUFFORCE: Final = 32
MSG_DONTWAIT, MSG_NOSIGNAL = 0x40, 0x4000
SEND_BUFFER_DEFAULT: Final = 4 << 20
CLOCK_MONOTONIC: Final = 1
EAGAIN, ENOBUFS, EINTR = errno.EAGAIN, errno.ENOBUFS, errno.EINTR
TRIES_MAX: Final = 100_000  # of one datagram that finds the socket buffer full
DATAGRAM_ROW_SIZE: Final = 16  # of the table of send_paced: address, size

UDP_SENDER = record(
    "UDP_SENDER",
    """
    i8  fd           its socket (fixed)
    i8  sent         datagrams handed to Linux
    i8  failed       datagrams that Linux did not take
    i8  full         of these: for want of room in the socket buffer
    i8  error        errno of the last one
    i8  seconds      struct timespec of clock_gettime
    i8  nanoseconds  its second word
    i8  late_ns      most that send_paced was behind its time
    """,
)
_A = UDP_SENDER.at

_send = external("send", "intp", "intc", "intp", "intp", "intc")
_errno_at = external("__errno_location", "intp")
_clock_gettime = external("clock_gettime", "intc", "intc", "intp")


@kernel
def send_datagram(sender: int, at: int, size: int) -> int:
    """Send the size bytes at `at`; return size, or -errno (counted): the datagram is lost then."""
    done = _send(load_i64(sender + _A.fd), at, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if done == size:
        store_i64(sender + _A.sent, load_i64(sender + _A.sent) + 1)
        return int(done)
    error = load_i32(_errno_at())
    store_i64(sender + _A.failed, load_i64(sender + _A.failed) + 1)
    store_i64(sender + _A.error, error)
    if error == EAGAIN or error == ENOBUFS:
        store_i64(sender + _A.full, load_i64(sender + _A.full) + 1)
    return -error


@inlined
def _monotonic_ns(sender: int) -> int:
    _clock_gettime(CLOCK_MONOTONIC, sender + _A.seconds)
    return load_i64(sender + _A.seconds) * 1_000_000_000 + load_i64(sender + _A.nanoseconds)


@kernel
def send_paced(sender: int, rows: int, count: int, per_second: int, stop: int) -> int:
    """Send `count` datagrams, one each 1/per_second (0 = as fast as it goes); return how many went out.

    rows: address of `count` pairs (address, size).  A sender that was held up catches up at full speed.  A
    full socket buffer is tried again.  Ends early when the stop word (0 = none) is set.
    """
    began_ns, sent = _monotonic_ns(sender), 0
    for index in range(count):
        if stop != 0 and load_acquire(stop) != 0:  # pairs with store_release in request_stop()
            break
        if per_second > 0:
            due_ns = began_ns + index * 1_000_000_000 // per_second
            now_ns = _monotonic_ns(sender)
            while now_ns < due_ns:
                pause()
                now_ns = _monotonic_ns(sender)
            store_i64(sender + _A.late_ns, max(load_i64(sender + _A.late_ns), now_ns - due_ns))
        row = rows + index * DATAGRAM_ROW_SIZE
        for _ in range(TRIES_MAX):
            done = send_datagram(sender, load_i64(row), load_i64(row + 8))
            if done >= 0 or (done != -EAGAIN and done != -ENOBUFS and done != -EINTR):
                break
        sent += 1 if done >= 0 else 0
    return sent


def warm_sender() -> None:
    """Compile send_datagram and send_paced, without a socket."""
    blank = np.zeros(1, UDP_SENDER.dtype)
    blank["fd"] = -1
    at = int(blank.ctypes.data)
    send_datagram(at, at, 0)
    send_paced(at, at, 0, 0, 0)


class UdpSender:
    """Own a UDP socket connected to one destination, and its UDP_SENDER record; `state` goes to kernels."""

    def __init__(
        self,
        segment: Segment,
        address: str,
        port: int,
        *,
        interface: str = "",
        ttl: int = 1,
        loop: bool = False,
        send_buffer: int = SEND_BUFFER_DEFAULT,
        name: str = "udp_sender",
    ) -> None:
        """Connect to (address, port).

        interface: IPv4 address of the interface by which a group is reached; ttl: hops its datagrams may
        make; loop: readers on this machine get them too; send_buffer: bytes asked of Linux; name: area in
        the segment.  Raises SourceError, one line.
        """
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._open(address, port, interface, ttl, loop=loop)
            self._size_buffer(send_buffer)
            self.state = segment.allocate(name, UDP_SENDER.size)
        except BaseException:
            self._sock.close()
            raise
        self._record: Any = segment.array(name, UDP_SENDER)[0]
        self._record["fd"] = self._sock.fileno()

    def _open(self, address: str, port: int, interface: str, ttl: int, *, loop: bool) -> None:
        sock = self._sock
        try:
            if ipv4(address).is_multicast:
                require_up(sock, interface_with(sock, interface))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, loop)
            sock.connect((address, port))
        except OSError as error:
            msg = f"udp to {address}:{port}: {error.strerror}"
            raise SourceError(msg) from None

    def _size_buffer(self, size: int) -> None:
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size // 2)
        except PermissionError:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size // 2)

    @property
    def fd(self) -> int:
        """Descriptor of the socket."""
        return int(self._record["fd"])

    def counters(self) -> dict[str, int]:
        """Return the counters: sent, failed, of these full (no room), the last errno, most late by ns."""
        return {name: int(self._record[name]) for name in ("sent", "failed", "full", "error", "late_ns")}

    def close(self) -> None:
        """Close the socket; no kernel may send any more."""
        self._sock.close()
