"""Features of one symbol after one event: O(1), float64, the same code offline and live.

Sums fade by exchange time.  One exponential serves all four scales, exp(-dt/300 s), whose 5th, 30th and
300th powers are the other three.  The sums take in every event; the vector is written when the top of
book, a print or the trading state makes it worth reading, and stands as of that event until the next.
"""

from __future__ import annotations

import math
from typing import Final

from nimbus.messages import BOOK_EVENT, BUY, SELL, STATE_CHANGED, TOP_CHANGED, TRADED
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    clear,
    load_f64,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_f64,
    store_i64,
    store_u32,
)
from strategy.features.arithmetic import decay, log_ratio
from strategy.features.bars import BAR_BITS, MINUTE_NS, SECOND_NS, put, roll, start
from strategy.features.columns import BP, COLUMNS, VECTOR
from strategy.features.lanes import LANES, RETURNS, fade, near_returns
from strategy.features.state import FEATURE_STATE, FEATURES_STATE, RING, row

VECTOR_WRITTEN, TWO_SIDED, BAR_CLOSED, RUN_BEGAN = 1, 2, 4, 8
BAD_LOCATE: Final = -1

FAST_S, MIDDLE_S, SLOW_S, LONG_S = 1.0, 10.0, 60.0, 300.0
SINCE_TRADE_MAX: Final = 600.0
_WORTH = TOP_CHANGED | TRADED | STATE_CHANGED
_NO_ASK_PX = 1 << 62
_CANCEL, _DELETE = ord("X"), ord("D")

_AT, _HEAD, _COLUMN, _EVENT = FEATURE_STATE.at, FEATURES_STATE.at, VECTOR.at, BOOK_EVENT.at
_RING_MASK, _ROW_SIZE = RING - 1, FEATURE_STATE.size
_RETURNS_MASK, _FIRST_RETURN = (1 << RETURNS) - 1, int(_COLUMN.return_1s) >> 3
assert _COLUMN.return_30min - _COLUMN.return_1s == (RETURNS - 1) * 8, "one vector writes them"


@inlined
def order_flow(before: int, after: int) -> float:
    """Return the order-flow imbalance between two quotes (Cont, Kukanov, Stoikov 2014), in shares.

    before, after: addresses of four words bid_px, ask_px, bid_qty, ask_qty; an empty side is 0, 0.
    """
    bid_px_before, bid_px = load_i64(before), load_i64(after)
    ask_px_before, ask_px = load_i64(before + 8), load_i64(after + 8)
    ask_px_before = ask_px_before if ask_px_before > 0 else _NO_ASK_PX
    ask_px = ask_px if ask_px > 0 else _NO_ASK_PX
    flow = load_i64(after + 16) if bid_px >= bid_px_before else 0
    flow -= load_i64(before + 16) if bid_px <= bid_px_before else 0
    flow -= load_i64(after + 24) if ask_px <= ask_px_before else 0
    flow += load_i64(before + 24) if ask_px >= ask_px_before else 0
    return float(flow)


@inlined
def _add(addr: int, value: float) -> None:
    store_f64(addr, load_f64(addr) + value)


@inlined
def _fade(state: int, dt_ns: int) -> None:
    """Let every sum decay by dt_ns, and give the quote that stood so long its weight."""
    long = decay(dt_ns / (LONG_S * SECOND_NS))
    square = long * long
    slow = square * square * long  # ^5: 60 s
    cube = slow * slow * slow
    middle = cube * cube  # ^6: 10 s
    fourth = middle * middle
    fourth *= fourth
    fast = fourth * middle
    fast *= fast  # ^10: 1 s
    fade(state + _AT.young_1, fast, middle, slow, long)
    weight = 1.0 - long
    depth = 0.5 * float(load_i64(state + _AT.bid_qty) + load_i64(state + _AT.ask_qty))
    store_f64(state + _AT.depth_sum, load_f64(state + _AT.depth_sum) * long + depth * weight)
    store_f64(state + _AT.depth_weight, load_f64(state + _AT.depth_weight) * long + weight)


