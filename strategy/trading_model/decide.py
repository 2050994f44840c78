"""From an answer to an order, one working order per symbol.

The order of questions is the order of the code: may this market decide at all; does the position have to
close; does the model want in; what becomes of the order that works; how much.
"""

from __future__ import annotations

import math

from nimbus.messages import (
    BOOK_EVENT,
    BUY,
    DECISION,
    INTENT,
    INTENT_CANCEL,
    INTENT_NEW,
    SELL,
    TIF_DAY,
    TIF_IOC,
)
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    clear,
    load_f64,
    load_i64,
    load_u8,
    load_u16,
    store_f64,
    store_i64,
    store_u8,
    store_u16,
)
from strategy.trading_model.gates import (
    edge,
    exit_of,
    market,
    signal_of,
    size_of,
    stands,
    variance_of,
)
from strategy.trading_model.state import (
    BAD_LOCATE,
    BLOCKED,
    CANCEL_AGED,
    CANCEL_CHANGED,
    CANCEL_MARKET,
    CANCELLING,
    COOLDOWN,
    ENTER_LONG,
    ENTER_SHORT,
    HOLDING,
    INTENTS_FULL,
    SHORT_FORBIDDEN,
    SWEEP,
    TRADING,
    UNSET,
    WORKING,
    add,
    deadline,
    holding,
    settle,
)

_HEAD, _AT = TRADING.at, HOLDING.at
_EVENT, _DECISION, _INTENT = BOOK_EVENT.at, DECISION.at, INTENT.at
_INTENT_SIZE = INTENT.size


@inlined
def _intent(model: int, event: int, decision: int, kind: int, intent: int) -> None:
    """Write the part of an intent that orders and cancels share."""
    clear(intent, _INTENT_SIZE)
    store_i64(intent + _INTENT.decision, load_i64(decision + _DECISION.decision))
    store_i64(intent + _INTENT.cause_seq, load_i64(event + _EVENT.seq))
    store_i64(intent + _INTENT.exch_ns, load_i64(event + _EVENT.exch_ns))
    store_i64(intent + _INTENT.recv_ns, load_i64(event + _EVENT.recv_ns))
    store_i64(intent + _INTENT.book_update, load_i64(decision + _DECISION.book_update))
    store_u16(intent + _INTENT.locate, load_u16(decision + _DECISION.locate))
    store_u16(intent + _INTENT.strategy, load_i64(model + _HEAD.strategy))
    store_u8(intent + _INTENT.kind, kind)
    store_u8(intent + _INTENT.tag, load_u8(decision + _DECISION.tag))
    store_u8(decision + _DECISION.action, kind)


@inlined
def _order(
    model: int, row: int, event: int, decision: int, signed_qty: int, worth: float, intent: int
) -> None:
    """Write the order for signed_qty shares and count it as working; row's is_exit is set already."""
    is_buy, is_exit = signed_qty > 0, load_i64(row + _AT.is_exit) != 0
    crosses = is_exit or worth >= load_f64(model + _HEAD.cross_edge)
    px = load_i64(event + (_EVENT.ask_px if is_buy == crosses else _EVENT.bid_px))
    side, tif = BUY if is_buy else SELL, TIF_IOC if crosses else TIF_DAY
    _intent(model, event, decision, INTENT_NEW, intent)
    store_i64(intent + _INTENT.px, px)
    store_i64(intent + _INTENT.qty, abs(signed_qty))
    mean, variance = load_f64(decision + _DECISION.mean), variance_of(decision)
    known = abs(mean) < math.inf and variance < math.inf  # an exit may go out while the model is at fault
    store_f64(intent + _INTENT.mean, mean if known else 0.0)
    store_f64(intent + _INTENT.sigma, math.sqrt(variance) if known else 0.0)
    store_u8(intent + _INTENT.side, side)
    store_u8(intent + _INTENT.tif, tif)
    store_i64(decision + _DECISION.px, px)
    store_i64(decision + _DECISION.qty, abs(signed_qty))
    store_u8(decision + _DECISION.side, side)
    now_ns, locate = load_i64(decision + _DECISION.now_ns), load_u16(decision + _DECISION.locate)
    store_i64(row + _AT.working_qty, signed_qty)
    store_i64(row + _AT.decision, load_i64(decision + _DECISION.decision))
    store_i64(row + _AT.order, 0)
    store_i64(row + _AT.since_ns, now_ns)
    store_i64(deadline(model, locate), now_ns + load_i64(model + _HEAD.working_max_ns))
    add(model + _HEAD.working_count, 1)
    settle(model, row)


@inlined
def _cancel(model: int, row: int, event: int, decision: int, intent: int) -> None:
    """Write the cancel of the working order, whose number is known."""
    _intent(model, event, decision, INTENT_CANCEL, intent)
    store_i64(intent + _INTENT.order, load_i64(row + _AT.order))
    side = BUY if load_i64(row + _AT.working_qty) > 0 else SELL
    store_u8(intent + _INTENT.side, side)
    store_u8(decision + _DECISION.side, side)
    store_i64(row + _AT.cancel, load_i64(decision + _DECISION.decision))
    again_ns = load_i64(decision + _DECISION.now_ns) + load_i64(model + _HEAD.working_max_ns)
    store_i64(deadline(model, load_u16(decision + _DECISION.locate)), again_ns)


