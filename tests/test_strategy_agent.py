"""The strategy agent: events, fills and news in; decisions, intents and training rows out."""

import math

import crc32c
import numpy as np
import pytest
from strategy_rig import EPOCH, SYMBOLS, Rig, S

from bicep.plan import news_version
from nimbus.messages import (
    DECISION,
    EXPERT_FAULT,
    EXPERT_OFF,
    FILL_ACCEPTED,
    FILL_TRADE,
    INTENT_CANCEL,
    INTENT_NEW,
    SELL,
    TAG_NAMES,
    TOP_CHANGED,
)
from strategy.agent import digest
from strategy.contradiction import REASONS as TAG_REASONS
from strategy.features import vector_at
from strategy.recorder import NEED_DRAIN
from strategy.trading_model import REASONS


def test_news_on_a_quiet_market_becomes_a_buy_and_its_record():
    rig = Rig()
    rig.warm()
    rig.publish(70, 2.0, item=41)
    seen = rig.step(70.5)
    (intent,) = rig.intents()
    assert (TAG_NAMES[seen["tag"]], TAG_REASONS[seen["tag_reason"]]) == ("underhype", "fresh_flat")
    assert (seen["expert"], REASONS[seen["reason"]], seen["action"]) == (2, "enter_long", INTENT_NEW)
    assert seen["mean"] == pytest.approx(0.02)
    assert seen["aleatoric"] == pytest.approx(1e-4, rel=1e-4)
    assert (seen["epistemic"], seen["agree"]) == (0.0, 32)
    assert (seen["news_item"], seen["news_version"], seen["news_age_ms"]) == (41, 2, 500)
    assert (seen["cause_seq"], seen["book_update"], seen["now_ns"]) == (71, 71, EPOCH + 70_500_000_000)
    assert (seen["locate"], seen["state"], seen["status"]) == (5, ord("T"), 0)
    assert seen["decision"] == intent["decision"] == 71
    assert (intent["px"], intent["qty"], intent["cause_seq"]) == (1_000_100, 100, 71)
    assert (seen["px"], seen["qty"], seen["side"]) == (intent["px"], intent["qty"], intent["side"])
    assert rig.strategy.counters()["tag_underhype"] == 1


def test_the_digest_is_that_of_the_raw_vector():
    rig = Rig()
    rig.warm()
    seen = rig.step(70.5)
    vector = rig.strategy.features.vector(5)
    even, odd = (crc32c.crc32c(vector[first::2].tobytes()) ^ 0xFFFFFFFF for first in (0, 1))
    assert int(seen["features_digest"]) & (1 << 64) - 1 == even | odd << 32
    assert digest(vector_at(rig.strategy.features.addr, 5)) == seen["features_digest"]
    vector[3] = -vector[3]
    assert digest(vector_at(rig.strategy.features.addr, 5)) != seen["features_digest"]


def test_the_story_of_the_design_runs_through_the_agent():
    rig = Rig(trading={"order_qty_max": 500, "trailing": 0.018, "target": 0.0, "stop": 0.05})
    rig.warm()
    position, done, path = 0, [], [(71, 1.0), (75, 1.03), (100, 1.10), (130, 1.08), (141, 1.08), (145, 1.03)]
    for t, ratio in path:
        if t in (71, 141):
            rig.publish(t - 0.5, 2.0 if t == 71 else -2.0, item=t)
        rig.step(t, round(10_000 * ratio) * 100)
        for intent in rig.intents():
            side, qty = int(intent["side"]), int(intent["qty"])
            position += -qty if side == SELL else qty
            done.append((t, chr(side), qty))
            rig.fill(t, FILL_TRADE, int(intent["decision"]), last_px=int(intent["px"]), last_qty=qty,
                     position_qty=position, side=side)  # fmt: skip
    assert done == [(71, "B", 500), (130, "S", 500), (141, "S", 500), (145, "B", 500)]
    rig.step(146, 1_030_000)
    assert rig.strategy.model.state(5) == "FLAT"


def test_fills_are_taken_before_the_events_of_the_cycle():
    rig = Rig()
    rig.warm()
    rig.publish(70, 2.0, item=1)
    number = int(rig.step(70.5)["decision"])
    rig.fill(71, FILL_TRADE, number, last_px=1_000_100, last_qty=100, position_qty=100, side=ord("B"))
    seen = rig.step(71)
    assert REASONS[seen["reason"]] == "at_size"
    assert rig.strategy.counters()["filled"] == 1


