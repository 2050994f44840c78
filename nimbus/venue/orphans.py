"""Orders of a process that died: what their clients must still be told.

The book is gone with its process.  What a client was told last about each of its orders stands in the store
of its session, as the ExecutionReports that may be asked for again.  An order that was open there is reported
as Canceled, once: the report takes a number of the session, and the client asks for it when it logs on.
"""

from __future__ import annotations

from typing import Final

from nimbus.fix import tags
from nimbus.fix.message import Fields, Message, fields, stamp
from nimbus.fix.store import Sent, Store
from nimbus.venue.gateway_text import identifier

TEXT: Final = "cancelled: the exchange was started again"
_OPEN: Final = frozenset({b"0", b"1", b"A"})
_NONE: Final = b"NONE"
# Of the last report, what does not belong to a cancel.
_DROPPED: Final = frozenset({
    tags.EXEC_ID, tags.ORD_STATUS, tags.EXEC_TYPE, tags.LEAVES_QTY, tags.TEXT, tags.TRANSACT_TIME,
    tags.LAST_PX, tags.LAST_QTY, tags.ORIG_CL_ORD_ID, 584, 851, 911, 912,
})  # fmt: skip


def open_orders(store: Store) -> dict[bytes, Fields]:
    """Return the last report of each order that a client believes to be open, by OrderID."""
    found: dict[bytes, Fields] = {}
    for seq in range(1, store.next_out):
        sent = store.sent(seq)
        if sent is None or sent.msg_type != "8":
            continue
        report = Message.parse(sent.body).fields
        by_tag = dict(report)
        order_id = by_tag.get(tags.ORDER_ID, _NONE)
        if order_id == _NONE:
            continue
        if by_tag.get(tags.ORD_STATUS) in _OPEN:
            found[order_id] = report
        else:
            found.pop(order_id, None)
    return found


def report_orphans(store: Store, epoch: int, number: int, now_ns: int) -> int:
    """Store a Canceled for each open order of a dead process; return how many.

    number: ExecIDs are those after it.  Raises StoreError.
    """
    orphans = open_orders(store)
    for place, report in enumerate(orphans.values(), 1):
        pairs: list[tuple[int, bytes | str | int]] = [p for p in report if p[0] not in _DROPPED]
        pairs += [
            (tags.EXEC_ID, identifier(epoch, number + place)), (tags.ORD_STATUS, "4"), (tags.TEXT, TEXT),
            (tags.TRANSACT_TIME, stamp(now_ns)), (tags.EXEC_TYPE, "4"), (tags.LEAVES_QTY, 0),
        ]  # fmt: skip
        body = fields(sorted(pairs, key=lambda pair: pair[0]))
        store.use(Sent("8", stamp(now_ns), body))
    return len(orphans)
