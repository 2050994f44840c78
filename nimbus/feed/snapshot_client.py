"""The control loop's side of a snapshot: connect when the feed wants one, log in, stream it into the ring.

Cold: an asyncio task that looks at the feed every few milliseconds.  Each try ends in one event, loaded or
failed; after a failure the next one waits, twice as long each time.  A try that the feed no longer waits for
ends quietly.  A full ring holds the stream back, and TCP the server behind it.  Protocol: soupbin.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nimbus.feed import soupbin
from nimbus.feed.arbiter_state import (
    ROW_ABORT,
    ROW_BEGIN,
    ROW_BYTES_MAX,
    ROW_END,
    ROW_MESSAGES,
    SNAPSHOT_ROW,
)
from nimbus.feed.live import Live
from ringbuf.spsc import push_many

READ_SIZE: Final = 65_536
POLL_S: Final = 0.005
LOADED, FAILED = "loaded", "failed"
_HEADER: Final = struct.Struct("<qqq8s2s6xII16x")  # SNAPSHOT_ROW up to its bytes
assert _HEADER.size == SNAPSHOT_ROW.at.bytes


@dataclass(frozen=True, slots=True)
class SnapshotServer:
    """Where snapshots come from; times in seconds.  delay_s: after a failure, doubles up to delay_s_max."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    connect_s: float = 3.0
    silence_s: float = soupbin.SILENCE_S_MAX
    delay_s: float = 0.25
    delay_s_max: float = 10.0


class SnapshotEvent(NamedTuple):
    """How a try ended: LOADED with messages and number, or FAILED with one line of reason."""

    kind: str
    wanted: int
    messages: int
    number: int
    reason: str


class SnapshotError(Exception):
    """A snapshot cannot be loaded; the text is one line."""


class _Superseded(Exception):  # noqa: N818 - no error: nobody waits for this snapshot any more
    """The feed wants another snapshot, or none."""


def warm_rows(ring: int) -> None:
    """Compile what fills the ring, before the market is open; nothing is published."""
    push_many(ring, 0, 0)


