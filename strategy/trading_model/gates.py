"""The questions a decision asks, each a small kernel: market, model, exits, size.

A gate that says no gives its reason code.  Size: `w = min(w_max, edge/(lambda*sigma^2))` of the capital,
with edge = |mean| - fee - spread - margin and sigma^2 = epistemic + aleatoric variance; then whole lots,
and never beyond the caps on order, position (working included) and total exposure.
"""

from __future__ import annotations

import math

from nimbus.messages import (
    BOOK_EVENT,
    DECISION,
    EXPERT_FAULT,
    EXPERT_OFF,
    TAG_NONE,
)
from ringbuf.jit import inlined
from ringbuf.memory import (
    load_f64,
    load_i64,
    load_u8,
    load_u32,
)
from strategy.trading_model.state import (
    AT_SIZE,
    BELOW_LOT,
    CLOSE_ALL,
    COVER_SHORTS,
    EDGE_SMALL,
    ENTER_LONG,
    ENTER_SHORT,
    EXIT_REVERSAL,
    EXIT_STOP,
    EXIT_TAG,
    EXIT_TARGET,
    EXIT_TIME,
    EXIT_TRAILING,
    EXPOSURE_CAP,
    FEATURES_COLD,
    HOLDING,
    MARKET_BAD,
    MARKET_STALE,
    MODEL_FAULT,
    MODEL_OFF,
    NEWS_STALE,
    POSITION_CAP,
    SAMPLES_DISAGREE,
    TAG_EXCLUDED,
    TRADING,
    UNCERTAIN,
    UNSET,
    gain,
)

SAMPLES = 32
QTY_MAX = 1_000_000_000.0
_TRADING_STATE = ord("T")

_HEAD, _AT = TRADING.at, HOLDING.at
_EVENT, _DECISION = BOOK_EVENT.at, DECISION.at


@inlined
def market(model: int, event: int, now_ns: int) -> int:
    """Return UNSET when the book may decide, else why not."""
    state = load_u8(event + _EVENT.state)
    bid_px, ask_px = load_i64(event + _EVENT.bid_px), load_i64(event + _EVENT.ask_px)
    if load_u8(event + _EVENT.status) != 0 or bid_px <= 0 or ask_px <= bid_px:
        return MARKET_BAD
    if state not in (0, _TRADING_STATE):
        return MARKET_BAD
    age_ns = abs(now_ns - load_i64(event + _EVENT.recv_ns))  # a packet may be newer than its duty cycle
    return MARKET_STALE if age_ns > load_i64(model + _HEAD.stale_after_ns) else UNSET


@inlined
def signal_of(model: int, decision: int, worth: float) -> int:
    """Return ENTER_LONG or ENTER_SHORT when every gate is open, else the first that is not.

    worth: the edge.
    """
    expert, tag = load_u8(decision + _DECISION.expert), load_u8(decision + _DECISION.tag)
    if expert == EXPERT_OFF:
        return MODEL_OFF
    mean, variance = load_f64(decision + _DECISION.mean), variance_of(decision)
    if expert == EXPERT_FAULT or not (abs(mean) < math.inf and 0.0 <= variance < math.inf):
        return MODEL_FAULT
    required = load_i64(model + _HEAD.warm_required)
    if load_u32(decision + _DECISION.warm) & required != required:
        return FEATURES_COLD
    if (load_i64(model + _HEAD.tags_allowed) >> tag) & 1 == 0:
        return TAG_EXCLUDED
    age_ms = load_u32(decision + _DECISION.news_age_ms)
    if tag != TAG_NONE and age_ms > load_i64(model + _HEAD.news_max_ms):
        return NEWS_STALE
    if not worth > 0.0:
        return EDGE_SMALL
    agreement = load_u8(decision + _DECISION.agree) / SAMPLES
    half_width = load_f64(model + _HEAD.interval) * math.sqrt(load_f64(decision + _DECISION.epistemic))
    if agreement < load_f64(model + _HEAD.agreement_min) and abs(mean) <= half_width:
        return SAMPLES_DISAGREE
    if math.sqrt(variance) > load_f64(model + _HEAD.sigma_max):
        return UNCERTAIN
    return ENTER_LONG if mean > 0.0 else ENTER_SHORT


