"""`contrafusion bench`: the table, what bad input gives, and (slow) the whole of it."""

from __future__ import annotations

import json
import struct

import pytest

from daemon import bench
from daemon.commands.bench import TABLE, render
from daemon.main import main
from nimbus.feed.itch import MESSAGES
from nimbus.venue.generator import generate

WANTED = (
    "ring_rtt_ns", "ring_pingpong_floor_ns", "book_ns_per_msg", "fix_encode_ns", "fix_parse_ns",
    "infer_mc32_us", "tick_to_order_us_p50", "tick_to_order_us_p99", "machine",
)  # fmt: skip


def test_a_row_stands_in_the_table_only_when_it_was_measured():
    figures = {"fix_encode_ns": 130.04, "fix_encode_ns_p99": 1500.0, "replay_on_msgs_per_s": 4e5}
    lines = render(figures).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "FIX NewOrderSingle encode",
        "replay, model on",
    ]
    assert lines[1].split()[-2:] == ["130.0", "1,500"]


def test_a_ratio_is_the_figure_to_its_reference():
    figures = {"infer_mc32_us": 4.0, "infer_mc32_us_p99": 5.0, "infer_mc32_l2_cold_us": 6.0}
    assert render(figures).splitlines()[-1].split()[-3:] == ["loop", "4.00", "1.50"]


def test_every_row_of_the_table_can_be_shown():
    figures = dict.fromkeys((key for line in TABLE for key in line if isinstance(key, str)), 2.0)
    assert len(render(figures).splitlines()) == 1 + len(TABLE)


@pytest.mark.parametrize("content", [None, b"", b"\0\x0cS", b"no messages at all"])
def test_a_file_that_is_not_itch_is_one_line_and_exit_1(tmp_path, capsys, monkeypatch, content):
    path = tmp_path / "x.itch"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(
        "daemon.commands.bench.measure", lambda itch, _step: bench.book(bench.read_itch(itch), 1)
    )
    assert main(["bench", "--json", "--itch", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("contrafusion bench: ")
    assert error.count("\n") == 1


def test_a_generated_day_as_a_raw_file_has_every_message_behind_its_length(tmp_path):
    sizes = {m.code: m.size for m in MESSAGES}
    generate(tmp_path / "day.pcap", 3, 2_000, 2)
    raw, at, count = bench.framed_messages(tmp_path / "day.pcap").tobytes(), 0, 0
    while at < len(raw):
        (size,) = struct.unpack_from(">H", raw, at)
        assert size == sizes[raw[at + 2]]
        at, count = at + 2 + size, count + 1
    assert (at, count) == (len(raw), 2_000)


def test_the_fix_rows_check_what_they_measure(monkeypatch):
    monkeypatch.setattr(bench, "FIX_COUNT", 200)
    monkeypatch.setattr(bench, "FIX_ROUNDS", 2)
    figures = bench.fix()
    assert figures["fix_encode_ns"] > 0
    assert figures["fix_parse_ns"] > 0
    monkeypatch.setattr(bench, "parse_many", lambda *_: 7)
    with pytest.raises(bench.BenchError, match="parse: answered 7 instead of"):
        bench.fix()


def run(journal_hash="a", fills=1, messages=5):
    times = dict.fromkeys(("loop_s", "loop_cpu_s", "drain_s"), 1.0)
    counts = dict.fromkeys(("decisions", "inferences", "inference_ns_p50", "records"), 1)
    return bench.ReplayTimes(
        messages=messages, fills=fills, journal_hash=journal_hash, tick_to_order=None, orders_stage=None,
        **times, **counts,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("replays", "complaint"),
    [
        (bench.Replays([run(), run("b")], [run()], [(5, 1.0)]), "different journals"),
        (bench.Replays([run()], [run(fills=0)], [(5, 1.0)]), "no fills"),
        (bench.Replays([run()], [run()], [(4, 1.0)]), "all 5 messages"),
    ],
)
def test_replays_that_answer_wrongly_are_refused(replays, complaint):
    with pytest.raises(bench.BenchError, match=complaint):
        replays.check(5)
    bench.Replays([run(), run()], [run("b")], [(5, 1.0)]).check(5)


def test_an_itch_file_is_read_whole(tmp_path):
    (tmp_path / "x.itch").write_bytes(bytes(range(7)))
    assert bench.read_itch(tmp_path / "x.itch").tolist() == list(range(7))


@pytest.mark.slow
def test_the_whole_benchmark_prints_one_object(capsys):
    assert main(["bench", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert not [name for name in WANTED if name not in figures]
    assert figures["book_refused"] == 0
