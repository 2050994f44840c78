"""The generated day is a valid ITCH 5.0 day; checked by a plain reader and by a book we did not write."""

from __future__ import annotations

import collections
import datetime as dt
import json
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from nimbus.venue import generator
from nimbus.venue.generator import day

MESSAGES, SYMBOLS = 30_000, 6
LENGTHS = {  # TotalView-ITCH 5.0, sections 1.1 to 1.9: written from the specification, not from our table
    "S": 12, "R": 39, "H": 25, "Y": 20, "L": 26, "V": 35, "W": 12, "K": 28, "J": 35, "h": 21, "A": 36,
    "F": 40, "E": 31, "C": 36, "X": 23, "D": 19, "U": 35, "P": 44, "Q": 40, "B": 19, "I": 50, "N": 20,
    "O": 48,
}  # fmt: skip
NS = 1_000_000_000


class Packet(NamedTuple):
    """One packet of the capture, taken apart."""

    stamp_ns: int
    frame: bytes
    session: bytes
    seq: int
    count: int
    blocks: list[bytes]


def _sum16(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _packets(path: pathlib.Path) -> Iterator[Packet]:
    data = path.read_bytes()
    assert struct.unpack_from("<IHH", data) == (0xA1B23C4D, 2, 4)
    assert struct.unpack_from("<I", data, 20) == (1,)
    at = 24
    while at < len(data):
        seconds, fraction, size, wire_size = struct.unpack_from("<IIII", data, at)
        assert size == wire_size
        assert fraction < NS
        frame = data[at + 16 : at + 16 + size]
        at += 16 + size
        assert frame[12:15] == b"\x08\x00\x45"
        assert frame[23] == 17
        assert struct.unpack_from(">H", frame, 16)[0] == size - 14
        assert struct.unpack_from(">H", frame, 38)[0] == size - 34
        session, seq, count = struct.unpack_from(">10sQH", frame, 42)
        blocks, inside = [], 62
        for _ in range(0 if count == 0xFFFF else count):
            (length,) = struct.unpack_from(">H", frame, inside)
            blocks.append(frame[inside + 2 : inside + 2 + length])
            assert len(blocks[-1]) == length
            inside += 2 + length
        assert inside == size
        yield Packet(seconds * NS + fraction, frame, session, seq, count, blocks)


class SlowBook:
    """Orders by reference; refuses what a valid day never does."""

    def __init__(self) -> None:
        self.orders: dict[int, list[Any]] = {}
        self.sides: dict[tuple[int, str], dict[int, dict[int, None]]] = collections.defaultdict(dict)
        self.last_ref = 0
        self.halted: set[int] = set()

    def _queue(self, ref: int) -> dict[int, None]:
        locate, side, px, _ = self.orders[ref]
        return self.sides[locate, side][px]

    def best(self, locate: int, side: str) -> int | None:
        """Return the best price of a side."""
        prices = self.sides[locate, side]
        return None if not prices else max(prices) if side == "B" else min(prices)

    def add(self, locate: int, ref: int, side: str, qty: int, px: int) -> None:
        """Put an order at the end of its queue."""
        assert ref > self.last_ref
        assert min(qty, px) > 0
        assert px % 100 == 0
        assert side in "BS"
        self.last_ref = ref
        self.orders[ref] = [locate, side, px, qty]
        self.sides[locate, side].setdefault(px, {})[ref] = None

    def remove(self, locate: int, ref: int) -> list[Any]:
        """Take an order out."""
        order = self.orders[ref]
        assert order[0] == locate
        queue = self._queue(ref)
        del queue[ref], self.orders[ref]
        if not queue:
            del self.sides[locate, order[1]][order[2]]
        return order

    def execute(self, locate: int, ref: int, qty: int) -> None:
        """Fill the front of the best level."""
        _, side, px, left = self.orders[ref]
        assert locate not in self.halted
        assert px == self.best(locate, side)
        assert next(iter(self._queue(ref))) == ref
        assert 0 < qty <= left
        if qty == left:
            self.remove(locate, ref)
        else:
            self.orders[ref][3] -= qty

    def apply(self, message: bytes) -> None:
        """Apply one message."""
        kind, locate = chr(message[0]), int.from_bytes(message[1:3], "big")
        if kind in "AF":
            ref, side, qty, px = struct.unpack_from(">QcI8xI", message, 11)
            self.add(locate, ref, side.decode(), qty, px)
        elif kind in "EC":
            self.execute(locate, *struct.unpack_from(">QI", message, 11))
        elif kind == "X":
            ref, qty = struct.unpack_from(">QI", message, 11)
            assert 0 < qty < self.orders[ref][3]
            self.orders[ref][3] -= qty
        elif kind == "D":
            self.remove(locate, struct.unpack_from(">Q", message, 11)[0])
        elif kind == "U":
            old, ref, qty, px = struct.unpack_from(">QQII", message, 11)
            self.add(locate, ref, self.remove(locate, old)[1], qty, px)
        elif kind == "H":
            self.halted.discard(locate) if message[19:20] == b"T" else self.halted.add(locate)
        elif kind in "PQ":
            assert kind == "Q" or locate not in self.halted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("day") / "day.pcap"
    return path, generator.generate(path, 7, MESSAGES, SYMBOLS)


@pytest.fixture(scope="module")
def packets(made: tuple[pathlib.Path, dict[str, Any]]) -> list[Packet]:
    return list(_packets(made[0]))


@pytest.fixture(scope="module")
def messages(packets: list[Packet]) -> list[bytes]:
    return [block for packet in packets for block in packet.blocks]


def test_frames_carry_right_checksums_and_rising_stamps(packets: list[Packet]) -> None:
    last_ns = 0
    for packet in packets:
        ip, udp = packet.frame[14:34], packet.frame[34:]
        assert _sum16(ip) == 0xFFFF
        pseudo = ip[12:20] + struct.pack(">BBH", 0, 17, len(udp))
        assert _sum16(pseudo + udp + bytes(len(udp) % 2)) == 0xFFFF
        assert packet.stamp_ns > last_ns
        last_ns = packet.stamp_ns


def test_sequence_numbers_are_dense_with_heartbeats_and_an_end(packets: list[Packet]) -> None:
    seq = 1
    for packet in packets:
        assert packet.seq == seq
        assert packet.session == b"0000000007"
        seq += len(packet.blocks)
    assert [p.count for p in packets].index(0xFFFF) == len(packets) - 1
    assert any(p.count == 0 for p in packets)
    assert max(p.count for p in packets) > 3
    stamps = [p.stamp_ns for p in packets]
    assert max(np.diff(stamps)) < 1.1 * NS


def test_every_message_has_its_length_and_every_type_occurs(
    made: tuple[pathlib.Path, dict[str, Any]], messages: list[bytes]
) -> None:
    counts = collections.Counter(chr(m[0]) for m in messages)
    assert all(len(m) == LENGTHS[chr(m[0])] for m in messages)
    assert set(counts) == set(LENGTHS)
    assert counts == made[1]["messages"]
    assert len(messages) == MESSAGES


def test_exchange_time_never_falls_and_the_capture_comes_after_it(packets: list[Packet]) -> None:
    last_ns = 0
    for packet in packets:
        for message in packet.blocks:
            ts_ns = int.from_bytes(message[5:11], "big")
            assert ts_ns >= last_ns
            last_ns = ts_ns
            assert 0 < packet.stamp_ns - day.MIDNIGHT_NS - ts_ns < 1_000_000


def test_system_events_stand_in_order(messages: list[bytes]) -> None:
    assert b"".join(m[11:12] for m in messages if m[:1] == b"S") == b"OSQMEC"
    kinds = [chr(m[0]) for m in messages]
    listed = [m[11:19] for m in messages if m[:1] == b"R"]
    assert len(set(listed)) == SYMBOLS
    assert max(i for i, k in enumerate(kinds) if k == "R") < kinds.index("A")
    actions = [(m[1:3], m[19:20]) for m in messages if m[:1] == b"H"]
    halted = next(locate for locate, state in actions if state == b"P")
    assert b"".join(state for locate, state in actions if locate == halted) == b"TPQT"


def test_alphanumeric_fields_are_padded_with_spaces(messages: list[bytes]) -> None:
    fields = {
        "R": [(11, 19), (27, 29)],
        "H": [(11, 19), (20, 25)],
        "A": [(24, 32)],
        "L": [(11, 23)],
        "Q": [(19, 27)],
    }
    for message in messages:
        for start, end in fields.get(chr(message[0]), []):
            assert all(32 <= byte < 127 for byte in message[start:end]), message


def test_a_slow_book_accepts_every_message_and_is_never_crossed(messages: list[bytes]) -> None:
    book, opened, spreads = SlowBook(), False, []
    for message in messages:
        book.apply(message)
        opened |= message[:1] + message[11:12] == b"SQ"
        locate = int.from_bytes(message[1:3], "big")
        bid, ask = book.best(locate, "B"), book.best(locate, "S")
        assert bid is None or ask is None or bid < ask
        if opened and message[:1] in b"AEDUX":
            assert bid is not None
            assert ask is not None
            spreads.append((ask - bid) // 100)
    assert np.mean(np.array(spreads) <= 5) > 0.9
    assert len(book.orders) >= 30 * SYMBOLS


def test_the_mix_is_that_of_a_real_day(messages: list[bytes]) -> None:
    counts = collections.Counter(chr(m[0]) for m in messages)
    wanted = {"A": 40, "F": 3, "D": 41, "U": 7, "E": 6, "C": 0.5, "X": 1.5, "P": 1}
    for kind, share in wanted.items():
        assert counts[kind] / len(messages) * 100 == pytest.approx(share, rel=0.35, abs=0.2), kind
    by_symbol = collections.Counter(m[1:3] for m in messages if m[:1] in b"ADEU")
    assert by_symbol[b"\0\1"] > 2 * by_symbol[SYMBOLS.to_bytes(2, "big")]


def test_itch_book_reads_the_day_and_finds_nothing_wrong(
    messages: list[bytes], tmp_path: pathlib.Path
) -> None:
    itch_book = pytest.importorskip("itch_book")
    path = tmp_path / "day.itch"
    path.write_bytes(b"".join(struct.pack(">H", len(m)) + m for m in messages))
    with itch_book.Feed(str(path), date=day.DATE, price_type="fixed") as feed:
        tables = list(feed.batches(("bbo", "symbols", "halts", "system_events")))
    bbo = {
        name: np.concatenate([t.bbo[name] for t in tables]) for name in ("seq", "locate", "bid_px", "ask_px")
    }
    assert feed.stats["messages"] == MESSAGES
    assert all(feed.stats[name] == 0 for name in feed.stats if "unknown" in name or "error" in name)
    both = (bbo["bid_px"] != 0) & (bbo["ask_px"] != 0)
    assert both.sum() > MESSAGES // 10
    assert (bbo["bid_px"][both] < bbo["ask_px"][both]).all()

    book, rows = SlowBook(), []
    last: dict[int, tuple[Any, ...]] = {}
    for message in messages:
        book.apply(message)
        locate = int.from_bytes(message[1:3], "big")
        top = (book.best(locate, "B") or 0, book.best(locate, "S") or 0)
        if top != last.get(locate, (0, 0)):
            last[locate] = top
            rows.append((locate, *top))
    theirs, seen = [], dict.fromkeys(range(1, SYMBOLS + 1), (0, 0))
    for locate, bid, ask in zip(
        bbo["locate"].tolist(), bbo["bid_px"].tolist(), bbo["ask_px"].tolist(), strict=True
    ):
        if seen[locate] != (bid, ask):
            seen[locate] = (bid, ask)
            theirs.append((locate, bid, ask))
    assert theirs == rows


def test_news_lies_beside_the_capture_and_inside_the_session(
    made: tuple[pathlib.Path, dict[str, Any]],
) -> None:
    path, summary = made
    lines = path.with_suffix(".news.jsonl").read_text().splitlines()
    assert len(lines) == summary["news_items"] > SYMBOLS
    last = ""
    for number, line in enumerate(lines, 1):
        item = json.loads(line)
        assert list(item) == [
            "source", "id", "action", "revision_of", "t_source", "t_received", "symbols", "headline", "body",
            "url", "lang",
        ]  # fmt: skip
        assert item["id"] == f"g{number}"
        source, received = (dt.datetime.fromisoformat(item[k]) for k in ("t_source", "t_received"))
        assert source < received
        assert received.date() == day.DATE
        assert item["t_received"] >= last
        last = item["t_received"]


def test_a_seed_gives_the_same_bytes_in_another_process(made: tuple[pathlib.Path, dict[str, Any]]) -> None:
    path = made[0]
    again = path.with_name("again.pcap")
    code = f"from nimbus.venue.generator import generate; generate({str(again)!r}, 7, {MESSAGES}, {SYMBOLS})"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "5"})
    assert again.read_bytes() == path.read_bytes()
    assert again.with_suffix(".news.jsonl").read_bytes() == path.with_suffix(".news.jsonl").read_bytes()


