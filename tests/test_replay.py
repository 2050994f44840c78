"""A day through the whole pipeline: what must hold between everything it leaves behind."""

from __future__ import annotations

import gzip
import html.parser
import json
import pathlib
import shutil
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
import zstandard
from captures import blocks, frame, mold, mold_messages, pcap
from reference.book import ReferenceBooks
from replays import positions_of, realized_by_average_cost, replay

from daemon.main import main
from nimbus.feed.capture import CHUNK_SIZE
from nimbus.messages import INTENT_NEW
from nimbus.venue.generator import generate

CENT = Fraction(1, 100)
BUY_SIDE, SELL_SIDE = "B", "S"


@pytest.fixture(scope="module")
def small_day(tmp_path_factory) -> pathlib.Path:
    """Another day: other seed, shorter."""
    path = tmp_path_factory.mktemp("small") / "small.pcap"
    generate(path, 5, 12_000, 4)
    return path


@pytest.fixture(scope="module")
def small_replay(small_day, tmp_path_factory):
    return replay(small_day, tmp_path_factory.mktemp("small-out"))


# The same again.


def test_a_second_replay_gives_the_same_journal_books_and_results(day, first_replay, tmp_path):
    again = replay(day, tmp_path)
    left, right = first_replay.summary, again.summary
    for name in ("elapsed_s", "throughput_msgs_per_s", "latency_ns"):
        del left[name], right[name]
    assert left == right
    assert first_replay.fills == again.fills
    assert first_replay.orders == again.orders


def test_the_decisions_of_a_second_replay_are_the_same_one_by_one(small_day, small_replay, tmp_path):
    again = replay(small_day, tmp_path)
    rows = small_replay.records("DECISION")
    assert len(rows) > 1_000
    assert json.dumps(again.records("DECISION")) == json.dumps(rows)  # as text: NaN is not itself


def test_another_seed_gives_another_journal_and_the_same_books(small_day, small_replay, tmp_path):
    other = replay(small_day, tmp_path / "seed", '[journal]\ndecisions = "all"\n')
    assert other.summary["journal_hash"] == small_replay.summary["journal_hash"]
    (tmp_path / "two.toml").write_text("seed = 2\n" + (tmp_path / "seed/replay.toml").read_text())
    words = ["--config", str(tmp_path / "two.toml"), "--out", str(tmp_path / "two"), "--json"]
    assert main(["replay", str(small_day), *words]) == 0
    two = json.loads((tmp_path / "two/summary.json").read_text())
    assert two["seed"] == 2
    assert two["journal_hash"] != small_replay.summary["journal_hash"]
    assert two["config_hash"] != small_replay.summary["config_hash"]
    assert two["book_state_hash"] == small_replay.summary["book_state_hash"]


def test_another_day_gives_another_journal(first_replay, small_replay):
    for name in ("journal_hash", "book_state_hash", "position_hash"):
        assert first_replay.summary[name] != small_replay.summary[name]


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_a_packed_capture_gives_the_same_journal(packed, small_day, tmp_path):
    plain = small_day.read_bytes()
    path = tmp_path / f"small.pcap.{packed}"
    path.write_bytes(gzip.compress(plain, 1) if packed == "gz" else zstandard.compress(plain, 1))
    shutil.copy(small_day.with_suffix(".news.jsonl"), tmp_path / "small.news.jsonl")
    text = f'[news]\nfile = "{tmp_path / "small.news.jsonl"}"\n'
    unpacked = replay(small_day, tmp_path / "plain", text).summary
    assert replay(path, tmp_path / "out", text).summary["journal_hash"] == unpacked["journal_hash"]


@pytest.fixture(scope="module")
def long_day(tmp_path_factory) -> pathlib.Path:
    """Return a day of several chunks of decompressed data."""
    path = tmp_path_factory.mktemp("long") / "long.pcap"
    generate(path, 8, 160_000, 6)
    assert path.stat().st_size > 2 * CHUNK_SIZE
    return path


