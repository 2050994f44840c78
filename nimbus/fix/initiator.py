"""The control loop's half of an initiator's session: connects, logs on, keeps alive, logs out, comes back.

The transport kernel in the orders loop owns the socket from the moment it is connected, and both numbers.
This coroutine gives it the descriptor, runs the engine's table on the events that come back, and writes what
the engine wants to send.  The socket is closed here, once the kernel has said that it no longer uses it.
`clock` gives Unix ns and agrees with the time that the orders loop works with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from nimbus.fix.classify import SEQUENCE_RESET
from nimbus.fix.engine import Engine, Kind, Notice
from nimbus.fix.message import Message, fields
from nimbus.fix.numbers import NumbersLog, Reservation
from nimbus.fix.settings import Reset
from nimbus.fix.store import StoreError
from nimbus.fix.table import Event, State
from nimbus.fix.tags import GAP_FILL_FLAG
from nimbus.fix.transport_layout import DOWN
from nimbus.fix.transport_owner import SessionIn, Transport
from nimbus.messages import OUT_CLOSE, OUT_ESTABLISH, OUT_OPEN, OUT_RELEASE, OUT_SEND

_GAP_FILL_BODY: Final = fields([(GAP_FILL_FLAG, "Y")])
_ON: Final = (State.ACTIVE, State.RECOVERING)
PATIENCE_NS: Final = 2_000_000_000  # until the orders loop lets go of a connection


class Desk(Protocol):
    """The words of the orders agent that this loop writes."""

    def log_on(self, *, logged_on: bool = True) -> None:
        """Say whether the session is logged on."""

    def set_resending(self, *, resending: bool) -> None:
        """Say whether a gap is open."""


class Venue(NamedTuple):
    """Where to connect, and how patiently; times in seconds."""

    host: str
    port: int
    connect_timeout_s: float = 5.0
    retry_first_s: float = 0.5
    retry_max_s: float = 30.0
    send_buffer: int = 0  # SO_SNDBUF, 0 = as the system has it


class RingPort:
    """The engine's port onto the rings of a Transport; numbers are those of the event being handled."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.next_in, self.highest = 1, 0
        self.is_stuck = False  # a command found the ring full
        self._asked_ns = 0  # when the last message was asked for

    def see(self, event: SessionIn) -> None:
        """Take over the numbers of an event."""
        self.next_in, self.highest = event.next_in, event.highest

    def follow_gap(self) -> None:
        """See how far an open gap reaches and has been filled; its end comes as an event, in order."""
        next_in = max(self._transport.word("next_in"), self.next_in)
        self.highest = max(self._transport.word("highest"), self.highest)
        self.next_in = min(next_in, self.highest)

    @property
    def next_out(self) -> int:
        """Number of the next message out."""
        return self._transport.next_out

    @property
    def sent_ns(self) -> int:
        """When bytes were last sent, or asked for: those may wait until the orders loop comes to them."""
        return max(self._transport.word("sent_ns"), self._asked_ns)

    @property
    def received_ns(self) -> int:
        """When bytes were last received."""
        return self._transport.word("received_ns")

    def send(self, msg_type: str, body: bytes, now_ns: int) -> int:
        """Have a session message sent; its number and its times are given in the orders loop."""
        self._asked_ns = now_ns
        self._command(OUT_SEND, msg_type=msg_type, body=body)
        return 0

    def resend(self, first: int, last: int, now_ns: int) -> None:  # noqa: ARG002
        """Fill the gap: an order that missed its moment is a new risk, not a message to repeat (S30)."""
        new_seq = last + 1 if last else 0
        self._command(OUT_SEND, msg_type=SEQUENCE_RESET, body=_GAP_FILL_BODY, seq=first, new_seq=new_seq)

    def deliver(self, message: Message) -> None:
        """Nothing to do: the kernel has delivered it."""

    def establish(self) -> None:
        """Let what is behind the Logon in."""
        self._command(OUT_ESTABLISH)

    def release(self) -> None:
        """Let orders out, behind every GapFill that was written before."""
        self._command(OUT_RELEASE)

    def reset(self, next_in: int) -> None:
        """Begin the numbers again."""
        self._command_numbers(next_in, 1)

    def close(self) -> None:
        """Have the connection closed after what was sent before."""
        self._command(OUT_CLOSE)

    def open(self, descriptor: int) -> None:
        """Give a connected socket to the orders loop."""
        self._command(OUT_OPEN, fd=descriptor)

    def _command_numbers(self, next_in: int, next_out: int) -> None:
        self.is_stuck |= not self._transport.set_numbers(next_in, next_out)

    def _command(self, command: int, *, msg_type: str = "", body: bytes = b"", **words: int) -> None:
        self.is_stuck |= not self._transport.command(command, msg_type=msg_type, body=body, **words)


