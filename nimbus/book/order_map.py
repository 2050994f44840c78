"""Order references to slots: a hash table whose buckets are chains through the order records.

Idea.  References are any 64 bits, but an exchange's are mostly dense and rising.  The bucket of a
reference is its own low bits, exclusive-or a mix of the bits above the low twelve: a block of 4,096
neighbouring references keeps its neighbourhood (sixteen references share a cache line of heads, and none
of them collide), while blocks, strides and sparse references are spread over the whole table.
A bucket holds the slot of its first order, the order names the next; there are no tombstones, and a
deletion leaves nothing behind.
Cost: one line of heads, and the order's own line, which the caller needs anyway.  Heads are at least
twice the orders, so a chain is one order in nearly all cases.
Worst case: CHAIN_MAX orders in one bucket; the next one is refused and counted as full.
"""

from __future__ import annotations

from typing import Final

from nimbus.book.layout import BOOKS, CHAIN_MAX, DUPLICATE_REF, FULL, RESTING, BookState
from ringbuf.jit import inlined
from ringbuf.memory import load_i64, load_u32, prefetch, store_i64, store_u32, wrapping_multiply

_RESTING, _BOOKS, _SIZE = RESTING.at, BOOKS.at, RESTING.size
BLOCK_BITS: Final = 12
MIXER: Final = -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio: an odd 64-bit multiplier


@inlined
def head_of(books: BookState, ref: int) -> int:
    """Return the address of the bucket head (u4 slot) of a reference."""
    mixed = wrapping_multiply(ref >> BLOCK_BITS, MIXER) >> 24
    head: int = books.heads + ((ref ^ mixed) & books.mask) * 4
    return head


@inlined
def warm_bucket(books: BookState, ref: int) -> None:
    """Fetch the bucket of a reference that some message to come will name."""
    prefetch(head_of(books, ref))


@inlined
def warm_order(books: BookState, ref: int) -> None:
    """Fetch the order of a reference that the next message names; its bucket should be near by now."""
    prefetch(books.orders + load_u32(head_of(books, ref)) * _SIZE)


@inlined
def find(books: BookState, ref: int) -> int:
    """Return the slot of a live reference, or 0."""
    slot = load_u32(head_of(books, ref))
    for _ in range(CHAIN_MAX):
        if slot == 0:
            break
        order = books.orders + slot * _SIZE
        if load_i64(order + _RESTING.ref) == ref:
            break
        slot = load_u32(order + _RESTING.chain)
    return slot


@inlined
def vacancy(books: BookState, ref: int) -> int:
    """Say whether a reference may be linked: 0, or DUPLICATE_REF, or FULL (its bucket is)."""
    slot, seen = load_u32(head_of(books, ref)), 0
    while slot != 0:
        order = books.orders + slot * _SIZE
        seen += 1
        if load_i64(order + _RESTING.ref) == ref:
            return DUPLICATE_REF
        if seen == CHAIN_MAX:
            return FULL
        slot = load_u32(order + _RESTING.chain)
    return 0


@inlined
def link(books: BookState, slot: int, ref: int) -> None:
    """Enter a reference that is vacant; the order at slot gets it."""
    head, order = head_of(books, ref), books.orders + slot * _SIZE
    store_i64(order + _RESTING.ref, ref)
    store_u32(order + _RESTING.chain, load_u32(head))
    store_u32(head, slot)


@inlined
def unlink(books: BookState, slot: int, ref: int) -> None:
    """Take out the reference of the live order at slot."""
    order, at = books.orders + slot * _SIZE, head_of(books, ref)
    for _ in range(CHAIN_MAX):
        here = load_u32(at)
        if here == slot:
            break
        at = books.orders + here * _SIZE + _RESTING.chain
    store_u32(at, load_u32(order + _RESTING.chain))


@inlined
def spare_slot(books: BookState) -> int:
    """Return the slot that take_slot() would give, or 0 when the orders are all in use."""
    slot = load_i64(books.words + _BOOKS.free_order)
    if slot != 0:
        return slot
    used = load_i64(books.words + _BOOKS.orders_used)
    return used + 1 if used < load_i64(books.words + _BOOKS.orders_max) else 0


@inlined
def take_slot(books: BookState, slot: int) -> None:
    """Use up the slot that spare_slot() has just returned."""
    if slot == load_i64(books.words + _BOOKS.free_order):
        store_i64(books.words + _BOOKS.free_order, load_u32(books.orders + slot * _SIZE + _RESTING.next))
    else:
        store_i64(books.words + _BOOKS.orders_used, slot)


@inlined
def free_slot(books: BookState, slot: int) -> None:
    """Give back a slot; the next order takes it while its line is still near."""
    order = books.orders + slot * _SIZE
    store_u32(order + _RESTING.next, load_i64(books.words + _BOOKS.free_order))
    store_i64(books.words + _BOOKS.free_order, slot)
    store_u32(order + _RESTING.qty, 0)