@pytest.fixture(scope="module")
def long_replay(long_day, tmp_path_factory):
    return replay(long_day, tmp_path_factory.mktemp("long-out"))


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_a_packed_capture_of_many_chunks_gives_the_same_books_and_journal(
    packed, long_day, long_replay, tmp_path
):
    plain = long_day.read_bytes()
    path = tmp_path / f"long.pcap.{packed}"
    path.write_bytes(gzip.compress(plain, 1) if packed == "gz" else zstandard.compress(plain, 1))
    shutil.copy(long_day.with_suffix(".news.jsonl"), tmp_path / "long.news.jsonl")
    found, wanted = replay(path, tmp_path / "out").summary, long_replay.summary
    assert wanted["orders"] > 100
    names = ("book_state_hash", "position_hash", "journal_hash", "journal_records", "messages", "packets")
    assert {name: found[name] for name in names} == {name: wanted[name] for name in names}


def test_a_packed_capture_finds_the_news_beside_it(small_day, small_replay, tmp_path):
    path = tmp_path / "small.pcap.gz"
    path.write_bytes(gzip.compress(small_day.read_bytes(), 1))
    shutil.copy(small_day.with_suffix(".news.jsonl"), tmp_path / "small.news.jsonl")
    assert replay(path, tmp_path / "out").summary["journal_hash"] == small_replay.summary["journal_hash"]


def test_pacing_changes_when_things_happen_and_nothing_else(small_day, small_replay, tmp_path):
    paced = replay(small_day, tmp_path, "", "--speed", "2000x").summary
    assert paced["journal_hash"] == small_replay.summary["journal_hash"]


def test_pacing_keeps_to_the_recorded_time(small_day, tmp_path):
    """The recorded span over the speed is a lower bound of the time it takes, on any machine."""
    span_s = _span_ns(small_day) / 1e9
    assert replay(small_day, tmp_path, "", "--speed", "200x").summary["elapsed_s"] >= span_s / 200


def _span_ns(capture: pathlib.Path) -> int:
    """Return the time between the first and the last packet of a little-endian ns pcap."""
    data, at, stamps = capture.read_bytes(), 24, []
    while at < len(data):
        seconds, fraction, size = (int.from_bytes(data[at + k : at + k + 4], "little") for k in (0, 4, 8))
        stamps.append(seconds * 10**9 + fraction)
        at += 16 + size
    return stamps[-1] - stamps[0]


# Orders, fills, positions, money.


def test_positions_are_the_signed_sum_of_the_fills(first_replay):
    held = {name: row["qty"] for name, row in first_replay.summary["positions"].items()}
    assert len(first_replay.fills) > 50
    assert held == positions_of(first_replay.fills)
    assert len([qty for qty in held.values() if qty]) >= 2


def test_realized_profit_is_that_of_average_cost_to_the_cent(first_replay):
    rows, exact = first_replay.summary["positions"], realized_by_average_cost(first_replay.fills)
    assert set(rows) == set(exact)
    assert any(exact.values())
    for name, row in rows.items():
        assert abs(Fraction(str(row["realized_pnl"])) - exact[name]) < CENT / 2, name
    total = Fraction(str(first_replay.summary["pnl"]["realized"]))
    assert abs(total - sum(exact.values())) < CENT / 2


def test_realized_and_unrealized_profit_are_cash_plus_the_value_of_what_is_held(first_replay):
    cash: dict[str, Fraction] = defaultdict(Fraction)
    for fill in first_replay.fills:
        sign = -1 if fill["side"] == BUY_SIDE else 1
        cash[fill["symbol"]] += sign * int(fill["qty"]) * Fraction(int(fill["px_1e4"]), 10_000)
    for name, row in first_replay.summary["positions"].items():
        worth = cash[name] + row["qty"] * Fraction(str(row["mark_px"]))
        told = Fraction(str(row["realized_pnl"])) + Fraction(str(row["unrealized_pnl"]))
        assert abs(worth - told) < CENT / 2, name