class Initiator:
    """One session with a venue.  `run` lives until `stop`; `tell` hears every notice.

    is_new_day: the next Logon carries 141=Y where the settings agree (S02); cleared when it has succeeded.
    """

    def __init__(
        self, transport: Transport, desk: Desk, venue: Venue, numbers: NumbersLog, *,
        tell: Callable[[Notice], None], clock: Callable[[], int] = time.time_ns, poll_s: float = 0.002,
    ) -> None:  # fmt: skip
        self._transport, self._desk, self._venue, self._tell = transport, desk, venue, tell
        self._clock, self._poll_s = clock, poll_s
        self._numbers = Reservation(numbers)
        self._port = RingPort(transport)
        self._engine = Engine(transport.settings, self._port, settle=True)
        self._stopping, self._released = asyncio.Event(), asyncio.Event()
        self._socket: socket.socket | None = None
        self._is_in_force = False  # the orders loop works with our numbers
        self.is_new_day = False
        self.was_logged_on = False  # on the present connection, or the last one

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._engine.state

    @property
    def is_trading(self) -> bool:
        """Whether orders may leave, as far as the session is concerned."""
        return self._engine.is_settled and self._engine.state in _ON

    @property
    def is_held(self) -> bool:
        """Whether a person has to call `release` before the next connection (S04)."""
        return self._engine.is_held

    def release(self) -> None:
        """Connect again after a person has looked at the numbers."""
        self._released.set()

    def set_numbers(self, next_in: int, next_out: int) -> None:
        """Set both numbers by hand, while there is no connection."""
        if self._socket is not None:
            msg = "the numbers of a session are set while it has no connection"
            raise RuntimeError(msg)
        self._numbers.save(next_in, next_out)
        self._transport.set_numbers(next_in, next_out)
        self._is_in_force = False

    def stop(self) -> None:
        """Log out; `run` returns when the venue has answered or its time is up."""
        self._stopping.set()

    def close(self) -> None:
        """Close a socket that the orders loop never gave back; call it when that loop has ended."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def run(self) -> None:
        """Keep the session up until stop() is called."""
        self.set_numbers(self._numbers.next_in, self._numbers.next_out)
        delay_s = self._venue.retry_first_s
        while not self._stopping.is_set():
            self._socket = await self._connect()
            self.was_logged_on = False
            if self._socket is not None:
                await self._serve(self._socket.fileno())
            if self._engine.is_held:
                await self._wait_for(self._released)
                self._released.clear()
            elif self.was_logged_on:
                delay_s = self._venue.retry_first_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            delay_s = min(2 * delay_s, self._venue.retry_max_s)
        self._save(is_final=True)

    async def _wait_for(self, event: asyncio.Event) -> None:
        """Wait for an event or for stop()."""
        waits = [asyncio.ensure_future(e.wait()) for e in (event, self._stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _connect(self) -> socket.socket | None:
        """Return a connected socket, or None after saying why not."""
        loop, venue = asyncio.get_running_loop(), self._venue
        reason = "no address"
        try:
            async with asyncio.timeout(venue.connect_timeout_s):
                found = await loop.getaddrinfo(venue.host, venue.port, type=socket.SOCK_STREAM)
                for family, kind, protocol, _, address in found:
                    attempt = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
                    try:
                        attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        if venue.send_buffer:
                            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, venue.send_buffer)
                        await loop.sock_connect(attempt, address)
                    except OSError as error:
                        reason = error.strerror or str(error)
                        attempt.close()
                    except BaseException:
                        attempt.close()
                        raise
                    else:
                        return attempt
        except TimeoutError:
            reason = f"no answer within {venue.connect_timeout_s} s"
        except OSError as error:
            reason = error.strerror or str(error)
        self._tell(Notice(Kind.UNREACHABLE, f"{venue.host}:{venue.port}: {reason}"))
        return None

    # ---------------------------------------------------------------- one connection

    async def _serve(self, descriptor: int) -> None:
        """Run one connection until the orders loop has let go of it."""
        self._engine = engine = Engine(self._transport.settings, self._port, settle=True)
        reset = self._transport.settings.reset
        engine.is_reset_asked = reset is Reset.ALWAYS or (reset is Reset.AGREED and self.is_new_day)
        self._port.open(descriptor)
        engine.on(Event.CONNECTED, self._clock())
        over_ns, is_given_up = 0, False
        while True:
            await asyncio.sleep(self._poll_s)
            now_ns = self._clock()
            if self._poll(now_ns):
                break
            if engine.state is not State.CLOSED and not self._port.is_stuck:
                continue
            over_ns = over_ns or now_ns
            if now_ns - over_ns > PATIENCE_NS and not is_given_up:
                is_given_up = True
                self._give_up()
            if is_given_up and self._stopping.is_set():
                return
        self.close()

    def _give_up(self) -> None:
        """Shut the connection of an orders loop that does not answer, and go on waiting for it.

        The descriptor stays: its number must not come to mean another file while a kernel may use it.
        """
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._tell(Notice(Kind.FAULT, "the orders loop does not answer"))

    def _poll(self, now_ns: int) -> bool:
        """Handle what has happened; True when the connection has ended."""
        engine, has_ended = self._engine, False
        for event in self._transport.events():
            self._port.see(event)
            if event.event is Event.DISCONNECTED:
                has_ended = True
                self._port.is_stuck = False
                engine.loss_reason = os.strerror(event.value) if event.value else ""
                if event.seq > 0:
                    text = f"{event.seq} working orders are in doubt"
                    self._tell(Notice(Kind.IN_DOUBT, text, event.seq))
            if event.event is Event.GAP_FILLED:
                engine.check_gap(now_ns)
            elif engine.state is not State.CLOSED:
                engine.on(event.event, now_ns, event.message)
        if engine.state is State.RECOVERING:
            self._port.follow_gap()
        if self._stopping.is_set() and engine.state not in (State.LOGOUT_SENT, State.CLOSING, State.CLOSED):
            engine.on(Event.STOP, now_ns)
        engine.tick(now_ns)
        self._note()
        return has_ended

    def _note(self) -> None:
        """Write the words of the orders agent, save the numbers, pass the notices on."""
        state = self._engine.state
        self._desk.log_on(logged_on=self.is_trading)
        self._desk.set_resending(resending=state is State.RECOVERING)
        self._save()
        while self._engine.notices:
            notice = self._engine.notices.popleft()
            if notice.kind is Kind.LOGGED_ON:
                self.was_logged_on, self.is_new_day = True, False
            self._tell(notice)

    def _save(self, *, is_final: bool = False) -> None:
        """Save the numbers, once they are those of the orders loop; without them the session ends."""
        self._is_in_force |= self._transport.word("phase") != DOWN
        if not self._is_in_force:
            return
        try:
            next_in, next_out = self._transport.word("processed_in"), self._transport.next_out
            self._numbers.save(next_in, next_out, is_final=is_final)
        except StoreError as error:
            if not self._stopping.is_set():
                self._tell(Notice(Kind.FAULT, str(error)))
            self._stopping.set()
