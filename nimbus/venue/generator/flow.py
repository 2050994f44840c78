"""Kernels of the order flow: which symbol acts, how its fair value moves, what its orders do.

The model, all of it invented.  A symbol has a fair value in ticks, a random walk whose variance clusters.
Bids stand at or below its floor and asks above, so the book is never locked or crossed.  When the fair
value crosses orders, they are executed or withdrawn, best first, before anything else happens.  A hidden
pressure leans on the sides of adds, executions and withdrawals at once, and on the price some seconds
later: order-flow imbalance comes before the move.  News (STEP rows) adds drift and tilt.
Orders of a symbol lie unsorted in at most ORDERS_MAX rows; the best is found by scanning.
"""

from __future__ import annotations

from typing import Final

from nimbus.messages import BUY, SELL
from nimbus.venue.generator.orders import (
    add_order,
    cancel_order,
    delete_order,
    execute_order,
    front,
    print_hidden,
    replace_order,
)
from nimbus.venue.generator.state import (
    ADDS,
    CANCELS,
    DAY,
    DELETES,
    EXECUTES,
    EXECUTES_PX,
    LIVE,
    ORDERS_MAX,
    REPLACES,
    SHARES_PER_MILLE,
    STEP,
    SYMBOL,
    TRADES,
    chance,
    draw,
    exponential,
    normal,
    pick,
)
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_f64, load_i64, store_f64, store_i64

_D, _S, _L, _N = DAY.at, SYMBOL.at, LIVE.at, STEP.at
_SYMBOL_SIZE, _LIVE_SIZE, _STEP_SIZE = SYMBOL.size, LIVE.size, STEP.size
_KINDS: Final = len(SHARES_PER_MILLE)
DONE, WAITING, FULL = 1, 2, 3

PRESSURE_S: Final = 20.0  # how long the pressure lasts
LAG_S: Final = 4.0  # how long the price takes to follow it
PRESSURE_DRIFT: Final = 0.25e-4  # per second, at pressure 1
PRESSURE_TILT: Final = 0.12  # at pressure 1
TILT_MAX: Final = 0.4
CLUSTER_S: Final = 40.0  # how long a calm or a storm lasts
CLUSTER_SIZE: Final = 0.8
FAIR_MIN, FAIR_MAX = 200.0, 1_900_000.0  # ticks
BURST_PER_MILLE: Final = 250
BURST_EVENTS: Final = 6
BURST_GAP_NS: Final = 2_500
HOT_PER_MILLE: Final = 250
SIDE_ORDERS_MIN: Final = 3
SHARE_WINDOW: Final = 4_000  # messages over which the mix is steered back to the shares
_WEIGHT_MAX: Final = 1 << 24
EVENT_BYTES_MAX: Final = 1 << 18  # of one event, heartbeats included
_EVENTS_MAX: Final = 1 << 40


@kernel
def _advance(day: int, symbol: int, at_ns: int) -> None:
    """Bring the fair value of a symbol forward to at_ns."""
    elapsed_ns = at_ns - load_i64(symbol + _S.last_ns)
    if elapsed_ns <= 0:
        return
    store_i64(symbol + _S.last_ns, at_ns)
    seconds = elapsed_ns / 1e9
    pressure, lagged = load_f64(symbol + _S.pressure), load_f64(symbol + _S.lagged)
    part = min(1.0, seconds / PRESSURE_S)
    pressure += (part * (2.0 - part)) ** 0.5 * normal(day) - part * pressure
    lagged += (pressure - lagged) * min(1.0, seconds / LAG_S)
    store_f64(symbol + _S.pressure, pressure)
    store_f64(symbol + _S.lagged, lagged)

    noise, variance = normal(day), load_f64(symbol + _S.variance)
    move = load_f64(symbol + _S.sigma) * (variance * seconds) ** 0.5 * noise
    move += seconds * load_f64(symbol + _S.drift)
    move += min(seconds, PRESSURE_S) * PRESSURE_DRIFT * lagged
    fair = load_f64(symbol + _S.fair) * (1.0 + max(-0.5, min(0.5, move)))
    store_f64(symbol + _S.fair, max(FAIR_MIN, min(FAIR_MAX, fair)))

    part = min(1.0, seconds / CLUSTER_S)
    variance += (1.0 - variance) * part + CLUSTER_SIZE * variance * (noise * noise - 1.0) * part**0.5
    store_f64(symbol + _S.variance, max(0.2, min(8.0, variance)))


