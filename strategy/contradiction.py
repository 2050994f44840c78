"""ContradictionEngine: does the price support the news?  A tag per symbol, from arithmetic rules.

Overhype = optimism exceeds support, lean down; underhype = it falls short of support, lean up.  A price
that has answered overrules the news; before it has had time to answer, the news rules; silence after that
time is an answer too.  The tag selects the expert; it is not an order.

    sentiment  response  fresh      settled
    +          up        none       none        agreement
    +          flat      underhype  overhype    not answered yet / declined to follow
    +          down      overhype   overhype    the price contradicts the good news
    0          any       none       none        nothing to contradict
    -          down      none       none        agreement
    -          flat      overhype   underhype   not answered yet / shrugged off
    -          up        underhype  underhype   the price contradicts the bad news

Sentiment: z-score of the news record against the symbol's own history, faded by its half-life; the
z-score fades, not the raw score, so that old news ends at "as usual" and not at minus the mean.  Response:
log return of the mid in units of volatility x square root of time (at least half the spread), measured
from the receipt of the newest material news and, if later, from W ago.  Classes are entered at k and left
at 0.7 k.  The mid at receipt is the one in force when the item is first seen; when quotes were seen
between receipt and first sight (scoring takes time), the history sample at or before receipt.
"""

from __future__ import annotations

import math
from typing import Any, Final

from nimbus.messages import (
    BOOK_CROSSED,
    BOOK_HALTED,
    BOOK_ONE_SIDED,
    NEWS,
    TAG_NONE,
    TAG_OVERHYPE,
    TAG_UNDERHYPE,
)
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, load_f64, load_i64, prefetch, store_f64, store_i64
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment
from strategy.features.arithmetic import LN2, decay, log_ratio

HISTORY: Final = 256  # sampled mids, WINDOW_STEPS of them a window
WINDOW_STEPS: Final = 250

# Why a tag is what it is.  The numbers stand in journals: append only.
REASONS: Final = (
    "unset", "agreement", "neutral", "fresh_flat", "settled_flat", "contradicted", "no_news", "news_expired",
    "news_ahead", "market_stale", "book_bad", "halted", "not_a_number", "short_history", "dwell",
    "settled_flat_off", "bad_locate",
)  # fmt: skip
(
    _UNSET, AGREEMENT, NEUTRAL, FRESH_FLAT, SETTLED_FLAT, CONTRADICTED, NO_NEWS, NEWS_EXPIRED,
    NEWS_AHEAD, MARKET_STALE, BOOK_BAD, HALTED, NOT_A_NUMBER, SHORT_HISTORY, DWELL,
    SETTLED_FLAT_OFF, BAD_LOCATE,
) = range(len(REASONS))  # fmt: skip

CONTRADICTION = record(
    "CONTRADICTION",
    """
    i8  symbols_max   rows that follow
    f8  sentiment_k   k_s: a sentiment class is entered at this z-score
    f8  response_k    k_r: a response class is entered at this many volatility units
    f8  leave_ratio   a class is left below this share of its k
    i8  react_ns      T_react: news up to this age is fresh
    i8  expire_ns     T_max: news beyond this age counts as 0
    i8  window_ns     W: the recent move
    i8  time_min_ns   dt_min of a response
    i8  dwell_ns      a tag stands at least so long
    i8  history_min   mids that must have been seen
    i8  settled_flat  1 = a quiet market after T_react is an answer, 0 = it is none
    i8  step_ns       derived: one history sample
    i8  bad_locate    calls refused
    3i8 pad           zero
    """,
)
DEFAULTS: Final[dict[str, float]] = {
    "sentiment_k": 1.0, "response_k": 1.0, "leave_ratio": 0.7, "react_ns": 60 * 10**9,
    "expire_ns": 4 * 3600 * 10**9, "window_ns": 300 * 10**9, "time_min_ns": 10**9, "dwell_ns": 10**9,
    "history_min": 30, "settled_flat": 1,
}  # fmt: skip

CONTRADICTION_STATE = record(
    "CONTRADICTION_STATE",
    f"""
    i8  item_id       newest material item seen
    i8  reference_px2 mid at its receipt, 0 = not known
    i8  mid_px2       mid of the last call with a good book, 0 = none yet
    i8  mid_ns        time of that call
    i8  observations  mids seen
    i8  changed_ns    when the tag last changed
    i8  next_ns       when the next history sample is due
    i8  samples       history samples taken; sample n stands at next_ns - (samples - n) * step_ns
    f8  sentiment     last z-score
    f8  response      last response behind the class
    i8  tag           TAG_*
    i8  reason        index into REASONS
    i8  sentiment_class  -1, 0, 1
    i8  window_class  class of the recent move
    i8  news_class    class of the whole reaction
    i8  pad           zero
    {HISTORY}i8 history  mid in force at each sample time
    """,
)

