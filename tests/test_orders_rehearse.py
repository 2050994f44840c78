"""A rehearsed order leaves no trace: whatever follows is as if nobody had rehearsed."""

from __future__ import annotations

import pytest
from orders_rig import NOW, Rig, bytes_at

from nimbus.messages import SELL
from nimbus.orders.rehearse import rehearse
from nimbus.orders.risk import Reason
from nimbus.orders.state import INTENTS_KEPT, ORDERS, note_intent

INTENTS = (
    {"qty": 100, "px": 1_000_100},
    {"qty": 7, "px": 999_950, "side": SELL, "tif": 3, "tag": 2, "strategy": 9},
    {"qty": 300, "px": 1_000_123, "locate": 3},
    {"qty": 0},  # denied
)


def kept(rig):
    """Return what an order may change: journal, messages, fills, pool, positions, rate tokens, counters."""
    risk = rig.orders._risk[0]
    counters = bytes_at(rig.orders.addr + ORDERS.at.next_seq, ORDERS.at.fill - ORDERS.at.next_seq)
    return (
        [bytes(view) for view in rig.stream.waiting()], rig.wires(), [fill.tobytes() for fill in rig.fills()],
        rig.orders.pool.taken.tobytes(), [rig.position(locate).tobytes() for locate in (1, 2, 3)],
        (int(risk["credit"]), int(risk["refilled_ns"])), counters,
    )  # fmt: skip


@pytest.mark.parametrize("digits", [3, 6])
def test_orders_after_rehearsals_are_the_same_orders(digits):
    plain, rehearsed = (Rig(timestamp_digits=digits, limits={"rate_burst": 3}) for _ in range(2))
    for rig in (plain, rehearsed):
        rig.arm()
    made = 0
    for step, intent in enumerate(INTENTS):
        now_ns = NOW + step * 1_000_777
        note_intent(rehearsed.orders.addr, rehearsed.intent(decision=1, **intent))
        rehearsed.decision -= 1
        for ahead in range(2 * INTENTS_KEPT):  # each kept intent comes twice, and two seconds pass
            made += rehearse(rehearsed.orders.addr, now_ns + ahead * 60_000_000)
        assert plain.send(now_ns, **intent) == rehearsed.send(now_ns, **intent)
        assert kept(plain) == kept(rehearsed)
    assert made >= 2 * len(INTENTS)


def test_what_would_be_denied_is_rehearsed_and_leaves_no_trace():
    plain, rehearsed = Rig(), Rig()
    for rig in (plain, rehearsed):
        rig.arm()
    note_intent(rehearsed.orders.addr, rehearsed.intent(qty=0))
    rehearsed.decision -= 1
    assert sum(rehearse(rehearsed.orders.addr, NOW) for _ in range(2 * INTENTS_KEPT)) == 2
    for intent in ({"qty": 0}, {"qty": 100}):
        assert plain.send(NOW, **intent) == rehearsed.send(NOW, **intent)
        assert kept(plain) == kept(rehearsed)
    assert rehearsed.send(qty=0) == Reason.QTY


def test_nothing_is_rehearsed_without_room_in_the_pool():
    rig = Rig(limits={"rate_burst": 1_000}, day_orders_max=2)
    rig.arm()
    note_intent(rig.orders.addr, rig.intent(qty=100))
    while rig.send(qty=100) == Reason.PASSED:
        pass
    assert not any(rehearse(rig.orders.addr, NOW) for _ in range(2 * INTENTS_KEPT))
