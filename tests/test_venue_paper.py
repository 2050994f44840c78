"""The paper venue, case by case: FIX in, FIX out, against a small real book."""

import ctypes

import numpy as np
import pytest
import simplefix

from nimbus.book.book import apply
from nimbus.book.owner import Books
from nimbus.feed import itch
from nimbus.messages import CHANGE, WIRE
from nimbus.venue.paper import Venue, receive
from nimbus.venue.paper_layout import REPORTS_MAX, TAKE_LEVELS_MAX
from nimbus.venue.queue_model import on_change
from ringbuf.segment import Segment
from ringbuf.spsc import create_ring, front, pop, try_push

NOW = 1_700_000_000_000_000_000
WHAT = {"0": "new", "F": "trade", "4": "canceled", "8": "rejected"}


class Paper:
    """A book of symbols ABC (locate 1) and XYZ (2), and a venue beside it."""

    def __init__(self, *, capacity=1024, orders_max=64, live_orders_max=4096, **settings):
        self.segment = Segment.anonymous(64 << 20)
        self.books = Books(self.segment, symbols_max=8, live_orders_max=live_orders_max, levels_max=1024)
        self.orders = create_ring(self.segment, "requests", 1024, WIRE)
        self.reports = create_ring(self.segment, "answers", capacity, WIRE)
        self.venue = Venue(
            self.segment, orders_ring=self.orders, reports_ring=self.reports, symbols_max=8,
            live_orders_max=live_orders_max, orders_max=orders_max, **settings,
        )  # fmt: skip
        self.change = self.segment.allocate("change", CHANGE.size)
        self.wire = self.segment.allocate("wire", WIRE.size)
        self.now, self.seq, self.filled = NOW, 0, 0
        for locate, symbol in ((1, b"ABC     "), (2, b"XYZ     ")):
            self.real(itch.DIRECTORY, locate=locate, symbol=symbol)

    # The real market.

    def real(self, declared, **values):
        """Apply one ITCH message; return what apply() said."""
        row = np.zeros((), declared.dtype)
        for name, value in {"code": declared.letter.encode(), "locate": 1, **values}.items():
            row[name] = value if row.dtype[name].kind in "SV" or not isinstance(value, bytes) else ord(value)
        buffer = ctypes.create_string_buffer(row.tobytes(), declared.size)
        self.seq += 1
        status = apply(self.books.state, ctypes.addressof(buffer), self.seq, self.now, self.change)
        self.filled += on_change(self.venue.addr, self.books.state, self.change, self.now)
        return status

    def add(self, ref, side, px, qty, locate=1):
        assert self.real(itch.ADD, order_ref=ref, side=side.encode(), px=px, qty=qty, locate=locate) >= 0

    def execute(self, ref, qty):
        assert self.real(itch.EXECUTED, order_ref=ref, qty=qty) >= 0

    def reduce(self, ref, qty):
        assert self.real(itch.CANCEL, order_ref=ref, qty=qty) >= 0

    def delete(self, ref):
        assert self.real(itch.DELETE, order_ref=ref) >= 0

    def replace(self, ref, new_ref, px, qty):
        assert self.real(itch.REPLACE, order_ref=ref, new_ref=new_ref, px=px, qty=qty) >= 0

    def print_hidden(self, px, qty):
        assert self.real(itch.TRADE, order_ref=0, side=b"B", px=px, qty=qty) >= 0

    def state(self, code):
        assert self.real(itch.TRADING_ACTION, symbol=b"ABC     ", state=code) >= 0

    # Our side.

    def push(self, raw):
        row = np.zeros((), WIRE.dtype)
        row["due_ns"], row["size"] = self.now, len(raw)
        row["bytes"][: len(raw)] = np.frombuffer(raw, np.uint8)
        ctypes.memmove(self.wire, row.tobytes(), WIRE.size)
        assert try_push(self.orders, self.wire)

    def send(self, msg_type, *pairs):
        message = simplefix.FixMessage()
        for tag, value in (
            (8, "FIX.4.4"),
            (35, msg_type),
            (49, "CONTRAFUSION"),
            (56, "VENUE"),
            (34, 1),
            *pairs,
        ):
            message.append_pair(tag, value)
        self.push(message.encode())

    def new(self, name, side, px, qty, *, ioc=False, symbol="ABC", step=True, **other):
        fields = {11: name_of(name), 55: symbol, 54: "1" if side == "B" else "2", 38: qty, 40: "2",
                  44: f"{px / 10_000:.4f}", 59: "3" if ioc else "0"}  # fmt: skip
        fields |= {int(tag[1:]): value for tag, value in other.items()}
        self.send("D", *fields.items())
        return self.step() if step else []

    def cancel(self, name, orig, *, step=True):
        self.send("F", (11, name_of(name)), (41, name_of(orig)), (55, "ABC"), (54, "1"), (38, 1))
        return self.step() if step else []

    def step(self):
        """Let the venue handle what has arrived; return what it says."""
        receive(self.venue.addr, self.books.state, self.now)
        return self.said()

    def answers(self):
        """Return the messages that wait, as {tag: text} with the due time under "due"."""
        out = []
        while slot := front(self.reports):
            raw = ctypes.string_at(slot, WIRE.size)
            row = np.frombuffer(raw, WIRE.dtype)[0]
            text = bytes(row["bytes"][: int(row["size"])])
            assert int(text[-4:-1]) == sum(text[:-7]) % 256
            fields = dict(pair.split("=", 1) for pair in text.decode("ascii").split("\x01")[:-1])
            out.append(fields | {"due": int(row["due_ns"])})
            pop(self.reports)
        return out

    def said(self):
        """Return the answers that wait as (what, order, px, qty, leaves)."""
        return [short(answer) for answer in self.answers()]

    def ahead(self):
        return {row["cl_ord_id"].lstrip("0"): row["ahead_qty"] for row in self.venue.open_orders()}


