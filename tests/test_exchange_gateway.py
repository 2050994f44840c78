"""The gateway: FIX application messages in, ExecutionReports and refusals out, every trade in the ledger."""

from __future__ import annotations

import json

import pytest
from days import ADD, OPEN_NS, directory, symbol
from exchange_rig import NOW, Rig
from fix_client import encode
from hypothesis import given
from hypothesis import strategies as st

from nimbus.fix.message import Message, fields
from nimbus.fix.store import Sent, Store
from nimbus.venue.gateway import Gateway
from nimbus.venue.gateway_text import identifier, parse_decimal
from nimbus.venue.ledger import Ledger, LedgerError
from nimbus.venue.orphans import report_orphans

NS = OPEN_NS.to_bytes(6, "big")
GOOD = {11: "a1", 38: "100", 40: "2", 44: "10.10", 54: "1", 55: "SYM00001", 59: "0"}


class Desk:
    """A gateway in front of an engine, for messages of one or two clients."""

    def __init__(self, ledger: Ledger | None = None, **options) -> None:
        self.rig = Rig(**options)
        self.rig.flow(directory(1, NS), ADD(b"A", 1, 0, NS, 1, b"S", 150, symbol(1), 101_000))
        self.ledger = ledger or Ledger()
        self.gateway = Gateway(self.rig.engine, self.ledger, epoch=7)

    def say(self, msg_type: str, fields: dict[int, str], client: str = "ME") -> list[dict[int, str]]:
        """Give the gateway a message, let the engine work; return the answers as tags, 35 and client (0)."""
        raw = encode([(35, msg_type), (34, 5), *fields.items()])
        self.gateway.take(client, Message.parse(raw), NOW)
        return self.heard()

    def heard(self) -> list[dict[int, str]]:
        while self.rig.handle():
            pass
        self.gateway.drain()
        answers = []
        for reply in self.gateway.replies():
            pairs = [pair.split(b"=", 1) for pair in reply.body.split(b"\x01")[:-1]]
            tags = [int(tag) for tag, _ in pairs]
            assert tags == sorted(tags)
            assert len(set(tags)) == len(tags)
            answers.append({int(t): v.decode() for t, v in pairs} | {35: reply.msg_type, 0: reply.client})
        return answers


def test_an_order_is_accepted_and_filled_and_its_reports_add_up():
    desk = Desk()
    new, trade = desk.say("D", GOOD)
    assert (new[35], new[150], new[39], new[151], new[14]) == ("8", "0", "0", "100", "0")
    assert (trade[150], trade[39], trade[31], trade[32]) == ("F", "2", "10.1000", "100")
    assert (trade[151], trade[14], trade[6], trade[851]) == ("0", "100", "10.1000", "2")
    assert new[37] == trade[37] == identifier(7, 1)
    assert new[17] != trade[17]
    assert len(trade[17]) == len(trade[37]) == 16
    assert (trade[1], trade[11], trade[54], trade[55], trade[38], trade[44]) == (
        "ME", "a1", "1", "SYM00001", "100", "10.1000",
    )  # fmt: skip
    assert desk.ledger.positions()["ME"]["SYM00001"]["qty"] == 100


def test_a_resting_order_is_filled_by_the_flow_and_adds_liquidity():
    desk = Desk()
    desk.say("D", GOOD | {44: "10.00", 1: "ACC"})
    desk.rig.flow(ADD(b"A", 1, 0, NS, 9, b"S", 30, symbol(1), 99_900))
    (trade,) = desk.heard()
    assert (trade[150], trade[39], trade[32], trade[151], trade[851], trade[1]) == (
        "F", "1", "30", "70", "1", "ACC",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({55: "NOBODY"}, "1", "unknown symbol"),
        ({55: "TOOLONGSYMBOL"}, "1", "unknown symbol"),
        ({38: "0"}, "13", "OrderQty"),
        ({38: "1.5"}, "13", "OrderQty"),
        ({38: "-5"}, "13", "OrderQty"),
        ({38: "10000000"}, "13", "OrderQty"),
        ({38: "1e3"}, "13", "OrderQty"),
        ({44: "0"}, "99", "Price"),
        ({44: "-1"}, "99", "Price"),
        ({44: "10.00005"}, "99", "Price"),
        ({44: "200000"}, "99", "Price"),
        ({44: ""}, "99", "Price"),
        ({40: "1"}, "11", "OrdType"),
        ({59: "1"}, "11", "TimeInForce"),
        ({54: "5"}, "99", "Side"),
        ({11: "x" * 33}, "99", "ClOrdID"),
    ],
)
def test_an_order_that_cannot_be_is_rejected_with_a_text(change, reason, words):
    desk = Desk()
    (answer,) = desk.say("D", {tag: value for tag, value in (GOOD | change).items() if value})
    assert (answer[35], answer[150], answer[39], answer[103]) == ("8", "8", "8", reason)
    assert words in answer[58]
    assert answer[151] == answer[14] == "0"
    assert desk.rig.engine.resting() == {}


