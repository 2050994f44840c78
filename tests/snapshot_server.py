"""A small exchange on loopback sockets: two UDP lines, a rerequest and a snapshot server, lossy at will."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable

import captures as c
from book_image import BookImage

from nimbus.feed import soupbin as soup


class LoopbackExchange:
    """Sends datagrams to two UDP ports; answers requests and snapshot logins from what was sent."""

    def __init__(self, lines: list[tuple[str, int]], *, seed: int = 1, loss: float = 0.0) -> None:
        self.lines, self.random, self.loss = lines, random.Random(seed), loss
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.messages: dict[int, bytes] = {}
        self.session, self.published = b"", 0
        self.requests = self.logins = 0
        self.script: list[Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]] = []  # faults first
        self.transport: asyncio.DatagramTransport | None = None
        self.server: asyncio.Server | None = None

    async def start(self) -> tuple[int, int]:
        """Listen; return the ports of the rerequest and the snapshot server."""
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(
            lambda: _Rerequest(self), local_addr=("127.0.0.1", 0)
        )
        self.server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        port = self.transport.get_extra_info("sockname")[1]
        return port, self.server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self.sender.close()
        if self.transport is not None:
            self.transport.close()
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()

    def publish(self, first: int, count: int, data: bytes, *, loss: float | None = None) -> None:
        """Send one datagram on both lines; loss: 0 = surely, 1 = nobody listens yet."""
        if count not in {0, 0xFFFF}:
            self.session, at = data[:10], 20
            for n in range(first, first + count):
                size = int.from_bytes(data[at : at + 2], "big")
                self.messages[n] = data[at + 2 : at + 2 + size]
                at += 2 + size
            self.published = first + count - 1
        for address in self.lines:
            if self.random.random() >= (self.loss if loss is None else loss):
                self.sender.sendto(data, address)

    def answer(self, packet: bytes) -> bytes:
        """Return the reply to a request packet, b"" for none."""
        self.requests += 1
        session, first, count = soup.parse_mold_request(packet)
        found = [self.messages[n] for n in range(first, first + count) if n in self.messages]
        return c.mold(session, first, found) if session == self.session and found else b""

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.logins += 1
        try:
            if self.script:
                await self.script.pop(0)(reader, writer)
            else:
                await self.snapshot(reader, writer)
        finally:
            writer.close()

    async def login(self, reader: asyncio.StreamReader) -> soup.LoginRequest:
        (packet,) = soup.Framer(soup.FROM_CLIENT).feed(await reader.readexactly(49))
        return soup.parse_login_request(packet.payload)

    async def snapshot(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: int | None = None
    ) -> None:
        """Serve one snapshot; cut: send so many messages and hang up."""
        assert (await self.login(reader))[2:] == ("", 1)
        image, number = BookImage(), self.published + 1
        for n in range(1, number):
            image.apply(self.messages[n])
        writer.write(soup.login_accepted(soup.session_name(self.session), 1))
        writer.write(soup.encode(soup.DEBUG, b"welcome") + soup.encode(soup.SERVER_HEARTBEAT))
        for message in image.messages()[:cut]:
            writer.write(soup.snapshot_message(message))
        await writer.drain()
        if cut is None:
            writer.write(soup.snapshot_end(number) + soup.encode(soup.END_OF_SESSION))
            assert soup.encode(soup.LOGOUT_REQUEST) in await asyncio.wait_for(reader.read(100), 5)


class _Rerequest(asyncio.DatagramProtocol):
    def __init__(self, exchange: LoopbackExchange) -> None:
        self.exchange = exchange

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        reply = self.exchange.answer(data)
        if reply:
            self.transport.sendto(reply, address)
