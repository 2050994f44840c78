"""Payload records of every journal type: what `journal show` and the outcome of a replay decode with."""

from __future__ import annotations

from typing import Final

from nimbus.journal.types import PAYLOADS as JOURNAL_PAYLOADS
from nimbus.journal.types import RecordType
from nimbus.messages import DECISION
from nimbus.orders.journal_records import PAYLOADS as ORDERS_PAYLOADS
from ringbuf.records import Record

PAYLOADS: Final[dict[int, Record]] = {
    **JOURNAL_PAYLOADS,
    **{int(RecordType[name]): declared for name, declared in ORDERS_PAYLOADS.items()},
    int(RecordType.DECISION): DECISION,
}
