"""Walk a journal and say where it stops being true: checksums, epochs, sequences, groups, the chain.

A bad record below the last durable offset is corruption.  Above it, it is the torn tail of a run that
was cut off: nothing from there on counts.  Records that a hole separates from the valid ones are never
reached, and old ones that lie directly behind the end carry a sequence or an epoch that does not follow.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nimbus.journal import log
from nimbus.journal.segments import (
    BLOCK_RECORDS,
    BLOCK_SIZE,
    BLOCKS,
    CHAIN_START,
    COMMIT,
    COMMITS_AT,
    DIGEST_SIZE,
    HEADER_SIZE,
    MAGIC,
    SEGMENT,
    JournalError,
    path_of,
    segment_paths,
    unsealed,
)
from nimbus.journal.writer import Chain
from nimbus.messages import JOURNAL, JOURNAL_PAYLOAD_SIZE, LAYOUT_VERSION
from ringbuf.crc32c import record_crc
from ringbuf.jit import kernel
from ringbuf.memory import load_i64, load_u8, load_u16, load_u32, store_i64
from ringbuf.records import record

# Reasons, by number: what is wrong with the first record that does not count.
GOOD, EMPTY, BAD_MAGIC, BAD_CRC, BAD_VERSION, BAD_EPOCH, BAD_SEQ, BAD_PART, BAD_SIZE, BAD_TYPE = range(10)
REASONS: Final = (
    "good",
    "empty: zeros where a record should be",
    "magic: not a record",
    "crc32c: the checksum does not hold",
    "version: another layout",
    "epoch: belongs to another run",
    "seq: does not follow the record before it in its stream",
    "part: does not continue its group",
    "payload_size: longer than a record",
    "type: zero",
)

WALK = record(
    "WALK",
    """
    i8     epoch   of the record before
    i8     reason  why the walk stopped
    6i8    pad     zero
    256i8  seq     by stream: last sequence number seen
    256i8  part    by stream: part that must come next, 0 = no group is open
    256i8  type    by stream: type of the open group
    """,
)

_J: Final = JOURNAL.at
_W: Final = WALK.at
_SIZE: Final = JOURNAL.size


@kernel
def _fault(journal: int, walk: int) -> int:
    """Return why the record does not count after what walk has seen, or GOOD; walk is moved on."""
    if load_u8(journal + _J.magic) != log.MAGIC:
        for at in range(0, _SIZE, 8):
            if load_i64(journal + at) != 0:
                return BAD_MAGIC
        return EMPTY
    if load_u32(journal + _J.crc32c) != record_crc(journal):
        return BAD_CRC
    if load_u8(journal + _J.version) != LAYOUT_VERSION:
        return BAD_VERSION
    if load_u32(journal + _J.epoch) < load_i64(walk + _W.epoch):
        return BAD_EPOCH
    row = walk + load_u8(journal + _J.stream) * 8
    if load_i64(journal + _J.seq) != load_i64(row + _W.seq) + 1:
        return BAD_SEQ
    kind = load_u16(journal + _J.type)
    if kind == 0:
        return BAD_TYPE
    if load_u16(journal + _J.payload_size) > JOURNAL_PAYLOAD_SIZE:
        return BAD_SIZE
    part = load_u8(journal + _J.part)
    number = part & (log.LAST_PART - 1)
    if number != load_i64(row + _W.part) or (number > 0 and kind != load_i64(row + _W.type)):
        return BAD_PART
    store_i64(walk + _W.epoch, load_u32(journal + _J.epoch))
    store_i64(row + _W.seq, load_i64(journal + _J.seq))
    store_i64(row + _W.part, 0 if part & log.LAST_PART else number + 1)
    store_i64(row + _W.type, kind)
    return GOOD


@kernel
def good_records(records: int, count: int, walk: int) -> int:
    """Return how many of the count records at `records` follow one another; WALK.reason: what stopped it."""
    for at in range(count):
        reason = _fault(records + at * _SIZE, walk)
        if reason != GOOD:
            store_i64(walk + _W.reason, reason)
            return at
    store_i64(walk + _W.reason, GOOD)
    return count


@dataclass(frozen=True, slots=True)
class Finding:
    """The first thing that is wrong: file, record within it (None: the file itself), in the journal, why."""

    file: str
    index: int | None
    record: int
    reason: str


@dataclass(slots=True)
class Report:
    """What a walk found.

    finding: corruption, or None; torn: where and why the tail was cut, or None; incomplete: records of
    groups whose end is missing; durable: records that the last commit of each segment vouches for.
    """

    segments: int = 0
    records: int = 0
    durable: int = 0
    incomplete: int = 0
    closed: bool = False
    journal_hash: str = CHAIN_START.hex()
    epochs: list[int] = field(default_factory=list)
    torn: Finding | None = None
    finding: Finding | None = None

    @property
    def ok(self) -> bool:
        """Whether everything that was durable is still true."""
        return self.finding is None


@dataclass(frozen=True, slots=True)
class _Segment:
    path: pathlib.Path
    header: Any
    durable: int
    commit_chain: bytes
    closed: bool
    records: NDArray[Any]
    digests: bytes


def _read(path: pathlib.Path) -> _Segment | str:
    """Return a segment's parts, or why its file is not one."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        msg = f"journal {path}: {error.strerror or error}"
        raise JournalError(msg) from error
    header = unsealed(raw[: SEGMENT.size], SEGMENT.dtype)
    if header is None or bytes(header["magic"]) != MAGIC.rstrip(b"\0"):
        return "header: not a segment, or damaged"
    if header["layout_version"] != LAYOUT_VERSION or header["record_size"] != JOURNAL.size:
        return f"header: layout {header['layout_version']}, this program reads {LAYOUT_VERSION}"
    slots = [unsealed(raw[at : at + COMMIT.size], COMMIT.dtype) for at in COMMITS_AT]
    commits = sorted((c for c in slots if c is not None), key=lambda c: int(c["number"]))
    durable = int(commits[-1]["records"]) if commits else 0
    closed = bool(commits and commits[-1]["closed"])
    room = int(header["blocks"]) * BLOCK_SIZE
    if not 0 <= int(header["blocks"]) <= BLOCKS or not 0 <= durable * JOURNAL.size <= room:
        return "header: more records than a segment holds"
    there = min(len(raw) - HEADER_SIZE, room) // JOURNAL.size if len(raw) > HEADER_SIZE else 0
    if durable > there:
        return f"cut: {durable} records were durable, {there} are there"
    records = np.frombuffer(raw, JOURNAL.dtype, durable if closed else there, HEADER_SIZE if there else 0)
    chain = bytes(commits[-1]["chain"]) if commits else bytes(header["previous"])
    digests = raw[HEADER_SIZE + room :]
    return _Segment(path, header, durable, chain, closed, records, digests)


