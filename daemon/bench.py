"""What `contrafusion bench` and bench/ measure, each figure with its answer checked.

Every function returns figures by the names that `--json` prints; the unit stands last in the name, before
p50 or p99.  Wall time is what a neighbour leaves us; CPU time of the thread is what the code costs, so
comparisons of two runs use that, and throughput uses the better of several walls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep import probe as infer_probe
from daemon.config import Config, ModelConfig
from daemon.errors import CommandError
from daemon.replay import Replay
from daemon.system import System
from daemon.warm import warm_up
from nimbus.book import probe as book_probe
from nimbus.book.owner import Books
from nimbus.books_only import NEED_INPUT, walk_books
from nimbus.feed.capture import CaptureSource
from nimbus.feed.decode import Feed
from nimbus.fix.codec import REPORT, Codec
from nimbus.fix.parse import create_fields
from nimbus.fix.probe import encode_many, parse_many
from nimbus.fix.template import encode_new_order, encode_report
from nimbus.market import Market
from nimbus.messages import BUY, ORDER, WIRE
from nimbus.venue.generator import generate
from ringbuf import probe as ring_probe
from ringbuf.affinity import pin_thread, usable_cores
from ringbuf.histogram import Histogram
from ringbuf.segment import Segment

Figures = dict[str, float | int | str]

DAY_SEED, DAY_MESSAGES, DAY_SYMBOLS = 11, 300_000, 16
BOOK_ROUNDS: Final = 25
BOOK_SECONDS: Final = 5.0  # a long file is walked less often, but at least three times
FIX_ROUNDS, FIX_COUNT, FIX_DISTINCT = 40, 10_000, 64
INFER_COUNT: Final = 4_000
WALK_MAX: Final = 1 << 60  # messages of one call: all of them
REPLAYS_OFF, REPLAYS_ON = 5, 3  # of each: the model off (and as often feed and books alone), on
_FIX_NOW_NS: Final = 1_764_111_111_123_456_789
_CL_ORD_ID: Final = b"0007000010000ABC"
_PCAP_HEADER, _PCAP_RECORD, _MOLD_BLOCKS_AT = 24, 16, 14 + 20 + 8 + 20  # of a generated day


class BenchError(CommandError):
    """A measured kernel gave a wrong answer, or a measurement cannot be made; the text is one line."""


def ring() -> Figures:
    """Round trip of a 64-byte record between two cores beside a bare ping-pong, and throughput."""
    if len(usable_cores()) < 2:
        return {}
    try:
        return {name: value for name, value in ring_probe.measure().items() if name != "n"}
    except ring_probe.ProbeError as error:
        raise BenchError(str(error)) from None


def day_file(folder: pathlib.Path, messages: int = DAY_MESSAGES, symbols: int = DAY_SYMBOLS) -> pathlib.Path:
    """Write the generated day that the other rows run on; return its path."""
    path = folder / "day.pcap"
    generate(path, DAY_SEED, messages, symbols)
    return path


def framed_messages(day: pathlib.Path) -> NDArray[np.uint8]:
    """Return the messages of a generated day as a raw ITCH file holds them: each behind its 2-byte length."""
    raw, at, blocks = day.read_bytes(), _PCAP_HEADER, list[bytes]()
    while at < len(raw):
        size = int.from_bytes(raw[at + 8 : at + 12], "little")
        at += _PCAP_RECORD
        blocks.append(raw[at + _MOLD_BLOCKS_AT : at + size])
        at += size
    return np.frombuffer(b"".join(blocks), np.uint8).copy()


def read_itch(path: pathlib.Path) -> NDArray[np.uint8]:
    """Read a length-framed ITCH file into memory; raises CommandError when there is nothing to read."""
    try:
        file = np.fromfile(path, np.uint8)
    except OSError as error:
        msg = f"{path}: {error.strerror or error}"
        raise CommandError(msg) from None
    if not len(file):
        msg = f"{path}: empty file"
        raise CommandError(msg)
    return file


def book(file: NDArray[np.uint8], rounds: int = BOOK_ROUNDS) -> Figures:
    """All books over messages in memory: decode, apply, publish the top.

    The first round touches untouched memory and is not counted.
    """
    books = Books(Segment.anonymous(1 << 30))
    try:
        first = book_probe.measure(file, 1, books)
        affordable = int(BOOK_SECONDS * 1e9 / (first.ns_per_message[0] * first.messages))
        measured = book_probe.measure(file, min(rounds, max(affordable, 3)), books)
    except ValueError as error:
        raise BenchError(str(error)) from None
    if measured.state_hash != first.state_hash:
        msg = "two rounds left different books"
        raise BenchError(msg)
    spans = measured.ns_per_message
    return {
        "book_ns_per_msg": float(np.median(spans)),
        "book_ns_per_msg_p99": float(np.percentile(spans, 99)),
        "book_ns_per_msg_best": min(spans),
        "book_messages": measured.messages,
        "book_refused": measured.refused,
        "book_tops": measured.tops,
        "book_state_hash": f"{measured.state_hash & 0xFFFFFFFFFFFFFFFF:016x}",
    }


def _rounds(call: Callable[[], int], expected: int, what: str) -> NDArray[np.float64]:
    """Return ns for each of FIX_COUNT repetitions inside call, one figure a round."""
    spans = []
    for _ in range(FIX_ROUNDS):
        began = time.perf_counter_ns()
        answer = call()
        spans.append((time.perf_counter_ns() - began) / FIX_COUNT)
        if answer != expected:
            msg = f"{what}: answered {answer} instead of {expected}"
            raise BenchError(msg)
    return np.array(spans)


def fix() -> Figures:
    """Encode NewOrderSingle and parse ExecutionReport; every value differs from message to message."""
    segment = Segment.anonymous(1 << 20)
    symbols = segment.allocate("symbols", 16)
    segment.words(symbols, 2)[1] = int.from_bytes(b"AAPL    ", "little")
    shared: dict[str, Any] = {"symbols": symbols, "symbols_max": 2, "epoch": 7}
    codec = Codec.for_orders(
        segment, "codec", comp_ids=("CONTRAFUSION", "VENUE"), timestamp_digits=6, **shared
    )
    venue = Codec.for_venue(
        segment, "venue", comp_ids=("VENUE", "CONTRAFUSION"), timestamp_digits=6, **shared
    )
    order, target = segment.allocate("order", ORDER.size), segment.allocate("target", WIRE.size)
    row: Any = segment.array("order", ORDER)[0]
    row["px"], row["qty"], row["locate"], row["side"] = 1_015_025, 250, 1, BUY
    row["cl_ord_id"] = list(_CL_ORD_ID)
    size = encode_new_order(codec.addr, target, order, 1, _FIX_NOW_NS)
    if size < 0:
        msg = f"encode refused with {size}"
        raise BenchError(msg)
    arguments = (codec.addr, target, order, _FIX_NOW_NS, FIX_COUNT)
    encoded = encode_many(*arguments)
    if not FIX_COUNT * (size + ord("0")) <= encoded <= FIX_COUNT * (size + ord("9")):
        msg = f"encode: sizes and last checksum digits add up to {encoded}"
        raise BenchError(msg)
    row["cl_ord_id"] = list(_CL_ORD_ID)
    encode = _rounds(lambda: _encode_again(row, arguments), encoded, "encode")
    wires, total = _reports(segment, venue)
    fields = create_fields(segment, "fields")
    whole, rest = divmod(FIX_COUNT, FIX_DISTINCT)
    parse_many(wires, FIX_DISTINCT, fields, FIX_DISTINCT)
    expected = whole * total(FIX_DISTINCT) + total(rest)
    parse = _rounds(lambda: parse_many(wires, FIX_DISTINCT, fields, FIX_COUNT), expected, "parse")
    return {
        "fix_encode_ns": float(np.median(encode)),
        "fix_encode_ns_p99": float(np.percentile(encode, 99)),
        "fix_parse_ns": float(np.median(parse)),
        "fix_parse_ns_p99": float(np.percentile(parse, 99)),
    }


def _encode_again(row: Any, arguments: tuple[int, ...]) -> int:
    row["cl_ord_id"] = list(_CL_ORD_ID)
    codec, target, order, now_ns, count = arguments
    return encode_many(codec, target, order, now_ns, count)


def _reports(segment: Segment, venue: Codec) -> tuple[int, Callable[[int], int]]:
    """Write FIX_DISTINCT trades as WIRE records; return their address, and what the first n add up to."""
    wires = segment.allocate("wires", FIX_DISTINCT * WIRE.size)
    report = segment.allocate("report", REPORT.size)
    row: Any = segment.array("report", REPORT)[0]
    rows: Any = segment.array("wires", WIRE)
    sums = [0]
    for n in range(FIX_DISTINCT):
        qty, px = 1 + 37 * n % 900, 1_000_000 + 12_345 * n % 100_000
        row["order_id"] = row["exec_id"] = n + 1
        row["px"] = row["last_px"] = px
        row["qty"], row["last_qty"], row["cum_qty"], row["leaves_qty"] = 1_000, qty, qty, 1_000 - qty
        row["cost"], row["locate"], row["side"] = qty * px, 1, BUY
        row["exec_type"], row["ord_status"] = ord("F"), ord("1")
        row["cl_ord_id"] = list(_CL_ORD_ID)
        at = wires + n * WIRE.size + WIRE.at.bytes
        rows[n]["size"] = encode_report(venue.addr, at, report, n + 1, _FIX_NOW_NS + n * 10**9)
        text = bytes(rows[n]["bytes"][: rows[n]["size"]])
        sums.append(sums[-1] + qty + px + ord("1") + _CL_ORD_ID[0] + text.count(b"\x01"))
    return wires, sums.__getitem__


def inference() -> Figures:
    """One Monte-Carlo inference of 32 samples: in a tight loop, and with caches swept before each."""
    try:
        return dict(infer_probe.rows(INFER_COUNT))
    except infer_probe.ProbeError as error:
        raise BenchError(str(error)) from None


@dataclasses.dataclass(frozen=True, slots=True)
class ReplayTimes:
    """One replay of a capture on one core: the loop kernel, and what stands around it."""

    messages: int
    loop_s: float  # inside the loop kernel, wall
    loop_cpu_s: float  # the same, CPU time of the thread
    drain_s: float  # moving the journal to its segments
    decisions: int
    inferences: int
    inference_ns_p50: int
    fills: int
    records: int
    journal_hash: str
    tick_to_order: Histogram
    orders_stage: Histogram


def replay_once(day: pathlib.Path, kind: str) -> ReplayTimes:
    """Replay a capture with a model kind (off, rule); journal and features on."""
    config = dataclasses.replace(Config(), model=ModelConfig(kind=kind))
    with contextlib.closing(System(config, day)) as system, tempfile.TemporaryDirectory() as folder:
        warm_up(system.pipeline)
        replay = Replay(system, pathlib.Path(folder))
        replay.run()
        counters, strategy, inference_ns = (
            system.orders.counters(),
            system.strategy.counters(),
            system.histograms["inference"],
        )
        return ReplayTimes(
            messages=int(system.control["heartbeat"]),
            loop_s=replay.loop_s,
            loop_cpu_s=replay.loop_cpu_s,
            drain_s=replay.drain_s,
            decisions=strategy["decision"],
            inferences=inference_ns.count,
            inference_ns_p50=inference_ns.percentiles([50.0])[0],
            fills=counters["trades"],
            records=replay.writer.records,
            journal_hash=replay.journal_hash,
            tick_to_order=system.histograms["tick_to_order"].copy(),
            orders_stage=system.histograms["orders"].copy(),
        )


def walk_once(day: pathlib.Path) -> tuple[int, float]:
    """Run a capture through feed and books alone; return messages and CPU seconds (the first: compiling)."""
    segment = Segment.anonymous(1 << 30)
    source, feed = CaptureSource.open(day, segment=segment), Feed(segment)
    market = Market(segment, feed, Books(segment))
    cpu = time.thread_time()
    while walk_books(source.state, market.state, 0, 0, WALK_MAX) != NEED_INPUT or source.refill():
        pass
    spent = time.thread_time() - cpu
    source.close()
    return int(market.words["messages"]), spent


@dataclasses.dataclass(slots=True)
class Replays:
    """Replays of one day, made in turn: model off, model on, and CPU seconds of feed and books alone."""

    off: list[ReplayTimes] = dataclasses.field(default_factory=list)
    on: list[ReplayTimes] = dataclasses.field(default_factory=list)
    walks: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    def check(self, messages: int) -> None:
        """Raise BenchError unless equal replays left equal journals, without a gap, and the model traded."""
        for runs in (self.off, self.on):
            if len({run.journal_hash for run in runs}) != 1:
                msg = "two replays of one day left different journals"
                raise BenchError(msg)
        if any(run.fills < 1 for run in self.on):
            msg = "the replay with a model had no fills"
            raise BenchError(msg)
        handled = [run.messages for run in [*self.off, *self.on]] + [count for count, _ in self.walks]
        if any(count != messages for count in handled):
            msg = f"a replay did not handle all {messages} messages"
            raise BenchError(msg)

    def figures(self) -> Figures:
        """Return the figures of the replays.

        replay_on_ratio: CPU time with the model on, to (CPU time off + inferences x their p50).
        """
        off_cpu_s, on_cpu_s = (min(run.loop_cpu_s for run in runs) for runs in (self.off, self.on))
        on, messages, figures = self.on[0], self.on[0].messages, Figures()
        inference_ns = float(np.median([run.inference_ns_p50 for run in self.on]))
        expected_s = off_cpu_s + on.inferences * inference_ns * 1e-9
        for kind, runs in (("off", self.off), ("on", self.on)):
            loops = [run.loop_s for run in runs]
            figures |= {
                f"replay_{kind}_msgs_per_s": messages / min(loops),
                f"replay_{kind}_msgs_per_s_p50": messages / float(np.median(loops)),
                f"replay_{kind}_msgs_per_s_drained": messages / min(run.loop_s + run.drain_s for run in runs),
                f"replay_{kind}_journal_records": runs[0].records,
                f"replay_{kind}_journal_hash": runs[0].journal_hash,
            }
        per_message, walk_cpu_s = 1e9 / messages, min(spent for _, spent in self.walks)
        figures |= {
            "replay_messages": messages,
            "replay_off_cpu_ns_per_msg": off_cpu_s * per_message,
            "replay_on_cpu_ns_per_msg": on_cpu_s * per_message,
            "replay_on_expected_cpu_ns_per_msg": expected_s * per_message,
            "replay_on_ratio": on_cpu_s / expected_s,
            "replay_on_decisions": on.decisions,
            "replay_on_inferences": on.inferences,
            "replay_on_inference_us_p50": inference_ns * 1e-3,
            "replay_on_fills": on.fills,
            "feed_book_cpu_ns_per_msg": walk_cpu_s * per_message,
            "replay_off_to_feed_book": off_cpu_s / walk_cpu_s,
        }
        return figures | self._latency()

    def _latency(self) -> Figures:
        figures: Figures = {}
        for name in ("tick_to_order", "orders_stage"):
            total = Histogram.private()
            for run in self.on:
                total.merge(getattr(run, name))
            p50, p99 = total.percentiles([50.0, 99.0])
            figures |= {
                f"{name}_us_p50": p50 * 1e-3,
                f"{name}_us_p99": p99 * 1e-3,
                f"{name}_count": total.count,
            }
        return figures


def replay_in_turn(
    day: pathlib.Path,
    offs: int = REPLAYS_OFF,
    ons: int = REPLAYS_ON,
    tell: Callable[[], object] | None = None,
) -> Replays:
    """Replay a day with the model off and on in turn, on one core; tell() after each round of either."""
    cores, replays = usable_cores(), Replays()
    pin_thread(cores[-1])
    try:
        for n in range(max(offs, ons)):
            if n < offs:
                replays.walks.append(walk_once(day))
                replays.off.append(replay_once(day, "off"))
            if n < ons:
                replays.on.append(replay_once(day, "rule"))
            if tell is not None:
                tell()
    finally:
        os.sched_setaffinity(0, cores)
    return replays
