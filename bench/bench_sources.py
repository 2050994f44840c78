"""From a sender's clock to the value in a kernel, by source: a veth pair, one datagram each 100 us.

Run: python -m pytest bench/bench_sources.py, or python bench/bench_sources.py (root).  The ratio is to the
udp source of the same run.  Every datagram is checked; a lost or wrong one fails the run.  Of the bursts of a
source the one with the lowest median counts, since a neighbour on a core delays a whole burst.  A veth pair
has no card and no wire: the figures compare the ways through Linux and say nothing about a network.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import threading

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

from net.rig import Rig, in_thread
from net.traffic import GROUP_A, HEADERS_SIZE, PORT_A

from bench.results import append_row, machine
from nimbus.feed.af_packet import AfPacketV2
from nimbus.feed.af_xdp import AfXdp
from nimbus.feed.decode import Subscription
from nimbus.feed.source import SourceError, Sources, next_of, wait_readable
from nimbus.feed.udp import UdpSocket
from nimbus.feed.udp_send import UdpSender, send_datagram
from nimbus.messages import LINK_UDP, PACKET
from ringbuf.affinity import pin_thread, usable_cores
from ringbuf.clock import WALL, Clock, now_ns
from ringbuf.jit import kernel
from ringbuf.memory import load_i64, load_u16, load_u32, store_i64
from ringbuf.segment import Segment

COUNT, GAP_NS, SIZE, SKIPPED, BURSTS = 1_000, 100_000, 64, 100, 25
TIMEOUT_NS = 30_000_000_000
LINE = [Subscription(GROUP_A, PORT_A)]
SOURCES = {
    "udp": lambda segment: UdpSocket(segment, GROUP_A, PORT_A, interface="10.77.0.2"),
    "af_packet": lambda segment: AfPacketV2(segment, "mdc0", LINE, frames=8_192),
    "af_xdp_generic": lambda segment: AfXdp(segment, "mdc0", LINE, frames=8_192),
    "af_xdp_native": lambda segment: AfXdp(segment, "mdc0", LINE, frames=8_192, mode="native"),
}
_P = PACKET.at


@kernel
def send_stamped(sender: int, clock: int, payload: int, count: int, gap_ns: int) -> int:
    """Send count datagrams of SIZE bytes that hold their number and the time just before the send."""
    due_ns, sent = now_ns(clock) + 1_000_000, 0
    for number in range(count):
        due_ns += gap_ns
        while now_ns(clock) < due_ns:
            pass
        store_i64(payload, number)
        store_i64(payload + 8, now_ns(clock))
        sent += 1 if send_datagram(sender, payload, SIZE) == SIZE else 0
    return sent


@kernel
def receive_stamped(sources: int, packet: int, clock: int, delays: int, count: int, wait_ms: int) -> int:
    """Store what lies between stamp and sight of each datagram; return how many came in order."""
    number, until_ns = 0, now_ns(clock) + TIMEOUT_NS
    while number < count:
        if next_of(sources, packet) <= 0:
            if wait_ms > 0:
                wait_readable(sources, wait_ms)
            if now_ns(clock) > until_ns:
                break
            continue
        seen_ns = now_ns(clock)
        headers = 0 if load_u16(packet + _P.link) == LINK_UDP else HEADERS_SIZE
        at = load_i64(packet + _P.frame_at) + headers
        if load_u32(packet + _P.size) != headers + SIZE or load_i64(at) != number:
            break
        store_i64(delays + number * 8, seen_ns - load_i64(at + 8))
        number += 1
    return number


def on_core(index: int, work, *arguments):
    """Run work in the calling thread, which is fresh, on one of the usable cores."""
    pin_thread(usable_cores()[index])
    return work(*arguments)


def one(rig: Rig, kind: str, wait_ms: int, count: int = COUNT) -> np.ndarray:
    """Return the delays of a run (ns), the first ones left out."""
    segment, delays = Segment.anonymous(1 << 20), np.zeros(count, np.int64)
    clocks = [Clock(segment, f"clock{k}", WALL) for k in range(2)]
    packet, payload = segment.allocate("packet", PACKET.size), segment.allocate("payload", SIZE)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(rig.client.run(SOURCES[kind], segment)))
        made = rig.exchange.run(UdpSender, segment, GROUP_A, PORT_A, interface="10.77.0.1")
        sender = stack.enter_context(contextlib.closing(made))
        table = (sender.state, clocks[0].addr, payload, count, GAP_NS)
        thread = threading.Thread(target=on_core, args=(0, send_stamped, *table))
        sources = Sources(segment, [source])
        thread.start()
        table = (sources.state, packet, clocks[1].addr, delays.ctypes.data, count, wait_ms)
        got = in_thread(lambda: on_core(-1, receive_stamped, *table))
        thread.join()
        counts = source.counters()
    assert got == count, f"{kind}: {got} of {count} datagrams came in order: {counts}"
    return delays[min(SKIPPED, count - 1) :]


def percentiles(burst: np.ndarray) -> tuple[float, float]:
    p50, p99 = np.percentile(burst, [50, 99])
    return float(p50), float(p99)


def measure() -> dict[str, tuple[float, float]]:
    """Return (p50, p99) in ns by source; `_wait`: asleep in wait_readable between the packets."""
    delays: dict[str, list[np.ndarray]] = {name: [] for name in [*SOURCES, "af_packet_wait"]}
    with Rig() as rig:
        for burst in range(BURSTS + 1):
            for name, found in list(delays.items()):
                kind, wait_ms = name.removesuffix("_wait"), 50 if name.endswith("_wait") else 0
                try:
                    found.append(one(rig, kind, wait_ms, COUNT if burst else 10))  # the first compiles
                except SourceError as error:
                    print(f"{name}: {error}")
                    del delays[name]
    return {
        name: min(map(percentiles, bursts[1:]), key=lambda pair: pair[0]) for name, bursts in delays.items()
    }


def report(rows: dict[str, tuple[float, float]]) -> None:
    """Print the rows and append them to the results."""
    print(f"\n{machine()}")
    for name, (p50, p99) in rows.items():
        ratio = p50 / rows["udp"][0]
        print(f"{name:16} sender's stamp to sight: p50 {p50:8,.0f} ns, p99 {p99:9,.0f} ns, {ratio:.2f}x udp")
        append_row(f"source_{name}_ns", COUNT - SKIPPED, p50, p99, ratio)


def test_from_the_senders_stamp_to_the_value(benchmark) -> None:
    rows = benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info.update(rows)
    report(rows)


if __name__ == "__main__":
    report(measure())
