"""The socket of a FIX initiator, in the orders loop: sends, receives, numbers.  Nothing here blocks.

`exchange` is called once a duty cycle (by transport_work in nimbus/orders/link.py).  Out: WIRE records, each
with one send; when none waits, session messages of the control loop, which get their numbers here.  What the
socket does not take stays in tx, and until it has gone nothing else is sent.  In: receive.py.

A connection ends when the peer closes, an error comes, or the control loop says so.  What had arrived whole
is processed first; then messages that were numbered but not sent are dropped and counted (their numbers are
used, the peer's gap is filled, S32), and `exchange` returns ENDED until `tell_end` has been called.
"""

from __future__ import annotations

import errno
from typing import Final

from nimbus.fix.receive import has_room, push_event, receive_frames
from nimbus.fix.session_text import TEXT_MAX, encode_session
from nimbus.fix.sockets import SEND_FLAGS, errno_now, is_busy, socket_send
from nimbus.fix.table import Event
from nimbus.fix.tags import MSG_SEQ_NUM_MAX
from nimbus.fix.transport_layout import (
    DOWN,
    LOST,
    OPEN,
    TRANSPORT,
    UP,
    count,
    set_link,
)
from nimbus.messages import (
    OUT_CLOSE,
    OUT_ESTABLISH,
    OUT_NUMBERS,
    OUT_OPEN,
    OUT_RELEASE,
    OUT_SEND,
    SESSION_BYTES_MAX,
    SESSION_IN,
    SESSION_OUT,
    WIRE,
    WIRE_BYTES_MAX,
)
from ringbuf.clock import now_ns as clock_ns
from ringbuf.jit import inlined, kernel
from ringbuf.memory import clear, copy, load_i64, load_u32, store_i64
from ringbuf.spsc import front, pop, used

BATCH_MAX: Final = 64
DROPS_MAX: Final = 1 << 20  # more than any ring holds
ENDED: Final = -1

_T, _WIRE, _OUT, _IN = TRANSPORT.at, WIRE.at, SESSION_OUT.at, SESSION_IN.at
_DISCONNECTED: Final = int(Event.DISCONNECTED)
_EOVERFLOW: Final = errno.EOVERFLOW
_CLOSED: Final = -1
_SEQUENCE_RESET, _REJECT = ord("4"), ord("3")


@inlined
def _set_waiting(transport: int, at: int, end: int) -> None:
    """Note which bytes of tx wait; R20 looks at their number."""
    store_i64(transport + _T.tx_at, at)
    store_i64(transport + _T.tx_end, end)
    store_i64(load_i64(transport + _T.buffer_used), end - at)


@inlined
def _push_bytes(transport: int, at: int, size: int, now_ns: int) -> int:
    """Give bytes to the socket; return how many it took, or -1 after an error, which is noted."""
    if load_i64(transport + _T.clock) != 0:
        store_i64(transport + _T.called_ns, clock_ns(load_i64(transport + _T.clock)))
    taken: int = socket_send(load_i64(transport + _T.fd), at, size, SEND_FLAGS)
    if taken < 0:
        reason = errno_now()
        if not is_busy(reason):
            store_i64(transport + _T.send_errno, reason)
            set_link(transport)
            return -1
        taken = 0
    if taken:
        store_i64(transport + _T.sent_ns, now_ns)
        store_i64(transport + _T.sent_size, load_i64(transport + _T.sent_size) + taken)
    else:
        count(transport, _T.blocked_sends)
    return taken


@inlined
def _flush(transport: int, now_ns: int) -> int:
    """Send what waits in tx; return 1 when nothing waits any more."""
    at, end = load_i64(transport + _T.tx_at), load_i64(transport + _T.tx_end)
    if at == end:
        return 1
    tx = load_i64(transport + _T.tx)
    taken = _push_bytes(transport, tx + at, end - at, now_ns)
    if taken < 0:
        return 0
    if at + taken < end:
        _set_waiting(transport, at + taken, end)
        return 0
    clear(tx, end)  # it may have held a password
    _set_waiting(transport, 0, 0)
    return 1


