"""Requests for missing messages: MoldUDP64 request packets, sent by the kernel to each server in turn.

The socket belongs to a source, which hands the replies to open_packet as line 2.  A request that the system
does not take is counted and comes again in the next round: nothing waits for a socket.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from nimbus.feed.arbiter_state import ARBITER, SERVER
from nimbus.feed.soupbin import MOLD_REQUEST
from nimbus.feed.state import FEED, bump
from ringbuf.jit import external, kernel
from ringbuf.memory import load_i64, put_u2, put_u8, store_i64

_F, _A, _S, _M = FEED.at, ARBITER.at, SERVER.at, MOLD_REQUEST.at
_SERVER_SIZE, _REQUEST_SIZE = SERVER.size, MOLD_REQUEST.size
_AF_INET: Final = 2  # Linux
_ADDRESS_SIZE: Final = 16
_FLAGS: Final = 0x40 | 0x4000  # MSG_DONTWAIT | MSG_NOSIGNAL

_sendto = external("sendto", "intp", "intc", "intp", "intp", "intc", "intp", "intc")


def socket_address(host: str, port: int) -> bytes:
    """Return the struct sockaddr_in of an IPv4 address; raises ValueError for anything else."""
    if not 0 < port <= 0xFFFF:
        msg = f"port {port} is not between 1 and 65535"
        raise ValueError(msg)
    return struct.pack("=H", _AF_INET) + struct.pack(">H4s8x", port, ipaddress.IPv4Address(host).packed)


@kernel
def send_request(feed: int, arbiter: int) -> None:
    """Send the request that is due, ARBITER.request_first and request_count, to the server in turn."""
    packet = arbiter + _A.request
    put_u8(packet + _M.session, load_i64(feed + _F.session_high))
    put_u2(packet + _M.session + 8, load_i64(feed + _F.session_low))
    put_u8(packet + _M.seq, load_i64(arbiter + _A.request_first))
    put_u2(packet + _M.count, load_i64(arbiter + _A.request_count))
    store_i64(arbiter + _A.request_count, 0)
    server = arbiter + _A.server_rows + load_i64(arbiter + _A.server) * _SERVER_SIZE
    fd, sent = load_i64(arbiter + _A.fd), -1
    if fd >= 0:
        sent = _sendto(fd, packet, _REQUEST_SIZE, _FLAGS, server + _S.address, _ADDRESS_SIZE)
    if sent == _REQUEST_SIZE:
        bump(arbiter + _A.requests, 1)
        bump(server + _S.requests, 1)
    else:
        bump(arbiter + _A.unsent, 1)
        bump(server + _S.failures, 1)
