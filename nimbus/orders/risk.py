"""Pre-trade risk: pure integer checks of (intent, pool, positions, top of book, limits, now).

`check` only reads, so a denial has nothing to undo; `spend` takes the rate token of every evaluated intent,
and `reserve` (agent.py) follows the last check.  The first failure is the one reason, in the order of
`check`, cheap and absolute ones first.  Reasons are append-only and never re-used.  There is no
bypass switch, and no limits at all means that nothing passes (qty_max is 0).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from nimbus.fix.tags import PX_MAX, QTY_MAX
from nimbus.journal.log import has_free
from nimbus.messages import (
    BOOK_CROSSED,
    BOOK_FAULTY,
    BOOK_HALTED,
    BOOK_INCOMPLETE,
    BOOK_STALE,
    BUY,
    INTENT,
    LIMITS,
    POSITION,
    REDUCING,
    SELL,
    TIF_DAY,
    TIF_IOC,
    TOP_OF_BOOK,
)
from nimbus.orders.kill_switch import effective, may_trade
from nimbus.orders.pool import CAUSE_MAX, POOL
from nimbus.orders.positions import POSITION_QTY_MAX
from ringbuf import seqlock
from ringbuf.atomics import load_acquire
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_f64, load_i64, load_u8, load_u16, store_i64
from ringbuf.records import record
from ringbuf.segment import Segment


class Reason(IntEnum):
    """Why an intent was denied.  Append only."""

    PASSED = 0
    HALTED = 1
    REDUCING = 2
    QTY = 3
    NOTIONAL = 4
    COLLAR = 5
    FAT_FINGER = 6
    TICK = 7
    DUPLICATE = 8
    RATE = 9
    RUNAWAY = 10
    POSITION = 11
    EXPOSURE = 12
    CREDIT = 13
    LOSS = 14
    OPEN_ORDERS = 15
    SELF_TRADE = 16
    SYMBOL = 17
    SHORT = 18
    MARKET_DATA = 19
    SESSION = 20
    DISCONNECT = 21
    ORDER_TO_TRADE = 22
    AUTHORITY = 23
    INSANE = 24
    DROP_COPY = 25


REASONS_COUNT: Final = len(Reason)

# What `observed` holds for reasons that are no comparison with a limit.
# INSANE: the number of the unfit field.  SESSION: what stands in the way.
FIELD_MEAN, FIELD_SIGMA, FIELD_QTY, FIELD_PX, FIELD_SIDE, FIELD_TIF, FIELD_LOCATE = 1, 2, 3, 4, 5, 6, 7
FIELD_CAUSE, FIELD_TEXT, FIELD_ORDER, FIELD_KIND = 8, 9, 10, 11
NOT_LOGGED_ON, SEND_BUFFER_USED, JOURNAL_LOW, RING_FULL, RESENDING = 1, 2, 3, 4, 5
LIMITS_UNREADABLE: Final = -1

SESSION = record(
    "SESSION",
    """
    i8  logged_on         1 while the FIX session is logged on (control loop)
    i8  resending         1 while a resend or reconciliation is under way (control loop)
    48u1 pad              zero
    i8  send_buffer_used  bytes that wait in the send buffer (orders loop)
    i8  link              NOT_LOGGED_ON: no connection, RESENDING: a gap is open, 0 = good (orders loop)
    48u1 pad2             zero
    i8  journal_low       1 while too few free segments are left (journal loop)
    56u1 pad3             zero
    """,
)
RISK = record(
    "RISK",
    """
    i8  limits          address of the LIMITS cell
    i8  tops            address of the TOP_OF_BOOK cell of locate 0
    i8  positions       address of the POSITION row of locate 0
    i8  pool            address of the POOL
    i8  kill_switch     address of the words
    i8  session         address of the SESSION words
    i8  stream          address of the journal STREAM of this loop
    i8  journal_reserve  records of its ring kept free for cancels and executions
    i8  symbols_max     locates from here on are refused
    i8  credit          rate tokens x 1e9
    i8  refilled_ns     when credit was brought up to date
    i8  observed        last denial: what was seen
    i8  limit           last denial: what is allowed
    i8  credit_seen     the credit at the time of this evaluation
    2i8 pad             zero
    128u1 limits_copy   the LIMITS of this evaluation
    64u1 top_copy       the TOP_OF_BOOK of this evaluation
    """,
)

_RISK, _LIMITS, _TOP, _INTENT, _POSITION, _POOL = (
    RISK.at, LIMITS.at, TOP_OF_BOOK.at, INTENT.at, POSITION.at, POOL.at,
)  # fmt: skip
_SESSION = SESSION.at
_LIMITS_SIZE: Final = LIMITS.size
_TOP_SIZE: Final = TOP_OF_BOOK.size
_TOP_STRIDE: Final = seqlock.cell_size(TOP_OF_BOOK)
_POSITION_SIZE: Final = POSITION.size
_UNFIT: Final = BOOK_STALE | BOOK_CROSSED | BOOK_HALTED | BOOK_INCOMPLETE | BOOK_FAULTY  # one-sided: see R5
_MARKET_MARKS: Final = BOOK_STALE | BOOK_INCOMPLETE  # what the cell of locate 0 says of every book
_TOKEN: Final = 1_000_000_000
_SOON_NS: Final = 1 << 40  # some 18 minutes: no rate within LIMIT_BOUNDS fills an int64 in it
_BP: Final = 10_000
_RETURN_MAX: Final = 1e9  # a forecast beyond it is as insane as an infinite one

PASSED, HALTED, QTY, NOTIONAL, COLLAR, RATE = 0, 1, 3, 4, 5, 9
REDUCING_ONLY, POSITION_LIMIT, OPEN_ORDERS, MARKET_DATA, SESSION_DOWN, INSANE = 2, 11, 15, 19, 20, 24


@inlined
def _deny(risk: int, reason: int, observed: int, limit: int) -> int:
    store_i64(risk + _RISK.observed, observed)
    store_i64(risk + _RISK.limit, limit)
    return reason


@inlined
def _limit(risk: int, offset: int) -> int:
    return load_i64(risk + _RISK.limits_copy + offset)


@inlined
def position_at(risk: int, locate: int) -> int:
    """Return the address of a POSITION row; locate < symbols_max."""
    return load_i64(risk + _RISK.positions) + locate * _POSITION_SIZE


@inlined
def _unfit_field(risk: int, intent: int) -> int:
    """R24: return the FIELD_* that no order can be made of, or 0.

    px <= 0 does not fit its field either; R7 will name it more exactly.
    """
    mean, sigma = load_f64(intent + _INTENT.mean), load_f64(intent + _INTENT.sigma)
    qty, px = load_i64(intent + _INTENT.qty), load_i64(intent + _INTENT.px)
    cause, locate = load_i64(intent + _INTENT.cause_seq), load_u16(intent + _INTENT.locate)
    if not -_RETURN_MAX <= mean <= _RETURN_MAX:
        return FIELD_MEAN
    if not 0.0 <= sigma <= load_f64(risk + _RISK.limits_copy + _LIMITS.sigma_max):
        return FIELD_SIGMA
    if qty < 0 or qty > QTY_MAX:
        return FIELD_QTY
    if px <= 0 or px > PX_MAX:
        return FIELD_PX
    if load_u8(intent + _INTENT.side) not in (BUY, SELL):
        return FIELD_SIDE
    if load_u8(intent + _INTENT.tif) not in (TIF_DAY, TIF_IOC):
        return FIELD_TIF
    if locate == 0 or locate >= load_i64(risk + _RISK.symbols_max):
        return FIELD_LOCATE
    return FIELD_CAUSE if cause < 0 or cause > CAUSE_MAX else 0


@inlined
def session_obstacle(session: int) -> int:
    """R20: return what keeps the session from taking a new order, or 0."""
    if load_acquire(session + _SESSION.logged_on) == 0:  # pairs with the control loop's release store
        return NOT_LOGGED_ON
    link = load_i64(session + _SESSION.link)
    if link:
        return link
    if load_acquire(session + _SESSION.resending):  # pairs with the control loop's release store
        return RESENDING
    if load_i64(session + _SESSION.send_buffer_used):
        return SEND_BUFFER_USED
    if load_acquire(session + _SESSION.journal_low):  # pairs with the journal loop's release store
        return JOURNAL_LOW
    return 0


@inlined
def is_logged_on(session: int) -> bool:
    """Say whether the venue can be reached: what a cancel needs."""
    logged_on = load_acquire(session + _SESSION.logged_on)  # pairs with the control loop's release store
    return logged_on != 0 and load_i64(session + _SESSION.link) != NOT_LOGGED_ON


@inlined
def credit_now(risk: int, now_ns: int) -> int:
    """R9: return the rate tokens x 1e9 at now_ns, without changing anything; time never runs back."""
    rate, full = _limit(risk, _LIMITS.rate_per_s), _limit(risk, _LIMITS.rate_burst) * _TOKEN
    credit = min(load_i64(risk + _RISK.credit), full)
    elapsed = max(now_ns - load_i64(risk + _RISK.refilled_ns), 0)
    if elapsed < _SOON_NS or rate < 1:
        return min(credit + min(elapsed, _SOON_NS) * rate, full)
    return full if elapsed > (full - credit) // rate else credit + elapsed * rate


@inlined
def spend(risk: int, now_ns: int) -> None:
    """Take the rate token of the intent evaluated last, accepted or denied; an empty bucket stays empty."""
    store_i64(risk + _RISK.credit, max(load_i64(risk + _RISK.credit_seen) - _TOKEN, 0))
    store_i64(risk + _RISK.refilled_ns, max(now_ns, load_i64(risk + _RISK.refilled_ns)))


@inlined
def _market_data(risk: int, top: int, intent: int, now_ns: int) -> int:
    """R19 on a copied top of book: a fit, fresh book of a symbol that trades.

    The age counts from the later of the last change of the top and the market message behind the intent: a
    quiet top in a live feed is not stale.
    """
    status, state = load_u8(top + _TOP.status), load_u8(top + _TOP.state)
    # The market as a whole: one byte of a word that the market loop writes, so it needs no seqlock.
    status |= load_u8(load_i64(risk + _RISK.tops) + seqlock.VALUE_AT + _TOP.status) & _MARKET_MARKS
    if load_i64(top + _TOP.update) == 0:
        return _deny(risk, MARKET_DATA, -1, 0)
    if status & _UNFIT:
        return _deny(risk, MARKET_DATA, -status, 0)
    if state not in (0, ord("T")):
        return _deny(risk, MARKET_DATA, -state, 0)
    heard_ns = max(load_i64(top + _TOP.recv_ns), min(load_i64(intent + _INTENT.recv_ns), now_ns))
    stale_after_ns = _limit(risk, _LIMITS.stale_after_ns)
    if now_ns - heard_ns > stale_after_ns:
        return _deny(risk, MARKET_DATA, now_ns - heard_ns, stale_after_ns)
    return PASSED


@inlined
def _collar(risk: int, top: int, position: int, intent: int) -> int:
    """R5: the price against twice the reference: mid of the book, else the last mark; none = deny."""
    bid, ask = load_i64(top + _TOP.bid_px), load_i64(top + _TOP.ask_px)
    ref_px2 = bid + ask if bid and ask else load_i64(position + _POSITION.mark_px2)
    px, collar = load_i64(intent + _INTENT.px), _limit(risk, _LIMITS.collar_bp)
    if ref_px2 <= 0:
        return _deny(risk, COLLAR, px, 0)
    if load_u8(intent + _INTENT.side) == BUY:
        return _deny(risk, COLLAR, px, ref_px2) if 2 * px * _BP > ref_px2 * (_BP + collar) else PASSED
    return _deny(risk, COLLAR, px, ref_px2) if 2 * px * _BP < ref_px2 * (_BP - collar) else PASSED


@inlined
def _closes_all(position: int, intent: int) -> bool:
    """Say whether an order, with those that are open on its side, closes exactly what is held.

    It only reduces, whatever is filled of it: R3 asks no whole lots of it, else an odd lot were for ever.
    """
    held, qty = load_i64(position + _POSITION.position_qty), load_i64(intent + _INTENT.qty)
    if load_u8(intent + _INTENT.side) == BUY:
        return held < 0 < qty and held + load_i64(position + _POSITION.open_buy_qty) + qty == 0
    return held > 0 and qty > 0 and held - load_i64(position + _POSITION.open_sell_qty) - qty == 0


@inlined
def _position_checks(risk: int, position: int, intent: int, state: int) -> int:
    """R2 and R11: the position if every open order on the intent's side and this one were filled."""
    held, qty = load_i64(position + _POSITION.position_qty), load_i64(intent + _INTENT.qty)
    limit = _limit(risk, _LIMITS.position_max)
    if load_u8(intent + _INTENT.side) == BUY:
        worst = held + load_i64(position + _POSITION.open_buy_qty) + qty
        if state == REDUCING and worst > max(0, held):
            return _deny(risk, REDUCING_ONLY, worst, max(0, held))
        return _deny(risk, POSITION_LIMIT, worst, limit) if worst > limit else PASSED
    worst = held - load_i64(position + _POSITION.open_sell_qty) - qty
    if state == REDUCING and worst < min(0, held):
        return _deny(risk, REDUCING_ONLY, worst, min(0, held))
    return _deny(risk, POSITION_LIMIT, worst, -limit) if worst < -limit else PASSED


