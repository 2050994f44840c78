"""The understudy: one order a play, always the same, and nothing stays of it."""

import numpy as np
import pytest

from bicep.plan import INFERENCE, Plan
from daemon.loops import play
from daemon.model import Model
from daemon.understudy import LINES_MAX, Understudy
from nimbus.messages import JOURNAL, WIRE
from ringbuf.jit import kernel
from ringbuf.memory import copy
from ringbuf.segment import Segment
from ringbuf.spsc import front
from strategy.contradiction import REASONS, reason_of
from strategy.features import INDEX, NAMES
from strategy.rule import rule_image
from strategy.state import SCRATCH, STRATEGY


@kernel
def oldest_wire(ring: int, target: int) -> int:
    wire = front(ring)
    if wire != 0:
        copy(target, wire, WIRE_SIZE)
    return wire


@kernel
def tag_reason(engine: int, locate: int) -> int:
    return reason_of(engine, locate)


WIRE_SIZE = WIRE.size


@pytest.fixture(scope="module")
def understudy():
    return Understudy(6)


def set_count(understudy, count):
    before = int(understudy._words["count"])
    understudy._words["count"] = count
    return before


def answer_of(understudy):
    strategy = understudy.system.strategy
    at = strategy.addr + STRATEGY.size + SCRATCH.at.inference
    return understudy.system.segment.words(at, INFERENCE.size // 8).view(INFERENCE.dtype)[0]


def test_a_play_leaves_nothing_behind(understudy):
    assert 0 < int(understudy._words["count"]) < LINES_MAX
    before = understudy._memory().copy()
    for _ in range(5):
        play(understudy.rehearsal)
        assert np.array_equal(understudy._memory(), before)


def test_what_cannot_be_put_back_is_not_played(monkeypatch):
    monkeypatch.setattr("daemon.understudy.LINES_MAX", 10)
    small = Understudy(6)
    assert int(small._words["count"]) == 0
    assert small.system.orders.counters()["sent"] == 0


def test_a_play_is_a_whole_tick_from_the_frame_to_the_bytes_of_an_order(understudy):
    system, before = understudy.system, understudy._memory().copy()
    target = np.zeros(1, WIRE.dtype)
    assert oldest_wire(system.orders.out, target.ctypes.data) == 0
    frames = system.feed.counters()["frames"]
    count = set_count(understudy, 0)
    play(understudy.rehearsal)
    assert system.feed.counters()["frames"] == frames + 1
    assert system.orders.counters()["sent"] == system.strategy.counters()["intended"] == 1
    assert system.orders.counters()["denied"] == 0
    assert not system.feed.refused()
    assert not system.feed.counters()["udp_checksum_bad"]
    assert oldest_wire(system.orders.out, target.ctypes.data) != 0
    text = target["bytes"][0].tobytes()[: int(target["size"][0])].decode().split("\x01")
    assert {"35=D", "55=STANDIN"} <= set(text)
    waiting = [sum(map(len, stream.waiting())) // JOURNAL.size for stream in system.streams]
    assert sorted(waiting) == [0, 0, 1, 2]  # the order in one record, the decision in two
    understudy._memory()[:] = before
    set_count(understudy, count)


def test_its_symbol_is_warm_and_its_tag_is_weighed(understudy):
    """Else a play would leave out what a real tick runs through."""
    strategy = understudy.system.strategy
    assert REASONS[tag_reason(strategy.engine.addr, 1)] == "no_news"
    warm = {name for name in NAMES if np.isfinite(strategy.features.vector(1)[INDEX[name]])}
    assert {"ofi_60s", "volatility_300s", "return_1min", "rsi_14"} <= warm


def test_the_daemons_plan_answers_at_the_rung_that_serves_and_is_not_touched():
    segment = Segment.anonymous(64 << 20)
    plan = Plan.from_image(rule_image((1.0, 0.2)), segment, 2, seed=1)
    understudy = Understudy(6, Model("rule", "nothing", plan))
    inferences = plan.counters()["inferences"]
    for rung in range(plan.rungs):
        plan.set_rung(rung)
        count = set_count(understudy, 0)
        before = understudy._memory().copy()
        play(understudy.rehearsal)
        row = understudy.system.strategy.counters()
        assert (row["intended"], row["faults"]) == (1, 0)
        assert int(answer_of(understudy)["rung"]) == rung
        understudy._memory()[:] = before
        set_count(understudy, count)
    assert plan.counters()["inferences"] == inferences
