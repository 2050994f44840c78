"""The TradingModel: gates, size, exits, and the life of one working order."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import trading_model as reference
from trading_rig import EPOCH, LOCATE, Rig, S

from nimbus.messages import (
    BOOK_HALTED,
    BUY,
    EXPERT_FAULT,
    EXPERT_OFF,
    FILL_ACCEPTED,
    FILL_CANCEL_REJECTED,
    FILL_CANCELLED,
    FILL_DENIED,
    FILL_REJECTED,
    FILL_TRADE,
    INTENT_CANCEL,
    INTENT_NEW,
    SELL,
    TAG_NONE,
    TAG_OVERHYPE,
    TAG_UNDERHYPE,
    TIF_DAY,
    TIF_IOC,
)
from ringbuf.segment import Segment
from strategy.trading_model import (
    REASONS,
    TradingModel,
    cancel_overdue,
    decide,
    find_overdue,
    on_fill,
    warm_bits,
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "enter_long"),
        ({"mean": -0.01}, "enter_short"),
        ({"expert": EXPERT_OFF, "mean": math.nan}, "model_off"),
        ({"expert": EXPERT_FAULT, "mean": math.nan}, "model_fault"),
        ({"mean": math.nan}, "model_fault"),
        ({"mean": math.inf}, "model_fault"),
        ({"aleatoric": math.nan}, "model_fault"),
        ({"epistemic": -1.0}, "model_fault"),
        ({"warm": 0xFFFFFFFE}, "features_cold"),
        ({"warm": 0xFFFFFF7F}, "enter_long"),
        ({"tag_now": TAG_UNDERHYPE, "news_age_ms": 14_400_001}, "news_stale"),
        ({"tag_now": TAG_NONE, "news_age_ms": (1 << 32) - 1}, "enter_long"),
        ({"tag_now": TAG_OVERHYPE}, "tag_excluded"),
        ({"mean": 0.00029}, "edge_small"),
        ({"mean": 0.00031, "ask": 1_000_100}, "enter_long"),
        ({"agree": 25, "epistemic": 1e-3}, "samples_disagree"),
        ({"agree": 26, "epistemic": 1e-3}, "enter_long"),
        ({"agree": 25, "epistemic": 9e-5}, "enter_long"),
        ({"aleatoric": 0.01}, "uncertain"),
        ({"status": BOOK_HALTED}, "market_bad"),
        ({"bid": 0}, "market_bad"),
        ({"bid": 1_000_100}, "market_bad"),
        ({"market_age_ns": 5 * S + 1}, "market_stale"),
        ({"market_age_ns": -5 * S - 1}, "market_stale"),
        ({"market_age_ns": -1_000}, "enter_long"),
        ({"room": False}, "intents_full"),
    ],
)
def test_each_gate_has_its_reason(change, reason):
    rig = Rig(warm_required=warm_bits("spread"), tags_allowed=0b101)
    answer, action = rig.decide(1, **change)
    assert answer == reason
    assert action == (INTENT_NEW if reason.startswith("enter") else 0)
    assert rig.model.counts() == {reason: 1}
    assert rig.state == ("ENTERING" if action else "FLAT")
    assert rig.model.head["working_count"] == (1 if action else 0)


def test_a_strange_locate_is_refused():
    rig = Rig()
    rig.decide(0)
    rig.event["locate"] = rig.fill["locate"] = 16
    args = rig.at["BOOK_EVENT"], rig.at["DECISION"], EPOCH, rig.at["INTENT"]
    assert REASONS[decide(rig.model.addr, *args)] == "bad_locate"
    assert on_fill(rig.model.addr, rig.at["FILL"]) == -1


def test_shorts_can_be_forbidden():
    rig = Rig(short_allowed=0)
    assert rig.decide(0, -0.01) == ("short_forbidden", 0)


@settings(max_examples=300, deadline=None)
@given(
    st.floats(1e-5, 0.2), st.floats(1e-9, 1e-3), st.floats(1e-9, 1e-3), st.integers(1, 32),
    st.integers(100, 50_000_000), st.integers(1, 400), st.sampled_from([1, 7, 100]),
)  # fmt: skip
def test_the_size_is_the_formula_in_exact_arithmetic(mean, epistemic, aleatoric, agree, bid, spread, lot):
    rig = Rig(lot_qty=lot, order_qty_max=100_000, position_qty_max=70_001, sigma_max=1.0)
    ask = bid + spread
    reason, action = rig.decide(
        1, mean, bid=bid, ask=ask, epistemic=epistemic, aleatoric=aleatoric, agree=agree
    )
    if not action:
        edge = mean - 0.0002 - 2 * spread / (bid + ask)
        assert {
            "edge_small": edge <= 1e-12,
            "samples_disagree": not reference.agrees(rig.p, mean, epistemic, agree),
            "below_lot": edge > 0 and reference.size(rig.p, mean, epistemic, aleatoric, bid, ask) <= lot,
        }[reason]
        return
    assert reference.agrees(rig.p, mean, epistemic, agree)
    exact = reference.size(rig.p, mean, epistemic, aleatoric, bid, ask)
    assert abs(int(rig.intent["qty"]) - exact) <= lot * (exact > 0)  # float64 may miss a lot's edge
    assert rig.intent["qty"] % lot == 0
    assert rig.intent["qty"] * ask <= 0.1 * 10**10 + ask


def test_size_shrinks_with_uncertainty():
    sizes = []
    for aleatoric in (1e-6, 2e-4, 8e-4, 2e-3):
        rig = Rig(order_qty_max=10**6, position_qty_max=10**6, risk_aversion=1_000.0)
        rig.decide(0, aleatoric=aleatoric)
        sizes.append(int(rig.intent["qty"]))
    assert sizes[0] == 1e9 // 1_000_100  # w_max
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_a_large_edge_crosses_and_a_small_one_joins():
    rig = Rig()
    rig.decide(0, 0.01)
    assert (rig.intent["px"], rig.intent["tif"], rig.intent["side"]) == (1_000_100, TIF_IOC, BUY)
    rig = Rig()
    rig.decide(0, 0.0007)
    assert (rig.intent["px"], rig.intent["tif"], rig.intent["side"]) == (1_000_000, TIF_DAY, BUY)
    rig = Rig()
    rig.decide(0, -0.01)
    assert (rig.intent["px"], rig.intent["tif"], rig.intent["side"]) == (1_000_000, TIF_IOC, SELL)
    rig = Rig()
    rig.decide(0, -0.0007)
    assert (rig.intent["px"], rig.intent["tif"], rig.intent["side"]) == (1_000_100, TIF_DAY, SELL)


def test_an_intent_carries_what_risk_and_audit_need():
    rig = Rig()
    rig.decide(3, 0.01, tag_now=TAG_UNDERHYPE, book_update=41)
    intent = rig.intent
    assert (intent["decision"], intent["cause_seq"], intent["book_update"]) == (1, 1, 41)
    assert (intent["locate"], intent["strategy"], intent["tag"]) == (LOCATE, 1, TAG_UNDERHYPE)
    assert intent["recv_ns"] == EPOCH + 3 * S
    assert intent["mean"] == 0.01
    assert intent["sigma"] == pytest.approx(math.sqrt(1e-5))
    assert (rig.decision["px"], rig.decision["qty"], rig.decision["side"]) == (1_000_100, 500, BUY)


@pytest.mark.parametrize(
    ("bid", "t", "mean", "tag_now", "reason"),
    [
        (979_900, 1, 0.0, TAG_UNDERHYPE, "exit_stop"),
        (1_030_100, 1, 0.0, TAG_UNDERHYPE, "exit_target"),
        (1_000_000, 600, 0.0, TAG_UNDERHYPE, "exit_time"),
        (1_000_000, 1, -0.01, TAG_UNDERHYPE, "exit_reversal"),
        (1_000_000, 1, 0.0, TAG_NONE, "exit_tag"),
        (1_000_000, 1, 0.01, TAG_UNDERHYPE, "at_size"),
        (1_000_000, 1, 0.0, TAG_UNDERHYPE, "edge_small"),
        (979_900, 1, math.nan, TAG_UNDERHYPE, "exit_stop"),  # a faulty model does not stop an exit
    ],
)
def test_each_exit_closes_the_whole_position_at_the_opposite_price(bid, t, mean, tag_now, reason):
    rig = Rig(target=0.03, tag_end=2, trailing=0.0)
    rig.enter(497)
    answer, action = rig.decide(t, mean, bid=bid, ask=bid + 100, tag_now=tag_now)
    assert answer == reason
    if reason.startswith("exit"):
        assert action == INTENT_NEW
        assert (rig.intent["qty"], rig.intent["side"], rig.intent["px"]) == (497, SELL, bid)
        assert rig.intent["tif"] == TIF_IOC
        assert math.isfinite(rig.intent["mean"])
        assert rig.state == "EXITING"
    else:
        assert action == 0


def test_a_short_has_mirrored_exits():
    rig = Rig(trailing=0.0)
    rig.enter(500, 1_000_000, SELL)
    assert rig.state == "SHORT"
    reason, _ = rig.decide(1, 0.0, bid=1_020_000, ask=1_020_100, tag_now=TAG_OVERHYPE)
    assert (reason, rig.intent["side"], rig.intent["px"]) == ("exit_stop", BUY, 1_020_100)


def test_the_trailing_stop_follows_the_best_mid():
    rig = Rig(stop=0.0)
    rig.enter()
    assert rig.decide(1, 0.0, bid=1_099_950, ask=1_100_050)[0] == "edge_small"
    assert rig.decide(2, 0.0, bid=1_080_250, ask=1_080_350)[0] == "edge_small"
    assert rig.decide(3, 0.0, bid=1_080_100, ask=1_080_200)[0] == "exit_trailing"


def test_a_position_does_not_buy_again():
    rig = Rig()
    rig.enter()
    assert rig.decide(1) == ("at_size", 0)
    assert rig.state == "LONG"


def test_a_position_may_grow_to_the_cap_when_told_to():
    rig = Rig(scale_in=1, order_qty_max=2_000)
    rig.enter(500)
    assert rig.decide(1)[0] == "enter_long"
    assert rig.intent["qty"] == 300
    rig.report(FILL_TRADE, qty=300, px=1_001_000, position=800)
    assert rig.holding["average_px"] == pytest.approx((500 * 1_000_100 + 300 * 1_001_000) / 800)
    assert rig.decide(2)[0] == "position_cap"


def test_the_exposure_of_other_symbols_counts():
    rig = Rig(exposure_px_max=700 * 1_000_100)
    rig.model.adopt(3, -400, 1_000_000.0, 1_000_000, EPOCH)
    rig.decide(1)
    assert rig.intent["qty"] == (700 * 1_000_100 - 400 * 1_000_000) // 1_000_100
    rig.report(FILL_REJECTED)
    assert rig.model.head["exposure_px"] == 400 * 1_000_000
    rig.model.adopt(4, 300, 1_000_000.0, 1_000_000, EPOCH)
    assert rig.decide(5)[0] == "exposure_cap"


def test_rejects_and_denials_cool_down_and_three_in_a_row_pause():
    rig = Rig()
    assert rig.decide(0)[1] == INTENT_NEW
    rig.report(FILL_REJECTED)
    assert rig.state == "FLAT"
    assert rig.decide(0.9)[0] == "cooldown"
    assert rig.decide(1.0)[0] == "enter_long"
    rig.report(FILL_DENIED)
    assert rig.decide(2.1)[0] == "enter_long"
    rig.report(FILL_CANCELLED)  # an IOC that found nothing
    assert rig.decide(62.0)[0] == "cooldown"
    assert rig.decide(62.1)[0] == "enter_long"


def test_a_fill_forgives_the_strikes():
    rig = Rig()
    rig.decide(0)
    rig.report(FILL_REJECTED)
    rig.t = 2
    rig.enter()
    assert rig.holding["strikes"] == 0


def test_one_order_works_and_stays_while_its_decision_stands():
    rig = Rig(cross_edge=1.0)
    rig.decide(0)
    assert rig.decide(1) == ("working", 0)
    assert rig.decide(2, 0.0) == ("working", 0)  # its number is not known yet
    rig.report(FILL_ACCEPTED)
    assert rig.decide(3) == ("working", 0)
    assert rig.decide(4, 0.0) == ("cancel_changed", INTENT_CANCEL)
    assert (rig.intent["order"], rig.intent["kind"], rig.intent["qty"]) == (77, INTENT_CANCEL, 0)
    assert rig.decide(5, 0.0) == ("cancelling", 0)
    rig.report(FILL_CANCELLED)
    assert rig.state == "FLAT"
    assert rig.decide(5.1)[0] == "enter_long"  # a cancel that we asked for is no failure


def test_an_old_order_is_cancelled_and_a_bad_market_cancels_at_once():
    rig = Rig(cross_edge=1.0)
    rig.decide(0)
    rig.report(FILL_ACCEPTED)
    assert rig.decide(30) == ("working", 0)
    assert rig.decide(30.1) == ("cancel_aged", INTENT_CANCEL)
    rig = Rig(cross_edge=1.0)
    rig.decide(0)
    rig.report(FILL_ACCEPTED)
    assert rig.decide(1, room=False, status=BOOK_HALTED) == ("market_bad", 0)
    assert rig.decide(1, status=BOOK_HALTED) == ("cancel_market", INTENT_CANCEL)
    assert rig.decide(2, status=BOOK_HALTED) == ("market_bad", 0)


@pytest.mark.parametrize("kind", [FILL_CANCEL_REJECTED, FILL_DENIED])
def test_a_refused_cancel_leaves_the_order_working(kind):
    rig = Rig(cross_edge=1.0)
    rig.decide(0)
    rig.report(FILL_ACCEPTED)
    assert rig.decide(1, 0.0)[0] == "cancel_changed"
    cancel = int(rig.decision["decision"])
    decision = cancel if kind == FILL_DENIED else None
    rig.report(kind, decision=decision)
    assert rig.holding["working_qty"] == 500
    assert rig.decide(2, 0.0)[0] == "cancel_changed"


@pytest.mark.parametrize("decision", [1, 2])  # the order's (told by the venue), its cancel's (by risk)
def test_a_refused_cancel_of_an_older_order_says_nothing_about_the_one_that_works(decision):
    rig = Rig(cross_edge=1.0)
    rig.decide(0)
    rig.report(FILL_ACCEPTED, order=77)
    assert rig.decide(1, 0.0)[0] == "cancel_changed"
    rig.report(FILL_TRADE, qty=500, position=500, order=77)  # it was filled before the cancel arrived
    rig.report(FILL_TRADE, qty=500, position=0, side=SELL, decision=90, order=70)  # somebody else's
    assert rig.decide(2)[0] == "enter_long"
    rig.report(FILL_ACCEPTED, order=78)
    assert rig.decide(3, 0.0) == ("cancel_changed", INTENT_CANCEL)
    rig.report(FILL_CANCEL_REJECTED, order=77, decision=decision)
    assert rig.decide(4, 0.0) == ("cancelling", 0)
    assert rig.holding["order"] == 78
    rig.report(FILL_CANCEL_REJECTED, order=78)
    assert rig.decide(5, 0.0) == ("cancel_changed", INTENT_CANCEL)


def test_an_order_of_a_silent_symbol_is_found_and_cancelled_when_overdue():
    rig = Rig(cross_edge=1.0)
    rig.decide(0)
    rig.report(FILL_ACCEPTED)
    late = EPOCH + 31 * S
    found = [find_overdue(rig.model.addr, EPOCH + 30 * S) for _ in range(4)]
    assert found == [-1] * 4
    found = [find_overdue(rig.model.addr, late) for _ in range(2)]
    assert sorted(found) == [-1, LOCATE]
    rig.clear_decision()
    rig.decision["decision"], rig.decision["locate"], rig.decision["now_ns"] = 99, LOCATE, late
    args = rig.model.addr, rig.at["BOOK_EVENT"], rig.at["DECISION"], late, rig.at["INTENT"]
    assert REASONS[cancel_overdue(*args)] == "cancel_aged"
    assert (rig.intent["order"], rig.intent["decision"], rig.intent["locate"]) == (77, 99, LOCATE)
    assert [find_overdue(rig.model.addr, late) for _ in range(4)] == [-1] * 4


def test_a_partial_fill_exits_with_what_was_filled():
    rig = Rig(cross_edge=1.0, trailing=0.0)
    rig.decide(0, tag_now=TAG_UNDERHYPE)
    rig.report(FILL_TRADE, qty=300, leaves=200, px=1_000_000, position=300)
    assert rig.holding["working_qty"] == 200
    down = {"bid": 979_900, "ask": 980_000}
    assert rig.decide(1, 0.0, **down)[0] == "cancel_changed"
    rig.report(FILL_CANCELLED)
    assert rig.state == "LONG"
    assert rig.decide(2, 0.0, **down)[0] == "exit_stop"
    assert rig.intent["qty"] == 300


def test_an_exit_closes_an_odd_lot_whole_and_an_entry_is_in_lots():
    rig = Rig(cross_edge=1.0, trailing=0.0, lot_qty=100)
    rig.decide(0, tag_now=TAG_UNDERHYPE)
    assert rig.intent["qty"] == 500
    rig.report(FILL_TRADE, qty=130, leaves=370, px=1_000_000, position=130)
    rig.report(FILL_CANCELLED)
    assert rig.decide(1, 0.0, bid=979_900, ask=980_000)[0] == "exit_stop"
    assert (rig.intent["qty"], rig.intent["side"]) == (130, SELL)


def test_a_blocked_symbol_does_nothing_new():
    rig = Rig()
    rig.holding["blocked"] = 1
    assert rig.decide(0) == ("blocked", 0)


def test_an_unknown_parameter_is_refused():
    with pytest.raises(TypeError, match="leverage"):
        TradingModel(Segment.anonymous(1 << 16), 1, leverage=2.0)