def _broken_chain(segment: _Segment, good: int, chain: Chain) -> tuple[int, str] | None:
    """Take the good records into the chain; return the first record of a part whose digest differs."""
    raw = memoryview(segment.records[:good].tobytes())
    chain.digests.clear()
    at_commit = segment.durable * JOURNAL.size
    chain.add(raw[:at_commit])
    if chain.value() != segment.commit_chain:
        expected = [
            segment.digests[at : at + DIGEST_SIZE] for at in range(0, len(segment.digests), DIGEST_SIZE)
        ]
        same, there = 0, min(len(chain.digests), len(expected)) if segment.closed else 0
        while same < there and chain.digests[same] == expected[same]:
            same += 1
        return same * BLOCK_RECORDS, "chain: records were changed together with their checksums"
    expected_page = b"".join([*chain.digests, *([chain.value()] if segment.durable % BLOCK_RECORDS else [])])
    if segment.closed and not segment.digests.startswith(expected_page):
        return 0, "chain: the page of digests does not match the records"
    chain.add(raw[at_commit:])
    return None


def _check_header(segment: _Segment, number: int, report: Report, chain: Chain) -> str | None:
    header = segment.header
    if int(header["number"]) != number or segment.path != path_of(segment.path.parent, number):
        return f"header: segment {int(header['number'])} where {number} should be"
    if int(header["first"]) != report.records:
        return f"header: begins at record {int(header['first'])}, {report.records} came before"
    if bytes(header["previous"]) != chain.value():
        return "chain: does not continue the segment before"
    return None


class _Walk:
    """One pass over a folder; `segments()` yields each segment with the count of its records that hold."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.report, self.chain = folder, Report(), Chain()
        self._state = np.zeros(1, WALK.dtype)

    def segments(self) -> Iterator[tuple[_Segment, int]]:
        paths = segment_paths(self.folder)
        if not paths:
            msg = f"{self.folder} holds no journal"
            raise JournalError(msg)
        report, last_closed = self.report, True
        for number, path in enumerate(paths):
            segment = _read(path)
            why = segment if isinstance(segment, str) else _check_header(segment, number, report, self.chain)
            if why is None and not last_closed:
                why = "header: follows a segment that was never closed"
            if isinstance(segment, str) or why is not None:
                report.finding = Finding(path.name, None, report.records, str(why))
                return
            yield segment, self._take(segment)
            if report.finding is not None or report.torn is not None:
                return
            last_closed = segment.closed
        report.closed = last_closed

    def _take(self, segment: _Segment) -> int:
        report, count = self.report, len(segment.records)
        good = good_records(segment.records.ctypes.data, count, self._state.ctypes.data)
        reason = int(self._state[0]["reason"])
        report.segments += 1
        report.durable += segment.durable
        if good < segment.durable:
            why = REASONS[reason]
            report.finding = Finding(segment.path.name, good, report.records + good, why)
        elif broken := _broken_chain(segment, good, self.chain):
            report.finding = Finding(segment.path.name, broken[0], report.records + broken[0], broken[1])
            good = broken[0]
        elif reason != GOOD and segment.records[good:].view(np.uint8).any():
            report.torn = Finding(segment.path.name, good, report.records + good, REASONS[reason])
        report.records += good
        report.epochs.extend(
            int(e) for e in np.unique(segment.records["epoch"][:good]) if e not in report.epochs
        )
        report.incomplete = int(self._state[0]["part"].sum())
        report.journal_hash = self.chain.value().hex()
        return good


def verify(folder: pathlib.Path) -> Report:
    """Walk the whole journal in folder.  Raises JournalError only when there is none or it cannot be read."""
    walk = _Walk(folder)
    for _ in walk.segments():
        pass
    return walk.report


def valid_records(folder: pathlib.Path) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (number of the first, records) of each segment, as far as the journal holds."""
    first = 0
    for segment, good in _Walk(folder).segments():
        yield first, segment.records[:good]
        first += good
