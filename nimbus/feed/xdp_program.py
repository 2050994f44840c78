"""XdpProgram: a small program that runs for each frame of an interface before the IP stack sees it.

It redirects subscribed datagrams (IPv4 UDP to a group and port, behind up to two VLAN tags, whole or the
first of fragments) to the AF_XDP socket of their receive queue, and passes everything else on, so that TCP on
the same interface goes on working.  Without a socket on that queue the datagram goes to the stack too.

It is assembled here and loaded by raw bpf(2): no library, no compiler.  It hangs on a bpf_link, which Linux
removes with our last descriptor: also after a kill.  Sources: linux/bpf.h, linux/bpf_common.h,
linux/if_link.h; instruction set: RFC 9669.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Sequence
from typing import Final

from nimbus.feed.decode import Subscription
from nimbus.feed.filters import ipv4_address
from nimbus.feed.interface import index_of, is_user_namespace, raise_refused, receive_queues
from nimbus.feed.kinds import SourceError
from nimbus.feed.packet import (
    ETHERNET,
    ETHERTYPE_IPV4,
    ETHERTYPE_QINQ,
    ETHERTYPE_VLAN,
    IPV4,
    PROTOCOL_UDP,
    UDP,
    VLAN,
    VLAN_TAGS_MAX,
)

SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}  # asm/unistd.h
BPF_MAP_CREATE, BPF_MAP_UPDATE_ELEM, BPF_PROG_LOAD, BPF_LINK_CREATE = 0, 2, 5, 28
BPF_MAP_TYPE_XSKMAP, BPF_PROG_TYPE_XDP, BPF_XDP = 17, 6, 37
BPF_FUNC_REDIRECT_MAP, BPF_PSEUDO_MAP_FD = 51, 1
XDP_PASS: Final = 2
MODES: Final = {"generic": 2, "native": 4}  # XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE
CAPABILITIES: Final = "CAP_BPF and CAP_NET_ADMIN and CAP_NET_RAW"
LOG_SIZE: Final = 65_536
_ATTR_SIZE: Final = 128

# Opcodes: class | size or operation | source.
_LDX_B, _LDX_H, _LDX_W, _LD_MAP = 0x71, 0x69, 0x61, 0x18
_MOV, _MOV_K, _ADD, _ADD_K, _AND_K, _LSH_K = 0xBF, 0xB7, 0x0F, 0x07, 0x57, 0x67
_JA, _JEQ_K, _JNE_K, _JNE32_K, _JGT, _CALL, _EXIT = 0x05, 0x15, 0x55, 0x56, 0x2D, 0x85, 0x95
# struct xdp_md
_DATA, _DATA_END, _QUEUE = 0, 4, 16
# Registers: context, frame (moves on), its end, scratch, scratch, address, port.
_R0, _CONTEXT, _FRAME, _END, _BEHIND, _VALUE, _ADDRESS, _PORT = 0, 6, 2, 3, 4, 5, 7, 8


class _Assembler:
    """Collect instructions with named jump targets."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str, int]] = []
        self._labels: dict[str, int] = {}

    def put(self, code: int, target: int = 0, source: int = 0, offset: int | str = 0, value: int = 0) -> None:
        """Add an instruction; offset: a number, or the label to jump to."""
        self._code.append((code, target, source, offset, value))

    def label(self, name: str) -> None:
        """Name the next instruction."""
        self._labels[name] = len(self._code)

    def need(self, size: int) -> None:
        """Pass the frame on unless `size` bytes are left at _FRAME."""
        self.put(_MOV, _BEHIND, _FRAME)
        self.put(_ADD_K, _BEHIND, value=size)
        self.put(_JGT, _BEHIND, _END, "pass")

    def bytes(self) -> bytes:
        """Return the machine code."""
        out = []
        for index, (code, target, source, offset, value) in enumerate(self._code):
            jump = self._labels[offset] - index - 1 if isinstance(offset, str) else offset
            out.append(struct.pack("<BBhi", code, target | source << 4, jump, value))
        return b"".join(out)


def _network(value: int, size: int) -> int:
    """Return what a native load of a big-endian field gives, as a signed 32-bit immediate."""
    native = int.from_bytes(value.to_bytes(size, "big"), "little")
    return native - (1 << 32) if native >= 1 << 31 else native


def _find_udp(a: _Assembler) -> None:
    """Load the destination address and port of a UDP datagram; anything else passes."""
    a.put(_MOV, _CONTEXT, 1)
    a.put(_LDX_W, _FRAME, 1, _DATA)
    a.put(_LDX_W, _END, 1, _DATA_END)
    a.need(ETHERNET.size)
    a.put(_LDX_H, _VALUE, _FRAME, ETHERNET.at.ethertype)
    for tag in range(VLAN_TAGS_MAX):
        a.put(_JEQ_K, _VALUE, 0, f"tag{tag}", _network(ETHERTYPE_VLAN, 2))
        a.put(_JNE_K, _VALUE, 0, "ip", _network(ETHERTYPE_QINQ, 2))
        a.label(f"tag{tag}")
        a.put(_ADD_K, _FRAME, value=VLAN.size)
        a.need(ETHERNET.size)
        a.put(_LDX_H, _VALUE, _FRAME, ETHERNET.at.ethertype)
    a.label("ip")
    a.put(_JNE_K, _VALUE, 0, "pass", _network(ETHERTYPE_IPV4, 2))
    a.put(_ADD_K, _FRAME, value=ETHERNET.size)
    a.need(IPV4.size)
    a.put(_LDX_B, _VALUE, _FRAME, IPV4.at.protocol)
    a.put(_JNE_K, _VALUE, 0, "pass", PROTOCOL_UDP)
    a.put(_LDX_H, _VALUE, _FRAME, IPV4.at.fragment)
    a.put(_AND_K, _VALUE, value=_network(0x1FFF, 2))
    a.put(_JNE_K, _VALUE, 0, "pass", 0)
    a.put(_LDX_W, _ADDRESS, _FRAME, IPV4.at.target)
    a.put(_LDX_B, _VALUE, _FRAME, IPV4.at.version_size)
    a.put(_AND_K, _VALUE, value=15)
    a.put(_LSH_K, _VALUE, value=2)
    a.put(_ADD, _FRAME, _VALUE)
    a.need(UDP.size)
    a.put(_LDX_H, _PORT, _FRAME, UDP.at.target)


