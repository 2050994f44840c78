"""The slow twin of the feed: what a frame and a run of datagrams mean, in plain Python from the specs.

Sources: RFC 791, 768, 8200, 802.1Q; MoldUDP64 1.00; TotalView-ITCH 5.0 message lengths.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from captures import internet_checksum

SIZES = {
    "S": 12, "R": 39, "H": 25, "Y": 20, "L": 26, "V": 35, "W": 12, "K": 28, "J": 35, "h": 21,
    "A": 36, "F": 40, "E": 31, "C": 36, "X": 23, "D": 19, "U": 35, "P": 44,
    "Q": 40, "B": 19, "I": 50, "N": 20, "O": 48,
}  # fmt: skip
EXTENSIONS = {0, 43, 50, 51, 60, 135, 139, 140}


SILENCE = 10 * 10**9


def exchange_time(message: bytes) -> int:
    """Return the nanoseconds since midnight of an ITCH message."""
    return int.from_bytes(message[5:11], "big")


def number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def payload_of(link: str, data: bytes, notes: Counter[str]) -> tuple[str, bytes]:
    """Return ("", UDP payload) or (reason, b"")."""
    if link == "raw":
        if not data:
            return "short_frame", b""
        return ip_payload(0x86DD if data[0] >> 4 == 6 else 0x0800, data, notes)
    size, at = {"ethernet": (14, 12), "cooked1": (16, 14), "cooked2": (20, 0)}[link]
    if len(data) < size:
        return "short_frame", b""
    kind, rest = number(data[at : at + 2]), data[size:]
    for _ in range(2):
        if kind in {0x8100, 0x88A8}:
            if len(rest) < 4:
                return "short_frame", b""
            kind, rest = number(rest[2:4]), rest[4:]
    if kind in {0x8100, 0x88A8}:
        return "vlan_depth", b""
    return ip_payload(kind, rest, notes)


def ip_payload(kind: int, data: bytes, notes: Counter[str]) -> tuple[str, bytes]:
    if kind == 0x0800:
        if len(data) < 20:
            return "short_frame", b""
        head, total, protocol = (data[0] & 15) * 4, number(data[2:4]), data[9]
        if data[0] >> 4 != 4:
            return "ip_version", b""
        if head < 20:
            return "ip_header", b""
        if not head <= total <= len(data):
            return "ip_length", b""
        if number(data[6:8]) & 0x3FFF:
            return "fragment", b""
        if protocol != 17:
            return ("tcp" if protocol == 6 else "other_ip_protocol"), b""
        if internet_checksum(data[:head]) != 0:
            notes["ip_checksum_zero" if data[10:12] == b"\0\0" else "ip_checksum_bad"] += 1
        return udp_payload(data[head:total], data[12:20], notes)
    if kind == 0x86DD:
        if len(data) < 40:
            return "short_frame", b""
        if data[0] >> 4 != 6:
            return "ip_version", b""
        size, following = number(data[4:6]), data[6]
        if size > len(data) - 40:
            return "ip_length", b""
        if following == 44:
            return "fragment", b""
        if following in EXTENSIONS:
            return "ipv6_extension", b""
        if following != 17:
            return ("tcp" if following == 6 else "other_ip_protocol"), b""
        return udp_payload(data[40 : 40 + size], data[8:40], notes)
    return ("arp" if kind == 0x0806 else "other_ethertype"), b""


def udp_payload(data: bytes, addresses: bytes, notes: Counter[str]) -> tuple[str, bytes]:
    if len(data) < 8:
        return "short_frame", b""
    size = number(data[4:6])
    if not 8 <= size <= len(data):
        return "udp_length", b""
    if data[6:8] == b"\0\0":
        notes["udp_checksum_zero"] += 1
    elif internet_checksum(addresses + b"\0\x11" + data[4:6] + data[:size]) != 0:
        notes["udp_checksum_bad"] += 1
    return "", data[8:size]


@dataclass
class SlowFeed:
    """Sequence datagrams; `delivered` holds (sequence number, message) of well-formed messages in order."""

    agree: int = 8
    delivered: list[tuple[int, bytes]] = field(default_factory=list)
    types: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    session: bytes | None = None
    left: bytes | None = None
    expected: int = 0
    nameless: bool = False
    ended: bool = False
    stale: bool = False
    incomplete: bool = False
    run: int = 0
    held: list[tuple[bytes, int, list[bytes]]] = field(default_factory=list)
    now: int = 0  # receive time of the frame in hand
    heard: int = 0  # when the present session was last alive
    newest: int = -1  # newest exchange time delivered in this run

    def frame(self, link: str, data: bytes, recv_ns: int = 0) -> None:
        """Take one frame of a link kind."""
        self.now = recv_ns
        self.counts["frames"] += 1
        reason, payload = payload_of(link, data, self.counts)
        reason = reason or self.datagram(payload)
        if reason:
            self.refused[reason] += 1

    def datagram(self, data: bytes) -> str:
        """Take one datagram; return the reason it was refused for, or ""."""
        if len(data) < 20:
            return "short_datagram"
        session, first, count = data[:10], number(data[10:18]), number(data[18:20])
        if first > 1 << 62:
            return "foreign"
        if count in {0, 0xFFFF}:
            return self.control(session, first, count, len(data) == 20)
        messages, rest = [], data[20:]
        for _ in range(count):
            size = number(rest[:2])
            if len(rest) < 2 or len(rest) < 2 + size:
                return "framing" if session == self.session else "foreign"
            messages.append(rest[2 : 2 + size])
            rest = rest[2 + size :]
        good = [m for m in messages if m and SIZES.get(chr(m[0])) == len(m)]
        self.types.update(chr(m[0]) for m in good)
        self.counts["trailing"] += bool(rest)
        if session != self.session:
            if not good or session == self.left:
                return "foreign"
            if self.session is not None and not self.ended:
                return self.consider(session, first, messages, "foreign")
            self.begin(session, first)
        if self.nameless:
            first = self.expected
            self.counts["unsequenced"] += count
        elif first + count <= self.expected:
            is_new = bool(good) and exchange_time(good[0]) > self.newest
            if is_new or self.now - self.heard >= SILENCE:
                return self.consider(session, first, messages, "duplicate")
            self.heard = self.now
            return "duplicate"
        if first > self.expected:
            self.gap(first)
        self.counts["overlaps"] += first < self.expected
        self.held = []
        self.heard = self.now
        self.counts["delivered"] += 1
        self.deliver(first, messages)
        return ""

    def control(self, session: bytes, first: int, count: int, exact: bool) -> str:
        """Take a heartbeat or an end of session."""
        if session != self.session:
            waiting = self.session is None or (self.ended and session != self.left)
            if not waiting or not exact or not all(b == 0 or 0x20 <= b <= 0x7E for b in session):
                return "foreign"
            self.begin(session, first)
        elif not self.nameless:
            if first >= self.expected:
                self.held, self.heard = [], self.now
            if first > self.expected:
                self.gap(first)
        self.counts["trailing"] += not exact
        self.ended = self.ended or count == 0xFFFF
        self.counts["session_ends" if count else "heartbeats"] += 1
        return ""

    def gap(self, first: int) -> None:
        """Note that the numbers up to `first` are missing."""
        self.counts["gaps"] += 1
        self.counts["missing"] += first - self.expected
        self.expected, self.stale = first, True

    def begin(self, session: bytes, first: int) -> None:
        """Follow a session from number `first` with empty books."""
        restart = session == self.session
        self.counts["restarts" if restart else "sessions"] += 1
        if not restart:
            self.left, self.session = self.session, session
        self.nameless = session == bytes(10) and first == 0
        self.incomplete = self.nameless or first > 1
        self.stale = self.ended = False
        self.expected = 1 if self.nameless else first
        self.run += 1
        self.held, self.heard, self.newest = [], self.now, -1

    def consider(self, session: bytes, first: int, messages: list[bytes], reason: str) -> str:
        """Hold a datagram that may begin a new run; return the reason it is refused for meanwhile."""
        if self.held:
            before, number_before, messages_before = self.held[-1]
            if before != session or number_before + len(messages_before) != first:
                self.held = []
        self.held.append((session, first, messages))
        if len(self.held) < self.agree:
            return reason
        self.refused[reason] -= self.agree - 1
        self.believe()
        return ""

    def believe(self) -> None:
        """Begin the run that the held datagrams announced."""
        held = self.held
        self.begin(held[0][0], held[0][1])
        self.counts["delivered"] += len(held)
        for _, first, messages in held:
            self.counts["unsequenced"] += len(messages) * self.nameless
            self.deliver(self.expected if self.nameless else first, messages)

    def close(self) -> None:
        """Believe a new session at the end of a file when two datagrams announced it."""
        if len(self.held) >= 2 and self.held[0][0] != self.session:
            self.refused["foreign"] -= len(self.held)
            self.believe()

    def deliver(self, first: int, messages: list[bytes]) -> None:
        """Hand on the messages that are new."""
        good = [m for m in messages if m and SIZES.get(chr(m[0])) == len(m)]
        if good:
            self.newest = max(self.newest, exchange_time(good[-1]))
        for seq, m in enumerate(messages, first):
            if seq >= self.expected and m and SIZES.get(chr(m[0])) == len(m):
                self.delivered.append((seq, m))
        self.expected = max(self.expected, first + len(messages))
