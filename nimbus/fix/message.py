"""Whole FIX messages in plain Python: what the session engine reads and writes.

Numbers have minimal widths and times milliseconds.  A message is a list of (tag, value) pairs in the order of
the wire; nothing here knows a dictionary.  Secrets never leave through `shown` or `repr` (S40).
"""

from __future__ import annotations

import calendar
import functools
import re
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from nimbus.fix import tags

SOH: Final = b"\x01"
NS_PER_S: Final = 1_000_000_000
SEQ_NONE: Final = -1
SECRETS: Final = (tags.RAW_DATA, tags.USERNAME, tags.PASSWORD, tags.NEW_PASSWORD)

# Tags of the standard header: they are never part of a body.
HEADER: Final = frozenset({
    8, 9, 34, 35, 43, 49, 50, 52, 56, 57, 90, 91, 97, 115, 116, 122, 128, 129, 142, 143, 144, 145, 212, 213,
    347, 369, 627, 628, 629, 630, 1128, 1129, 1156,
})  # fmt: skip
_TRAILER: Final = frozenset({10, 89, 93})
_STAMP: Final = re.compile(rb"(\d{4})(\d\d)(\d\d)-(\d\d):(\d\d):(\d\d)(?:\.(\d{3}|\d{6}|\d{9}))?", re.ASCII)
_SECRET: Final = re.compile(rb"(?<=\x01)(%s)=[^\x01]*" % b"|".join(b"%d" % tag for tag in SECRETS))
_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

Fields = tuple[tuple[int, bytes], ...]


@functools.lru_cache(maxsize=4)
def _second(second: int) -> bytes:
    return time.strftime("%Y%m%d-%H:%M:%S", time.gmtime(second)).encode("ascii")


def stamp(now_ns: int) -> bytes:
    """Return a UTCTimestamp with milliseconds."""
    second, rest = divmod(now_ns, NS_PER_S)
    return b"%s.%03d" % (_second(second), rest // 1_000_000)


def utc_ns(text: bytes | None) -> int:
    """Return a UTCTimestamp as Unix ns, or -1: 0, 3, 6, 9 fraction digits, second 60 accepted (S38)."""
    match = _STAMP.fullmatch(text or b"")
    if match is None:
        return -1
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if not (1970 <= year <= 2199 and 1 <= month <= 12 and hour < 24 and minute < 60 and second <= 60):
        return -1
    if not 1 <= day <= _DAYS[month - 1] + (month == 2 and calendar.isleap(year)):
        return -1
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    return seconds * NS_PER_S + int((match[7] or b"0").ljust(9, b"0"))


def number(text: bytes | None) -> int:
    """Return a FIX integer of up to nine digits (leading zeros allowed), or SEQ_NONE."""
    return int(text) if text and len(text) <= 9 and text.isdigit() else SEQ_NONE


class Message(NamedTuple):
    """One message: its bytes, and its fields in the order of the wire."""

    raw: bytes
    fields: Fields

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        """Split a framed message; a field that is not "tag=value" has tag 0."""
        cut = (field.partition(b"=") for field in raw[:-1].split(SOH))
        return cls(
            raw, tuple((int(t) if is_pair and t.isdigit() and len(t) < 10 else 0, v) for t, is_pair, v in cut)
        )

    def get(self, tag: int) -> bytes | None:
        """Return the first value of a tag, or None."""
        return next((value for at, value in self.fields if at == tag), None)

    def text(self, tag: int) -> str:
        """Return the first value of a tag as text, "" when it is absent."""
        return (self.get(tag) or b"").decode("latin-1")

    @property
    def begin_string(self) -> str:
        """BeginString(8)."""
        return self.text(tags.BEGIN_STRING)

    @property
    def msg_type(self) -> str:
        """MsgType(35)."""
        return self.text(tags.MSG_TYPE)

    @property
    def seq(self) -> int:
        """MsgSeqNum(34), or SEQ_NONE."""
        return number(self.get(tags.MSG_SEQ_NUM))

    @property
    def is_poss_dup(self) -> bool:
        """Whether PossDupFlag(43) is Y."""
        return self.get(tags.POSS_DUP_FLAG) == b"Y"

    @property
    def body(self) -> bytes:
        """The fields that belong neither to header nor trailer, each with its SOH."""
        return fields(pair for pair in self.fields if pair[0] not in HEADER and pair[0] not in _TRAILER)

    def __repr__(self) -> str:
        """Show the bytes without their secrets."""
        return f"Message({shown(self.raw)!r})"


def shown(raw: bytes) -> str:
    """Return a message as text for people: SOH as |, secrets as ***."""
    return _SECRET.sub(rb"\1=***", raw).replace(SOH, b"|").decode("latin-1")


def fields(pairs: Iterable[tuple[int, bytes | str | int]]) -> bytes:
    """Return "tag=value" fields, each with its SOH."""
    out = b""
    for tag, value in pairs:
        text = value if isinstance(value, bytes) else str(value).encode("latin-1")
        out += b"%d=%s\x01" % (tag, text)
    return out


class Address(NamedTuple):
    """What every message of one direction of a session begins with."""

    begin_string: str
    sender: str
    target: str


def encode(
    address: Address, msg_type: str, seq: int, sending_time: bytes, body: bytes, original_time: bytes = b""
) -> bytes:
    """Return a whole message.  original_time: 122 of a message sent again, which then carries 43=Y.

    body: fields in rising order of their tags, each with its SOH.
    """
    duplicate = b"43=Y\x01" if original_time else b""
    original = b"122=%s\x01" % original_time if original_time else b""
    sender, target = address.sender.encode("latin-1"), address.target.encode("latin-1")
    inner = b"35=%s\x0134=%d\x01%s49=%s\x0152=%s\x0156=%s\x01%s%s" % (
        msg_type.encode("ascii"), seq, duplicate, sender, sending_time, target, original, body,
    )  # fmt: skip
    text = b"8=%s\x019=%d\x01%s" % (address.begin_string.encode("ascii"), len(inner), inner)
    return b"%s10=%03d\x01" % (text, sum(text) & 0xFF)