def name_of(name):
    return str(name).rjust(16, "0")


def short(answer):
    if answer["35"] == "9":
        what = "unknown" if answer["102"] == "01" else "too late"
        return (what, answer["41"].lstrip("0"), 0, 0, 0)
    px = round(float(answer.get("31", 0)) * 10_000)
    name = answer.get("41", answer["11"]).lstrip("0")
    return (WHAT[answer["150"]], name, px, int(answer.get("32", 0)), int(answer["151"]))


@pytest.fixture
def paper():
    return Paper()


def test_a_new_order_is_acknowledged_in_full(paper):
    paper.new("A1", "B", 100_0000, 300, step=False)
    receive(paper.venue.addr, paper.books.state, NOW)
    (answer,) = paper.answers()
    expected = {
        "8": "FIX.4.4", "35": "8", "49": "VENUE", "56": "CONTRAFUSION", "34": "000000001",
        "11": name_of("A1"),
        "55": "ABC", "54": "1", "150": "0", "39": "0", "38": "0000300", "151": "0000300", "14": "0000000",
        "44": "000100.0000",
    }  # fmt: skip
    assert {tag: answer[tag] for tag in expected} == expected
    assert paper.venue.open_orders()[0]["locate"] == 1


def test_order_and_execution_numbers_are_never_repeated(paper):
    paper.add(1, "S", 101, 50)
    for number in range(5):
        paper.new(f"A{number}", "B", 101, 20, step=False)
    receive(paper.venue.addr, paper.books.state, NOW)
    answers = paper.answers()
    assert len(answers) == 8  # five New, 20 + 20 + 10 traded
    assert len({a["17"] for a in answers}) == 8
    assert len({a["37"] for a in answers}) == 5
    assert [int(a["34"]) for a in answers] == list(range(1, 9))


def test_an_order_waits_behind_what_is_there_and_is_filled_when_the_flow_passes_it(paper):
    paper.add(1, "B", 100, 300)
    paper.add(2, "B", 100, 200)
    paper.add(9, "B", 99, 999)
    assert paper.new("A", "B", 100, 50) == [("new", "A", 0, 0, 50)]
    paper.add(3, "B", 100, 70)
    assert paper.ahead() == {"A": 500}
    paper.execute(1, 300)
    paper.reduce(2, 150)
    assert paper.ahead() == {"A": 50}
    paper.execute(2, 50)
    assert (paper.ahead(), paper.said()) == ({"A": 0}, [])
    paper.execute(3, 30)
    assert paper.said() == [("trade", "A", 100, 30, 20)]
    paper.execute(3, 40)
    assert paper.said() == [("trade", "A", 100, 20, 0)]
    assert (paper.filled, paper.venue.open_orders()) == (50, [])


def test_only_orders_that_came_earlier_count_as_ahead(paper):
    paper.add(1, "S", 100, 300)
    paper.new("A", "S", 100, 50)
    paper.add(2, "S", 100, 200)
    paper.reduce(2, 100)
    paper.delete(2)
    assert paper.ahead() == {"A": 300}
    paper.replace(1, 3, 100, 300)  # goes to the end of the queue
    assert paper.ahead() == {"A": 0}
    paper.execute(3, 10)
    assert paper.said()[-1] == ("trade", "A", 100, 10, 40)