_HEAD, _AT, _NEWS = CONTRADICTION.at, CONTRADICTION_STATE.at, NEWS.at
_HEAD_SIZE, _ROW_SIZE = CONTRADICTION.size, CONTRADICTION_STATE.size
_UNUSABLE = BOOK_CROSSED | BOOK_ONE_SIDED


@inlined
def row(engine: int, locate: int) -> int:
    """Return the address of a symbol's CONTRADICTION_STATE; locate is assumed to be in range."""
    return engine + _HEAD_SIZE + locate * _ROW_SIZE


@inlined
def warm_state(engine: int, locate: int) -> None:
    """Fetch a symbol's CONTRADICTION_STATE, of its history the ends; locate is assumed to be in range."""
    state = row(engine, locate)
    for offset in range(0, _AT.history, CACHE_LINE):
        prefetch(state + offset)
    samples = load_i64(state + _AT.samples)
    for sample in (samples, samples - WINDOW_STEPS):
        prefetch(state + _AT.history + (sample & (HISTORY - 1)) * 8)


@inlined
def warm_engine(engine: int) -> None:
    """Fetch the parameters."""
    for offset in range(0, _HEAD_SIZE, CACHE_LINE):
        prefetch(engine + offset)


@inlined
def tag_of(engine: int, locate: int) -> int:
    """Return the tag that stands."""
    return load_i64(row(engine, locate) + _AT.tag)


@inlined
def reason_of(engine: int, locate: int) -> int:
    """Return the reason code of the last call."""
    return load_i64(row(engine, locate) + _AT.reason)


@inlined
def item_of(engine: int, locate: int) -> int:
    """Return the newest material news item seen, 0 = none."""
    return load_i64(row(engine, locate) + _AT.item_id)


@kernel
def forget(engine: int, locate: int) -> None:
    """Drop what was seen of a symbol: its feed began anew.  locate is assumed to be in range."""
    clear(row(engine, locate), _ROW_SIZE)


@inlined
def _classify(before: int, value: float, k: float, leave: float) -> int:
    """Return -1, 0 or 1: entered at |value| >= k, left below |value| = leave * k."""
    if value >= k or (before > 0 and value >= leave * k):
        return 1
    if value <= -k or (before < 0 and value <= -leave * k):
        return -1
    return 0


@inlined
def _sample(engine: int, state: int, now_ns: int) -> None:
    """Write the history samples due by now: the mid that was in force at each of them."""
    step_ns, due_ns = load_i64(engine + _HEAD.step_ns), load_i64(state + _AT.next_ns)
    px2, samples = load_i64(state + _AT.mid_px2), load_i64(state + _AT.samples)
    if now_ns < due_ns or px2 == 0:
        return
    due = (now_ns - due_ns) // step_ns + 1
    for step in range(max(due - HISTORY, 0), due):
        store_i64(state + _AT.history + ((samples + step) & (HISTORY - 1)) * 8, px2)
    store_i64(state + _AT.samples, samples + due)
    store_i64(state + _AT.next_ns, due_ns + due * step_ns)


