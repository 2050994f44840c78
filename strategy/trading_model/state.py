"""What the TradingModel knows: its parameters, one HOLDING per symbol, and how often it gave each reason.

Written by the strategy loop alone.  The deadlines of working orders stand side by side, so that looking
for one that is overdue reads one cache line and not the holdings.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ringbuf.jit import inlined
from ringbuf.memory import load_f64, load_i64, prefetch, store_i64
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment
from strategy.features import COLUMNS, INDEX

# Why a decision is what it is.  The numbers stand in journals: append only.
REASONS: Final = (
    "unset", "enter_long", "enter_short",
    "exit_stop", "exit_target", "exit_trailing", "exit_time", "exit_tag", "exit_reversal",
    "cancel_changed", "cancel_aged", "cancel_market",
    "at_size", "working", "cancelling", "market_bad", "market_stale", "features_cold", "model_off",
    "model_fault", "news_stale", "tag_excluded", "edge_small", "samples_disagree", "uncertain",
    "short_forbidden", "below_lot", "position_cap", "exposure_cap", "cooldown", "blocked", "intents_full",
    "bad_locate",
)  # fmt: skip
(
    UNSET, ENTER_LONG, ENTER_SHORT,
    EXIT_STOP, EXIT_TARGET, EXIT_TRAILING, EXIT_TIME, EXIT_TAG, EXIT_REVERSAL,
    CANCEL_CHANGED, CANCEL_AGED, CANCEL_MARKET,
    AT_SIZE, WORKING, CANCELLING, MARKET_BAD, MARKET_STALE, FEATURES_COLD, MODEL_OFF,
    MODEL_FAULT, NEWS_STALE, TAG_EXCLUDED, EDGE_SMALL, SAMPLES_DISAGREE, UNCERTAIN,
    SHORT_FORBIDDEN, BELOW_LOT, POSITION_CAP, EXPOSURE_CAP, COOLDOWN, BLOCKED, INTENTS_FULL,
    BAD_LOCATE,
) = range(len(REASONS))  # fmt: skip

FLAT, ENTERING, LONG, SHORT, EXITING = range(5)
STATES: Final = ("FLAT", "ENTERING", "LONG", "SHORT", "EXITING")
KEEP, COVER_SHORTS, CLOSE_ALL = 0, 1, 2  # TRADING.tag_end
REASONS_MAX: Final = 64
SWEEP: Final = CACHE_LINE // 8  # deadlines looked at for each event
SECOND_NS: Final = 10**9

TRADING = record(
    "TRADING",
    f"""
    i8  symbols_max       rows that follow
    f8  fee               cost of a round trip, as a return
    f8  margin            what must be left beyond fee and spread, as a return
    f8  agreement_min     share of samples that must agree in sign, unless the interval excludes 0
    f8  interval          half-width of that interval in epistemic standard deviations
    f8  sigma_max         largest total standard deviation that may enter
    f8  risk_aversion     lambda of the size
    f8  weight_max        w_max: largest share of the capital in one position
    i8  capital_px        capital, 1/10,000 of the currency
    i8  lot_qty           entries are multiples of it
    i8  order_qty_max     shares in one entry
    i8  position_qty_max  shares held and working in one symbol
    i8  exposure_px_max   value held and working in all symbols, 1/10,000 of the currency
    f8  cross_edge        edge from which an entry takes liquidity; below it joins the best price
    f8  stop              loss that closes a position, as a return; 0 = off
    f8  target            gain that closes it; 0 = off
    f8  trailing          fall from the best mid that closes it; 0 = off
    i8  hold_max_ns       time that closes it; 0 = off
    i8  tag_end           0 = the end of a contradiction closes nothing, 1 = shorts, 2 = all it opened
    i8  cooldown_ns       after a reject, a denial or an order that ended unfilled
    i8  strikes_max       so many in a row: pause
    i8  pause_ns          length of the pause
    i8  working_max_ns    an order that works longer is cancelled
    i8  stale_after_ns    market data older than this decides nothing
    i8  news_max_ms       the contradiction experts need news at most so old
    i8  tags_allowed      bit = tag may enter
    i8  warm_required     bit = feature that must be warm to enter
    i8  short_allowed     1 = positions below 0 are allowed
    i8  scale_in          1 = a position may grow by a later decision
    i8  strategy          strategy id in intents
    i8  exposure_px       value held and working now
    i8  working_count     symbols with a working order
    i8  sweep             symbol whose deadline is looked at next
    i8  late_fills        fills of orders that no longer counted as working
    6i8 pad               zero
    {REASONS_MAX}i8 counts  decisions by reason
    """,
)
DEFAULTS: Final[dict[str, float]] = {
    "fee": 0.0001, "margin": 0.0001, "agreement_min": 0.8, "interval": 1.645, "sigma_max": 0.05,
    "risk_aversion": 5.0, "weight_max": 0.1, "capital_px": 1_000_000 * 10_000, "lot_qty": 1,
    "order_qty_max": 5_000, "position_qty_max": 10_000, "exposure_px_max": 1_000_000 * 10_000,
    "cross_edge": 0.0005, "stop": 0.01, "target": 0.03, "trailing": 0.008,
    "hold_max_ns": 600 * SECOND_NS, "tag_end": COVER_SHORTS, "cooldown_ns": SECOND_NS, "strikes_max": 5,
    "pause_ns": 60 * SECOND_NS, "working_max_ns": 30 * SECOND_NS, "stale_after_ns": 5 * SECOND_NS,
    "news_max_ms": 4 * 3600 * 1000, "tags_allowed": 7, "warm_required": 0, "short_allowed": 1,
    "scale_in": 0, "strategy": 1,
}  # fmt: skip

HOLDING = record(
    "HOLDING",
    """
    i8  position_qty   signed shares held, as the orders agent last said
    i8  working_qty    signed shares still open of the working order, 0 = no order works
    i8  decision       decision number of the working order
    i8  order          its order number, 0 = not told yet
    i8  since_ns       when it was decided
    i8  cancel         decision number of its cancel, 0 = none asked for
    i8  is_exit        1 = the working order closes
    i8  filled_qty     shares it has had
    f8  average_px     average price of the position
    i8  high_px2       highest mid since entry, doubled
    i8  low_px2        lowest
    i8  entry_ns       when the position left 0
    i8  tag            tag that opened it
    i8  px             mid at the last look, which values the exposure
    i8  exposure_px    (|held| + |working|) x px, as counted in TRADING
    i8  resume_ns      end of the cooldown
    i8  strikes        orders in a row that ended without a fill
    i8  blocked        1 = an operator or recovery has taken the symbol out
    i8  state          FLAT .. EXITING
    i8  reason         last reason
    4i8 pad            zero
    """,
)

_HEAD, _AT = TRADING.at, HOLDING.at
_ROW_SIZE, _HEAD_SIZE = HOLDING.size, TRADING.size


def _deadlines_size(symbols_max: int) -> int:
    return -(-symbols_max // SWEEP) * CACHE_LINE


@inlined
def warm_head(model: int) -> None:
    """Fetch the parameters and the counts by reason."""
    for offset in range(0, _HEAD_SIZE, CACHE_LINE):
        prefetch(model + offset)


@inlined
def deadline(model: int, locate: int) -> int:
    """Return the address of a symbol's deadline: when its working order is overdue, 0 = no order works."""
    return model + _HEAD_SIZE + locate * 8


