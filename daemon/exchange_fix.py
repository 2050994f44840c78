"""The FIX acceptor of the paper exchange: TCP connections on the control loop around sessions without I/O.

The numbers of each client live in a file of the exchange's folder.  A report for a client that is not
connected gets its number all the same and is sent again when the client asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from daemon.errors import CommandError
from daemon.exchange_config import ExchangeConfig, comp_ids
from daemon.logs import logger
from nimbus.fix.session import Session
from nimbus.fix.settings import Reset, Role, SessionSettings
from nimbus.fix.store import FileLog, Store, StoreError
from nimbus.venue.gateway import Gateway
from nimbus.venue.gateway_text import ORPHAN_IDS
from nimbus.venue.orphans import report_orphans

TICK_S: Final = 0.05
READ_SIZE: Final = 65_536
OUTPUT_MAX: Final = 8 << 20  # bytes a client may leave unread before it is cut off
CONNECTIONS_MAX: Final = 64
LOGOUT_S: Final = 2.0


class Connection:
    """One TCP connection and its session."""

    def __init__(self, session: Session, writer: asyncio.StreamWriter) -> None:
        self.session, self.writer = session, writer
        self.peer = "{}:{}".format(*writer.get_extra_info("peername")[:2])
        self.was_logged_on = False

    def flush(self) -> None:
        """Write what the session wants to say; cut off a client that does not read."""
        out = self.session.take_output()
        if out and not self.writer.is_closing():
            self.writer.write(out)
            if self.writer.transport.get_write_buffer_size() > OUTPUT_MAX:
                self.writer.transport.abort()


class Acceptor:
    """Own the listening socket, the sessions' stores and the connections."""

    def __init__(
        self, config: ExchangeConfig, gateway: Gateway, folder: pathlib.Path, on_logon: Callable[[], None]
    ) -> None:
        fix = config.fix
        self._gateway, self._on_logon, self._log = gateway, on_logon, logger("fix")
        self._cancels = fix.cancel_on_disconnect
        self._settings = SessionSettings(
            Role.ACCEPTOR, fix.sender, heartbeat_s=fix.heartbeat_s, reset=Reset(fix.reset)
        )
        self._orphans = 0
        self._logs: list[FileLog] = []
        self._stores: dict[str, Store] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for client in comp_ids(fix.clients):
                log = FileLog(folder / f"{client.replace('/', '_')}.fix")
                self._logs.append(log)
                self._stores[client] = Store(log)
                self._report_orphans(client)
        except OSError as error:
            msg = f"{folder}: {error.strerror or error}"
            raise CommandError(msg) from None
        except StoreError as error:
            raise CommandError(str(error)) from None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._links: dict[str, Connection] = {}  # by client: the present connection, or the last one
        self._to_cancel: set[str] = set()
        self._stopping = False
        self.handled = 0  # application messages so far
        self.failure = ""
        self.counts: Counter[str] = Counter(connections=0, logons=0, disconnects=0)

    def _report_orphans(self, client: str) -> None:
        """Report the orders that the last process left open as cancelled."""
        number = ORPHAN_IDS + self._orphans
        found = report_orphans(self._stores[client], self._gateway.epoch, number, time.time_ns())
        self._orphans += found
        if found:
            self._log.warning("orders_orphaned", client=client, orders=found)

    async def start(self, host: str, port: int) -> None:
        """Listen; raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, port)

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def clients(self) -> list[str]:
        """The clients that may log on."""
        return list(self._stores)

    @property
    def logged_on(self) -> list[str]:
        """The clients that are logged on."""
        return sorted(client for client, link in self._links.items() if link.session.is_logged_on)

    def deliver(self) -> int:
        """Send the replies of the gateway; return how many.  Raises StoreError."""
        for client in list(self._to_cancel):
            if self._gateway.cancel_all(client) == 0:
                self._to_cancel.discard(client)
        replies = self._gateway.replies()
        touched = set()
        for reply in replies:
            link = self._links.get(reply.client)
            if link is not None:
                link.session.send(reply.msg_type, reply.body, time.time_ns())
                touched.add(link)
        for link in touched:
            link.flush()
        return len(replies)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._stopping or len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        self._tasks.add(task)
        link = Connection(Session(self._settings, self._stores), writer)
        self._connections.add(link)
        self.counts["connections"] += 1
        try:
            await self._serve(link, reader)
        except (OSError, EOFError):
            pass  # the peer went: the same as an end of its bytes
        except StoreError as error:
            self.failure = str(error)
            self._log.error("fix_store_failed", error=str(error))
        finally:
            self._leave(link)
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, link: Connection, reader: asyncio.StreamReader) -> None:
        session = link.session
        session.connected(time.time_ns())
        reading = asyncio.ensure_future(reader.read(READ_SIZE))
        try:
            while not (session.is_closed or link.writer.is_closing()):
                await asyncio.wait({reading}, timeout=TICK_S)
                if reading.done():
                    piece = reading.result()
                    if not piece:
                        break
                    session.received(piece, time.time_ns())
                    reading = asyncio.ensure_future(reader.read(READ_SIZE))
                else:
                    session.tick(time.time_ns())
                self._follow(link)
        finally:
            reading.cancel()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(link.writer.drain(), LOGOUT_S)

    def _follow(self, link: Connection) -> None:
        """Do what the session asks for after bytes or time have come in."""
        session = link.session
        if session.is_logged_on and not link.was_logged_on:
            link.was_logged_on = True
            self._links[session.target] = link
            self._to_cancel.discard(session.target)
            self.counts["logons"] += 1
            self._on_logon()
        for message in session.messages():
            self.handled += 1
            self._gateway.take(session.target, message, time.time_ns())
        self._tell(link)
        self.deliver()
        link.flush()

    def _tell(self, link: Connection) -> None:
        for notice in link.session.notices():
            self._log.info(
                "fix_session", kind=notice.kind.value, text=notice.text, client=link.session.target,
                peer=link.peer,
            )  # fmt: skip

    def _leave(self, link: Connection) -> None:
        """Note that a connection has ended; the numbers stay, the orders go if it is so configured."""
        link.session.disconnected(time.time_ns())
        self._tell(link)
        self._connections.discard(link)
        if not link.was_logged_on:
            return
        self.counts["disconnects"] += 1
        if self._cancels and self._links.get(link.session.target) is link:
            self._to_cancel.add(link.session.target)

    async def close(self) -> None:
        """Log out of every session, wait a little for the answers, close what is left."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        for link in list(self._connections):
            link.session.stop(time.time_ns())
            link.flush()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=LOGOUT_S)
        for link in list(self._connections):
            link.writer.transport.abort()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=LOGOUT_S)
        for log in self._logs:
            log.close()

    def status(self) -> dict[str, Any]:
        """Return the counts and who is logged on."""
        return {**self.counts, "logged_on": self.logged_on}
