"""The measuring kernels: they check their answer, and the row they make is complete."""

from __future__ import annotations

import pathlib
import sys

import pytest

from ringbuf import probe
from ringbuf.segment import Segment
from ringbuf.spsc import HEADER_SIZE, create_ring

ROOT = pathlib.Path(__file__).resolve().parents[1]
needs_two_cores = pytest.mark.skipif(len(probe.usable_cores()) < 2, reason="needs two cores")


@needs_two_cores
@pytest.mark.alone
def test_a_short_measurement_gives_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "throughput", lambda _batch: 1.0)
    row = probe.measure(batches=2, rounds=50)
    assert set(row) >= {"ring_rtt_ns", "ring_rtt_ns_p99", "ring_pingpong_floor_ns", "ring_rtt_ratio", "n"}
    assert row["n"] == probe.PLACES * 50
    assert all(value > 0 for value in row.values())


@needs_two_cores
@pytest.mark.alone
@pytest.mark.parametrize("batch", probe.PUBLISH_BATCHES)
def test_throughput_passes_all_records(batch: int) -> None:
    assert probe.throughput(batch, total=2 * probe.WINDOW, repeats=1) > 0


def test_a_damaged_record_fails_the_measurement() -> None:
    segment = Segment.anonymous(1 << 14)
    ring = create_ring(segment, "ring", 64, probe.PROBE_RECORD)
    assert probe.produce(ring, 10, 8) == 0
    segment.words(ring + HEADER_SIZE + 4 * 64, 8)[7] += 1
    assert probe.consume(ring, 10, 8, segment.allocate("stamps", 16)) == 1


def test_one_core_is_refused_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "usable_cores", lambda: [0])
    with pytest.raises(probe.ProbeError, match="needs two cores"):
        probe.throughput(1, total=probe.WINDOW, repeats=1)


def test_results_are_appended_under_one_header(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "bench.results", raising=False)
    from bench import results

    path = tmp_path / "results.csv"
    results.append_row("ring, rtt", n=5, p50=1.25, p99=3.0, ratio=1.1, path=path)
    results.append_row("throughput", n=7, p50=100.0, path=path)
    header, first, second = path.read_text().splitlines()
    assert header == "name,commit,machine,n,p50,p99,ratio"
    assert first.startswith('"ring, rtt",')
    assert first.endswith(",5,1.25,3,1.1")
    assert second.endswith(",7,100,,")
