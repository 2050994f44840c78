"""Messages that say something about a symbol or the market, and touch no order.

H, Y, h   change the top cell (trading state, short-sale state, halted bit)
R         enters the directory;  S, W are kept for the market as a whole
J, I, N, O   the last one of each symbol is kept as it was received (NOTICES)
The rest (L, V, K) is taken and ignored.
"""

from __future__ import annotations

from typing import Final

from nimbus.book.directory import announce
from nimbus.book.layout import (
    BAD_LOCATE,
    BAD_STATE,
    BOOK,
    BOOKS,
    NOTICES,
    BookState,
    refuse,
)
from nimbus.book.publish import publish_state, top_at
from nimbus.feed.itch import (
    DIRECT_LISTING,
    DIRECTORY,
    LULD_COLLAR,
    MWCB_STATUS,
    NOII,
    OPERATIONAL_HALT,
    REG_SHO,
    RETAIL_INTEREST,
    SYSTEM_EVENT,
    TRADING_ACTION,
)
from nimbus.messages import CHANGE, STATE_CHANGED, TOP_OF_BOOK
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, load_u8, store_i64, store_u8, store_u16, u1, u2

_BOOK, _BOOKS, _NOTICES, _TOP, _CHANGE = BOOK.at, BOOKS.at, NOTICES.at, TOP_OF_BOOK.at, CHANGE.at
_BOOK_SIZE, _NOTICES_SIZE = BOOK.size, NOTICES.size
_ACTION, _REG_SHO, _HALT, _DIRECTORY = TRADING_ACTION.at, REG_SHO.at, OPERATIONAL_HALT.at, DIRECTORY.at
_EVENT, _BREAKER = SYSTEM_EVENT.at, MWCB_STATUS.at
_H, _Y, _OPERATIONAL, _R = TRADING_ACTION.code, REG_SHO.code, OPERATIONAL_HALT.code, DIRECTORY.code
_S, _W = SYSTEM_EVENT.code, MWCB_STATUS.code
_J, _I, _N, _O = LULD_COLLAR.code, NOII.code, RETAIL_INTEREST.code, DIRECT_LISTING.code
_J_SIZE, _I_SIZE, _N_SIZE, _O_SIZE = LULD_COLLAR.size, NOII.size, RETAIL_INTEREST.size, DIRECT_LISTING.size

HALTED, PAUSED, QUOTING, TRADING = ord("H"), ord("P"), ord("Q"), ord("T")  # H: trading states
SHORT_SALE_FIRST: Final = ord("0")  # Y: '0', '1', '2' are stored as 0, 1, 2
SHORT_SALE_CODES: Final = 3
_PER_SYMBOL: Final = (_H, _Y, _OPERATIONAL, _R, _J, _I, _N, _O)
MARKET_Q, MARKET_B, MARKET_X = ord("Q"), ord("B"), ord("X")  # h: Nasdaq, BX, PSX


@inlined
def _trading_action(books: BookState, msg: int, locate: int) -> int:
    state = u1(msg + _ACTION.state)
    if state not in (TRADING, HALTED, PAUSED, QUOTING):
        return refuse(books, BAD_STATE)
    return publish_state(books, locate, state, load_u8(top_at(books, locate) + _TOP.short_sale), _H)


@inlined
def _short_sale(books: BookState, msg: int, locate: int) -> int:
    action = u1(msg + _REG_SHO.action) - SHORT_SALE_FIRST
    if action < 0 or action >= SHORT_SALE_CODES:
        return refuse(books, BAD_STATE)
    return publish_state(books, locate, load_u8(top_at(books, locate) + _TOP.state), action, _Y)


@inlined
def _operational_halt(books: BookState, msg: int, locate: int) -> int:
    market, action = u1(msg + _HALT.market), u1(msg + _HALT.action)
    bit = 1 if market == MARKET_Q else 2 if market == MARKET_B else 4 if market == MARKET_X else 0
    if bit == 0 or action not in (HALTED, TRADING):
        return refuse(books, BAD_STATE)
    closed_at = books.books + locate * _BOOK_SIZE + _BOOK.closed
    closed = load_u8(closed_at)
    store_u8(closed_at, closed | bit if action == HALTED else closed & ~bit)
    top = top_at(books, locate)
    return publish_state(
        books, locate, load_u8(top + _TOP.state), load_u8(top + _TOP.short_sale), _OPERATIONAL
    )


@inlined
def _notice(books: BookState, msg: int, locate: int, code: int) -> int:
    row = load_i64(books.words + _BOOKS.notices) + locate * _NOTICES_SIZE
    if code == _J:
        copy(row + _NOTICES.luld, msg, _J_SIZE)
    elif code == _I:
        copy(row + _NOTICES.noii, msg, _I_SIZE)
    elif code == _N:
        copy(row + _NOTICES.retail, msg, _N_SIZE)
    elif code == _O:
        copy(row + _NOTICES.listing, msg, _O_SIZE)
    return 0


@kernel
def apply_state(books: BookState, msg: int, change: int, code: int) -> int:
    """Apply a message that touches no order; return flags, or BAD_LOCATE or BAD_STATE (refused).

    The locate of CHANGE is 0 after S and W, which are about the whole market.
    """
    if code == _S:
        store_i64(books.words + _BOOKS.phase, u1(msg + _EVENT.event))
        store_u16(change + _CHANGE.locate, 0)
        return STATE_CHANGED
    if code == _W:
        store_i64(books.words + _BOOKS.breaker, u1(msg + _BREAKER.breached))
        store_u16(change + _CHANGE.locate, 0)
        return STATE_CHANGED
    if code not in _PER_SYMBOL:
        return 0
    locate = u2(msg + _DIRECTORY.locate)
    if locate < 1 or locate >= books.symbols_max:
        return refuse(books, BAD_LOCATE)
    if code == _H:
        return _trading_action(books, msg, locate)
    if code == _Y:
        return _short_sale(books, msg, locate)
    if code == _OPERATIONAL:
        return _operational_halt(books, msg, locate)
    if code == _R:
        announce(books, locate, load_i64(msg + _DIRECTORY.symbol))
        return 0
    return _notice(books, msg, locate, code)
