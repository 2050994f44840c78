"""The journal's cold side: move records from the rings to segments, in groups, and chain them."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Final

from nimbus.journal.log import Stream
from nimbus.journal.segments import (
    BLOCK_RECORDS,
    BLOCK_SIZE,
    BLOCKS,
    CHAIN_START,
    DIGEST_SIZE,
    JournalError,
    SegmentFile,
    segment_paths,
)
from nimbus.messages import JOURNAL

SEGMENTS_AHEAD: Final = 2  # durable: fewer prepared ones than this is an alarm and stops new orders


def erase(folder: pathlib.Path) -> int:
    """Remove the journal in a folder (a replay writes its own anew); return how many files went."""
    files = [*folder.glob("*.journal"), *folder.glob("*.free")]
    for path in files:
        path.unlink()
    return len(files)


class Chain:
    """BLAKE2b-256 over blocks of records, each block's digest going into the next."""

    def __init__(self) -> None:
        self._last, self._filled, self.digests = CHAIN_START, 0, list[bytes]()
        self._block = hashlib.blake2b(self._last, digest_size=DIGEST_SIZE)

    def add(self, records: memoryview) -> None:
        """Take whole records; digests of the blocks they complete are appended to `digests`."""
        while len(records):
            piece = records[: BLOCK_SIZE - self._filled]
            self._block.update(piece)
            self._filled += len(piece)
            records = records[len(piece) :]
            if self._filled == BLOCK_SIZE:
                self._last, self._filled = self._block.digest(), 0
                self.digests.append(self._last)
                self._block = hashlib.blake2b(self._last, digest_size=DIGEST_SIZE)

    def value(self) -> bytes:
        """Return the chain over everything taken so far."""
        return self._block.digest() if self._filled else self._last


class JournalWriter:
    """Owns the segments of one run; `drain()` is one group commit over all streams, in their order.

    durable: preallocate by writing zeros, fdatasync each group before its ring slots are given back.
    Without it (replay) nothing is synced.  The first I/O error is final: JournalError now and at every
    later call, and no ring slot is given back; to halt is the caller's duty.
    listener: called with each piece of records, whole ones of one stream, as it is moved; it keeps no view.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        streams: Sequence[Stream],
        *,
        epoch: int,
        blocks: int = BLOCKS,
        durable: bool = True,
        listener: Callable[[memoryview], None] | None = None,
    ) -> None:
        if not 1 <= blocks <= BLOCKS:
            msg = f"a segment has 1 to {BLOCKS} blocks, not {blocks}"
            raise ValueError(msg)
        self.folder, self.epoch, self.records = folder, epoch, 0
        self._streams, self._blocks, self._durable = tuple(streams), blocks, durable
        self.listener = listener
        self._chain, self._error, self._open = Chain(), "", True
        self._filled = 0  # records of the current segment
        self._ahead: list[SegmentFile] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if segment_paths(folder):
                msg = f"{folder} holds a journal already"
                raise JournalError(msg)
            self._segment = self._new_segment(0)
            self._segment.begin(0, epoch, CHAIN_START)
        except OSError as error:
            msg = f"journal {folder}: {error.strerror or error}"
            raise JournalError(msg) from error

    def _new_segment(self, number: int) -> SegmentFile:
        return SegmentFile(self.folder, number, self._blocks, durable=self._durable)

    @property
    def journal_hash(self) -> str:
        """The chain over every record moved so far, in hex; same records, same hash."""
        return self._chain.value().hex()

    @property
    def segments_ahead(self) -> int:
        """Segments prepared beyond the current one (always enough when the run is not durable)."""
        return sum(s.prepared for s in self._ahead) if self._durable else SEGMENTS_AHEAD

    def drain(self) -> int:
        """Move every waiting record to disk; return how many.  Raises JournalError, then for ever."""
        self._refuse_when_failed()
        moved = 0
        try:
            counts = [self._write(stream) for stream in self._streams]
            moved = sum(counts)
            if moved:
                self._segment.sync()
                self._segment.commit(self._filled, self._chain.value())
                for stream, count in zip(self._streams, counts, strict=True):
                    stream.release(count)
            self._prepare()
        except OSError as error:
            self._error = f"journal {self.folder}: {error.strerror or error}"
            raise JournalError(self._error) from error
        return moved

    def close(self) -> None:
        """Move what still waits, cut the last segment and close it; a second call does nothing."""
        if not self._open:
            return
        try:
            if not self._error:
                self.drain()
                self._finish()
        except OSError as error:
            self._error = f"journal {self.folder}: {error.strerror or error}"
            raise JournalError(self._error) from error
        finally:
            self._open = False
            for segment in self._ahead:
                segment.abandon()
            self._ahead = []
            if self._error:
                self._segment.close()

    def _refuse_when_failed(self) -> None:
        if self._error:
            raise JournalError(self._error)
        if not self._open:
            msg = f"journal {self.folder}: closed"
            raise JournalError(msg)

    def _write(self, stream: Stream) -> int:
        count = 0
        for view in stream.waiting():
            count += len(view) // JOURNAL.size
            self._append(view)
            if self.listener is not None:
                self.listener(view)
        return count

    def _append(self, records: memoryview) -> None:
        capacity = self._blocks * BLOCK_RECORDS
        while len(records):
            if self._filled == capacity:
                self._rotate()
            piece = records[: (BLOCK_RECORDS - self._filled % BLOCK_RECORDS) * JOURNAL.size]
            self._segment.append(piece, self._filled)  # a block at a time: it is still in cache
            self._chain.add(piece)
            self._filled += len(piece) // JOURNAL.size
            self.records += len(piece) // JOURNAL.size
            records = records[len(piece) :]

    def _rotate(self) -> None:
        number, chain = self._segment.number + 1, self._chain.value()
        self._finish()
        self._segment = self._ahead.pop(0) if self._ahead else self._new_segment(number)
        self._segment.begin(self.records, self.epoch, chain)
        self._filled = 0

    def _finish(self) -> None:
        value = self._chain.value()
        digests = [*self._chain.digests, value] if self._filled % BLOCK_RECORDS else self._chain.digests
        self._segment.finish(self._filled, value, list(digests))
        self._chain.digests.clear()

    def _prepare(self) -> None:
        """Bring the next segments one step nearer; at most PREPARE_SIZE bytes a call."""
        if not self._durable:
            return
        if len(self._ahead) < SEGMENTS_AHEAD and all(s.prepared for s in self._ahead):
            self._ahead.append(self._new_segment(self._segment.number + len(self._ahead) + 1))
        for segment in self._ahead:
            if not segment.prepared:
                segment.prepare()
                break
