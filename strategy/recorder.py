"""Rows of features for training: a fixed buffer that the strategy fills and a cold caller drains.

When it is full the strategy takes no more events until it has been drained (`NEED_DRAIN`), so nothing is
lost.  One row per written vector.  Written by the strategy loop; drained between its duty cycles.
"""

from __future__ import annotations

from typing import Any, Final

from numpy.typing import NDArray

from nimbus.messages import BOOK_EVENT
from ringbuf.jit import inlined
from ringbuf.memory import copy, load_i64, load_u8, load_u16, store_i64, store_u8, store_u16, store_u32
from ringbuf.records import record
from ringbuf.segment import Segment
from strategy.features import COLUMNS, mid_px2, vector_at, warm_mask

OK, NEED_DRAIN = 0, 1

RECORDER = record(
    "RECORDER",
    """
    i8  rows      rows written since the last drain
    i8  capacity  rows that fit
    i8  status    OK or NEED_DRAIN
    i8  drained   rows drained so far
    4i8 pad       zero
    """,
)

FEATURE_ROW = record(
    "FEATURE_ROW",
    f"""
    i8  seq         market sequence number
    i8  exch_ns     exchange time
    i8  recv_ns     receive time: the clock of the news
    i8  mid_px2     last mid, doubled; 0 = none yet
    i8  news_item   newest material news item, 0 = none
    u4  warm        bit = column is warm
    u2  locate      stock locate
    u1  tag         TAG_*
    u1  status      BOOK_* bits
    2i8 pad         zero
    {COLUMNS}f8 vector  raw features, NaN until warm
    """,
)

_HEAD, _AT, _EVENT = RECORDER.at, FEATURE_ROW.at, BOOK_EVENT.at
_HEAD_SIZE, _ROW_SIZE = RECORDER.size, FEATURE_ROW.size
_VECTOR_SIZE: Final = COLUMNS * 8


@inlined
def is_full(recorder: int) -> bool:
    """Say whether there is a recorder (address not 0) that must be drained first."""
    return recorder != 0 and load_i64(recorder + _HEAD.status) == NEED_DRAIN


@inlined
def write_row(recorder: int, features: int, event: int, tag: int, news_item: int) -> None:
    """Append a row of the symbol's vector; the recorder is not full."""
    rows, locate = load_i64(recorder + _HEAD.rows), load_u16(event + _EVENT.locate)
    row = recorder + _HEAD_SIZE + rows * _ROW_SIZE
    store_i64(row + _AT.seq, load_i64(event + _EVENT.seq))
    store_i64(row + _AT.exch_ns, load_i64(event + _EVENT.exch_ns))
    store_i64(row + _AT.recv_ns, load_i64(event + _EVENT.recv_ns))
    store_i64(row + _AT.mid_px2, mid_px2(features, locate))
    store_i64(row + _AT.news_item, news_item)
    store_u32(row + _AT.warm, warm_mask(features, locate))
    store_u16(row + _AT.locate, locate)
    store_u8(row + _AT.tag, tag)
    store_u8(row + _AT.status, load_u8(event + _EVENT.status))
    copy(row + _AT.vector, vector_at(features, locate), _VECTOR_SIZE)
    store_i64(recorder + _HEAD.rows, rows + 1)
    if rows + 1 >= load_i64(recorder + _HEAD.capacity):
        store_i64(recorder + _HEAD.status, NEED_DRAIN)


class Recorder:
    """Own the buffer; `addr` goes to Strategy(recorder=...)."""

    def __init__(self, segment: Segment, capacity: int, name: str = "recorder") -> None:
        self.addr = segment.allocate(name, _HEAD_SIZE + capacity * _ROW_SIZE)
        words = segment.words(self.addr, (_HEAD_SIZE + capacity * _ROW_SIZE) // 8)
        self.head: Any = words[: _HEAD_SIZE // 8].view(RECORDER.dtype)[0]
        self._rows: NDArray[Any] = words[_HEAD_SIZE // 8 :].view(FEATURE_ROW.dtype)
        self.head["capacity"] = capacity

    def drain(self) -> NDArray[Any]:
        """Return a copy of the rows (FEATURE_ROW) and empty the buffer."""
        count = int(self.head["rows"])
        rows = self._rows[:count].copy()
        self.head["rows"], self.head["status"] = 0, OK
        self.head["drained"] += count
        return rows
