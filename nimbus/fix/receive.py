"""The receiving half of transport.py: bytes to frames to where they belong.

Application messages in order go to the orders agent.  Session messages and whatever is odd go to the control
loop, in order, as SESSION_IN records that name their Event.  The incoming number moves here.  When a ring is
full nothing more is taken: the bytes wait in rx, then in the socket, and the peer has to slow down.

The first message of a connection goes to the control loop whatever it is, and nothing behind it is looked at
before the session is established (S01).
"""

from __future__ import annotations

from typing import Final

from nimbus.fix.classify import CONSUMING
from nimbus.fix.frames import cut, starts
from nimbus.fix.header import (
    APPLICATION,
    BAD_TIME_TAKEN,
    GAP_FILL,
    HEADER,
    LOGON_HIGH,
    NO_SEQ,
    RESEND_REQUEST,
    RESEND_REQUEST_HIGH,
    RESET,
    SEEN,
    TOO_HIGH,
    judge,
    read_header,
)
from nimbus.fix.sockets import RECV_FLAGS, errno_now, is_busy, socket_recv
from nimbus.fix.table import Event
from nimbus.fix.transport_layout import (
    OPEN,
    RX_SIZE,
    TRANSPORT,
    WAITING,
    count,
    set_link,
)
from nimbus.messages import SESSION_BYTES_MAX, SESSION_IN, WIRE, WIRE_BYTES_MAX
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, store_i64, store_u32
from ringbuf.spsc import claim, publish, room

FRAMES_MAX: Final = 64
FINISHED: Final = -1
_EVENTS_OF_ONE_MESSAGE: Final = 2  # its own, and "the gap is filled"
_START_SIZE: Final = 5

_T, _HEADER, _WIRE, _IN = TRANSPORT.at, HEADER.at, WIRE.at, SESSION_IN.at
_GARBLED: Final = int(Event.GARBLED)
_GAP_FILLED: Final = int(Event.GAP_FILLED)
_OVERSIZED: Final = int(Event.OVERSIZED)
_CONSUMING: Final = sum(1 << int(event) for event in CONSUMING)  # a bit for each event
_CLOSED: Final = -1
_REPORT, _CANCEL_REJECT = ord("8"), ord("9")


@inlined
def has_room(transport: int) -> bool:
    """Say whether the control loop's ring takes all events of one message."""
    return room(load_i64(transport + _T.session_in), _EVENTS_OF_ONE_MESSAGE) == _EVENTS_OF_ONE_MESSAGE


@inlined
def push_event(transport: int, event: int, at: int, size: int, now_ns: int) -> int:
    """Push a SESSION_IN record with the message at[:size]; the ring has room.  Returns its address."""
    ring = load_i64(transport + _T.session_in)
    record = claim(ring)
    kept = min(size, SESSION_BYTES_MAX)
    store_i64(record + _IN.event, event)
    store_i64(record + _IN.now_ns, now_ns)
    store_i64(record + _IN.seq, load_i64(load_i64(transport + _T.header) + _HEADER.seq) if size else NO_SEQ)
    store_i64(record + _IN.next_in, load_i64(transport + _T.next_in))
    store_i64(record + _IN.highest, load_i64(transport + _T.highest))
    store_i64(record + _IN.value, 0)
    store_u32(record + _IN.size, size)
    store_u32(record + _IN.kept_size, kept)
    store_i64(record + _IN.pad, 0)
    copy(record + _IN.bytes, at, kept)
    publish(ring)
    return record


@inlined
def _deliver(transport: int, at: int, size: int, now_ns: int) -> bool:
    """Hand an application message to the orders agent; False when its ring is full."""
    ring = load_i64(transport + _T.inbound)
    wire = claim(ring)
    if wire == 0:
        return False
    store_i64(wire + _WIRE.due_ns, now_ns)
    store_i64(wire + _WIRE.order, 0)
    store_u32(wire + _WIRE.size, size)
    store_u32(wire + _WIRE.pad, 0)
    store_i64(wire + _WIRE.pad2, 0)
    copy(wire + _WIRE.bytes, at, size)
    publish(ring)
    count(transport, _T.delivered)
    return True


@inlined
def _advance(transport: int, event: int) -> None:
    """Move the incoming number as the message in HEADER says, and note a gap that begins."""
    header, next_in = load_i64(transport + _T.header), load_i64(transport + _T.next_in)
    seq, highest = load_i64(header + _HEADER.seq), load_i64(transport + _T.highest)
    if event == GAP_FILL or event == RESET:
        next_in = load_i64(header + _HEADER.new_seq)
    elif seq == next_in and (_CONSUMING >> event) & 1:
        next_in += 1
    elif event == TOO_HIGH or event == LOGON_HIGH or event == RESEND_REQUEST_HIGH:
        highest = max(highest, seq)
        store_i64(transport + _T.gap_told, 1)
    store_i64(transport + _T.next_in, next_in)
    store_i64(transport + _T.highest, max(highest, next_in - 1))


@inlined
def _close_gap(transport: int, now_ns: int) -> None:
    """Tell the control loop once everything up to the highest number has come; R20 watches the word."""
    if load_i64(transport + _T.gap_told):
        if load_i64(transport + _T.next_in) > load_i64(transport + _T.highest):
            store_i64(transport + _T.gap_told, 0)
            push_event(transport, _GAP_FILLED, 0, 0, now_ns)
        set_link(transport)


