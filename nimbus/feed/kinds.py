"""What all packet sources share: their kinds, the head of a live source's record, and their error.

A source is one int64, the address of its record, and the record's first word is its kind.
"""

from __future__ import annotations

from typing import Final

SOURCE_CAPTURE, SOURCE_AF_PACKET, SOURCE_AF_XDP, SOURCE_UDP, SOURCE_DPDK = 0, 1, 2, 3, 4
SOURCE_NAMES: Final = ("capture", "af_packet", "af_xdp", "udp", "dpdk")

CLOSED: Final = -1  # first word once the owner has closed it
UNKNOWN_SOURCE: Final = -1_000  # status of a record whose first word is no kind

# The first line of the record of every source that has a descriptor.
SOCKET_HEAD: Final = """
    i8  kind          SOURCE_*
    i8  fd            its socket
    i8  received      frames given so far
    i8  link_downs    times the wait for packets found that the interface had gone down
    i8  socket_errors other errors of the socket, met by the hot loop
    i8  error         struct for getsockopt(SO_ERROR): the value
    i8  error_size    and its size
    i8  refused       frames taken from the socket and not given on
"""


class SourceError(Exception):
    """A source cannot be opened; the text is one line and names what is missing."""
