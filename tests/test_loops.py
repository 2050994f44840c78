"""The live placements: the same packets give the same books as a replay, in one thread and in three."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import time
from collections.abc import Iterator

import pytest
from replays import replay

from daemon.config import Config
from daemon.settings import adjusted
from daemon.system import System
from daemon.threads import create_loops
from daemon.understudy import Understudy
from nimbus.book.snapshot import state_hash
from nimbus.venue.generator.day import generate
from ringbuf.agent import clear_stop, request_stop

SETTINGS = {
    "feed.source": "udp",
    "feed.address": "127.0.0.1",
    "model.kind": "linear",
    "book.symbols_max": 1_024,
    "book.live_orders_max": 65_536,
    "book.levels_max": 16_384,
    "orders.day_orders_max": 65_536,
}
WAIT_S = 60.0


def datagrams(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the UDP payloads of a capture that our generator wrote: plain Ethernet, IPv4, ns pcap."""
    raw, at = path.read_bytes(), 24
    while at < len(raw):
        size = int.from_bytes(raw[at + 8 : at + 12], "little")
        yield raw[at + 16 + 42 : at + 16 + size]
        at += 16 + size


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("day") / "day.pcap"
    generate(path, seed=5, messages=4_000, symbols=8)
    return path


@pytest.mark.alone
@pytest.mark.parametrize("placement", ["compact", "dedicated"])
def test_a_placement_gives_the_books_of_a_replay(
    placement: str, day: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    truth = replay(day, tmp_path / "replayed").summary
    port = free_port()
    config = adjusted(Config(), SETTINGS | {"feed.line_a": f"127.0.0.1:{port}"})
    with contextlib.closing(System(config, None)) as system:
        request_stop(system.control_addr)
        understudy = Understudy(6)
        loops = create_loops(
            system.segment, system.pipeline, config.run, placement, lambda *_: None,
            rehearsal=understudy.rehearsal,
        )  # fmt: skip
        clear_stop(system.control_addr)
        system.control["clock"] = loops[0].clock.addr
        system.strategy.head["clock"] = loops[len(loops) // 2].clock.addr
        system.arm("test", "orders go to the paper exchange in this process")
        for loop in loops:
            loop.thread.start()
        total = sum(truth["messages"].values())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number, payload in enumerate(datagrams(day)):
                sender.sendto(payload, ("127.0.0.1", port))
                if number % 16 == 0:
                    time.sleep(0.001)
        until = time.monotonic() + WAIT_S
        while system.control["heartbeat"] < total and time.monotonic() < until:
            time.sleep(0.01)
        request_stop(system.control_addr)
        for loop in loops:
            assert loop.thread.join(10.0)
            assert loop.thread.error is None
            assert loop.beats() > 0
        assert system.control["heartbeat"] == total, system.input_counters()
        assert f"{state_hash(system.books.state) & (1 << 64) - 1:016x}" == truth["book_state_hash"]
        assert system.strategy.counters()["handled"] > 0
        assert system.orders.counters()["sent"] > 0
        assert system.venue.counters()["accepted"] > 0
