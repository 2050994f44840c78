"""Record layouts are pinned: another process, a journal and a segment on disk depend on them."""

import pytest

from nimbus import messages as m
from ringbuf.records import record

PINNED = {
    "PACKET": (64, {"frame_at": 0, "recv_ns": 8, "size": 24, "link": 32, "line": 35}),
    "TOP_OF_BOOK": (64, {"update": 0, "bid_px": 24, "locate": 56, "status": 59, "cause": 61}),
    "DEPTH": (704, {"update": 0, "locate": 24, "bids": 64, "asks": 384}),
    "BOOK_EVENT": (128, {"seq": 0, "bid_px": 32, "trade_px": 80, "locate": 104, "flags": 107, "run": 112}),
    "CHANGE": (128, {"px": 24, "stamp": 48, "locate": 104, "cause": 106, "side": 107}),
    "NEWS": (3136, {"received_ns": 0, "score": 32, "embedding": 64}),
    "INTENT": (128, {"decision": 0, "px": 32, "mean": 48, "locate": 80, "kind": 84}),
    "DECISION": (128, {"decision": 0, "mean": 64, "warm": 104, "locate": 112, "tag": 118, "rung": 127}),
    "FILL": (64, {"decision": 0, "last_px": 24, "locate": 56, "kind": 58}),
    "LIMITS": (128, {"version": 0, "stale_after_ns": 80, "sigma_max": 88}),
    "POSITION": (128, {"position_qty": 0, "basis": 16, "mark_px2": 56}),
    "ORDER": (192, {"number": 0, "locate": 96, "status": 102, "cl_ord_id": 112, "cancel_id": 128}),
    "WIRE": (512, {"due_ns": 0, "size": 16, "bytes": 32}),
    "SESSION_IN": (1024, {"event": 0, "next_in": 24, "size": 48, "bytes": 64}),
    "SESSION_OUT": (1024, {"command": 0, "seq": 32, "msg_type": 48, "size": 52, "body": 64}),
    "JOURNAL": (128, {"crc32c": 0, "magic": 4, "type": 8, "epoch": 12, "seq": 16, "payload": 40}),
    "DEPTH_LEVEL": (32, {"px": 0, "qty": 8}),
}


@pytest.mark.parametrize("declared", m.RECORDS, ids=lambda r: r.name)
def test_a_layout_changes_only_together_with_the_layout_version(declared):
    size, offsets = PINNED[declared.name]
    assert m.LAYOUT_VERSION == 2
    assert declared.size == size
    assert {field: getattr(declared.at, field) for field in offsets} == offsets


def test_hidden_padding_is_refused():
    with pytest.raises(ValueError, match="reorder"):
        record("X", "u1 a x\nu8 b x\n55u1 pad x")


def test_a_part_of_a_cache_line_is_refused():
    with pytest.raises(ValueError, match="multiple of 64"):
        record("X", "u8 a x")
