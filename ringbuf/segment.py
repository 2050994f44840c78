"""Segments: named areas of memory that kernels address and other processes can read."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ringbuf.records import CACHE_LINE, Record


class Segment:
    """A bump allocator over one mapping; areas are zeroed, aligned to cache lines and never freed."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._used = CACHE_LINE
        self.areas: dict[str, tuple[int, int]] = {}

    @classmethod
    def anonymous(cls, size: int) -> Self:
        """Map `size` zero bytes private to this process; pages cost nothing until touched."""
        return cls(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def allocate(self, name: str, size: int) -> int:
        """Reserve `size` zero bytes under `name`; return their address (a multiple of 64).

        Raises ValueError when the name is taken and MemoryError when the segment is full.
        """
        if name in self.areas:
            msg = f"area {name!r} exists already"
            raise ValueError(msg)
        at, size = self._used, (size + CACHE_LINE - 1) & -CACHE_LINE
        if at + size > len(self._memory):
            msg = f"area {name!r} needs {size} bytes, {len(self._memory) - at} are left"
            raise MemoryError(msg)
        self._used += size
        self.areas[name] = (self._base + at, size)
        return self._base + at

    def array(self, name: str, record: Record) -> NDArray[Any]:
        """Return the area as an array of records (a live view, not a copy)."""
        addr, size = self.areas[name]
        return np.frombuffer(self._memory, record.dtype, size // record.size, addr - self._base)

    def words(self, addr: int, count: int) -> NDArray[np.int64]:
        """Return `count` int64 words at an address inside the segment (a live view)."""
        return np.frombuffer(self._memory, np.int64, count, addr - self._base)