def test_an_execution_at_a_worse_price_fills_the_better_order_first(paper):
    paper.add(1, "B", 98, 500)
    paper.new("low", "B", 99, 100)
    paper.new("high", "B", 100, 100)
    paper.said()
    paper.execute(1, 150)
    assert paper.said() == [("trade", "high", 100, 100, 0), ("trade", "low", 99, 50, 50)]


def test_two_orders_of_ours_at_one_price_are_served_in_turn(paper):
    paper.add(1, "B", 98, 500)
    paper.new("first", "B", 99, 100)
    paper.new("second", "B", 99, 100)
    paper.execute(1, 120)
    assert paper.said() == [("trade", "first", 99, 100, 0), ("trade", "second", 99, 20, 80)]


@pytest.mark.parametrize("how", ["add", "replace"])
def test_a_real_order_that_arrives_at_our_price_or_through_it_fills_us(paper, how):
    paper.add(1, "S", 105, 500)
    paper.new("A", "B", 100, 100)
    if how == "add":
        paper.add(2, "S", 100, 30)
        paper.add(3, "S", 99, 500)
    else:
        paper.replace(1, 2, 100, 30)
        paper.replace(2, 3, 99, 500)
    assert paper.said() == [("trade", "A", 100, 30, 70), ("trade", "A", 100, 70, 0)]


def test_a_real_order_that_arrives_while_the_symbol_is_halted_fills_nothing(paper):
    paper.new("A", "B", 100, 100)
    paper.said()
    paper.state(b"H")
    paper.add(1, "S", 99, 500)
    assert paper.said() == []
    paper.state(b"T")
    paper.add(2, "S", 100, 10)
    assert paper.said() == [("trade", "A", 100, 10, 90)]


def test_a_hidden_print_fills_displayed_orders_at_its_price_or_better(paper):
    paper.add(1, "B", 100, 10)
    paper.new("behind", "B", 100, 100)
    paper.new("alone", "B", 101, 100)
    paper.new("sell", "S", 103, 100)
    paper.said()
    paper.print_hidden(102, 40)
    assert paper.said() == []
    paper.print_hidden(100, 40)
    assert paper.said() == [("trade", "alone", 101, 40, 60)]
    paper.print_hidden(103, 5)
    assert paper.said() == [("trade", "sell", 103, 5, 95)]


def test_an_execution_that_does_not_print_moves_us_up_and_fills_nothing(paper):
    paper.add(1, "B", 100, 100)
    paper.new("A", "B", 100, 50)
    paper.add(2, "B", 100, 100)
    paper.said()
    paper.real(itch.EXECUTED_PX, order_ref=1, qty=100, printable=b"N", px=90)
    assert paper.ahead() == {"A": 0}
    paper.real(itch.EXECUTED_PX, order_ref=2, qty=10, printable=b"N", px=90)
    assert paper.said() == []
    paper.real(itch.EXECUTED_PX, order_ref=2, qty=10, printable=b"Y", px=90)
    assert paper.said() == [("trade", "A", 100, 10, 40)]


def test_a_cross_fills_nothing(paper):
    paper.new("A", "B", 100, 50)
    paper.said()
    paper.real(itch.CROSS_TRADE, symbol=b"ABC     ", qty=1000, px=90, kind=b"O")
    assert paper.said() == []


def test_another_symbol_does_not_touch_our_order(paper):
    paper.new("A", "B", 100, 50)
    paper.said()
    paper.add(1, "S", 90, 500, locate=2)
    assert paper.said() == []


def test_a_crossing_order_walks_the_levels_and_the_rest_joins_the_queue(paper):
    for ref, px, qty in ((1, 101, 40), (2, 101, 30), (3, 102, 50), (4, 104, 500)):
        paper.add(ref, "S", px, qty)
    paper.add(5, "B", 103, 20)
    assert paper.new("A", "B", 103, 200) == [
        ("new", "A", 0, 0, 200), ("trade", "A", 101, 70, 130), ("trade", "A", 102, 50, 80),
    ]  # fmt: skip
    assert paper.ahead() == {"A": 20}
    (row,) = paper.venue.open_orders()
    assert (row["leaves_qty"], row["cum_qty"], row["cost"]) == (80, 120, 70 * 101 + 50 * 102)


