"""CRC32C against vectors of RFC 3720 and against PyPI crc32c."""

import ctypes
import random

import crc32c as oracle
import pytest

from nimbus.journal import crc32c as ours

KERNELS = [ours.crc32c_by_tables] + ([ours.crc32c_by_instruction] if ours.HAS_INSTRUCTION else [])

VECTORS = [  # RFC 3720, B.4, as numbers
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


def checksum(kernel, raw):
    buffer = ctypes.create_string_buffer(raw, len(raw) + 1)
    return kernel(ctypes.addressof(buffer), len(raw))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.__name__)
@pytest.mark.parametrize(("raw", "expected"), VECTORS)
def test_published_vectors(kernel, raw, expected):
    assert checksum(kernel, raw) == expected


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.__name__)
def test_every_length_up_to_three_hundred_agrees_with_another_implementation(kernel):
    draw = random.Random(1)
    for size in range(300):
        raw = draw.randbytes(size)
        assert checksum(kernel, raw) == oracle.crc32c(raw)


def test_the_checksum_of_a_record_covers_bytes_4_to_127():
    raw = random.Random(2).randbytes(128)
    buffer = ctypes.create_string_buffer(raw, 128)
    assert ours.record_crc(ctypes.addressof(buffer)) == oracle.crc32c(raw[4:])
    assert ours._record_by_tables(ctypes.addressof(buffer)) == oracle.crc32c(raw[4:])
