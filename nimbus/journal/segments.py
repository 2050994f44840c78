"""Segment files: where the journal lies on disk, and how it is chained.

    4 KiB   header: SEGMENT at 0, two COMMIT slots at 1,024 and 2,048, zeros
    n x 512 KiB   blocks of 4,096 records (the last segment of a journal may end inside a block)
    4 KiB   one BLAKE2b-256 per block, in order

The digest of a block is taken over the digest of the block before it and the block's records; the first
block of the journal starts from 32 zeros.  Blocks go by record number, never by commit, so the chain says
nothing about timing: the same records give the same chain.  A COMMIT says how many records of the segment
were durable, and the chain up to there; the two slots alternate, so a torn write leaves the other one.
A full segment holds 128 blocks, 64 MiB; a closed journal's last segment is cut to whole blocks.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any, Final

import numpy as np

from nimbus.messages import JOURNAL, LAYOUT_VERSION
from ringbuf.records import record

MAGIC: Final = b"CFJRNL1\0"
HEADER_SIZE: Final = 4_096
DIGESTS_SIZE: Final = 4_096
COMMITS_AT: Final = (1_024, 2_048)  # never in one sector
BLOCK_RECORDS: Final = 4_096
BLOCK_SIZE: Final = BLOCK_RECORDS * JOURNAL.size
BLOCKS: Final = 128
DIGEST_SIZE: Final = 32
CHAIN_START: Final = bytes(DIGEST_SIZE)
PREPARE_SIZE: Final = 1 << 20
_SUM_SIZE: Final = 8

SEGMENT = record(
    "SEGMENT",
    """
    S8    magic           CFJRNL1
    u4    layout_version  of nimbus/messages.py
    u4    record_size     bytes of one record
    i8    number          segments before this one
    i8    first           records in the segments before this one
    i8    blocks          blocks of records this file has room for
    u4    epoch           run that began it
    u4    pad             zero
    32u1  previous        chain at the end of the segment before
    40u1  pad2            zero
    8u1   digest          BLAKE2b-64 of what stands before it
    """,
)

COMMIT = record(
    "COMMIT",
    """
    i8    number   commits of this segment so far, from 1
    i8    records  records of this segment that were durable
    32u1  chain    the chain up to there, an unfinished block included
    u1    closed   1 = nothing follows in this segment
    7u1   pad      zero
    8u1   digest   BLAKE2b-64 of what stands before it
    """,
)


class JournalError(Exception):
    """The journal cannot be written or read; one line of reason.  While writing it is final."""


def sealed(values: Any) -> bytes:
    """Return one SEGMENT or COMMIT record as bytes, its last 8 bytes the digest of the others."""
    body = bytes(values.tobytes())[:-_SUM_SIZE]
    return body + hashlib.blake2b(body, digest_size=_SUM_SIZE).digest()


def unsealed(raw: bytes, dtype: np.dtype[Any]) -> Any | None:
    """Return the record in raw, or None when its digest does not hold."""
    if len(raw) != dtype.itemsize:
        return None
    values = np.frombuffer(raw, dtype)[0]
    return values if sealed(values) == raw else None


def path_of(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Return where segment `number` lies."""
    return folder / f"{number:08d}.journal"


def segment_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the segments of a journal, in order."""
    return sorted(folder.glob("*.journal"))


def write_all(fd: int, buffer: bytes | memoryview, at: int) -> None:
    """Write the whole buffer at an offset; a short write is an error (the disk is full or failing)."""
    size = len(buffer)
    if size and (done := os.pwrite(fd, buffer, at)) != size:
        msg = f"short write: {done} of {size} bytes"
        raise OSError(msg)


def sync_folder(folder: pathlib.Path) -> None:
    """Make new names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SegmentFile:
    """One segment being prepared, then written.

    Durable: the file is filled with zeros and synced under another name before it is used, so that a
    full disk is met here and never while an order waits.
    """

    def __init__(self, folder: pathlib.Path, number: int, blocks: int, *, durable: bool) -> None:
        self.number, self.blocks, self.durable = number, blocks, durable
        self._folder, self._path = folder, path_of(folder, number)
        self._spare = self._path.with_suffix(".free")
        self.size = HEADER_SIZE + blocks * BLOCK_SIZE + DIGESTS_SIZE
        self._zeroed = 0 if durable else self.size
        self.fd = os.open(
            self._spare if durable else self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640
        )
        self._commits = 0

    @property
    def prepared(self) -> bool:
        """Whether the file can be used at once."""
        return self._zeroed == self.size

    def prepare(self, size: int = PREPARE_SIZE) -> None:
        """Fill up to size more bytes with zeros; sync when the last of them is written."""
        step = min(size, self.size - self._zeroed)
        if step:
            write_all(self.fd, bytes(step), self._zeroed)
            self._zeroed += step
            if self.prepared:
                os.fsync(self.fd)

    def begin(self, first: int, epoch: int, previous: bytes) -> None:
        """Give the prepared file its header and its name."""
        while not self.prepared:
            self.prepare()
        self._first, self._epoch, self._previous = first, epoch, previous
        self._write_header(self.blocks)
        if self.durable:
            os.fdatasync(self.fd)
            self._spare.rename(self._path)
            sync_folder(self._folder)

    def _write_header(self, blocks: int) -> None:
        values = np.zeros((), SEGMENT.dtype)
        values["magic"], values["layout_version"], values["record_size"] = MAGIC, LAYOUT_VERSION, JOURNAL.size
        values["number"], values["first"], values["blocks"] = self.number, self._first, blocks
        values["epoch"], values["previous"] = self._epoch, np.frombuffer(self._previous, np.uint8)
        write_all(self.fd, sealed(values), 0)

    def append(self, records: memoryview, filled: int) -> None:
        """Write whole records behind the first `filled` ones."""
        write_all(self.fd, records, HEADER_SIZE + filled * JOURNAL.size)

    def sync(self) -> None:
        """Make everything written so far durable (nothing to do when the run does not ask for it)."""
        if self.durable:
            os.fdatasync(self.fd)

    def commit(self, records: int, chain: bytes, *, closed: bool = False) -> None:
        """Note that records of this segment are durable; the next sync makes the note itself durable."""
        self._commits += 1
        values = np.zeros((), COMMIT.dtype)
        values["number"], values["records"], values["closed"] = self._commits, records, closed
        values["chain"] = np.frombuffer(chain, np.uint8)
        write_all(self.fd, sealed(values), COMMITS_AT[self._commits % 2])

    def finish(self, records: int, chain: bytes, digests: list[bytes]) -> None:
        """Cut to whole blocks, write the digests, note the end, sync and close the file."""
        blocks = (records + BLOCK_RECORDS - 1) // BLOCK_RECORDS
        digests_at = HEADER_SIZE + blocks * BLOCK_SIZE
        self.sync()
        write_all(self.fd, b"".join(digests).ljust(DIGESTS_SIZE, b"\0"), digests_at)
        os.ftruncate(self.fd, digests_at + DIGESTS_SIZE)
        self._write_header(blocks)
        self.commit(records, chain, closed=True)
        self.sync()
        self.close()

    def close(self) -> None:
        """Close the file as it is; a second call does nothing."""
        if self.fd >= 0:
            descriptor, self.fd = self.fd, -1
            os.close(descriptor)

    def abandon(self) -> None:
        """Close a file that will not be used, and remove it if it was only prepared."""
        self.close()
        self._spare.unlink(missing_ok=True)