def test_what_is_left_of_an_ioc_is_cancelled(paper):
    paper.add(1, "B", 99, 40)
    paper.add(2, "B", 98, 40)
    assert paper.new("A", "S", 99, 100, ioc=True) == [
        ("new", "A", 0, 0, 100), ("trade", "A", 99, 40, 60), ("canceled", "A", 0, 0, 0),
    ]  # fmt: skip
    assert paper.new("B", "S", 100, 100, ioc=True) == [("new", "B", 0, 0, 100), ("canceled", "B", 0, 0, 0)]
    assert paper.venue.open_orders() == []


def test_the_same_displayed_shares_are_not_taken_twice(paper):
    paper.add(1, "S", 101, 100)
    assert paper.new("A", "B", 101, 60)[-1] == ("trade", "A", 101, 60, 0)
    assert paper.new("B", "B", 101, 60, ioc=True)[1:] == [
        ("trade", "B", 101, 40, 20),
        ("canceled", "B", 0, 0, 0),
    ]
    paper.execute(1, 50)  # the real market knows nothing of it
    assert len(paper.new("C", "B", 101, 60, ioc=True)) == 2
    paper.delete(1)
    paper.add(2, "S", 101, 10)  # the next order may get the same place in memory
    assert paper.new("D", "B", 101, 60, ioc=True)[1] == ("trade", "D", 101, 10, 50)


def test_a_sweep_is_stopped_after_its_bound_of_levels_and_the_rest_is_cancelled(paper):
    for number in range(TAKE_LEVELS_MAX + 1):
        paper.add(1 + number, "S", 100 + number, 1)
    said = paper.new("A", "B", 1000, 500)
    assert len(said) == REPORTS_MAX
    assert said[-2:] == [("trade", "A", 163, 1, 436), ("canceled", "A", 0, 0, 0)]


def test_own_orders_never_trade_with_each_other(paper):
    paper.new("A", "B", 100, 50)
    assert paper.new("B", "S", 99, 50) == [("new", "B", 0, 0, 50)]
    assert len(paper.venue.open_orders()) == 2


def test_a_cancel_is_confirmed_with_both_names(paper):
    paper.new("A", "B", 100, 50)
    paper.cancel("C", "A", step=False)
    receive(paper.venue.addr, paper.books.state, NOW)
    (answer,) = paper.answers()
    assert (answer["150"], answer["39"], answer["11"], answer["41"]) == ("4", "4", name_of("C"), name_of("A"))
    assert (answer["151"], paper.venue.open_orders()) == ("0000000", [])
    paper.add(1, "S", 99, 50)
    assert paper.said() == []


def test_a_cancel_of_a_filled_order_is_too_late_and_of_a_strange_one_unknown(paper):
    paper.new("A", "B", 100, 50)
    paper.add(1, "S", 99, 50)
    assert paper.said() == [("trade", "A", 100, 50, 0)]
    paper.cancel("C", "A", step=False)
    paper.cancel("D", "nobody", step=False)
    receive(paper.venue.addr, paper.books.state, NOW)
    late, unknown = paper.answers()
    assert (late["35"], late["102"], late["39"]) == ("9", "00", "2")
    assert (unknown["102"], unknown["37"], unknown["39"]) == ("01", "NONE", "8")
    assert paper.venue.counters()["cancel_rejected"] == 2


@pytest.mark.parametrize(
    ("change", "reason", "counter"),
    [
        ({"symbol": "NOPE"}, "01", "rejected_symbol"),
        ({"symbol": "ABCABCABC"}, "01", "rejected_symbol"),
        ({"t38": "0"}, "13", "rejected_qty"),
        ({"t38": "1.5"}, "13", "rejected_qty"),
        ({"t40": "1"}, "99", "rejected_other"),
        ({"t44": "0"}, "99", "rejected_other"),
        ({"t44": "200000"}, "99", "rejected_other"),
        ({"t59": "6"}, "99", "rejected_other"),
    ],
)
def test_a_bad_order_is_rejected_with_its_reason(paper, change, reason, counter):
    paper.new("A", "B", 100, 50, step=False, **change)
    receive(paper.venue.addr, paper.books.state, NOW)
    (answer,) = paper.answers()
    assert (answer["150"], answer["39"], answer["103"], answer["151"]) == ("8", "8", reason, "0000000")
    assert answer["55"] == change.get("symbol", "ABC")[:8]
    assert (paper.venue.counters()[counter], paper.venue.open_orders()) == (1, [])


