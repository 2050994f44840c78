"""Say what a message is to a session: its event, from header and numbers alone (S11-S19).

The kernel of transport.py gives the same answers for the initiator, and the two are compared.  Contents of a
Logon are judged by the engine.  What comes first hides what follows: whose message it is, then its time,
then its number.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nimbus.fix import tags
from nimbus.fix.message import SEQ_NONE, Address, Message, number, utc_ns
from nimbus.fix.table import Event

LOGON, HEARTBEAT, TEST_REQUEST, RESEND_REQUEST = "A", "0", "1", "2"
REJECT, SEQUENCE_RESET, LOGOUT = "3", "4", "5"
ADMIN: Final = frozenset({LOGON, HEARTBEAT, TEST_REQUEST, RESEND_REQUEST, REJECT, SEQUENCE_RESET, LOGOUT})
EXECUTIONS: Final = ("8", "9")
MSG_TYPE_MAX: Final = 2

_IN_ORDER: Final = {
    LOGON: Event.LOGON, HEARTBEAT: Event.HEARTBEAT, TEST_REQUEST: Event.TEST_REQUEST,
    RESEND_REQUEST: Event.RESEND_REQUEST, LOGOUT: Event.LOGOUT, SEQUENCE_RESET: Event.GAP_FILL,
}  # fmt: skip
_HIGH: Final = {LOGON: Event.LOGON_HIGH, RESEND_REQUEST: Event.RESEND_REQUEST_HIGH, LOGOUT: Event.LOGOUT}
_LOW: Final = {LOGON: Event.LOGON_LOW, RESEND_REQUEST: Event.RESEND_REQUEST, LOGOUT: Event.LOGOUT}

# Events that use up the number of a message that was the expected one.
CONSUMING: Final = frozenset({
    Event.LOGON, Event.LOGON_RESET, Event.LOGON_BAD, Event.HEARTBEAT, Event.TEST_REQUEST,
    Event.RESEND_REQUEST, Event.LOGOUT, Event.APPLICATION, Event.BAD_COMP_ID, Event.BAD_TIME,
    Event.BAD_TIME_TAKEN, Event.BAD_MSG_TYPE, Event.OVERSIZED,
})  # fmt: skip


class Expected(NamedTuple):
    """What the next message should look like.

    address: of the counterparty's messages, so its CompID is the sender.  is_order_sender: reports are taken
    whatever their time says (S37).
    """

    address: Address
    seq: int
    time_limit_ns: int
    is_order_sender: bool = False


def classify(message: Message, expected: Expected, now_ns: int) -> Event:
    """Return the event that a whole, ungarbled message is."""
    seq, kind = message.seq, message.msg_type
    address = expected.address
    if message.begin_string != address.begin_string:
        return Event.BAD_BEGIN_STRING
    if seq == SEQ_NONE:
        return Event.NO_NUMBER
    comp_ids = message.text(tags.SENDER_COMP_ID), message.text(tags.TARGET_COMP_ID)
    if comp_ids != (address.sender, address.target):
        return Event.BAD_COMP_ID
    sent_ns = utc_ns(message.get(tags.SENDING_TIME))
    if sent_ns < 0 or abs(now_ns - sent_ns) > expected.time_limit_ns:
        is_taken = expected.is_order_sender and kind in EXECUTIONS and seq == expected.seq
        return Event.BAD_TIME_TAKEN if is_taken else Event.BAD_TIME
    if kind == SEQUENCE_RESET and message.get(tags.GAP_FILL_FLAG) != b"Y":
        return Event.RESET if new_seq(message) >= expected.seq else Event.RESET_LOW
    if seq < expected.seq:
        return _below(message, kind, sent_ns)
    if seq > expected.seq:
        return _HIGH.get(kind, Event.TOO_HIGH)
    if kind == SEQUENCE_RESET and new_seq(message) < expected.seq:
        return Event.RESET_LOW
    if not 1 <= len(kind) <= MSG_TYPE_MAX or not (kind.isascii() and kind.isalnum()):
        return Event.BAD_MSG_TYPE
    return _IN_ORDER.get(kind, Event.APPLICATION)


def _below(message: Message, kind: str, sent_ns: int) -> Event:
    """Judge a message whose number was used before.

    OrigSendingTime(122) matters here alone: a message that is next in order is processed whatever it says,
    since to refuse it would lose an execution.
    """
    if not message.is_poss_dup:
        return _LOW.get(kind, Event.TOO_LOW)
    if kind == SEQUENCE_RESET:
        return Event.SEEN
    original = message.get(tags.ORIG_SENDING_TIME)
    if original is None:
        return Event.NO_ORIG_TIME
    return Event.LATE_ORIG_TIME if utc_ns(original) > sent_ns else Event.SEEN


def new_seq(message: Message) -> int:
    """Return NewSeqNo(36), or SEQ_NONE."""
    return number(message.get(tags.NEW_SEQ_NO))
