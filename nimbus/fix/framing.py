"""Cut a byte stream into FIX messages; what is garbled is thrown away and counted (S17).

A message is whole when it begins with 8=FIX..., 9= and 35=, BodyLength leads to a trailer, and CheckSum is
right.  One that is not is skipped as far as its BodyLength says (or past its first bytes when that cannot be
believed), and the search goes on at the next 8=FIX.  It consumes no number, so the next one shows the gap.
The kernel of frames.py cuts in the same way; this is the readable form, and they are compared.
"""

from __future__ import annotations

import re
from typing import Final

MESSAGE_MAX: Final = 16_384
START: Final = b"8=FIX"
BEGIN_STRING_MAX: Final = 8  # FIXT.1.1
_TRAILER_SIZE: Final = 7
_LENGTH_DIGITS_MAX: Final = 9
_HEAD_MAX: Final = 2 + BEGIN_STRING_MAX + 1 + 2 + _LENGTH_DIGITS_MAX + 1
_HEAD: Final = re.compile(rb"8=FIX[^\x01]{0,5}\x019=(\d{1,9})\x01", re.ASCII)
# Every text that a longer buffer could still turn into a head.
_PART: Final = re.compile(rb"8=FIX[^\x01]{0,5}(?:\x01(?:9(?:=\d{0,9})?)?)?", re.ASCII)
_TRAILER: Final = re.compile(rb"10=(\d{3})\x01", re.ASCII)


def cut(buf: bytes | bytearray, at: int = 0) -> int:
    """Judge what stands at buf[at:].

    Returns the size of a whole message, 0 when more bytes are needed, or -n: n bytes are to be thrown away.
    """
    found = buf.find(START, at)
    if found != at:
        if found < 0:
            found = len(buf) - _partial_start(buf, at)
        return at - found
    head = _HEAD.match(buf, at, at + _HEAD_MAX)
    if head is None:
        part = _PART.match(buf, at, at + _HEAD_MAX)
        is_open = part is not None and part.end() == len(buf) and len(buf) - at < _HEAD_MAX
        return 0 if is_open else -len(START)
    body, length = head.end(), int(head[1])
    size = body - at + length + _TRAILER_SIZE
    if size > MESSAGE_MAX:
        return -len(START)
    if size > len(buf) - at:
        return 0
    trailer = _TRAILER.match(buf, body + length)
    if trailer is None or buf[body + length - 1] != 1:
        return at - body - length
    is_whole = int(trailer[1]) == sum(buf[at : body + length]) & 0xFF
    return size if is_whole and _has_type(buf, body, length) else -size


def _has_type(buf: bytes | bytearray, body: int, length: int) -> bool:
    """Say whether MsgType comes third and is not empty."""
    return length > 4 and buf[body : body + 3] == b"35=" and buf[body + 3] != 1


def _partial_start(buf: bytes | bytearray, at: int) -> int:
    """Return how many of the last bytes may be the beginning of START."""
    return next((n for n in range(min(len(START) - 1, len(buf) - at), 0, -1) if buf.endswith(START[:n])), 0)


class Framer:
    """Holds the bytes of a message that has not arrived whole: never more than MESSAGE_MAX."""

    def __init__(self) -> None:
        self._held = bytearray()
        self.garbled = 0  # messages thrown away
        self.skipped_size = 0  # bytes thrown away

    def feed(self, received: bytes) -> list[bytes | None]:
        """Add what was received; return the whole messages, with None where a garbled one stood."""
        held, found, at = self._held, list[bytes | None](), 0
        held += received
        while at < len(held):
            size = cut(held, at)
            if size == 0:
                break
            if size > 0:
                found.append(bytes(held[at : at + size]))
            else:
                self.skipped_size -= size
                if held.startswith(START, at):
                    self.garbled += 1
                    found.append(None)
            at += abs(size)
        del held[:at]
        return found