def test_every_fill_has_its_order_and_never_a_worse_price(first_replay):
    orders = {row["order"]: row for row in first_replay.orders}
    assert len(orders) == len(first_replay.orders) == first_replay.summary["orders"]
    filled: Counter[str] = Counter()
    cost: Counter[str] = Counter()
    for fill in first_replay.fills:
        order = orders[fill["order"]]
        assert (order["symbol"], order["side"]) == (fill["symbol"], fill["side"])
        assert order["decision"] == fill["decision"]
        better = int(order["px"]) - int(fill["px_1e4"])
        assert better >= 0 if fill["side"] == BUY_SIDE else better <= 0
        assert int(fill["ts_ns"]) > int(order["sent_ns"])
        filled[fill["order"]] += int(fill["qty"])
        cost[fill["order"]] += int(fill["qty"]) * int(fill["px_1e4"])
    for number, order in orders.items():
        assert int(order["cum_qty"]) == filled[number] <= int(order["qty"])
        assert int(order["cost"]) == cost[number]


def test_no_order_is_open_or_in_doubt_when_the_replay_is_over(first_replay):
    states = Counter(order["status"] for order in first_replay.orders)
    assert set(states) <= {"filled", "canceled", "rejected"}
    assert states["filled"]
    assert states["canceled"]
    assert {order["leaves_qty"] for order in first_replay.orders} == {"0"}


def test_the_position_told_with_each_fill_is_the_running_sum(first_replay):
    held: Counter[str] = Counter()
    for fill in first_replay.fills:
        held[fill["symbol"]] += int(fill["qty"]) * (1 if fill["side"] == BUY_SIDE else -1)
        assert int(fill["position_qty"]) == held[fill["symbol"]]


def test_the_venue_says_the_same_as_the_positions(first_replay):
    """The raw ExecutionReport bytes that the venue sent, read by splitting text, are the other ledger."""
    ledger: Counter[str] = Counter()
    trades = 0
    for raw in _reports(first_replay):
        if raw.get("150") == "F":
            ledger[raw["55"].strip()] += int(raw["32"]) * (1 if raw["54"] == "1" else -1)
            trades += 1
    assert trades == len(first_replay.fills)
    assert {name: qty for name, qty in ledger.items() if qty} == {
        name: row["qty"] for name, row in first_replay.summary["positions"].items() if row["qty"]
    }


def _reports(outcome):
    """Yield tag -> value of each message that came from the venue, from the journal's raw bytes."""
    from nimbus.journal.show import entries
    from nimbus.journal.types import RecordType
    from nimbus.orders.journal_records import EXECUTION

    for entry in entries(outcome.folder / "journal", [RecordType.EXECUTION]):
        text = entry.payload[EXECUTION.size :].rstrip(b"\0").decode("ascii")
        yield dict(part.split("=", 1) for part in text.split("\x01") if part)


def test_cl_ord_ids_are_unique_for_orders_and_cancels(first_replay):
    orders = [row["cl_ord_id"] for row in first_replay.orders]
    reports = list(_reports(first_replay))
    executions = [raw["17"] for raw in reports if raw["35"] == "8"]
    assert len(set(orders)) == len(orders) > 100
    assert {len(name) for name in orders} == {16}
    assert len(set(executions)) == len(executions) > len(orders)
    assert {raw.get("41", raw["11"]) for raw in reports} == set(orders)


# Decisions.


def test_no_order_is_decided_on_a_book_that_is_not_good(first_replay):
    decisions = first_replay.records("DECISION")
    entered = [row for row in decisions if row["action"] == INTENT_NEW]
    assert len(entered) > 100
    assert {row["status"] for row in entered} == {0}
    assert {row["state"] for row in entered} == {ord("T")}
    assert any(row["status"] for row in decisions)  # there were books that were not good


def test_every_order_comes_from_one_decision_and_carries_its_numbers(first_replay):
    entered = {
        row["decision"]: row for row in first_replay.records("DECISION") if row["action"] == INTENT_NEW
    }
    sent = first_replay.records("ORDER_OUT")
    assert {row["decision"] for row in sent} == {int(row["decision"]) for row in first_replay.orders}
    assert len(sent) == len(first_replay.orders)
    for row in sent:
        decision = entered.pop(row["decision"])
        assert [row[n] for n in ("px", "qty", "side", "cause_seq", "locate")] == [
            decision[n] for n in ("px", "qty", "side", "cause_seq", "locate")
        ]
    assert len(entered) == len(first_replay.records("DENIAL"))


