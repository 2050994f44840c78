"""An initiator end to end: coroutine, rings, kernel and socket, against our acceptor over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from fix_echo import EchoAcceptor
from fix_link_rig import SETTINGS, LinkRig, OrdersLoop

from nimbus.fix.engine import Kind
from nimbus.fix.initiator import Initiator, Venue
from nimbus.fix.message import fields
from nimbus.fix.numbers import FileNumbers, MemoryNumbers
from nimbus.fix.settings import Reset
from nimbus.fix.table import Event, State
from nimbus.messages import IN_DOUBT
from ringbuf.spsc import RingView

PATIENCE_S = 60  # a busy machine is no failure
QUICK = {"retry_first_s": 0.05, "retry_max_s": 0.2}


def report(session, message, exec_type, status, now_ns, **more):
    """Answer an order or a cancel as a venue does."""
    qty = int(message.text(38))
    leaves = 0 if status in "248" else qty
    pairs = {
        37: "V1", 11: message.text(11), 17: f"E{session.next_out}-{now_ns}", 150: exec_type, 39: status,
        54: message.text(54), 38: qty, 151: leaves, 14: 0, 6: 0, 55: message.text(55),
    } | more  # fmt: skip
    if message.get(41):
        pairs[41] = message.text(41)
    session.send("8", fields(sorted(pairs.items())), now_ns)


def venue(session, message, _seen, now_ns):
    """Accept orders, cancel what is to be cancelled."""
    if message.msg_type == "D":
        report(session, message, "0", "0", now_ns)
    elif message.msg_type == "F":
        report(session, message, "4", "4", now_ns)


class Trader:
    """One initiator with its orders loop, and the notices it gave."""

    def __init__(self, port, *, numbers=None, settings=SETTINGS, **more):
        self.rig = LinkRig(connect=False, settings=settings)
        self.loop, self.notices = OrdersLoop(self.rig), []
        self.numbers = numbers or MemoryNumbers()
        self.initiator = Initiator(
            self.rig.transport, self.rig.orders, Venue("127.0.0.1", port, **(QUICK | more)), self.numbers,
            tell=self.notices.append,
        )  # fmt: skip
        self.task = None
        for compiles in (self.rig.work, self.rig.receive, self.rig.send, self.rig.transport.events):
            compiles()  # before anyone waits
        self.rig.transport.set_numbers(1, 1)

    def kinds(self):
        return [notice.kind for notice in self.notices]

    async def until(self, condition):
        """Wait until a condition holds; the initiator must not have ended with an error."""
        limit = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < limit, (self.initiator.state, self.notices)
            if self.task.done():
                self.task.result()
            await asyncio.sleep(0.002)

    def send(self, **values):
        """Decide on an order, on a fresh book."""
        with self.loop.work_lock:
            now_ns = time.time_ns()
            self.rig.top(now_ns=now_ns)
            return self.rig.send(now_ns, recv_ns=now_ns, **values)

    def cancel(self, order):
        with self.loop.work_lock:
            return self.rig.cancel(order, time.time_ns())

    def order(self, number):
        return self.rig.order(number)

    async def active(self):
        transport, initiator = self.rig.transport, self.initiator
        await self.until(
            lambda: (
                initiator.state is State.ACTIVE and initiator.is_trading and transport.word("released") == 1
            )
        )


@contextlib.asynccontextmanager
async def trading(port, **more):
    trader = Trader(port, **more)
    trader.rig.arm()
    trader.rig.orders.log_on(logged_on=False)
    trader.loop.start()
    trader.task = asyncio.create_task(trader.initiator.run())
    try:
        yield trader
        trader.initiator.stop()
        await asyncio.wait_for(trader.task, PATIENCE_S)
    finally:
        trader.task.cancel()
        trader.loop.stop()
        trader.initiator.close()


@pytest.fixture
def acceptor():
    made = EchoAcceptor("VENUE", "CONTRAFUSION", reset=Reset.AGREED, heartbeat_s=30)
    made.handle = venue
    yield made
    made.close()


async def test_orders_and_reports_flow_once_logged_on_and_the_session_ends_with_a_logout(acceptor):
    async with trading(acceptor.port) as trader:
        await trader.active()
        assert trader.send() == 0
        await trader.until(lambda: trader.order(1)["status"] == ord("0"))
        assert trader.cancel(1) == 0
        await trader.until(lambda: trader.order(1)["status"] == ord("4"))
    assert trader.kinds() == [Kind.LOGGED_ON, Kind.LOGOUT_SENT]
    assert acceptor.stores["CONTRAFUSION"].next_in == 6  # Logon, TestRequest, D, F, Logout
    assert trader.numbers.saved == (6, 6)


async def test_orders_are_denied_until_the_venue_has_answered(acceptor):
    trader = Trader(acceptor.port)
    trader.rig.arm()
    assert trader.send() != 0
    trader.rig.orders.log_on()
    assert trader.send() != 0  # the kernel's own word stands against it too


async def test_a_lost_connection_is_made_again_and_the_numbers_go_on(acceptor):
    async with trading(acceptor.port) as trader:
        await trader.active()
        assert trader.send() == 0
        await trader.until(lambda: trader.order(1)["status"] == ord("0"))
        acceptor.drop()
        await trader.until(lambda: Kind.IN_DOUBT in trader.kinds())
        assert trader.order(1)["pending"] & IN_DOUBT
        await trader.until(lambda: trader.kinds().count(Kind.LOGGED_ON) == 2)
        await trader.active()
        assert trader.send() == 0
        await trader.until(lambda: trader.order(2)["status"] == ord("0"))
    assert not set(trader.kinds()) & {Kind.GAP, Kind.FAULT, Kind.TIMED_OUT}
    assert trader.rig.orders.next_seq == acceptor.stores["CONTRAFUSION"].next_in == 8


async def test_what_the_venue_sent_while_we_were_away_is_asked_for(acceptor):
    async with trading(acceptor.port) as trader:
        await trader.active()
        assert trader.send() == 0
        await trader.until(lambda: trader.order(1)["status"] == ord("0"))
        acceptor.is_refusing = True
        acceptor.drop()
        await trader.until(lambda: Kind.LOST in trader.kinds())
        order, last = trader.order(1), acceptor.sessions[-1]
        cl_ord_id = bytes(order["cl_ord_id"]).decode()
        filled = {37: "V1", 11: cl_ord_id, 17: "F1", 150: "F", 39: "2", 54: 1, 38: 100, 32: 100, 31: "100.01",
                  151: 0, 14: 100, 6: "100.01", 55: "AAPL"}  # fmt: skip
        last.send("8", fields(sorted(filled.items())), time.time_ns())
        acceptor.is_refusing = False
        await trader.until(lambda: trader.order(1)["status"] == ord("2"))
        await trader.active()
        assert trader.rig.position()["position_qty"] == 100
    assert Kind.GAP in trader.kinds()
    assert Kind.RECOVERED in trader.kinds()


async def test_orders_that_never_left_are_filled_over_and_not_sent_again(acceptor):
    async with trading(acceptor.port) as trader:
        await trader.active()
        with trader.loop.work_lock:
            acceptor.is_refusing = True
            acceptor.drop()
            await asyncio.sleep(0.2)
            now_ns = time.time_ns()
            trader.rig.top(now_ns=now_ns)
            assert [trader.rig.send(now_ns, recv_ns=now_ns) for _ in range(3)] == [0, 0, 0]
        await trader.until(lambda: Kind.IN_DOUBT in trader.kinds())
        acceptor.is_refusing = False
        await trader.until(lambda: Kind.RESENT in trader.kinds())
        await trader.active()
        assert trader.send() == 0
        await trader.until(lambda: trader.order(4)["status"] == ord("0"))
        assert [trader.order(n)["status"] for n in (1, 2, 3)] == [ord("A")] * 3
        assert all(trader.order(n)["pending"] & IN_DOUBT for n in (1, 2, 3))
    assert acceptor.stores["CONTRAFUSION"].next_in == trader.rig.orders.next_seq


async def test_a_process_that_starts_again_goes_on_with_saved_numbers(acceptor, tmp_path):
    for run in (1, 2):
        numbers = FileNumbers(tmp_path / "numbers")
        async with trading(acceptor.port, numbers=numbers) as trader:
            await trader.active()
            assert trader.send() == 0
            await trader.until(lambda trader=trader: trader.order(1)["status"] == ord("0"))
        numbers.close()
        assert Kind.GAP not in trader.kinds()
        assert acceptor.stores["CONTRAFUSION"].next_in == 1 + 4 * run


async def test_a_process_that_died_uses_no_number_twice(acceptor, tmp_path):
    numbers = FileNumbers(tmp_path / "numbers")
    first = Trader(acceptor.port, numbers=numbers)
    first.rig.arm()
    first.loop.start()
    first.task = asyncio.create_task(first.initiator.run())
    await first.active()
    assert first.send() == 0
    await first.until(lambda: first.order(1)["status"] == ord("0"))
    first.task.cancel()  # nothing is saved from here on
    first.loop.stop()
    used = first.rig.orders.next_seq
    first.initiator.close()
    async with trading(acceptor.port, numbers=FileNumbers(tmp_path / "numbers")) as second:
        await second.active()
        assert second.rig.orders.next_seq > used
        await second.until(lambda: Kind.RESENT in second.kinds())  # the venue asked for what was left out


async def test_a_number_that_is_too_low_stops_the_initiator_until_a_person_acts(acceptor):
    acceptor.stores["CONTRAFUSION"].next_out = 1
    async with trading(acceptor.port, numbers=MemoryNumbers(50, 50)) as trader:
        await trader.until(lambda: trader.initiator.is_held)
        await trader.until(lambda: trader.rig.transport.phase == "down")
        await asyncio.sleep(0.5)
        assert trader.kinds().count(Kind.HELD) == 1
        assert "MsgSeqNum too low, expecting 50 but received 1" in trader.notices[0].text
        trader.initiator.set_numbers(acceptor.stores["CONTRAFUSION"].next_out, 60)
        trader.initiator.release()
        await trader.active()


async def test_a_day_begins_with_new_numbers_where_that_is_agreed(acceptor):
    settings = type(SETTINGS)(SETTINGS.role, "CONTRAFUSION", "VENUE", reset=Reset.AGREED)
    acceptor.stores["CONTRAFUSION"].next_out = acceptor.stores["CONTRAFUSION"].next_in = 70
    trader = Trader(acceptor.port, settings=settings, numbers=MemoryNumbers(70, 70))
    trader.initiator.is_new_day = True
    trader.rig.arm()
    trader.loop.start()
    trader.task = asyncio.create_task(trader.initiator.run())
    await trader.active()
    assert trader.send() == 0
    await trader.until(lambda: trader.order(1)["status"] == ord("0"))
    assert trader.rig.orders.next_seq == 4
    trader.initiator.stop()
    await asyncio.wait_for(trader.task, PATIENCE_S)
    trader.loop.stop()
    assert not trader.initiator.is_new_day
    assert trader.numbers.saved == (5, 5)


async def test_an_unreachable_venue_is_tried_again_and_again_and_stop_ends_it():
    async with trading(1) as trader:
        await trader.until(lambda: trader.kinds().count(Kind.UNREACHABLE) >= 3)
    assert set(trader.kinds()) == {Kind.UNREACHABLE}


async def test_an_orders_loop_that_does_not_answer_is_told_and_left_its_descriptor():
    acceptor = EchoAcceptor("VENUE", "CONTRAFUSION", reset=Reset.AGREED)
    settings = type(SETTINGS)(SETTINGS.role, "CONTRAFUSION", "VENUE", logon_timeout_s=0.2)
    trader = Trader(acceptor.port, settings=settings)
    trader.task = asyncio.create_task(trader.initiator.run())
    await trader.until(lambda: Kind.FAULT in trader.kinds())
    assert "orders loop" in trader.notices[-1].text
    trader.loop.start()  # it comes back, lets go, and the next connection works
    trader.rig.arm()
    await trader.active()
    trader.initiator.stop()
    await asyncio.wait_for(trader.task, PATIENCE_S)
    trader.loop.stop()
    acceptor.close()


async def test_heartbeats_and_test_requests_keep_the_session_up(acceptor):
    settings = type(SETTINGS)(SETTINGS.role, "CONTRAFUSION", "VENUE", heartbeat_s=1)
    async with trading(acceptor.port, settings=settings) as trader:
        await trader.active()
        await asyncio.sleep(2.6)
        assert trader.initiator.state is State.ACTIVE
        assert acceptor.stores["CONTRAFUSION"].next_in >= 5  # Logon, TestRequest and two Heartbeats
        acceptor.is_mute = True
        await trader.until(lambda: Kind.TIMED_OUT in trader.kinds())
        acceptor.is_mute = False
        await trader.active()


async def test_a_heartbeat_that_waits_for_the_orders_loop_is_not_asked_for_again(acceptor):
    settings = type(SETTINGS)(SETTINGS.role, "CONTRAFUSION", "VENUE", heartbeat_s=1)
    async with trading(acceptor.port, settings=settings) as trader:
        await trader.active()
        trader.loop.stop()
        before = acceptor.stores["CONTRAFUSION"].next_in
        await asyncio.sleep(1.6)
        assert trader.initiator.state is State.ACTIVE
        assert 1 <= RingView(trader.rig.segment, "transport.session_out").used <= 2  # Heartbeat, TestRequest
        trader.loop = OrdersLoop(trader.rig)
        trader.loop.start()
        await trader.until(lambda: acceptor.stores["CONTRAFUSION"].next_in > before)
        await asyncio.sleep(0.2)
        taken = acceptor.stores["CONTRAFUSION"].next_in - before
        assert taken <= 3  # those, and an answer to a TestRequest of the venue


async def test_a_long_gap_is_asked_for_in_chunks(acceptor):
    settings = type(SETTINGS)(SETTINGS.role, "CONTRAFUSION", "VENUE", resend_chunk=5)
    async with trading(acceptor.port, settings=settings) as trader:
        await trader.active()
        acceptor.swallow = 12
        for _ in range(12):
            assert trader.send() == 0
        await trader.until(lambda: acceptor.swallow == 0)
        assert trader.send() == 0
        await trader.until(lambda: trader.order(13)["status"] == ord("0"))
        assert [trader.order(n)["status"] for n in range(1, 13)] == [ord("0")] * 12
        await trader.active()
    assert trader.kinds()[1:3] == [Kind.GAP, Kind.RECOVERED]
    assert acceptor.sessions[-1].counts[Event.RESEND_REQUEST] == 3


async def test_a_gap_in_what_comes_in_is_filled_while_logged_on(acceptor):
    async with trading(acceptor.port) as trader:
        await trader.active()
        assert trader.send() == 0
        await trader.until(lambda: trader.order(1)["status"] == ord("0"))
        acceptor.swallow = 2  # two reports are numbered and stored, but do not reach the wire
        assert [trader.send(), trader.send()] == [0, 0]
        await trader.until(lambda: acceptor.swallow == 0)
        assert trader.send() == 0
        await trader.until(lambda: trader.order(4)["status"] == ord("0"))
        assert [trader.order(n)["status"] for n in (2, 3)] == [ord("0")] * 2
        await trader.active()
    assert trader.kinds()[1:3] == [Kind.GAP, Kind.RECOVERED]