def test_an_order_in_a_halted_symbol_is_rejected_and_a_known_name_too(paper):
    paper.new("A", "B", 100, 50)
    assert paper.new("A", "B", 100, 50) == [("rejected", "A", 0, 0, 0)]
    paper.state(b"H")
    assert paper.new("B", "B", 100, 50) == [("rejected", "B", 0, 0, 0)]
    paper.state(b"T")
    assert paper.new("B", "B", 100, 50) == [("new", "B", 0, 0, 50)]
    counters = paper.venue.counters()
    assert (counters["rejected_duplicate"], counters["rejected_halted"], counters["accepted"]) == (1, 1, 2)


def test_the_last_place_taken_the_next_order_is_rejected_until_one_is_done():
    paper = Paper(orders_max=3)
    for name in "ABC":
        paper.new(name, "B", 100, 50)
    assert paper.new("D", "B", 100, 50) == [("rejected", "D", 0, 0, 0)]
    paper.cancel("X", "B")
    assert paper.cancel("Y", "B") == [("too late", "B", 0, 0, 0)]
    assert paper.new("D", "B", 100, 50) == [("new", "D", 0, 0, 50)]
    assert paper.cancel("Z", "B") == [("unknown", "B", 0, 0, 0)]  # its place was used again
    assert [row["cl_ord_id"].lstrip("0") for row in paper.venue.open_orders()] == ["A", "C", "D"]
    assert paper.cancel("Z", "A") == [("canceled", "A", 0, 0, 0)]


def test_garbled_and_foreign_messages_are_counted_and_ignored(paper):
    paper.push(b"8=FIX.4.4\x019=5\x0135=D\x0110=000\x01")
    paper.push(b"")
    paper.send("D", (11, "short"), (55, "ABC"), (54, "1"), (38, 1), (40, 2), (44, 1))
    paper.send("D", (11, name_of("A")), (55, "ABC"), (54, "5"), (38, 1), (40, 2), (44, 1))
    paper.send("F", (11, name_of("A")))
    paper.send("0")
    assert paper.step() == []
    counters = paper.venue.counters()
    assert (counters["received"], counters["garbled"], counters["foreign"]) == (6, 5, 1)


def test_an_order_arrives_after_its_latency_and_its_report_is_due_after_another():
    paper = Paper(order_latency_ns=1000, report_latency_ns=500)
    paper.new("A", "B", 100, 50, step=False)
    paper.now += 999
    assert paper.step() == []
    paper.now += 1
    receive(paper.venue.addr, paper.books.state, paper.now)
    (answer,) = paper.answers()
    assert answer["due"] == NOW + 1500


def test_no_fill_is_lost_while_the_reports_ring_is_full():
    paper = Paper(capacity=128)
    paper.new("A", "B", 100, 150)
    paper.new("B", "B", 99, 150)
    for number in range(200):
        paper.add(1 + number, "S", 99, 1)
    said = paper.said()
    assert said == [("trade", "A", 100, 1, 149 - n) for n in range(128)]
    assert flushed(paper) == [("trade", "A", 100, 22, 0), ("trade", "B", 99, 50, 100)]
    assert paper.filled == paper.venue.counters()["filled_qty"] == 200
    assert paper.venue.counters()["deferred"] == 72
    assert set(paper.ahead()) == {"B"}


def test_a_request_waits_in_its_ring_until_there_is_room_for_every_answer():
    paper = Paper(capacity=128)
    for number in range(100):
        paper.new(f"N{number}", "B", 100, 1, step=False)
    receive(paper.venue.addr, paper.books.state, paper.now)
    assert receive(paper.venue.addr, paper.books.state, paper.now) == 0
    assert paper.venue.counters()["waits"] == 2
    said = paper.said()
    assert len(said) == 128 - REPORTS_MAX + 1
    while more := paper.step():
        said += more
    assert [name for _, name, *_ in said] == [f"N{number}" for number in range(100)]


def flushed(paper):
    """Drain the reports ring until the venue has nothing more to say."""
    out = []
    while True:
        paper.real(itch.BROKEN_TRADE)
        said = paper.said()
        if not said:
            return out
        out += said


def test_a_ring_that_cannot_hold_the_answers_to_one_request_is_refused():
    with pytest.raises(ValueError, match="66 are needed"):
        Paper(capacity=64)


# A new run of the feed.


