"""The last fills of each symbol, picked from the journal's records as they are moved to disk.

The journal is where fills are whole: the FILL of a trade stands behind the EXECUTION it came from, with the
raw bytes that hold the venue's ExecID.  The memory is bounded: FILLS_KEPT of each symbol that traded.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from typing import Any, Final, NamedTuple

import numpy as np

from nimbus.journal.log import LAST_PART
from nimbus.journal.types import RecordType
from nimbus.messages import FILL, FILL_TRADE, JOURNAL, JOURNAL_PAYLOAD_SIZE
from nimbus.orders.journal_records import EXECUTION

FILLS_KEPT: Final = 20
assert FILL.size <= JOURNAL_PAYLOAD_SIZE  # a FILL is one record
_TEXT_MAX: Final = 1_024  # bytes of one message of the venue that are looked at; longer than WIRE.bytes
_EXEC_ID: Final = re.compile(rb"\x0117=([^\x01]*)\x01")
_LIQUIDITY: Final = re.compile(rb"\x01851=([^\x01]*)\x01")  # LastLiquidityInd
_LIQUIDITIES: Final = {b"1": "added", b"2": "removed", b"3": "routed"}


class Trade(NamedTuple):
    """One booked trade; px in 1/10,000; liquidity None when the venue did not say."""

    exec_id: str
    liquidity: str | None
    order: int
    side: int
    qty: int
    px: int
    strategy: int
    now_ns: int


class RecentFills:
    """Listens to the journal of one run; written and read by the control loop alone."""

    def __init__(self) -> None:
        self._kept: dict[int, deque[Trade]] = defaultdict(lambda: deque(maxlen=FILLS_KEPT))
        self._text = b""  # payload of the EXECUTION read last, as far as it was read

    def take(self, records: memoryview) -> None:
        """Take in whole journal records of one stream, in their order."""
        rows = np.frombuffer(records, JOURNAL.dtype)
        for row in rows[np.isin(rows["type"], (RecordType.EXECUTION, RecordType.FILL))]:
            piece = row["payload"].tobytes()[: int(row["payload_size"])]
            if row["type"] == RecordType.EXECUTION:
                is_first = int(row["part"]) & ~LAST_PART == 0
                self._text = (piece if is_first else self._text + piece)[:_TEXT_MAX]
                continue
            self._keep(np.frombuffer(piece, FILL.dtype)[0])

    def _keep(self, fill: Any) -> None:
        if fill["kind"] != FILL_TRADE:
            return
        text = self._text[EXECUTION.size :]
        exec_id, liquidity = _EXEC_ID.search(text), _LIQUIDITY.search(text)
        self._kept[int(fill["locate"])].append(
            Trade(
                exec_id=exec_id[1].decode("ascii", "replace") if exec_id else "",
                liquidity=_LIQUIDITIES.get(liquidity[1]) if liquidity else None,
                order=int(fill["order"]),
                side=int(fill["side"]),
                qty=int(fill["last_qty"]),
                px=int(fill["last_px"]),
                strategy=int(fill["strategy"]),
                now_ns=int(fill["now_ns"]),
            )
        )

    def last(self, locate: int) -> list[Trade]:
        """Return the newest trades of a locate, oldest first; at most FILLS_KEPT."""
        return list(self._kept[locate]) if locate in self._kept else []
