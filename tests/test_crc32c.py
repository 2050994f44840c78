"""CRC32C against vectors of RFC 3720 and against PyPI crc32c."""

import ctypes
import random

import crc32c as oracle
import pytest

from ringbuf import crc32c as ours

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


DIGESTS = [ours.digest_by_tables] + ([ours.digest_by_instruction] if ours.HAS_INSTRUCTION else [])


@pytest.mark.parametrize("kernel", DIGESTS, ids=lambda k: k.__name__)
def test_a_digest_is_the_checksums_of_even_and_odd_words(kernel):
    draw = random.Random(3)
    for pairs in (0, 1, 2, 16, 33):
        raw = draw.randbytes(16 * pairs)
        words = [raw[at : at + 8] for at in range(0, len(raw), 8)]
        even, odd = (oracle.crc32c(b"".join(words[first::2])) ^ 0xFFFFFFFF for first in (0, 1))
        buffer = ctypes.create_string_buffer(raw, len(raw) + 1)
        assert kernel(ctypes.addressof(buffer), pairs) & (1 << 64) - 1 == even | odd << 32
