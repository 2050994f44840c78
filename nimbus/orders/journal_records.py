"""What the orders agent writes to the journal: the payload of each of its record types.

ORDER_OUT and CANCEL_OUT hold every variable value of the message, so its bytes are a pure function of the
record, the CompIDs and the epoch.  An EXECUTION is followed, in continuation records of the same group, by
the raw bytes it was parsed from.  A booked trade is also a FILL, whose payload is messages.FILL as it is.
"""

from __future__ import annotations

from typing import Final

from nimbus.messages import FILL
from ringbuf.records import Record, record

_WORD: Final = 8  # payloads are whole words

ORDER_OUT = record(
    "ORDER_OUT",
    """
    i8  order         order number
    i8  decision      decision behind it
    i8  cause_seq     market message behind it
    i8  px            limit price
    i8  qty           shares
    i8  sent_ns       time in 52 and 60
    i8  msg_seq_num   MsgSeqNum(34)
    i8  symbol        Symbol(55): 8 ASCII bytes, padded with spaces
    i8  limits_version  limits it was checked against
    i8  book_update   top of book it was checked against
    u2  locate        stock locate
    u2  strategy      strategy id
    u1  side          B or S
    u1  tif           TIF_*
    u1  timestamp_digits  fraction digits of 52 and 60
    u1  tag           TAG_*
    """,
    line=_WORD,
)
CANCEL_OUT = record(
    "CANCEL_OUT",
    """
    i8  order         order number
    i8  request       number of the cancel request, from 1
    i8  decision      decision behind it, 0 = an operator's or a mass cancel
    i8  cause_seq     market message behind it
    i8  qty           shares of the order
    i8  sent_ns       time in 52 and 60
    i8  msg_seq_num   MsgSeqNum(34)
    i8  symbol        Symbol(55)
    u2  locate        stock locate
    u2  strategy      strategy id of the order
    u1  side          B or S
    u1  timestamp_digits  fraction digits of 52 and 60
    2u1 pad           zero
    """,
    line=_WORD,
)
DENIAL = record(
    "DENIAL",
    """
    i8  decision      decision that was denied
    i8  cause_seq     market message behind it
    i8  px            limit price
    i8  qty           shares
    i8  order         cancel: order number it named
    i8  observed      what the check saw
    i8  limit         what is allowed
    i8  limits_version  limits it was checked against
    i8  book_update   top of book it was checked against, 0 = not looked at
    u2  locate        stock locate
    u2  strategy      strategy id
    u2  reason        Reason
    u1  kind          INTENT_*
    u1  side          B or S
    """,
    line=_WORD,
)
EXECUTION = record(
    "EXECUTION",
    """
    i8  order         order number, 0 = none found
    i8  venue_id      hash of OrderID(37)
    i8  exec_id       hash of ExecID(17)
    i8  last_px       LastPx(31), 0 = not a trade
    i8  last_qty      LastQty(32)
    i8  cum_qty       CumQty(14) as reported, or a status below zero
    i8  leaves_qty    LeavesQty(151) as reported, or a status below zero
    i8  msg_seq_num   MsgSeqNum(34), or a status below zero
    i8  status        what parsing gave: 1, or why the message was refused
    u2  raw_size      raw bytes that follow
    u1  msg_type      8, 9, or 0: not readable
    u1  exec_type     ExecType(150), 0 for a cancel reject
    u1  ord_status    OrdStatus(39)
    u1  verdict       VERDICT_*: what was done with it
    u1  reason        CxlRejReason(102) or OrdRejReason(103), 255 = none
    u1  unknown_tags  tags that were skipped, at most 255
    8u1 pad           zero
    """,
    line=_WORD,
)

VERDICT_APPLIED, VERDICT_REPEATED, VERDICT_CONFLICT, VERDICT_UNKNOWN_ORDER = 1, 2, 3, 4
VERDICT_REFUSED, VERDICT_UNREADABLE, VERDICT_SESSION = 5, 6, 7
VERDICT_NAMES: Final = (
    "", "applied", "repeated", "conflict", "unknown_order", "refused", "unreadable", "session",
)  # fmt: skip

PAYLOADS: Final[dict[str, Record]] = {
    "ORDER_OUT": ORDER_OUT, "CANCEL_OUT": CANCEL_OUT, "DENIAL": DENIAL, "EXECUTION": EXECUTION, "FILL": FILL,
}  # fmt: skip
