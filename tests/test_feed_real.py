"""Real captures, where they are at hand: counts as their README states them."""

from __future__ import annotations

import pathlib
from collections import Counter

import pytest
from feeding import Frames
from reference.feed import SlowFeed

from nimbus.feed.capture import CaptureError
from nimbus.feed.inspect import inspect_capture

LOBSTER = "itch/lobster_aapl/aapl_20120621_0930_0940"
LOBSTER_TYPES = {"A": 7334, "D": 6358, "E": 950, "P": 624, "X": 96, "S": 3, "R": 1, "H": 1, "Y": 1}


def test_the_lobster_capture(shared_data: pathlib.Path) -> None:
    counts = inspect_capture(shared_data / f"{LOBSTER}.pcap.gz")
    assert counts["messages"] == LOBSTER_TYPES
    assert (counts["packets"], counts["delivered"], counts["runs"]) == (14_024, 15_368, 1)
    assert (counts["counters"]["heartbeats"], counts["counters"]["session_ends"]) == (48, 1)
    assert (counts["refused"], counts["warnings"], counts["incomplete"]) == ({}, [], False)


def test_the_lobster_capture_as_an_itch_file(shared_data: pathlib.Path) -> None:
    counts = inspect_capture(shared_data / f"{LOBSTER}.itch50.bin.gz")
    assert (counts["messages"], counts["delivered"], counts["warnings"]) == (LOBSTER_TYPES, 15_368, [])


def test_every_real_packet_decodes(shared_data: pathlib.Path) -> None:
    paths = sorted((shared_data / "itch/omi").rglob("*.pcap"))
    types: Counter[str] = Counter()
    for path in paths:
        counts = inspect_capture(path)
        assert (counts["refused"], counts["delivered"]) == ({}, counts["packets"]), path.name
        types.update(counts["messages"])
        slow = SlowFeed()
        for _, frame in Frames(path).frames:
            slow.frame("ethernet", frame)
        assert (counts["messages"], counts["delivered"]) == (dict(slow.types), len(slow.delivered))
    assert types.total() == 137
    assert set(types) == set("AFECXDUPQIJLYHSN")


def test_the_beginning_of_a_real_day(shared_data: pathlib.Path) -> None:
    counts = inspect_capture(shared_data / "itch/bbekele_itch/sample.itch")
    assert (counts["messages"], counts["warnings"]) == ({"S": 1, "R": 993, "H": 3, "Y": 3}, [])


def test_another_protocol_is_counted_as_foreign(shared_data: pathlib.Path) -> None:
    counts = inspect_capture(shared_data / "iex/TOPS16.pcapng.gz")
    assert (counts["messages"], counts["refused"], counts["runs"]) == ({}, {"foreign": 13_022}, 0)
    assert counts["counters"]["udp_checksum_bad"] == 13_021


def test_a_file_without_length_prefixes_is_refused_in_one_line_with_the_offset(
    shared_data: pathlib.Path,
) -> None:
    with pytest.raises(CaptureError, match=r"message length 0.* at byte 0$"):
        inspect_capture(shared_data / "itch/ritch/ex20101224.TEST_ITCH_50")
