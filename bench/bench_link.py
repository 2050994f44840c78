"""The FIX connection of the orders loop against bare send and recv of the same bytes, in the same run.

A round: an order out of the ring and through the socket, a report back through the socket and into the ring.
Run: python -m pytest bench/bench_link.py -s
"""

from __future__ import annotations

import time

import numpy as np
from fix_link_rig import NOW, LinkRig, from_venue

from bench.results import append_row
from nimbus.fix.sockets import RECV_FLAGS, SEND_FLAGS, socket_recv, socket_send
from nimbus.fix.transport_layout import TRANSPORT
from nimbus.messages import WIRE
from nimbus.orders.link import transport_work
from nimbus.orders.state import ORDERS
from ringbuf.jit import inlined, kernel
from ringbuf.memory import copy, load_i64, store_u32
from ringbuf.spsc import claim, front, pop, publish

ROUNDS, MANY, IDLE = 30, 2_000, 20_000
BAR = 1.35
FIRST = 100_001  # number of the first report of a round
ORDER_SIZE, SCRATCH_SIZE = 170, 4_096
_WIRE, _ORDERS = WIRE.at, ORDERS.at


@kernel
def idle_many(orders: int, transport: int, now_ns: int, step_ns: int, count: int) -> int:
    """Run duty cycles in which nothing happens; step_ns passes in each."""
    done = 0
    for index in range(count):
        done += transport_work(orders, transport, now_ns + index * step_ns)
    return done


@inlined
def _read(end: int, scratch: int, size: int) -> int:
    """Read until size bytes have come."""
    got = 0
    while got < size:
        got += max(socket_recv(end, scratch, SCRATCH_SIZE, RECV_FLAGS), 0)
    return got


@kernel
def bare_many(ours: int, peer: int, order: int, reports: int, size: int, scratch: int, count: int) -> int:
    """Exchange an order and a report `count` times with nothing but send and recv; return the bytes."""
    total = 0
    for index in range(count):
        socket_send(ours, order, ORDER_SIZE, SEND_FLAGS)
        total += _read(peer, scratch, ORDER_SIZE)
        socket_send(peer, reports + index * size, size, SEND_FLAGS)
        total += _read(ours, scratch, size)
    return total


@kernel
def link_many(
    orders: int, transport: int, peer: int, order: int, reports: int, size: int, scratch: int, count: int
) -> int:
    """Do the same through transport_work."""
    out, inbound, total = load_i64(orders + _ORDERS.out), load_i64(orders + _ORDERS.inbound), 0
    for index in range(count):
        wire = claim(out)
        copy(wire + _WIRE.bytes, order, ORDER_SIZE)
        store_u32(wire + _WIRE.size, ORDER_SIZE)
        publish(out)
        transport_work(orders, transport, NOW)
        total += _read(peer, scratch, ORDER_SIZE)
        socket_send(peer, reports + index * size, size, SEND_FLAGS)
        while front(inbound) == 0:
            transport_work(orders, transport, NOW)
        pop(inbound)
        total += size
    return total


def nanoseconds(call, count):
    began = time.perf_counter_ns()
    result = call()
    return (time.perf_counter_ns() - began) / count, result


def test_a_round_through_the_link_against_bare_sockets():
    rig, plain = LinkRig(), LinkRig()
    rig.establish()
    plain.hang_up()
    plain.work(2)
    for end in (rig.peer, plain.peer):
        end.settimeout(0)
    reports = [from_venue("8", FIRST + n, (37, "o"), (17, "e"), (150, "0"), (39, "0")) for n in range(MANY)]
    assert len(set(map(len, reports))) == 1
    texts, order = np.frombuffer(b"".join(reports), np.uint8), np.zeros(ORDER_SIZE, np.uint8)
    scratch, size = np.zeros(SCRATCH_SIZE, np.uint8), len(reports[0])
    shared = order.ctypes.data, texts.ctypes.data, size, scratch.ctypes.data, MANY

    def bare():
        return bare_many(plain.ours.fileno(), plain.peer.fileno(), *shared)

    def link():
        rig.transport.set_numbers(FIRST, 1)
        rig.work()
        return link_many(rig.orders.addr, rig.transport.addr, rig.peer.fileno(), *shared)

    bare(), link()
    pairs = []
    for _ in range(ROUNDS):
        (ours, got), (theirs, other) = nanoseconds(link, MANY), nanoseconds(bare, MANY)
        assert got == other == MANY * (ORDER_SIZE + size)
        assert rig.transport.word("next_in") == FIRST + MANY
        pairs.append((ours, theirs))
    assert rig.transport.word("delivered") == (ROUNDS + 1) * MANY
    mine, other = (sorted(column) for column in zip(*pairs, strict=True))
    p50, bare_p50 = mine[ROUNDS // 2], other[ROUNDS // 2]
    ratio = sorted(ours / theirs for ours, theirs in pairs)[ROUNDS // 2]  # batch by batch
    print(f"\nFIX link, order out and report in: {p50:.0f} ns, bare sockets {bare_p50:.0f} ns, {ratio:.2f}x")
    append_row("fix_link_round_ns", MANY * ROUNDS, p50, mine[-1], ratio)
    idle(rig)
    rig.close()
    plain.close()
    assert ratio <= BAR


def idle(rig):
    """Print what a duty cycle costs in which nothing happens: the socket asked each time, or now and then."""
    poll = rig.segment.array("transport", TRANSPORT)[0]
    for name, poll_ns, step_ns in (("fix_link_idle_asking_ns", 0, 0), ("fix_link_idle_ns", 1_000, 20)):
        poll["poll_ns"] = poll_ns

        def cycles(step_ns=step_ns):
            return idle_many(rig.orders.addr, rig.transport.addr, NOW, step_ns, IDLE)

        times = sorted(nanoseconds(cycles, IDLE)[0] for _ in range(11))
        print(f"FIX link idle, socket asked every {poll_ns} ns: {times[5]:.1f} ns a cycle")
        append_row(name, 11 * IDLE, times[5], times[-1])
