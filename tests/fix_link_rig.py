"""An orders agent with its FIX connection, and the other end of that connection in the test's hand."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from orders_rig import NOW, Rig, fields_of, view

from nimbus.fix.framing import Framer
from nimbus.fix.message import Address, Message, encode, fields, stamp
from nimbus.fix.settings import Role, SessionSettings
from nimbus.fix.table import Event
from nimbus.fix.transport_owner import SessionIn
from nimbus.messages import OUT_CLOSE, OUT_ESTABLISH, OUT_OPEN, OUT_RELEASE, OUT_SEND, WIRE
from nimbus.orders.agent import receive
from nimbus.orders.link import create_transport, transport_work
from ringbuf.spsc import claim, publish

US, VENUE = "CONTRAFUSION", "VENUE"
THEIRS, OURS = Address("FIX.4.4", VENUE, US), Address("FIX.4.4", US, VENUE)
SETTINGS = SessionSettings(Role.INITIATOR, US, VENUE)
STEPS_MAX = 20_000


def from_venue(kind: str, seq: int, *pairs: Any, now_ns: int = NOW, original: bytes = b"") -> bytes:
    """Return a message of the venue; pairs are the fields of its body."""
    return encode(THEIRS, kind, seq, stamp(now_ns), fields(pairs), original)


def logon(seq: int = 1, now_ns: int = NOW) -> bytes:
    return from_venue("A", seq, (98, 0), (108, 30), now_ns=now_ns)


class LinkRig(Rig):
    """The rig of the orders agent, a transport, and a connected pair of loopback sockets."""

    def __init__(self, *, connect: bool = True, settings: SessionSettings = SETTINGS, **more: Any) -> None:
        rings = {name: more.pop(name) for name in ("inbound_capacity",) if name in more}
        super().__init__(**more)
        self.rings = rings
        self.transport = create_transport(self.segment, self.orders, settings, poll_ns=0)
        self.framer = Framer()
        self.ours: socket.socket | None = None
        self.peer: socket.socket | None = None
        if connect:
            self.connect()

    def connect(self, *, small: bool = False) -> None:
        """Connect over loopback and give our end to the kernel; small: buffers as small as they can be."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            if small:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            ours = socket.socket()
            if small:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            ours.connect(server.getsockname())
            self.ours, (self.peer, _) = ours, server.accept()
        ours.settimeout(0)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer.settimeout(5)
        assert self.transport.command(OUT_OPEN, fd=ours.fileno())
        self.work()

    def close(self) -> None:
        for end in (self.ours, self.peer):
            if end is not None:
                end.close()

    def work(self, times: int = 1, now_ns: int = NOW) -> int:
        return sum(transport_work(self.orders.addr, self.transport.addr, now_ns) for _ in range(times))

    def until(self, condition, now_ns: int = NOW) -> None:
        """Run duty cycles until a condition holds."""
        for _ in range(STEPS_MAX):
            if condition():
                return
            self.work(now_ns=now_ns)
        raise AssertionError(f"never: {self.transport.phase} {self.transport.counters()}")

    def establish(self, seq: int = 1) -> None:
        """Let the peer log on and the session be established; the numbers go on from there."""
        self.peer.sendall(logon(seq))
        self.until(lambda: self.transport.phase == "waiting")
        (event,) = self.transport.events()
        assert event.event in (Event.LOGON, Event.LOGON_HIGH)
        self.transport.command(OUT_ESTABLISH)
        self.transport.command(OUT_RELEASE)
        self.work()
        self.orders.log_on()
        assert self.transport.phase == "up"

    def session_message(self, kind: str, body: bytes = b"", **words: int) -> None:
        assert self.transport.command(OUT_SEND, msg_type=kind, body=body, **words)

    def hang_up(self) -> None:
        self.transport.command(OUT_CLOSE)

    def wait(self, *kinds: Event, now_ns: int = NOW) -> list[SessionIn]:
        """Run until as many events have come; they must be these."""
        found: list[SessionIn] = []
        self.until(lambda: found.extend(self.transport.events()) or len(found) >= len(kinds), now_ns)
        assert [event.event for event in found] == list(kinds)
        return found

    def no_events(self) -> None:
        self.work(20)
        assert self.transport.events() == []

    def at_peer(self, count: int) -> list[Message]:
        """Return the next messages that reach the peer."""
        found: list[bytes | None] = []
        while len(found) < count:
            data = self.peer.recv(65_536)
            assert data, "closed"
            found += self.framer.feed(data)
        assert len(found) == count
        assert None not in found
        return [Message.parse(raw) for raw in found]

    def put_wire(self, raw: bytes) -> None:
        """Put a message into the ring to the venue."""
        wire = claim(self.orders.out)
        assert wire
        row = view(wire, WIRE)
        row["size"] = len(raw)
        row["bytes"][0, : len(raw)] = list(raw)
        publish(self.orders.out)

    def arrived(self) -> list[bytes]:
        """Pop what was delivered to the orders agent."""
        return [bytes(m) for m in self._pop(self.orders.inbound)]

    def _pop(self, ring: int) -> list[bytes]:
        from ringbuf.spsc import front, pop

        found = []
        while wire := front(ring):
            row = view(wire, WIRE)[0]
            found.append(bytes(row["bytes"][: row["size"]]))
            pop(ring)
        return found


class OrdersLoop:
    """Runs the orders agent and its connection in a thread, on the real clock, as the daemon does."""

    def __init__(self, rig: LinkRig) -> None:
        self._rig, self._stop = rig, threading.Event()
        self.work_lock = threading.Lock()  # the test's own calls of the agent take turns with the loop
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        rig = self._rig
        while not self._stop.is_set():
            with self.work_lock:
                now_ns = time.time_ns()
                transport_work(rig.orders.addr, rig.transport.addr, now_ns)
                receive(rig.orders.addr, now_ns)
            time.sleep(0.0002)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)


__all__ = ["NOW", "SETTINGS", "LinkRig", "OrdersLoop", "fields_of", "from_venue", "logon"]