@kernel
def _take(transport: int, at: int, size: int, now_ns: int) -> bool:
    """Judge one whole message and pass it on; False when a ring is full, and nothing has changed."""
    header, peer = load_i64(transport + _T.header), load_i64(transport + _T.peer)
    read_header(at, size, header, peer)
    event = judge(header, peer, load_i64(transport + _T.next_in), now_ns)
    if load_i64(transport + _T.phase) == OPEN:
        if event != APPLICATION and event != BAD_TIME_TAKEN:  # neither is taken before a Logon
            _advance(transport, event)
        push_event(transport, event, at, size, now_ns)
        store_i64(transport + _T.phase, WAITING)
        return True
    if event == APPLICATION or event == BAD_TIME_TAKEN:
        if size > WIRE_BYTES_MAX:
            event = _OVERSIZED
            kind = load_i64(header + _HEADER.msg_type)
            count(transport, _T.oversized if kind == _REPORT or kind == _CANCEL_REJECT else _T.unread)
        elif not _deliver(transport, at, size, now_ns):
            return False
    is_new_gap = load_i64(transport + _T.gap_told) == 0
    _advance(transport, event)
    if event == SEEN:
        count(transport, _T.repeated)
    elif event == TOO_HIGH:
        count(transport, _T.too_high)
        if is_new_gap:
            push_event(transport, event, at, size, now_ns)
    elif event != APPLICATION:
        if event == BAD_TIME_TAKEN:
            count(transport, _T.times_off)
        elif event == RESEND_REQUEST or event == RESEND_REQUEST_HIGH:
            store_i64(transport + _T.resend_owed, 1)  # no new order until it is answered
            set_link(transport)
        push_event(transport, event, at, size, now_ns)
    _close_gap(transport, now_ns)
    return True


@inlined
def _throw_away(transport: int, size: int, now_ns: int) -> None:
    """Skip bytes that are no message; a garbled one is told, after which a first message is awaited."""
    at = load_i64(transport + _T.rx) + load_i64(transport + _T.rx_at)
    left = load_i64(transport + _T.rx_end) - load_i64(transport + _T.rx_at)
    if left >= _START_SIZE and starts(at):
        count(transport, _T.garbled)
        push_event(transport, _GARBLED, 0, 0, now_ns)
        if load_i64(transport + _T.phase) == OPEN:
            store_i64(transport + _T.phase, WAITING)
    store_i64(transport + _T.skipped_size, load_i64(transport + _T.skipped_size) + size)


@inlined
def _take_frames(transport: int, now_ns: int) -> int:
    """Take the messages that have arrived whole; return how many, or -1 - that when none is left."""
    rx, taken = load_i64(transport + _T.rx), 0
    while taken < FRAMES_MAX:
        if load_i64(transport + _T.phase) == WAITING:
            return taken
        at = load_i64(transport + _T.rx_at)
        size = cut(rx + at, rx + load_i64(transport + _T.rx_end))
        if size == 0:
            return -1 - taken
        if not has_room(transport):
            count(transport, _T.stalls)
            return taken
        if size < 0:
            size = -size
            _throw_away(transport, size, now_ns)
        elif _take(transport, rx + at, size, now_ns):
            count(transport, _T.received)
        else:
            count(transport, _T.stalls)
            return taken
        store_i64(transport + _T.rx_at, at + size)
        taken += 1
    return taken


@inlined
def _make_room(transport: int) -> int:
    """Move what was not taken to the front where that costs one copy; return how many bytes fit behind."""
    rx, at, end = load_i64(transport + _T.rx), load_i64(transport + _T.rx_at), load_i64(transport + _T.rx_end)
    if at == end:
        at = end = 0
    elif 2 * end > RX_SIZE and end - at <= at:  # the copy does not overlap
        copy(rx, rx + at, end - at)
        at, end = 0, end - at
    store_i64(transport + _T.rx_at, at)
    store_i64(transport + _T.rx_end, end)
    return RX_SIZE - end


@inlined
def _receive_bytes(transport: int, now_ns: int) -> None:
    """Ask the socket once."""
    space = _make_room(transport)
    if space == 0:
        return
    end = load_i64(transport + _T.rx_end)
    at = load_i64(transport + _T.rx) + end
    got: int = socket_recv(load_i64(transport + _T.fd), at, space, RECV_FLAGS)
    if got > 0:
        store_i64(transport + _T.rx_end, end + got)
        store_i64(transport + _T.received_ns, now_ns)
        store_i64(transport + _T.received_size, load_i64(transport + _T.received_size) + got)
        return
    reason = errno_now() if got < 0 else _CLOSED
    if reason != _CLOSED and is_busy(reason) and load_i64(transport + _T.send_errno) == 0:
        store_i64(transport + _T.recv_at_ns, now_ns + load_i64(transport + _T.poll_ns))
        return
    store_i64(transport + _T.recv_errno, _CLOSED if is_busy(reason) else reason)
    set_link(transport)


@inlined
def _is_due(transport: int, now_ns: int) -> bool:
    """Say whether the socket is to be asked; a clock that was set back delays nothing."""
    wait_ns = load_i64(transport + _T.recv_at_ns) - now_ns
    return wait_ns <= 0 or wait_ns > load_i64(transport + _T.poll_ns)


@inlined
def receive_frames(transport: int, now_ns: int) -> int:
    """Receive once and take what is whole; return how many messages, or FINISHED when none will follow."""
    is_open = load_i64(transport + _T.recv_errno) == 0
    phase = load_i64(transport + _T.phase)
    if phase == WAITING:
        return 0 if is_open and load_i64(transport + _T.send_errno) == 0 else FINISHED
    if is_open and _is_due(transport, now_ns):
        _receive_bytes(transport, now_ns)
        is_open = load_i64(transport + _T.recv_errno) == 0
    if phase == OPEN and not is_open and load_i64(transport + _T.send_errno):
        return FINISHED  # closed by us, or broken, before anything was agreed
    taken = _take_frames(transport, now_ns)
    if taken >= 0:
        return taken
    return -1 - taken if is_open else FINISHED
