"""A live feed over real sockets: UDP lines, requests sent by the kernel, snapshots over TCP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Self

import pytest
from book_image import datagrams
from live_market import LiveMarket, lossless
from snapshot_server import LoopbackExchange

from nimbus.feed import soupbin as soup
from nimbus.feed.live import LiveSettings
from nimbus.feed.snapshot_client import FAILED, LOADED, SnapshotClient, SnapshotEvent, SnapshotServer
from nimbus.venue.generator import generate

MESSAGES = 2_000


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    path = tmp_path_factory.mktemp("sockets") / "day.pcap"
    generate(path, 3, MESSAGES, 4)
    return datagrams(path.read_bytes())


@pytest.fixture(scope="module")
def truth(stream):
    return lossless(stream).state()


class Rig:
    """An exchange and a live market on loopback, driven by one asyncio loop."""

    def __init__(
        self, *, loss: float = 0.0, snapshot: bool = True, rerequest: bool = True, **settings
    ) -> None:
        self.sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _line in range(3)]
        for receiver in self.sockets:
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(0)
        self.exchange = LoopbackExchange([s.getsockname() for s in self.sockets[:2]], loss=loss)
        self.options = {"window_messages": 1_024, "snapshot": snapshot, "snapshot_hold_ms": 5} | settings
        self.rerequest = rerequest
        self.events: list[SnapshotEvent] = []

    async def __aenter__(self) -> Self:
        request_port, port = await self.exchange.start()
        servers = [("127.0.0.1", request_port)] if self.rerequest else []
        self.us = LiveMarket(LiveSettings(servers=servers, **self.options))
        self.us.live.use_socket(self.sockets[2].fileno())
        self.task = None
        if self.options["snapshot"]:
            server = SnapshotServer(
                "127.0.0.1", port, "user", "secret", silence_s=2, delay_s=0.01, delay_s_max=0.05
            )
            self.client = SnapshotClient(self.us.live, server, self.events.append)
            self.task = asyncio.get_running_loop().create_task(self.client.run())
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        for receiver in self.sockets:
            receiver.close()
        await self.exchange.close()

    async def cycle(self) -> None:
        """Run one duty cycle: what the sockets have, then the time."""
        self.us.pass_to(time.monotonic_ns())
        for line, receiver in enumerate(self.sockets):
            for _ in range(64):
                try:
                    data = receiver.recv(65_536)
                except BlockingIOError:
                    break
                self.us.offer(data, line)
        await asyncio.sleep(0)

    async def until(self, condition, cycles: int = 100_000) -> None:
        for _ in range(cycles):
            await self.cycle()
            if condition():
                return
            await asyncio.sleep(0.0005)
        pytest.fail(f"still {self.us.live.phase}: {self.us.live.counters()} {self.events}")

    async def play(self, stream, skip: int = 0) -> None:
        """Publish a stream, the last datagram until it has arrived."""
        for index, (first, count, data) in enumerate(stream):
            self.exchange.publish(first, count, data, loss=1 if index < skip else 0 if index == 0 else None)
            await self.cycle()
        last = stream[-1]
        for _ in range(200):
            self.exchange.publish(*last)
            await self.cycle()
            await asyncio.sleep(0.0005)
            if self.us.feed.record["ended"] and self.us.live.phase == "live":
                break
        await self.until(lambda: self.us.live.phase == "live")
        self.us.check()


async def test_losses_on_both_lines_are_repaired_by_requests_over_udp(stream, truth):
    async with Rig(loss=0.1, snapshot=False, gap_timeout_ms=20_000, reply_timeout_ms=200) as rig:
        await rig.play(stream)
        counts = rig.us.live.counters()
        assert rig.us.state() == truth
        assert rig.us.numbers == list(range(1, MESSAGES + 1))
        assert counts["by_rerequest"] > 5
        assert rig.exchange.requests == counts["requests"] > 3
        assert counts["unsent"] == counts["lost"] == 0


async def test_a_late_join_takes_a_snapshot_over_tcp(stream, truth):
    async with Rig() as rig:
        await rig.play(stream, skip=500)
        assert rig.us.state() == truth
        assert [event.kind for event in rig.events] == [LOADED]
        assert rig.events[0].messages == rig.us.live.counters()["snapshot_messages"] > 100


async def test_without_a_rerequest_server_lost_messages_come_by_snapshot(stream, truth):
    async with Rig(loss=0.05, rerequest=False) as rig:
        await rig.play(stream)
        assert rig.us.state() == truth
        assert rig.us.live.counters()["snapshots"] == rig.client.loaded >= 1


async def hang_up(_reader, _writer) -> None:
    pass


async def reject(reader, writer) -> None:
    await reader.readexactly(49)
    writer.write(soup.login_rejected(soup.NOT_AUTHORIZED))


async def garbage(reader, writer) -> None:
    await reader.readexactly(49)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def other_session(reader, writer) -> None:
    await reader.readexactly(49)
    writer.write(soup.login_accepted("OTHER", 1))


async def data_first(reader, writer) -> None:
    await reader.readexactly(49)
    writer.write(soup.snapshot_end(7))


async def wrong_message(reader, writer) -> None:
    await reader.readexactly(49)
    writer.write(soup.login_accepted("0000000003", 1) + soup.encode(soup.SEQUENCED, b"E" + bytes(30)))


async def no_number(reader, writer) -> None:
    await reader.readexactly(49)
    writer.write(soup.login_accepted("0000000003", 1) + soup.encode(soup.END_OF_SESSION))


async def silent(reader, _writer) -> None:
    assert b"\0\1R" in await reader.readexactly(49 + 3)
    await asyncio.sleep(4)


FAULTS = {
    hang_up: "closed", reject: "not authorized", garbage: "'T'", other_session: "'OTHER'",
    data_first: "before the login", wrong_message: "type 'E'", no_number: "ended before", silent: "no word",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_faulty_snapshot_server_is_one_event_and_another_try(stream, truth, fault):
    async with Rig() as rig:
        rig.exchange.script = [fault]
        await rig.play(stream, skip=500)
        assert [event.kind for event in rig.events] == [FAILED, LOADED]
        assert FAULTS[fault] in rig.events[0].reason
        assert "secret" not in str(rig.events)
        assert rig.us.state() == truth


async def test_a_snapshot_cut_half_way_is_loaded_again_from_the_beginning(stream, truth):
    async with Rig() as rig:
        rig.exchange.script = [lambda r, w: rig.exchange.snapshot(r, w, cut=60)]
        await rig.play(stream, skip=500)
        assert [event.kind for event in rig.events] == [FAILED, LOADED]
        assert rig.us.live.counters()["snapshots_failed"] == 1
        assert rig.us.state() == truth


async def test_an_absent_snapshot_server_is_tried_more_and_more_slowly(stream):
    async with Rig() as rig:
        rig.exchange.server.close()
        await rig.exchange.server.wait_closed()
        for index, datagram in enumerate(stream[:600]):
            rig.exchange.publish(*datagram, loss=index < 500)
            await rig.cycle()
        await rig.until(lambda: len(rig.events) == 3)
        assert {event.kind for event in rig.events} == {FAILED}
        assert rig.us.live.phase == "snapshot"
        assert rig.us.numbers == []
        assert rig.us.feed.incomplete


async def test_a_stream_faster_than_the_market_loop_waits_for_room(stream):
    async with Rig() as rig:
        for index, datagram in enumerate(stream[:600]):
            rig.exchange.publish(*datagram, loss=index < 599)
        big = [m for n, m in sorted(rig.exchange.messages.items())] * 80  # more rows than the ring has

        async def flood(reader, writer) -> None:
            await reader.readexactly(49)
            writer.write(soup.login_accepted("0000000003", 1))
            for message in big:
                if message[:1] in {b"A", b"R"}:
                    writer.write(soup.snapshot_message(message))
            writer.write(soup.snapshot_end(rig.exchange.published + 1))
            await reader.read(100)

        rig.exchange.script = [flood]
        await rig.cycle()
        for _ in range(200):
            await asyncio.sleep(0.002)  # the market loop stands still
        assert not rig.events
        await rig.until(lambda: bool(rig.events))
        assert rig.events[0].kind == LOADED
        assert rig.events[0].messages > 1_024 * 20
