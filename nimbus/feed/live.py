"""The owner of a live feed's window, gaps and snapshot ring: allocates, configures, reads the counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from nimbus.feed.arbiter_state import (
    ARBITER,
    COPY,
    GAP_MESSAGES_MAX,
    LINE,
    LINE_COUNTERS,
    LINES_MAX,
    LIVE_COUNTERS,
    PHASE_NAMES,
    PHASE_SNAPSHOT,
    ROWS_CAPACITY,
    SERVER,
    SERVERS_MAX,
    SLOT,
    SNAPSHOT_ROW,
    WINDOW_MAX,
    WINDOW_MIN,
)
from nimbus.feed.rerequest import socket_address
from ringbuf.segment import Segment
from ringbuf.spsc import create_ring, ring_size

NS_PER_US, NS_PER_MS = 1_000, 1_000_000
LINE_NAMES: Final = ("A", "B", "recovery", "other")


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """How a live feed repairs itself; every number is a limit.

    window_messages: messages that may wait behind a gap, a power of two; 112 bytes each.
    gap_wait_us: how long the other line may take before the books are stale and the messages are requested.
    gap_timeout_ms: age at which a gap is given up, for a snapshot or for good.
    servers: (IPv4 address, UDP port) of rerequest servers, asked in turn.
    request_messages_max: messages in one request; a reply must fit one datagram.
    request_interval_us: time between two requests.   reply_timeout_ms: then a round begins again.
    retries: rounds in vain after which a gap is given up.
    snapshot: whether somebody answers wanted snapshots (snapshot_client.py).
    snapshot_timeout_ms: silence after which a snapshot has failed.
    snapshot_hold_ms: delay of the second snapshot in a row; doubles up to 64 times.
    """

    window_messages: int = GAP_MESSAGES_MAX
    gap_wait_us: int = 500
    gap_timeout_ms: int = 500
    servers: Sequence[tuple[str, int]] = ()
    request_messages_max: int = 30
    request_interval_us: int = 100
    reply_timeout_ms: int = 10
    retries: int = 5
    snapshot: bool = False
    snapshot_timeout_ms: int = 5_000
    snapshot_hold_ms: int = 250

    def __post_init__(self) -> None:
        """Refuse what cannot work, in one line."""
        window = self.window_messages
        if not WINDOW_MIN <= window <= WINDOW_MAX or window & (window - 1):
            msg = f"window_messages is {window}, must be a power of two from {WINDOW_MIN} to {WINDOW_MAX}"
            raise ValueError(msg)
        if len(self.servers) > SERVERS_MAX:
            msg = f"{len(self.servers)} rerequest servers, at most {SERVERS_MAX} are possible"
            raise ValueError(msg)
        bounds = {
            "gap_wait_us": (0, 10_000_000), "gap_timeout_ms": (1, 600_000), "retries": (0, 100),
            "request_messages_max": (1, 1_000), "request_interval_us": (1, 1_000_000),
            "reply_timeout_ms": (1, 60_000), "snapshot_timeout_ms": (10, 600_000),
            "snapshot_hold_ms": (1, 60_000),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                msg = f"{name} is {getattr(self, name)}, must be {low} to {high}"
                raise ValueError(msg)


def table_sizes(settings: LiveSettings) -> dict[str, int]:
    """Return the bytes of each table of a live feed."""
    window = settings.window_messages
    return {
        "arbiter": ARBITER.size,
        "window": window * SLOT.size,
        "copies": 2 * window * COPY.size,
        "snapshot": ring_size(ROWS_CAPACITY, SNAPSHOT_ROW) if settings.snapshot else 0,
    }


class Live:
    """Own the ARBITER beside a FEED; reserve "feed.arbiter", "feed.window", "feed.copies", "feed.snapshot".

    feed: the FEED record, which learns where the ARBITER is.
    """

    def __init__(self, segment: Segment, feed: Any, settings: LiveSettings) -> None:
        sizes = table_sizes(settings)
        self.settings, self._feed = settings, feed
        self.addr = segment.allocate("feed.arbiter", sizes["arbiter"])
        self.record: Any = segment.array("feed.arbiter", ARBITER)[0]
        self.ring = (
            create_ring(segment, "feed.snapshot", ROWS_CAPACITY, SNAPSHOT_ROW) if settings.snapshot else 0
        )
        values = {
            "slots": segment.allocate("feed.window", sizes["window"]),
            "mask": settings.window_messages - 1,
            "copies": segment.allocate("feed.copies", sizes["copies"]),
            "copies_mask": 2 * settings.window_messages - 1,
            "ring": self.ring,
            "fd": -1,
            "servers": len(settings.servers),
            "gap_wait_ns": settings.gap_wait_us * NS_PER_US,
            "gap_timeout_ns": settings.gap_timeout_ms * NS_PER_MS,
            "request_max": settings.request_messages_max,
            "retries_max": settings.retries,
            "round_timeout_ns": settings.reply_timeout_ms * NS_PER_MS,
            "interval_ns": settings.request_interval_us * NS_PER_US,
            "snapshot_timeout_ns": settings.snapshot_timeout_ms * NS_PER_MS,
            "snapshot_hold_ns": settings.snapshot_hold_ms * NS_PER_MS,
        }
        for name, value in values.items():
            self.record[name] = value
        self._lines = self.record["lines"].view(LINE.dtype)
        servers = self.record["server_rows"].view(SERVER.dtype)
        for row, (host, port) in zip(servers, settings.servers, strict=False):
            row["address"] = np.frombuffer(socket_address(host, port), np.uint8)
        feed["arbiter"] = self.addr

    def use_socket(self, fd: int) -> None:
        """Send requests on this descriptor from now on; its owner hands the replies in as line 2."""
        self.record["fd"] = fd

    @property
    def phase(self) -> str:
        """What is being done about missing messages: live (none), waiting, rerequest or snapshot."""
        return PHASE_NAMES[int(self.record["phase"])]

    @property
    def conflict_seq(self) -> int:
        """First number of which two copies differ, 0 = none; trading must halt."""
        return int(self.record["conflict_seq"])

    @property
    def wanted(self) -> int:
        """Number of the snapshot that is wanted now, 0 = none."""
        number = int(self.record["wanted"])  # before the phase, which the kernel stores first
        waiting = int(self.record["phase"]) == PHASE_SNAPSHOT and int(self.record["due_ns"]) == 0
        return number if waiting else 0

    @property
    def session(self) -> bytes:
        """The ten bytes of the session that is followed."""
        high, low = int(self._feed["session_high"]), int(self._feed["session_low"])
        return high.to_bytes(8, "big", signed=True) + low.to_bytes(2, "big")

    def counters(self) -> dict[str, int]:
        """Return the counters of gaps, requests and snapshots by name."""
        return {name: int(self.record[name]) for name in LIVE_COUNTERS}

    def lines(self) -> dict[str, dict[str, int]]:
        """Return line -> counters of those lines that were heard."""
        return {
            LINE_NAMES[n]: {name: int(self._lines[n][name]) for name in LINE_COUNTERS}
            for n in range(LINES_MAX)
            if self._lines[n]["heard_ns"] or self._lines[n]["datagrams"]
        }

    def missing_now(self) -> int:
        """Return how many messages are missing at this moment."""
        return int(self.record["absent"])
