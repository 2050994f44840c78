"""News: what a file may hold, how items become a score, how a replay applies them."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.messages import NEWS
from nimbus.venue import generator
from ringbuf.segment import Segment
from ringbuf.seqlock import VALUE_AT, cell_size, create_cells, read
from strategy import news
from strategy.news import NewsConfig, NewsState, build_schedule, symbol_word
from strategy.news_file import NewsItem, clean, news_path, read_news, to_ns
from strategy.sentiment import HashedProvider, Sentiment, create_provider

T0 = 1_767_623_400_000_000_000  # 2026-01-05T14:30:00Z
SECOND, MINUTE = 10**9, 60 * 10**9
CONFIG = NewsConfig()
EMBEDDING = np.eye(768, dtype=np.float32)


def _item(at_s: float, item_id: str, **changes: Any) -> NewsItem:
    at_ns = T0 + round(at_s * SECOND)
    plain = NewsItem("s", item_id, "created", "", at_ns, at_ns, ("XYZ",), f"headline {item_id}")
    return dataclasses.replace(plain, **changes)


def _said(score: float, axis: int = 0) -> Sentiment:
    return Sentiment(score, EMBEDDING[axis])


def _write(path: pathlib.Path, *entries: dict[str, Any] | bytes) -> pathlib.Path:
    lines = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in entries]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _entry(**changes: Any) -> dict[str, Any]:
    plain = {"source": "s", "id": "1", "t_received": T0, "symbols": ["XYZ"], "headline": "Profit rises"}
    return plain | changes


# ---- the file ----------------------------------------------------------------------------------


def test_a_line_becomes_an_item_with_both_clocks(tmp_path: pathlib.Path) -> None:
    entry = _entry(t_source="2026-01-05T09:30:00.25-05:00", t_received="2026-01-05T14:30:00.5Z", id=7)
    made = read_news(_write(tmp_path / "n.jsonl", entry))
    item = made.items[0]
    assert (item.id, item.number, item.action) == ("7", 1, "created")
    assert (item.source_ns - T0, item.received_ns - T0) == (SECOND // 4, SECOND // 2)
    assert not made.problems


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"3", "not an object"),
        (_entry(id=""), "id is missing"),
        (_entry(action="rewritten"), "action must be"),
        (_entry(t_received="yesterday"), "t_received must be"),
        (_entry(t_received="2026-01-05T14:30:00"), "with a zone"),
        (_entry(t_received="2026-13-05T14:30:00Z"), "is no time"),
        (_entry(t_received=True), "t_received must be"),
        (_entry(t_received=-5), "out of range"),
        (_entry(t_received=10**30), "out of range"),
        (_entry(t_received=None), "both missing"),
        (_entry(symbols="XYZ"), "symbols must be"),
        (_entry(symbols=["XYZ", 3]), "symbols must be"),
        (_entry(symbols=["TOO LONG NAME"]), "symbols must be"),
        (_entry(symbols=["A"] * 65), "at most 64"),
        (_entry(headline=5), "headline must be text"),
        (_entry(headline=" \u202e"), "neither headline nor body"),
        (_entry(score=1.5), "score must be"),
        (_entry(score=float("nan")), "score must be"),
        (_entry(score=10**400), "score must be"),
        (_entry(embedding=[0.0] * 768), "score must be"),
        (_entry(score=0, embedding=[0.0] * 767), "768"),
        (_entry(score=0, embedding=[0.0] * 767 + [None]), "no number"),
        (_entry(score=0, embedding=[0.0] * 767 + [10**400]), "no number"),
        (b'{"id": "1", "headline": "' + b"x" * 4_000_001 + b'"}', "longer than"),
    ],
)
def test_a_malformed_line_is_counted_with_its_number_and_the_rest_is_read(
    tmp_path: pathlib.Path, line: Any, reason: str
) -> None:
    made = read_news(_write(tmp_path / "n.jsonl", _entry(id="0"), b"", line, _entry(id="2")))
    assert [item.id for item in made.items] == ["0", "2"]
    assert made.counts["malformed"] == len(made.problems) == 1
    assert made.problems[0].startswith("line 3: ")
    assert reason in made.problems[0]


def test_text_is_cleaned_and_cut_to_size(tmp_path: pathlib.Path) -> None:
    dirty = _entry(headline="Pro\u202efit\x00 ri\u200bses\tagain \ud800", body="\u00e9" * 600_000)
    invalid = b'{"id": "2", "t_received": 1767623400000000001, "headline": "Pro\xff\xfefit"}'
    made = read_news(_write(tmp_path / "n.jsonl", dirty, invalid, _entry(id="3", headline="y" * 5_000)))
    assert [item.headline for item in made.items] == ["Profit rises again", "y" * 1_000, "Profit"]
    assert made.items[0].body == "\u00e9" * 500_000
    assert (made.counts["stripped"], made.counts["cut"], made.counts["malformed"]) == (2, 2, 0)


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_clean_text_is_printable_encodable_and_stays_as_it_is(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned == cleaned.encode().decode()
    assert not any(ord(c) < 32 or 0x202A <= ord(c) <= 0x202E for c in cleaned)


@given(st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_no_bytes_stop_the_reader(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = _write(tmp_path_factory.mktemp("n") / "n.jsonl", raw, _entry())
    assert [item.id for item in read_news(path).items] == ["1"]


def test_items_come_by_receipt_and_the_odd_ones_are_counted(tmp_path: pathlib.Path) -> None:
    path = _write(
        tmp_path / "n.jsonl",
        _entry(id="late", t_received=T0 + 9),
        _entry(id="early", t_received=T0 + 3),
        _entry(id="future", t_received=T0 + 5, t_source=T0 + MINUTE),
        _entry(id="assumed", t_received=None, t_source=T0),
    )
    made = read_news(path, assumed_delay_ns=4)
    assert [item.id for item in made.items] == ["early", "assumed", "future", "late"]
    assert [item.number for item in made.items] == [1, 2, 3, 4]
    assert [item.future_dated for item in made.items] == [False, False, True, False]
    assert {k: made.counts[k] for k in ("out_of_order", "future_dated", "assumed_received")} == {
        "out_of_order": 3,
        "future_dated": 1,
        "assumed_received": 1,
    }


@pytest.mark.parametrize("text", ["2026-01-05T14:30:00.123456789Z", "2026-01-05 14:30:00.123456789+00:00"])
def test_times_keep_their_nanoseconds(text: str) -> None:
    assert to_ns(text, "t") == T0 + 123_456_789


def test_the_news_of_a_capture_is_found_beside_it(tmp_path: pathlib.Path) -> None:
    for name in ("day.pcap", "day.pcap.gz", "day.pcapng.zst", "day.itch", "day"):
        assert news_path(tmp_path / name) == tmp_path / "day.news.jsonl"
    (tmp_path / "day.pcap.news.jsonl").touch()
    assert news_path(tmp_path / "day.pcap") == tmp_path / "day.pcap.news.jsonl"


def test_generated_news_reads_without_a_complaint(tmp_path: pathlib.Path) -> None:
    generator.generate(tmp_path / "day.pcap", 4, 2_000, 8)
    made = read_news(news_path(tmp_path / "day.pcap"))
    assert len(made.items) > 16
    assert sum(made.counts.values()) == made.counts["lines"] == len(made.items)
    schedule, counts = build_schedule(made.items, HashedProvider(), CONFIG, 16)
    assert counts["symbols"] == 8
    assert len(schedule.records) == counts["rows"] > 16
    assert (np.abs(schedule.records["embedding"]).sum(axis=1) > 0).all()
    assert (
        np.count_nonzero(schedule.records["score"] > 0.2)
        > 3
        < np.count_nonzero(schedule.records["score"] < -0.2)
    )


# ---- the score ---------------------------------------------------------------------------------


def test_the_score_is_the_formula() -> None:
    state = NewsState(CONFIG)
    state.apply(_item(0, "a", symbols=("XYZ", "ABC")), _said(0.2))
    made = state.apply(_item(1800, "b"), _said(0.6, 1))
    assert made is not None
    weight = 0.5 * 0.5
    assert made["score"] == pytest.approx((weight * 0.2 + 0.6) / (weight + 1 + CONFIG.shrink))
    assert made["embedding"][:2] == pytest.approx([weight / (weight + 1), 1 / (weight + 1)])
    assert (made["received_ns"], made["half_life_ns"], made["items"]) == (T0 + 1800 * SECOND, 30 * MINUTE, 2)


def test_a_scandal_after_praise_supersedes_it() -> None:
    state = NewsState(CONFIG)
    for number in range(3):
        praise = state.apply(_item(number, f"p{number}"), _said(0.8))
    scandal = state.apply(_item(60, "scandal"), _said(-0.9))
    assert praise is not None
    assert scandal is not None
    assert praise["score"] > 0.5
    assert scandal["score"] < -0.4
    mild = NewsState(dataclasses.replace(CONFIG, supersede=1.0))
    for number in range(3):
        mild.apply(_item(number, f"p{number}"), _said(0.8))
    neutral = mild.apply(_item(60, "scandal"), _said(-0.9))
    assert neutral is not None
    assert neutral["score"] > 0  # what the rule is for


def test_only_material_items_open_a_new_chapter() -> None:
    state = NewsState(CONFIG)
    first = state.apply(_item(0, "a", number=1), _said(0.8))
    faint = state.apply(_item(10, "b", number=2), _said(0.1))
    broad = state.apply(_item(20, "c", number=3, symbols=("XYZ", "A", "B", "C")), _said(0.9))
    for made in (first, faint, broad):
        assert made is not None
        assert (made["item_id"], made["material_ns"]) == (1, T0)
    assert faint is not None
    assert faint["received_ns"] == T0 + 10 * SECOND


def test_copies_of_a_story_count_once_within_a_day() -> None:
    state = NewsState(CONFIG)
    first = state.apply(_item(0, "a", headline="Profit RISES!"), _said(0.8))
    assert state.apply(_item(60, "b", headline="profit rises"), _said(0.8)) is None
    assert state.duplicates == 1
    later = state.apply(_item(86_401, "c", headline="Profit rises"), _said(0.8))
    assert first is not None
    assert later is not None
    assert later["items"] == 2


def test_a_correction_replaces_and_a_deletion_removes() -> None:
    state = NewsState(CONFIG)
    before = state.apply(_item(0, "a"), _said(0.5))
    state.apply(_item(60, "b"), _said(0.9, 1))
    corrected = state.apply(_item(70, "c", action="updated", revision_of="b"), _said(-0.6, 2))
    assert corrected is not None
    assert corrected["embedding"][1] == 0
    assert corrected["score"] < 0
    deleted = state.apply(_item(80, "c", action="deleted", headline=""), _said(0))
    assert before is not None
    assert deleted is not None
    assert deleted["score"] == before["score"]
    assert deleted["received_ns"] == T0
    assert state.apply(_item(90, "unknown", action="deleted"), _said(0)) is None
    empty = state.apply(_item(90, "a", action="deleted"), _said(0))
    assert empty is not None
    assert (empty["received_ns"], empty["material_ns"], empty["score"]) == (0, 0, 0)
    assert not empty["embedding"].any()


def test_the_deviation_is_that_of_the_history_before_the_item() -> None:
    state, scores = NewsState(CONFIG), []
    for number in range(40):
        made = state.apply(_item(number * 1e5, f"i{number}"), _said(math.sin(number)))
        assert made is not None
        count = len(scores) + CONFIG.prior_items
        mean = sum(scores) / count
        squares = sum(s * s for s in scores) + CONFIG.prior_items * CONFIG.prior_deviation**2
        assert made["mean"] == pytest.approx(mean)
        assert made["deviation"] == pytest.approx(math.sqrt(squares / count - mean**2))
        scores.append(float(made["score"]))


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 10**6)), min_size=1, max_size=90))
@settings(max_examples=50, deadline=None)
def test_any_history_gives_a_finite_record_and_its_mirror_the_mirrored_score(
    history: list[tuple[float, int]],
) -> None:
    state, mirror, at_s = NewsState(CONFIG), NewsState(CONFIG), 0
    for number, (score, gap_s) in enumerate(history):
        at_s += gap_s
        made = state.apply(_item(at_s, f"i{number}"), _said(score))
        turned = mirror.apply(_item(at_s, f"i{number}"), _said(-score))
        assert made is not None
        assert turned is not None
        assert made["score"] == -turned["score"]
        assert abs(made["score"]) < 1
        assert made["deviation"] == turned["deviation"] > 0


# ---- the schedule ------------------------------------------------------------------------------


def _cells(count: int) -> tuple[Segment, int]:
    segment = Segment.anonymous(1 << 20)
    return segment, create_cells(segment, "news", count, NEWS)


def _cell(segment: Segment, cells: int, locate: int) -> np.ndarray[Any, Any]:
    target = segment.areas["copy"][0] if "copy" in segment.areas else segment.allocate("copy", NEWS.size)
    assert read(cells + locate * cell_size(NEWS), target, NEWS.size) >= 0
    return segment.array("copy", NEWS)[0].copy()


def test_rows_are_applied_when_the_clock_passes_their_receipt() -> None:
    items = [
        _item(0, "a", symbols=("XYZ", "ZBAD"), headline="Profit rises sharply"),
        _item(5, "b", headline="Fraud scandal"),
        _item(6, "c", symbols=("NEVER",)),
        _item(7, "d", symbols=("ZBAD",), headline="Weak results"),
    ]
    schedule, counts = build_schedule(items, HashedProvider(), CONFIG, 8)
    assert counts == {"rows": 5, "duplicates": 0, "symbols": 3}
    segment, cells = _cells(8)
    for text, locate in (("ZBAD", 7), ("XYZ", 3), ("OTHER", 1), ("", 2)):
        news.announce(schedule.addr, symbol_word(text), locate)
    assert news.apply_due(schedule.addr, cells, T0 - 1) == -1
    assert [news.apply_due(schedule.addr, cells, T0) for _ in range(3)] == [3, 7, -1]
    assert _cell(segment, cells, 3) == schedule.records[0]
    assert _cell(segment, cells, 3)["score"] > 0
    assert [news.apply_due(schedule.addr, cells, T0 + 6 * SECOND) for _ in range(2)] == [3, -1]
    assert _cell(segment, cells, 3)["score"] < 0
    assert [news.apply_due(schedule.addr, cells, 1 << 62) for _ in range(2)] == [7, -1]
    assert (schedule.applied, schedule.unresolved) == (5, 1)
    assert _cell(segment, cells, 1)["received_ns"] == 0
    schedule.rewind()
    assert news.apply_due(schedule.addr, cells, 1 << 62) == -1
    assert schedule.unresolved == 5


def test_a_locate_without_a_cell_is_never_written() -> None:
    schedule, _ = build_schedule([_item(0, "a")], HashedProvider(), CONFIG, 2)
    segment, cells = _cells(2)
    guard = segment.allocate("guard", cell_size(NEWS))
    for locate in (2, 65_535, -1, 0):
        schedule.rewind()
        news.announce(schedule.addr, symbol_word("XYZ"), locate)
        assert news.apply_due(schedule.addr, cells, 1 << 62) == -1
        assert schedule.unresolved == 1
    assert not segment.words(guard, 8).any()


def test_a_symbol_of_eight_characters_is_found_among_many() -> None:
    names = [f"Z{number:07d}" for number in range(0, 3_000, 7)] + ["A", "BRK.B", "ZZZZZZZZ"]
    schedule, _ = build_schedule(
        [_item(0, name, symbols=(name,)) for name in names], HashedProvider(), CONFIG, 4_000
    )
    segment = Segment.anonymous(32 << 20)
    cells = create_cells(segment, "news", 4_000, NEWS)
    for number, name in enumerate(names, 1):
        news.announce(schedule.addr, symbol_word(name), number)
    assert [news.apply_due(schedule.addr, cells, T0) for _ in names] == list(range(1, len(names) + 1))
    assert VALUE_AT + NEWS.size == cell_size(NEWS)


def test_an_empty_file_makes_an_empty_schedule(tmp_path: pathlib.Path) -> None:
    (tmp_path / "n.jsonl").touch()
    schedule, counts = build_schedule(read_news(tmp_path / "n.jsonl").items, HashedProvider(), CONFIG, 8)
    _, cells = _cells(8)
    news.announce(schedule.addr, symbol_word("XYZ"), 1)
    assert news.apply_due(schedule.addr, cells, 1 << 62) == -1
    assert counts["rows"] == len(schedule.received_ns) == 0


def test_a_correction_that_drops_a_symbol_takes_the_story_from_it() -> None:
    items = [
        _item(0, "a", symbols=("XYZ", "ABC"), headline="Profit rises sharply"),
        _item(9, "a", action="updated", symbols=("ABC",), headline="Profit rises at ABC"),
        _item(12, "a", action="deleted", symbols=(), headline=""),
    ]
    schedule, counts = build_schedule(items, HashedProvider(), CONFIG, 8)
    assert counts["rows"] == 5
    scores = dict(
        zip(zip(schedule.symbols, schedule.received_ns.tolist(), strict=True), schedule.records, strict=True)
    )
    assert scores["XYZ", T0 + 9 * SECOND]["received_ns"] == 0
    assert scores["ABC", T0 + 9 * SECOND]["score"] > 0
    assert scores["ABC", T0 + 12 * SECOND]["received_ns"] == 0


def test_cutting_the_future_off_changes_no_record() -> None:
    rng = np.random.default_rng(3)
    items = [
        _item(
            float(number * 20),
            f"i{number % 30}",
            action=("created", "updated", "deleted")[int(rng.integers(3))],
            headline=f"profit {('rises', 'falls')[int(rng.integers(2))]} {number}",
        )
        for number in range(120)
    ]
    whole, _ = build_schedule(items, create_provider("hashed"), CONFIG, 8)
    for length in (1, 17, 60, 119):
        part, _ = build_schedule(items[:length], create_provider("hashed"), CONFIG, 8)
        count = len(part.records)
        assert part.records.tobytes() == whole.records[:count].tobytes()
        assert np.array_equal(part.received_ns, whole.received_ns[:count])


def test_given_scores_are_used_by_the_file_provider(tmp_path: pathlib.Path) -> None:
    entry = _entry(headline="Profit rises", score=-0.8, embedding=[1.0] + [0.0] * 767)
    items = read_news(_write(tmp_path / "n.jsonl", entry)).items
    mine, _ = build_schedule(items, create_provider("hashed"), CONFIG, 8)
    theirs, _ = build_schedule(items, create_provider("file"), CONFIG, 8)
    assert mine.records["score"][0] > 0 > theirs.records["score"][0]
    assert theirs.records["embedding"][0, 0] == 1
