"""The order pool: one ORDER record per order of the day, its ClOrdID, and the list of open orders.

Slots are given out once, in rising order, and never re-used within the day, because a bust may come long
after an order has ended.  The slot is the order number, and the number is part of the ClOrdID, so a report
finds its order by arithmetic and one comparison: no hash map.  Open orders form a list through LINK records
in the order they were taken, so that cancelling all of them never walks the day's pool.

ClOrdID: 16 base-32 characters, 4 for the run epoch, 5 for the request's number, 7 for its cause.  Numbers up
to `orders_max` are orders; a cancel request takes the next number above (its own counter), so that no
ClOrdID is used twice, whatever is cancelled for whatever cause.  A cause beyond its 7 characters (2^35)
denies an order (R24), but never a cancel: the id of a request holds the cause's low 35 bits, its number alone
makes it unique, and the journal's CANCEL_OUT has the cause whole.  A report on a cancel request finds
the order by OrigClOrdID(41).
"""

from __future__ import annotations

from typing import Any, Final

from numpy.typing import NDArray

from nimbus.fix.digits import id_number, put_id
from nimbus.fix.tags import ID_SIZE
from nimbus.messages import ORDER
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, load_i64, load_u32, prefetch_write, store_i64, store_u32
from ringbuf.records import CACHE_LINE, record
from ringbuf.segment import Segment

CAUSE_BITS: Final = 35
CAUSE_MAX: Final = (1 << CAUSE_BITS) - 1
NUMBER_MAX: Final = (1 << 25) - 1
EPOCH_MAX: Final = (1 << 20) - 1
DAY_ORDERS_MAX: Final = 1_048_576
OPEN_ORDERS_MAX: Final = 4_096

POOL = record(
    "POOL",
    """
    i8  orders      address of the ORDER records; slot 0 is never used
    i8  links       address of the LINK records
    i8  orders_max  orders of one day
    i8  open_orders_max  orders open at once
    i8  epoch       run number
    i8  count       orders taken so far = the last order number
    i8  open_count  orders open now
    i8  first       oldest open order, 0 = none
    i8  last        newest open order, 0 = none
    i8  cancels     cancel requests numbered so far
    6i8 pad         zero
    """,
)
LINK = record(
    "LINK",
    """
    u4  next        order number of the next open order, 0 = last
    u4  previous    order number of the previous open order, 0 = first
    """,
    line=8,
)

_POOL, _LINK, _ORDER = POOL.at, LINK.at, ORDER.at
_ORDER_SIZE: Final = ORDER.size
_LINK_SIZE: Final = LINK.size
_POOL_SIZE: Final = POOL.size


@inlined
def order_at(pool: int, number: int) -> int:
    """Return the address of a taken order, or 0 when there is no such number."""
    if number < 1 or number > load_i64(pool + _POOL.count):
        return 0
    return load_i64(pool + _POOL.orders) + number * _ORDER_SIZE


@inlined
def has_room(pool: int) -> bool:
    """Say whether one more order can be taken."""
    taken, live = load_i64(pool + _POOL.count), load_i64(pool + _POOL.open_count)
    return taken < load_i64(pool + _POOL.orders_max) and live < load_i64(pool + _POOL.open_orders_max)


@inlined
def prepare(pool: int, cause_seq: int) -> int:
    """Clear the next slot, write number and ClOrdID; the slot is not taken yet.  Needs has_room().

    cause_seq: 0 to CAUSE_MAX.  Returns the address of its ORDER record.
    """
    number = load_i64(pool + _POOL.count) + 1
    order = load_i64(pool + _POOL.orders) + number * _ORDER_SIZE
    clear(order, _ORDER_SIZE)
    store_i64(order + _ORDER.number, number)
    store_i64(order + _ORDER.cause_seq, cause_seq)
    put_id(order + _ORDER.cl_ord_id, load_i64(pool + _POOL.epoch), (number << CAUSE_BITS) | cause_seq)
    return order


@inlined
def next_order(pool: int) -> int:
    """Return the address of the slot that the next order will have, as prepare() has filled it."""
    return load_i64(pool + _POOL.orders) + (load_i64(pool + _POOL.count) + 1) * _ORDER_SIZE


