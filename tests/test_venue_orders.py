"""The orders agent and the paper venue over their two rings: both keep the same books of our orders."""

import random

import numpy as np
from orders_rig import view
from test_venue_paper import Paper

from nimbus.book.layout import BOOK
from nimbus.book.walk import best_level, level_first, order_ref
from nimbus.journal.log import Stream
from nimbus.messages import BUY, INTENT, INTENT_CANCEL, INTENT_NEW, PAPER, SELL, TIF_DAY, TIF_IOC
from nimbus.orders import kill_switch
from nimbus.orders.agent import Orders, receive, take_intent
from nimbus.venue import paper

LIMITS = {
    "qty_max": 10_000, "notional_max": 10**12, "collar_bp": 10_000, "rate_per_s": 10**6, "rate_burst": 10**6,
    "position_max": 10**6, "open_orders_max": 500, "symbol_open_orders_max": 500, "stale_after_ns": 10**15,
}  # fmt: skip


class Desk:
    def __init__(self, seed):
        self.draw, self.paper = random.Random(seed), Paper(orders_max=512)
        books, segment = self.paper.books, self.paper.segment
        self.stream = Stream(segment, 2, epoch=7, capacity=16_384)
        self.orders = Orders(
            segment, symbols=books.state.books + BOOK.at.symbol, symbols_stride=BOOK.size, symbols_max=8,
            tops=books.state.tops, stream=self.stream, out=self.paper.orders, inbound=self.paper.reports,
            day_orders_max=4096, executions_max=8192, limits=LIMITS,
        )  # fmt: skip
        self.orders.kill_switch.set(kill_switch.OPERATOR, PAPER)
        self.orders.log_on()
        self.at, self.sent = segment.allocate("intent", INTENT.size), 0

    def intent(self, **values):
        row = view(self.at, INTENT)
        row[:] = np.zeros(1, INTENT.dtype)
        base = {
            "decision": self.sent + 1, "cause_seq": self.paper.seq, "locate": 1, "strategy": 1, "sigma": 0.01,
            "recv_ns": self.paper.now, "kind": INTENT_NEW,
        }  # fmt: skip
        for field, value in (base | values).items():
            row[field] = value
        self.sent += 1
        return take_intent(self.orders.addr, self.at, self.paper.now)

    def market(self, number):
        draw, venue = self.draw, self.paper
        if draw.random() < 0.6 or number < 20:
            side = draw.choice("BS")
            away = draw.randint(1, 8) * 100
            px = 1_000_000 - away if side == "B" else 1_000_000 + away
            venue.add(number + 1, side, px, draw.randint(1, 5) * 100)
        else:
            side = draw.choice([BUY, SELL])
            top = venue.books.top(1)
            px = top["bid_px"] if side == BUY else top["ask_px"]
            if px:
                ref = self.first_at(side)
                venue.execute(ref, draw.randint(1, 300))

    def first_at(self, side):
        state = self.paper.books.state
        return order_ref(state, level_first(state, best_level(state, 1, side)))

    def step(self, number):
        self.market(number)
        draw = self.draw
        if draw.random() < 0.3:
            side = draw.choice([BUY, SELL])
            px = 1_000_000 + draw.randint(-6, 6) * 100
            self.intent(
                side=side, px=px, qty=draw.randint(1, 6) * 100, tif=draw.choice([TIF_DAY, TIF_DAY, TIF_IOC])
            )
        if draw.random() < 0.1 and self.orders.pool.taken.size:
            self.intent(kind=INTENT_CANCEL, order=draw.randint(1, self.orders.pool.taken.size))
        self.paper.now += 1_000_000
        paper.receive(self.paper.venue.addr, self.paper.books.state, self.paper.now)
        receive(self.orders.addr, self.paper.now)
        self.stream.release(sum(len(view) // 128 for view in self.stream.waiting()))


def test_after_random_trading_agent_and_venue_agree_on_every_order_and_the_position():
    desk = Desk(5)
    for number in range(2_000):
        desk.step(number)
    counters, venue = desk.orders.counters(), desk.paper.venue.counters()
    for name in ("unreadable", "refused", "conflicts", "unknown_orders", "repeated"):
        assert counters[name] == 0, name
    assert desk.orders.alarms() == {}
    orders = desk.orders.pool.taken
    assert venue["accepted"] == len(orders) > 200
    assert venue["fills_resting"] > 20
    assert venue["fills_taking"] > 20
    assert venue["cancelled"] > 20
    assert int(orders["cum_qty"].sum()) == venue["filled_qty"]
    signed = np.where(orders["side"] == BUY, orders["cum_qty"], -orders["cum_qty"])
    assert int(desk.orders.position_row(1)["position_qty"]) == int(signed.sum())
    ours = {bytes(o["cl_ord_id"]).decode(): (int(o["leaves_qty"]), int(o["cum_qty"]), int(o["cost"]))
            for o in orders if o["leaves_qty"]}  # fmt: skip
    theirs = {
        o["cl_ord_id"]: (o["leaves_qty"], o["cum_qty"], o["cost"]) for o in desk.paper.venue.open_orders()
    }
    assert ours == theirs
