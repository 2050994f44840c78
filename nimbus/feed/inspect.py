"""What is in a capture: walk it without books and count."""

from __future__ import annotations

import datetime as dt
import os
from typing import Any

from nimbus.feed.capture import CaptureSource, next_packet
from nimbus.feed.decode import Feed, close_feed, next_message, open_packet
from nimbus.feed.state import OK
from nimbus.messages import PACKET
from ringbuf.jit import inlined, kernel
from ringbuf.segment import Segment

_SEGMENT_SIZE = 4 * 1024 * 1024


@inlined
def _exhaust(feed: int) -> int:
    count = 0
    while next_message(feed) != 0:
        count += 1
    return count


@kernel
def walk_chunk(source: int, packet: int, feed: int) -> int:
    """Open every packet of the present chunk; return the messages that would have been delivered."""
    count = 0
    while next_packet(source, packet) == 1:
        if open_packet(feed, packet) == OK:
            count += _exhaust(feed)
    return count


@kernel
def walk_end(feed: int) -> int:
    """Close the feed at the end of the file; return the messages that were held until then."""
    count = 0
    while close_feed(feed) == OK:
        count += _exhaust(feed)
    return count


def inspect_capture(
    path: os.PathLike[str] | str, date: dt.date | None = None, **options: Any
) -> dict[str, Any]:
    """Return the counts of a capture as plain values that JSON can hold.

    messages: well-formed messages by type, before sequencing; delivered: messages after it; packets;
    counters; refused: packets by reason; unknown, wrong_length: messages by first byte; truncated; warnings.
    options: those of Feed.  Raises CaptureError, one line, when the capture cannot be read to its end.
    """
    segment = Segment.anonymous(_SEGMENT_SIZE)
    feed, packet = Feed(segment, **options), segment.allocate("packet", PACKET.size)
    with CaptureSource.open(path, date, segment) as source:
        delivered, more = 0, True
        while more:
            delivered += walk_chunk(source.state, packet, feed.addr)
            more = source.refill()
        delivered += walk_end(feed.addr)
        return {
            "messages": feed.messages_by_type(),
            "delivered": delivered,
            "packets": source.packets,
            "counters": feed.counters(),
            "refused": feed.refused(),
            "unknown": feed.unknown_types(),
            "wrong_length": feed.wrong_lengths(),
            "runs": feed.run,
            "stale": feed.stale,
            "incomplete": feed.incomplete,
            "truncated": source.truncated,
            "warnings": source.warnings + feed.warnings(),
        }