def began_anew(paper):
    """Empty the books as a new run of the feed does, and announce the symbols again."""
    paper.books.reset()
    for locate, symbol in ((1, b"ABC     "), (2, b"XYZ     ")):
        assert paper.real(itch.DIRECTORY, locate=locate, symbol=symbol) >= 0


def test_when_the_books_begin_anew_every_resting_order_is_cancelled_and_reported():
    paper = Paper(report_latency_ns=7)
    paper.add(1, "B", 1000, 100)
    paper.new("a", "B", 1000, 10)
    paper.new("b", "S", 1010, 20)
    paper.new("c", "B", 990, 30, symbol="XYZ")
    paper.execute(1, 100)
    paper.books.reset()
    receive(paper.venue.addr, paper.books.state, paper.now)
    answers = paper.answers()
    assert [short(answer) for answer in answers] == [
        ("canceled", "a", 0, 0, 0), ("canceled", "b", 0, 0, 0), ("canceled", "c", 0, 0, 0)
    ]  # fmt: skip
    assert [answer["55"].strip() for answer in answers] == ["ABC", "ABC", "XYZ"]
    assert {answer["due"] for answer in answers} == {paper.now + 7}
    assert paper.venue.open_orders() == []
    assert paper.venue.counters()["renewed"] == 3
    assert paper.step() == []  # once


def test_an_order_of_the_run_before_is_never_filled_by_the_run_after():
    paper = Paper()
    paper.add(1, "B", 1000, 100)
    paper.new("a", "B", 1000, 10)
    began_anew(paper)
    paper.add(1, "B", 1000, 5)
    paper.execute(1, 5)
    paper.add(2, "S", 1000, 50)
    assert paper.filled == 0
    assert paper.step() == [("canceled", "a", 0, 0, 0)]
    assert paper.cancel("x", "a") == [("too late", "a", 0, 0, 0)]


def test_what_was_taken_in_one_run_is_there_again_in_the_next():
    paper = Paper()
    paper.add(1, "S", 1000, 100)
    assert paper.new("a", "B", 1000, 60, ioc=True)[1] == ("trade", "a", 1000, 60, 0)
    began_anew(paper)
    paper.add(1, "S", 1000, 100)  # the same slot and the same arrival stamp
    assert paper.new("b", "B", 1000, 100, ioc=True)[1] == ("trade", "b", 1000, 100, 0)


def test_a_new_order_joins_the_new_book_as_if_there_had_been_no_other():
    paper = Paper()
    for ref in range(1, 40):
        paper.add(ref, "B", 1000, 100)
    began_anew(paper)
    paper.add(1, "B", 1000, 70)
    assert paper.new("a", "B", 1000, 10) == [("new", "a", 0, 0, 10)]
    assert paper.ahead() == {"a": 70}
    paper.add(2, "B", 1000, 5)
    paper.execute(1, 70)
    paper.execute(2, 5)
    assert paper.said() == [("trade", "a", 1000, 5, 5)]


def test_with_a_full_reports_ring_the_cancels_follow_as_room_comes_and_requests_wait():
    paper = Paper(capacity=128, orders_max=256)
    for number in range(150):
        paper.new(f"o{number}", "B", 900, 1)
    paper.new("fills", "B", 1000, 1)
    paper.add(1, "S", 1000, 1)  # filled, and the report still owed or told
    told = paper.said()
    paper.books.reset()
    paper.new("late", "B", 900, 1, step=False)
    heard = []
    for _ in range(4):
        receive(paper.venue.addr, paper.books.state, paper.now)
        heard.append(paper.said())
    assert [len(part) for part in heard] == [128, 23, 0, 0]
    assert told == [("trade", "fills", 1000, 1, 0)]
    assert {what for what, *_ in heard[0] + heard[1][:22]} == {"canceled"}
    assert heard[1][22] == ("rejected", "late", 0, 0, 0)  # handled last: the new books know no symbol yet
    assert paper.venue.counters()["renewed"] == 150


def test_a_fill_that_is_owed_is_told_before_the_cancel_of_the_rest():
    paper = Paper(capacity=128, orders_max=256)
    for number in range(129):
        paper.new(f"o{number}", "B", 1000, 1)
    paper.new("x", "B", 1000, 10)
    paper.add(1, "S", 1000, 130)
    assert paper.venue.counters()["deferred"] == 1
    paper.books.reset()
    assert len(paper.said()) == 128
    assert paper.step() == [
        ("trade", "o128", 1000, 1, 0), ("trade", "x", 1000, 1, 9), ("canceled", "x", 0, 0, 0)
    ]  # fmt: skip