@kernel
def check(risk: int, intent: int, now_ns: int) -> int:
    """Evaluate a new order: 1, 24, 20, 15, 3, 4, 19, 5, 9, 2, 11.  Returns 0 or the reason.

    A denial leaves what was seen and what is allowed in RISK.observed and RISK.limit.  For `spend`, the
    credit is left in RISK.credit_seen.
    """
    version = seqlock.read(load_i64(risk + _RISK.limits), risk + _RISK.limits_copy, _LIMITS_SIZE)
    credit = credit_now(risk, now_ns)
    store_i64(risk + _RISK.credit_seen, credit)
    state = effective(load_i64(risk + _RISK.kill_switch))
    if not may_trade(state):
        return _deny(risk, HALTED, state, 0)
    if version < 0:
        return _deny(risk, HALTED, LIMITS_UNREADABLE, 0)
    field = _unfit_field(risk, intent)
    if field:
        return _deny(risk, INSANE, field, 0)
    obstacle = session_obstacle(load_i64(risk + _RISK.session))
    stream, reserve = load_i64(risk + _RISK.stream), load_i64(risk + _RISK.journal_reserve)
    if obstacle == 0 and not has_free(stream, reserve + 1):
        obstacle = JOURNAL_LOW
    if obstacle:
        return _deny(risk, SESSION_DOWN, obstacle, 0)
    locate, qty = load_u16(intent + _INTENT.locate), load_i64(intent + _INTENT.qty)
    pool, position = load_i64(risk + _RISK.pool), position_at(risk, locate)
    open_max = min(_limit(risk, _LIMITS.open_orders_max), load_i64(pool + _POOL.open_orders_max))
    if load_i64(pool + _POOL.open_count) >= open_max:
        return _deny(risk, OPEN_ORDERS, load_i64(pool + _POOL.open_count), open_max)
    if load_i64(pool + _POOL.count) >= load_i64(pool + _POOL.orders_max):
        return _deny(risk, OPEN_ORDERS, load_i64(pool + _POOL.count), load_i64(pool + _POOL.orders_max))
    of_symbol = load_i64(position + _POSITION.open_orders)
    if of_symbol >= _limit(risk, _LIMITS.symbol_open_orders_max):
        return _deny(risk, OPEN_ORDERS, of_symbol, _limit(risk, _LIMITS.symbol_open_orders_max))
    lot = max(_limit(risk, _LIMITS.lot_qty), 1)
    is_odd = qty < lot or (lot > 1 and qty % lot != 0)
    if qty > _limit(risk, _LIMITS.qty_max) or (is_odd and not _closes_all(position, intent)):
        return _deny(risk, QTY, qty, _limit(risk, _LIMITS.qty_max))
    notional = qty * load_i64(intent + _INTENT.px)
    if notional > _limit(risk, _LIMITS.notional_max):
        return _deny(risk, NOTIONAL, notional, _limit(risk, _LIMITS.notional_max))
    top = risk + _RISK.top_copy
    if seqlock.read(load_i64(risk + _RISK.tops) + locate * _TOP_STRIDE, top, _TOP_SIZE) < 0:
        return _deny(risk, MARKET_DATA, -1, 0)
    reason = _market_data(risk, top, intent, now_ns)
    if reason == PASSED:
        reason = _collar(risk, top, position, intent)
    if reason == PASSED and credit < _TOKEN:
        reason = _deny(risk, RATE, credit, _TOKEN)
    if reason == PASSED:
        reason = _position_checks(risk, position, intent, state)
    return reason


