"""CRC32C (Castagnoli) in kernels: the processor's own instruction, or eight tables where it has none.

Reflected polynomial 0x82F63B78, all ones in, complemented out: iSCSI, RFC 3720, section B.4.
Cost of one journal record: 124 bytes, 16 dependent steps of 3 cycles with the instruction.
`digest` takes even and odd words apart: two sums that do not wait for each other, and 64 bits of them.
"""

from __future__ import annotations

import os
from typing import Any, Final

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from ringbuf.jit import inlined, kernel
from ringbuf.memory import I64, Codegen, load_i64, load_u8, load_u32, lowered

POLYNOMIAL: Final = 0x82F63B78
ALL_ONES: Final = 0xFFFFFFFF
RECORD_CHECKED: Final = 124  # bytes 4-127 of a journal record
_WORD: Final = 8


def _has_instruction() -> bool:
    """Say whether kernels are compiled for a processor with SSE 4.2 (an override of it counts as no)."""
    if os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES"):
        return False
    try:
        return bool(llvmlite.binding.get_host_cpu_features().get("sse4.2", False))
    except RuntimeError:  # LLVM does not know this processor
        return False


def _step(bits: int) -> Codegen:
    def codegen(_ctx: Any, builder: Any, args: list[Any]) -> Any:
        state, value = (I64, I64) if bits == I64.width else (ir.IntType(32), ir.IntType(bits))
        kind, name = ir.FunctionType(state, [state, value]), f"llvm.x86.sse42.crc32.{state.width}.{bits}"
        step = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        if bits == I64.width:
            return builder.call(step, args)
        return builder.zext(
            builder.call(step, [builder.trunc(a, t) for a, t in zip(args, kind.args, strict=True)]), I64
        )

    return codegen


@lowered(_step(64))
def crc_word(crc: int, value: int) -> int:  # type: ignore[empty-body]
    """Take 8 bytes into the checksum; needs SSE 4.2."""


@lowered(_step(32))
def _crc_half(crc: int, value: int) -> int:  # type: ignore[empty-body]
    """Take 4 bytes into the checksum."""


@lowered(_step(8))
def _crc_byte(crc: int, value: int) -> int:  # type: ignore[empty-body]
    """Take one byte into the checksum."""


def _tables() -> NDArray[np.int64]:
    """Return eight tables of 256: the effect of a byte that lies 0 to 7 bytes before the end of a word."""
    table = np.zeros((_WORD, 256), np.int64)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL if crc & 1 else 0)
        table[0, byte] = crc
    for distance in range(1, _WORD):
        before = table[distance - 1]
        table[distance] = (before >> 8) ^ table[0, before & 255]
    return table.reshape(-1)


_TABLES: Final = _tables()


@inlined
def _word_by_tables(crc: int, value: int) -> int:
    word, crc = value ^ crc, 0
    for at in range(_WORD):
        crc ^= _TABLES[(7 - at) * 256 + ((word >> (8 * at)) & 255)]
    return crc


@kernel
def crc32c_by_instruction(addr: int, size: int) -> int:
    """Return the CRC32C of size bytes at addr; needs SSE 4.2."""
    crc, end = ALL_ONES, addr + size
    while end - addr >= _WORD:
        crc = crc_word(crc, load_i64(addr))
        addr += _WORD
    while addr < end:
        crc = _crc_byte(crc, load_u8(addr))
        addr += 1
    return crc ^ ALL_ONES


@kernel
def crc32c_by_tables(addr: int, size: int) -> int:
    """Return the CRC32C of size bytes at addr, on any processor."""
    crc, end = ALL_ONES, addr + size
    while end - addr >= _WORD:
        crc = _word_by_tables(crc, load_i64(addr))
        addr += _WORD
    while addr < end:
        crc = (crc >> 8) ^ _TABLES[(crc ^ load_u8(addr)) & 255]
        addr += 1
    return crc ^ ALL_ONES


@inlined
def _record_by_instruction(journal: int) -> int:
    crc = _crc_half(ALL_ONES, load_u32(journal + 4))
    for at in range(8, 128, _WORD):
        crc = crc_word(crc, load_i64(journal + at))
    return crc ^ ALL_ONES


@inlined
def _record_by_tables(journal: int) -> int:
    return crc32c_by_tables(journal + 4, RECORD_CHECKED)


@inlined
def digest_by_instruction(addr: int, pairs: int) -> int:
    """Return 64 bits that tell `pairs` pairs of words at addr from others; needs SSE 4.2."""
    even = odd = ALL_ONES
    for pair in range(pairs):
        even = crc_word(even, load_i64(addr + pair * 2 * _WORD))
        odd = crc_word(odd, load_i64(addr + pair * 2 * _WORD + _WORD))
    return even | (odd << 32)


@inlined
def digest_by_tables(addr: int, pairs: int) -> int:
    """Return the same on any processor."""
    even = odd = ALL_ONES
    for pair in range(pairs):
        even = _word_by_tables(even, load_i64(addr + pair * 2 * _WORD))
        odd = _word_by_tables(odd, load_i64(addr + pair * 2 * _WORD + _WORD))
    return even | (odd << 32)


HAS_INSTRUCTION: Final = _has_instruction()
crc32c = crc32c_by_instruction if HAS_INSTRUCTION else crc32c_by_tables
record_crc = _record_by_instruction if HAS_INSTRUCTION else _record_by_tables
digest = digest_by_instruction if HAS_INSTRUCTION else digest_by_tables
