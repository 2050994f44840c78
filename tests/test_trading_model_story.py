"""The worked example of the design, and the caps under any order of reports."""

from hypothesis import given, settings
from hypothesis import strategies as st
from reference import trading_model as reference
from trading_rig import EPOCH, LOCATE, Rig, S

from nimbus.messages import (
    BUY,
    FILL_ACCEPTED,
    FILL_CANCEL_REJECTED,
    FILL_CANCELLED,
    FILL_DENIED,
    FILL_REJECTED,
    FILL_TRADE,
    INTENT_CANCEL,
    INTENT_NEW,
    NEWS,
    SELL,
    TAG_NAMES,
    TAG_NONE,
    TAG_OVERHYPE,
    TAG_UNDERHYPE,
)
from strategy.contradiction import ContradictionEngine, tag


def worked_example(partial):
    """Run the table of the design (2.2) with an expert that follows the lean; return what was done."""
    rig = Rig(capital_px=10**12, position_qty_max=10_000, cross_edge=1.0 if partial else 0.0)
    engine = ContradictionEngine(rig.segment, 16, history_min=1)
    news_at = rig.segment.allocate("news", NEWS.size)
    news = rig.segment.array("news", NEWS)[0]
    news["deviation"], news["half_life_ns"] = 1.0, 1800 * S
    headlines = {60: 2.0, 130: -2.0}
    done = []
    # fmt: off
    path = [(0, 100_000), (60, 100_000), (65, 103_000), (100, 110_000), (120, 108_000), (130, 108_000),
            (131, 108_000), (135, 103_000), (136, 103_000)]
    # fmt: on
    for t, mid in path:
        now_ns = EPOCH + t * S
        if t in headlines:
            news["received_ns"] = news["material_ns"] = now_ns
            news["score"], news["item_id"] = headlines[t], t
        verdict = tag(engine.addr, LOCATE, news_at, now_ns, 2 * mid, 1_000, 1e-3, 0)
        mean = {TAG_NONE: 0.0, TAG_OVERHYPE: -0.1, TAG_UNDERHYPE: 0.1}[verdict]
        reason, action = rig.decide(t, mean, bid=mid - 500, ask=mid + 500, tag_now=verdict)
        done.append((t, TAG_NAMES[verdict], reason))
        if action == INTENT_CANCEL:
            rig.report(FILL_CANCELLED)
        elif action == INTENT_NEW:
            side, qty, px = int(rig.intent["side"]), int(rig.intent["qty"]), int(rig.intent["px"])
            signed = qty if side == BUY else -qty
            held = int(rig.holding["position_qty"])
            part = signed * 3 // 5 if partial and t == 130 else signed
            leaves = abs(signed) - abs(part)
            rig.report(FILL_TRADE, qty=abs(part), leaves=leaves, px=px, position=held + part, side=side)
            done.append(("BUY" if side == BUY else "SELL", abs(part), px))
    return rig, done


def test_the_worked_example_buys_sells_shorts_and_covers():
    rig, done = worked_example(partial=False)
    assert done == [
        (0, "none", "edge_small"),
        (60, "underhype", "enter_long"), ("BUY", 500, 100_500),
        (65, "none", "edge_small"),
        (100, "none", "edge_small"),
        (120, "none", "exit_trailing"), ("SELL", 500, 107_500),
        (130, "overhype", "enter_short"), ("SELL", 500, 107_500),
        (131, "overhype", "at_size"),
        (135, "none", "exit_tag"), ("BUY", 500, 103_500),
        (136, "none", "edge_small"),
    ]  # fmt: skip
    assert rig.state == "FLAT"


def test_the_worked_example_with_a_partial_short_cancels_the_rest_and_covers_what_it_has():
    rig, done = worked_example(partial=True)
    assert done[-6:] == [
        (130, "overhype", "enter_short"), ("SELL", 300, 108_500),
        (131, "overhype", "working"),
        (135, "none", "cancel_changed"),
        (136, "none", "exit_tag"), ("BUY", 300, 103_500),
    ]  # fmt: skip
    assert rig.state == "FLAT"


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["decide"] * 4
            + ["accept", "fill", "fill_all", "reject", "deny", "cancel", "cancel_reject", "denied_cancel"]
        ),
        st.floats(-0.02, 0.02),
        st.integers(-300, 300),
        st.integers(0, 2),
        st.floats(0, 1),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS, st.booleans(), st.sampled_from([0.0, 0.0005, 1.0]))
def test_no_order_of_fills_cancels_and_rejects_leads_beyond_the_caps(operations, scale_in, cross_edge):
    rig = Rig(scale_in=int(scale_in), cross_edge=cross_edge, order_qty_max=2_000, trailing=0.003)
    venue, mid = reference.Venue(), 1_000_000
    for operation, mean, move, verdict, share in operations:
        order = venue.live[0] if venue.live else None
        if operation == "decide":
            mid += move * 10
            _, action = rig.decide(rig.t + 0.5, mean, bid=mid - 50, ask=mid + 50, tag_now=verdict)
            if action == INTENT_NEW:
                side = 1 if rig.intent["side"] == BUY else -1
                venue.new(rig.number, side, int(rig.intent["qty"]), int(rig.intent["px"]))
            elif action == INTENT_CANCEL:
                assert rig.intent["order"] == order.number
                order.cancel = rig.number
        elif order is not None:
            answer(rig, venue, order, operation, share)
        check_caps(rig, venue)


def answer(rig, venue, order, operation, share):
    """Send one legal report about the live order."""
    side = BUY if order.side > 0 else SELL
    common = {"decision": order.decision, "order": order.number, "side": side}
    if operation == "accept" and not order.accepted:
        order.accepted = True
        rig.report(FILL_ACCEPTED, leaves=order.leaves, **common)
    elif operation in ("fill", "fill_all"):
        order.accepted = True
        qty = order.leaves if operation == "fill_all" else max(1, int(order.leaves * share))
        position = venue.fill(order, qty)
        rig.report(FILL_TRADE, qty=qty, leaves=order.leaves, px=order.px, position=position, **common)
    elif operation in ("reject", "deny") and not order.accepted:
        venue.live.remove(order)
        rig.report(FILL_REJECTED if operation == "reject" else FILL_DENIED, **common)
    elif operation == "cancel":  # asked for or not
        venue.live.remove(order)
        rig.report(FILL_CANCELLED, **common)
    elif operation == "cancel_reject" and order.cancel:
        order.cancel = 0
        rig.report(FILL_CANCEL_REJECTED, leaves=order.leaves, **common)
    elif operation == "denied_cancel" and order.cancel:
        rig.report(FILL_DENIED, **(common | {"decision": order.cancel}))
        order.cancel = 0


def check_caps(rig, venue):
    """Hold the model to the venue's truth after every step."""
    low, high = venue.exposure()
    assert -800 <= low <= high <= 800
    assert len(venue.live) <= 1
    leaves = sum(o.leaves * o.side for o in venue.live)
    holding = rig.holding
    assert holding["position_qty"] == venue.position
    assert holding["working_qty"] == leaves
    assert rig.model.head["working_count"] == len(venue.live)
    if leaves:
        assert rig.state in ("ENTERING", "EXITING")
        if rig.state == "EXITING":
            assert abs(leaves) <= abs(venue.position)
            assert leaves * venue.position < 0
    else:
        assert rig.state == ("LONG" if venue.position > 0 else "SHORT" if venue.position < 0 else "FLAT")
    exposure = (abs(venue.position) + abs(leaves)) * int(holding["px"])
    assert rig.model.head["exposure_px"] == exposure
    assert (venue.position == 0) == (holding["average_px"] == 0.0)
