"""Packets -> ITCH messages: `open_packet` per packet, then `next_message` until it gives 0.

A message that next_message gives has a known type and exactly its length, so its fields may be read without
another check.  The others are counted and passed over; the rest of the packet stays usable.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final, NamedTuple

from nimbus.feed.arbiter import close_live, open_live
from nimbus.feed.gaps import next_kept
from nimbus.feed.itch import MESSAGES, size_of
from nimbus.feed.live import Live, LiveSettings
from nimbus.feed.moldudp64 import check_blocks, close_file, count_blocks, deliver, open_datagram, open_held
from nimbus.feed.packet import open_frame
from nimbus.feed.state import (
    AGREE_MAX,
    COUNTERS,
    FEED,
    FRAMING,
    HELD,
    MODE_FILE,
    MODE_NONE,
    REASONS,
    SUBSCRIPTION,
    SUBSCRIPTIONS_MAX,
    bump,
    refuse,
)
from nimbus.messages import LINK_ITCH_FILE, PACKET
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u16, load_u32, store_i64, u1, u2
from ringbuf.segment import Segment

__all__ = ["AGREE_DEFAULT", "Feed", "Subscription", "close_feed", "next_message", "open_packet"]

AGREE_DEFAULT: Final = 8
_P, _F = PACKET.at, FEED.at


@inlined
def _open_file_blocks(feed: int, packet: int) -> int:
    """Take the length-framed messages of a raw ITCH file; they are numbered from 1."""
    at, size = load_i64(packet + _P.frame_at), load_u32(packet + _P.size)
    if load_i64(feed + _F.mode) == MODE_NONE:
        store_i64(feed + _F.mode, MODE_FILE)
        store_i64(feed + _F.run, 1)
        store_i64(feed + _F.expected, 1)
    end, count, behind = at + size, 0, at
    for _block in range(size >> 1):
        if end - behind < 2:
            break
        behind += 2 + u2(behind)
        count += 1
    if count == 0 or behind != end or check_blocks(at, end, count) < 0:
        return refuse(feed, FRAMING)
    count_blocks(feed, at, count)
    bump(feed + _F.delivered, 1)
    return deliver(feed, at, count, load_i64(feed + _F.expected), 0)


@kernel
def open_packet(feed: int, packet: int) -> int:
    """Parse and sequence the PACKET at `packet`; set the cursor on the messages it brings.

    Returns OK, 0 when there is nothing to deliver (heartbeat, end of session), or a negative status: minus
    the place of the (counted) reason in state.REASONS.  The packet's bytes must stay where they are until
    next_message has given 0.
    """
    bump(feed + _F.frames, 1)
    store_i64(feed + _F.left, 0)
    store_i64(feed + _F.held_left, 0)
    store_i64(feed + _F.recv_ns, load_i64(packet + _P.recv_ns))
    if load_u16(packet + _P.link) == LINK_ITCH_FILE:
        return _open_file_blocks(feed, packet)
    status = open_frame(feed, packet)
    if status < 0:
        return status
    at, payload_size = load_i64(feed + _F.payload_at), load_i64(feed + _F.payload_size)
    if load_i64(feed + _F.arbiter) != 0:
        return open_live(feed, at, payload_size)
    return open_datagram(feed, at, payload_size)


@inlined
def next_message(feed: int) -> int:
    """Return the address of the next well-formed message and set FEED.seq; 0 = the packet is exhausted."""
    for _datagram in range(AGREE_MAX + 1):
        at, left = load_i64(feed + _F.at), load_i64(feed + _F.left)
        seq = load_i64(feed + _F.next_seq)
        while left > 0:
            size, message = u2(at), at + 2
            at = message + size
            left -= 1
            seq += 1
            if size > 0 and size_of(u1(message)) == size:
                store_i64(feed + _F.at, at)
                store_i64(feed + _F.left, left)
                store_i64(feed + _F.next_seq, seq)
                store_i64(feed + _F.seq, seq - 1)
                return message
        store_i64(feed + _F.left, 0)
        if load_i64(feed + _F.arbiter) != 0:
            return next_kept(feed)
        if open_held(feed) == 0:
            break
    return 0


@kernel
def close_feed(feed: int) -> int:
    """At the end of a capture, let go of what the feed holds back; call it until it gives 0.

    Returns OK when next_message has something to give, else 0.
    """
    if load_i64(feed + _F.arbiter) != 0:
        return close_live(feed)
    return close_file(feed)


class Subscription(NamedTuple):
    """A (group, port) of the feed and the line it carries; group None = any, port 0 = any."""

    group: str | None
    port: int
    line: int = 0


class Feed:
    """Own the FEED record: allocate, configure, read the counters."""

    def __init__(
        self,
        segment: Segment,
        *,
        subscriptions: Sequence[Subscription] = (),
        strict: bool = False,
        agree: int = AGREE_DEFAULT,
        start_at_one: bool = False,
        live: LiveSettings | None = None,
    ) -> None:
        """Reserve "feed" and "feed.held" in the segment, for a live feed also "feed.arbiter" and its tables.

        subscriptions: what to take, () = every UDP datagram; strict: refuse wrong checksums;
        agree: packets that must agree before a new run is believed; start_at_one: a new session is
        expected to begin with message 1, so that joining it later is a gap; live: None = a file, which cannot
        be asked again; else gaps hold the feed back until they are repaired or given up.
        """
        if not 1 <= agree <= AGREE_MAX:
            msg = f"agree is {agree}, must be 1 to {AGREE_MAX}"
            raise ValueError(msg)
        if len(subscriptions) > SUBSCRIPTIONS_MAX:
            msg = f"{len(subscriptions)} subscriptions, at most {SUBSCRIPTIONS_MAX} are possible"
            raise ValueError(msg)
        self.addr = segment.allocate("feed", FEED.size)
        self.record = segment.array("feed", FEED)[0]
        self.record["held_at"] = segment.allocate("feed.held", AGREE_MAX * HELD.size)
        self.record["agree"], self.record["strict"] = agree, strict
        self.record["start_at_one"] = start_at_one
        self.record["subscriptions"] = len(subscriptions)
        rows = self.record["subscription"].view(SUBSCRIPTION.dtype)
        for row, wanted in zip(rows, subscriptions, strict=False):
            high, low = _group_words(wanted.group)
            row["group_high"], row["group_low"], row["port"], row["line"] = (
                high,
                low,
                wanted.port,
                wanted.line,
            )
        self.live = None if live is None else Live(segment, self.record, live)

    @property
    def stale(self) -> bool:
        """True when messages are missing since the present run began."""
        return bool(self.record["stale"])

    @property
    def incomplete(self) -> bool:
        """True when the present run was joined after its first message."""
        return bool(self.record["incomplete"])

    @property
    def run(self) -> int:
        """Number of the present run; books start empty when it rises."""
        return int(self.record["run"])

    def counters(self) -> dict[str, int]:
        """Return every single-word counter by name."""
        return {name: int(self.record[name]) for name in COUNTERS}

    def refused(self) -> dict[str, int]:
        """Return the frames that were not delivered by reason, those above zero."""
        pairs = zip(REASONS, self.record["refused"].tolist(), strict=False)
        return {name: count for name, count in pairs if count}

    def messages_by_type(self) -> dict[str, int]:
        """Return the well-formed messages by type letter, before sequencing, those above zero."""
        types = self.record["types"]
        return {m.letter: int(types[m.code]) for m in MESSAGES if types[m.code]}

    def unknown_types(self) -> dict[str, int]:
        """Return the messages of a type outside the table by first byte."""
        return _by_letter(self.record["unknown"].tolist())

    def wrong_lengths(self) -> dict[str, int]:
        """Return the messages of a known type with another length by first byte."""
        return _by_letter(self.record["wrong"].tolist())

    def gaps(self) -> int:
        """Return how often a sequence number was above the expected one."""
        return int(self.record["gaps"])

    def warnings(self) -> list[str]:
        """Return one line for each kind of oddity seen."""
        counts, refused = self.counters(), self.refused()
        texts = {
            "snapped": "frames were cut by the capture",
            "fragment": "IP fragments were refused",
            "framing": "datagrams had message blocks that do not fit",
            "short_datagram": "datagrams were shorter than a MoldUDP64 header",
            "foreign": "datagrams belong to another session or protocol",
            "duplicate": "datagrams repeat what was seen",
            "ip_length": "frames disagree with their IP length",
            "udp_length": "datagrams disagree with their UDP length",
            "checksum": "frames had a wrong checksum and were refused",
        }
        lines = [f"{refused[reason]} {text}" for reason, text in texts.items() if reason in refused]
        if counts["gaps"]:
            lines.append(f"{counts['gaps']} gaps: {counts['missing']} messages are missing")
        noted = {
            "overlaps": "datagrams overlap the one before",
            "restarts": "restarts of a session: books were emptied",
            "unsequenced": "messages have no sequence number",
            "trailing": "datagrams have bytes behind the last message",
            "wrong_protocol": "runs of messages that do not fit the table: wrong protocol?",
        }
        lines += [f"{counts[name]} {text}" for name, text in noted.items() if counts[name]]
        for what, by_letter in (
            ("unknown type", self.unknown_types()),
            ("wrong length", self.wrong_lengths()),
        ):
            if by_letter:
                lines.append(f"{sum(by_letter.values())} messages of {what}: {by_letter}")
        if self.incomplete and not counts["unsequenced"]:
            lines.append("the capture begins in mid-session: books are incomplete")
        return lines


def _by_letter(counts: list[int]) -> dict[str, int]:
    return {
        chr(code) if chr(code).isascii() and chr(code).isprintable() else f"0x{code:02x}": count
        for code, count in enumerate(counts)
        if count
    }


def _group_words(group: str | None) -> tuple[int, int]:
    """Return a group's 16 bytes as two signed words, IPv4 as ::ffff:a.b.c.d; None = 0, 0."""
    if group is None:
        return 0, 0
    address = ipaddress.ip_address(group)
    mapped = address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed
    return int.from_bytes(mapped[:8], "big", signed=True), int.from_bytes(mapped[8:], "big", signed=True)
