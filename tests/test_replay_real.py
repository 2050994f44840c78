"""Real captures through the commands, where they are at hand: `../shared/data`."""

from __future__ import annotations

import csv
import gzip
import json
import pathlib

import pytest
from replays import Outcome, positions_of, realized_by_average_cost, replay

from daemon.main import main

LOBSTER = "itch/lobster_aapl/aapl_20120621_0930_0940"
DEPTH_TRUTH = "itch/lobster_aapl/aapl_20120621_first49s.l10_truth.csv.gz"
FIRST_TRUTH = 73  # the opening book is seeded by the messages before it


def _rows(path: pathlib.Path) -> tuple[str, list[str]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    head, *rows = text.splitlines()
    return head, rows


def _seq(row: str) -> int:
    return int(row.split(",", 1)[0])


def as_of(rows: list[str], truth: list[str]) -> list[str]:
    """Return for each row of the truth what stood in ours then; the truth has a row for each message."""
    found, at = [], 0
    for wanted in truth:
        while at + 1 < len(rows) and _seq(rows[at + 1]) <= _seq(wanted):
            at += 1
        levels = rows[at].split(",", 2)[2]
        found.append(",".join([*wanted.split(",", 2)[:2], levels]))
    return found


def _stats(capture: pathlib.Path, capsys) -> tuple[dict, str]:
    """Return (counts, stderr) of `book --stats`, which must succeed."""
    capsys.readouterr()
    assert main(["book", str(capture), "--stats"]) == 0
    told = capsys.readouterr()
    return json.loads(told.out), told.err


def test_book_gives_the_6503_best_prices_and_999_ten_level_rows_of_the_truth(shared_data, tmp_path, capsys):
    best, deep = tmp_path / "bbo.csv", tmp_path / "depth.csv"
    capture = shared_data / f"{LOBSTER}.pcap.gz"
    assert main(["book", str(capture), "--bbo", str(best), "--depth", str(deep)]) == 0
    assert "warning" not in capsys.readouterr().err
    head, rows = _rows(best)
    true_head, truth = _rows(shared_data / f"{LOBSTER}.bbo_truth.csv.gz")
    assert head == true_head
    assert [row for row in rows if _seq(row) >= FIRST_TRUTH] == truth
    assert len(truth) == 6_503
    head, rows = _rows(deep)
    true_head, truth = _rows(shared_data / DEPTH_TRUTH)
    assert head == true_head
    assert as_of(rows, truth) == truth
    assert len(truth) == 999


def test_one_symbol_alone_gives_the_same_rows(shared_data, tmp_path):
    capture = str(shared_data / f"{LOBSTER}.itch50.bin.gz")
    every, one = tmp_path / "every.csv", tmp_path / "one.csv"
    assert main(["book", capture, "--bbo", str(every)]) == 0
    assert main(["book", capture, "--bbo", str(one), "--symbol", "AAPL"]) == 0
    assert every.read_text() == one.read_text()
    with every.open(newline="") as file:
        assert len(list(csv.reader(file))) > 6_503


def test_the_default_configuration_trades_on_a_lively_capture(shared_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # no models folder here: the fixed rule answers, and says so
    assert main(["replay", str(shared_data / f"{LOBSTER}.pcap.gz")]) == 0
    told = capsys.readouterr().out
    outcome = Outcome(tmp_path / "out")
    summary = outcome.summary
    assert "trained on nothing" in told
    assert (summary["packets"], sum(summary["messages"].values())) == (14_024, 15_368)
    assert (summary["gaps"], summary["refused"], summary["symbols"]) == (0, {}, 1)
    assert summary["fills"] == len(outcome.fills) > 0
    assert {name: row["qty"] for name, row in summary["positions"].items()} == positions_of(outcome.fills)
    exact = realized_by_average_cost(outcome.fills)
    assert abs(summary["positions"]["AAPL"]["realized_pnl"] - float(exact["AAPL"])) < 0.005
    again = replay(shared_data / f"{LOBSTER}.pcap.gz", tmp_path / "again").summary
    assert again["book_state_hash"] == summary["book_state_hash"]


def test_two_replays_of_a_real_capture_are_the_same(shared_data, tmp_path):
    runs = [replay(shared_data / f"{LOBSTER}.pcap.gz", tmp_path / str(n)).summary for n in range(2)]
    assert runs[0]["journal_hash"] == runs[1]["journal_hash"]


def test_every_real_packet_of_both_venues_is_decoded(shared_data, capsys):
    paths = sorted((shared_data / "itch/omi").rglob("*.pcap"))
    total = 0
    for path in paths:
        counts, _ = _stats(path, capsys)
        assert counts["refused"] == {}, path.name
        total += sum(counts["messages"].values())
    assert len(paths) > 20
    assert total == 137


def test_another_protocol_ends_cleanly_with_a_warning(shared_data, tmp_path, capsys):
    counts, told = _stats(shared_data / "iex/TOPS16.pcapng.gz", capsys)
    assert (counts["messages"], counts["refused"]) == ({}, {"foreign": 13_022})
    assert "warnings: " in told
    summary = replay(shared_data / "iex/TOPS16.pcapng.gz", tmp_path / "out").summary
    assert (summary["packets"], summary["refused"], summary["orders"]) == (13_022, {"foreign": 13_022}, 0)


def test_the_beginning_of_a_real_day_ends_cleanly(shared_data, tmp_path, capsys):
    path = shared_data / "itch/bbekele_itch/sample.itch"
    counts, told = _stats(path, capsys)
    assert counts["messages"] == {"S": 1, "R": 993, "H": 3, "Y": 3}
    assert told == ""
    summary = replay(path, tmp_path / "out", "", "--speed", "max").summary
    assert (summary["symbols"], summary["orders"]) == (993, 0)


@pytest.mark.parametrize("command", ["book", "replay"])
def test_a_file_without_length_prefixes_is_refused_in_one_line_that_names_the_offset(
    command, shared_data, tmp_path, capsys
):
    path = shared_data / "itch/ritch/ex20101224.TEST_ITCH_50"
    words = ["--stats"] if command == "book" else ["--out", str(tmp_path)]
    assert main([command, str(path), *words]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert "at byte 0" in told.err