@kernel
def _apply_steps(day: int, now_ns: int) -> None:
    """Apply the steps of the news that have become due."""
    first, count = load_i64(day + _D.step), load_i64(day + _D.step_count)
    for index in range(first, count):
        step = load_i64(day + _D.steps) + index * _STEP_SIZE
        at_ns = load_i64(step + _N.at_ns)
        if at_ns > now_ns:
            return
        symbol = load_i64(day + _D.symbols) + load_i64(step + _N.symbol) * _SYMBOL_SIZE
        _advance(day, symbol, at_ns)
        store_f64(symbol + _S.drift, load_f64(step + _N.drift))
        store_f64(symbol + _S.tilt, load_f64(step + _N.tilt))
        if load_i64(step + _N.hot_ns) != 0:
            store_i64(day + _D.hot_symbol, load_i64(step + _N.symbol))
            store_i64(day + _D.hot_until_ns, load_i64(step + _N.hot_ns))
        store_i64(day + _D.step, index + 1)


@kernel
def _choose_symbol(day: int) -> int:
    """Return the row number of the symbol that acts next."""
    if load_i64(day + _D.burst_left) > 0 and chance(day, 800):
        return load_i64(day + _D.burst_symbol)
    if load_i64(day + _D.now_ns) < load_i64(day + _D.hot_until_ns) and chance(day, HOT_PER_MILLE):
        return load_i64(day + _D.hot_symbol)
    word, low, high = draw(day), 0, load_i64(day + _D.symbol_count) - 1
    shares = load_i64(day + _D.shares)
    for _ in range(64):  # binary search in at most 2^16 symbols
        if low >= high:
            break
        middle = (low + high) >> 1
        if word < load_i64(shares + middle * 8):
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def _schedule_next(day: int, index: int) -> None:
    """Draw the time of the next event: close by within a burst, else so that the budget ends in time."""
    now_ns, left = load_i64(day + _D.now_ns), load_i64(day + _D.burst_left)
    if left > 0:
        store_i64(day + _D.burst_left, left - 1)
        store_i64(day + _D.next_ns, now_ns + exponential(day, BURST_GAP_NS))
        return
    if chance(day, BURST_PER_MILLE):
        store_i64(day + _D.burst_left, 1 + exponential(day, BURST_EVENTS))
        store_i64(day + _D.burst_symbol, index)
    written, gaps = load_i64(day + _D.flow_messages), load_i64(day + _D.gaps) + 1
    store_i64(day + _D.gaps, gaps)
    remaining = max(1, load_i64(day + _D.budget) - written)
    remaining_ns = max(1, load_i64(day + _D.end_ns) - now_ns)
    per_gap = (written + 150) / (gaps + 50)
    mean_ns = int(remaining_ns / remaining * per_gap)
    store_i64(day + _D.next_ns, now_ns + 1 + min(exponential(day, mean_ns), 30_000_000_000))


@inlined
def _side_orders(symbol: int, side: int) -> int:
    return load_i64(symbol + _S.bids) if side == BUY else load_i64(symbol + _S.asks)


@inlined
def _stands(symbol: int, side: int, tick: int) -> bool:
    """Say whether an order at this tick is on the right side of the fair value."""
    level = int(load_f64(symbol + _S.fair))
    return tick <= level if side == BUY else tick > level