@kernel
def _send_message(transport: int, at: int, size: int, now_ns: int) -> int:
    """Send one message; return 1 when it went whole, 0 when the rest waits in tx or the connection ended.

    size <= TX_SIZE; tx is empty.
    """
    taken = _push_bytes(transport, at, size, now_ns)
    if taken < 0:
        count(transport, _T.unsent)
        return 0
    count(transport, _T.sent)
    if taken == size:
        return 1
    count(transport, _T.partial_sends)
    copy(load_i64(transport + _T.tx), at + taken, size - taken)
    _set_waiting(transport, 0, size - taken)
    return 0


@inlined
def _send_orders(transport: int, now_ns: int) -> int:
    """Send WIRE records; return how many, or -1 when something waits in tx or nothing can be sent."""
    ring, done = load_i64(transport + _T.out), 0
    while done < BATCH_MAX:
        wire = front(ring)
        if wire == 0:
            break
        size = min(load_u32(wire + _WIRE.size), WIRE_BYTES_MAX)
        whole = _send_message(transport, wire + _WIRE.bytes, size, now_ns)
        pop(ring)
        if whole == 0:
            return -1
        done += 1
    return done


@inlined
def _send_session(transport: int, out: int, now_ns: int) -> None:
    """Send a session message with its number and time; one sent again keeps its number."""
    word = load_i64(transport + _T.next_seq)
    following = load_i64(word)
    seq, new_seq = load_i64(out + _OUT.seq), 0
    if seq:
        new_seq = load_i64(out + _OUT.new_seq)
        if new_seq == 0:
            new_seq = following
        count(transport, _T.gap_fills)
    else:
        seq = following
        if seq > MSG_SEQ_NUM_MAX:
            store_i64(transport + _T.send_errno, _EOVERFLOW)
            set_link(transport)
            return
        store_i64(word, seq + 1)
    kind = load_u32(out + _OUT.msg_type)
    if kind == _SEQUENCE_RESET or kind == _REJECT:  # the answer to a ResendRequest
        store_i64(transport + _T.resend_owed, 0)
        set_link(transport)
    scratch = load_i64(transport + _T.scratch)
    made = encode_session(scratch, load_i64(transport + _T.labels), out, seq, new_seq, now_ns)
    _send_message(transport, scratch + (made >> 32), made & 0xFFFFFFFF, now_ns)
    clear(scratch, TEXT_MAX)  # no secret stays in shared memory (S40)


@inlined
def _open(transport: int, out: int, now_ns: int) -> None:
    """Begin with a connected socket; orders wait until the session is established."""
    store_i64(transport + _T.fd, load_i64(out + _OUT.fd))
    store_i64(transport + _T.rx_at, 0)
    store_i64(transport + _T.rx_end, 0)
    store_i64(transport + _T.send_errno, 0)
    store_i64(transport + _T.recv_errno, 0)
    store_i64(transport + _T.gap_told, 0)
    store_i64(transport + _T.resend_owed, 0)
    store_i64(transport + _T.released, 0)
    store_i64(transport + _T.highest, load_i64(transport + _T.next_in) - 1)
    store_i64(transport + _T.sent_ns, now_ns)
    store_i64(transport + _T.received_ns, now_ns)
    store_i64(transport + _T.recv_at_ns, now_ns)
    store_i64(transport + _T.phase, OPEN)


@inlined
def _set_numbers(transport: int, out: int) -> None:
    next_in = load_i64(out + _OUT.next_in)
    store_i64(load_i64(transport + _T.next_seq), load_i64(out + _OUT.next_out))
    store_i64(transport + _T.next_in, next_in)
    store_i64(transport + _T.processed_in, next_in)
    store_i64(transport + _T.highest, next_in - 1)
    store_i64(transport + _T.gap_told, 0)


