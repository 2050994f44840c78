"""Numbers of a FIX session, and the application messages that may be asked for again.

For an acceptor, whose session is all Python; an initiator's numbers are in numbers.py.

A Store is the identity of a session: it outlives connections, and one connection at a time may hold it.  What
must survive the process goes through a Log: `load` gives back all entries that `save` was given, in order.
MemoryLog forgets at exit, FileLog appends to a file.  A number is saved before its message is sent, so after
a crash no number is used twice; what was not sent shows as the peer's gap (S32).  The incoming number is
saved once its message was processed (S33).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

SENT_MAX: Final = 100_000
SEQ_MAX: Final = 10**9 - 1


class StoreError(Exception):
    """A log cannot be read or written; the text is one line."""


class Sent(NamedTuple):
    """An application message as it was sent first."""

    msg_type: str
    sending_time: bytes
    body: bytes


class Entry(NamedTuple):
    """One change: the next incoming number, or a number used (with its message, if an application's)."""

    next_in: int = 0
    out: int = 0
    sent: Sent | None = None
    is_reset: bool = False


class Log(Protocol):
    """Where entries are kept."""

    def load(self) -> Iterator[Entry]:
        """Yield every entry saved so far, oldest first."""

    def save(self, entry: Entry) -> None:
        """Keep an entry; raises StoreError when it cannot."""


class MemoryLog:
    """Keeps nothing beyond the store that uses it."""

    def load(self) -> Iterator[Entry]:
        """Yield nothing."""
        return iter(())

    def save(self, entry: Entry) -> None:
        """Forget it."""


class FileLog:
    r"""Appends entries to one file: "I 7", "O 3", "R", "M 4 D 20251125-22:51:51.123 38" and 38 bytes of body.

    Written through to the kernel entry by entry, so it survives the process, not the machine.  A torn entry
    at the end, where the process died, is cut off by load().
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        try:
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            msg = f"{self.path}: {error.strerror}"
            raise StoreError(msg) from None

    def load(self) -> Iterator[Entry]:
        """Yield every whole entry; what follows the last one is removed from the file."""
        self._file.seek(0)
        whole, at = self._file.read(), 0
        while (entry := _parse(whole, at)) is not None:
            yield entry[0]
            at = entry[1]
        if at < len(whole):
            self._file.truncate(at)

    def save(self, entry: Entry) -> None:
        """Append an entry; what stood before a reset is of no use any more."""
        line = _line(entry)
        try:
            if entry.is_reset:
                self._file.truncate(0)
            written = self._file.write(line)
        except OSError as error:
            msg = f"{self.path}: {error.strerror}"
            raise StoreError(msg) from None
        if written != len(line):
            msg = f"{self.path}: {written} of {len(line)} bytes written"
            raise StoreError(msg)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(entry: Entry) -> bytes:
    if entry.is_reset:
        return b"R\n"
    if entry.sent is not None:
        kind, sending_time, body = entry.sent
        return b"M %d %s %s %d\n%s\n" % (entry.out, kind.encode(), sending_time, len(body), body)
    return b"O %d\n" % entry.out if entry.out else b"I %d\n" % entry.next_in


def _parse(whole: bytes, at: int) -> tuple[Entry, int] | None:
    """Return the entry at whole[at:] and where the next begins, or None when there is no whole one."""
    end = whole.find(b"\n", at)
    if end < 0:
        return None
    kind, *words = whole[at:end].split(b" ")
    if kind == b"R" and not words:
        return Entry(is_reset=True), end + 1
    if kind in {b"I", b"O"} and len(words) == 1 and words[0].isdigit():
        value = int(words[0])
        return (Entry(next_in=value) if kind == b"I" else Entry(out=value)), end + 1
    if kind == b"M" and len(words) == 4 and words[0].isdigit() and words[3].isdigit():
        size = int(words[3])
        body, last = whole[end + 1 : end + 1 + size], end + 1 + size
        if whole[last : last + 1] == b"\n":
            sent = Sent(words[1].decode("ascii"), words[2], body)
            return Entry(out=int(words[0]), sent=sent), last + 1
    return None


class Store:
    """The numbers of one session.  next_in, next_out: MsgSeqNum of the next message either way."""

    def __init__(self, log: Log | None = None, *, sent_max: int = SENT_MAX) -> None:
        self._log = log or MemoryLog()
        self._sent_max = sent_max
        self._is_held = False
        self._start()
        for entry in self._log.load():
            self._apply(entry)

    def _start(self) -> None:
        self.next_in, self.next_out, self._saved_in = 1, 1, 1
        self._sent: dict[int, Sent] = {}

    def _apply(self, entry: Entry) -> None:
        if entry.is_reset:
            self._start()
        elif entry.out:
            self.next_out = entry.out + 1
            if entry.sent is not None:
                self._keep(entry.out, entry.sent)
        else:
            self.next_in = self._saved_in = entry.next_in

    def _keep(self, seq: int, sent: Sent) -> None:
        self._sent[seq] = sent
        while len(self._sent) > self._sent_max:  # the oldest is no longer sent again, but gap-filled
            del self._sent[next(iter(self._sent))]

    def acquire(self) -> bool:
        """Hold the session for one connection; False when another holds it."""
        if self._is_held:
            return False
        self._is_held = True
        return True

    def release(self) -> None:
        """Let the next connection have it."""
        self._is_held = False

    def use(self, sent: Sent | None = None) -> int:
        """Take the next outgoing number, for an application message when `sent` is given; return it."""
        seq = self.next_out
        if seq > SEQ_MAX:
            msg = "outgoing numbers are used up: the session must be reset"
            raise StoreError(msg)
        entry = Entry(out=seq, sent=sent)
        self._log.save(entry)
        self._apply(entry)
        return seq

    def processed(self, next_in: int) -> None:
        """Save that every message below next_in was processed."""
        if next_in != self._saved_in:
            self._log.save(Entry(next_in=next_in))
            self._saved_in = next_in

    def reset(self) -> None:
        """Begin again: both numbers are 1, nothing can be asked for."""
        self._log.save(Entry(is_reset=True))
        self._start()

    def sent(self, seq: int) -> Sent | None:
        """Return the application message that was sent with this number, if it is still kept."""
        return self._sent.get(seq)