@kernel
def _standing(symbol: int, side: int) -> int:
    """Return how many orders of a side the fair value has not crossed."""
    count = 0
    for row in range(load_i64(symbol + _S.bids) + load_i64(symbol + _S.asks)):
        order = load_i64(symbol + _S.orders) + row * _LIVE_SIZE
        if load_i64(order + _L.side) == side and _stands(symbol, side, load_i64(order + _L.tick)):
            count += 1
    return count


@inlined
def _is_behind(day: int, kind: int) -> bool:
    """Say whether the messages of a kind are fewer than their share."""
    drawn = load_i64(day + _D.drawn + kind * 8)
    return drawn * 1000 < load_i64(day + _D.flow_messages) * SHARES_PER_MILLE[kind]


@kernel
def _withdraw_crossed(day: int, symbol: int) -> None:
    """Execute or delete the orders that the fair value has crossed, best first; keep both sides filled."""
    for pass_ in range(2):
        side = BUY if pass_ == 0 else SELL
        best = front(symbol, side)
        if best == 0 or _stands(symbol, side, load_i64(best + _L.tick)):
            continue
        for _ in range(SIDE_ORDERS_MIN - _standing(symbol, side)):
            add_order(day, symbol, side)
        for _ in range(ORDERS_MAX):
            best = front(symbol, side)
            if best == 0 or _stands(symbol, side, load_i64(best + _L.tick)):
                break
            trades = load_i64(symbol + _S.halted) == 0 and _is_behind(day, EXECUTES)
            if trades:
                execute_order(day, symbol, best, load_i64(best + _L.qty), 0)
            else:
                delete_order(day, symbol, best)


@inlined
def _weight(day: int, symbol: int, kind: int) -> int:
    """Return how much a kind of message lacks to reach its share."""
    trades = kind in (EXECUTES, EXECUTES_PX, TRADES)
    if trades and load_i64(symbol + _S.halted) != 0:
        return 0
    wanted = (load_i64(day + _D.flow_messages) + SHARE_WINDOW) * SHARES_PER_MILLE[kind]
    return max(0, min(_WEIGHT_MAX, wanted - load_i64(day + _D.drawn + kind * 8) * 1000))


@kernel
def _choose_kind(day: int, symbol: int) -> int:
    """Draw the kind of the next message so that the mix returns to SHARES_PER_MILLE."""
    total = 0
    for kind in range(_KINDS):
        total += _weight(day, symbol, kind)
    word = pick(day, max(1, total))
    for kind in range(_KINDS):
        word -= _weight(day, symbol, kind)
        if word < 0:
            return kind
    return ADDS


@inlined
def _missing_kind(day: int, symbol: int) -> int:
    """Return a kind that has not been drawn in the first half of the day, -1 = there is none."""
    written, budget = load_i64(day + _D.flow_messages), load_i64(day + _D.budget)
    if written * 2 < budget or load_i64(symbol + _S.halted) != 0:
        return -1
    for kind in range(_KINDS):
        if load_i64(day + _D.drawn + kind * 8) == 0:
            return kind
    return -1


@inlined
def _tilted_side(day: int, tilt: float) -> int:
    """Draw a side: B more often when tilt > 0."""
    return BUY if draw(day) < int((0.5 + tilt) * 4294967296.0) else SELL


@kernel
def _pick_order(day: int, symbol: int, side: int) -> int:
    """Return a live order of a side at random, rather one far from the price; 0 = none found."""
    count, chosen = load_i64(symbol + _S.bids) + load_i64(symbol + _S.asks), 0
    for _ in range(12):
        order = load_i64(symbol + _S.orders) + pick(day, max(1, count)) * _LIVE_SIZE
        if count == 0 or load_i64(order + _L.side) != side:
            continue
        if chosen == 0:
            chosen = order
            continue
        farther = load_i64(order + _L.tick) - load_i64(chosen + _L.tick)
        return order if (farther < 0) == (side == BUY) else chosen
    return chosen


