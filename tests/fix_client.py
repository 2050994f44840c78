"""A FIX 4.4 client on a socket, made of plain bytes: it numbers what it is told to send, and reads frames."""

from __future__ import annotations

import datetime as dt
import socket
import time

SOH = b"\x01"
TIMEOUT_S = 20.0


def now_text() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H:%M:%S.%f")[:21]


def encode(fields: list[tuple[int, object]]) -> bytes:
    """Return a message from its fields, MsgType first: lengths and checksum are added."""
    body = b"".join(b"%d=%s\x01" % (tag, str(value).encode()) for tag, value in fields)
    text = b"8=FIX.4.4\x019=%d\x01%s" % (len(body), body)
    return text + b"10=%03d\x01" % (sum(text) % 256)


def decode(raw: bytes) -> dict[int, str]:
    """Return the fields of a message; its length and checksum must be right."""
    fields = [part.split(b"=", 1) for part in raw.split(SOH)[:-1]]
    end = raw.rindex(b"10=")
    assert int(raw[end + 3 : end + 6]) == sum(raw[:end]) % 256
    start = raw.index(SOH, raw.index(b"\x019=") + 1) + 1
    assert int(fields[1][1]) == end - start
    return {int(tag): value.decode() for tag, value in fields}


class FixClient:
    """One connection; `seq` is the number of the next message out, `heard` every message read."""

    def __init__(self, port: int, *, sender: str = "CONTRAFUSION", seq: int = 1) -> None:
        self.sender, self.seq, self.next_in = sender, seq, 1
        self.heard: list[dict[int, str]] = []
        self._waiting: list[dict[int, str]] = []
        self._rest = b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def raw(self, msg_type: str, *fields: tuple[int, object]) -> bytes:
        """Return the next message as bytes, and use up its number."""
        head = [(35, msg_type), (34, self.seq), (49, self.sender), (52, now_text()), (56, "VENUE")]
        self.seq += 1
        return encode([*head, *fields])

    def send(self, msg_type: str, *fields: tuple[int, object]) -> None:
        self.socket.sendall(self.raw(msg_type, *fields))

    def log_on(self, *, reset: bool = False) -> dict[int, str]:
        more = [(141, "Y")] if reset else []
        self.send("A", (98, 0), (108, 30), *more)
        return self.expect("A")

    def read(self) -> dict[int, str] | None:
        """Return the next message, None when the connection has ended."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            end = self._rest.find(b"\x0110=")
            if end >= 0 and len(self._rest) >= end + 8:
                raw, self._rest = self._rest[: end + 8], self._rest[end + 8 :]
                message = decode(raw)
                self.heard.append(message)
                if message[35] == "1":
                    self.send("0", (112, message[112]))
                return message
            assert time.monotonic() < deadline, f"nothing more came: {self.heard[-3:]}"
            try:
                piece = self.socket.recv(65_536)
            except ConnectionError:
                return None
            if not piece:
                return None
            self._rest += piece

    def expect(self, msg_type: str, **wanted: object) -> dict[int, str]:
        """Read on to a message of a type whose fields (t39="0") are as wanted; return it."""
        while True:
            message = self.read()
            assert message is not None, f"the connection ended: {self.heard[-3:]}"
            fits = all(message.get(int(tag[1:])) == str(value) for tag, value in wanted.items())
            if message[35] == msg_type and fits:
                return message

    def order(
        self, cl_ord_id: str, side: str, qty: object, px: object, *, symbol: str = "SYM00001", tif: str = "0",
        **more: object,
    ) -> None:  # fmt: skip
        """Send a NewOrderSingle; more: other tags (t1="ACC")."""
        extra = [(int(tag[1:]), value) for tag, value in more.items()]
        fields = [
            (11, cl_ord_id), (38, qty), (40, 2), (44, px), (54, {"B": 1, "S": 2}[side]), (55, symbol),
            (59, tif), (60, now_text()),
        ]  # fmt: skip
        self.send("D", *fields, *extra)

    def cancel(self, cl_ord_id: str, orig: str) -> None:
        self.send("F", (11, cl_ord_id), (41, orig), (54, 1), (55, "SYM00001"), (60, now_text()))

    def close(self) -> None:
        self.socket.close()