def test_prices_and_quantities_may_be_padded_or_have_zero_decimals():
    desk = Desk()
    new, *_ = desk.say("D", GOOD | {38: "0000100.00", 44: "000010.10000"})
    assert (new[38], new[44]) == ("100", "10.1000")


def test_a_clordid_is_used_once_by_each_client():
    desk = Desk()
    desk.say("D", GOOD | {44: "10"})
    (again,) = desk.say("D", GOOD | {44: "10"})
    assert (again[150], again[103]) == ("8", "6")
    (first, *_) = desk.say("D", GOOD | {44: "10"}, client="YOU")
    assert (first[150], first[0]) == ("0", "YOU")
    (bad,) = desk.say("F", {11: "a1", 41: "a1"})
    assert (bad[35], bad[102], bad[39]) == ("9", "6", "0")
    assert len(desk.rig.engine.resting()) == 2


def test_a_cancel_is_granted_once_and_only_to_its_client():
    desk = Desk()
    desk.say("D", GOOD | {44: "10"})
    (foreign,) = desk.say("F", {11: "c0", 41: "a1"}, client="YOU")
    assert (foreign[35], foreign[102], foreign[37]) == ("9", "1", "NONE")
    (done,) = desk.say("F", {11: "c1", 41: "a1"})
    assert (done[35], done[150], done[39], done[11], done[41], done[151]) == ("8", "4", "4", "c1", "a1", "0")
    assert 58 not in done
    (late,) = desk.say("F", {11: "c2", 41: "a1"})
    assert (late[35], late[102], late[39], late[434]) == ("9", "0", "4", "1")


def test_an_immediate_order_says_why_its_rest_is_gone():
    desk = Desk()
    answers = desk.say("D", GOOD | {38: "200", 59: "3"})
    assert [a[150] for a in answers] == ["0", "F", "4"]
    assert "immediate or cancel" in answers[-1][58]
    assert 41 not in answers[-1]


def test_all_orders_of_a_client_that_is_gone_are_cancelled_and_nobody_elses():
    desk = Desk()
    for number in range(5):
        desk.say("D", GOOD | {11: f"m{number}", 44: "10"})
    desk.say("D", GOOD | {11: "y", 44: "10"}, client="YOU")
    assert desk.gateway.cancel_all("ME") == 0
    answers = desk.heard()
    assert [(a[0], a[150], a[58]) for a in answers] == [("ME", "4", "cancelled: the session ended")] * 5
    assert list(desk.rig.engine.resting().values()) == [100]
    assert desk.gateway.open_orders("ME") == []
    assert desk.gateway.counts.disconnect_cancels == 5


def test_an_order_status_request_tells_how_it_stands():
    desk = Desk()
    desk.say("D", GOOD | {38: "200"})
    (status,) = desk.say("H", {11: "a1"})
    assert (status[35], status[150], status[39], status[14], status[151]) == ("8", "I", "1", "150", "50")
    (unknown,) = desk.say("H", {11: "never", 54: "1", 55: "SYM00001"})
    assert (unknown[150], unknown[39], unknown[37], unknown[11]) == ("I", "8", "NONE", "never")
    assert "unknown order" in unknown[58]


def test_a_mass_status_request_lists_the_open_orders():
    desk = Desk()
    (nothing,) = desk.say("AF", {584: "r1", 585: "7"})
    assert (nothing[584], nothing[911], nothing[912]) == ("r1", "0", "Y")
    for number in range(3):
        desk.say("D", GOOD | {11: f"m{number}", 44: "10"})
    desk.say("F", {11: "c", 41: "m1"})
    answers = desk.say("AF", {584: "r2", 585: "7"})
    assert [(a[11], a[911], a[912]) for a in answers] == [("m0", "2", "N"), ("m2", "2", "Y")]
    (refused,) = desk.say("AF", {584: "r3", 585: "1"})
    assert refused[35] == "j"


@pytest.mark.parametrize("tag", [11, 38, 40, 54, 55])
def test_a_message_without_a_required_tag_is_refused_by_number_and_tag(tag):
    desk = Desk()
    (answer,) = desk.say("D", {t: v for t, v in GOOD.items() if t != tag})
    assert (answer[35], answer[45], answer[371], answer[372], answer[373]) == ("3", "5", str(tag), "D", "1")


def test_other_messages_are_not_supported_and_rejects_are_not_answered():
    desk = Desk()
    (answer,) = desk.say("G", {11: "x"})
    assert (answer[35], answer[45], answer[372], answer[380]) == ("j", "5", "G", "3")
    assert desk.say("j", {45: "1"}) == desk.say("3", {45: "1"}) == []


