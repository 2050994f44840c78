"""Loads, stores and atomics: every width, sign and byte order, against Python's own integers."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringbuf import atomics, memory
from ringbuf.jit import kernel

# (load, store, bytes, byte order, signed)
INTEGERS = [
    ("load_u8", "store_u8", 1, "little", False),
    ("load_u16", "store_u16", 2, "little", False),
    ("load_u32", "store_u32", 4, "little", False),
    ("load_i16", "store_i16", 2, "little", True),
    ("load_i32", "store_i32", 4, "little", True),
    ("load_i64", "store_i64", 8, "little", True),
    ("u1", "put_u1", 1, "big", False),
    ("u2", "put_u2", 2, "big", False),
    ("u4", "put_u4", 4, "big", False),
    ("u6", "put_u6", 6, "big", False),
    ("u8", "put_u8", 8, "big", True),  # 64 bits come as int64: the same bits
]


def _loader(name: str) -> Callable[[int], Any]:
    load = getattr(memory, name)

    @kernel
    def run(addr: int) -> Any:
        return load(addr)

    return run


def _storer(name: str) -> Callable[[int, Any], None]:
    store = getattr(memory, name)

    @kernel
    def run(addr: int, value: Any) -> None:
        store(addr, value)

    return run


@pytest.mark.parametrize(("load", "store", "size", "order", "signed"), INTEGERS, ids=[i[0] for i in INTEGERS])
def test_integers_of_each_width(load: str, store: str, size: int, order: Any, signed: bool) -> None:
    run_load, run_store = _loader(load), _storer(store)

    @settings(max_examples=60, deadline=None)
    @given(st.binary(min_size=size, max_size=size), st.integers(-(2**63), 2**63 - 1), st.integers(0, 7))
    def check(raw: bytes, value: int, at: int) -> None:
        area = np.full(32, 0xA5, np.uint8)
        addr = area.ctypes.data + 8 + at  # any alignment
        area[8 + at : 8 + at + size] = np.frombuffer(raw, np.uint8)
        assert run_load(addr) == int.from_bytes(raw, order, signed=signed)
        run_store(addr, value)
        expected = (value & (2 ** (8 * size) - 1)).to_bytes(size, order)
        assert area.tobytes() == b"\xa5" * (8 + at) + expected + b"\xa5" * (24 - at - size)

    check()


@pytest.mark.parametrize(("width", "code"), [("f64", "<d"), ("f32", "<f")])
def test_floats(width: str, code: str) -> None:
    load, store = _loader(f"load_{width}"), _storer(f"store_{width}")
    area = np.zeros(24, np.uint8)
    for value in (0.0, -0.0, 1.5, -(2.0**100), math.inf, -math.inf, math.nan, 0.1):
        store(area.ctypes.data + 3, value)
        assert area[3 : 3 + struct.calcsize(code)].tobytes() == struct.pack(code, value)
        (expected,) = struct.unpack(code, struct.pack(code, value))
        assert struct.pack("<d", load(area.ctypes.data + 3)) == struct.pack("<d", expected)


@kernel
def _copy(target: int, source: int, size: int) -> None:
    memory.copy(target, source, size)


@kernel
def _copy_line(target: int, source: int) -> None:
    memory.copy_line(target, source)


@kernel
def _clear(addr: int, size: int) -> None:
    memory.clear(addr, size)


@kernel
def _leading_zeros(value: int) -> int:
    return memory.leading_zeros(value)


@kernel
def _prefetch(addr: int) -> None:
    memory.prefetch(addr)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 65, 1_000])
def test_copy_and_clear_touch_exactly_their_bytes(size: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, 1_100, np.uint8)
    target = np.full(1_100, 9, np.uint8)
    _copy(target.ctypes.data + 3, source.ctypes.data + 5, size)
    assert (target[3 : 3 + size] == source[5 : 5 + size]).all()
    _clear(target.ctypes.data + 3, size)
    assert not target[3 : 3 + size].any()
    assert (target[:3] == 9).all()
    assert (target[3 + size :] == 9).all()


def test_copy_line_copies_64_bytes() -> None:
    source, target = np.arange(24, dtype=np.int64), np.zeros(24, np.int64)
    _copy_line(target.ctypes.data + 8, source.ctypes.data + 16)
    assert target.tolist() == [0, *range(2, 10), *[0] * 15]


@given(st.integers(-(2**63), 2**63 - 1))
def test_leading_zeros(value: int) -> None:
    assert _leading_zeros(value) == 64 - (value % 2**64).bit_length()


@kernel
def _trailing_zeros(value: int) -> int:
    return memory.trailing_zeros(value)


@kernel
def _multiply(left: int, right: int) -> int:
    return memory.wrapping_multiply(left, right)


@kernel
def _byte_marks(addr: int, value: int) -> int:
    return memory.byte_marks(addr, value)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_multiplication_wraps_and_trailing_zeros_count(left: int, right: int) -> None:
    assert _multiply(left, right) % 2**64 == left * right % 2**64
    word = left % 2**64
    assert _trailing_zeros(left) == ((word & -word).bit_length() - 1 if word else 64)


@given(
    st.lists(st.sampled_from([0, 1, 2, 127, 128, 129, 254, 255]), min_size=8, max_size=8), st.integers(0, 255)
)
def test_the_lowest_byte_mark_is_the_first_equal_byte(word: list[int], value: int) -> None:
    area = np.array([9, *word], np.uint8)
    marks = _byte_marks(area.ctypes.data + 1, value) % 2**64
    first = word.index(value) if value in word else -1
    assert ((marks & -marks).bit_length() // 8 - 1 if marks else -1) == first


def test_prefetch_takes_any_address() -> None:
    for addr in (0, -1, 64, 1 << 62):
        _prefetch(addr)


@kernel
def _atomics(addr: int, values: int) -> int:
    """Use every atomic once on words at addr; return a digest of what was read."""
    atomics.store_relaxed(addr, 5)
    atomics.fence_release()
    atomics.store_release(addr + 8, atomics.load_relaxed(addr) + 1)
    before = atomics.fetch_add(addr + 8, values)
    atomics.fence_acquire()
    atomics.pause()
    return before * 1_000 + atomics.load_acquire(addr + 8)


def test_atomics_read_and_write_words() -> None:
    area = np.zeros(4, np.int64)
    assert _atomics(area.ctypes.data, -16) == 6 * 1_000 - 10
    assert area.tolist() == [5, -10, 0, 0]


@kernel
def _cycles() -> int:
    return atomics.cycles()


def test_the_cycle_counter_moves_forward() -> None:
    first = _cycles()
    assert _cycles() > first


@kernel
def _add_many(addr: int, count: int) -> None:
    for _ in range(count):
        atomics.fetch_add(addr, 1)


def test_fetch_add_loses_nothing_between_threads() -> None:
    import threading

    area = mmap.mmap(-1, 4_096)
    word = np.frombuffer(area, np.int64, 1)
    _add_many(word.ctypes.data, 0)
    threads = [threading.Thread(target=_add_many, args=(word.ctypes.data, 100_000)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert word[0] == 300_000


def test_on_arm_the_same_kernels_become_ordering_instructions() -> None:
    """The machine here orders most accesses by itself; the code for one that does not is looked at."""
    area = np.zeros(4, np.int64)
    _atomics(area.ctypes.data, 1)
    (text,) = _atomics.inspect_llvm().values()  # type: ignore[attr-defined]
    body = [line for line in text.splitlines() if not line.startswith("target ")]
    body = [line for line in body if not line.startswith("attributes")]
    source = "\n".join(body).replace("llvm.x86.sse2.pause()", "llvm.donothing()")
    llvmlite.binding.initialize_all_targets()
    llvmlite.binding.initialize_all_asmprinters()
    try:
        target = llvmlite.binding.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM has no ARM back end")
    module = llvmlite.binding.parse_assembly(source)
    module.triple = "aarch64-unknown-linux-gnu"
    assembly = target.create_target_machine(opt=2).emit_assembly(module)
    for instruction in ("ldar", "stlr", "dmb\tish\n", "dmb\tishld"):
        assert instruction in assembly


@kernel
def _half_words(addr: int, value: int) -> int:
    atomics.store_release_u32(addr + 4, value)
    return atomics.load_acquire_u32(addr + 4)


def test_the_atomics_of_half_words_touch_their_four_bytes_alone():
    words = np.full(2, -1, np.int64)
    assert _half_words(words.ctypes.data, 0x1_0000_0000 + 0xFEDC_BA98) == 0xFEDC_BA98  # unsigned, cut
    assert words.tolist() == [int.from_bytes(bytes.fromhex("ffffffff98badcfe"), "little", signed=True), -1]


@kernel
def _add_around(left: int, right: int) -> int:
    return memory.add_around(left, right)


@kernel
def _fold_around(total: int) -> int:
    return memory.fold_around(total)


WORDS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, -1, 1, -(2**63), 2**63 - 1, 0xFFFF]))


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_sums_in_ones_complement_carry_around(left: int, right: int) -> None:
    total = (left % 2**64) + (right % 2**64)
    assert _add_around(left, right) % 2**64 == (total % 2**64) + (total >> 64)
    folded = left % 2**64
    while folded > 0xFFFF:
        folded = (folded & 0xFFFF) + (folded >> 16)
    assert _fold_around(left) == folded


@kernel
def _count_above(addr: int, value: int) -> int:
    return memory.count_above(addr, value)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, min_size=8, max_size=8), WORDS)
def test_words_above_a_value_are_counted_with_their_sign(words: list[int], value: int) -> None:
    area = np.array([2**63 - 1, *words, 2**63 - 1], np.int64)
    assert _count_above(area.ctypes.data + 8, value) == sum(word > value for word in words)
