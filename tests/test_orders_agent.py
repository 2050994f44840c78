"""The orders agent from intent to position: each scenario plays the venue's side in real FIX bytes."""

import numpy as np
import pytest
from orders_rig import NOW, Rig, fields_of

from nimbus.journal.types import RecordType
from nimbus.messages import (
    BUY,
    FILL_ACCEPTED,
    FILL_CANCEL_REJECTED,
    FILL_CANCELLED,
    FILL_DENIED,
    FILL_REJECTED,
    FILL_TRADE,
    HALTED,
    INTENT_CANCEL,
    JOURNAL,
    KILLED,
    PENDING_CANCEL,
    PENDING_NEW,
    SELL,
)
from nimbus.orders import kill_switch
from nimbus.orders.agent import cancel_all
from nimbus.orders.journal_records import CANCEL_OUT, DENIAL, EXECUTION, ORDER_OUT, VERDICT_NAMES
from nimbus.orders.risk import JOURNAL_LOW, NOT_LOGGED_ON, RING_FULL, Reason
from ringbuf.spsc import claim, publish


@pytest.fixture
def rig():
    made = Rig()
    made.arm()
    return made


def journal(rig):
    """Every record of the stream so far as (type, payload bytes), groups joined."""
    rows = np.concatenate([np.frombuffer(v, JOURNAL.dtype) for v in rig.stream.waiting()])
    groups = []
    for row in rows:
        payload = bytes(row["payload"][: row["payload_size"]])
        if row["part"] & 0x7F:
            groups[-1] = (groups[-1][0], groups[-1][1] + payload)
        else:
            groups.append((RecordType(row["type"]), payload))
    return groups


def as_record(payload, record):
    return np.frombuffer(payload[: record.size], record.dtype)[0]


def kinds(fills):
    return [int(f["kind"]) for f in fills]


def test_an_order_leaves_as_fix_and_its_journal_record_stands_before_it(rig):
    assert rig.send(px=1_000_150, qty=300, side=SELL, cause_seq=777) == 0
    (message,) = rig.wires()
    fields = fields_of(message)
    assert (fields[35], fields[54], fields[55], fields[59]) == ("D", "2", "AAPL", "0")
    assert (fields[38], fields[44], fields[34]) == ("0000300", "000100.0150", "000000001")
    assert fields[11] == "0007" + "00001" + "00000O9"  # epoch 7, order 1, cause 777 = 24 * 32 + 9
    ((kind, payload),) = journal(rig)
    out = as_record(payload, ORDER_OUT)
    assert kind == RecordType.ORDER_OUT
    assert (out["order"], out["px"], out["qty"], out["msg_seq_num"]) == (1, 1_000_150, 300, 1)
    assert int(out["symbol"]).to_bytes(8, "little") == b"AAPL    "
    assert rig.order(1)["pending"] == PENDING_NEW
    assert rig.position()["open_sell_qty"] == 300
    assert rig.position()["open_orders"] == 1


def test_an_order_is_accepted_filled_in_two_parts_and_closed(rig):
    rig.send(qty=100)
    rig.reports(1, "0", "0")
    assert rig.order(1)["pending"] == 0
    rig.reports(1, "F", "1", qty=40, px=1_000_050)
    rig.reports(1, "F", "2", qty=60, px=1_000_100)
    order, position, fills = rig.order(1), rig.position(), rig.fills()
    assert kinds(fills) == [FILL_ACCEPTED, FILL_TRADE, FILL_TRADE]
    assert [int(f["last_qty"]) for f in fills] == [0, 40, 60]
    assert [int(f["leaves_qty"]) for f in fills] == [100, 60, 0]
    assert [int(f["position_qty"]) for f in fills] == [0, 40, 100]
    assert (order["cum_qty"], order["leaves_qty"], chr(order["status"])) == (100, 0, "2")
    assert order["cost"] == 40 * 1_000_050 + 60 * 1_000_100
    assert position["cash"] == -order["cost"]
    assert (position["open_buy_qty"], position["open_orders"], rig.orders.pool.open_count) == (0, 0, 0)
    assert [k for k, _ in journal(rig)] == [
        RecordType.ORDER_OUT, RecordType.EXECUTION, RecordType.EXECUTION, RecordType.FILL,
        RecordType.EXECUTION, RecordType.FILL,
    ]  # fmt: skip
    assert rig.orders.alarms() == {}
    row = rig.orders.positions(lambda _locate: "AAPL")["AAPL"]
    assert (row["qty"], row["realized_pnl_px4"], row["bought_qty"]) == (100, 0, 100)
    assert row["unrealized_pnl_px4x2"] == 100 * 2_000_200 - 2 * int(order["cost"])


