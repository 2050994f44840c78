"""UdpSocket: datagrams of one group, or of one address of ours, by recvmsg(2) from inside the kernel.

A system call a datagram, a few tenths of a microsecond when there is none.  It needs no capability, and is
what receives the replies of a rerequest server (the requests are sent on the same descriptor).  The receive
time is Linux's (SO_TIMESTAMPNS), which for a moment after the first socket was opened is the time of reading;
without one it is ours.

When the interface goes down nothing comes, and it goes on when the interface is up again; when another one
with the address takes its place, `refresh` joins there.  Numbers: asm-generic/socket.h, linux/socket.h.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import Any, Final

from nimbus.feed.interface import LinkWatch, index_of, interface_with, ipv4, require_up
from nimbus.feed.kinds import CLOSED, SOCKET_HEAD, SOURCE_UDP, SourceError
from nimbus.messages import LINK_UDP, PACKET, STAMP_KERNEL, STAMP_USER
from ringbuf.jit import external, inlined
from ringbuf.memory import load_i32, load_i64, load_u32, store_i64, store_u8, store_u16, store_u32
from ringbuf.records import record
from ringbuf.segment import Segment

SOL_SOCKET, SO_TIMESTAMPNS, SO_RXQ_OVFL, SO_RCVBUFFORCE, SO_MEMINFO = 1, 35, 40, 33, 55
SK_MEMINFO_DROPS, MEMINFO_SIZE = 8, 36  # linux/sock_diag.h: nine u32
IP_MULTICAST_ALL: Final = 49  # linux/in.h
MSG_TRUNC, MSG_DONTWAIT = 0x20, 0x40
DATAGRAM_SIZE_MAX: Final = 65_536
RECEIVE_BUFFER_DEFAULT: Final = (
    64 << 20
)  # half a second of small datagrams at 100,000/s, as Linux counts them
TRUNCATED_MAX: Final = 16  # datagrams passed over in one call
CMSGS_MAX: Final = 4
CLOCK_REALTIME: Final = 0
EINTR, EAGAIN, ENETDOWN = errno.EINTR, errno.EAGAIN, errno.ENETDOWN
# Errors that say that the descriptor or the record is wrong, and not that something happened to the network.
EBADF, EFAULT, EINVAL, ENOTSOCK = errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK

UDP_SOURCE = record(
    "UDP_SOURCE",
    f"""
    {SOCKET_HEAD}
    i8  buffer        address of the datagram (fixed)
    i8  line          PACKET.line (fixed)
    i8  truncated     datagrams longer than the buffer: refused
    i8  dropped       datagrams the full socket buffer had dropped when the last one arrived, modulo 2^32
    i8  unstamped     datagrams without a time from Linux
    i8  seconds       struct timespec of clock_gettime
    i8  nanoseconds   its second word
    i8  pad           zero

    i8  name          struct msghdr: address of the sender, not asked for
    i8  name_size     0
    i8  vectors       address of the iovec (fixed)
    i8  vector_count  1 (fixed)
    i8  control       address of control_bytes (fixed)
    i8  control_size  its size, then what was used of it
    i8  flags         MSG_TRUNC
    i8  pad2          zero

    i8  iovec         struct iovec: the buffer (fixed)
    i8  iovec_size    and its size (fixed)
    6i8 pad3          zero
    16i8 control_bytes  struct cmsghdr: size, level and type; its data
    """,
)
_A, _P = UDP_SOURCE.at, PACKET.at
_CONTROL_SIZE: Final = 128
_CMSG_HEADER: Final = 16

_recvmsg = external("recvmsg", "intp", "intc", "intp", "intc")
_errno_at = external("__errno_location", "intp")
_clock_gettime = external("clock_gettime", "intc", "intc", "intp")


@inlined
def _receive_ns(source: int) -> int:
    """Read the control messages of the datagram; return Linux's receive time, 0 when there is none."""
    at = source + _A.control_bytes
    end = at + min(load_i64(source + _A.control_size), _CONTROL_SIZE)
    ns = 0
    for _ in range(CMSGS_MAX):
        if end - at < _CMSG_HEADER:
            break
        size = load_i64(at)
        if size < _CMSG_HEADER or size > end - at:
            break
        if load_i32(at + 8) == SOL_SOCKET:
            kind = load_i32(at + 12)
            if kind == SO_TIMESTAMPNS and size >= _CMSG_HEADER + 16:
                ns = load_i64(at + _CMSG_HEADER) * 1_000_000_000 + load_i64(at + _CMSG_HEADER + 8)
            elif kind == SO_RXQ_OVFL and size >= _CMSG_HEADER + 4:
                store_i64(source + _A.dropped, load_u32(at + _CMSG_HEADER))
        at += (size + 7) & -8
    return ns


