"""The owner of a TRANSPORT: allocates it, and is the control loop's side of its two rings."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nimbus.fix.digits import SECOND_NEVER, STAMP
from nimbus.fix.header import COMP_ID_MAX, HEADER, PEER
from nimbus.fix.message import Message
from nimbus.fix.session_text import COMP_TEXT_MAX, LABELS, TEXT_MAX
from nimbus.fix.settings import SessionSettings, to_ns
from nimbus.fix.table import Event
from nimbus.fix.transport_layout import (
    COUNTERS,
    DOWN,
    LINK_DOWN,
    PHASE_NAMES,
    RX_SIZE,
    RX_SLACK,
    TRANSPORT,
    TX_SIZE,
)
from nimbus.messages import OUT_NUMBERS, SESSION_BYTES_MAX, SESSION_IN, SESSION_OUT
from ringbuf.jit import kernel
from ringbuf.segment import Segment
from ringbuf.spsc import create_ring, pop_into, try_push

IN_CAPACITY, OUT_CAPACITY, BATCH_MAX = 1_024, 256, 64


@kernel
def push_command(ring: int, record: int) -> bool:
    """Push a SESSION_OUT record; False when the ring is full."""
    return try_push(ring, record)


class SessionIn(NamedTuple):
    """One SESSION_IN record; message is empty where there is none, cut where it was too long."""

    event: Event
    now_ns: int
    seq: int
    next_in: int
    highest: int
    value: int
    message: Message


class Transport:
    """Owns the memory of one connection.  Commands and events are for the control loop alone.

    out, inbound: rings of WIRE records.  next_seq, link, buffer_used: addresses of words of the orders agent.
    """

    def __init__(
        self, segment: Segment, name: str, settings: SessionSettings, *, out: int, inbound: int,
        next_seq: int, link: int, buffer_used: int, poll_ns: int = 1_000,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.addr = segment.allocate(name, TRANSPORT.size)
        self._row = segment.array(name, TRANSPORT)
        self._next_seq, self._link = segment.words(next_seq, 1), segment.words(link, 1)
        self._ring_in = create_ring(segment, f"{name}.session_in", IN_CAPACITY, SESSION_IN)
        self._ring_out = create_ring(segment, f"{name}.session_out", OUT_CAPACITY, SESSION_OUT)
        self._records, self._command = np.zeros(BATCH_MAX, SESSION_IN.dtype), np.zeros(1, SESSION_OUT.dtype)
        words: dict[str, int] = {
            "out": out, "inbound": inbound, "session_in": self._ring_in, "session_out": self._ring_out,
            "next_seq": next_seq, "link": link, "buffer_used": buffer_used,
            "rx": segment.allocate(f"{name}.rx", RX_SIZE + RX_SLACK),
            "tx": segment.allocate(f"{name}.tx", TX_SIZE),
            "scratch": segment.allocate(f"{name}.scratch", TEXT_MAX),
            "labels": segment.allocate(f"{name}.labels", LABELS.size),
            "peer": segment.allocate(f"{name}.peer", PEER.size),
            "header": segment.allocate(f"{name}.header", HEADER.size),
            "poll_ns": poll_ns, "fd": -1, "phase": DOWN, "next_in": 1, "processed_in": 1,
        }  # fmt: skip
        for field, value in words.items():
            self._row[0][field] = value
        self._write_texts(segment, name)
        self._link[0] = LINK_DOWN

    def time_sends(self, clock: int) -> None:
        """Note by this CLOCK when send is called; before the loop runs."""
        self._row[0]["clock"] = clock

    def _write_texts(self, segment: Segment, name: str) -> None:
        """Write what our messages begin with, and what the peer's must."""
        ours = self.settings.address()
        labels, peer = segment.array(f"{name}.labels", LABELS)[0], segment.array(f"{name}.peer", PEER)[0]
        texts = {
            "begin": f"8={ours.begin_string}\x019=", "sender": f"\x0149={ours.sender}\x0152=",
            "target": f"\x0156={ours.target}\x01",
        }  # fmt: skip
        for field, text in texts.items():
            _write(labels, field, f"{field}_size", text, COMP_TEXT_MAX)
        labels["stamp"].view(STAMP.dtype)[0]["second_ns"] = SECOND_NEVER
        _write(peer, "begin_string", "begin_size", ours.begin_string, COMP_ID_MAX)
        _write(peer, "sender", "sender_size", ours.target, COMP_ID_MAX)
        _write(peer, "target", "target_size", ours.sender, COMP_ID_MAX)
        peer["time_limit_ns"] = to_ns(self.settings.time_limit_s)

    # ---------------------------------------------------------------- control loop

    def command(self, command: int, *, body: bytes = b"", msg_type: str = "", **words: int) -> bool:
        """Push a SESSION_OUT record; False when the ring is full.  Raises ValueError for a body too long."""
        if len(body) > SESSION_BYTES_MAX:
            msg = f"a session message of {len(body)} bytes does not fit {SESSION_BYTES_MAX}"
            raise ValueError(msg)
        row = self._command[0]
        row["command"], row["msg_type"] = command, int.from_bytes(msg_type.encode("ascii"), "little")
        row["size"] = len(body)
        row["body"][: len(body)] = np.frombuffer(body, np.uint8)
        for field, value in words.items():
            row[field] = value
        pushed = push_command(self._ring_out, self._command.ctypes.data)
        self._command[:] = np.zeros(1, SESSION_OUT.dtype)  # a password does not stay here
        return pushed

    def set_numbers(self, next_in: int, next_out: int) -> bool:
        """Set both numbers; takes effect in order with the other commands."""
        return self.command(OUT_NUMBERS, next_in=next_in, next_out=next_out)

    def events(self) -> list[SessionIn]:
        """Take up to BATCH_MAX events, oldest first."""
        found = pop_into(self._ring_in, self._records.ctypes.data, BATCH_MAX)
        return [_session_in(row) for row in self._records[:found]]

    def word(self, field: str) -> int:
        """Return one word of the TRANSPORT record."""
        return int(self._row[0][field])

    @property
    def next_out(self) -> int:
        """MsgSeqNum of the next message out."""
        return int(self._next_seq[0])

    @property
    def phase(self) -> str:
        """Where the connection stands."""
        return PHASE_NAMES[self.word("phase")]

    def counters(self) -> dict[str, int]:
        """Return every counter by name."""
        return {name: self.word(name) for name in COUNTERS}


def _write(row: Any, field: str, size_field: str, text: str, size_max: int) -> None:
    data = text.encode("ascii")
    if len(data) > min(size_max, len(row[field])):
        msg = f"too long for a FIX session: {text!r}"
        raise ValueError(msg)
    row[field][: len(data)] = list(data)
    row[size_field] = len(data)


def _session_in(row: Any) -> SessionIn:
    raw = bytes(row["bytes"][: row["kept_size"]])
    return SessionIn(
        Event(int(row["event"])), int(row["now_ns"]), int(row["seq"]), int(row["next_in"]),
        int(row["highest"]), int(row["value"]), Message.parse(raw) if raw else Message(b"", ()),
    )  # fmt: skip