class SnapshotClient:
    """Answer the wants of one live feed from one server; `tell` gets a SnapshotEvent for each try."""

    def __init__(self, live: Live, server: SnapshotServer, tell: Callable[[SnapshotEvent], None]) -> None:
        if live.ring == 0:
            msg = "the feed was made without a snapshot ring"
            raise ValueError(msg)
        self._live, self._server, self._tell = live, server, tell
        self._begun = False
        self._row = ctypes.create_string_buffer(SNAPSHOT_ROW.size)
        self.tries = self.failures = self.loaded = 0

    async def run(self) -> None:
        """Serve until cancelled."""
        done, failed = 0, 0
        while True:
            wanted = self._live.wanted
            if wanted in (0, done):
                await asyncio.sleep(POLL_S)
                continue
            self.tries += 1
            try:
                event = await self._load(wanted)
            except _Superseded:
                continue
            except (SnapshotError, soupbin.SoupError, OSError, asyncio.IncompleteReadError) as error:
                self.failures += 1
                event = SnapshotEvent(FAILED, wanted, 0, 0, _line(error))
            self._tell(event)
            if event.kind == LOADED:
                self.loaded, done, failed = self.loaded + 1, wanted, 0
                continue
            await asyncio.sleep(min(self._server.delay_s * 2**failed, self._server.delay_s_max))
            failed = min(failed + 1, 30)

    async def _load(self, wanted: int) -> SnapshotEvent:
        """Load one snapshot; raises what stopped it, after telling the market loop if it had begun."""
        server, self._begun = self._server, False
        opening = asyncio.open_connection(server.host, server.port, limit=READ_SIZE)
        try:
            reader, writer = await asyncio.wait_for(opening, server.connect_s)
        except TimeoutError:
            msg = f"{server.host}:{server.port} does not answer within {server.connect_s:g} s"
            raise SnapshotError(msg) from None
        try:
            writer.write(soupbin.login_request(server.user, server.password))
            event = await self._stream(reader, writer, wanted)
            writer.write(soupbin.encode(soupbin.LOGOUT_REQUEST))
        except BaseException:
            await self._abort(wanted)
            raise
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 1.0)
        return event

    async def _abort(self, wanted: int) -> None:
        """Tell the market loop that the rows it has will not end, if it waits for them and there is room."""
        if self._begun and self._live.wanted == wanted:
            with contextlib.suppress(SnapshotError, _Superseded):
                await self._push(ROW_ABORT, wanted)

    async def _stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wanted: int
    ) -> SnapshotEvent:
        framer, count, row, messages = soupbin.Framer(soupbin.FROM_SERVER), 0, bytearray(), 0
        async for piece in self._pieces(reader, writer, wanted):
            for message in self._messages(framer.feed(piece)):
                if message is None:
                    await self._push(ROW_BEGIN, wanted)
                    self._begun = True
                    continue
                if not self._begun:
                    msg = "data before the login was accepted"
                    raise SnapshotError(msg)
                end = soupbin.is_snapshot_end(message)
                if end or len(row) + 2 + len(message) > ROW_BYTES_MAX:
                    await self._push(ROW_MESSAGES, wanted, data=row, count=count)
                    messages, count, row = messages + count, 0, bytearray()
                if end:
                    number = soupbin.parse_snapshot_end(message)
                    await self._push(ROW_END, wanted, seq=number)
                    return SnapshotEvent(LOADED, wanted, messages, number, "")
                soupbin.check_snapshot_message(message)
                row += len(message).to_bytes(2, "big") + message
                count += 1
        msg = "connection closed before the end of the snapshot"
        raise SnapshotError(msg)

    async def _pieces(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wanted: int
    ) -> AsyncIterator[bytes]:
        """Yield what the server sends; keep the session alive; give up on silence, or when not waited for."""
        silent_s = 0.0
        while True:
            if self._live.wanted != wanted:
                raise _Superseded
            try:
                piece = await asyncio.wait_for(reader.read(READ_SIZE), soupbin.HEARTBEAT_S)
            except TimeoutError:
                silent_s += soupbin.HEARTBEAT_S
                if silent_s >= self._server.silence_s:
                    msg = f"no word from {self._server.host}:{self._server.port} for {silent_s:g} s"
                    raise SnapshotError(msg) from None
                writer.write(soupbin.encode(soupbin.CLIENT_HEARTBEAT))
                continue
            if not piece:
                return
            silent_s = 0.0
            yield piece

    def _messages(self, packets: list[soupbin.Packet]) -> Iterator[bytes | None]:
        """Yield the sequenced messages, and None where the login is accepted; check or ignore the rest."""
        for kind, payload in packets:
            if kind == soupbin.SEQUENCED:
                yield payload
            elif kind == soupbin.LOGIN_ACCEPTED:
                self._check_session(soupbin.parse_login_accepted(payload).session)
                yield None
            elif kind == soupbin.LOGIN_REJECTED:
                msg = f"login rejected: {soupbin.reject_reason(payload)}"
                raise SnapshotError(msg)
            elif kind == soupbin.END_OF_SESSION:
                msg = "the session ended before the snapshot"
                raise SnapshotError(msg)

    def _check_session(self, session: str) -> None:
        if self._begun:
            msg = "the login was accepted twice"
            raise SnapshotError(msg)
        ours = soupbin.session_name(self._live.session)
        if soupbin.session_name(session) != ours:
            msg = f"the snapshot is of session {session!r}, the feed follows {ours!r}"
            raise SnapshotError(msg)

    async def _push(
        self, kind: int, wanted: int, *, seq: int = 0, data: bytes | bytearray = b"", count: int = 0
    ) -> None:
        """Put one row into the ring; wait for room while the feed waits for this snapshot."""
        if kind == ROW_MESSAGES and count == 0:
            return
        session, waited_s = self._live.session, 0.0
        _HEADER.pack_into(self._row, 0, kind, wanted, seq, session[7::-1], session[:7:-1], len(data), count)
        ctypes.memmove(ctypes.addressof(self._row) + _HEADER.size, bytes(data), len(data))
        while push_many(self._live.ring, ctypes.addressof(self._row), 1) == 0:
            if self._live.wanted != wanted:
                raise _Superseded
            if waited_s >= self._server.silence_s:
                msg = "the market loop does not take the snapshot"
                raise SnapshotError(msg)
            await asyncio.sleep(POLL_S)
            waited_s += POLL_S


def _line(error: BaseException) -> str:
    """Return an error as one line; its own words where it has some."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