def test_an_execution_is_journaled_with_its_raw_bytes(rig):
    rig.send()
    message = rig.report(1, "F", "1", qty=10, px=1_000_100)
    rig.deliver(message)
    rig.receive()
    payload = journal(rig)[1][1]
    record = as_record(payload, EXECUTION)
    assert payload[EXECUTION.size :] == message
    assert record["raw_size"] == len(message)
    assert (record["order"], record["last_qty"], record["last_px"]) == (1, 10, 1_000_100)
    assert VERDICT_NAMES[record["verdict"]] == "applied"


def test_a_message_is_not_read_before_its_time(rig):
    rig.send()
    rig.deliver(rig.report(1, "0", "0"), due_ns=NOW + 50)
    assert rig.receive(NOW + 49) == 0
    assert rig.receive(NOW + 50) == 1


def test_a_repeated_execution_counts_once(rig):
    rig.send()
    message = rig.report(1, "F", "1", qty=10, px=1_000_100)
    rig.deliver(message)
    rig.deliver(message)
    assert rig.receive() == 2
    assert rig.position()["position_qty"] == 10
    assert rig.orders.counters()["repeated"] == 1


def test_an_exec_id_with_other_contents_is_an_alarm_and_not_booked(rig):
    rig.send()
    rig.reports(1, "F", "1", qty=10, px=1_000_100)
    rig.reports(1, "F", "1", qty=11, px=1_000_100, exec_id=1)
    assert rig.position()["position_qty"] == 10
    assert rig.orders.alarms() == {"conflicts": 1}


def test_a_trade_before_the_new_is_booked_and_the_new_changes_nothing(rig):
    rig.send()
    rig.reports(1, "F", "1", qty=10, px=1_000_100)
    assert rig.order(1)["pending"] == 0
    rig.reports(1, "0", "0", cum_qty=10)
    assert chr(rig.order(1)["status"]) == "1"
    assert rig.position()["position_qty"] == 10


def test_a_trade_after_the_end_is_booked_with_an_alarm(rig):
    rig.send()
    rig.cancel(1)
    rig.cancel_answer(1, "4", "4")
    rig.reports(1, "F", "1", qty=10, px=1_000_100, leaves_qty=0)
    assert rig.position()["position_qty"] == 10
    assert rig.position()["open_buy_qty"] == 0
    assert chr(rig.order(1)["status"]) == "4"
    assert rig.orders.alarms() == {"late_trades": 1}


def test_an_overfill_is_booked_whole_and_leaves_nothing_open(rig):
    rig.send(qty=100)
    rig.reports(1, "F", "2", qty=130, px=1_000_100)
    assert rig.position()["position_qty"] == 130
    assert (rig.order(1)["cum_qty"], rig.order(1)["leaves_qty"], rig.position()["open_buy_qty"]) == (
        130,
        0,
        0,
    )
    assert rig.orders.alarms() == {"overfills": 1}


