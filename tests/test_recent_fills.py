"""The last fills of a symbol, as the endpoint shows them: picked from the journal's records."""

from __future__ import annotations

import pytest
from orders_rig import NOW, SELL, Rig

from daemon.admin.fills import FILLS_KEPT, RecentFills
from nimbus.messages import JOURNAL


def moved(rig, fills, *, cut=None):
    """Give the listener what waits in the agent's stream, in pieces of `cut` records, as a writer does."""
    for view in rig.stream.waiting():
        size = JOURNAL.size * (cut or len(view))
        for at in range(0, len(view), size):
            fills.take(view[at : at + size])
        rig.stream.release(len(view) // JOURNAL.size)


@pytest.mark.parametrize("cut", [None, 1, 2, 3])
def test_the_last_fills_are_the_trades_in_their_order_with_the_ids_of_the_venue(cut):
    rig, fills = Rig(), RecentFills()
    rig.arm()
    rig.send(qty=100)
    rig.send(qty=50, side=SELL, locate=2)
    rig.reports(1, "0", "0")
    rig.reports(1, "F", "1", qty=40, px=1_000_050)
    rig.reports(2, "F", "2", qty=50, px=1_000_000)
    rig.reports(1, "F", "2", qty=60, px=1_000_100)
    moved(rig, fills, cut=cut)
    told = [(t.order, t.qty, t.px, chr(t.side), t.strategy, t.now_ns) for t in fills.last(1)]
    assert told == [(1, 40, 1_000_050, "B", 1, NOW), (1, 60, 1_000_100, "B", 1, NOW)]
    assert [(t.order, t.qty, chr(t.side)) for t in fills.last(2)] == [(2, 50, "S")]
    assert fills.last(3) == []
    ids = [t.exec_id for t in (*fills.last(1), *fills.last(2))]
    assert len(set(ids)) == 3
    assert all(ids)
    assert {t.liquidity for t in fills.last(1)} == {None}


def test_the_exec_id_and_the_liquidity_are_those_of_the_message_behind_the_fill():
    rig, fills = Rig(), RecentFills()
    rig.arm()
    rig.send(qty=100)
    message = rig.report(1, "F", "1", qty=40, px=1_000_050)
    (exec_id,) = [part[3:] for part in message.split(b"\x01") if part.startswith(b"17=")]
    body = message[: message.rindex(b"10=")].replace(b"\x0132=", b"\x01851=2\x0132=")
    head, rest = body.split(b"\x0135=", 1)
    body = head[: head.index(b"\x019=")] + b"\x019=%03d\x0135=" % (len(rest) + 3) + rest
    rig.deliver(body + b"10=%03d\x01" % (sum(body) % 256))
    assert rig.receive() == 1
    assert rig.position()["position_qty"] == 40
    moved(rig, fills)
    (trade,) = fills.last(1)
    assert (trade.exec_id, trade.liquidity) == (exec_id.decode(), "removed")


def test_no_more_fills_are_kept_of_a_symbol_than_are_shown():
    rig, fills = Rig(), RecentFills()
    rig.arm()
    for number in range(1, 31):
        rig.send(qty=1, locate=1 + number % 2)
        rig.reports(number, "F", "2", qty=1, px=1_000_000 + number)
        moved(rig, fills)
    rig.send(qty=100)
    for number in range(40):
        rig.reports(31, "F", "1", qty=1, px=1_000_100 + number)
        moved(rig, fills)
    assert [t.px for t in fills.last(1)] == [1_000_120 + n for n in range(FILLS_KEPT)]
    assert len(fills.last(2)) == 15