@kernel
def _act(day: int, symbol: int) -> None:
    """Let the orders of one symbol do one thing."""
    kind = _missing_kind(day, symbol)
    for pass_ in range(2):
        side = BUY if pass_ == 0 else SELL
        if kind < 0 and _side_orders(symbol, side) * 5 < load_i64(day + _D.depth_target) * 2:
            add_order(day, symbol, side)
            return
    lean = PRESSURE_TILT * load_f64(symbol + _S.pressure) + load_f64(symbol + _S.tilt)
    lean = max(-TILT_MAX, min(TILT_MAX, lean))
    side = _tilted_side(day, lean)
    other = BUY + SELL - side
    if kind < 0:
        kind = _choose_kind(day, symbol)
    if load_i64(symbol + _S.bids) + load_i64(symbol + _S.asks) > 2 * load_i64(day + _D.depth_target):
        kind = DELETES
    if kind == ADDS:
        add_order(day, symbol, side)
        return
    if kind == TRADES:
        print_hidden(day, symbol, side)
        return
    if _side_orders(symbol, other) <= SIDE_ORDERS_MIN:
        add_order(day, symbol, other)
        return
    if kind in (EXECUTES, EXECUTES_PX):
        best = front(symbol, other)
        qty = load_i64(best + _L.qty)
        part = qty if chance(day, 600) else 1 + pick(day, qty)
        execute_order(day, symbol, best, part, 1 if kind == EXECUTES_PX else 0)
        return
    order = _pick_order(day, symbol, other)
    if order == 0:
        add_order(day, symbol, side)
    elif kind == REPLACES:
        replace_order(day, symbol, order)
    elif kind == CANCELS and load_i64(order + _L.qty) > 1:
        cancel_order(day, symbol, order)
    else:
        delete_order(day, symbol, order)


@kernel
def fill_books(day: int, until_ns: int, count: int) -> int:
    """Add up to count opening orders, symbol by symbol and side by side, evenly spread up to until_ns.

    Returns how many of flow_messages are done; fewer than count when the buffer is full: call again.
    """
    symbols, count_symbols = load_i64(day + _D.symbols), load_i64(day + _D.symbol_count)
    for index in range(load_i64(day + _D.flow_messages), count):
        if load_i64(day + _D.out_at) > load_i64(day + _D.out_end) - EVENT_BYTES_MAX:
            break
        now_ns = load_i64(day + _D.now_ns)
        store_i64(day + _D.now_ns, now_ns + max(1, (until_ns - now_ns) // (count + 1 - index)))
        side = BUY if (index // count_symbols) & 1 == 0 else SELL
        add_order(day, symbols + (index % count_symbols) * _SYMBOL_SIZE, side)
    return load_i64(day + _D.flow_messages)


@kernel
def flow(day: int, until_ns: int, pause_at: int) -> int:
    """Write order flow until exchange time until_ns, the budget, or pause_at flow messages are reached.

    Returns WAITING (the next event is not before until_ns), DONE (budget or pause_at reached) or FULL
    (the output buffer wants to be emptied).  May exceed pause_at by the messages of one event.
    """
    limit = min(pause_at, load_i64(day + _D.budget))
    for _ in range(_EVENTS_MAX):
        if load_i64(day + _D.flow_messages) >= limit:
            return DONE
        if load_i64(day + _D.out_at) > load_i64(day + _D.out_end) - EVENT_BYTES_MAX:
            return FULL
        if load_i64(day + _D.next_ns) >= until_ns:
            return WAITING
        now_ns = max(load_i64(day + _D.next_ns), load_i64(day + _D.now_ns) + 1)
        store_i64(day + _D.now_ns, now_ns)
        _apply_steps(day, now_ns)
        index = _choose_symbol(day)
        symbol = load_i64(day + _D.symbols) + index * _SYMBOL_SIZE
        _advance(day, symbol, now_ns)
        _withdraw_crossed(day, symbol)
        _act(day, symbol)
        _schedule_next(day, index)
    return WAITING