def test_without_a_plan_only_a_changed_tag_is_journalled():
    rig = Rig(plan=False)
    rig.warm()
    assert rig.strategy.counters()["decision"] == 0
    rig.publish(70, 2.0, item=1)
    seen = rig.step(70.5)
    assert (seen["expert"], REASONS[seen["reason"]]) == (EXPERT_OFF, "model_off")
    assert TAG_NAMES[seen["tag"]] == "underhype"
    assert math.isnan(seen["mean"])
    assert rig.step(71) is None
    assert not rig.intents()
    quiet = Rig(plan=False, journal_tags=False)
    quiet.warm()
    quiet.publish(70, 2.0, item=1)
    assert quiet.step(70.5) is None


def test_only_actions_are_journalled_when_told_so():
    rig = Rig(journal_decisions="actions")
    rig.warm()
    assert rig.strategy.counters()["decision"] == 70
    assert rig.step(70) is None
    rig.publish(70, 2.0, item=1)
    assert rig.step(70.5)["action"] == INTENT_NEW


def test_depth_and_trades_update_features_but_decide_nothing():
    rig = Rig()
    rig.warm()
    before = int(rig.strategy.features.rows[5]["events"])
    assert rig.step(70.2, flags=0) is None
    assert rig.strategy.features.rows[5]["events"] == before + 1


def test_a_symbol_asks_at_most_once_an_interval():
    rig = Rig(interval_ns=S)
    rig.warm(10)
    asked = rig.strategy.counters()["asked"]
    assert [rig.step(10 + n / 4) is not None for n in range(9)] == [True, False, False, False] * 2 + [True]
    assert rig.strategy.counters()["asked"] == asked + 3


def test_a_faulty_model_enters_nothing_and_is_counted():
    rig = Rig()
    rig.warm()
    rig.plan._record["symbols_max"] = 1  # the plan refuses the symbol
    rig.publish(70, 2.0, item=1)
    seen = rig.step(70.5)
    assert (seen["expert"], seen["rung"], REASONS[seen["reason"]]) == (EXPERT_FAULT, 2, "model_fault")
    assert rig.strategy.counters()["faults"] == 1


def test_a_new_record_of_news_reaches_the_plan_once():
    rig = Rig()
    rig.warm(3)
    assert news_version(rig.plan.state, 5) == 0
    rig.publish(3, 0.1, item=1)
    for t in (3, 4, 5):
        rig.step(t)
    assert news_version(rig.plan.state, 5) == 2
    rig.publish(6, 0.2, item=1)  # an update of the same item is a new version too
    rig.step(6)
    assert news_version(rig.plan.state, 5) == 4
    assert news_version(rig.plan.state, 4) == 0


def test_without_room_for_the_record_nothing_is_sent():
    rig = Rig(decisions_capacity=1)
    rig.warm()
    rig.publish(70, 2.0, item=1)
    rig.event(70.5)
    rig.event(70.6)
    rig.work(70.5)
    assert len(rig.intents()) == 1
    assert rig.strategy.counters()["lost"] == 1
    rig = Rig(decisions_capacity=1)
    rig.warm()
    rig.event(70.5)
    rig.work(70.5)  # fills the ring
    rig.publish(70.5, 2.0, item=1)
    rig.event(71)
    rig.work(71)
    assert not rig.intents()
    assert rig.strategy.model.counts()["intents_full"] == 1
    rig.take(rig.strategy.decisions, DECISION)
    assert REASONS[rig.step(72)["reason"]] == "enter_long"


def test_without_room_for_the_intent_nothing_changes():
    rig = Rig(intents_capacity=1)
    for locate in (5, 6):
        for n in range(70):
            rig.step(n * 1.0, locate=locate)
        rig.publish(70, 2.0, item=1, locate=locate)
    assert REASONS[rig.step(70.5, locate=5)["reason"]] == "enter_long"
    seen = rig.step(70.6, locate=6)
    assert (REASONS[seen["reason"]], seen["action"]) == ("intents_full", 0)
    assert rig.strategy.model.state(6) == "FLAT"
    assert len(rig.intents()) == 1
    assert REASONS[rig.step(70.7, locate=6)["reason"]] == "enter_long"


