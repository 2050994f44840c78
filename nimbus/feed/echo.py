"""The echo: a packet in, a fixed order out, and nothing between; the floor of tick-to-trade on a path.

It receives and sends as the daemon does, with the same source and the same `send`, and writes only what the
measurement needs: the sequence number of the packet into the order's ClOrdID.
"""

from __future__ import annotations

from typing import Final

from nimbus.feed.moldudp64 import MOLD
from nimbus.feed.packet import ETHERNET, IPV4, UDP
from nimbus.feed.source import next_frame
from nimbus.fix.digits import put_id
from nimbus.messages import PACKET
from ringbuf.agent import should_stop
from ringbuf.jit import external, kernel
from ringbuf.memory import load_i64, load_u32, store_i64, u8
from ringbuf.records import record

ECHO = record(
    "ECHO",
    """
    i8  stop      stop word
    i8  fd        connected TCP socket
    i8  order     address of the fixed order
    i8  size      its bytes
    i8  id_at     address of its ClOrdID
    i8  every     one packet in so many is answered
    i8  answered  orders sent
    i8  failed    sends that the kernel refused
    """,
)
CAUSE_BITS: Final = 35
_MSG_DONTWAIT, _MSG_NOSIGNAL = 0x40, 0x4000  # linux/socket.h
_PAYLOAD_AT: Final = ETHERNET.size + IPV4.size + UDP.size
_NEEDED: Final = _PAYLOAD_AT + MOLD.size
_SEQ_AT: Final = _PAYLOAD_AT + MOLD.at.seq
_E, _P = ECHO.at, PACKET.at

_send = external("send", "intp", "intc", "intp", "intp", "intc")


@kernel
def echo(state: int, source: int, packet: int) -> int:
    """Answer packets until the stop word; return how many were answered."""
    seen = answered = failed = 0
    while not should_stop(state):
        if next_frame(source, packet) <= 0 or load_u32(packet + _P.size) < _NEEDED:
            continue
        seen += 1
        if seen % load_i64(state + _E.every) != 0:
            continue
        answered += 1
        seq = u8(load_i64(packet + _P.frame_at) + _SEQ_AT)
        put_id(load_i64(state + _E.id_at), 1, (answered << CAUSE_BITS) | seq)
        size = load_i64(state + _E.size)
        if (
            _send(load_i64(state + _E.fd), load_i64(state + _E.order), size, _MSG_DONTWAIT | _MSG_NOSIGNAL)
            != size
        ):
            failed += 1
    store_i64(state + _E.answered, answered)
    store_i64(state + _E.failed, failed)
    return answered
