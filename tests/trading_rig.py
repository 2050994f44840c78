"""A TradingModel with plain-Python reins, for the tests of it."""

import numpy as np

from nimbus.messages import (
    BOOK_EVENT,
    BUY,
    DECISION,
    FILL,
    FILL_TRADE,
    INTENT,
    INTENT_NEW,
    SELL,
    TAG_NONE,
    TAG_OVERHYPE,
    TAG_UNDERHYPE,
)
from ringbuf.segment import Segment
from strategy.trading_model import (
    REASONS,
    TradingModel,
    decide,
    on_fill,
)

S = 1_000_000_000
EPOCH = 1_700_000_000 * S
LOCATE = 9
BASE = {
    "fee": 0.0001, "margin": 0.0001, "agreement_min": 0.8, "interval": 1.0, "sigma_max": 0.05,
    "risk_aversion": 10.0, "weight_max": 0.1, "capital_px": 10**10, "lot_qty": 1, "order_qty_max": 500,
    "position_qty_max": 800, "exposure_px_max": 10**10, "cross_edge": 0.0005, "stop": 0.02, "target": 0.0,
    "trailing": 0.018, "hold_max_ns": 600 * S, "tag_end": 1, "cooldown_ns": S, "strikes_max": 3,
    "pause_ns": 60 * S, "working_max_ns": 30 * S, "stale_after_ns": 5 * S, "scale_in": 0,
}  # fmt: skip


class Rig:
    """A model over 16 symbols with plain-Python reins; prices in 1/10,000, times in seconds."""

    def __init__(self, **parameters):
        self.segment = Segment.anonymous(1 << 18)
        self.p = BASE | parameters
        self.model = TradingModel(self.segment, 16, **self.p)
        self.at = {
            r.name: self.segment.allocate(r.name, r.size) for r in (BOOK_EVENT, DECISION, INTENT, FILL)
        }
        self.event, self.decision, self.intent, self.fill = (
            self.segment.array(r.name, r)[0] for r in (BOOK_EVENT, DECISION, INTENT, FILL)
        )
        self.number, self.t = 0, 0.0

    def decide(self, t=None, mean=0.01, *, bid=1_000_000, ask=1_000_100, tag_now=TAG_NONE, room=True, **more):
        """Return (reason, action) of a decision at t; more: other fields of the decision."""
        self.t = self.t if t is None else t
        now_ns = EPOCH + round(self.t * S)
        self.number += 1
        status, age_ns = more.pop("status", 0), more.pop("market_age_ns", 0)
        for key, value in {
            "seq": self.number, "recv_ns": now_ns - age_ns, "bid_px": bid, "ask_px": ask, "locate": LOCATE,
            "state": ord("T"), "status": status,
        }.items():  # fmt: skip
            self.event[key] = value
        self.clear_decision()
        for key, value in (
            {
                "decision": self.number, "now_ns": now_ns, "mean": mean, "epistemic": 1e-6, "aleatoric": 9e-6,
                "agree": 32, "locate": LOCATE, "tag": tag_now, "expert": tag_now, "warm": (1 << 32) - 1,
                "news_age_ms": 1_000,
            }
            | more
        ).items():  # fmt: skip
            self.decision[key] = value
        intent_at = self.at["INTENT"] if room else 0
        reason = decide(self.model.addr, self.at["BOOK_EVENT"], self.at["DECISION"], now_ns, intent_at)
        assert reason == self.decision["reason"]
        return REASONS[reason], int(self.decision["action"])

    def clear_decision(self):
        """Zero the decision record."""
        self.segment.array("DECISION", DECISION).view(np.uint8)[:] = 0

    def report(self, kind, *, qty=0, leaves=0, px=1_000_100, position=0, side=BUY, decision=None, order=77):
        """Hand a FILL to the model."""
        decision = self.holding["decision"] if decision is None else decision
        for key, value in {
            "decision": decision, "order": order, "now_ns": EPOCH + round(self.t * S), "last_px": px,
            "last_qty": qty, "leaves_qty": leaves, "position_qty": position, "locate": LOCATE, "kind": kind,
            "side": side,
        }.items():  # fmt: skip
            self.fill[key] = value
        return on_fill(self.model.addr, self.at["FILL"])

    def enter(self, qty=500, px=1_000_100, side=BUY):
        """Enter and have it all filled."""
        mean, signed = (0.01, qty) if side == BUY else (-0.01, -qty)
        assert (
            self.decide(mean=mean, tag_now=TAG_OVERHYPE if side == SELL else TAG_UNDERHYPE)[1] == INTENT_NEW
        )
        self.report(FILL_TRADE, qty=qty, px=px, position=signed, side=side)

    @property
    def holding(self):
        """Return the symbol's row."""
        return self.model.rows[LOCATE]

    @property
    def state(self):
        """Return the symbol's state."""
        return self.model.state(LOCATE)