def test_an_overdue_order_is_cancelled_by_the_events_of_another_symbol():
    rig = Rig(trading={"cross_edge": 1.0, "working_max_ns": 10 * S})
    rig.warm()
    rig.publish(70, 2.0, item=1)
    number = int(rig.step(70.5)["decision"])
    rig.intents()
    rig.fill(70.6, FILL_ACCEPTED, number)
    for n in range(4):
        rig.step(80 + n / 10, locate=2)
    assert not rig.intents()
    for n in range(2):
        rig.step(80.6 + n / 10, locate=2)
    (intent,) = rig.intents()
    assert (intent["kind"], intent["locate"], intent["order"]) == (INTENT_CANCEL, 5, 70 + number)
    assert rig.strategy.model.counts()["cancel_aged"] == 1


def test_a_strange_locate_is_passed_over():
    rig = Rig()
    assert rig.step(0, locate=SYMBOLS) is None
    assert rig.strategy.features.counters()["bad_locate"] == 1
    assert rig.strategy.counters()["handled"] == 1


def test_a_full_recorder_stops_the_events_until_it_is_drained_and_loses_none():
    rig, twin = Rig(plan=False, rows=8), Rig(plan=False)
    expected, rows = [], []
    for n in range(30):
        flags = TOP_CHANGED if n % 3 else 0
        for r in (rig, twin):
            r.event(n * 0.7, 1_000_000 + 100 * (n % 4), flags=flags)
        twin.work(n)
        if flags:
            expected.append(twin.strategy.features.vector(5).copy())
    while rig.work(30):
        if rig.recorder.head["status"] == NEED_DRAIN:
            assert rig.work(30) == 0
            rows.append(rig.recorder.drain())
    rows = np.concatenate([*rows, rig.recorder.drain()])
    np.testing.assert_array_equal(rows["vector"], expected)
    assert rows["seq"].tolist() == [n + 1 for n in range(30) if n % 3]
    assert (rows["mid_px2"] == 2_000_100 + 200 * ((rows["seq"] - 1) % 4)).all()
    assert (rows["locate"] == 5).all()
    assert rig.recorder.head["drained"] == 20


def test_a_row_says_which_news_and_tag_stood():
    rig = Rig(rows=256)
    rig.warm()
    rig.publish(70, 2.0, item=33)
    rig.step(70.5)
    row = rig.recorder.drain()[-1]
    assert (TAG_NAMES[row["tag"]], row["news_item"]) == ("underhype", 33)
    assert row["recv_ns"] == EPOCH + 70_500_000_000
    assert row["warm"] == rig.strategy.features.rows[5]["warm"]


def test_two_runs_give_the_same_bytes():
    def run():
        rig, random, bid = Rig(), np.random.default_rng(3), 1_000_000
        out = []
        for n in range(300):
            bid += int(random.integers(-1, 2)) * 100
            if n % 50 == 40:
                rig.publish(n * 0.4, float(random.normal()) * 2, item=n)
            rig.event(n * 0.4, bid)
            rig.work(n * 0.4)
            out += [d.tobytes() for d in rig.take(rig.strategy.decisions, DECISION)]
            out += [i.tobytes() for i in rig.intents()]
        return out

    first = run()
    assert len(first) > 300
    assert first == run()


def test_an_unknown_way_to_journal_is_refused():
    with pytest.raises(KeyError, match="some"):
        Rig(journal_decisions="some")


def test_a_new_run_of_the_feed_makes_a_symbol_cold_and_drops_its_tag_but_not_its_position():
    rig = Rig()
    rig.warm()
    rig.publish(70, 2.0, item=41)
    bought = rig.step(70.5)
    rig.fill(70.5, FILL_TRADE, int(bought["decision"]), last_px=1_000_100, last_qty=100, position_qty=100)
    rig.work(70.6)
    again = rig.step(71, run=1, exch_ns=100 * S)  # the clock of the exchange may begin anywhere
    assert (TAG_NAMES[bought["tag"]], TAG_NAMES[again["tag"]]) == ("underhype", "none")
    assert TAG_REASONS[again["tag_reason"]] == "short_history"
    assert bought["warm"] & ~again["warm"] != 0
    assert rig.strategy.model.rows[5]["position_qty"] == 100
    other = rig.step(72, locate=6, run=1, exch_ns=101 * S)
    assert other["warm"] == again["warm"]
    for n in range(70):
        seen = rig.step(73 + n, run=1, exch_ns=(102 + n) * S)
    assert TAG_REASONS[seen["tag_reason"]] == "settled_flat"  # the news holds once the market is known again
