"""The transport kernel against a real peer on the loopback interface."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct

import pytest
from fix_link_rig import NOW, LinkRig, from_venue, logon

from nimbus.fix.message import Message, fields
from nimbus.fix.table import Event
from nimbus.fix.transport_layout import LINK_DOWN, LINK_GAP
from nimbus.messages import (
    HALTED,
    IN_DOUBT,
    OUT_ESTABLISH,
    OUT_RELEASE,
    OUT_SEND,
    PENDING_CANCEL,
    SESSION_BYTES_MAX,
    WIRE_BYTES_MAX,
)
from nimbus.orders import kill_switch, risk
from nimbus.orders.risk import Reason


@pytest.fixture
def rig():
    made = LinkRig()
    yield made
    made.close()


@pytest.fixture
def up(rig):
    rig.establish()
    rig.arm()
    return rig


def report(seq, number=1, **more):
    return from_venue("8", seq, (37, f"o{number}"), (17, f"e{seq}"), (150, "0"), (39, "0"), **more)


def test_the_link_word_speaks_the_language_of_risk():
    assert (LINK_DOWN, LINK_GAP) == (risk.NOT_LOGGED_ON, risk.RESENDING)


# ---------------------------------------------------------------- out


def test_orders_and_session_messages_leave_in_the_order_of_their_numbers(up):
    up.session_message("0")
    assert [up.send(), up.send()] == [0, 0]
    up.session_message("1", fields([(112, "TEST")]))
    up.work()
    found = up.at_peer(4)
    assert [(m.msg_type, m.seq) for m in found] == [("D", 1), ("D", 2), ("0", 3), ("1", 4)]
    assert found[3].raw.endswith(b"\x01112=TEST\x0110=" + found[3].raw[-4:])
    assert up.orders.next_seq == 5


def test_a_gap_fill_keeps_its_number_and_leads_to_the_next_one(up):
    assert [up.send(), up.send()] == [0, 0]
    up.session_message("4", b"123=Y\x01", seq=1)
    up.session_message("4", b"123=Y\x01", seq=1, new_seq=2)
    up.work()
    fill, short = up.at_peer(4)[2:]
    assert [(fill.seq, fill.text(36)), (short.seq, short.text(36))] == [(1, "3"), (1, "2")]
    assert fill.is_poss_dup
    assert fill.get(122) == fill.get(52)
    assert up.orders.next_seq == 3


def test_what_the_socket_does_not_take_waits_and_nothing_overtakes_it(rig):
    rig.close()
    rig.hang_up()
    rig.wait(Event.DISCONNECTED)
    rig.connect(small=True)
    rig.establish()
    rig.arm()
    sent, bulk = [], b"x" * (WIRE_BYTES_MAX - 100)
    while rig.transport.word("tx_at") == rig.transport.word("tx_end"):
        sent.append(from_venue("D", len(sent) + 1, (58, bulk)))
        rig.put_wire(sent[-1])
        rig.work()
    assert rig.transport.word("partial_sends") == 1
    rig.session_message("0")
    for _ in range(5):
        sent.append(from_venue("D", len(sent) + 1, (58, bulk)))
        rig.put_wire(sent[-1])
    before = rig.transport.counters()
    rig.work(10)
    assert rig.transport.word("sent") == before["sent"]
    assert rig.transport.word("blocked_sends") > before["blocked_sends"]
    assert rig.send() == Reason.SESSION
    assert rig.orders.last_denial() == (risk.SEND_BUFFER_USED, 0)
    found = []
    while len(found) < len(sent) + 1:
        rig.work()
        found += rig.framer.feed(rig.peer.recv(65_536))
    assert found[:-1] == sent
    assert b"\x0135=0\x01" in found[-1]
    assert rig.send() == 0


def test_a_message_that_the_socket_takes_in_part_arrives_whole(rig):
    rig.close()
    rig.hang_up()
    rig.wait(Event.DISCONNECTED)
    rig.connect(small=True)
    rig.establish()
    texts, waiting, found = [], [], []
    for size in range(850, 870):
        while rig.transport.word("tx_at") == rig.transport.word("tx_end"):
            for _ in range(3):  # in one cycle: the second must not overtake the rest of the first
                texts.append(f"{len(texts)} " + "y" * size)
                rig.session_message("B", fields([(58, texts[-1])]))
            rig.work()
        waiting.append(rig.transport.word("tx_end") - rig.transport.word("tx_at"))
        while rig.transport.word("tx_at") != rig.transport.word("tx_end"):
            found += rig.framer.feed(rig.peer.recv(65_536))
            rig.work()
    assert min(waiting) < 850 < max(waiting)  # some were taken in part, some not at all
    rig.peer.settimeout(0.2)
    while len(found) < len(texts):
        rig.work(3)
        found += rig.framer.feed(rig.peer.recv(65_536))
    assert [Message.parse(raw).text(58) for raw in found] == texts


def test_a_password_does_not_stay_in_shared_memory(up):
    up.session_message("A", fields([(554, "open-sesame")]))
    up.work()
    assert up.at_peer(1)[0].text(554) == "open-sesame"
    for addr, size in up.segment.areas.values():
        if size < 1 << 21:
            assert b"open-sesame" not in bytes(up.segment.words(addr, size // 8).tobytes())


def test_a_session_message_that_is_too_long_is_refused_where_it_is_made(up):
    with pytest.raises(ValueError, match="does not fit"):
        up.transport.command(OUT_SEND, body=b"x" * (SESSION_BYTES_MAX + 1))


# ---------------------------------------------------------------- in


def test_nothing_behind_the_logon_is_taken_before_the_session_is_established(rig):
    rig.peer.sendall(logon() + report(2) + from_venue("0", 3))
    (event,) = rig.wait(Event.LOGON)
    assert (event.seq, event.next_in, event.message.text(108)) == (1, 2, "30")
    rig.no_events()
    assert rig.arrived() == []
    rig.transport.command(OUT_ESTABLISH)
    rig.wait(Event.HEARTBEAT)
    assert rig.arrived() == [report(2)]


@pytest.mark.parametrize("kind", [*"0123458", "D"])
def test_a_first_message_goes_to_the_control_loop_whatever_it_is(rig, kind):
    rig.peer.sendall(from_venue(kind, 1, (36, 5), (123, "Y")))
    rig.until(lambda: rig.transport.phase == "waiting")
    (event,) = rig.transport.events()
    assert event.message.msg_type == kind
    assert rig.arrived() == []


def test_bytes_that_come_one_by_one_are_the_same_messages(up):
    stream = report(2) + from_venue("1", 3, (112, "x")) + report(4)
    for byte in stream:
        up.peer.sendall(bytes([byte]))
        size = up.transport.word("received_size")
        up.until(lambda size=size: up.transport.word("received_size") > size)
    up.wait(Event.TEST_REQUEST)
    assert up.arrived() == [report(2), report(4)]


def test_many_messages_in_one_read_are_all_taken_in_order(up):
    reports = [report(seq) for seq in range(2, 402)]
    up.peer.sendall(b"".join(reports))
    up.until(lambda: up.transport.word("delivered") == 400)
    assert up.arrived() == reports
    assert up.transport.word("next_in") == 402


def test_a_full_ring_keeps_messages_in_the_socket_and_loses_none(up):
    reports, got = [report(seq) for seq in range(2, 6_002)], []
    up.peer.settimeout(0)
    stream, at = b"".join(reports), 0
    for _ in range(3):
        for _ in range(400):
            up.work()
            with contextlib.suppress(BlockingIOError):
                at += up.peer.send(stream[at:])
        assert up.transport.word("stalls") > 0
        got += up.arrived()
    up.peer.settimeout(None)
    up.peer.settimeout(0.01)
    while len(got) < len(reports):
        with contextlib.suppress(TimeoutError):
            at += up.peer.send(stream[at:])
        up.work(100)
        got += up.arrived()
    assert got == reports


def test_the_control_loops_ring_holds_back_too(up):
    beats = [from_venue("0", seq) for seq in range(2, 2_502)]
    up.peer.sendall(b"".join(beats))
    up.until(lambda: up.transport.word("stalls") > 0)
    found = []
    up.until(lambda: found.extend(up.transport.events()) or len(found) == 2_500)
    assert [event.seq for event in found] == list(range(2, 2_502))


def test_garbled_messages_are_counted_and_the_next_one_is_found(up):
    broken = report(2).replace(b"150=0", b"150=1")
    up.peer.sendall(b"junk" + broken + report(2))
    up.wait(Event.GARBLED)
    up.until(lambda: up.transport.word("delivered") == 1)
    assert up.arrived() == [report(2)]
    assert (up.transport.word("garbled"), up.transport.word("skipped_size")) == (1, len(broken) + 4)


# ---------------------------------------------------------------- numbers


def test_a_gap_is_told_once_held_against_orders_and_filled(up):
    up.peer.sendall(report(4) + report(5))
    (gap,) = up.wait(Event.TOO_HIGH)
    assert (gap.seq, gap.next_in, gap.highest) == (4, 2, 4)
    up.until(lambda: up.transport.word("too_high") == 2)
    up.no_events()
    assert up.send() == Reason.SESSION
    assert up.orders.last_denial() == (risk.RESENDING, 0)
    assert up.arrived() == []
    up.peer.sendall(b"".join(report(seq, original=b"20251125-22:51:51") for seq in (2, 3, 4)))
    up.until(lambda: up.transport.word("next_in") == 5)
    up.no_events()
    up.peer.sendall(from_venue("4", 5, (36, 6), (123, "Y"), original=b"20251125-22:51:51"))
    fill, filled = up.wait(Event.GAP_FILL, Event.GAP_FILLED)
    assert (fill.next_in, filled.next_in, filled.highest) == (6, 6, 5)
    assert len(up.arrived()) == 3
    assert up.send() == 0


def test_a_resend_request_above_a_gap_is_passed_on_at_once(up):
    up.peer.sendall(from_venue("2", 9, (7, 1), (16, 0)))
    (event,) = up.wait(Event.RESEND_REQUEST_HIGH)
    assert (event.next_in, event.highest) == (2, 9)


def test_no_order_leaves_while_a_resend_request_waits_for_its_answer(up):
    up.peer.sendall(from_venue("2", 2, (7, 1), (16, 0)))
    up.wait(Event.RESEND_REQUEST)
    assert up.send() == Reason.SESSION
    assert up.orders.last_denial() == (risk.RESENDING, 0)
    up.session_message("4", b"123=Y\x01", seq=1)
    up.work()
    assert up.send() == 0


def test_a_gap_fill_of_ours_puts_unanswered_requests_in_doubt(up):
    assert [up.send(), up.send(), up.send()] == [0, 0, 0]
    up.reports(1, "0", "0")
    up.reports(2, "0", "0")
    assert up.cancel(2) == 0
    up.session_message("4", b"123=Y\x01", seq=1)
    up.work()
    assert [up.order(n)["pending"] & (IN_DOUBT | PENDING_CANCEL) for n in (1, 2, 3)] == [
        0,
        IN_DOUBT,
        IN_DOUBT,
    ]


def test_orders_wait_for_the_release_that_follows_what_was_filled(rig):
    rig.arm()
    rig.peer.sendall(logon())
    rig.wait(Event.LOGON)
    rig.transport.command(OUT_ESTABLISH)
    rig.work()
    assert rig.send() == Reason.SESSION
    rig.transport.command(OUT_RELEASE)
    rig.work()
    assert rig.send() == 0


def test_a_repeat_is_ignored_and_a_low_number_is_told(up):
    up.peer.sendall(report(2) + report(2, original=b"20251125-22:51:51") + report(2))
    (event,) = up.wait(Event.TOO_LOW)
    assert (event.seq, event.next_in) == (2, 3)
    assert up.transport.word("repeated") == 1
    assert up.arrived() == [report(2)]


def test_gap_fill_and_reset_move_the_number(up):
    up.peer.sendall(from_venue("4", 2, (36, 20), (123, "Y")))
    assert up.wait(Event.GAP_FILL)[0].next_in == 20
    up.peer.sendall(from_venue("4", 1, (36, 50)))
    assert up.wait(Event.RESET)[0].next_in == 50
    up.peer.sendall(from_venue("4", 1, (36, 49)))
    assert up.wait(Event.RESET_LOW)[0].next_in == 50
    up.peer.sendall(report(50))
    up.until(lambda: up.transport.word("delivered") == 1)


def test_an_execution_is_taken_whatever_its_time_says_and_others_are_not(up):
    late = NOW - 500 * 10**9
    up.peer.sendall(report(2, now_ns=late) + from_venue("j", 3, now_ns=late))
    taken, refused = up.wait(Event.BAD_TIME_TAKEN, Event.BAD_TIME)
    assert (taken.next_in, refused.next_in) == (3, 4)
    assert up.arrived() == [report(2, now_ns=late)]
    assert up.transport.word("times_off") == 1


def test_an_execution_that_is_too_long_halts_trading_and_uses_its_number(up):
    up.peer.sendall(from_venue("8", 2, (58, "x" * WIRE_BYTES_MAX)) + report(3))
    (event,) = up.wait(Event.OVERSIZED)
    assert event.message.msg_type == "8"
    assert event.next_in == 3
    assert up.orders.kill_switch.by_source()["risk"] == "HALTED"
    assert kill_switch.effective(up.orders.kill_switch.addr) == HALTED
    up.until(lambda: up.transport.word("delivered") == 1)


def test_another_message_that_is_too_long_is_told_and_no_reason_to_halt(up):
    up.peer.sendall(from_venue("B", 2, (58, "x" * 2_000)))
    (event,) = up.wait(Event.OVERSIZED)
    assert (event.message.msg_type, event.next_in) == ("B", 3)
    assert (up.transport.word("unread"), up.transport.word("oversized")) == (1, 0)
    assert up.send() == 0


def test_numbers_are_what_the_control_loop_sets(rig):
    rig.transport.set_numbers(17, 300)
    rig.session_message("A")
    rig.work()
    assert rig.at_peer(1)[0].seq == 300
    rig.peer.sendall(logon(17))
    assert rig.wait(Event.LOGON)[0].next_in == 18


# ---------------------------------------------------------------- the end


def test_what_came_before_the_end_is_processed_first(up):
    up.peer.sendall(report(2) + from_venue("0", 3))
    up.peer.close()
    _, end = up.wait(Event.HEARTBEAT, Event.DISCONNECTED)
    assert (end.value, up.transport.phase, up.transport.word("fd")) == (0, "down", -1)
    assert up.arrived() == [report(2)]


def test_a_reset_by_the_peer_ends_the_connection(up):
    assert up.send() == 0
    up.work()
    up.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    up.peer.close()
    (end,) = up.wait(Event.DISCONNECTED)
    assert end.value in {errno.ECONNRESET, errno.EPIPE}
    assert (end.seq, up.transport.word("fd")) == (1, -1)


def test_orders_that_were_numbered_but_not_sent_are_dropped_and_their_numbers_used(up):
    up.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    up.peer.close()
    assert [up.send(), up.send(), up.send()] == [0, 0, 0]
    (end,) = up.wait(Event.DISCONNECTED)
    assert end.seq == 3
    assert up.transport.word("unsent") == 3
    assert up.wires() == []
    assert up.orders.next_seq == 4


def test_working_orders_are_in_doubt_until_the_venue_speaks(up):
    assert up.send() == 0
    assert up.cancel(1) == 0
    up.peer.close()
    up.wait(Event.DISCONNECTED)
    assert up.order(1)["pending"] & (IN_DOUBT | PENDING_CANCEL) == IN_DOUBT
    assert up.position()["open_buy_qty"] == 100
    up.reports(1, "0", "0")
    assert up.order(1)["pending"] == 0


def test_a_report_that_disagrees_does_not_clear_the_doubt(up):
    assert up.send() == 0
    up.peer.close()
    up.wait(Event.DISCONNECTED)
    up.reports(1, "F", "1", qty=10, px=1_000_000, leaves_qty=70)
    assert up.order(1)["pending"] & IN_DOUBT
    up.reports(1, "F", "1", qty=10, px=1_000_000)
    assert not up.order(1)["pending"] & IN_DOUBT


def test_without_a_connection_neither_order_nor_cancel_leaves(up):
    assert up.send() == 0
    up.peer.close()
    up.wait(Event.DISCONNECTED)
    assert up.send() == Reason.SESSION
    assert up.orders.last_denial() == (risk.NOT_LOGGED_ON, 0)
    assert up.cancel(1) == Reason.SESSION
    assert up.order(1)["pending"] & PENDING_CANCEL == 0
    up.session_message("0")
    up.work()
    assert up.transport.word("late_commands") == 1


def test_a_descriptor_given_back_is_never_used_again(up):
    fd = up.ours.fileno()
    up.hang_up()
    up.wait(Event.DISCONNECTED)
    up.ours.close()
    left, right = socket.socketpair()
    with left, right:
        assert fd in {left.fileno(), right.fileno()}
        up.session_message("0")
        up.put_wire(report(9))
        up.work(5)
        left.settimeout(0)
        right.settimeout(0)
        for end in (left, right):
            with pytest.raises(BlockingIOError):
                end.recv(1)


def test_the_end_is_told_even_when_the_control_loop_is_behind(up):
    up.peer.sendall(b"".join(from_venue("0", seq) for seq in range(2, 1_100)))
    up.peer.close()
    up.work(200)
    found = []
    up.until(lambda: found.extend(up.transport.events()) or (found and found[-1].event is Event.DISCONNECTED))
    assert len(found) == 1_099


def test_a_second_connection_goes_on_with_the_numbers(up):
    assert up.send() == 0
    up.peer.close()
    up.wait(Event.DISCONNECTED)
    up.close()
    up.connect()
    assert up.send() == Reason.SESSION
    up.session_message("A")
    up.work()
    assert up.at_peer(1)[0].seq == 2
    up.establish(seq=2)
    assert up.send() == 0
    up.work()
    assert up.at_peer(1)[0].seq == 3


def test_a_clock_that_was_set_back_does_not_stop_the_receiver():
    rig = LinkRig()
    rig.transport._row[0]["poll_ns"] = 1_000_000
    rig.work(now_ns=NOW + 10**15)
    rig.peer.sendall(logon())
    rig.wait(Event.LOGON)
    rig.close()


def test_an_idle_socket_is_asked_again_after_the_poll_time():
    rig = LinkRig()
    rig.transport._row[0]["poll_ns"] = 1_000_000
    rig.work()
    rig.peer.sendall(logon())
    rig.work(50)
    assert rig.transport.word("received_size") == 0
    rig.wait(Event.LOGON, now_ns=NOW + 1_000_000)
    rig.close()
