"""The whole pipeline on one core: a generated day of a million messages, model off and on.

Run: python -m pytest bench/bench_pipeline.py -s.  Time is what the loop kernel takes; moving the journal to
disk happens between its calls and is told apart.  Bars: 2 M messages/s with the model off (features and
journal on); with it on, no more than what that and the inferences cost, plus a share for deciding.
Comparisons use the CPU time of the thread, which a neighbour on the core does not lengthen.
"""

from __future__ import annotations

import pytest

from bench.results import append_row, machine
from daemon import bench

MESSAGES, SYMBOLS = 1_000_000, 32
OFFS, ONS = 5, 3
RATE_BAR = 2e6
DECIDING_BAR = 1.25  # model on : model off + inferences; the rest is gates, records, journal, cold caches


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    path = bench.day_file(tmp_path_factory.mktemp("day"), MESSAGES, SYMBOLS)
    bench.replay_in_turn(path, offs=1, ons=1)  # compiled
    return path


def report(replays, figures):
    print(f"\n{machine()}")
    print(f"{MESSAGES:,} messages, {SYMBOLS} symbols; best of {OFFS} off, {ONS} on, in turn, on one core")
    for kind in ("off", "on"):
        rate, drained = figures[f"replay_{kind}_msgs_per_s"], figures[f"replay_{kind}_msgs_per_s_drained"]
        print(
            f"model {kind}: {rate / 1e6:.2f} M messages/s, with the drain of "
            f"{figures[f'replay_{kind}_journal_records']:,} journal records {drained / 1e6:.2f}; "
            f"CPU {figures[f'replay_{kind}_cpu_ns_per_msg']:.0f} ns/message"
        )
    print(
        f"feed and books alone: CPU {figures['feed_book_cpu_ns_per_msg']:.0f} ns/message; "
        f"the pipeline takes {figures['replay_off_to_feed_book']:.2f}x that"
    )
    on, inference = figures["replay_on_cpu_ns_per_msg"], figures["replay_on_inference_us_p50"]
    print(
        f"model on {on:.0f} ns/message = {figures['replay_on_ratio']:.3f} x "
        f"{figures['replay_on_expected_cpu_ns_per_msg']:.0f}, the sum of off and "
        f"{figures['replay_on_inferences']:,} decisions x {inference:.2f} us"
    )
    print(
        f"packet to order p50 {figures['tick_to_order_us_p50']:.1f} us, "
        f"p99 {figures['tick_to_order_us_p99']:.1f} us ({figures['tick_to_order_count']:,} orders)"
    )
    print(f"fills {figures['replay_on_fills']:,}; journals {figures['replay_off_journal_hash'][:16]}, "
          f"{figures['replay_on_journal_hash'][:16]}")  # fmt: skip
    for kind, runs, ratio in (
        ("off", replays.off, figures["replay_off_to_feed_book"]),
        ("on", replays.on, figures["replay_on_ratio"]),
    ):
        walls = sorted(run.loop_s / MESSAGES * 1e9 for run in runs)
        spent = sorted(run.loop_cpu_s / MESSAGES * 1e9 for run in runs)
        append_row(f"replay_{kind}_ns", MESSAGES * len(runs), walls[len(runs) // 2], walls[-1])
        append_row(f"replay_{kind}_cpu_ns", MESSAGES * len(runs), spent[len(runs) // 2], spent[-1], ratio)
    count, p50, p99 = (figures[f"tick_to_order_{name}"] for name in ("count", "us_p50", "us_p99"))
    append_row("tick_to_order_us", count, p50, p99, p50 / inference)


def test_the_whole_pipeline_on_one_core(benchmark, day):
    replays = benchmark.pedantic(
        bench.replay_in_turn, args=(day,), kwargs={"offs": OFFS, "ons": ONS}, rounds=1, iterations=1
    )
    replays.check(MESSAGES)
    figures = replays.figures()
    benchmark.extra_info.update(figures)
    report(replays, figures)
    assert 1e9 / figures["replay_off_cpu_ns_per_msg"] >= RATE_BAR
    assert figures["replay_on_ratio"] <= DECIDING_BAR
