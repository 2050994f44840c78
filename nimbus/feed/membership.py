"""Membership of multicast groups, held by a UDP socket that nobody reads; cold.

A packet socket sees what reaches the interface; a switch sends a group's packets only to members.  The
socket is never bound, so the kernel queues nothing in it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import Final

from nimbus.feed.interface import index_of
from nimbus.feed.kinds import SourceError

IP_MULTICAST_ALL: Final = 49  # linux/in.h
BUFFER_SIZE: Final = 2_304  # the least that Linux gives


class Membership:
    """Keep an interface a member of groups; `sock` may be asked about interfaces."""

    def __init__(self, groups: Sequence[str], interface: str) -> None:
        """Join each multicast group among `groups` on the interface.  Raises SourceError."""
        wanted = [ipaddress.ip_address(group) for group in groups]
        self._groups = sorted({group.packed for group in wanted if group.is_multicast})
        self._index = 0
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_SIZE)
            self.sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
            self.join(index_of(self.sock, interface))
        except OSError as error:
            self.sock.close()
            msg = f"interface {interface}: cannot join {', '.join(groups)}: {error.strerror}"
            raise SourceError(msg) from None
        except SourceError:
            self.sock.close()
            raise

    def join(self, index: int) -> None:
        """Be a member on the interface of this index, and no longer on the one before."""
        for group in self._groups:
            if self._index:
                with contextlib.suppress(OSError):  # it went with its interface
                    self._set(socket.IP_DROP_MEMBERSHIP, group, self._index)
            self._set(socket.IP_ADD_MEMBERSHIP, group, index)
        self._index = index

    def close(self) -> None:
        """Leave the groups."""
        self.sock.close()

    def _set(self, option: int, group: bytes, index: int) -> None:
        """Set an option that takes a struct ip_mreqn."""
        self.sock.setsockopt(socket.IPPROTO_IP, option, struct.pack("4s4si", group, bytes(4), index))
