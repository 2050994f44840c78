"""The initiator against QuickFIX, an engine that is not ours; skipped where its package is not installed."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import socket
import subprocess
import sys

import pytest
from test_fix_initiator import trading

from nimbus.fix.engine import Kind
from nimbus.fix.numbers import MemoryNumbers
from nimbus.messages import IN_DOUBT

pytest.importorskip("quickfix", reason="the optional package quickfix-py is not installed")
SCRIPT = pathlib.Path(__file__).with_name("quickfix_peer.py")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def quickfix(folder, port):
    """Run the other engine."""
    command = [sys.executable, str(SCRIPT), str(folder), str(port), "VENUE", "CONTRAFUSION"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


async def test_orders_flow_both_ways_with_another_engine(tmp_path):
    port = free_port()
    with quickfix(tmp_path, port):
        async with trading(port) as trader:
            await trader.active()
            assert trader.send() == 0
            await trader.until(lambda: trader.order(1)["status"] == ord("0"))
            assert trader.cancel(1) == 0
            await trader.until(lambda: trader.order(1)["status"] == ord("4"))
    assert trader.kinds() == [Kind.LOGGED_ON, Kind.LOGOUT_SENT]


async def test_after_it_was_killed_the_numbers_go_on_and_no_order_is_repeated(tmp_path):
    port = free_port()
    numbers = MemoryNumbers()
    with quickfix(tmp_path, port):
        async with trading(port, numbers=numbers) as trader:
            await trader.active()
            assert trader.send() == 0
            await trader.until(lambda: trader.order(1)["status"] == ord("0"))
    async with trading(port, numbers=numbers) as trader:
        await trader.until(lambda: Kind.UNREACHABLE in trader.kinds())
        with quickfix(tmp_path, port):
            await trader.active()
            assert trader.send() == 0
            await trader.until(lambda: trader.order(1)["status"] == ord("0"))
            trader.initiator.stop()
            await trader.task
    assert trader.kinds().count(Kind.LOGGED_ON) == 1
    assert Kind.GAP not in trader.kinds()


async def test_a_gap_of_ours_is_asked_for_and_filled(tmp_path):
    port = free_port()
    with quickfix(tmp_path, port):
        async with trading(port, numbers=MemoryNumbers(1, 40)) as trader:
            await trader.until(lambda: Kind.RESENT in trader.kinds())
            await trader.active()
            assert trader.send() == 0
            await trader.until(lambda: trader.order(1)["status"] == ord("0"))
            assert not trader.order(1)["pending"] & IN_DOUBT


async def test_what_it_sent_before_is_asked_for_when_our_number_is_behind(tmp_path):
    port = free_port()
    with quickfix(tmp_path, port):
        numbers = MemoryNumbers()
        async with trading(port, numbers=numbers) as trader:
            await trader.active()
            for number in (1, 2, 3):
                assert trader.send() == 0
                await trader.until(lambda number=number: trader.order(number)["status"] == ord("0"))
        behind = MemoryNumbers(3, numbers.saved[1])
        async with trading(port, numbers=behind) as trader:
            await trader.until(lambda: Kind.RECOVERED in trader.kinds())
            await trader.active()
            await asyncio.sleep(0.1)
            counted = trader.rig.orders.counters()
            assert (
                counted["received"] == 3
            )  # its three reports again; nobody knows the orders in this process
            assert counted["unknown_orders"] == 3
