"""The FIX session engine: runs the table, keeps its timers, says what to send.  No I/O, no numbers.

A driver gives it events and the time, and is its Port: it owns numbers and bytes.  session.py drives it from
a byte stream, initiator.py beside the transport kernel.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, NamedTuple, Protocol

from nimbus.fix import tags
from nimbus.fix.classify import HEARTBEAT as HEARTBEAT_TYPE
from nimbus.fix.classify import LOGON, LOGOUT, REJECT, RESEND_REQUEST, TEST_REQUEST
from nimbus.fix.message import SEQ_NONE, Message, fields, number
from nimbus.fix.settings import HEARTBEAT_S_MAX, Reset, Role, SessionSettings, to_ns
from nimbus.fix.table import Event, State, row_of

NOTICES_MAX: Final = 1_000
TEST_AFTER, DEAD_AFTER = 1.2, 2.4  # x HeartBtInt (S21)

# SessionRejectReason(373): its text, and what each refused event says: (373, RefTagID(371) or 0).
REASONS: Final = {
    1: "Required tag missing",
    5: "Value is incorrect (out of range) for this tag",
    9: "CompID problem",
    10: "SendingTime accuracy problem",
    11: "Invalid MsgType",
}
REJECTS: Final = {
    Event.BAD_COMP_ID: (9, 0),
    Event.BAD_TIME: (10, 0),
    Event.NO_ORIG_TIME: (1, tags.ORIG_SENDING_TIME),
    Event.LATE_ORIG_TIME: (10, 0),
    Event.BAD_MSG_TYPE: (11, 0),
    Event.RESET_LOW: (5, 0),
}
_NOT_A_LOGON: Final = frozenset({
    Event.HEARTBEAT, Event.TEST_REQUEST, Event.RESEND_REQUEST, Event.RESEND_REQUEST_HIGH, Event.GAP_FILL,
    Event.RESET, Event.APPLICATION, Event.TOO_HIGH,
})  # fmt: skip
_NO_MESSAGE: Final = Message(b"", ())


class Kind(Enum):
    """What an operator may want to know; the values are the names of log events."""

    LOGGED_ON = "fix_logged_on"
    LOGGED_OUT = "fix_logged_out"
    LOGOUT_SENT = "fix_logout_sent"
    REFUSED = "fix_logon_refused"
    HELD = "fix_held"  # no reconnect until a person acts (S04)
    GAP = "fix_gap"
    RECOVERED = "fix_gap_filled"
    RESENT = "fix_resent"
    REJECT_SENT = "fix_reject_sent"
    TIMED_OUT = "fix_timed_out"
    FAULT = "fix_fault"  # on our side
    VIOLATION = "fix_violation"  # on the peer's: a message that has no place in this state
    LOST = "fix_disconnected"
    OVERSIZED = "fix_oversized"
    UNREACHABLE = "fix_unreachable"
    IN_DOUBT = "fix_orders_in_doubt"


class Notice(NamedTuple):
    """Something that happened to the session; orders: how many are in doubt."""

    kind: Kind
    text: str = ""
    orders: int = 0


class Port(Protocol):
    """What the engine needs of its driver."""

    @property
    def next_in(self) -> int:
        """Number of the next message expected."""

    @property
    def next_out(self) -> int:
        """Number of the next message out."""

    @property
    def highest(self) -> int:
        """Highest number received so far, the gap included."""

    @property
    def sent_ns(self) -> int:
        """When the last bytes were sent."""

    @property
    def received_ns(self) -> int:
        """When the last bytes were received."""

    def send(self, msg_type: str, body: bytes, now_ns: int) -> int:
        """Send a session message with the next number; return it, 0 = not known yet."""

    def resend(self, first: int, last: int, now_ns: int) -> None:
        """Answer for the numbers first to last that were sent before; last 0 = to the end."""

    def deliver(self, message: Message) -> None:
        """Hand over an application message."""

    def establish(self) -> None:
        """Let what follows the peer's Logon be processed."""

    def release(self) -> None:
        """Let orders out."""

    def reset(self, next_in: int) -> None:
        """Set the outgoing number to 1, the incoming one to next_in, and forget what was sent."""

    def close(self) -> None:
        """Close the connection once everything has been sent."""