def test_the_tags_of_the_contradiction_engine_occur_and_add_up(first_replay):
    tags = first_replay.summary["decisions"]
    assert tags["overhype"] > 100
    assert tags["underhype"] > 100
    counted = Counter(row["tag"] for row in first_replay.records("DECISION"))
    assert counted == {0: tags["none"], 1: tags["overhype"], 2: tags["underhype"]}
    assert sum(first_replay.summary["decision_reasons"].values()) == sum(tags.values())


def test_without_news_nothing_contradicts_and_decisions_differ(small_day, small_replay, tmp_path):
    alone = tmp_path / "alone.pcap"
    shutil.copy(small_day, alone)
    quiet = replay(alone, tmp_path / "out").summary
    assert small_replay.summary["news_items"] > 0
    assert quiet["news_items"] == 0
    assert (quiet["decisions"]["overhype"], quiet["decisions"]["underhype"]) == (0, 0)
    assert quiet["decisions"] != small_replay.summary["decisions"]
    assert quiet["book_state_hash"] == small_replay.summary["book_state_hash"]
    assert quiet["journal_hash"] != small_replay.summary["journal_hash"]


def test_news_reach_a_decision_no_earlier_than_they_were_received(small_replay, small_day):
    lines = [json.loads(line) for line in small_day.with_suffix(".news.jsonl").read_text().splitlines()]
    assert small_replay.summary["news_items"] <= len(lines)
    for row in small_replay.records("NEWS"):
        assert row["received_ns"] <= row["wall_ns"]


def test_with_the_model_off_the_books_are_the_same_and_nothing_is_ordered(small_day, small_replay, tmp_path):
    config = tmp_path / "off.toml"
    config.write_text('[model]\nkind = "off"\n')
    words = ["--config", str(config), "--out", str(tmp_path), "--json"]
    assert main(["replay", str(small_day), *words]) == 0
    off = json.loads((tmp_path / "summary.json").read_text())
    assert off["model"]["id"] == "off"
    assert (off["orders"], off["fills"], off["positions"]) == (0, 0, {})
    assert off["book_state_hash"] == small_replay.summary["book_state_hash"]
    assert off["latency_ns"]["inference"]["count"] == 0


def test_the_books_are_those_of_the_slow_book_and_each_decision_saw_its_best_prices(small_day, small_replay):
    """The whole day through the specification in tests/reference, joined on the sequence number."""
    slow = ReferenceBooks(1_024, 65_536, 16_384)
    wanted = {row["cause_seq"]: row for row in small_replay.records("DECISION") if row["book_update"]}
    checked = 0
    for seq, message in mold_messages(small_day.read_bytes()):
        slow.apply(message, seq)
        row = wanted.get(seq)
        if row is None or not row["px"]:
            continue
        best = {side: slow.levels(row["locate"], side)[0][0] for side in (BUY_SIDE, SELL_SIDE)}
        assert row["px"] in best.values(), seq
        checked += 1
    assert checked > 50
    assert f"{slow.state_hash() & (2**64 - 1):016x}" == small_replay.summary["book_state_hash"]


# What is written.


