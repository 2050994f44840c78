"""SoupBinTCP 3.00 without I/O, both roles; the snapshot that runs over it; the MoldUDP64 request packet.

A packet is a 2-byte length (of what follows), a type byte and a payload.

| type | sender | payload                                                                   |
|------|--------|---------------------------------------------------------------------------|
| `+`  | both   | debug text                                                                |
| `L`  | client | login request: user 6, password 10, session 10, next number 20            |
| `A`  | server | login accepted: session 10, next number 20                                |
| `J`  | server | login rejected: A = not authorized, S = session not available             |
| `S`  | server | sequenced data                                                            |
| `U`  | both   | unsequenced data (a server's is a departure from 3.00, taken and ignored) |
| `H`  | server | heartbeat                                                                 |
| `R`  | client | heartbeat                                                                 |
| `Z`  | server | end of session                                                            |
| `O`  | client | logout request                                                            |

User and password are padded on the right; session and number on the left, with spaces.  Bytes go into a
`Framer`, packets come out, however the stream was cut; each length and each character set is checked.

**Snapshot** (as GLIMPSE does it).  The client logs in with number 1; the session in Login Accepted is the
MoldUDP64 session that the snapshot belongs to (padding does not count).  Then each sequenced data packet
holds one ITCH 5.0 message of SNAPSHOT_TYPES, and applying them to empty books in their order gives the books:

    S                        the last system event
    R                        the directory, before anything else that names the locate
    H Y h L V W K J I N O    states and notices, the last of each kind and symbol
    A F                      live orders: per price in order of arrival, with the shares that are left

`G` ends it: that letter and 20 ASCII digits, padded on the left with spaces or zeros: the number of the first
message that is not in the snapshot, from which the live feed continues.  Then the server sends End of Session
or waits for the client's Logout.  Messages of the snapshot have no numbers of their own.

Sources: SoupBinTCP 3.00; Nasdaq GLIMPSE 5.0; MoldUDP64 1.00, request packet.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from nimbus.feed.itch import MESSAGES
from nimbus.feed.wire import layout

DEBUG, UNSEQUENCED = "+", "U"
LOGIN_ACCEPTED, LOGIN_REJECTED, SEQUENCED, SERVER_HEARTBEAT, END_OF_SESSION = "A", "J", "S", "H", "Z"
LOGIN_REQUEST, CLIENT_HEARTBEAT, LOGOUT_REQUEST = "L", "R", "O"
NOT_AUTHORIZED, NO_SESSION = "A", "S"
REJECT_REASONS: Final = {NOT_AUTHORIZED: "not authorized", NO_SESSION: "session not available"}

USER_SIZE, PASSWORD_SIZE, SESSION_SIZE, NUMBER_SIZE = 6, 10, 10, 20
# type -> exact payload size, None = any.
FROM_SERVER: Final[dict[str, int | None]] = {
    DEBUG: None, LOGIN_ACCEPTED: SESSION_SIZE + NUMBER_SIZE, LOGIN_REJECTED: 1, SEQUENCED: None,
    UNSEQUENCED: None, SERVER_HEARTBEAT: 0, END_OF_SESSION: 0,
}  # fmt: skip
FROM_CLIENT: Final[dict[str, int | None]] = {
    DEBUG: None, LOGIN_REQUEST: USER_SIZE + PASSWORD_SIZE + SESSION_SIZE + NUMBER_SIZE, UNSEQUENCED: None,
    CLIENT_HEARTBEAT: 0, LOGOUT_REQUEST: 0,
}  # fmt: skip
LENGTH_SIZE: Final = 2
PAYLOAD_MAX: Final = 0xFFFF - 1  # the length counts the type byte
HEARTBEAT_S: Final = 1.0  # either side sends one after so much silence of its own
SILENCE_S_MAX: Final = 15.0  # and gives the connection up after so much of the other's

SNAPSHOT_TYPES: Final = frozenset("SRHYhLVWKJINOAF")
SNAPSHOT_END: Final = b"G"
NUMBER_MAX: Final = 1 << 62  # as in moldudp64: beyond it a number is refused
_SIZES: Final = {m.code: m.size for m in MESSAGES if m.letter in SNAPSHOT_TYPES}

# The request packet of MoldUDP64 has the shape of a datagram's header.
MOLD_REQUEST = layout("MoldUdp64Request", 20, "session:a10 seq:u8 count:u2")
_MOLD: Final = struct.Struct(">10sQH")


class SoupError(ValueError):
    """Bytes are no SoupBinTCP, or a field cannot be encoded; the text is one line."""


class Packet(NamedTuple):
    """One logical packet: its type letter and payload."""

    kind: str
    payload: bytes


class LoginRequest(NamedTuple):
    """What a client asks for: session "" = the current one, number 0 = the newest message."""

    user: str
    password: str
    session: str
    number: int


class LoginAccepted(NamedTuple):
    """What a server grants: the session and the number of the next sequenced packet."""

    session: str
    number: int


class MoldRequest(NamedTuple):
    """A request for so many messages from number `first` of a MoldUDP64 session (10 bytes)."""

    session: bytes
    first: int
    messages: int


class Framer:
    """Cut a byte stream into packets; `kinds` is FROM_SERVER or FROM_CLIENT: who the sender is."""

    __slots__ = ("_kinds", "_rest")

    def __init__(self, kinds: dict[str, int | None]) -> None:
        self._kinds, self._rest = kinds, b""

    @property
    def pending(self) -> int:
        """Bytes of a packet that is not complete yet, at most 65,536."""
        return len(self._rest)

    def feed(self, piece: bytes) -> list[Packet]:
        """Take the next bytes; return the packets that are complete.

        Raises SoupError at the first bad packet; those before it in the same piece are lost with the
        connection, which cannot go on.
        """
        stream = self._rest + piece if self._rest else piece
        packets, at, end = [], 0, len(stream)
        while end - at >= LENGTH_SIZE + 1:
            size = (stream[at] << 8) | stream[at + 1]
            if size > 0:
                kind = chr(stream[at + LENGTH_SIZE])
                self._check(kind, size - 1)
            else:
                msg = "SoupBinTCP packet of length 0"
                raise SoupError(msg)
            if end - at < LENGTH_SIZE + size:
                break
            packets.append(Packet(kind, stream[at + LENGTH_SIZE + 1 : at + LENGTH_SIZE + size]))
            at += LENGTH_SIZE + size
        self._rest = bytes(stream[at:])
        return packets

    def _check(self, kind: str, size: int) -> None:
        if kind not in self._kinds:
            msg = f"SoupBinTCP packet of type {kind!r} is not for this side"
            raise SoupError(msg)
        wanted = self._kinds[kind]
        if wanted is not None and size != wanted:
            msg = f"SoupBinTCP packet {kind!r} has {size} bytes of payload, not {wanted}"
            raise SoupError(msg)


def encode(kind: str, payload: bytes = b"") -> bytes:
    """Return the bytes of one packet; raises SoupError when the payload is too long."""
    if len(payload) > PAYLOAD_MAX:
        msg = f"payload of {len(payload)} bytes, at most {PAYLOAD_MAX} fit"
        raise SoupError(msg)
    return struct.pack(">Hc", len(payload) + 1, kind.encode()) + payload


def login_request(user: str, password: str, session: str = "", number: int = 1) -> bytes:
    """Return a Login Request for `session` ("" = the current one) from `number` on."""
    fields = _text("user", user, USER_SIZE).ljust(USER_SIZE)
    fields += _text("password", password, PASSWORD_SIZE).ljust(PASSWORD_SIZE)
    return encode(LOGIN_REQUEST, fields + _session(session) + _number(number))


def login_accepted(session: str, number: int = 1) -> bytes:
    """Return a Login Accepted: the session and the number of the next sequenced packet."""
    return encode(LOGIN_ACCEPTED, _session(session) + _number(number))


def login_rejected(reason: str) -> bytes:
    """Return a Login Rejected: NOT_AUTHORIZED or NO_SESSION."""
    if reason not in REJECT_REASONS:
        msg = f"login reject reason {reason!r} is neither A nor S"
        raise SoupError(msg)
    return encode(LOGIN_REJECTED, reason.encode())


def parse_login_request(payload: bytes) -> LoginRequest:
    """Read the payload of a Login Request."""
    if len(payload) != USER_SIZE + PASSWORD_SIZE + SESSION_SIZE + NUMBER_SIZE:
        msg = f"login request has {len(payload)} bytes"
        raise SoupError(msg)
    user, password, session, number = struct.unpack(
        f"{USER_SIZE}s{PASSWORD_SIZE}s{SESSION_SIZE}s{NUMBER_SIZE}s", payload
    )
    return LoginRequest(_read_text(user), _read_text(password), _read_text(session), _read_number(number))


def parse_login_accepted(payload: bytes) -> LoginAccepted:
    """Read the payload of a Login Accepted."""
    if len(payload) != SESSION_SIZE + NUMBER_SIZE:
        msg = f"login accepted has {len(payload)} bytes"
        raise SoupError(msg)
    return LoginAccepted(_read_text(payload[:SESSION_SIZE]), _read_number(payload[SESSION_SIZE:]))


def reject_reason(payload: bytes) -> str:
    """Return why a login was rejected, in words."""
    code = payload.decode("latin-1")
    return REJECT_REASONS.get(code, f"unknown reason {code!r}")


# ---------------------------------------------------------------- snapshot


def snapshot_message(message: bytes) -> bytes:
    """Return the sequenced packet of one ITCH message of a snapshot; raises SoupError when it is none."""
    check_snapshot_message(message)
    return encode(SEQUENCED, message)


def check_snapshot_message(message: bytes) -> None:
    """Raise SoupError unless this is an ITCH message that a snapshot may hold, with its exact length."""
    if not message or _SIZES.get(message[0]) != len(message):
        kind = chr(message[0]) if message else ""
        msg = f"snapshot message of type {kind!r} and {len(message)} bytes"
        raise SoupError(msg)


def snapshot_end(number: int) -> bytes:
    """Return the sequenced packet that ends a snapshot; number: the first message that is not in it."""
    if not 1 <= number <= NUMBER_MAX:
        msg = f"snapshot number {number} is out of range"
        raise SoupError(msg)
    return encode(SEQUENCED, SNAPSHOT_END + _number(number))


def is_snapshot_end(message: bytes) -> bool:
    """Say whether a message of a snapshot is its last one."""
    return message[:1] == SNAPSHOT_END


def parse_snapshot_end(message: bytes) -> int:
    """Return the number in the `G` message; raises SoupError unless it is between 1 and 2^62."""
    if len(message) != 1 + NUMBER_SIZE or not is_snapshot_end(message):
        msg = f"end of snapshot has {len(message)} bytes, not {1 + NUMBER_SIZE}"
        raise SoupError(msg)
    number = _read_number(message[1:])
    if not 1 <= number <= NUMBER_MAX:
        msg = f"snapshot number {number} is out of range"
        raise SoupError(msg)
    return number


def session_name(session: bytes | str) -> str:
    """Return a session without the padding of either protocol (spaces, zero bytes), to compare them."""
    text = session.decode("latin-1") if isinstance(session, bytes) else session
    return text.strip(" \0")


# ---------------------------------------------------------------- MoldUDP64 request


def mold_request(session: bytes, first: int, count: int) -> bytes:
    """Return a MoldUDP64 request packet; session: its 10 bytes as in the datagrams."""
    if len(session) != SESSION_SIZE or not 0 < first <= NUMBER_MAX or not 0 < count < 0xFFFF:
        msg = f"request for {count} messages from {first} of session {session!r} cannot be encoded"
        raise SoupError(msg)
    return _MOLD.pack(session, first, count)


def parse_mold_request(packet: bytes) -> MoldRequest:
    """Read a MoldUDP64 request packet; raises SoupError on a wrong length, number or count."""
    if len(packet) != MOLD_REQUEST.size:
        msg = f"MoldUDP64 request has {len(packet)} bytes, not {MOLD_REQUEST.size}"
        raise SoupError(msg)
    request = MoldRequest._make(_MOLD.unpack(packet))
    if not 0 < request.first <= NUMBER_MAX or not 0 < request.messages < 0xFFFF:
        msg = f"MoldUDP64 request for {request.messages} messages from {request.first}"
        raise SoupError(msg)
    return request


# ---------------------------------------------------------------- fields


def _text(name: str, value: str, size: int) -> bytes:
    if not value.isascii() or (value and not value.isprintable()) or len(value) > size:
        msg = f"{name} must be at most {size} printable ASCII characters"  # never the value: it is a secret
        raise SoupError(msg)
    return value.encode()


def _session(session: str) -> bytes:
    return _text("session", session, SESSION_SIZE).rjust(SESSION_SIZE)


def _number(number: int) -> bytes:
    text = str(number)
    if number < 0 or len(text) > NUMBER_SIZE:
        msg = f"number {number} does not fit {NUMBER_SIZE} digits"
        raise SoupError(msg)
    return text.encode().rjust(NUMBER_SIZE)


def _read_text(field: bytes) -> str:
    text = field.decode("latin-1").strip(" ")
    if not text.isascii() or (text and not text.isprintable()):
        msg = "field of a SoupBinTCP login is not printable ASCII"
        raise SoupError(msg)
    return text


def _read_number(field: bytes) -> int:
    digits = field.strip(b" ")
    if not digits.isdigit():
        msg = f"number of {len(field)} bytes is not made of digits"
        raise SoupError(msg)
    return int(digits)