def test_another_seed_gives_another_day(made: tuple[pathlib.Path, dict[str, Any]]) -> None:
    other = made[0].with_name("other.pcap")
    generator.generate(other, 8, MESSAGES, SYMBOLS)
    assert other.read_bytes() != made[0].read_bytes()


@pytest.mark.parametrize(("count", "symbols"), [(2_000, 8), (108, 1), (900, 100), (5_000, 600)])
def test_small_days_are_valid_and_exact(tmp_path: pathlib.Path, count: int, symbols: int) -> None:
    done = []
    path = tmp_path / "small.pcap"
    summary = generator.generate(path, 3, count, symbols, done.append)
    book, kinds = SlowBook(), set()
    for packet in _packets(path):
        for message in packet.blocks:
            book.apply(message)
            kinds.add(chr(message[0]))
    assert sum(summary["messages"].values()) == sum(done) == count
    assert summary["span_s"] > 600
    assert count < 2_000 or kinds == set(LENGTHS)


@pytest.mark.parametrize(("count", "symbols"), [(1_000, 0), (1_000_000, 8_193), (107, 1)])
def test_numbers_that_make_no_day_are_refused(tmp_path: pathlib.Path, count: int, symbols: int) -> None:
    with pytest.raises(ValueError, match="symbols"):
        generator.generate(tmp_path / "no.pcap", 1, count, symbols)
    assert not list(tmp_path.iterdir())


def test_the_generator_needs_no_torch() -> None:
    code = "import sys, nimbus.venue.generator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