def xdp_code(subscriptions: Sequence[Subscription], map_fd: int) -> bytes:
    """Return the program's machine code; () = every IPv4 UDP datagram is taken."""
    a = _Assembler()
    _find_udp(a)
    for index, wanted in enumerate(subscriptions):
        following = f"next{index}"
        if wanted.group is not None:
            a.put(_JNE32_K, _ADDRESS, 0, following, _network(ipv4_address(wanted.group), 4))
        if wanted.port:
            a.put(_JNE_K, _PORT, 0, following, _network(wanted.port, 2))
        a.put(_JA, offset="take")
        a.label(following)
    if subscriptions:
        a.put(_JA, offset="pass")
    a.label("take")
    a.put(_LD_MAP, 1, BPF_PSEUDO_MAP_FD, 0, map_fd)
    a.put(0)  # the upper half of the 64-bit immediate
    a.put(_LDX_W, 2, _CONTEXT, _QUEUE)
    a.put(_MOV_K, 3, value=XDP_PASS)  # the answer when the queue has no socket
    a.put(_CALL, value=BPF_FUNC_REDIRECT_MAP)
    a.put(_EXIT)
    a.label("pass")
    a.put(_MOV_K, _R0, value=XDP_PASS)
    a.put(_EXIT)
    return a.bytes()


def _bpf(command: int, attributes: bytes) -> int:
    """Call bpf(2); return its descriptor or 0.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(attributes.ljust(_ATTR_SIZE, b"\0"), _ATTR_SIZE)
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result = int(libc.syscall(number, command, room, _ATTR_SIZE))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class XdpProgram:
    """Own the program on an interface and the map of its sockets, one for each receive queue."""

    def __init__(
        self, sock: socket.socket, interface: str, subscriptions: Sequence[Subscription], mode: str
    ) -> None:
        """Load and attach.  sock: any socket of the namespace; mode: of MODES.  Raises SourceError."""
        self.interface, self.queues = interface, receive_queues(sock, interface)
        self._fds: list[int] = []
        try:
            sizes = struct.pack("<IIII", BPF_MAP_TYPE_XSKMAP, 4, 4, self.queues)
            self._map = self._keep(_bpf(BPF_MAP_CREATE, sizes))
            program = self._keep(_load(xdp_code(subscriptions, self._map)))
            self._attach(program, index_of(sock, interface), mode)
        except OSError as error:
            self.close()
            _raise(error, interface)
        except SourceError:
            self.close()
            raise

    def add(self, queue: int, fd: int) -> None:
        """Send the subscribed datagrams of a receive queue to this AF_XDP socket."""
        key, value = ctypes.c_uint32(queue), ctypes.c_uint32(fd)
        at = (ctypes.addressof(key), ctypes.addressof(value))
        _bpf(BPF_MAP_UPDATE_ELEM, struct.pack("<IIQQQ", self._map, 0, *at, 0))

    def close(self) -> None:
        """Detach: the interface is as before."""
        while self._fds:
            os.close(self._fds.pop())  # the link first

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _attach(self, program: int, index: int, mode: str) -> None:
        try:
            self._keep(_bpf(BPF_LINK_CREATE, struct.pack("<IIII", program, index, BPF_XDP, MODES[mode])))
        except OSError as error:
            if error.errno in {errno.EBUSY, errno.EEXIST}:
                name = self.interface
                msg = f"interface {name} has an XDP program already: `ip link set {name} xdp off`"
            elif error.errno in {errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE} and mode == "native":
                msg = (
                    f"interface {self.interface} has no native XDP at its MTU ({error.strerror}): use generic"
                )
            else:
                raise
            raise SourceError(msg) from None


def _load(code: bytes) -> int:
    """Load the program; return its descriptor.  Raises OSError, with the verifier's last words."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")  # of this program; the helper asks for none
    log = ctypes.create_string_buffer(LOG_SIZE)
    at = [ctypes.addressof(thing) for thing in (instructions, licence, log)]
    attributes = struct.pack("<IIQQIIQ", BPF_PROG_TYPE_XDP, len(code) // 8, at[0], at[1], 1, LOG_SIZE, at[2])
    try:
        return _bpf(BPF_PROG_LOAD, attributes)
    except OSError as error:
        with contextlib.suppress(IndexError):
            words = log.value.decode(errors="replace").strip().splitlines()[-1]
            raise OSError(error.errno, f"{error.strerror} ({words})") from None
        raise


def _raise(error: OSError, interface: str) -> None:
    """Raise the SourceError for a refused bpf(2)."""
    if error.errno == errno.EPERM and is_user_namespace():
        msg = "source af_xdp needs root: bpf(2) is refused in a user namespace, use the source af_packet"
        raise SourceError(msg) from None
    if error.errno == errno.EPERM:
        raise_refused("source af_xdp", CAPABILITIES, error)
    raise_refused(f"interface {interface}: no XDP program", CAPABILITIES, error)
