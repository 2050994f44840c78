"""The memory of the books: records, capacities, statuses, counters.

One order book is a line of `BOOK`: two ladders and the directory entry.  A ladder is a sorted array of
words, best price last; a word is (key << 32 | level), the key being the price for bids and minus the price
for asks.  A level is a FIFO queue of orders: a ring of which the level itself is the knot.  Orders and levels
have 32 bytes each and lie in one space of record numbers (the slots first, then the levels), and the two
links have the same places in both, so an order leaves or joins a queue without asking what its neighbours
are.  Slot 0 and level 0 stand for "none" and are never given out: an empty side reads level 0 (price 0,
quantity 0) without a branch.

Everything here is written by the market loop only.  Others read the seqlock cells (tops, depths).
"""

from __future__ import annotations

from collections import namedtuple
from typing import Final

from ringbuf.jit import inlined
from ringbuf.memory import load_i64, store_i64
from ringbuf.records import record

RESTING = record(
    "RESTING",
    """
    i8  ref     order reference number, all 64 bits
    u4  qty     shares left
    u4  level   level it rests on
    u4  prev    record before it in the queue: an order, or its level when it is first
    u4  next    record behind it: an order, or its level when it is last; of a free slot: the next free one
    u4  stamp   arrival number: smaller = earlier
    u4  chain   next slot whose reference falls into the same bucket, 0 = last
    """,
    line=32,
)

LEVEL = record(
    "LEVEL",
    """
    i8  qty     shares of all its orders
    u4  px      price
    u4  ladder  2 x locate + side index (0 = bids, 1 = asks)
    u4  prev    the last order (the level itself when there is none)
    u4  next    the first order; of a free level: the next free one
    u4  count   orders
    u4  pad     zero
    """,
    line=32,
)

LADDER = record(
    "LADDER",
    """
    i8  end     address past the best word
    i8  base    address of the worst word
    i8  limit   address past the room of its block
    """,
    line=24,
)

BOOK = record(
    "BOOK",
    f"""
    {LADDER.size}u1 bids   LADDER of the bids
    {LADDER.size}u1 asks   LADDER of the asks
    8u1 symbol  symbol, padded with spaces; zeros = never announced
    u4  chain   directory: next locate in the same bucket, 0 = last
    u1  marks   BOOK_STALE, BOOK_INCOMPLETE, BOOK_FAULTY: set from outside or by a refusal
    u1  closed  operational halts in force, one bit per market (Q, B, X)
    u1  known   1 after its directory message
    u1  pad     zero
    """,
)

LADDER_CLASSES: Final = 23
BOOKS = record(
    "BOOKS",
    f"""
    i8  free_order    first free slot, 0 = none: then the next unused one
    i8  orders_used   slots ever used
    i8  orders_max    slots there are
    i8  free_level    first free level
    i8  levels_used   levels ever used
    i8  levels_max    levels there are
    i8  stamp         arrival stamps given so far
    i8  exch_ns       exchange time of the last message
    i8  recv_ns       receive time of its packet
    i8  ladder_next   address of the unused rest of the ladder memory
    i8  ladder_stop   address past the ladder memory
    i8  ladder_start  address of the ladder memory
    i8  symbols       directory: heads, u4 locate each
    i8  symbols_mask  number of directory heads - 1
    i8  notices       NOTICES row of locate 0
    i8  phase         event code of the last system event, 0 = none
    i8  breaker       market-wide circuit breaker level reached ('1', '2', '3'), 0 = none
    {LADDER_CLASSES}i8 free_ladders  free blocks by size class
    """,
)

NOTICES = record(
    "NOTICES",
    """
    40u1 luld     last auction collar (J), as received; zeros = none
    56u1 noii     last imbalance message (I)
    24u1 retail   last retail interest (N)
    48u1 listing  last direct listing message (O)
    24u1 pad      zero
    """,
)

assert RESTING.size == LEVEL.size
assert (RESTING.at.prev, RESTING.at.next) == (LEVEL.at.prev, LEVEL.at.next)
RECORD_BITS: Final = RESTING.size.bit_length() - 1

# What apply() answers below zero.  The message is refused whole, except OVERSIZE cases (see book.py).
UNKNOWN_REF, DUPLICATE_REF, FULL, BAD_LOCATE, BAD_PX, BAD_QTY, BAD_SIDE, BAD_STATE = range(-1, -9, -1)

COUNTERS = record(
    "COUNTERS",
    """
    i8  pad              zero
    i8  unknown_ref      reference is not live: ignored
    i8  duplicate_ref    reference is live already: refused
    i8  full             no order, level, ladder block or bucket left: refused, book marked faulty
    i8  bad_locate       locate 0 or beyond symbols_max: refused
    i8  bad_px           price 0 or above 199,999.99: refused (an execution is applied, and not printed)
    i8  bad_qty          quantity 0 (Q: negative): refused
    i8  bad_side         side neither B nor S: refused
    i8  bad_state        code of a state message unknown: refused
    i8  oversize         execution or cancel larger than the rest: order removed
    i8  unannounced      add or print for a locate without directory message: accepted
    i8  other_locate     locate differs from the order's: applied to the order's book
    i8  hidden           execution that must not print
    i8  broken           broken trades
    i8  resets           books emptied for a new run
    i8  tops             best price or size changes published
    """,
)
_COUNTERS: Final = COUNTERS.at
COUNTED: Final = tuple(name for name in COUNTERS.at._fields if name != "pad")

PX_MAX: Final = 1_999_999_900  # 199,999.9900: the largest price of ITCH 5.0
STAMP_MAX: Final = 0xFFFF_FFFF
CHAIN_MAX: Final = 64  # orders in one bucket; the next is refused as FULL
EMPTY_WORD: Final = -(2**63)  # below every ladder word: level 0
LOW: Final = 0xFFFF_FFFF

# The addresses and constants that kernels need for each message; all other state is in BOOKS.
BookState = namedtuple(
    "BookState",
    ["orders", "levels", "books", "heads", "mask", "tops", "depths", "words", "counts", "symbols_max"],
)


@inlined
def count(books: BookState, offset: int) -> None:
    """Add one to the counter at this offset of COUNTERS."""
    store_i64(books.counts + offset, load_i64(books.counts + offset) + 1)


@inlined
def runs_ended(books: BookState) -> int:
    """Return how often the books have begun anew: slots and arrival stamps from before mean nothing now."""
    return load_i64(books.counts + _COUNTERS.resets)


@inlined
def refuse(books: BookState, status: int) -> int:
    """Count a refusal under its reason; return the status."""
    count(books, -8 * status)  # counters stand in the order of the statuses
    return status