class Engine:
    """One session: its state and timers.  `on` takes an event, `tick` the time.

    settle: an order sender waits, after Logon, for the answer to a TestRequest.  What the peer wants sent
    again it has asked for by then, so no GapFill of ours can run over a new order.
    """

    def __init__(self, settings: SessionSettings, port: Port, *, settle: bool = False) -> None:
        self.settings, self._port = settings, port
        self.is_settled = not settle
        self.state = State.CLOSED
        self.notices: deque[Notice] = deque(maxlen=NOTICES_MAX)
        self.heartbeat_ns = to_ns(settings.heartbeat_s)
        self.is_reset_asked = False  # our Logon carries, or carried, 141=Y
        self.is_held = False
        self.loss_reason = ""  # why the connection ended, for the notice
        self._event, self._message, self._before = Event.NONE, _NO_MESSAGE, State.CLOSED  # what `on` is at
        self._now_ns, self._fault_text = 0, ""
        self._since_ns = 0  # when the state was entered
        self._deadline_ns = 0  # of LOGOUT_SENT and CLOSING
        self._test_ns = 0  # when our open TestRequest went out, 0 = none is open
        self._probed_ns = 0  # when the TestRequest behind the Logon went out
        self._asked_ns, self._asked_to, self._asked_from, self._tries = 0, 0, 0, 0

    # ---------------------------------------------------------------- events

    def on(self, event: Event, now_ns: int, message: Message = _NO_MESSAGE) -> None:
        """Run the row of (state, event)."""
        self._event, self._message, self._now_ns, self._fault_text = event, message, now_ns, ""
        if event in (Event.LOGON, Event.LOGON_HIGH, Event.LOGON_LOW):
            self._event = self._judge_logon(event, message)
        self._before, row = self.state, row_of(self.state, self._event)
        self.state = row.state
        if self._before is not row.state:
            self._since_ns = now_ns
        for name in row.actions:
            getattr(self, f"_do_{name}")()

    def _judge_logon(self, event: Event, message: Message) -> Event:
        """Look into a Logon: 98, 108 and 141 as agreed (S02, S05); the fault stands in _fault_text."""
        is_acceptor, agreed = self.settings.role is Role.ACCEPTOR, self.settings
        interval, is_reset = (
            number(message.get(tags.HEART_BT_INT)),
            message.get(tags.RESET_SEQ_NUM_FLAG) == b"Y",
        )
        fault = ""
        if message.get(tags.ENCRYPT_METHOD) != b"0":
            fault = "EncryptMethod is not 0"
        elif not 1 <= interval <= HEARTBEAT_S_MAX or not (is_acceptor or interval == agreed.heartbeat_s):
            fault = "HeartBtInt is not as agreed"
        elif is_reset and (agreed.reset is Reset.NEVER if is_acceptor else not self.is_reset_asked):
            fault = "ResetSeqNumFlag is not agreed"
        elif is_reset and message.seq != 1:
            fault = "MsgSeqNum is not 1 with ResetSeqNumFlag"
        elif self.is_reset_asked and not is_acceptor and not is_reset:
            fault = "ResetSeqNumFlag is missing"
        if fault:
            self._fault_text = fault
            return Event.LOGON_BAD
        return Event.LOGON_RESET if is_reset else event

    # ---------------------------------------------------------------- time

    def tick(self, now_ns: int) -> None:
        """Raise the timer events that are due."""
        event = self._due(now_ns)
        if event is not Event.NONE:
            self.on(event, now_ns)

    def _due(self, now_ns: int) -> Event:
        state, waited = self.state, now_ns - self._since_ns
        if state in (State.AWAITING_LOGON, State.LOGON_SENT):
            return Event.LOGON_TIMEOUT if waited >= to_ns(self.settings.logon_timeout_s) else Event.NONE
        if state in (State.LOGOUT_SENT, State.CLOSING):
            return Event.LOGOUT_TIMEOUT if now_ns >= self._deadline_ns else Event.NONE
        if state is State.CLOSED:
            return Event.NONE
        silence = now_ns - self._port.received_ns
        if self._port.received_ns >= self._test_ns:  # any byte is a sign of life (S23)
            self._test_ns = 0
        if silence >= DEAD_AFTER * self.heartbeat_ns:
            return Event.DEAD
        if silence >= TEST_AFTER * self.heartbeat_ns and not self._test_ns:
            return Event.SILENCE
        if now_ns - self._port.sent_ns >= self.heartbeat_ns and not self._test_ns:
            return Event.HEARTBEAT_DUE
        if state is State.RECOVERING:
            return self._gap_event(now_ns)
        is_late = not self.is_settled and now_ns - self._probed_ns >= to_ns(self.settings.logon_timeout_s)
        return Event.UNSETTLED if is_late else Event.NONE

    def _gap_event(self, now_ns: int) -> Event:
        next_in = self._port.next_in
        if next_in > self._port.highest:
            return Event.GAP_FILLED
        if self._asked_to and next_in > self._asked_to:
            return Event.CHUNK_FILLED
        if next_in != self._asked_from:  # it moves: the request is being answered
            self._asked_from, self._asked_ns, self._tries = next_in, now_ns, 0
        if now_ns - self._asked_ns < to_ns(self.settings.resend_timeout_s):
            return Event.NONE
        return Event.RESEND_TIMEOUT if self._tries < self.settings.resend_tries else Event.GAP_LOST

    def check_gap(self, now_ns: int) -> None:
        """Raise the event of an open gap that is due; a driver calls it when the number has moved."""
        if self.state is State.RECOVERING:
            event = self._gap_event(now_ns)
            if event is not Event.NONE:
                self.on(event, now_ns)

    # ---------------------------------------------------------------- actions

    def _tell(self, kind: Kind, text: str = "") -> None:
        self.notices.append(Notice(kind, text))

    def _send_logon(self, *, is_reset: bool) -> None:
        pairs: list[tuple[int, bytes | str | int]] = [
            (tags.ENCRYPT_METHOD, 0),
            (tags.HEART_BT_INT, self.heartbeat_ns // to_ns(1)),
        ]
        pairs += [(tags.RESET_SEQ_NUM_FLAG, "Y")] if is_reset else []
        if self.settings.username:
            pairs += [(tags.USERNAME, self.settings.username), (tags.PASSWORD, self.settings.password)]
        if self.settings.dialect.appl_ver_id:
            pairs.append((tags.DEFAULT_APPL_VER_ID, self.settings.dialect.appl_ver_id))
        self._port.send(LOGON, fields(pairs), self._now_ns)

    def _do_send_logon(self) -> None:
        self._test_ns = 0
        self.heartbeat_ns = to_ns(self.settings.heartbeat_s)
        if self.is_reset_asked:
            self._port.reset(1)
        self._send_logon(is_reset=self.is_reset_asked)

    def _do_answer_logon(self) -> None:
        self._test_ns = 0
        self.heartbeat_ns = to_ns(number(self._message.get(tags.HEART_BT_INT)))
        self._send_logon(is_reset=self._event is Event.LOGON_RESET)
        self._do_establish()

    def _do_establish(self) -> None:
        self._port.establish()
        self._tell(Kind.LOGGED_ON)

    def _do_probe(self) -> None:
        """Ask for a sign that the peer has dealt with our Logon; after what it has to resend, in order."""
        if not self.is_settled:
            self._probed_ns = self._now_ns
            self._do_test()

    def _do_settle(self) -> None:
        is_answer = self._message.text(tags.TEST_REQ_ID) == self.settings.test_req_id
        if is_answer and not self.is_settled:
            self.is_settled = True
            self._port.release()

    def _do_reset(self) -> None:
        self._port.reset(2)  # the Logon that asks for it has number 1

    def _do_hold(self) -> None:
        self.is_held = True
        self._tell(Kind.HELD, self._logout_text())

    def _do_refused(self) -> None:
        self._tell(Kind.REFUSED, self._message.text(tags.TEXT))

    def _do_ask(self) -> None:
        """Ask for what is missing, once for each range (S09); in chunks where the venue wants that (S35)."""
        first, chunk = self._port.next_in, self.settings.resend_chunk
        self._asked_to = min(first + chunk - 1, self._port.highest) if chunk else 0
        self._asked_from, self._asked_ns = first, self._now_ns
        self._tries = self._tries + 1 if self._event is Event.RESEND_TIMEOUT else 1
        if self._before is not State.RECOVERING:
            self._tell(Kind.GAP, f"expected {first}, received {self._port.highest}")
        self._port.send(
            RESEND_REQUEST,
            fields([(tags.BEGIN_SEQ_NO, first), (tags.END_SEQ_NO, self._asked_to)]),
            self._now_ns,
        )

    def _do_recovered(self) -> None:
        self._tell(Kind.RECOVERED, f"next expected is {self._port.next_in}")

    def _do_deliver(self) -> None:
        self._port.deliver(self._message)

    def _do_answer_test(self) -> None:
        body = fields([(tags.TEST_REQ_ID, self._message.get(tags.TEST_REQ_ID) or b"")])
        self._port.send(HEARTBEAT_TYPE, body, self._now_ns)

    def _do_heartbeat(self) -> None:
        self._port.send(HEARTBEAT_TYPE, b"", self._now_ns)

    def _do_test(self) -> None:
        self._test_ns = self._now_ns
        self._port.send(TEST_REQUEST, fields([(tags.TEST_REQ_ID, self.settings.test_req_id)]), self._now_ns)

    def _do_resend(self) -> None:
        """Answer a ResendRequest at once, before our own (S10); one that makes no sense is rejected."""
        first = number(self._message.get(tags.BEGIN_SEQ_NO))
        last = number(self._message.get(tags.END_SEQ_NO))
        if not 1 <= first < self._port.next_out or last == SEQ_NONE or 0 < last < first:
            self._reject(5, tags.BEGIN_SEQ_NO)
            return
        self._port.resend(first, last if last < self._port.next_out else 0, self._now_ns)
        self._tell(Kind.RESENT, f"{first} to {last}")
        self._do_probe()  # the last one may lie in what was just filled

    def _do_reject(self) -> None:
        self._reject(*REJECTS[self._event])

    def _reject(self, reason: int, tag: int) -> None:
        pairs: list[tuple[int, bytes | str | int]] = [
            (tags.REF_SEQ_NUM, max(self._message.seq, 0)),
            (tags.TEXT, REASONS[reason]),
        ]
        pairs += [(tags.REF_TAG_ID, tag)] if tag else []
        pairs += [(tags.REF_MSG_TYPE, self._message.msg_type), (tags.SESSION_REJECT_REASON, reason)]
        self._port.send(REJECT, fields(pairs), self._now_ns)
        self._tell(Kind.REJECT_SENT, f"{self._message.msg_type} {self._message.seq}: {REASONS[reason]}")

    def _logout_text(self) -> str:
        event = self._event
        if event in (Event.TOO_LOW, Event.LOGON_LOW):
            return f"MsgSeqNum too low, expecting {self._port.next_in} but received {self._message.seq}"
        if event is Event.BAD_BEGIN_STRING:
            return "Incorrect BeginString"
        if event is Event.NO_NUMBER:
            return "MsgSeqNum missing"
        if event is Event.GAP_LOST:
            return f"No answer to ResendRequest from {self._port.next_in}"
        is_first = self._before is State.LOGON_SENT  # then no Reject says what is wrong
        if event is Event.BAD_TIME_TAKEN or (event is Event.BAD_TIME and is_first):
            return REASONS[10]
        if event is Event.BAD_COMP_ID and is_first:
            return REASONS[9]
        return "First message is not a Logon" if event in _NOT_A_LOGON else self._fault_text

    def _do_log_out(self) -> None:
        text = self._logout_text()
        wait = (
            self.settings.logout_timeout_s if self._event is Event.STOP else self.settings.offence_timeout_s
        )
        self._deadline_ns = self._now_ns + to_ns(wait)
        self._port.send(LOGOUT, fields([(tags.TEXT, text)]) if text else b"", self._now_ns)
        self._tell(Kind.LOGOUT_SENT, text or self._event.name)

    def _do_answer_logout(self) -> None:
        self._port.send(LOGOUT, b"", self._now_ns)
        self._tell(Kind.LOGGED_OUT, self._message.text(tags.TEXT))

    def _do_timed_out(self) -> None:
        self._tell(Kind.TIMED_OUT, self._event.name)

    def _do_fault(self) -> None:
        self._tell(Kind.VIOLATION, f"{self._event.name} in {self._before.name} {self._fault_text}".strip())

    def _do_alarm(self) -> None:
        self._tell(Kind.OVERSIZED, f"{self._message.msg_type} {self._message.seq}")

    def _do_lost(self) -> None:
        self._tell(Kind.LOST, f"{self._before.name} {self.loss_reason}".strip())

    def _do_close(self) -> None:
        self._port.close()