@inlined
def _touch(model: int, row: int, event: int) -> None:
    """Mark the holding to the mid of a good book."""
    px2 = load_i64(event + _EVENT.bid_px) + load_i64(event + _EVENT.ask_px)
    store_i64(row + _AT.px, px2 // 2)
    store_i64(row + _AT.high_px2, max(load_i64(row + _AT.high_px2), px2))
    store_i64(row + _AT.low_px2, min(load_i64(row + _AT.low_px2), px2))
    settle(model, row)


@inlined
def _review(model: int, row: int, event: int, decision: int, intent: int, leave: int, signal: int) -> int:
    """Decide about the order that works: keep it while its decision stands and it is not too old."""
    if load_i64(row + _AT.cancel) != 0:
        return CANCELLING
    if load_i64(row + _AT.order) == 0:
        return WORKING  # the orders agent has not told its number yet
    age_ns = load_i64(decision + _DECISION.now_ns) - load_i64(row + _AT.since_ns)
    reason = UNSET
    if not stands(row, leave, signal):
        reason = CANCEL_CHANGED
    elif age_ns > load_i64(model + _HEAD.working_max_ns):
        reason = CANCEL_AGED
    if reason == UNSET:
        return WORKING
    if intent == 0:
        return INTENTS_FULL
    _cancel(model, row, event, decision, intent)
    return reason


@inlined
def _enter(model: int, row: int, event: int, decision: int, intent: int, signal: int, worth: float) -> int:
    """Send the entry that the signal asks for, as large as the caps allow."""
    if signal == ENTER_SHORT and load_i64(model + _HEAD.short_allowed) == 0:
        return SHORT_FORBIDDEN
    qty = size_of(model, row, event, decision, worth)
    if qty <= 0:
        return -qty
    if intent == 0:
        return INTENTS_FULL
    store_i64(row + _AT.is_exit, 0)
    if load_i64(row + _AT.position_qty) == 0:
        store_i64(row + _AT.tag, load_u8(decision + _DECISION.tag))
    _order(model, row, event, decision, qty if signal == ENTER_LONG else -qty, worth, intent)
    return signal


@inlined
def _answer(model: int, row: int, event: int, decision: int, now_ns: int, intent: int) -> int:
    bad = market(model, event, now_ns)
    if bad != UNSET:
        if load_i64(row + _AT.order) == 0 or load_i64(row + _AT.cancel) != 0 or intent == 0:
            return bad
        _cancel(model, row, event, decision, intent)
        return CANCEL_MARKET
    _touch(model, row, event)
    worth = edge(model, event, decision)
    signal = signal_of(model, decision, worth)
    leave = exit_of(model, row, load_u8(decision + _DECISION.tag), signal, now_ns)
    if load_i64(row + _AT.working_qty) != 0:
        return _review(model, row, event, decision, intent, leave, signal)
    if load_i64(row + _AT.blocked) != 0:
        return BLOCKED
    wants = leave != UNSET or signal in (ENTER_LONG, ENTER_SHORT)
    if wants and now_ns < load_i64(row + _AT.resume_ns):
        return COOLDOWN
    if leave == UNSET:
        return _enter(model, row, event, decision, intent, signal, worth) if wants else signal
    if intent == 0:
        return INTENTS_FULL
    store_i64(row + _AT.is_exit, 1)
    _order(model, row, event, decision, -load_i64(row + _AT.position_qty), worth, intent)
    return leave


@inlined
def _record(model: int, row: int, decision: int, reason: int) -> int:
    store_u8(decision + _DECISION.reason, reason)
    store_i64(row + _AT.reason, reason)
    add(model + _HEAD.counts + reason * 8, 1)
    return reason


@kernel
def decide(model: int, event: int, decision: int, now_ns: int, intent: int) -> int:
    """Decide about one symbol; return the reason code, and fill decision's action, reason, px, qty, side.

    model: TradingModel.addr; event: address of the symbol's BOOK_EVENT; decision: address of a DECISION
    whose inputs (everything up to `agree`, status, state) are filled in and whose answer is zero;
    intent: address of an INTENT, written only when decision's action is not 0, or 0 when there is no room
    for one (then nothing changes and the reason is intents_full).  A written intent must be sent.
    """
    locate = load_u16(event + _EVENT.locate)
    if locate >= load_i64(model + _HEAD.symbols_max):
        store_u8(decision + _DECISION.reason, BAD_LOCATE)
        add(model + _HEAD.counts + BAD_LOCATE * 8, 1)
        return BAD_LOCATE
    row = holding(model, locate)
    return _record(model, row, decision, _answer(model, row, event, decision, now_ns, intent))


@kernel
def find_overdue(model: int, now_ns: int) -> int:
    """Look at the next SWEEP deadlines; return the locate of a working order that is overdue, or -1."""
    if load_i64(model + _HEAD.working_count) == 0:
        return -1
    symbols, first = load_i64(model + _HEAD.symbols_max), load_i64(model + _HEAD.sweep)
    for locate in range(first, min(first + SWEEP, symbols)):
        due_ns = load_i64(deadline(model, locate))
        if 0 < due_ns < now_ns:
            return locate
    store_i64(model + _HEAD.sweep, first + SWEEP if first + SWEEP < symbols else 0)
    return -1


@kernel
def cancel_overdue(model: int, event: int, decision: int, now_ns: int, intent: int) -> int:
    """Cancel the overdue order of decision's locate; event: the BOOK_EVENT of any symbol that told the time.

    Returns the reason; decision's action is 0 when there is nothing to send (its number is not told yet,
    or intent is 0: no room); then the deadline moves on.
    """
    locate = load_u16(decision + _DECISION.locate)
    row = holding(model, locate)
    store_i64(deadline(model, locate), now_ns + load_i64(model + _HEAD.working_max_ns))
    if load_i64(row + _AT.order) == 0:
        return _record(model, row, decision, WORKING)
    if intent == 0:
        return _record(model, row, decision, INTENTS_FULL)
    _cancel(model, row, event, decision, intent)
    return _record(model, row, decision, CANCEL_AGED)