def test_a_report_for_an_unknown_order_books_nothing_and_is_an_alarm(rig):
    rig.send()
    rig.deliver(rig.report(1, "F", "1", qty=10, px=1_000_100, cl_ord_id=list(b"0007000020000001")))
    rig.receive()
    assert rig.position()["position_qty"] == 0
    assert rig.orders.alarms() == {"unknown_orders": 1}


def test_quantities_are_never_booked_from_a_reported_sum(rig):
    rig.send()
    rig.reports(1, "F", "1", qty=10, px=1_000_100, cum_qty=60, leaves_qty=40)
    assert rig.order(1)["cum_qty"] == 10
    assert rig.orders.alarms() == {"mismatches": 1}


def test_a_rejected_order_releases_its_reservation(rig):
    rig.send()
    rig.reports(1, "A", "A")
    rig.reports(1, "8", "8", reason=1)
    assert kinds(rig.fills()) == [FILL_REJECTED]
    assert (rig.position()["open_buy_qty"], rig.position()["open_orders"]) == (0, 0)
    assert rig.order(1)["pending"] == 0


def test_an_expired_remainder_is_released(rig):
    rig.send(tif=3)
    rig.reports(1, "F", "1", qty=30, px=1_000_100)
    rig.reports(1, "C", "C")
    assert kinds(rig.fills()) == [FILL_TRADE, FILL_CANCELLED]
    assert (rig.order(1)["leaves_qty"], rig.position()["open_buy_qty"]) == (0, 0)


def test_a_cancel_names_the_order_shows_pending_and_ends_it(rig):
    rig.send(qty=200)
    rig.reports(1, "0", "0")
    assert rig.cancel(1) == 0
    assert rig.order(1)["pending"] == PENDING_CANCEL
    new, cancel = (fields_of(m) for m in rig.wires())
    assert (cancel[35], cancel[41], cancel[38], cancel[54], cancel[34]) == (
        "F",
        new[11],
        "0000200",
        "1",
        "000000002",
    )
    assert cancel[11] == bytes(rig.order(1)["cancel_id"]).decode() != new[11]
    rig.cancel_answer(1, "6", "6")
    assert chr(rig.order(1)["status"]) == "6"
    rig.cancel_answer(1, "4", "4")
    assert chr(rig.order(1)["status"]) == "4"
    assert rig.position()["open_orders"] == 0
    assert kinds(rig.fills()) == [FILL_ACCEPTED, FILL_CANCELLED]
    kind, payload = journal(rig)[2]
    assert kind == RecordType.CANCEL_OUT
    assert as_record(payload, CANCEL_OUT)["order"] == 1


def test_a_fill_that_crosses_the_cancel_is_a_fill_and_the_reject_tells_the_end(rig):
    """Appendix D, B.1.c: Trade with 39=6, then a cancel reject with 39=2, 102=0."""
    rig.send(qty=100)
    rig.reports(1, "0", "0")
    rig.cancel(1)
    rig.cancel_answer(1, "6", "6")
    rig.reports(1, "F", "6", qty=100, px=1_000_100, leaves_qty=0)
    assert rig.position()["position_qty"] == 100
    assert rig.orders.pool.open_count == 1  # the venue still shows it pending
    rig.cancel_answer(1, "9", "2", reason=0)
    assert chr(rig.order(1)["status"]) == "2"
    assert (rig.order(1)["pending"], rig.orders.pool.open_count, rig.position()["open_orders"]) == (0, 0, 0)
    assert kinds(rig.fills())[-1] == FILL_CANCEL_REJECTED
    assert rig.orders.alarms() == {}


def test_a_refused_cancel_may_be_sent_again_under_a_new_id(rig):
    rig.send()
    rig.cancel(1)
    first = bytes(rig.order(1)["cancel_id"])
    assert rig.cancel(1) == Reason.DUPLICATE
    rig.cancel_answer(1, "9", "0", reason=2)
    assert rig.order(1)["pending"] == PENDING_NEW
    assert rig.cancel(1) == 0
    assert bytes(rig.order(1)["cancel_id"]) != first


