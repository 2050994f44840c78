"""The snapshot server: SoupBinTCP over TCP on the control loop, one image of the shadow book a connection.

Whoever logs in (user and password as configured, our session or none, number 0 or 1) is sent Login Accepted
with the MoldUDP64 session, the image, its end with the number of the first message that is not in it, and End
of Session; then the connection is closed.  At most CLIENTS_MAX at a time; one more is closed at once.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from typing import Final

from nimbus.feed import soupbin
from nimbus.venue.shadow import Shadow

CLIENTS_MAX: Final = 16
LOGIN_S: Final = 10.0
SEND_S: Final = 30.0
READ_SIZE: Final = 4_096


class SnapshotServer:
    """Serve images of a shadow book; `counts` says what happened, by name."""

    def __init__(self, shadow: Shadow, session: str, *, user: str = "", password: str = "") -> None:
        self._shadow, self._session = shadow, session.strip()
        self._user, self._password = user, password
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter(clients=0, snapshots=0, refused=0, faults=0)

    async def start(self, host: str, port: int) -> None:
        """Listen; raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, port)

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and end the connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= CLIENTS_MAX:
            self.counts["refused"] += 1
            writer.close()
            return
        self._clients.add(task)
        self.counts["clients"] += 1
        try:
            await self._serve(reader, writer)
        except (soupbin.SoupError, OSError, TimeoutError):
            self.counts["faults"] += 1
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._clients.discard(task)
            writer.close()

    async def _login(self, reader: asyncio.StreamReader) -> soupbin.LoginRequest:
        """Wait for the Login Request; heartbeats and debug packets before it are passed over."""
        framer = soupbin.Framer(soupbin.FROM_CLIENT)
        while True:
            piece = await reader.read(READ_SIZE)
            if not piece:
                msg = "the client went before it logged in"
                raise ConnectionError(msg)
            for packet in framer.feed(piece):
                if packet.kind == soupbin.LOGIN_REQUEST:
                    return soupbin.parse_login_request(packet.payload)

    def _refusal(self, login: soupbin.LoginRequest) -> str:
        user = hmac.compare_digest(login.user.encode(), self._user.encode())
        password = hmac.compare_digest(login.password.encode(), self._password.encode())
        if not (user and password) and (self._user or self._password):
            return soupbin.NOT_AUTHORIZED
        ours = login.session in {"", self._session} and login.number <= 1
        return "" if ours else soupbin.NO_SESSION

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        login = await asyncio.wait_for(self._login(reader), LOGIN_S)
        refusal = self._refusal(login)
        if refusal:
            self.counts["refused"] += 1
            writer.write(soupbin.login_rejected(refusal))
            await writer.drain()
            return
        while self._shadow.follow():
            pass
        seq, image = self._shadow.image()
        writer.write(soupbin.login_accepted(self._session))
        writer.write(image)
        writer.write(soupbin.snapshot_end(seq + 1))
        writer.write(soupbin.encode(soupbin.END_OF_SESSION))
        await asyncio.wait_for(writer.drain(), SEND_S)
        writer.write_eof()
        self.counts["snapshots"] += 1