@inlined
def _trade(state: int, event: int, now_ns: int) -> None:
    """Take in a print: the feed names the resting side, so the aggressor is exact."""
    qty, px = float(load_i64(event + _EVENT.trade_qty)), float(load_i64(event + _EVENT.trade_px))
    resting = load_u8(event + _EVENT.resting_side)
    signed = qty if resting == SELL else (-qty if resting == BUY else 0.0)
    _add(state + _AT.trades_10, 1.0)
    _add(state + _AT.signed_10, signed)
    _add(state + _AT.signed_60, signed)
    _add(state + _AT.volume_10, qty)
    _add(state + _AT.volume_60, qty)
    _add(state + _AT.vwap_cost, px * qty)
    _add(state + _AT.vwap_qty, qty)
    store_i64(state + _AT.last_trade_ns, now_ns)


@inlined
def _quote(state: int, event: int, now_ns: int) -> bool:
    """Take in the quote after the event; say whether it is two-sided and not crossed."""
    before, after = state + _AT.bid_px, event + _EVENT.bid_px
    if load_i64(state + _AT.events) > 0:
        flow = order_flow(before, after)
        _add(state + _AT.ofi_1, flow)
        _add(state + _AT.ofi_10, flow)
        _add(state + _AT.ofi_60, flow)
    bid_px, ask_px = load_i64(after), load_i64(after + 8)
    for word in range(0, 32, 8):
        store_i64(before + word, load_i64(after + word))
    if bid_px <= 0 or ask_px <= bid_px:
        return False
    px2, old_px2 = bid_px + ask_px, load_i64(state + _AT.mid_px2)
    if px2 != old_px2:
        store_i64(state + _AT.mid_px2, px2)
        if old_px2 == 0:
            start(state, now_ns, px2)
        else:
            move = log_ratio(float(px2), float(old_px2))
            _add(state + _AT.variance_10, move * move)
            _add(state + _AT.variance_60, move * move)
            store_i64(state + _AT.high_px2, max(load_i64(state + _AT.high_px2), px2))
            store_i64(state + _AT.low_px2, min(load_i64(state + _AT.low_px2), px2))
    return True


@inlined
def _imbalance(bid_qty: int, ask_qty: int) -> float:
    return float(bid_qty - ask_qty) / float(max(bid_qty + ask_qty, 1))


@inlined
def _sample(samples: int, number: int, is_old: bool) -> int:
    """Return the sampled mid of this number, 0 when it is not as old as that."""
    return load_i64(samples + (number & _RING_MASK) * 8) * is_old


@kernel
def _far_return(column: int, px2: float, sample: int) -> None:
    """Write a return that was too far for the short series."""
    store_f64(column, log_ratio(px2, float(sample)) * BP)


@inlined
def _returns(state: int, now_ns: int, two_sided: bool) -> int:
    """Write the log returns of the mid in bp since the samples of the whole seconds and minutes before."""
    px2, column = float(load_i64(state + _AT.mid_px2)), state + _AT.vector + _COLUMN.return_1s
    second, minute = now_ns // SECOND_NS, now_ns // MINUTE_NS
    old = second - load_i64(state + _AT.first_second) - 1 if two_sided else -1
    at, end = state + _AT.seconds, second - 1
    a, b = _sample(at, end - 1, old >= 1), _sample(at, end - 5, old >= 5)
    c, d = _sample(at, end - 30, old >= 30), _sample(at, end - 60, old >= 60)
    old = minute - load_i64(state + _AT.first_minute) - 1 if two_sided else -1
    at, end = state + _AT.minutes, minute - 1
    e, f = _sample(at, end - 5, old >= 5), _sample(at, end - 30, old >= 30)
    marks = near_returns(px2, a, b, c, d, e, f, column)
    if marks >> LANES:
        for lane, sample in enumerate((a, b, c, d, e, f)):
            if (marks >> (LANES + lane)) & 1:
                _far_return(column + lane * 8, px2, sample)
    return (marks & _RETURNS_MASK) << _FIRST_RETURN


