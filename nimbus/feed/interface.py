"""Network interfaces as a socket sees them, by ioctl; cold.

Everything is asked through the caller's socket, since a socket belongs to the network namespace in which it
was made.  Numbers: linux/sockios.h, net/if.h, linux/if_arp.h, linux/ethtool.h.
"""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import os
import pathlib
import socket
import struct
import sys
from typing import Final, NoReturn

from nimbus.feed.kinds import SourceError

SIOCGIFCONF, SIOCGIFFLAGS, SIOCGIFHWADDR, SIOCGIFINDEX, SIOCETHTOOL = 0x8912, 0x8913, 0x8927, 0x8933, 0x8946
IFF_UP: Final = 1
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
ETHTOOL_GCHANNELS: Final = 0x3C
IFNAMSIZ, IFREQ_SIZE = 16, 40
ADDRESSES_MAX: Final = 256
_WHOLE_MAP: Final = ["0", "0", "4294967295"]  # uid_map of the first user namespace


def _ask(sock: socket.socket, request: int, name: str, rest: bytes = b"") -> bytes:
    """Return what follows the name in the answered struct ifreq."""
    ifreq = struct.pack(f"{IFNAMSIZ}s", name.encode()) + rest
    return fcntl.ioctl(sock, request, ifreq.ljust(IFREQ_SIZE, b"\0"))[IFNAMSIZ:]


def index_of(sock: socket.socket, name: str) -> int:
    """Return the interface's index.  Raises SourceError when there is none of that name."""
    if not 0 < len(name.encode()) < IFNAMSIZ:
        msg = f"interface {name!r}: a name has 1 to {IFNAMSIZ - 1} bytes"
        raise SourceError(msg)
    try:
        return int(struct.unpack_from("i", _ask(sock, SIOCGIFINDEX, name))[0])
    except OSError:
        msg = f"interface {name}: no such interface (`ip link show` lists them)"
        raise SourceError(msg) from None


def is_up(sock: socket.socket, name: str) -> bool:
    """Say whether there is such an interface and it is up."""
    try:
        return bool(struct.unpack_from("H", _ask(sock, SIOCGIFFLAGS, name))[0] & IFF_UP)
    except OSError:
        return False


def require_up(sock: socket.socket, name: str) -> None:
    """Raise SourceError when the interface is down."""
    index_of(sock, name)
    if not is_up(sock, name):
        msg = f"interface {name} is down: `ip link set {name} up`"
        raise SourceError(msg)


def require_ethernet(sock: socket.socket, name: str) -> None:
    """Raise SourceError when the interface's frames have no Ethernet header."""
    kind = struct.unpack_from("H", _ask(sock, SIOCGIFHWADDR, name))[0]
    if kind not in {ARPHRD_ETHER, ARPHRD_LOOPBACK}:
        msg = f"interface {name} is not Ethernet (hardware type {kind}): use the source udp"
        raise SourceError(msg)


def receive_queues(sock: socket.socket, name: str) -> int:
    """Return how many receive queues the interface has (1 when its driver does not tell)."""
    channels = array.array("I", [ETHTOOL_GCHANNELS, *[0] * 8])  # struct ethtool_channels
    try:
        _ask(sock, SIOCETHTOOL, name, struct.pack("P", channels.buffer_info()[0]))
    except OSError:
        return 1
    return max(channels[5] + channels[8], 1)  # rx_count, combined_count


class LinkWatch:
    """Count how often an interface that was up is found down, for sockets which are not told."""

    def __init__(self, name: str) -> None:
        self.name, self.downs, self._was_up = name, 0, True

    def look(self, sock: socket.socket) -> None:
        """Compare with the last look; what went down and came back in between is not seen."""
        up = is_up(sock, self.name)
        self.downs += self._was_up and not up
        self._was_up = up


def ipv4(text: str) -> ipaddress.IPv4Address:
    """Return the address.  Raises SourceError when the text is none."""
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        msg = f"{text!r} is no IPv4 address"
        raise SourceError(msg) from None


def interface_with(sock: socket.socket, address: str) -> str:
    """Return the name of the interface that has this IPv4 address.  Raises SourceError when none has."""
    room = array.array("B", bytes(ADDRESSES_MAX * IFREQ_SIZE))
    where, size = room.buffer_info()
    answer = fcntl.ioctl(sock, SIOCGIFCONF, struct.pack("ixxxxP", size, where))
    wanted, listed = ipv4(address).packed, room.tobytes()[: struct.unpack_from("i", answer)[0]]
    for at in range(0, len(listed), IFREQ_SIZE):
        if listed[at + IFNAMSIZ + 4 : at + IFNAMSIZ + 8] == wanted:  # sin_addr of struct sockaddr_in
            return listed[at : at + IFNAMSIZ].split(b"\0")[0].decode()
    msg = f"no interface has the address {address} (`ip -4 address show` lists them)"
    raise SourceError(msg)


def is_user_namespace() -> bool:
    """Say whether this process lives in a user namespace of its own, where bpf(2) is refused."""
    try:
        return pathlib.Path("/proc/self/uid_map").read_text().split() != _WHOLE_MAP
    except OSError:
        return False


def raise_refused(what: str, capability: str, error: OSError) -> NoReturn:
    """Raise the SourceError for a refused system call: what was refused, and how to be allowed it."""
    if error.errno not in {errno.EPERM, errno.EACCES}:
        msg = f"{what}: {error.strerror or os.strerror(error.errno or 0)}"
        raise SourceError(msg) from None
    python, words = os.path.realpath(sys.executable), capability.split(" and ")
    msg = (
        f"{what} needs {capability}: `setcap {','.join(words).lower()}+ep {python}`, "
        f"or AmbientCapabilities={' '.join(words)} of the service"
    )
    raise SourceError(msg) from None
