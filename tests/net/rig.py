"""Two network namespaces joined by a veth pair: an exchange on one side, us on the other.

The namespaces have no name: they live as long as a descriptor or a socket in them, so nothing is left behind
however a test ends.

    with Rig() as rig:
        rig.client.run(lambda: ...)          # in a thread whose namespace is the client's
        rig.exchange.start(["python", ...])  # a process there
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import errno
import os
import pathlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import pytest
from net import netlink

T = TypeVar("T")
CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
LIBC = ctypes.CDLL(None, use_errno=True)
SYS_CAPGET_VERSION = 0x20080522
MARK = 0x88B5  # ethertype for local experiments
CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_BPF = 12, 13, 21, 39


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def in_thread(work: Callable[[], T]) -> T:
    """Run work in a fresh thread, and return or raise what it does: its namespace and rights die with it."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def main() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001
            done.set_exception(error)

    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    return done.result()


def without_capabilities(work: Callable[[], T], *dropped: int) -> T:
    """Run work in a thread that has lost these capabilities."""

    def main() -> T:
        header = (ctypes.c_uint32 * 2)(SYS_CAPGET_VERSION, 0)
        words = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable of the low 32; of the high 32
        _check(LIBC.capget(header, words), "capget")
        for capability in dropped:
            words[capability // 32 * 3] &= ~(1 << capability % 32) & 0xFFFFFFFF
        _check(LIBC.capset(header, words), "capset")
        return work()

    return in_thread(main)


def own_user_namespace() -> None:
    """Move the calling process, which has one thread, into user and network namespaces of its own."""
    uid = os.geteuid()
    _check(LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNET), "unshare")
    pathlib.Path("/proc/self/uid_map").write_text(f"0 {uid} 1")


def packet_socket(interface: str, protocol: int) -> socket.socket:
    """Return an ordinary packet socket: whole frames of the interface, incoming ones only."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
    sock.settimeout(30)
    sock.bind((interface, protocol))
    return sock


def stamping_socket() -> socket.socket:
    """Return a socket that makes Linux stamp packets when they arrive, once it does so.

    Linux begins a moment after it was asked, and until then gives the time at which a datagram is read.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(30)
    for _ in range(3_000):
        sock.sendto(b"", sock.getsockname())
        time.sleep(0.002)
        before_ns = time.time_ns()
        _, control, _, _ = sock.recvmsg(8, 64)
        seconds, ns = struct.unpack("qq", control[0][2])
        if seconds * 10**9 + ns < before_ns:
            return sock
    msg = "Linux does not stamp packets at their arrival"
    raise TimeoutError(msg)


def mark() -> bytes:
    return bytes(12) + struct.pack(">H", MARK) + bytes(46)


class Side:
    """One namespace with its end of the cable."""

    peer: Side

    def __init__(self, interface: str, address: str) -> None:
        self.interface, self.address = interface, address
        self.namespace = in_thread(self._make)

    @staticmethod
    def _make() -> int:
        _check(LIBC.unshare(CLONE_NEWNET), "unshare")
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
            pathlib.Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        netlink.set_link("lo", up=True)
        return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)

    def enter(self) -> None:
        """Move the calling thread into the namespace."""
        _check(LIBC.setns(self.namespace, CLONE_NEWNET), "setns")

    def run(self, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run work in a thread that lives in the namespace; the sockets it makes stay there."""

        def main() -> T:
            self.enter()
            return work(*arguments, **options)

        return in_thread(main)

    def transmit(self, work: Callable[[], T]) -> T:
        """Run work here, on one core, and return when what it sent has been handled on the other side.

        Linux may put frames off when the machine is busy, core by core and in order: so a marker behind
        them, from the same core, says that they are through.
        """
        marks = self.peer.run(packet_socket, self.peer.interface, MARK)

        def main() -> T:
            os.sched_setaffinity(threading.get_native_id(), {min(os.sched_getaffinity(0))})
            result = work()
            with packet_socket(self.interface, 0) as sock:
                sock.send(mark())
            marks.recv(2_048)
            return result

        with marks:
            return self.run(main)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in the namespace."""
        return subprocess.Popen(command, preexec_fn=self.enter, **options)  # noqa: PLW1509

    def cable(self) -> None:
        """Dress this end: address, offloads off, up, multicast through it.  In the namespace."""
        netlink.offloads_off(self.interface)
        netlink.add_address(self.interface, self.address)
        netlink.set_link(self.interface, up=True)
        netlink.add_route(self.interface, "224.0.0.0", 4)

    def set_link(self, *, up: bool) -> None:
        """Pull this end up or down; routes through it are made again."""
        self.run(netlink.set_link, self.interface, up=up)
        if up:
            self.run(netlink.add_route, self.interface, "224.0.0.0", 4)
            self.peer.reach()
            self.reach()

    def reach(self) -> None:
        """Wait until frames from here arrive over there: Linux tells its queues of a new cable later."""
        marks = self.peer.run(packet_socket, self.peer.interface, MARK)
        marks.settimeout(0.01)
        with marks, self.run(packet_socket, self.interface, 0) as sock:
            for _ in range(3_000):
                sock.send(mark())
                with contextlib.suppress(TimeoutError):
                    marks.recv(2_048)
                    return
        msg = f"no frame of {self.interface} arrives"
        raise TimeoutError(msg)


class Rig:
    """The two sides: `exchange` (mdx0, 10.77.0.1) and `client` (mdc0, 10.77.0.2)."""

    def __init__(self) -> None:
        """Make namespaces and cable; skip the test when this machine does not allow it."""
        self._stack = contextlib.ExitStack()
        try:
            self.exchange, self.client = self._side("mdx0", "10.77.0.1"), self._side("mdc0", "10.77.0.2")
            self._stack.enter_context(stamping_socket())
            self.exchange.peer, self.client.peer = self.client, self.exchange
            self.plug()
        except OSError as error:
            self._stack.close()
            if error.errno in {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP}:
                pytest.skip(f"no network namespaces or veth here: {error.strerror}")
            raise

    def _side(self, interface: str, address: str) -> Side:
        side = Side(interface, address)
        self._stack.callback(os.close, side.namespace)
        return side

    def plug(self, queues: int = 1) -> None:
        """Join the sides by a new pair."""
        ours, other = self.exchange, self.client
        ours.run(netlink.make_veth, ours.interface, other.interface, other.namespace, queues)
        for side in (ours, other):
            side.run(side.cable)
        for side in (ours, other):
            side.reach()

    def unplug(self) -> None:
        """Remove the pair."""
        self.exchange.run(netlink.delete_link, self.exchange.interface)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the namespaces; they go when the last socket in them is closed."""
        self._stack.close()
