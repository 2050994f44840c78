"""Names from outside that are no names: they are shown harmlessly, and hide nothing."""

from __future__ import annotations

import os
import pathlib
import struct
import subprocess
import sys

import pytest
from orders_rig import Rig
from replays import RULE, SMALL, environment

from daemon.errors import CommandError
from daemon.main import main
from daemon.model import pinned

HEADER = struct.Struct(">cHH6s")


def message(code: bytes, body: bytes, locate: int = 1) -> bytes:
    whole = HEADER.pack(code, locate, 0, bytes(6)) + body
    return struct.pack(">H", len(whole)) + whole


def capture(path: pathlib.Path, symbols: list[bytes]) -> pathlib.Path:
    """Write a raw ITCH file that announces each symbol and adds an order to its book."""
    parts = []
    for locate, symbol in enumerate(symbols, 1):
        parts.append(message(b"R", symbol + bytes(20), locate))
        parts.append(message(b"A", struct.pack(">QcI8sI", locate, b"B", 100, symbol, 10_000), locate))
    path.write_bytes(b"".join(parts))
    return path


def test_a_symbol_of_odd_bytes_is_written_as_question_marks(tmp_path):
    out = tmp_path / "bbo.csv"
    day = capture(tmp_path / "day.itch", [b"A\xffB\x01    ", b"PLAIN   "])
    assert main(["book", str(day), "--bbo", str(out)]) == 0
    assert [line.split(",")[0] for line in out.read_text("ascii").splitlines()] == ["symbol", "A?B?", "PLAIN"]


def test_a_capture_whose_name_is_no_text_is_replayed(tmp_path):
    day = capture(pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xffy.itch")), [b"PLAIN   "])
    config = tmp_path / "c.toml"
    config.write_text(RULE + SMALL)
    assert main(["replay", str(day), "--config", str(config), "--out", str(tmp_path / "o"), "--json"]) == 0
    assert "d\N{REPLACEMENT CHARACTER}y.itch" in (tmp_path / "o/summary.json").read_text("utf-8")


def test_two_locates_of_one_symbol_hide_no_position():
    rig = Rig()
    for locate in (1, 2, 3):
        rig.orders.position_row(locate)["fills"] = 1
    names = {1: "AAPL", 2: "AAPL", 3: ""}
    found = rig.orders.positions(names.__getitem__, refresh=False)
    assert {name: row["locate"] for name, row in found.items()} == {"AAPL": 1, "AAPL@2": 2, "@3": 3}


@pytest.mark.parametrize("text", [b"", b"\xff\n", b"../secrets\n", b"a b"])
def test_a_pinned_name_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "pinned").write_bytes(text)
    with pytest.raises(CommandError, match="does not name a model"):
        pinned(tmp_path)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_output_stream_that_is_full_is_one_line():
    with pathlib.Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "daemon.main", "check"]
        done = subprocess.run(words, env=environment(), stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["contrafusion check: output: No space left on device"]