@inlined
def _socket_error(source: int, error: int) -> int:
    """Judge the error of recvmsg: 0 = nothing now (counted when it was one), else the fault."""
    if error == EAGAIN or error == EINTR:
        return 0
    if error == EBADF or error == ENOTSOCK or error == EFAULT or error == EINVAL:
        return -error
    counter = source + (_A.link_downs if error == ENETDOWN else _A.socket_errors)
    store_i64(counter, load_i64(counter) + 1)
    return 0


@inlined
def next_datagram(source: int, packet: int) -> int:
    """Fill the PACKET with the next datagram: 1, 0 = none, below 0 = the socket is at fault (-errno)."""
    for _ in range(TRUNCATED_MAX):
        store_i64(source + _A.control_size, _CONTROL_SIZE)
        size = _recvmsg(load_i64(source + _A.fd), source + _A.name, MSG_DONTWAIT)
        if size < 0:
            return _socket_error(source, load_i32(_errno_at()))
        recv_ns, stamp = _receive_ns(source), STAMP_KERNEL
        if load_i64(source + _A.flags) & MSG_TRUNC != 0:
            store_i64(source + _A.truncated, load_i64(source + _A.truncated) + 1)
            store_i64(source + _A.refused, load_i64(source + _A.refused) + 1)
            continue
        if recv_ns == 0:
            store_i64(source + _A.unstamped, load_i64(source + _A.unstamped) + 1)
            _clock_gettime(CLOCK_REALTIME, source + _A.seconds)
            recv_ns = load_i64(source + _A.seconds) * 1_000_000_000 + load_i64(source + _A.nanoseconds)
            stamp = STAMP_USER
        number = load_i64(source + _A.received) + 1
        store_i64(source + _A.received, number)
        store_i64(packet + _P.frame_at, load_i64(source + _A.buffer))
        store_i64(packet + _P.recv_ns, recv_ns)
        store_i64(packet + _P.number, number)
        store_u32(packet + _P.size, size)
        store_u32(packet + _P.wire_size, size)
        store_u16(packet + _P.link, LINK_UDP)
        store_u8(packet + _P.stamp, stamp)
        store_u8(packet + _P.line, load_i64(source + _A.line))
        return 1
    return 0