def test_the_journal_holds_and_its_hash_is_the_one_in_the_summary(first_replay, capsys):
    assert main(["journal", "verify", str(first_replay.folder / "journal"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["journal_hash"] == first_replay.summary["journal_hash"]
    assert found["records"] == first_replay.summary["journal_records"]
    (end,) = first_replay.records("RUN_END")
    summary = first_replay.summary
    assert [end[n] for n in ("orders", "fills", "packets")] == [
        summary[n] for n in ("orders", "fills", "packets")
    ]
    assert end["messages"] == sum(summary["messages"].values())
    assert end["refused"] == 0
    for name in ("book_state_hash", "position_hash"):
        assert f"{end[name] & (2**64 - 1):016x}" == summary[name]
        assert end[name] != 0


def test_the_limits_in_force_stand_in_the_journal_before_the_first_order(first_replay):
    (limits,) = first_replay.records("LIMITS")
    assert (limits["version"], limits["qty_max"], limits["collar_bp"]) == (1, 1_000, 500)
    sent = first_replay.records("ORDER_OUT")
    assert {row["limits_version"] for row in sent} == {1}
    assert limits["record"] < min(row["record"] for row in sent)
    assert first_replay.records("ALARM") == []


def test_the_summary_has_everything_that_others_read(first_replay):
    summary = first_replay.summary
    wanted = (
        "capture packets messages symbols gaps refused book_state_hash decisions orders fills rejects"
        " positions pnl journal_hash model latency_ns throughput_msgs_per_s seed config_hash"
    )
    assert set(wanted.split()) <= set(summary)
    assert {"id", "trained_on"} <= set(summary["model"])
    for stage, row in summary["latency_ns"].items():
        assert {"p50", "p99", "p99.9", "max"} <= set(row), stage
        assert row["p50"] <= row["p99"] <= row["p99.9"] <= row["max"]
        assert row["count"] > 0, stage
    assert (summary["gaps"], summary["refused"], summary["truncated"]) == (0, {}, False)


def test_a_wider_journal_ring_or_smaller_segments_change_nothing(small_day, small_replay, tmp_path):
    small = replay(small_day, tmp_path / "ring", "[journal]\nring_records = 1024\nsegment_mib = 1\n")
    assert len(list((small.folder / "journal").glob("*.journal"))) > 1
    for name in ("DECISION", "FILL", "ORDER_OUT"):
        ours, theirs = ([_content(r) for r in o.records(name)] for o in (small, small_replay))
        assert ours == theirs


def _content(row):
    """Return a journal record as text without its number in the journal."""
    return json.dumps({key: value for key, value in row.items() if key != "record"})


class _Page(html.parser.HTMLParser):
    """Collects what a page would fetch, and whether its elements are closed."""

    VOID = frozenset({"meta", "link", "img", "br", "line", "polyline"})

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.faults, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.fetched += [values[n] for n in ("src", "href", "srcset", "data", "xlink:href") if n in values]
        if tag in {"script", "iframe", "object", "embed", "link"}:
            self.faults.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.VOID or attrs

    def handle_endtag(self, tag):
        if tag not in self.VOID and self.open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_file_that_fetches_nothing(first_replay):
    text = (first_replay.folder / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    page.close()
    assert (page.open, page.fetched, page.faults) == ([], [], [])
    assert not [word for word in ("http:", "https:", "url(", "@import", "//cdn") if word in text]
    for name in ("journal_hash", "book_state_hash", "config_hash"):
        assert first_replay.summary[name] in page.text
    assert first_replay.summary["model"]["id"] in page.text
    assert "Paper trading" in page.text


def test_a_name_that_looks_like_markup_stays_text(small_day, tmp_path):
    hostile = tmp_path / "<img src=x>&.pcap"
    hostile.write_bytes(small_day.read_bytes()[:200_000])
    page = _Page()
    page.feed((replay(hostile, tmp_path / "out").folder / "report.html").read_text(encoding="utf-8"))
    assert page.fetched == []
    assert "<img src=x>&" in page.text


# Captures that are odd.


def test_a_capture_cut_in_its_last_record_is_used_to_its_end(small_day, tmp_path, capsys):
    data = small_day.read_bytes()
    whole, cut = tmp_path / "whole.pcap", tmp_path / "cut.pcap"
    end = _record_start(data, len(data) * 2 // 3)
    whole.write_bytes(data[:end])
    cut.write_bytes(data[: end + 25])
    clean = replay(whole, tmp_path / "whole").summary
    capsys.readouterr()
    summary = replay(cut, tmp_path / "cut").summary
    warned = capsys.readouterr().err
    assert (clean["truncated"], summary["truncated"]) == (False, True)
    assert (clean["warnings"], len(summary["warnings"])) == ([], 1)
    assert f"cut at byte {end}" in warned
    assert summary["journal_hash"] == clean["journal_hash"]


def test_a_session_that_begins_in_the_last_datagrams_is_traded_and_starts_from_empty_books(
    small_day, tmp_path, capsys
):
    """Too few datagrams to be believed on the way, but nothing can contradict them at the end of the file."""
    messages = [message for _, message in mold_messages(small_day.read_bytes())]
    opening, start = 1_767_600_000 * 10**9, 600
    groups = [messages[at : at + 4] for at in range(0, 3_000, 4)]
    early = [(opening + n, frame(mold(b"FIRST     ", 1 + 4 * n, g))) for n, g in enumerate(groups[:start])]
    opened = [m for m in messages[:400] if m[:1] in b"RHS"]
    adds = [m for m in messages if m[:1] in {b"A", b"F"}]
    late = [opened, adds[:4], adds[4:8]]
    numbers = [1, 1 + len(opened), 5 + len(opened)]
    later = [(opening + 10**9, frame(mold(b"SECOND    ", n, g))) for n, g in zip(numbers, late, strict=True)]
    both, alone = tmp_path / "both.pcap", tmp_path / "alone.pcap"
    both.write_bytes(pcap(early + later))
    alone.write_bytes(pcap(later))
    wanted = replay(alone, tmp_path / "alone").summary
    found = replay(both, tmp_path / "both").summary
    assert (
        wanted["book_state_hash"] != replay(_nothing(tmp_path), tmp_path / "none").summary["book_state_hash"]
    )
    assert found["book_state_hash"] == wanted["book_state_hash"]
    for path in (alone, both):
        words = ["--depth", str(path.with_suffix(".csv")), "--symbol", ""]
        assert main(["book", str(path), *words]) == 0
    capsys.readouterr()
    rows = [path.with_suffix(".csv").read_text().splitlines()[1:] for path in (alone, both)]
    assert len(rows[0]) > 1
    assert rows[1][-len(rows[0]) :] == rows[0]


# A session that begins anew while we trade.

PATIENT = (  # every entry joins the best price and stays there
    "[strategy]\ncross_edge_bp = 10000.0\nworking_max_s = 100000.0\nstop_bp = 0.0\ntrailing_bp = 0.0\n"
)
LATENCY_NS = 50_000  # of each way, as configured by default


def _two_sessions(small_day, path: pathlib.Path, second: bytes, cut_ns: int) -> int:
    """Write a day up to a time, and a minute later the whole again; return when it begins anew."""
    packets = _datagrams(small_day.read_bytes())
    early = [packet for packet in packets if packet[0] < cut_ns]
    again = early[-1][0] + 60 * 10**9
    shift_ns = again - packets[0][0]
    frames = [(ns, frame(mold(b"FIRST     ", first, group))) for ns, first, group in early]
    frames += [(ns + shift_ns, frame(mold(second, first, group))) for ns, first, group in packets]
    path.write_bytes(pcap(frames))
    return again


def _datagrams(capture: bytes) -> list[tuple[int, int, list[bytes]]]:
    """Read (Unix ns, first number, messages) of the datagrams of a little-endian ns pcap that have any."""
    out, at, messages = [], 24, dict(mold_messages(capture))
    while at < len(capture):
        seconds, fraction, size = (int.from_bytes(capture[at + k : at + k + 4], "little") for k in (0, 4, 8))
        header = capture[at + 16 + 42 : at + 16 + 62]
        first, count = int.from_bytes(header[10:18], "big"), int.from_bytes(header[18:20], "big")
        if 0 < count < 0xFFFF:
            group = [messages[first + k] for k in range(count)]
            out.append((seconds * 10**9 + fraction, first, group))
        at += 16 + size
    return out


@pytest.mark.parametrize("second", [b"SECOND    ", b"FIRST     "], ids=["new session", "restart"])
def test_a_session_that_begins_anew_ends_our_resting_orders_and_keeps_our_positions(
    second, small_day, tmp_path
):
    path, alone = tmp_path / "two.pcap", tmp_path / "alone.pcap"
    shutil.copy(small_day, alone)  # without its news
    whole = replay(alone, tmp_path / "alone", PATIENT)
    traded_ns = int(whole.fills[0]["ts_ns"])
    later = [row for row in whole.orders if row["tif"] == "0" and int(row["sent_ns"]) > traded_ns]
    patient = max(later, key=lambda row: int(row["updated_ns"]) - int(row["sent_ns"]))
    _two_sessions(small_day, path, second, (int(patient["sent_ns"]) + int(patient["updated_ns"])) // 2)
    found = replay(path, tmp_path / "out", PATIENT)
    orders = {int(row["order"]): row for row in found.orders}
    unasked = {
        row["order"]: row["wall_ns"] for row in found.records("EXECUTION")
        if row["exec_type"] == ord("4") and "|41=" not in row["text"] and orders[row["order"]]["tif"] == "0"
    }  # fmt: skip
    assert int(patient["order"]) in unasked  # it was at work
    assert len(set(unasked.values())) == 1  # all of them ended at one time, that of the first messages
    (begun_ns,) = set(unasked.values())
    before = {n for n, row in orders.items() if int(row["sent_ns"]) + 2 * LATENCY_NS < begun_ns}
    assert unasked.keys() <= before
    assert len(before) < len(orders)  # and trading went on in the new run
    assert all(int(orders[n]["updated_ns"]) <= begun_ns for n in before)
    late = [fill for fill in found.fills if int(fill["ts_ns"]) > begun_ns]
    assert late
    assert {int(fill["order"]) for fill in late}.isdisjoint(before)
    held = {name: row["qty"] for name, row in found.summary["positions"].items()}
    assert held == positions_of(found.fills)
    assert any(int(fill["ts_ns"]) < begun_ns for fill in found.fills)
    assert found.summary["alarms"] == {}
    again = replay(path, tmp_path / "again", PATIENT)
    assert again.summary["journal_hash"] == found.summary["journal_hash"]


def test_the_decisions_of_a_new_run_are_those_of_a_market_never_seen_before(small_day, tmp_path):
    """Features restart with the books: digests of the second run are those of the day replayed alone."""
    path = tmp_path / "two.pcap"
    packets = _datagrams(small_day.read_bytes())
    again_ns = _two_sessions(small_day, path, b"SECOND    ", packets[len(packets) // 2][0])
    text = "[strategy]\nmargin_bp = 1000.0\n"  # nothing is traded
    quiet = tmp_path / "alone.pcap"
    shutil.copy(small_day, quiet)
    two, alone = replay(path, tmp_path / "two", text), replay(quiet, tmp_path / "alone", text)
    wanted = [(r["cause_seq"], r["features_digest"], r["warm"]) for r in alone.records("DECISION")]
    found = [
        (r["cause_seq"], r["features_digest"], r["warm"]) for r in two.records("DECISION")
        if r["now_ns"] >= again_ns
    ]  # fmt: skip
    assert len(wanted) > 1_000
    assert found == wanted
    assert two.summary["book_state_hash"] == alone.summary["book_state_hash"]


def _nothing(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "nothing.pcap"
    path.write_bytes(pcap([(10**18, frame(mold(b"ONE       ", 1, [])))]))
    return path


def _record_start(data: bytes, least: int) -> int:
    at = 24
    while at < least:
        at += 16 + int.from_bytes(data[at + 8 : at + 12], "little")
    return at


def test_an_itch_file_of_the_same_messages_gives_the_same_books(small_day, small_replay, tmp_path):
    """Times are exchange times then, so orders may differ; what the market did may not."""
    messages = [message for _, message in mold_messages(small_day.read_bytes())]
    path = tmp_path / "small.itch"
    path.write_bytes(blocks(messages))
    raw = replay(path, tmp_path / "out", '[feed]\ndate = "2026-01-05"\n')
    assert raw.summary["book_state_hash"] == small_replay.summary["book_state_hash"]
    assert raw.summary["messages"] == small_replay.summary["messages"]
    assert positions_of(raw.fills) == {n: row["qty"] for n, row in raw.summary["positions"].items()}


def test_a_journal_of_an_earlier_replay_is_replaced(small_day, small_replay, tmp_path):
    for _ in range(2):
        again = replay(small_day, tmp_path / "out")
    assert again.summary["journal_hash"] == small_replay.summary["journal_hash"]
    assert main(["journal", "verify", str(tmp_path / "out/journal")]) == 0
