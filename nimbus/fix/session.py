"""A FIX session without I/O, in either role: bytes and `now_ns` in; bytes, application messages, notices out.

    session = Session(settings, {"CLIENT": store})
    session.connected(now_ns)                      once for each connection: a Session lives as long as one
    session.received(data, now_ns)                 what the socket gave
    session.tick(now_ns)                           now and then, at least every 100 ms
    session.send("8", fields([(37, "1"), ...]), now_ns)
    for message in session.messages(): ...         in order, each once
    transport.write(session.take_output())
    if session.is_closed: transport.close()

A message is processed when `messages` is asked for the next one; only then is its number saved (S33).  `send`
always takes a number: while nobody is logged on the message waits in the store, and the peer asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

from nimbus.fix import tags
from nimbus.fix.classify import ADMIN, CONSUMING, LOGON, SEQUENCE_RESET, Expected, classify, new_seq
from nimbus.fix.engine import Engine, Notice
from nimbus.fix.framing import Framer
from nimbus.fix.message import Address, Message, encode, fields, stamp
from nimbus.fix.settings import Reset, Role, SessionSettings, to_ns
from nimbus.fix.store import Sent, Store
from nimbus.fix.table import Event, State

HELD_MAX: Final = 10_000  # messages above a gap that wait for it to be filled
_LOGON_EVENTS: Final = frozenset({Event.LOGON, Event.LOGON_HIGH, Event.LOGON_LOW})
# Acted on although their number is too high: when the gap is filled only their number counts.
_DONE_AHEAD: Final = frozenset({Event.LOGON_HIGH, Event.RESEND_REQUEST_HIGH})


class Session:
    """One connection of a session.  stores: by CompID of the counterparty; a store outlives connections."""

    def __init__(self, settings: SessionSettings, stores: Mapping[str, Store]) -> None:
        self.settings, self._stores = settings, stores
        self._engine = Engine(settings, self)
        self._framer, self._output = Framer(), bytearray()
        self._inbox: deque[Message] = deque()
        self._held: dict[int, Message | None] = {}  # None: only the number counts
        self._address = settings.address()
        self._store: Store | None = None
        self.is_closed = False  # the connection is to be closed once the output has been written
        self.highest = 0
        self.sent_ns = self.received_ns = 0
        self.counts = dict.fromkeys(Event, 0)

    # ---------------------------------------------------------------- what the I/O layer calls

    def connected(self, now_ns: int, *, is_new_day: bool = False) -> None:
        """Begin: an initiator sends its Logon.  is_new_day: with 141=Y, where the settings agree (S02)."""
        self.sent_ns = self.received_ns = now_ns
        if self.settings.role is Role.ACCEPTOR:
            self._engine.on(Event.ACCEPTED, now_ns)
            return
        store = self._stores[self.settings.target]
        if not store.acquire():
            self.is_closed = True
            return
        self._store = store
        reset = self.settings.reset
        self._engine.is_reset_asked = reset is Reset.ALWAYS or (reset is Reset.AGREED and is_new_day)
        self._engine.on(Event.CONNECTED, now_ns)

    def received(self, data: bytes, now_ns: int) -> None:
        """Take bytes from the connection, as many or few as came."""
        if self.is_closed:
            return
        self.received_ns = now_ns
        for raw in self._framer.feed(data):
            if raw is None:
                self._raise(Event.GARBLED, now_ns)
            else:
                self._take(Message.parse(raw), now_ns)
            if self.is_closed:
                break
        self._save()

    def tick(self, now_ns: int) -> None:
        """Let timers run out."""
        self._engine.tick(now_ns)

    def disconnected(self, now_ns: int) -> None:
        """Say that the connection is closed; the numbers stay (S28)."""
        self._engine.on(Event.DISCONNECTED, now_ns)
        self._release()

    def stop(self, now_ns: int) -> None:
        """Log out; `is_closed` follows when the peer has answered or the time is up (S27)."""
        self._engine.on(Event.STOP, now_ns)

    def take_output(self) -> bytes:
        """Return the bytes to write, once."""
        out = bytes(self._output)
        self._output.clear()
        return out

    def messages(self) -> Iterator[Message]:
        """Yield the application messages received, in order; each counts as processed at the next step."""
        while self._inbox:
            yield self._inbox[0]
            self._inbox.popleft()
            self._save()

    def notices(self) -> list[Notice]:
        """Return what happened since the last call, oldest first."""
        found = list(self._engine.notices)
        self._engine.notices.clear()
        return found

    # ---------------------------------------------------------------- what the application calls

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._engine.state

    @property
    def is_logged_on(self) -> bool:
        """Whether application messages go out at once."""
        return self.state in (State.ACTIVE, State.RECOVERING)

    @property
    def is_held(self) -> bool:
        """Whether a person has to act before the next connection (S04)."""
        return self._engine.is_held

    @property
    def target(self) -> str:
        """CompID of the counterparty; "" before an acceptor knows it."""
        return self._address.target

    @property
    def garbled(self) -> int:
        """Messages thrown away unread."""
        return self._framer.garbled

    def send(self, msg_type: str, body: bytes, now_ns: int) -> int:
        """Send an application or session message; return its number.

        body: fields in rising order of their tags, each with its SOH, without header and trailer.
        """
        sending_time = stamp(now_ns)
        is_admin = msg_type in ADMIN
        seq = self._numbers.use(None if is_admin else Sent(msg_type, sending_time, body))
        if is_admin or self.is_logged_on:
            self._write(encode(self._address, msg_type, seq, sending_time, body), now_ns)
        return seq

    # ---------------------------------------------------------------- port of the engine

    @property
    def _numbers(self) -> Store:
        assert self._store is not None, "no counterparty yet: nothing can be numbered"
        return self._store

    @property
    def next_in(self) -> int:
        """Number of the next message expected."""
        return self._store.next_in if self._store else 1

    @property
    def next_out(self) -> int:
        """Number of the next message out."""
        return self._numbers.next_out

    def deliver(self, message: Message) -> None:
        """Put an application message where `messages` finds it."""
        self._inbox.append(message)

    def establish(self) -> None:
        """Nothing waits for it here."""

    def release(self) -> None:
        """Nothing was held here."""

    def reset(self, next_in: int) -> None:
        """Begin the numbers again."""
        self._numbers.reset()
        self._numbers.next_in = next_in
        self._held.clear()
        self.highest = next_in - 1

    def close(self) -> None:
        """Ask for the connection to be closed after the output."""
        self.is_closed = True

    def resend(self, first: int, last: int, now_ns: int) -> None:
        """Send application messages again as they were; one GapFill for each run of others (S29)."""
        store = self._numbers
        end = min(last or store.next_out - 1, store.next_out - 1)
        gap, sending_time = first, stamp(now_ns)
        for seq in range(first, end + 1):
            sent = store.sent(seq)
            if sent is None:
                continue
            self._fill(gap, seq, now_ns)
            again = encode(self._address, sent.msg_type, seq, sending_time, sent.body, sent.sending_time)
            self._write(again, now_ns)
            gap = seq + 1
        self._fill(gap, end + 1, now_ns)

    def _fill(self, first: int, following: int, now_ns: int) -> None:
        if first < following:
            body, now = fields([(tags.NEW_SEQ_NO, following), (tags.GAP_FILL_FLAG, "Y")]), stamp(now_ns)
            self._write(encode(self._address, SEQUENCE_RESET, first, now, body, now), now_ns)

    def _write(self, raw: bytes, now_ns: int) -> None:
        self._output += raw
        self.sent_ns = now_ns

    # ---------------------------------------------------------------- messages in

    def _take(self, message: Message, now_ns: int) -> None:
        """Judge a message, run its event, move the number, then take what had to wait for it."""
        event = self._judge(message, now_ns)
        if event is Event.TOO_HIGH or event in _DONE_AHEAD:
            self._hold(message.seq, None if event in _DONE_AHEAD else message)
        self._process(event, message, now_ns)
        while not self.is_closed and self.next_in in self._held:
            waiting = self._held.pop(self.next_in)
            if waiting is None:
                self._numbers.next_in += 1
            else:
                self._process(self._judge(waiting, now_ns, waited=True), waiting, now_ns)
        self._engine.check_gap(now_ns)

    def _process(self, event: Event, message: Message, now_ns: int) -> None:
        """Advance the number before the event runs: what it sends may look at it."""
        if self._store is not None and (self.state is not State.CLOSING or event is Event.LOGOUT):
            if event in (Event.GAP_FILL, Event.RESET):
                self._store.next_in = new_seq(message)
                self._held = {seq: held for seq, held in self._held.items() if seq >= self._store.next_in}
            elif event in CONSUMING and message.seq == self._store.next_in:
                self._store.next_in += 1
            self.highest = max(self.highest, self._store.next_in - 1)
        self._raise(event, now_ns, message)

    def _hold(self, seq: int, message: Message | None) -> None:
        self.highest = max(self.highest, seq)
        if len(self._held) < HELD_MAX:
            self._held[seq] = message

    def _judge(self, message: Message, now_ns: int, *, waited: bool = False) -> Event:
        if self.state is State.AWAITING_LOGON and self._store is None:
            refusal = self._identify(message)
            if refusal is not Event.NONE:
                return refusal
        limit_ns = 1 << 62 if waited else to_ns(self.settings.time_limit_s)
        theirs = Address(self._address.begin_string, self._address.target, self._address.sender)
        event = classify(message, Expected(theirs, self.next_in, limit_ns), now_ns)
        is_logon = self.state is State.AWAITING_LOGON and event in _LOGON_EVENTS
        if is_logon and self.settings.reset is Reset.ALWAYS:
            self.reset(1)
            event = classify(message, Expected(theirs, self.next_in, limit_ns), now_ns)
        return event

    def _identify(self, message: Message) -> Event:
        """Find whose Logon this is, and hold the session; NONE when it is ours to judge."""
        sender = message.text(tags.SENDER_COMP_ID)
        if message.msg_type != LOGON or sender not in self._stores:
            return Event.BAD_COMP_ID
        if not self._stores[sender].acquire():
            return Event.IN_USE
        self._store = self._stores[sender]
        self._address = self.settings.address(sender)
        return Event.NONE

    def _raise(self, event: Event, now_ns: int, message: Message | None = None) -> None:
        self.counts[event] += 1
        if message is None:
            self._engine.on(event, now_ns)
        else:
            self._engine.on(event, now_ns, message)

    def _save(self) -> None:
        """Save how far the incoming messages have been processed."""
        if self._store is not None:
            next_in = self._store.next_in
            self._store.processed(min(self._inbox[0].seq, next_in) if self._inbox else next_in)

    def _release(self) -> None:
        if self._store is not None:
            self._store.release()