@inlined
def _mid_at(engine: int, state: int, at_ns: int) -> int:
    """Return the mid of the last sample at or before at_ns, of the oldest there is, or 0 of none."""
    samples = load_i64(state + _AT.samples)
    if samples == 0:
        return 0
    back = load_i64(state + _AT.next_ns) - at_ns
    step_ns = load_i64(engine + _HEAD.step_ns)
    back = max((back + step_ns - 1) // step_ns, 1)  # samples to go back from the one that is due next
    back = min(back, samples, HISTORY)
    return load_i64(state + _AT.history + ((samples - back) & (HISTORY - 1)) * 8)


@inlined
def _take_news(engine: int, state: int, news: int, mid_px2: int) -> None:
    """Capture the mid at receipt when a new material item is seen."""
    item_id = load_i64(news + _NEWS.item_id)
    if item_id == load_i64(state + _AT.item_id):
        return
    received_ns, reference = load_i64(news + _NEWS.material_ns), load_i64(state + _AT.mid_px2)
    if load_i64(state + _AT.mid_ns) > received_ns:
        reference = _mid_at(engine, state, received_ns)
    store_i64(state + _AT.reference_px2, reference if reference > 0 else mid_px2)
    store_i64(state + _AT.item_id, item_id)


@inlined
def _sentiment(news: int, now_ns: int) -> float:
    """Return the z-score of the record, faded to now."""
    z = (load_f64(news + _NEWS.score) - load_f64(news + _NEWS.mean)) / load_f64(news + _NEWS.deviation)
    age_ns, half_life_ns = now_ns - load_i64(news + _NEWS.received_ns), load_i64(news + _NEWS.half_life_ns)
    return z * decay(LN2 * max(age_ns, 0) / max(half_life_ns, 1))


@inlined
def _response(now_px2: int, then_px2: int, dt_ns: int, sigma: float, floor: float) -> float:
    """Return ln(now/then) in units of sigma*sqrt(dt), at least the floor (half the spread)."""
    if then_px2 <= 0:
        return 0.0
    unit = max(sigma * math.sqrt(dt_ns * 1e-9), floor)
    return log_ratio(float(now_px2), float(then_px2)) / unit


@inlined
def _verdict(sentiment: int, response: int, is_fresh: bool, settled_flat: int) -> int:
    """Return the truth table's answer as tag + 16 * reason; class 0 of sentiment does not come here."""
    lean = response * sentiment
    if lean > 0:
        return TAG_NONE + 16 * AGREEMENT
    if lean < 0:
        return (TAG_OVERHYPE if sentiment > 0 else TAG_UNDERHYPE) + 16 * CONTRADICTED
    if is_fresh:
        return (TAG_UNDERHYPE if sentiment > 0 else TAG_OVERHYPE) + 16 * FRESH_FLAT
    if settled_flat == 0:
        return TAG_NONE + 16 * SETTLED_FLAT_OFF
    return (TAG_OVERHYPE if sentiment > 0 else TAG_UNDERHYPE) + 16 * SETTLED_FLAT


@inlined
def _visible(engine: int, news: int, now_ns: int) -> int:
    """Return NEUTRAL when the record may be used now, else the reason why it counts as 0."""
    received_ns = load_i64(news + _NEWS.material_ns)
    if received_ns == 0:
        return NO_NEWS
    if received_ns > now_ns or load_i64(news + _NEWS.received_ns) > now_ns:
        return NEWS_AHEAD  # no decision sees the future, and a score cannot be unmixed
    if now_ns - received_ns > load_i64(engine + _HEAD.expire_ns):
        return NEWS_EXPIRED
    return NEUTRAL


@inlined
def _judge(engine: int, state: int, z: float, age_ns: int, recent: float, whole: float) -> int:
    """Return tag + 16 * reason of numbers that are numbers, and remember their classes."""
    k, leave = load_f64(engine + _HEAD.response_k), load_f64(engine + _HEAD.leave_ratio)
    before = load_i64(state + _AT.sentiment_class)
    sentiment = _classify(before, z, load_f64(engine + _HEAD.sentiment_k), leave)
    recent_class = _classify(load_i64(state + _AT.window_class), recent, k, leave)
    whole_class = _classify(load_i64(state + _AT.news_class), whole, k, leave)
    response = recent_class if recent_class != 0 else whole_class
    store_i64(state + _AT.sentiment_class, sentiment)
    store_i64(state + _AT.window_class, recent_class)
    store_i64(state + _AT.news_class, whole_class)
    store_f64(state + _AT.sentiment, z)
    store_f64(state + _AT.response, recent if recent_class != 0 else whole)
    if sentiment == 0:
        return TAG_NONE + 16 * NEUTRAL
    is_fresh = age_ns <= load_i64(engine + _HEAD.react_ns)
    return _verdict(sentiment, response, is_fresh, load_i64(engine + _HEAD.settled_flat))


@inlined
def _weigh(engine: int, state: int, news: int, now_ns: int, floor: float, sigma: float) -> int:
    """Measure sentiment and responses of a good book, and judge them; return tag + 16 * reason."""
    visible = _visible(engine, news, now_ns)
    px2, reference = load_i64(state + _AT.mid_px2), load_i64(state + _AT.reference_px2)
    time_min_ns, window_ns = load_i64(engine + _HEAD.time_min_ns), load_i64(engine + _HEAD.window_ns)
    age_ns = now_ns - load_i64(news + _NEWS.material_ns)
    z = _sentiment(news, now_ns) if visible == NEUTRAL else 0.0
    if visible == NEUTRAL and age_ns <= window_ns:
        whole = _response(px2, reference, max(age_ns, time_min_ns), sigma, floor)
        recent = whole
    else:
        then_px2 = _mid_at(engine, state, now_ns - window_ns)
        recent = _response(px2, then_px2, max(window_ns, time_min_ns), sigma, floor)
        whole = recent
        if visible == NEUTRAL:
            whole = _response(px2, reference, max(age_ns, time_min_ns), sigma, floor)
    if not (abs(z) < math.inf and abs(recent) < math.inf and abs(whole) < math.inf):
        return TAG_NONE + 16 * NOT_A_NUMBER
    verdict = _judge(engine, state, z, age_ns, recent, whole)
    return TAG_NONE + 16 * visible if visible != NEUTRAL else verdict


@inlined
def _settle(engine: int, state: int, verdict: int, now_ns: int) -> int:
    """Let the verdict stand, unless the tag before it has not stood long enough; return the tag."""
    tag, reason, before = verdict & 15, verdict >> 4, load_i64(state + _AT.tag)
    if tag != before:
        changed_ns = load_i64(state + _AT.changed_ns)
        is_rule = AGREEMENT <= reason <= NEWS_EXPIRED or reason == SETTLED_FLAT_OFF
        if is_rule and changed_ns > 0 and now_ns - changed_ns < load_i64(engine + _HEAD.dwell_ns):
            tag, reason = before, DWELL
        else:
            store_i64(state + _AT.tag, tag)
            store_i64(state + _AT.changed_ns, now_ns)
    store_i64(state + _AT.reason, reason)
    return tag


@kernel
def tag(
    engine: int, locate: int, news: int, now_ns: int, mid_px2: int, spread_px: int, sigma: float, status: int
) -> int:
    """Return the TAG_* of a symbol now; the reason stands in its row (`reason_of`).

    engine: ContradictionEngine.addr; news: address of the first 64 bytes of a NEWS record (zeros = none);
    mid_px2, spread_px: of a two-sided book, ignored unless status (BOOK_* bits) is 0; sigma: return per
    square root of a second, NaN while not warm.  now_ns is on the clock of the news receipts and never
    falls.  A book that cannot be used gives TAG_NONE at once; only rule changes wait for the dwell.
    """
    if locate < 0 or locate >= load_i64(engine + _HEAD.symbols_max):
        store_i64(engine + _HEAD.bad_locate, load_i64(engine + _HEAD.bad_locate) + 1)
        return TAG_NONE
    state = row(engine, locate)
    _sample(engine, state, now_ns)
    if status & BOOK_HALTED:
        return _settle(engine, state, TAG_NONE + 16 * HALTED, now_ns)
    if status & _UNUSABLE or (status == 0 and (mid_px2 <= 0 or spread_px <= 0)):
        return _settle(engine, state, TAG_NONE + 16 * BOOK_BAD, now_ns)
    if status != 0:
        return _settle(engine, state, TAG_NONE + 16 * MARKET_STALE, now_ns)
    if _visible(engine, news, now_ns) == NEUTRAL:
        _take_news(engine, state, news, mid_px2)
    if load_i64(state + _AT.mid_px2) == 0:
        store_i64(state + _AT.next_ns, now_ns)
    observations = load_i64(state + _AT.observations) + 1
    store_i64(state + _AT.observations, observations)
    store_i64(state + _AT.mid_px2, mid_px2)
    store_i64(state + _AT.mid_ns, now_ns)
    if observations < load_i64(engine + _HEAD.history_min) or math.isnan(sigma):
        return _settle(engine, state, TAG_NONE + 16 * SHORT_HISTORY, now_ns)
    floor = float(spread_px) / float(mid_px2)
    return _settle(engine, state, _weigh(engine, state, news, now_ns, floor, sigma), now_ns)


class ContradictionEngine:
    """Own the rows and parameters of one set of rules; `addr` goes to the kernels."""

    def __init__(
        self, segment: Segment, symbols_max: int, name: str = "contradiction", **parameters: float
    ) -> None:
        """Take any of DEFAULTS by keyword.  Raises TypeError for an unknown name."""
        if unknown := parameters.keys() - DEFAULTS.keys():
            msg = f"unknown parameters: {', '.join(sorted(unknown))}"
            raise TypeError(msg)
        self.addr = segment.allocate(name, _HEAD_SIZE + symbols_max * _ROW_SIZE)
        words = segment.words(self.addr, (_HEAD_SIZE + symbols_max * _ROW_SIZE) // 8)
        self.parameters: Any = words[: _HEAD_SIZE // 8].view(CONTRADICTION.dtype)[0]
        self.rows: Any = words[_HEAD_SIZE // 8 :].view(CONTRADICTION_STATE.dtype)
        for key, value in (DEFAULTS | parameters).items():
            self.parameters[key] = value
        self.parameters["symbols_max"] = symbols_max
        self.parameters["step_ns"] = max(int(self.parameters["window_ns"]) // WINDOW_STEPS, 1)

    def reason(self, locate: int) -> str:
        """Return the reason of the last verdict in words."""
        return REASONS[int(self.rows[locate]["reason"])]