@inlined
def holding(model: int, locate: int) -> int:
    """Return the address of a symbol's HOLDING; locate is assumed to be in range."""
    lines = (load_i64(model + _HEAD.symbols_max) + SWEEP - 1) // SWEEP
    return model + _HEAD_SIZE + lines * CACHE_LINE + locate * _ROW_SIZE


@inlined
def settle(model: int, row: int) -> None:
    """Bring state and exposure of a holding in line with its quantities."""
    position, working = load_i64(row + _AT.position_qty), load_i64(row + _AT.working_qty)
    state = LONG if position > 0 else (SHORT if position < 0 else FLAT)
    if working != 0:
        state = EXITING if load_i64(row + _AT.is_exit) else ENTERING
    store_i64(row + _AT.state, state)
    exposure = (abs(position) + abs(working)) * load_i64(row + _AT.px)
    total = load_i64(model + _HEAD.exposure_px) + exposure - load_i64(row + _AT.exposure_px)
    store_i64(model + _HEAD.exposure_px, total)
    store_i64(row + _AT.exposure_px, exposure)


@inlined
def add(addr: int, step: int) -> None:
    """Add to a counter."""
    store_i64(addr, load_i64(addr) + step)


@inlined
def gain(row: int) -> float:
    """Return the open gain of a position as a return on its average price; 0 when flat."""
    position, average = load_i64(row + _AT.position_qty), load_f64(row + _AT.average_px)
    if position == 0 or not average > 0.0:
        return 0.0
    move = float(load_i64(row + _AT.px)) / average - 1.0
    return move if position > 0 else -move


class TradingModel:
    """Own the holdings and parameters; `addr` goes to the kernels."""

    def __init__(
        self, segment: Segment, symbols_max: int, name: str = "trading_model", **parameters: float
    ) -> None:
        """Take any of DEFAULTS by keyword.  Raises TypeError for an unknown name."""
        if unknown := parameters.keys() - DEFAULTS.keys():
            msg = f"unknown parameters: {', '.join(sorted(unknown))}"
            raise TypeError(msg)
        rows_at = _HEAD_SIZE + _deadlines_size(symbols_max)
        size = rows_at + symbols_max * _ROW_SIZE
        self.addr = segment.allocate(name, size)
        words = segment.words(self.addr, size // 8)
        self.head: Any = words[: _HEAD_SIZE // 8].view(TRADING.dtype)[0]
        self.deadlines: NDArray[np.int64] = words[_HEAD_SIZE // 8 :][:symbols_max]
        self.rows: NDArray[Any] = words[rows_at // 8 :].view(HOLDING.dtype)
        for key, value in (DEFAULTS | parameters).items():
            self.head[key] = value
        self.head["symbols_max"] = symbols_max

    def counts(self) -> dict[str, int]:
        """Return how often each reason was given."""
        return {name: int(n) for name, n in zip(REASONS, self.head["counts"], strict=False) if n}

    def state(self, locate: int) -> str:
        """Return FLAT .. EXITING."""
        return STATES[int(self.rows[locate]["state"])]

    def adopt(self, locate: int, position_qty: int, average_px: float, px: int, now_ns: int) -> None:
        """Take over a position from recovery or an operator; only while no kernel runs."""
        row = self.rows[locate]
        row["position_qty"], row["average_px"], row["px"], row["entry_ns"] = (
            position_qty, average_px, px, now_ns,
        )  # fmt: skip
        row["high_px2"] = row["low_px2"] = 2 * px
        settle(self.addr, self.addr_of(locate))

    def addr_of(self, locate: int) -> int:
        """Return the address of a HOLDING."""
        return self.addr + _HEAD_SIZE + _deadlines_size(int(self.head["symbols_max"])) + locate * _ROW_SIZE


def warm_bits(*names: str) -> int:
    """Return the TRADING.warm_required mask of these features."""
    return sum(1 << INDEX[name] for name in names)


ALL_WARM: Final = (1 << COLUMNS) - 1
assert len(REASONS) <= REASONS_MAX
