"""Segments: named areas of memory that kernels address and other processes can read.

A segment is one mapping: a header, a directory of named areas, the areas.  `anonymous` is private to
the process; `create` makes a file (in /dev/shm or the service's RuntimeDirectory) that other processes
`attach` by its path.  Only the owner removes the file, never an attacher at its exit; what a dead owner left
behind is found by `orphans`.  The space is reserved at creation: a full disk is an error there, not a SIGBUS
in a kernel.  Addresses differ between processes, so everything stored inside is an offset.

    0      SEGMENT_HEADER   written by the owner; the magic makes it valid
    128    directory        AREAS_MAX entries of AREA, `area_count` of them are used
    32768  areas            each starts on a cache line and is zero when allocated
"""

from __future__ import annotations

import mmap
import os
import pathlib
import secrets
import weakref
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ringbuf.process import Process, is_alive, this_process
from ringbuf.records import CACHE_LINE, Record, record

MAGIC: Final = int.from_bytes(b"CFUSESEG", "little")
HEADER_VERSION: Final = 1  # of the two records below
LAYOUT_VERSION: Final = 1  # of what the areas hold; the application passes its own

SEGMENT_HEADER = record(
    "SEGMENT_HEADER",
    """
    i8  magic           MAGIC
    i8  header_version  HEADER_VERSION: how header and directory are laid out
    i8  layout_version  how the areas are laid out (the application's number)
    i8  size            bytes of the whole segment
    i8  epoch           run epoch of the owner
    i8  owner_pid       process that created the segment
    i8  owner_start     its start, clock ticks since boot: a re-used pid does not match
    i8  owner_boot      the boot it started in: ringbuf/process.py
    i8  used            bytes handed out so far, header included
    i8  area_count      entries of the directory in use
    6i8 pad             zero
    """,
)
AREA = record(
    "AREA",
    """
    S48 name            ASCII, padded with zeros
    i8  offset          bytes from the start of the segment
    i8  size            bytes, a multiple of 64
    """,
)
MADV_POPULATE_WRITE: Final = 23  # linux/mman.h; not among the constants of mmap
NAME_SIZE: Final = 48
AREAS_MAX: Final = 510
HEADER_SIZE: Final = SEGMENT_HEADER.size + AREAS_MAX * AREA.size


class SegmentError(Exception):
    """A segment cannot be created, read, closed or removed; the text is one line."""


