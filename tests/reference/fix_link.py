"""What the receiving kernel does with a byte stream, written from its description, in plain Python.

Names, framing and judging are those of the readable forms; this adds what an initiator's connection makes of
them: where a message goes, how the number moves, when a gap is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nimbus.fix.classify import CONSUMING, Expected, classify, new_seq
from nimbus.fix.framing import Framer
from nimbus.fix.message import Address, Message
from nimbus.fix.table import Event


@dataclass
class Link:
    """An established connection: next_in is the number expected."""

    theirs: Address
    time_limit_ns: int
    next_in: int
    delivered: list[bytes] = field(default_factory=list)
    events: list[tuple[Event, int]] = field(default_factory=list)  # (event, number expected afterwards)
    repeated: int = 0

    def __post_init__(self) -> None:
        self.framer, self.highest, self.is_gap_open = Framer(), self.next_in - 1, False

    def receive(self, stream: bytes, now_ns: int) -> None:
        for raw in self.framer.feed(stream):
            if raw is None:
                self.events.append((Event.GARBLED, self.next_in))
            else:
                self.take(Message.parse(raw), now_ns)

    def take(self, message: Message, now_ns: int) -> None:
        expected = Expected(self.theirs, self.next_in, self.time_limit_ns, is_order_sender=True)
        event, was_open = classify(message, expected, now_ns), self.is_gap_open
        if event in {Event.APPLICATION, Event.BAD_TIME_TAKEN}:
            self.delivered.append(message.raw)
        if event in {Event.GAP_FILL, Event.RESET}:
            self.next_in = new_seq(message)
        elif event in CONSUMING and message.seq == self.next_in:
            self.next_in += 1
        elif event in {Event.TOO_HIGH, Event.LOGON_HIGH, Event.RESEND_REQUEST_HIGH}:
            self.is_gap_open, self.highest = True, max(self.highest, message.seq)
        self.highest = max(self.highest, self.next_in - 1)
        if event is Event.SEEN:
            self.repeated += 1
        elif event is not Event.APPLICATION and not (event is Event.TOO_HIGH and was_open):
            self.events.append((event, self.next_in))
        if self.is_gap_open and self.next_in > self.highest:
            self.is_gap_open = False
            self.events.append((Event.GAP_FILLED, self.next_in))
