"""The rows of `contrafusion book`: whose they are, when the directory changes or comes late."""

from __future__ import annotations

import csv
import pathlib

import pytest
from captures import frame, mold, pcap
from days import ADD, DELETE, OPEN_NS, directory

from daemon.main import main

NS = OPEN_NS.to_bytes(6, "big")
OPENING = 1_767_600_000 * 10**9


def add(ref: int, locate: int, px: int, symbol: bytes = b"ANY     ") -> bytes:
    return ADD(b"A", locate, 0, NS, ref, b"B", 100, symbol, px)


def announce(locate: int, symbol: bytes) -> bytes:
    return directory(locate, NS, symbol.ljust(8))


def capture(path: pathlib.Path, *sessions: list[bytes]) -> pathlib.Path:
    """Write sessions, each a message a datagram; the next one begins after the end of the one before."""
    frames, at = [], OPENING
    for number, messages in enumerate(sessions):
        name = b"SESSION%03d" % number
        data = [mold(name, n, [message]) for n, message in enumerate(messages, 1)]
        for datagram in [*data, mold(name, len(messages) + 1, [], count=0xFFFF)]:
            at += 1_000
            frames.append((at, frame(datagram)))
    path.write_bytes(pcap(frames))
    return path


def rows(tmp_path: pathlib.Path, *sessions: list[bytes], option: str = "--bbo") -> list[list[str]]:
    """Return the CSV that `book` writes of sessions, read back."""
    path = capture(tmp_path / "c.pcap", *sessions)
    assert main(["book", str(path), option, str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="", encoding="ascii") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("option", ["--bbo", "--depth"])
def test_rows_of_a_session_keep_its_symbols_when_the_next_one_gives_the_locates_to_others(tmp_path, option):
    first = [announce(1, b"ABC"), announce(2, b"XYZ"), add(1, 1, 100), add(2, 2, 200)]
    second = [announce(1, b"XYZ"), announce(2, b"NEW"), add(1, 1, 300), add(2, 2, 400)]
    table = rows(tmp_path, first, second, option=option)
    assert table[0][0] == "symbol"
    told = [(row[0], row[5]) for row in table[1:]]
    assert told == [("ABC", "100"), ("XYZ", "200"), ("XYZ", "300"), ("NEW", "400")]


def test_two_sessions_of_one_symbol_each_have_the_column(tmp_path):
    table = rows(tmp_path, [announce(1, b"ABC"), add(1, 1, 100)], [announce(1, b"XYZ"), add(1, 1, 100)])
    assert [row[0] for row in table] == ["symbol", "ABC", "XYZ"]  # the same best price: of another symbol


def test_the_first_row_of_a_session_is_compared_with_an_empty_book(tmp_path):
    session = [announce(1, b"ABC"), add(1, 1, 100)]
    table = rows(tmp_path, session, session)
    assert table[0][0] == "mold_seq"  # one symbol: no column
    assert [row[4] for row in table[1:]] == ["100", "100"]


def test_rows_before_the_directory_message_bear_their_locate(tmp_path):
    late = [add(1, 7, 100), announce(3, b"ABC"), add(2, 3, 200), announce(7, b"XYZ"), add(3, 7, 300)]
    told = [(row[0], row[5]) for row in rows(tmp_path, late)[1:]]
    assert told == [("@7", "100"), ("ABC", "200"), ("XYZ", "300")]


def test_a_late_directory_message_of_the_only_symbol_makes_no_column(tmp_path):
    table = rows(tmp_path, [add(1, 7, 100), announce(7, b"XYZ"), DELETE(b"D", 7, 0, NS, 1)])
    assert [row[0] for row in table] == ["mold_seq", "1", "3"]


def test_without_any_directory_two_locates_are_told_apart(tmp_path):
    table = rows(tmp_path, [add(1, 7, 100), add(2, 8, 100)])
    assert [row[0] for row in table] == ["symbol", "@7", "@8"]


@pytest.mark.parametrize("symbol", ["A,B", 'A"B', '",",', "A B"])
def test_a_symbol_is_one_field_whatever_it_is_made_of(tmp_path, symbol):
    table = rows(tmp_path, [announce(1, symbol.encode()), announce(2, b"XYZ"), add(1, 1, 100), add(2, 2, 5)])
    assert [row[0] for row in table] == ["symbol", symbol, "XYZ"]
    assert len({len(row) for row in table}) == 1


def test_a_symbol_that_shows_after_many_drained_rows_gives_all_of_them_their_own_label(tmp_path):
    turns = [m for n in range(9_000) for m in (add(1, 1, 100 + n % 2), DELETE(b"D", 1, 0, NS, 1))]
    messages = [add(7, 1, 50), announce(1, b"ABC"), *turns, announce(2, b"XYZ"), add(2, 2, 200)]
    table = rows(tmp_path, messages)
    assert [row[0] for row in table[:3]] == ["symbol", "@1", "ABC"]
    assert {row[0] for row in table[2:-1]} == {"ABC"}
    assert table[-1][0] == "XYZ"
    assert len(table) == 18_003
