"""Ring round trip against a bare two-line ping-pong in the same run, and throughput by batch size.

Run: python -m pytest bench/bench_ring.py, or python bench/bench_ring.py.  Bar: ratio <= 1.2 on a machine that
leaves the two cores alone.  Every record is checked; a wrong one fails the run.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from bench.results import append_row, machine
from ringbuf import probe

BAR = 1.2


def measure() -> dict[str, float]:
    """Return the rows of `ringbuf.probe.measure`."""
    return probe.measure()


def report(row: dict[str, float]) -> None:
    """Print the rows and append them to the results."""
    count = int(row["n"])
    print(f"\n{machine()}")
    rtt_ns, rtt_ns_p99, ratio = row["ring_rtt_ns"], row["ring_rtt_ns_p99"], row["ring_rtt_ratio"]
    floor_ns, large = row["ring_pingpong_floor_ns"], row["ring_large_rtt_ratio"]
    print(f"ring round trip {rtt_ns:.0f} ns, bare ping-pong {floor_ns:.0f} ns: ratio {ratio:.2f} (bar {BAR})")
    print(f"the same in rings of {probe.CAPACITY} records: ratio {large:.2f}")
    append_row("ring_rtt_ns", count, rtt_ns, rtt_ns_p99, ratio)
    single = row["ring_records_per_s_1"]
    for batch in probe.PUBLISH_BATCHES:
        rate = row[f"ring_records_per_s_{batch}"]
        print(f"throughput, {batch:2} a publish: {rate / 1e6:.1f} M records/s ({rate / single:.2f}x)")
        append_row(f"ring_records_per_s_{batch}", n=64 * probe.WINDOW, p50=rate, ratio=rate / single)


def test_ring_round_trip_and_throughput(benchmark) -> None:
    row = benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info.update(row)
    report(row)


if __name__ == "__main__":
    report(measure())