class Segment:
    """A bump allocator over one mapping; areas are zeroed, aligned to cache lines and never freed.

    Kernels work on addresses, which do not keep the mapping alive: join the threads first, close second.
    """

    def __init__(self, memory: mmap.mmap, path: pathlib.Path | None = None) -> None:
        self._memory: mmap.mmap | None = memory
        self._views: list[tuple[int, weakref.ref[NDArray[Any]]]] = []  # address, array
        whole = np.frombuffer(memory, np.uint8)
        self._base = int(whole.ctypes.data)
        self._size = len(memory)
        self._header = whole[: SEGMENT_HEADER.size].view(SEGMENT_HEADER.dtype)
        self._directory = whole[SEGMENT_HEADER.size : HEADER_SIZE].view(AREA.dtype)
        self.path = path
        self.areas: dict[str, tuple[int, int]] = {}

    @classmethod
    def anonymous(cls, size: int) -> Self:
        """Map room for `size` bytes of areas, private to this process; pages cost nothing until touched."""
        total = _whole_pages(HEADER_SIZE + size)
        segment = cls(mmap.mmap(-1, total, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        segment._header[0] = _header(total, 0, LAYOUT_VERSION)
        return segment

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], size: int, epoch: int, *, layout_version: int = LAYOUT_VERSION
    ) -> Self:
        """Create the file `path` (mode 0600) with room for `size` bytes of areas, and own it.

        The file appears under its name only when it is complete.  Raises SegmentError when the name is
        taken (and says whether its owner lives) or the space cannot be had.
        """
        target = pathlib.Path(path)
        building = target.with_name(f"{target.name}.{secrets.token_hex(4)}.creating")
        total = _whole_pages(HEADER_SIZE + size)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(building, flags, 0o600)
            try:
                os.pwrite(descriptor, _header(total, epoch, layout_version).tobytes(), 0)
                os.posix_fallocate(descriptor, 0, total)
                memory = mmap.mmap(descriptor, total)
                os.link(building, target)  # fails when the name exists, never replaces it
            finally:
                os.close(descriptor)
                building.unlink()
        except FileExistsError:
            raise SegmentError(_taken(target)) from None
        except OSError as error:
            msg = f"{target}: cannot reserve {total} bytes: {error.strerror}"
            raise SegmentError(msg) from None
        return cls(memory, target)

    def populate(self) -> str:
        """Map every page for writing now, so that none has to be on first use; return "" or why not."""
        assert self._memory is not None
        try:
            self._memory.madvise(MADV_POPULATE_WRITE)
        except OSError as error:
            return f"pages not populated: {error.strerror} (Linux 5.14 and later can)"
        return ""

    @classmethod
    def attach(
        cls,
        path: str | os.PathLike[str],
        *,
        layout_version: int = LAYOUT_VERSION,
        writable: bool = False,
    ) -> Self:
        """Map a segment that another process created; closing or exiting leaves the file alone.

        Read-only unless `writable`; a kernel that writes to a read-only mapping dies by SIGSEGV.
        Raises SegmentError when the file is no segment, of another version, or cut.
        """
        source = pathlib.Path(path)
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(source, flags)
            try:
                header = _read_header(source, descriptor)
                if header["layout_version"] != layout_version:
                    msg = f"{source}: layout version {header['layout_version']}, expected {layout_version}"
                    raise SegmentError(msg)
                memory = mmap.mmap(descriptor, int(header["size"]), mmap.MAP_SHARED, access)
            finally:
                os.close(descriptor)
        except OSError as error:
            msg = f"{source}: cannot attach: {error.strerror}"
            raise SegmentError(msg) from None
        segment = cls(memory, source)
        segment.refresh()
        return segment

    @property
    def epoch(self) -> int:
        """Run epoch of the owner."""
        return int(self._header["epoch"][0])

    @property
    def owner(self) -> Process:
        """The process that created the segment."""
        return _owner(self._header[0])

    @property
    def is_orphan(self) -> bool:
        """Whether the owner is dead."""
        return not is_alive(self.owner)

    @property
    def free_size(self) -> int:
        """Bytes that are not allocated yet."""
        return self._size - int(self._header["used"][0])

    def refresh(self) -> None:
        """Read the directory again (the owner may have allocated since); refuse one that points outside."""
        self.areas = {}
        for entry in self._directory[: min(int(self._header["area_count"][0]), AREAS_MAX)]:
            at, size, name = (
                int(entry["offset"]),
                int(entry["size"]),
                entry["name"].decode("ascii", "replace"),
            )
            if at < HEADER_SIZE or size < 0 or size > self._size - at or at % CACHE_LINE:
                msg = f"{self.path}: area {name!r} lies outside the segment"
                raise SegmentError(msg)
            self.areas[name] = (self._base + at, size)

    def allocate(self, name: str, size: int, *, align: int = CACHE_LINE) -> int:
        """Reserve `size` zero bytes under `name`; return their address, a multiple of `align`.  Owner only.

        align: CACHE_LINE or LINE_PAIR, for words that two cores write.

        Raises ValueError when the name is taken or unfit and MemoryError when the segment is full.
        """
        if name in self.areas:
            msg = f"area {name!r} exists already"
            raise ValueError(msg)
        if not name.isascii() or not 0 < len(name) <= NAME_SIZE or size < 0:
            msg = f"area {name!r} of {size} bytes: names are 1 to {NAME_SIZE} ASCII characters"
            raise ValueError(msg)
        at, count = (int(self._header["used"][0]) + align - 1) & -align, len(self.areas)
        size = (size + CACHE_LINE - 1) & -CACHE_LINE
        if size > self._size - at:
            msg = f"area {name!r} needs {size} bytes, {self._size - at} are left"
            raise MemoryError(msg)
        if count == AREAS_MAX:
            msg = f"area {name!r} does not fit into the directory of {AREAS_MAX}"
            raise MemoryError(msg)
        self._directory[count] = (name.encode(), at, size)
        self._header["used"] = at + size
        self._header["area_count"] = count + 1  # last: an attacher sees whole entries only
        self.areas[name] = (self._base + at, size)
        return self._base + at

    def array(self, name: str, record: Record) -> NDArray[Any]:
        """Return the area as an array of records (a live view, not a copy)."""
        addr, size = self.areas[name]
        return self._view(record.dtype, size // record.size, addr)

    def words(self, addr: int, count: int) -> NDArray[np.int64]:
        """Return `count` int64 words at an address inside the segment (a live view)."""
        return self._view(np.dtype(np.int64), count, addr)

    def close(self) -> None:
        """Unmap.  Raises SegmentError, and changes nothing, while an array handed out is still referenced."""
        if self._memory is None:
            return
        viewed = [addr for addr, view in self._views if view() is not None]
        if viewed:
            held = [n for n, (at, size) in self.areas.items() if any(at <= v < at + size for v in viewed)]
            msg = f"segment cannot close, arrays are still in use: {', '.join(held)}"
            raise SegmentError(msg)
        del self._header, self._directory  # views before the map, else BufferError
        self.areas, self._views = {}, []
        self._memory.close()
        self._memory = None

    def unlink(self) -> None:
        """Remove the file (readers keep their mapping).  Owner only; no effect when it is already gone."""
        if self.path is None:
            return
        if self.owner != this_process():
            msg = f"{self.path}: only its owner {self.owner.pid} removes a segment"
            raise SegmentError(msg)
        self.path.unlink(missing_ok=True)

    def _view(self, dtype: np.dtype[Any], count: int, addr: int) -> NDArray[Any]:
        assert self._memory is not None, "segment is closed"
        view = np.frombuffer(self._memory, dtype, count, addr - self._base)
        if len(self._views) > AREAS_MAX:
            self._views = [pair for pair in self._views if pair[1]() is not None]
        self._views.append((addr, weakref.ref(view)))
        return view


def orphans(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Return the segments in `folder` whose owner is dead, half-made ones too; other files are ignored."""
    found = []
    for path in sorted(pathlib.Path(folder).iterdir()):
        header = _peek(path)
        if header is not None and not is_alive(_owner(header)):
            found.append(path)
    return found


def remove_orphans(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Remove the segments in `folder` whose owner is dead; return them."""
    removed = orphans(folder)
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def _whole_pages(size: int) -> int:
    return (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE


def _header(size: int, epoch: int, layout_version: int) -> np.void:
    header = np.zeros(1, SEGMENT_HEADER.dtype)
    owner = this_process()
    values = {
        "magic": MAGIC,
        "header_version": HEADER_VERSION,
        "layout_version": layout_version,
        "size": size,
        "epoch": epoch,
        "owner_pid": owner.pid,
        "owner_start": owner.start,
        "owner_boot": owner.boot,
        "used": HEADER_SIZE,
    }
    for field, value in values.items():
        header[field] = value
    return header[0]  # type: ignore[no-any-return]


def _parse(text: bytes) -> np.void | None:
    """Return the header at the start of a file, or None when the file is no segment."""
    if len(text) < SEGMENT_HEADER.size:
        return None
    header = np.frombuffer(text, SEGMENT_HEADER.dtype, 1)[0]
    return header if header["magic"] == MAGIC else None


def _read_header(path: pathlib.Path, descriptor: int) -> np.void:
    header, size = _parse(os.pread(descriptor, SEGMENT_HEADER.size, 0)), os.fstat(descriptor).st_size
    if header is None:
        msg = f"{path}: not a segment (no magic)"
    elif header["header_version"] != HEADER_VERSION:
        msg = f"{path}: header version {header['header_version']}, expected {HEADER_VERSION}"
    elif size != header["size"] or size < HEADER_SIZE:
        msg = f"{path}: truncated: {size} of {header['size']} bytes"
    else:
        return header
    raise SegmentError(msg)


def _owner(header: np.void) -> Process:
    return Process(int(header["owner_pid"]), int(header["owner_start"]), int(header["owner_boot"]))


def _peek(path: pathlib.Path) -> np.void | None:
    """Return the header of a file, or None when it is no segment (a socket, a folder, somebody else's)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _parse(os.pread(descriptor, SEGMENT_HEADER.size, 0))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _taken(path: pathlib.Path) -> str:
    header = _peek(path)
    if header is None:
        return f"{path}: exists already and is not a segment of ours"
    owner = _owner(header)
    return f"{path}: exists already, its owner {owner.pid} is {'alive' if is_alive(owner) else 'dead'}"