def test_at_the_end_of_the_orders_of_the_day_new_ones_are_rejected():
    desk = Desk(orders_max=2)
    answers = [desk.say("D", GOOD | {11: f"m{n}", 44: "10"})[0] for n in range(4)]
    assert [a[150] for a in answers] == ["0", "0", "8", "8"]
    assert answers[2][103] == "3"


def test_a_full_request_ring_rejects_and_loses_nothing():
    desk = Desk()
    for number in range(1_030):
        raw = encode([(35, "D"), (34, 5), *(GOOD | {11: f"m{number}", 44: "1", 38: "1"}).items()])
        desk.gateway.take("ME", Message.parse(raw), NOW)
    answers = desk.heard()
    rejected = [a for a in answers if a[150] == "8"]
    assert len(rejected) == 6
    assert all("busy" in a[58] for a in rejected)
    assert len(desk.rig.engine.resting()) == 1_024
    ids = [a[17] for a in answers]
    assert len(set(ids)) == len(ids) == 1_030


def test_every_trade_is_in_the_ledger_file_and_comes_back(tmp_path):
    path = tmp_path / "fills.jsonl"
    desk = Desk(Ledger(path))
    desk.say("D", GOOD)
    desk.say("D", GOOD | {11: "s", 54: "2", 44: "10.00", 1: "ACC"})
    desk.say("D", GOOD | {11: "b", 38: "30", 44: "10.05"})
    before = desk.ledger.positions()
    assert before["ACC"]["SYM00001"] == {
        "qty": -30, "bought_qty": 0, "sold_qty": 30, "cash_1e4": 3_000_000, "fills": 1,
    }  # fmt: skip
    desk.ledger.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 3
    assert {row["exec_id"] for row in rows} == {row["exec_id"] for row in rows if len(row["exec_id"]) == 16}
    with path.open("ab") as file:
        file.write(b'{"account": "torn')
    again = Ledger(path)
    assert again.positions() == before
    again.close()
    assert path.read_bytes().endswith(b"}\n")


def test_a_ledger_that_is_none_is_refused_with_its_place(tmp_path):
    path = tmp_path / "fills.jsonl"
    path.write_text('{"account": "A"}\n')
    with pytest.raises(LedgerError, match="not a trade at byte 0"):
        Ledger(path)
    with pytest.raises(LedgerError, match="directory"):
        Ledger(tmp_path)


@given(st.integers(0, 2**40), st.integers(0, 9_999), st.integers(0, 3), st.integers(0, 3))
def test_decimals_are_exact(whole, fraction, zeros_before, zeros_after):
    text = f"{'0' * zeros_before}{whole}.{fraction:04d}{'0' * zeros_after}"
    expected = whole * 10_000 + fraction if len(f"{'0' * zeros_before}{whole}") <= 12 else -1
    assert parse_decimal(text, 10_000) == expected
    assert parse_decimal(f"{text}1", 10_000) == -1


@given(st.text(max_size=12))
def test_what_is_no_decimal_is_refused(text):
    value = parse_decimal(text, 10_000)
    assert (value >= 0) == bool(text.isascii() and text.replace(".", "", 1).isdigit() and text[:1] != "." and
                                not text.partition(".")[2][4:].strip("0"))  # fmt: skip


def test_orders_of_a_dead_process_are_reported_cancelled_once():
    desk, store = Desk(), Store()

    def send(answers: list[dict[int, str]]) -> None:
        for answer in answers:
            pairs = sorted((tag, value) for tag, value in answer.items() if tag not in {0, 35})
            store.use(Sent(answer[35], b"20251125-22:51:51.123", fields(pairs)))

    send(desk.say("D", GOOD | {11: "filled"}))
    send(desk.say("D", GOOD | {11: "open", 44: "9.00", 38: "60"}))
    send(desk.say("D", GOOD | {11: "part", 44: "10.10", 38: "80"}))
    send(desk.say("D", GOOD | {11: "gone", 44: "9.00"}))
    send(desk.say("F", {11: "cancel", 41: "gone"}))
    send(desk.say("D", GOOD | {11: "bad", 55: "NOBODY"}))
    send(desk.say("H", {11: "never"}))
    before = store.next_out
    assert report_orphans(store, 8, 100, NOW) == 2
    reports = [dict(Message.parse(store.sent(seq).body).fields) for seq in range(before, store.next_out)]
    assert [(r[11], r[14], r[38], r[17]) for r in reports] == [
        (b"open", b"0", b"60", identifier(8, 101).encode()),
        (b"part", b"50", b"80", identifier(8, 102).encode()),
    ]
    assert {(r[150], r[39], r[151]) for r in reports} == {(b"4", b"4", b"0")}
    assert all(32 not in r and b"started again" in r[58] for r in reports)
    assert report_orphans(store, 9, 100, NOW) == 0
