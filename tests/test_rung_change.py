"""A change of rung is applied before the decision it names, in order, and journalled before it."""

from __future__ import annotations

import numpy as np
import pytest
from reference.plans import random_weights
from strategy_rig import drop, oldest, push

from bicep.nanopt import Reason
from bicep.plan import Plan, encode, ladder
from daemon.pipeline import Pipeline
from daemon.rung_change import change_rung
from daemon.rungs import as_text, served, word_of
from nimbus.journal.log import Stream
from nimbus.journal.types import RUNG, RecordType
from nimbus.messages import BOOK_EVENT, DECISION, JOURNAL
from ringbuf.segment import Segment
from ringbuf.spsc import create_ring
from strategy.state import STRATEGY

NOW = 1_700_000_000 * 10**9


class Loop:
    """The words of a strategy loop that a change of rung touches."""

    def __init__(self, capacity: int = 16) -> None:
        self.segment = Segment.anonymous(4 << 20)
        image = encode(
            [random_weights(n, (64, 8)) for n in range(3)], [0, 1, 2], 1.0, ladder((1.0, 0.5, 0.2))
        )
        self.plan = Plan.from_image(image, self.segment, 4)
        self.stream = Stream(self.segment, 1, epoch=1, capacity=capacity)
        strategy = self.segment.allocate("strategy", STRATEGY.size)
        self.head = self.segment.array("strategy", STRATEGY)[0]
        self.head["plan"] = self.plan.state
        self.events = self.head["events"] = create_ring(self.segment, "events", 8, BOOK_EVENT)
        self.event()
        self.rungs = create_ring(self.segment, "rungs", 8, RUNG)
        self.decisions = create_ring(self.segment, "decisions", 8, DECISION)
        self.pipeline = Pipeline(*[0] * len(Pipeline._fields))._replace(
            strategy=strategy, rungs=self.rungs, decisions=self.decisions, strategy_stream=self.stream.addr
        )

    def event(self) -> None:
        """Let an event of the books wait."""
        blank = np.zeros(1, BOOK_EVENT.dtype)
        assert push(self.events, blank.ctypes.data)

    def ask(self, word: int, decision: int = 0, now_ns: int = 0, events: int = 0) -> None:
        """Push a change as the control loop does."""
        row = np.zeros(1, RUNG.dtype)
        row["word"], row["decision"], row["now_ns"], row["reason"] = word, decision, now_ns, Reason.LATENCY
        row["events"] = events
        assert push(self.rungs, row.ctypes.data)

    def turn(self, now_ns: int = NOW) -> int:
        return change_rung(self.pipeline, now_ns)

    def journal(self) -> list:
        """Return (RUNG, time of the record) of what was journalled, and forget it."""
        records = np.concatenate([np.frombuffer(v, JOURNAL.dtype) for v in self.stream.waiting()]).copy()
        self.stream.release(len(records))
        assert all(records["type"] == RecordType.RUNG)
        rows = [np.frombuffer(r["payload"].tobytes()[: RUNG.size], RUNG.dtype)[0] for r in records]
        return list(zip(rows, records["wall_ns"].tolist(), strict=True))


@pytest.fixture
def loop():
    return Loop()


def test_a_change_without_a_decision_holds_from_the_next_one(loop):
    loop.head["decision"] = 41
    loop.ask(word_of(2, 8))
    assert loop.turn() == 1
    assert loop.plan.rung == (2, 2)
    [(row, wall_ns)] = loop.journal()
    assert (row["decision"], row["now_ns"], wall_ns) == (42, NOW, NOW)
    assert (row["old_word"], row["old_samples"], row["word"]) == (0, 32, word_of(2, 8))


def test_a_recorded_change_waits_for_its_decision_and_keeps_its_time(loop):
    loop.ask(word_of(1, 32), decision=3, now_ns=NOW - 5)
    for decision in (0, 1):
        loop.head["decision"] = decision
        assert loop.turn() == 0
        assert loop.plan.rung == (0, 0)
    loop.head["decision"] = 2
    assert loop.turn() == 1
    assert loop.plan.rung == (1, 0)
    [(row, wall_ns)] = loop.journal()
    assert (row["decision"], row["now_ns"], wall_ns) == (3, NOW - 5, NOW - 5)


def test_a_change_waits_for_an_event_and_a_recorded_one_for_the_same_event(loop):
    assert oldest(loop.events) != 0
    drop(loop.events)
    loop.head["decision"], loop.head["handled"] = 6, 99
    loop.ask(1)
    assert loop.turn() == 0
    loop.event()
    assert loop.turn() == 1
    assert loop.journal()[0][0]["events"] == 99
    loop.ask(2, decision=7, events=101)
    assert loop.turn() == 0
    loop.head["handled"] = 101
    assert loop.turn() == 1
    assert loop.journal()[0][0]["events"] == 101


def test_all_changes_of_one_decision_are_taken_in_order_and_later_ones_wait(loop):
    for word, decision in ((1, 1), (2, 1), (0, 2)):
        loop.ask(word, decision)
    assert loop.turn() == 2
    assert loop.plan.rung == (2, 0)
    assert [(int(r["old_word"]), int(r["word"])) for r, _ in loop.journal()] == [(0, 1), (1, 2)]
    loop.head["decision"] = 1
    assert loop.turn() == 1
    assert loop.plan.rung == (0, 0)


def test_nothing_changes_while_an_older_decision_waits_for_the_journal(loop):
    held = np.zeros(1, DECISION.dtype)
    assert push(loop.decisions, held.ctypes.data)
    loop.ask(1)
    assert loop.turn() == 0
    assert loop.plan.rung == (0, 0)


def test_nothing_changes_without_room_in_the_journal():
    loop = Loop(capacity=2)
    for word in (1, 2, 1):
        loop.ask(word)
    assert loop.turn() == 2
    assert loop.plan.rung == (2, 0)
    assert loop.turn() == 0
    loop.journal()
    assert loop.turn() == 1
    assert loop.plan.rung == (1, 0)
    assert loop.stream.refused == 0


def test_a_rung_that_the_plan_does_not_have_is_dropped_without_a_trace(loop):
    loop.ask(7)
    loop.ask(1)
    assert loop.turn() == 1
    assert loop.plan.rung == (1, 0)
    assert len(loop.journal()) == 1
    assert oldest(loop.rungs) == 0


def test_what_served_is_counted_by_decisions():
    rows = [
        {"decision": 1, "density": 0.5, "samples": 32},
        {"decision": 11, "density": 0.2, "samples": 0},
        {"decision": 14, "density": 0.5, "samples": 32},
    ]
    found = served(rows, 20)
    assert found == [
        {"density": 0.5, "samples": 32, "decisions": 17},
        {"density": 0.2, "samples": 0, "decisions": 3},
    ]
    assert as_text(found) == "0.5 x 32: 17 decisions, 0.2 x analytic: 3 decisions"
    assert served([], 7) == [{"density": 1.0, "samples": 32, "decisions": 7}]