@inlined
def _instant(state: int, event: int, two_sided: bool) -> int:
    """Write the columns that the quote alone decides."""
    bid_px, ask_px = load_i64(event + _EVENT.bid_px), load_i64(event + _EVENT.ask_px)
    bid_qty, ask_qty = load_i64(event + _EVENT.bid_qty), load_i64(event + _EVENT.ask_qty)
    mid = 0.5 * float(bid_px + ask_px)
    unit = BP / max(mid, 1.0)
    top = _imbalance(bid_qty, ask_qty)
    spread = float(ask_px - bid_px)
    warm = put(state, _COLUMN.spread, spread * unit, two_sided)
    # (Pb*qa + Pa*qb)/(qa + qb) - mid is half the spread times the imbalance
    warm |= put(state, _COLUMN.microprice, 0.5 * spread * top * unit, two_sided)
    warm |= put(state, _COLUMN.imbalance_top, top, bid_qty + ask_qty > 0)
    bid_qty, ask_qty = load_i64(event + _EVENT.bid_depth_qty), load_i64(event + _EVENT.ask_depth_qty)
    five = _imbalance(bid_qty, ask_qty)
    return warm | put(state, _COLUMN.imbalance_five, five, bid_qty + ask_qty > 0)


@inlined
def _flows(state: int, now_ns: int) -> int:
    """Write the columns that are decayed sums."""
    age = now_ns - load_i64(state + _AT.first_ns)
    warm_1, warm_10 = age >= SECOND_NS, age >= 10 * SECOND_NS
    warm_60 = age >= 60 * SECOND_NS
    weight = load_f64(state + _AT.depth_weight)
    depth = load_f64(state + _AT.depth_sum) / weight if weight > 0.0 else 1.0
    per_depth = 1.0 / max(depth, 1.0)
    warm = put(state, _COLUMN.ofi_1s, load_f64(state + _AT.ofi_1) * per_depth, warm_1)
    warm |= put(state, _COLUMN.ofi_10s, load_f64(state + _AT.ofi_10) * per_depth, warm_10)
    warm |= put(state, _COLUMN.ofi_60s, load_f64(state + _AT.ofi_60) * per_depth, warm_60)
    warm |= put(state, _COLUMN.signed_volume_10s, load_f64(state + _AT.signed_10) * per_depth, warm_10)
    per_1 = 1.0 / (FAST_S * (1.0 - load_f64(state + _AT.young_1)))
    per_10 = 1.0 / (MIDDLE_S * (1.0 - load_f64(state + _AT.young_10)))
    per_60 = 1.0 / (SLOW_S * (1.0 - load_f64(state + _AT.young_60)))
    per_300 = 1.0 / (LONG_S * (1.0 - load_f64(state + _AT.young_300)))
    move = math.sqrt(load_f64(state + _AT.variance_10) * per_10)
    warm |= put(state, _COLUMN.volatility_10s, move * BP, warm_10)
    move = math.sqrt(load_f64(state + _AT.variance_60) * per_60)
    warm |= put(state, _COLUMN.volatility_60s, move * BP, warm_60)
    move = math.sqrt(load_f64(state + _AT.variance_300) * per_300)
    warm |= put(state, _COLUMN.volatility_300s, move * BP, warm_60)
    events = load_f64(state + _AT.events_10)
    warm |= put(state, _COLUMN.arrival_1s, load_f64(state + _AT.events_1) * per_1, warm_1)
    warm |= put(state, _COLUMN.arrival_10s, events * per_10, warm_10)
    warm |= put(state, _COLUMN.trades_10s, load_f64(state + _AT.trades_10) * per_10, warm_10)
    return warm | put(state, _COLUMN.cancel_share_10s, load_f64(state + _AT.cancels_10) / events, warm_10)


