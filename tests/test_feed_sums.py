"""Checksums and digests of the feed, against their plain definitions, on this processor and on any."""

from __future__ import annotations

import ctypes
import os
import pathlib
import subprocess
import sys

import pytest
from captures import internet_checksum
from feeding import guarded_page
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.feed import packet, window
from ringbuf.jit import kernel

PLAIN = "CONTRAFUSION_TEST_PLAIN_PROCESSOR"
END = guarded_page()


@kernel
def sum_is_right(at: int, size: int) -> bool:
    return packet._is_right(packet._sum(at, size))


@kernel
def digest(at: int, size: int) -> int:
    return window.digest(at, size)


def put(data: bytes, behind: int = 0) -> int:
    """Place bytes so that the page behind them, or `behind` bytes further on, may not be touched."""
    at = END - behind - len(data)
    ctypes.memmove(at, data, len(data))
    return at


def bodies() -> st.SearchStrategy[bytes]:
    same = st.tuples(st.sampled_from([b"\0", b"\xff"]), st.integers(8, 300)).map(lambda t: t[0] * t[1])
    return st.one_of(st.binary(min_size=8, max_size=300), same)


def is_right_by_definition(data: bytes) -> bool:
    """Say whether the 16-bit words add up to all ones; zeros alone do not (RFC 1071)."""
    return any(data) and internet_checksum(data) == 0


@settings(max_examples=600, deadline=None)
@given(bodies(), st.booleans(), st.integers(0, 7))
def test_sums_judge_as_the_sum_of_16_bit_words_does(data: bytes, mended: bool, behind: int) -> None:
    if mended:  # its first word becomes the checksum of the rest
        data = internet_checksum(b"\0\0" + data[2:]).to_bytes(2, "big") + data[2:]
    assert sum_is_right(put(data, behind), len(data)) == is_right_by_definition(data)


@pytest.mark.parametrize("size", range(8, 120))
def test_every_bit_of_every_size_counts_in_a_sum(size: int) -> None:
    data = bytes(range(1, size - 1))
    data = internet_checksum(b"\0\0" + data).to_bytes(2, "big") + data
    assert sum_is_right(put(data), size)
    for bit in range(8 * size):
        changed = (int.from_bytes(data, "little") ^ (1 << bit)).to_bytes(size, "little")
        assert not sum_is_right(put(changed), size)


@pytest.mark.parametrize("size", range(60))
def test_a_digest_depends_on_each_bit_and_reads_no_other(size: int) -> None:
    data = bytes((7 * i) % 256 for i in range(size))
    seen = digest(put(data), size)
    assert 0 <= seen < 1 << 32
    for bit in range(8 * size):
        changed = (int.from_bytes(data, "little") ^ (1 << bit)).to_bytes(size, "little")
        assert digest(put(changed), size) != seen
    assert digest(put(data + b"\x55"), size) == seen


def test_the_same_holds_in_code_for_a_processor_without_extensions() -> None:
    if PLAIN in os.environ:
        assert window._mix is window._mix_by_product
        return
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", PLAIN: "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        cwd=pathlib.Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2_000:]