@inlined
def edge(model: int, event: int, decision: int) -> float:
    """Return what the expected return leaves beyond fee, spread and margin."""
    bid_px, ask_px = load_i64(event + _EVENT.bid_px), load_i64(event + _EVENT.ask_px)
    spread = 2.0 * float(ask_px - bid_px) / float(ask_px + bid_px)
    cost = load_f64(model + _HEAD.fee) + load_f64(model + _HEAD.margin) + spread
    return abs(load_f64(decision + _DECISION.mean)) - cost


@inlined
def variance_of(decision: int) -> float:
    """Return sigma^2: what the model does not know plus what nobody can know."""
    return load_f64(decision + _DECISION.epistemic) + load_f64(decision + _DECISION.aleatoric)


@inlined
def exit_of(model: int, row: int, tag: int, signal: int, now_ns: int) -> int:
    """Return the rule that closes the position now, or UNSET."""
    position = load_i64(row + _AT.position_qty)
    if position == 0:
        return UNSET
    made, px = gain(row), float(load_i64(row + _AT.px))
    stop, target = load_f64(model + _HEAD.stop), load_f64(model + _HEAD.target)
    if stop > 0.0 and made <= -stop:
        return EXIT_STOP
    if target > 0.0 and made >= target:
        return EXIT_TARGET
    trailing = load_f64(model + _HEAD.trailing)
    best = 0.5 * float(load_i64(row + _AT.high_px2) if position > 0 else load_i64(row + _AT.low_px2))
    given_back = 1.0 - px / best if position > 0 else px / best - 1.0
    if trailing > 0.0 and given_back >= trailing:
        return EXIT_TRAILING
    hold_max_ns = load_i64(model + _HEAD.hold_max_ns)
    if hold_max_ns > 0 and now_ns - load_i64(row + _AT.entry_ns) >= hold_max_ns:
        return EXIT_TIME
    opened, tag_end = load_i64(row + _AT.tag), load_i64(model + _HEAD.tag_end)
    if opened not in (TAG_NONE, tag) and (tag_end == CLOSE_ALL or (tag_end == COVER_SHORTS and position < 0)):
        return EXIT_TAG
    if (position > 0 and signal == ENTER_SHORT) or (position < 0 and signal == ENTER_LONG):
        return EXIT_REVERSAL
    return UNSET


@inlined
def size_of(model: int, row: int, event: int, decision: int, worth: float) -> int:
    """Return the shares of an entry of this edge in whole lots, or minus the reason why there are none."""
    variance, lot = variance_of(decision), load_i64(model + _HEAD.lot_qty)
    weight = load_f64(model + _HEAD.weight_max)
    risk = load_f64(model + _HEAD.risk_aversion) * variance
    if risk > 0.0:
        weight = min(weight, worth / risk)
    px = load_i64(event + _EVENT.ask_px)
    capital = float(load_i64(model + _HEAD.capital_px))
    wanted = int(min(weight * capital / float(px), QTY_MAX))
    wanted = min(wanted, load_i64(model + _HEAD.order_qty_max))
    held = abs(load_i64(row + _AT.position_qty))
    if held > 0 and (load_i64(model + _HEAD.scale_in) == 0 or wanted - held < lot):
        return -AT_SIZE
    wanted -= held
    if wanted < lot:
        return -BELOW_LOT
    room = load_i64(model + _HEAD.position_qty_max) - held
    if room < lot:
        return -POSITION_CAP
    value = load_i64(model + _HEAD.exposure_px_max) - load_i64(model + _HEAD.exposure_px)
    if value < lot * px:
        return -EXPOSURE_CAP
    return min(wanted, room, value // px) // lot * lot


@inlined
def stands(row: int, leave: int, signal: int) -> bool:
    """Say whether the decision behind the working order would be made again."""
    if load_i64(row + _AT.is_exit):
        return leave != UNSET
    wanted = ENTER_LONG if load_i64(row + _AT.working_qty) > 0 else ENTER_SHORT
    return leave == UNSET and signal == wanted