def test_a_cancel_of_an_ended_or_unknown_order_is_denied_and_changes_nothing(rig):
    rig.send()
    rig.reports(1, "F", "2", qty=100, px=1_000_100)
    rig.wires()
    assert rig.cancel(1) == Reason.INSANE
    assert rig.cancel(2) == Reason.INSANE
    assert rig.cancel(-1) == Reason.INSANE
    assert rig.wires() == []
    assert kinds(rig.fills())[-3:] == [FILL_CANCEL_REJECTED] * 3


@pytest.mark.parametrize("cause", [2**35, 2**63 - 1, -1])
def test_a_cancel_passes_whatever_its_cause_and_the_journal_has_the_cause_whole(rig, cause):
    rig.send()
    (new,) = rig.wires()
    assert rig.send(kind=INTENT_CANCEL, order=1, cause_seq=cause) == 0
    (cancel,) = rig.wires()
    assert fields_of(cancel)[41] == fields_of(new)[11]
    kind, payload = journal(rig)[-1]
    assert kind == RecordType.CANCEL_OUT
    assert as_record(payload, CANCEL_OUT)["cause_seq"] == cause
    assert rig.send(cause_seq=cause) == Reason.INSANE  # an order is another matter


def test_a_report_the_table_refuses_changes_nothing_and_is_an_alarm(rig):
    rig.send()
    rig.reports(1, "F", "2", qty=100, px=1_000_100)
    before = rig.order(1).copy()
    rig.reports(1, "4", "4")
    rig.reports(1, "I", "2")
    assert rig.order(1) == before
    assert rig.orders.alarms() == {"refused": 2}


def test_a_garbled_message_is_counted_and_the_next_one_is_read(rig):
    rig.send()
    good = rig.report(1, "0", "0")
    rig.deliver(good.replace(b"35=8", b"35=9"))
    rig.deliver(good)
    assert rig.receive() == 2
    assert rig.orders.alarms() == {"unreadable": 1}
    assert chr(rig.order(1)["status"]) == "0"


def test_a_denial_is_journaled_counted_and_told_and_uses_nothing_up(rig):
    rig.orders.limits.set(qty_max=50)
    assert rig.send(qty=60) == Reason.QTY
    ((kind, payload),) = journal(rig)
    denial = as_record(payload, DENIAL)
    assert kind == RecordType.DENIAL
    assert (denial["reason"], denial["observed"], denial["limit"], denial["limits_version"]) == (3, 60, 50, 2)
    (fill,) = rig.fills()
    assert (fill["kind"], fill["reason"], fill["decision"]) == (FILL_DENIED, Reason.QTY, 1)
    assert rig.orders.denials() == {"R3 QTY": 1}
    assert (rig.orders.pool.count, rig.orders.next_seq, rig.wires()) == (0, 1, [])
    assert rig.position()["open_buy_qty"] == 0


def test_nothing_leaves_before_arming_and_logon_and_cancels_need_the_logon_only():
    rig = Rig()
    assert rig.send() == Reason.HALTED
    rig.arm()
    assert rig.send() == 0
    rig.orders.kill_switch.set(kill_switch.WATCHDOG, KILLED)
    assert rig.send() == Reason.HALTED
    assert rig.cancel(1) == 0
    rig.orders.kill_switch.set(kill_switch.WATCHDOG, 0)
    rig.orders.log_on(logged_on=False)
    assert rig.send() == Reason.SESSION
    assert rig.orders.last_denial()[0] == NOT_LOGGED_ON
    assert rig.cancel(1) == Reason.DUPLICATE


def test_an_unknown_symbol_is_refused_before_anything_is_reserved(rig):
    rig.top(5)
    assert rig.send(locate=5) == Reason.INSANE
    assert (rig.orders.pool.count, rig.orders.next_seq, rig.position(5)["open_orders"]) == (0, 1, 0)
    assert rig.send() == 0
    assert fields_of(rig.wires()[0])[34] == "000000001"