@inlined
def _prints(state: int, now_ns: int, two_sided: bool) -> int:
    """Write the columns that need a print."""
    traded_ns = load_i64(state + _AT.last_trade_ns)
    seen = traded_ns >= 0
    volume = load_f64(state + _AT.volume_10)
    sign = load_f64(state + _AT.signed_10) / volume if volume > 0.0 else 0.0
    warm = put(state, _COLUMN.trade_sign_10s, sign, seen)
    volume = load_f64(state + _AT.volume_60)
    sign = load_f64(state + _AT.signed_60) / volume if volume > 0.0 else 0.0
    warm |= put(state, _COLUMN.trade_sign_60s, sign, seen)
    qty, cost = load_f64(state + _AT.vwap_qty), load_f64(state + _AT.vwap_cost)
    known = seen and two_sided and qty > 0.0 and cost > 0.0
    mid = 0.5 * float(load_i64(state + _AT.mid_px2))
    above = (mid * qty - cost) / cost * BP if known else 0.0
    warm |= put(state, _COLUMN.vwap, above, known)
    since = min((now_ns - traded_ns) * 1e-9, SINCE_TRADE_MAX)
    return warm | put(state, _COLUMN.since_trade, since, seen)


@inlined
def _begin(state: int, now_ns: int) -> None:
    """Make a zeroed row ready for its first event."""
    store_i64(state + _AT.first_ns, now_ns)
    store_i64(state + _AT.last_ns, now_ns)
    store_i64(state + _AT.last_trade_ns, -1)
    for word in range(4):
        store_f64(state + _AT.young_1 + word * 8, 1.0)
    for column in range(COLUMNS):
        store_f64(state + _AT.vector + column * 8, math.nan)


@inlined
def _count(addr: int) -> None:
    store_i64(addr, load_i64(addr) + 1)


@kernel
def update(features: int, event: int) -> int:
    """Take in one BOOK_EVENT; return VECTOR_WRITTEN, TWO_SIDED, BAR_CLOSED, RUN_BEGAN bits, or BAD_LOCATE.

    features: Features.addr; event: address of a BOOK_EVENT, in any order of time: one that lies before
    its symbol's last is taken at the last's time, and counted.  The first of a new run of the feed
    finds the symbol as if it had never been seen: its exchange times may begin anywhere.
    """
    locate = load_u16(event + _EVENT.locate)
    if locate >= load_i64(features + _HEAD.symbols_max):
        _count(features + _HEAD.bad_locate)
        return BAD_LOCATE
    state = row(features, locate)
    now_ns, done = load_i64(event + _EVENT.exch_ns), 0
    if load_i64(state + _AT.run) != load_i64(event + _EVENT.run):
        clear(state, _ROW_SIZE)
        store_i64(state + _AT.run, load_i64(event + _EVENT.run))
        done = RUN_BEGAN
    if load_i64(state + _AT.events) == 0:
        _begin(state, now_ns)
    last_ns = load_i64(state + _AT.last_ns)
    if now_ns > last_ns:
        if load_i64(state + _AT.mid_px2) > 0 and now_ns // SECOND_NS > load_i64(state + _AT.second):
            capped = roll(state, now_ns)
            store_i64(features + _HEAD.capped_bars, load_i64(features + _HEAD.capped_bars) + capped)
            done |= BAR_CLOSED
        _fade(state, now_ns - last_ns)
        store_i64(state + _AT.last_ns, now_ns)
    elif now_ns < last_ns:
        _count(features + _HEAD.back_in_time)
        now_ns = last_ns
    flags, cause = load_u8(event + _EVENT.flags), load_u8(event + _EVENT.cause)
    if flags & TRADED and load_i64(event + _EVENT.trade_qty) > 0:
        _trade(state, event, now_ns)
    two_sided = _quote(state, event, now_ns)
    _add(state + _AT.events_1, 1.0)
    _add(state + _AT.events_10, 1.0)
    if cause in (_CANCEL, _DELETE):
        _add(state + _AT.cancels_10, 1.0)
    _count(state + _AT.events)
    _count(features + _HEAD.events)
    done |= TWO_SIDED if two_sided else 0
    if flags & _WORTH == 0:
        return done
    warm = load_u32(state + _AT.warm) & BAR_BITS
    warm |= _instant(state, event, two_sided) | _flows(state, now_ns)
    warm |= _prints(state, now_ns, two_sided) | _returns(state, now_ns, two_sided)
    store_u32(state + _AT.warm, warm)
    _count(features + _HEAD.vectors)
    return done | VECTOR_WRITTEN