# Bounds of each limit at load: with them no product of a check leaves int64 (widths of FIX fields).
LIMIT_BOUNDS: Final = {
    "qty_max": (0, QTY_MAX), "lot_qty": (1, QTY_MAX), "notional_max": (0, QTY_MAX * PX_MAX),
    "collar_bp": (0, _BP), "rate_per_s": (0, 1_000_000), "rate_burst": (0, 1_000_000),
    "position_max": (0, POSITION_QTY_MAX), "open_orders_max": (0, 1 << 24),
    "symbol_open_orders_max": (0, 1 << 24), "stale_after_ns": (0, 1 << 60), "sigma_max": (0.0, _RETURN_MAX),
}  # fmt: skip
DEFAULT_LIMITS: Final[dict[str, Any]] = {
    "qty_max": 1_000, "lot_qty": 1, "notional_max": 250_000 * _BP, "collar_bp": 200, "rate_per_s": 1_000,
    "rate_burst": 1_000, "position_max": 2_000, "open_orders_max": 1_000, "symbol_open_orders_max": 20,
    "stale_after_ns": 1_000_000_000, "sigma_max": 1.0,
}  # fmt: skip


class Limits:
    """Owns the LIMITS cell.  Written as one set by one cold writer; the risk kernel reads it per intent."""

    def __init__(self, segment: Segment, name: str) -> None:
        self.cell = seqlock.create_cells(segment, name, 1, LIMITS)
        self._row = segment.words(self.cell + seqlock.VALUE_AT, LIMITS.size // 8).view(LIMITS.dtype)

    def set(self, **limits: Any) -> int:
        """Replace the whole set (missing names: DEFAULT_LIMITS); return its version.

        Raises ValueError for an unknown name or a value outside LIMIT_BOUNDS; nothing changes then.
        """
        values = DEFAULT_LIMITS | limits
        wrong = [n for n in limits if n not in LIMIT_BOUNDS]
        wrong += [n for n, (low, high) in LIMIT_BOUNDS.items() if not low <= values[n] <= high]
        if wrong:
            msg = f"limits unknown or out of range: {', '.join(sorted(wrong))}"
            raise ValueError(msg)
        version = self.version + 1
        seqlock.begin_write(self.cell)
        for field, value in values.items():
            self._row[0][field] = value
        self._row[0]["version"] = version
        seqlock.end_write(self.cell)
        return version

    @property
    def version(self) -> int:
        """Number of this set of limits, 0 = none yet."""
        return int(self._row[0]["version"])

    def raw(self) -> bytes:
        """Return the LIMITS record that is in force, for the journal."""
        return bytes(self._row[0].tobytes())

    def values(self) -> dict[str, Any]:
        """Return the set that is in force."""
        return {name: self._row[0][name].item() for name in LIMIT_BOUNDS}