def test_a_full_journal_denies_orders_keeps_room_for_cancels_and_holds_executions_back():
    rig = Rig(journal=64, limits={"symbol_open_orders_max": 100, "position_max": 10_000})
    rig.arm()
    assert rig.send() == 0
    reserve = 64 // 8
    reason = 0
    while reason == 0:
        rig.top()
        reason = rig.send(qty=1)
    assert reason == Reason.SESSION
    assert rig.orders.last_denial()[0] == JOURNAL_LOW
    assert (
        64 - sum(len(v) // JOURNAL.size for v in rig.stream.waiting()) == reserve - 1
    )  # less the denial itself
    assert rig.cancel(1) == 0
    rig.deliver(rig.report(1, "0", "0"))
    assert rig.receive() == 0
    assert rig.orders.counters()["stalls"] == 1
    rig.stream.release(32)
    assert rig.receive() == 1


def test_what_the_journal_refuses_never_leaves():
    rig = Rig(journal=8)
    rig.arm()
    rig.orders._risk[0]["journal_reserve"] = -1  # so that only the append itself can refuse
    assert [rig.send(qty=1) for _ in range(8)] == [0] * 8
    left = rig.orders.next_seq, rig.orders.pool.count, int(rig.position()["open_buy_qty"])
    rig.wires()
    assert rig.send() == Reason.SESSION
    assert rig.cancel(1) == Reason.SESSION
    assert rig.wires() == []
    assert (rig.orders.next_seq, rig.orders.pool.count, int(rig.position()["open_buy_qty"])) == left
    assert rig.order(1)["pending"] == PENDING_NEW
    assert rig.orders.counters()["unjournaled"] == 2
    rig.stream.release(8)
    assert rig.cancel(1) == 0
    assert fields_of(rig.wires()[0])[11][4:9] == "00402"  # the refused request's number is not given again


def test_a_full_ring_to_the_venue_is_a_denial_with_nothing_to_undo(rig):
    for _ in range(1024):
        claim(rig.orders.out)
        publish(rig.orders.out)
    assert rig.send() == Reason.SESSION
    assert rig.orders.last_denial()[0] == RING_FULL
    assert (rig.orders.pool.count, rig.orders.next_seq) == (0, 1)
    assert rig.position()["open_orders"] == 0


def test_a_full_table_of_executions_stops_new_orders_and_still_books():
    rig = Rig(executions_max=4)
    rig.arm()
    rig.send()
    for _ in range(3):
        rig.reports(1, "F", "1", qty=1, px=1_000_100)
    assert rig.orders.kill_switch.state == "HALTED"
    assert rig.send() == Reason.HALTED
    rig.reports(1, "F", "1", qty=1, px=1_000_100)
    assert rig.position()["position_qty"] == 4
    assert rig.orders.kill_switch.by_source()["executions"] == "HALTED"
    assert rig.orders.kill_switch.by_source()["risk"] == "DISARMED"
    assert rig.orders.alarms() == {}  # all of them are remembered


def full_of_executions():
    """Return an agent whose table of executions is full, with an order of 100 that has had 4."""
    rig = Rig(executions_max=4)
    rig.arm()
    rig.send()
    for _ in range(4):
        rig.reports(1, "F", "1", qty=1, px=1_000_100)
    return rig


def test_what_a_full_table_cannot_remember_is_booked_once_with_an_alarm_and_its_repeats_are_not():
    rig = full_of_executions()
    fifth = rig.report(1, "F", "1", qty=10, px=1_000_100)
    rig.deliver(fifth)
    rig.deliver(fifth)
    assert rig.receive() == 2
    assert rig.position()["position_qty"] == 14
    assert rig.orders.alarms() == {"unremembered": 1}
    rig.reports(1, "F", "2", qty=86, px=1_000_100)  # the end, which is not remembered either
    rig.deliver(fifth)
    assert rig.receive() == 1
    assert (rig.position()["position_qty"], rig.order(1)["cum_qty"]) == (100, 100)
    assert rig.orders.counters()["repeated"] == 2
    assert rig.orders.alarms() == {"unremembered": 2}
    assert rig.orders.kill_switch.by_source()["executions"] == "HALTED"
    assert rig.send() == Reason.HALTED


def test_a_full_table_still_tells_repeats_and_conflicts_of_what_it_holds():
    rig = full_of_executions()
    rig.reports(1, "F", "1", qty=1, px=1_000_100, exec_id=2)
    rig.reports(1, "F", "1", qty=2, px=1_000_100, exec_id=2)
    assert rig.position()["position_qty"] == 4
    assert rig.orders.counters()["repeated"] == 1
    assert rig.orders.alarms() == {"conflicts": 1}


def test_a_full_table_takes_other_reports_as_often_as_they_come():
    rig = full_of_executions()
    rig.cancel(1)
    for _ in range(2):
        rig.cancel_answer(1, "4", "4")
    assert chr(rig.order(1)["status"]) == "4"
    assert (rig.position()["position_qty"], rig.orders.alarms()) == (4, {})


def test_what_a_partial_fill_left_can_be_sold_though_it_is_no_whole_lot():
    rig = Rig(limits={"lot_qty": 100})
    rig.arm()
    assert rig.send(qty=100, tif=3) == 0
    rig.reports(1, "F", "1", qty=30, px=1_000_100)
    rig.reports(1, "C", "C")
    assert rig.send(qty=20, side=SELL) == Reason.QTY
    assert rig.send(qty=30, side=SELL, tif=3) == 0
    assert rig.send(qty=30, side=SELL, tif=3) == Reason.QTY  # the first is under way
    rig.reports(2, "F", "2", qty=30, px=1_000_000)
    assert (rig.position()["position_qty"], rig.position()["open_orders"]) == (0, 0)


def test_cancel_all_asks_once_for_each_open_order_oldest_first(rig):
    for _ in range(3):
        rig.send()
    rig.cancel(2)
    rig.wires()
    assert cancel_all(rig.orders.addr, 1, NOW) == 2
    assert [fields_of(m)[41][4:9] for m in rig.wires()] == ["00001", "00003"]
    assert cancel_all(rig.orders.addr, 1, NOW) == 0


def test_the_reservation_of_both_sides_is_kept_apart(rig):
    rig.send(qty=100, side=BUY)
    rig.send(qty=70, side=SELL)
    assert (rig.position()["open_buy_qty"], rig.position()["open_sell_qty"]) == (100, 70)
    rig.reports(2, "F", "2", qty=70, px=1_000_000)
    assert (rig.position()["open_buy_qty"], rig.position()["open_sell_qty"]) == (100, 0)
    assert rig.position()["position_qty"] == -70


def test_the_orders_can_be_listed(rig):
    rig.send()
    rig.send(locate=3)
    rig.reports(1, "F", "2", qty=100, px=1_000_100)
    names = {1: "AAPL", 3: "BRK.A"}
    assert [o["symbol"] for o in rig.orders.orders(names.__getitem__)] == ["AAPL", "BRK.A"]
    assert [o["order"] for o in rig.orders.orders(names.__getitem__, open_only=True)] == [2]


def test_no_source_can_lower_what_another_has_raised(rig):
    rig.orders.kill_switch.set(kill_switch.JOURNAL, HALTED)
    rig.orders.kill_switch.set(kill_switch.CONTROL, 0)
    assert rig.orders.kill_switch.state == "HALTED"
    assert rig.orders.kill_switch.by_source()["journal"] == "HALTED"
    kill_switch.raise_state(rig.orders.kill_switch.addr, kill_switch.JOURNAL, 0)
    assert rig.orders.kill_switch.state == "HALTED"
