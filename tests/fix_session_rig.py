"""A plain session with the clock and the other end of its connection in the test's hand."""

from __future__ import annotations

from typing import Any

from nimbus.fix.engine import Kind, Notice
from nimbus.fix.framing import Framer
from nimbus.fix.message import NS_PER_S, Address, Message, encode, fields, stamp
from nimbus.fix.session import Session
from nimbus.fix.settings import Reset, Role, SessionSettings
from nimbus.fix.store import Store
from nimbus.fix.table import State

NOW = 1_764_111_111_123_456_789
US, THEM = "ISLD", "TW44"


class Line:
    """One connection of a session: what is sent to it, and what came out."""

    def __init__(
        self, role: Role = Role.ACCEPTOR, *, store: Store | None = None, connect: bool = True, **more: Any
    ):
        self.settings = SessionSettings(role, US, THEM, **({"reset": Reset.AGREED} | more))
        self.store = store or Store()
        self.session = Session(self.settings, {THEM: self.store})
        self.now_ns, self.seq, self._framer = NOW, 0, Framer()
        self.theirs = Address(self.settings.dialect.begin_string, THEM, US)
        self.told: list[Notice] = []
        if connect:
            self.session.connected(self.now_ns)

    def text(
        self, kind: str, *pairs: Any, seq: int | None = None, original: bytes = b"", **more: Any
    ) -> bytes:
        """Return a message of the peer; without seq the next number."""
        if seq is None:
            self.seq += 1
            seq = self.seq
        address = self.theirs._replace(**more)
        return encode(address, kind, seq, stamp(self.now_ns), fields(pairs), original)

    def take(self, *texts: bytes) -> list[Message]:
        """Give bytes to the session; return what it sends."""
        for text in texts:
            self.session.received(text, self.now_ns)
        return self.sent()

    def give(self, kind: str, *pairs: Any, **more: Any) -> list[Message]:
        return self.take(self.text(kind, *pairs, **more))

    def log_on(self, seq: int | None = None, **more: Any) -> list[Message]:
        return self.give("A", (98, 0), (108, 30), *more.pop("pairs", ()), seq=seq, **more)

    def sent(self) -> list[Message]:
        found = self._framer.feed(self.session.take_output())
        assert None not in found
        return [Message.parse(raw) for raw in found]

    def wait(self, seconds: float) -> list[Message]:
        """Let time pass, with a tick each tenth of a second."""
        for _ in range(round(seconds * 10)):
            self.now_ns += NS_PER_S // 10
            self.session.tick(self.now_ns)
        return self.sent()

    def apps(self) -> list[Message]:
        return list(self.session.messages())

    def kinds(self) -> list[Kind]:
        self.told += self.session.notices()
        return [notice.kind for notice in self.told]

    @property
    def state(self) -> State:
        return self.session.state


def brief(messages: list[Message]) -> list[tuple[Any, ...]]:
    """Return (type, number, body) of each message, body as "tag=value|..."."""
    return [(m.msg_type, m.seq, m.body.replace(b"\x01", b"|").decode()) for m in messages]


def active(**more: Any) -> Line:
    """Return an acceptor's line after the Logon."""
    line = Line(**more)
    assert brief(line.log_on()) == [("A", 1, "98=0|108=30|")]
    return line


def initiator(**more: Any) -> Line:
    """Return an initiator's line whose Logon is out."""
    line = Line(Role.INITIATOR, **more)
    assert brief(line.sent())[0][0] == "A"
    return line