@inlined
def warm_next_order(pool: int) -> None:
    """Fetch the lines of the slot that the next order will have for writing, and the counts."""
    for offset in range(0, _POOL_SIZE, CACHE_LINE):
        prefetch_write(pool + offset)
    order = next_order(pool)
    for line in range(_ORDER_SIZE // CACHE_LINE):
        prefetch_write(order + line * CACHE_LINE)
    prefetch_write(_link(pool, load_i64(pool + _POOL.count) + 1))


@inlined
def _link(pool: int, number: int) -> int:
    return load_i64(pool + _POOL.links) + number * _LINK_SIZE


@kernel
def take(pool: int) -> int:
    """Take the prepared slot: it is an open order from now on.  Returns its number."""
    number, last = load_i64(pool + _POOL.count) + 1, load_i64(pool + _POOL.last)
    link = _link(pool, number)
    store_u32(link + _LINK.next, 0)
    store_u32(link + _LINK.previous, last)
    if last:
        store_u32(_link(pool, last) + _LINK.next, number)
    else:
        store_i64(pool + _POOL.first, number)
    store_i64(pool + _POOL.last, number)
    store_i64(pool + _POOL.open_count, load_i64(pool + _POOL.open_count) + 1)
    store_i64(pool + _POOL.count, number)
    return number


@kernel
def close(pool: int, number: int) -> None:
    """Take an open order out of the list of open orders; its slot stays."""
    link = _link(pool, number)
    after, before = load_u32(link + _LINK.next), load_u32(link + _LINK.previous)
    if before:
        store_u32(_link(pool, before) + _LINK.next, after)
    else:
        store_i64(pool + _POOL.first, after)
    if after:
        store_u32(_link(pool, after) + _LINK.previous, before)
    else:
        store_i64(pool + _POOL.last, before)
    store_i64(pool + _POOL.open_count, load_i64(pool + _POOL.open_count) - 1)


@inlined
def first_open(pool: int) -> int:
    """Return the number of the oldest open order, 0 = none."""
    return load_i64(pool + _POOL.first)


@inlined
def next_open(pool: int, number: int) -> int:
    """Return the number of the open order after this one (ask before closing it), 0 = none."""
    return load_u32(_link(pool, number) + _LINK.next)


@inlined
def next_cancel_id(pool: int, target: int, cause_seq: int) -> bool:
    """Write the ClOrdID of the next cancel request; it is used up by take_cancel_id().

    Any cause_seq will do: what the id has no room for is left out.  False when the day's numbers, some
    33 million less day_orders_max, are used up: nothing is written then.
    """
    number = load_i64(pool + _POOL.orders_max) + load_i64(pool + _POOL.cancels) + 1
    if number > NUMBER_MAX:
        return False
    put_id(target, load_i64(pool + _POOL.epoch), (number << CAUSE_BITS) | (cause_seq & CAUSE_MAX))
    return True


@inlined
def take_cancel_id(pool: int) -> int:
    """Use up the number of next_cancel_id(); return how many cancel requests there were."""
    cancels = load_i64(pool + _POOL.cancels) + 1
    store_i64(pool + _POOL.cancels, cancels)
    return cancels


@inlined
def same_id(left: int, right: int) -> bool:
    """Compare two ClOrdIDs of 16 characters."""
    half = ID_SIZE // 2
    return load_i64(left) == load_i64(right) and load_i64(left + half) == load_i64(right + half)


@kernel
def find(pool: int, text: int, size: int) -> int:
    """Return the address of the order whose ClOrdID is text[:size], or 0.

    The number decoded from the text only chooses the candidate; all 16 characters must be equal.
    """
    if size != ID_SIZE:
        return 0
    order = order_at(pool, id_number(text) >> CAUSE_BITS)
    if order == 0 or not same_id(order + _ORDER.cl_ord_id, text):
        return 0
    return order


class Pool:
    """Owns the day's orders.  Raises ValueError when a capacity or the epoch does not fit the ClOrdID."""

    def __init__(
        self, segment: Segment, name: str, *, epoch: int, orders_max: int = DAY_ORDERS_MAX,
        open_orders_max: int = OPEN_ORDERS_MAX,
    ) -> None:  # fmt: skip
        if not 1 <= orders_max <= NUMBER_MAX // 2 or open_orders_max < 1 or not 0 <= epoch <= EPOCH_MAX:
            msg = (
                f"day_orders_max {orders_max}, open_orders_max {open_orders_max}, epoch {epoch}: out of range"
            )
            raise ValueError(msg)
        self.addr = segment.allocate(name, POOL.size)
        self._state = segment.array(name, POOL)
        orders = segment.allocate(f"{name}.orders", (orders_max + 1) * ORDER.size)
        links = segment.allocate(f"{name}.links", (orders_max + 1) * LINK.size)
        self._orders = segment.array(f"{name}.orders", ORDER)
        for field, value in (
            ("orders", orders), ("links", links), ("orders_max", orders_max), ("epoch", epoch),
            ("open_orders_max", open_orders_max),
        ):  # fmt: skip
            self._state[0][field] = value

    @property
    def taken(self) -> NDArray[Any]:
        """Every order of the day so far, oldest first (a live view)."""
        return self._orders[1 : 1 + self.count]

    @property
    def count(self) -> int:
        """Orders taken so far."""
        return int(self._state[0]["count"])

    @property
    def open_count(self) -> int:
        """Orders open now."""
        return int(self._state[0]["open_count"])

    def open_numbers(self) -> list[int]:
        """Return the numbers of the open orders, oldest first."""
        numbers, number = [], first_open(self.addr)
        while number:
            numbers.append(number)
            number = next_open(self.addr, number)
        return numbers