@kernel
def _obey(transport: int, out: int, now_ns: int) -> None:
    """Carry out one SESSION_OUT record."""
    command, phase = load_i64(out + _OUT.command), load_i64(transport + _T.phase)
    if command == OUT_NUMBERS:
        _set_numbers(transport, out)
    elif command == OUT_OPEN and phase == DOWN:
        _open(transport, out, now_ns)
    elif phase == DOWN or phase == LOST:
        count(transport, _T.late_commands)
    elif command == OUT_SEND:
        _send_session(transport, out, now_ns)
    elif command == OUT_ESTABLISH:
        store_i64(transport + _T.phase, UP)
    elif command == OUT_RELEASE:
        store_i64(transport + _T.released, 1)
        set_link(transport)
    elif command == OUT_CLOSE:
        store_i64(transport + _T.send_errno, _CLOSED)
        store_i64(transport + _T.recv_errno, _CLOSED)
        set_link(transport)
    else:
        count(transport, _T.late_commands)


@inlined
def _obey_all(transport: int, now_ns: int) -> int:
    """Carry out what the control loop wants, in order, while everything before it has been sent."""
    ring, done = load_i64(transport + _T.session_out), 0
    while done < BATCH_MAX:
        if load_i64(transport + _T.tx_at) != load_i64(transport + _T.tx_end):
            break
        out = front(ring)
        if out == 0:
            break
        _obey(transport, out, now_ns)
        clear(out + _OUT.body, SESSION_BYTES_MAX)
        pop(ring)
        done += 1
    return done


@inlined
def _send(transport: int, now_ns: int) -> int:
    """Do what can be sent now; return how much was done."""
    if _flush(transport, now_ns) == 0:
        return 0
    done = 0
    if load_i64(transport + _T.phase) == UP:
        done = _send_orders(transport, now_ns)
        if done < 0:
            return 1
        if done == BATCH_MAX:  # numbers leave in order: session messages only behind the last order
            return done
    return done + _obey_all(transport, now_ns)


@inlined
def _end(transport: int) -> None:
    """Let go of the socket; drop what was numbered but not sent."""
    store_i64(transport + _T.released, 0)
    set_link(transport)
    if load_i64(transport + _T.tx_at) != load_i64(transport + _T.tx_end):
        count(transport, _T.unsent)
    clear(load_i64(transport + _T.tx), load_i64(transport + _T.tx_end))
    _set_waiting(transport, 0, 0)
    out = load_i64(transport + _T.out)
    for _ in range(DROPS_MAX):
        if front(out) == 0:
            break
        pop(out)
        count(transport, _T.unsent)
    store_i64(transport + _T.rx_at, 0)
    store_i64(transport + _T.rx_end, 0)
    store_i64(transport + _T.fd, -1)
    store_i64(transport + _T.phase, LOST)


@kernel
def exchange(transport: int, now_ns: int) -> int:
    """Send and receive what can be now; return how much was done, or ENDED when a connection has ended.

    Only the orders loop calls it.
    """
    phase = load_i64(transport + _T.phase)
    if used(load_i64(transport + _T.inbound)) == 0:
        store_i64(transport + _T.processed_in, load_i64(transport + _T.next_in))
    if phase == LOST:
        return ENDED if has_room(transport) else 0
    if phase == DOWN:
        return _obey_all(transport, now_ns)
    done = 0
    if load_i64(transport + _T.send_errno) == 0:
        done = _send(transport, now_ns)
    taken = receive_frames(transport, now_ns)
    if taken >= 0:
        return done + taken
    _end(transport)
    return ENDED if has_room(transport) else done


@kernel
def tell_end(transport: int, doubted: int, now_ns: int) -> None:
    """Tell the control loop that the connection has ended and its socket is free; call it after ENDED.

    doubted: orders whose state is unknown now.
    """
    reason = max(load_i64(transport + _T.send_errno), load_i64(transport + _T.recv_errno), 0)
    event = push_event(transport, _DISCONNECTED, 0, 0, now_ns)
    store_i64(event + _IN.seq, doubted)
    store_i64(event + _IN.value, reason)
    store_i64(transport + _T.phase, DOWN)
    count(transport, _T.losses)
