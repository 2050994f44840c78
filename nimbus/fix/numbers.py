"""What an initiator remembers of its numbers between processes.

The orders loop counts without asking anyone, so what is saved is a bound: an outgoing number that has not
been reached yet.  After a clean end it is exact; after a crash the numbers in between are left out, the peer
sees a gap, and it is filled (S32).  The incoming number follows the last message processed (S33).
"""

from __future__ import annotations

import os
import pathlib
import zlib
from typing import Final, Protocol

from nimbus.fix.store import StoreError

RESERVE: Final = 10_000  # outgoing numbers saved ahead
_SIZE: Final = 64


class NumbersLog(Protocol):
    """Where two numbers are kept."""

    def load(self) -> tuple[int, int]:
        """Return (next_in, next_out) as saved last; (1, 1) = nothing yet."""

    def save(self, next_in: int, next_out: int) -> None:
        """Keep them; raises StoreError when that fails."""


class MemoryNumbers:
    """Keeps them in this object."""

    def __init__(self, next_in: int = 1, next_out: int = 1) -> None:
        self.saved = next_in, next_out

    def load(self) -> tuple[int, int]:
        """Return what was saved last."""
        return self.saved

    def save(self, next_in: int, next_out: int) -> None:
        """Keep them."""
        self.saved = next_in, next_out


class FileNumbers:
    """Keeps them in a file of one line, written over in place; survives the process."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            msg = f"{self.path}: {error.strerror}"
            raise StoreError(msg) from None

    def load(self) -> tuple[int, int]:
        """Return what was saved last; raises StoreError for a damaged file: a person must look at it."""
        line = os.pread(self._file, _SIZE, 0)
        if not line:
            return 1, 1
        words = line.split()
        if len(words) != 3 or not all(word.isdigit() for word in words) or int(words[2]) != _check(words):
            msg = f"{self.path}: damaged, the numbers of the session are not known"
            raise StoreError(msg)
        return int(words[0]), int(words[1])

    def save(self, next_in: int, next_out: int) -> None:
        """Write both numbers."""
        words = [b"%d" % next_in, b"%d" % next_out]
        line = b" ".join([*words, b"%d" % _check(words)]).ljust(_SIZE - 1) + b"\n"
        try:
            written = os.pwrite(self._file, line, 0)
        except OSError as error:
            msg = f"{self.path}: {error.strerror}"
            raise StoreError(msg) from None
        if written != _SIZE:
            msg = f"{self.path}: {written} of {_SIZE} bytes written"
            raise StoreError(msg)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _check(words: list[bytes]) -> int:
    return zlib.crc32(b" ".join(words[:2]))


class Reservation:
    """Saves the numbers so that none is used twice, whenever the process dies."""

    def __init__(self, log: NumbersLog) -> None:
        self._log = log
        self.next_in, self.next_out = log.load()
        self._saved = self.next_in, self.next_out

    def save(self, next_in: int, next_out: int, *, is_final: bool = False) -> None:
        """Save how far both numbers have come; the outgoing one ahead of time unless this is the end."""
        bound = self._saved[1]
        if is_final:
            bound = next_out
        elif not RESERVE // 2 <= bound - next_out <= RESERVE:
            bound = next_out + RESERVE
        if (next_in, bound) != self._saved:
            self._log.save(next_in, bound)
            self._saved = next_in, bound
