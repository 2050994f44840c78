"""The memory of one FIX connection: the TRANSPORT record, which the orders loop alone writes.

The control loop reads single words of it (numbers, times, counters) and talks by two rings, SESSION_IN and
SESSION_OUT.  Addresses of words that belong to others stand in it, so that this package needs to know neither
orders nor risk.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.framing import MESSAGE_MAX
from nimbus.messages import WIRE_BYTES_MAX
from ringbuf.jit import inlined
from ringbuf.memory import load_i64, store_i64
from ringbuf.records import record

RX_SIZE: Final = 4 * MESSAGE_MAX
RX_SLACK: Final = 64
TX_SIZE: Final = 2_048
assert WIRE_BYTES_MAX <= TX_SIZE

# TRANSPORT.phase.
DOWN, OPEN, WAITING, UP, LOST = 0, 1, 2, 3, 4
PHASE_NAMES: Final = ("down", "open", "waiting", "up", "lost")

# What the link word says; nimbus/orders/risk.py gives these numbers as the obstacle of R20.
LINK_UP, LINK_DOWN, LINK_GAP = 0, 1, 5

TRANSPORT = record(
    "TRANSPORT",
    """
    i8  out             ring of WIRE records to the venue
    i8  inbound         ring of WIRE records from it
    i8  session_in      ring of SESSION_IN records to the control loop
    i8  session_out     ring of SESSION_OUT records from it
    i8  next_seq        address of the word: MsgSeqNum of the next message out
    i8  link            address of the word: LINK_*
    i8  buffer_used     address of the word: bytes that wait in tx
    i8  rx              address of RX_SIZE bytes received
    i8  tx              address of TX_SIZE bytes: the rest of one message
    i8  scratch         address of the area where session messages are made
    i8  labels          address of the LABELS
    i8  peer            address of the PEER
    i8  header          address of the HEADER being read
    i8  poll_ns         an empty socket is asked again after this time
    i8  clock           address of the CLOCK that times the calls of send, 0 = they are not timed
    i8  pad             zero
    i8  fd              the connected socket, -1 = none
    i8  phase           DOWN, OPEN: connected, WAITING: for the control loop's word on the first message, UP,
    i8  tx_at           first byte of tx that waits
    i8  tx_end          end of them
    i8  rx_at           first byte of rx that was not taken
    i8  rx_end          end of the bytes received
    i8  send_errno      why nothing more is sent, 0 = no reason
    i8  recv_errno      why nothing more is received, 0 = no reason; -1 = closed by the peer or by us
    i8  next_in         number of the next message expected
    i8  highest         highest number received so far
    i8  gap_told        1 while a gap is open: the control loop knows
    i8  resend_owed     1 while a ResendRequest of the peer waits for the control loop's answer
    i8  released        1 once orders may leave
    i8  processed_in    every message below was processed
    i8  sent_ns         when bytes were last sent
    i8  received_ns     when bytes were last received
    i8  recv_at_ns      when the socket is to be asked next
    i8  called_ns       when send was last called, by that clock
    6i8 pad2            zero
    i8  losses          connections that ended
    i8  sent            messages sent, session messages too
    i8  sent_size       bytes of them
    i8  received        whole messages received
    i8  received_size   bytes received
    i8  delivered       application messages handed to the orders agent
    i8  partial_sends   messages that the socket took in part, or not at once
    i8  blocked_sends   times it took nothing
    i8  gap_fills       runs of numbers we filled instead of sending them again (S30)
    i8  unsent          messages numbered but not sent when a connection ended
    i8  garbled         messages thrown away unread (S17)
    i8  skipped_size    bytes thrown away
    i8  repeated        PossDup messages seen before (S12)
    i8  too_high        messages above a gap, not processed
    i8  stalls          cycles in which a full ring kept messages in the socket
    i8  oversized       alarm: executions too long for a WIRE record
    i8  unread          other application messages too long for one
    i8  late_commands   commands for a connection that had ended
    i8  times_off       executions taken although their SendingTime is off
    5i8 pad3            zero
    """,
)
_T = TRANSPORT.at
COUNTERS: Final = tuple(n for n in TRANSPORT.dtype.names or () if getattr(_T, n) >= _T.losses and n != "pad3")


@inlined
def count(transport: int, counter: int) -> None:
    """Count one event; counter: an offset of TRANSPORT."""
    store_i64(transport + counter, load_i64(transport + counter) + 1)


@inlined
def set_link(transport: int) -> None:
    """Write the link word that risk looks at, from everything that stands against an order."""
    is_broken = load_i64(transport + _T.send_errno) != 0 or load_i64(transport + _T.recv_errno) != 0
    link = LINK_UP
    if is_broken or load_i64(transport + _T.released) == 0:
        link = LINK_DOWN
    elif load_i64(transport + _T.gap_told) or load_i64(transport + _T.resend_owed):
        link = LINK_GAP
    store_i64(load_i64(transport + _T.link), link)
