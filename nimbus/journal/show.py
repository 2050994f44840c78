"""Read a journal for people and exports: groups put together, payloads decoded by their declarations."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np

from nimbus.journal.log import LAST_PART
from nimbus.journal.types import PAYLOADS, RecordType
from nimbus.journal.verify import valid_records
from ringbuf.records import Record

_LINKS: Final = ("decision", "order")  # fields that tie the records of one story together
_IDS: Final = (*_LINKS, "cause_seq", "cl_ord_id", "orig_cl_ord_id", "cancel_id", "order_id", "exec_id")
_PAD: Final = "pad"


class Entry(NamedTuple):
    """One group: number of its first record in the journal, its header, its whole payload."""

    record: int
    kind: int
    stream: int
    seq: int
    epoch: int
    mono_ns: int
    wall_ns: int
    payload: bytes


def entries(folder: pathlib.Path, types: Collection[int] = ()) -> Iterator[Entry]:
    """Yield the complete groups in the order of their last records: those of some types, or all."""
    open_groups: dict[int, tuple[int, Any, list[bytes]]] = {}
    for first, records in valid_records(folder):
        wanted = np.isin(records["type"], list(types)) if types else np.ones(len(records), bool)
        for at in np.flatnonzero(wanted):
            row = records[at]
            stream, part = int(row["stream"]), int(row["part"])
            piece = row["payload"].tobytes()[: int(row["payload_size"])]
            number, head, pieces = open_groups.pop(stream, (first + int(at), row, []))
            pieces.append(piece)
            if not part & LAST_PART:
                open_groups[stream] = (number, head, pieces)
                continue
            numbers = [int(head[f]) for f in ("type", "stream", "seq", "epoch", "mono_ns", "wall_ns")]
            kind, stream, seq, epoch, mono_ns, wall_ns = numbers
            yield Entry(number, kind, stream, seq, epoch, mono_ns, wall_ns, b"".join(pieces))


def _plain(value: Any) -> Any:
    """Return a numpy field as int, float, text (printable ASCII) or hex."""
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8:
            return value.tolist()
        raw = value.tobytes().rstrip(b"\0")
        text = raw.decode("ascii", "replace")
        return text if text.isascii() and text.isprintable() else value.tobytes().hex()
    return value.item()


def _text(raw: bytes) -> str | None:
    """Return bytes as text (SOH shown as |) when every one is printable, else None."""
    text = raw.replace(b"\x01", b"|").decode("ascii", "replace")
    return text if text.isascii() and text.isprintable() else None


def decoded(entry: Entry, registry: Mapping[int, Record]) -> dict[str, Any]:
    """Return an entry as a flat dict: its header, then its payload's fields by name.

    What follows the declared payload, and a payload without declaration, is `text` or `hex`.
    """
    known = entry.kind in set(RecordType)
    name = RecordType(entry.kind).name if known else str(entry.kind)
    out: dict[str, Any] = {"record": entry.record, "type": name}
    out |= {f: getattr(entry, f) for f in ("stream", "seq", "epoch", "mono_ns", "wall_ns")}
    rest, layout = entry.payload, registry.get(entry.kind)
    if layout is not None:
        values = np.frombuffer(rest[: layout.size].ljust(layout.size, b"\0"), layout.dtype)[0]
        fields = [f for f in layout.dtype.names or () if not f.startswith(_PAD)]
        out |= {(f"payload_{f}" if f in out else f): _plain(values[f]) for f in fields}
        rest = rest[layout.size :]
    if not rest:
        return out
    text, key = _text(rest), "rest" if "text" in out else "text"
    return out | ({key: text} if text is not None else {"hex": rest.hex()})


def _linked(row: Mapping[str, Any]) -> set[tuple[str, Any]]:
    return {(name, row[name]) for name in _LINKS if row.get(name)}


def _story(folder: pathlib.Path, registry: Mapping[int, Record], trace: str) -> set[tuple[str, Any]]:
    """Return every decision and order number that records tie to the one in which an id reads `trace`."""
    ties = []
    for entry in entries(folder):
        row = decoded(entry, registry)
        mentions = any(str(row.get(name)) == trace for name in _IDS) or f"={trace}|" in row.get("text", "")
        ties.append((_linked(row), mentions))
    links = set[tuple[str, Any]]().union(*(linked for linked, mentions in ties if mentions))
    while True:
        wider = links.union(*(linked for linked, _ in ties if linked & links))
        if wider == links:
            return links
        links = wider


def show(
    folder: pathlib.Path,
    registry: Mapping[int, Record] | None = None,
    *,
    types: Collection[int] = (),
    limit: int | None = None,
    trace: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the journal's groups as dicts: of some types, at most limit, of one story.

    registry: {type: payload record} of the parts that declare their own, beside those of types.py.
    trace: a decision or order number, a ClOrdID, an ExecID, a market sequence number: everything that
    shares a decision or an order with the records that mention it.  Raises JournalError for no journal.
    """
    table = {**PAYLOADS, **(registry or {})}
    links = _story(folder, table, trace) if trace else set()

    def chosen() -> Iterator[dict[str, Any]]:
        for entry in entries(folder, types):
            row = decoded(entry, table)
            if not trace or _linked(row) & links:
                yield row

    return islice(chosen(), limit)