class UdpSocket:
    """Own a UDP socket and its UDP_SOURCE record; `state` goes to kernels, `fd` also to those that send.

    remarks: what the machine refused, one line each.
    """

    def __init__(
        self,
        segment: Segment,
        address: str,
        port: int,
        *,
        interface: str = "",
        line: int = 0,
        receive_buffer: int = RECEIVE_BUFFER_DEFAULT,
        datagram_size: int = DATAGRAM_SIZE_MAX,
        name: str = "udp",
    ) -> None:
        """Bind to (address, port): a multicast group, or an address of ours for unicast.

        interface: IPv4 address of the interface on which a group is joined; port: 0 = any free one, for
        unicast; line: of the PACKETs; receive_buffer: bytes asked of Linux; datagram_size: longer ones are
        refused; name: area in the segment.  Raises SourceError, one line.
        """
        self.address, self.interface, self.remarks = address, interface, list[str]()
        self._group = ipv4(address).is_multicast
        self._index, self._rejoins, self._watch = 0, 0, LinkWatch("lo")
        self._errors = {"link_downs": 0, "socket_errors": 0}
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._open(port, receive_buffer)
            self.state = segment.allocate(name, UDP_SOURCE.size)
            buffer = segment.allocate(f"{name}.bytes", datagram_size)
        except BaseException:
            self._sock.close()
            raise
        self._record: Any = segment.array(name, UDP_SOURCE)[0]
        words = {
            "kind": SOURCE_UDP, "fd": self._sock.fileno(), "buffer": buffer, "line": line, "vector_count": 1,
            "vectors": self.state + _A.iovec, "control": self.state + _A.control_bytes, "iovec": buffer,
            "iovec_size": datagram_size,
        }  # fmt: skip
        for word, value in words.items():
            self._record[word] = value

    def _open(self, port: int, receive_buffer: int) -> None:
        sock, address = self._sock, self.address
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        self._size_buffer(receive_buffer)
        if self._group:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # other readers of the group
            sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)  # what others joined is not ours
        owner = self.interface if self._group else address
        if owner != "0.0.0.0":  # noqa: S104 (a comparison)
            self._watch = LinkWatch(interface_with(sock, owner))
            require_up(sock, self._watch.name)
        try:
            sock.bind((address, port))
            if self._group:
                self._join()
        except OSError as error:
            msg = f"udp {address}:{port}: {error.strerror}"
            raise SourceError(msg) from None

    def _size_buffer(self, size: int) -> None:
        """Ask for a receive buffer; Linux doubles the number, and limits it without CAP_NET_ADMIN."""
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size // 2)
        except PermissionError:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size // 2)
        given = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if given < size // 2 * 2:
            self.remarks.append(
                f"udp {self.address}: receive buffer of {given:,} bytes instead of {size:,}: "
                f"`sysctl -w net.core.rmem_max={size // 2}`, or CAP_NET_ADMIN"
            )

    def _join(self) -> None:
        """Be a member of the group on the interface that has the address now, and on no other."""
        index = index_of(self._sock, interface_with(self._sock, self.interface))
        if index == self._index:
            return
        group = socket.inet_aton(self.address)
        if self._index:
            with contextlib.suppress(OSError):  # it went with its interface
                left = struct.pack("4s4si", group, bytes(4), self._index)
                self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, left)
            self._rejoins += 1
        joined = struct.pack("4s4si", group, bytes(4), index)  # struct ip_mreqn
        self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        self._index = index

    @property
    def fd(self) -> int:
        """Descriptor of the socket, for poll(2) and sendto(2)."""
        return int(self._record["fd"])

    @property
    def port(self) -> int:
        """Port it is bound to."""
        return int(self._sock.getsockname()[1])

    def refresh(self) -> None:
        """Take note of errors, and join on an interface that was made anew; cold, now and then."""
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error != 0:
            self._errors["socket_errors"] += 1
        self._watch.look(self._sock)
        self._errors["link_downs"] = self._watch.downs
        if self._group:
            with contextlib.suppress(OSError, SourceError):  # no such interface now: the next call tries
                self._join()

    def counters(self) -> dict[str, int]:
        """Return the counters; `sent to us = received + truncated + dropped` (+ what lies unread).

        dropped: by Linux, for want of room in the socket buffer (or for a wrong checksum); truncated:
        longer than datagram_size; unstamped: without Linux's receive time; rejoins: times the group was
        joined on another interface; link_downs: times the interface was found down; socket_errors: others.
        """
        self.refresh()
        answer = self._sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO_SIZE)
        hot = {name: int(self._record[name]) for name in ("received", "truncated", "unstamped")}
        both = {name: count + int(self._record[name]) for name, count in self._errors.items()}
        dropped = struct.unpack_from("I", answer, 4 * SK_MEMINFO_DROPS)[0]
        return hot | both | {"dropped": int(dropped), "rejoins": self._rejoins}

    def close(self) -> None:
        """Leave the group and close the socket; no kernel may use the source any more."""
        self._record["kind"] = CLOSED
        self._sock.close()
