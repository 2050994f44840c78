"""`contrafusion bench`: latency and throughput of the parts and of the whole on this machine."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from daemon import bench
from daemon.bench import Figures
from daemon.doctor import machine_name
from daemon.errors import CommandError, output_folder, positive, positive_integer, writing
from daemon.namespaces import NamespaceError, enter_user_namespace
from daemon.progress import bar, showing_compilation
from ringbuf.jit import on_compiled

if TYPE_CHECKING:
    from daemon.wire.bench import Session

STEPS: Final = 6 + max(bench.REPLAYS_OFF, bench.REPLAYS_ON)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "what", nargs="?", choices=("parts", "wire"), default="parts",
        help="parts (default), or wire: tick-to-trade over a veth pair, next to an echo",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=positive, default=20.0, help="wire: length of each run (default 20)"
    )
    parser.add_argument(
        "--rate", type=positive_integer, default=2_000, help="wire: packets a second (default 2000)"
    )
    parser.add_argument(
        "--admin-rps", type=positive_integer, default=0, metavar="N",
        help="wire: instead, quiet phases against phases with N requests/s to the admin endpoint",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out/wire"), help="wire: folder (default out/wire)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--itch", metavar="FILE", type=pathlib.Path,
        help="length-framed ITCH file of the book row (default: a generated day)",
    )  # fmt: skip


class Line(NamedTuple):
    """One row of the table: keys of the figures, and how they are shown."""

    name: str
    unit: str
    key: str
    tail: str = ""  # p99
    reference: str = ""  # what the figure is held against
    reference_key: str = ""
    ratio: str = ""
    scale: float = 1.0


TABLE: Final = (
    Line("ring round trip, 64 bytes", "ns", "ring_rtt_ns", "ring_rtt_ns_p99", "bare ping-pong",
         "ring_pingpong_floor_ns", "ring_rtt_ratio"),
    Line("ring, a publish a record", "M/s", "ring_records_per_s_1", scale=1e-6),
    Line("ring, a publish in 64", "M/s", "ring_records_per_s_64", reference="a publish a record",
         reference_key="ring_records_per_s_1", scale=1e-6),
    Line("decode + L3 book, a message", "ns", "book_ns_per_msg", "book_ns_per_msg_p99", "best round",
         "book_ns_per_msg_best"),
    Line("FIX NewOrderSingle encode", "ns", "fix_encode_ns", "fix_encode_ns_p99"),
    Line("FIX ExecutionReport parse", "ns", "fix_parse_ns", "fix_parse_ns_p99"),
    Line("inference, 32 samples", "us", "infer_mc32_us", "infer_mc32_us_p99"),
    Line("  weights outside L2", "us", "infer_mc32_l2_cold_us", reference="tight loop",
         reference_key="infer_mc32_us"),
    Line("  weights in memory", "us", "infer_mc32_dram_cold_us", reference="tight loop",
         reference_key="infer_mc32_us"),
    Line("replay, model off", "M msg/s", "replay_off_msgs_per_s", scale=1e-6),
    Line("  with the journal drained", "M msg/s", "replay_off_msgs_per_s_drained", scale=1e-6),
    Line("replay, model on", "M msg/s", "replay_on_msgs_per_s", scale=1e-6),
    Line("  CPU a message, model off", "ns", "replay_off_cpu_ns_per_msg", reference="feed and books alone",
         reference_key="feed_book_cpu_ns_per_msg"),
    Line("  CPU a message, model on", "ns", "replay_on_cpu_ns_per_msg", reference="off + inferences",
         reference_key="replay_on_expected_cpu_ns_per_msg", ratio="replay_on_ratio"),
    Line("  inference in there", "us", "replay_on_inference_us_p50", reference="tight loop",
         reference_key="infer_mc32_us"),
    Line("packet to order, model on", "us", "tick_to_order_us_p50", "tick_to_order_us_p99"),
    Line("  intent to FIX bytes", "us", "orders_stage_us_p50", "orders_stage_us_p99"),
)  # fmt: skip


def _ratio(line: Line, figures: Figures) -> str:
    if line.ratio:
        return f"{float(figures[line.ratio]):.2f}"
    if line.reference_key:
        return f"{float(figures[line.key]) / float(figures[line.reference_key]):.2f}"
    return ""


def _value(line: Line, key: str, figures: Figures) -> str:
    value = float(figures[key]) * line.scale
    digits = 2 if value < 10 else 1 if value < 1_000 else 0
    return f"{value:,.{digits}f}"


def render(figures: Figures) -> str:
    """Return the table; a row exists only when its figures do."""
    head = ("", "unit", "p50 / value", "p99", "reference", "", "ratio")
    rows = [head]
    for line in TABLE:
        if line.key not in figures:
            continue
        tail = _value(line, line.tail, figures) if line.tail else ""
        reference = _value(line, line.reference_key, figures) if line.reference_key else ""
        value, ratio = _value(line, line.key, figures), _ratio(line, figures)
        rows.append((line.name, line.unit, value, tail, line.reference, reference, ratio))
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    left = (0, 1, 4)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n in left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def measure(itch: pathlib.Path | None, step: Callable[[str], object]) -> Figures:
    """Measure everything; step(what comes next) is called STEPS times."""
    file = bench.read_itch(itch) if itch else None
    step("ring")
    figures = bench.ring()
    step("FIX")
    figures |= bench.fix()
    step("inference")
    figures |= bench.inference()
    step("generated day")
    with tempfile.TemporaryDirectory() as folder:
        day = bench.day_file(pathlib.Path(folder))
        step("book")
        figures |= bench.book(bench.framed_messages(day) if file is None else file)
        figures["book_file"] = str(itch) if itch else f"generated day, seed {bench.DAY_SEED}"
        step("replay")
        replays = bench.replay_in_turn(day, tell=lambda: step("replay"))
    replays.check(bench.DAY_MESSAGES)
    return figures | replays.figures()


@contextlib.contextmanager
def _steps(*, quiet: bool) -> Iterator[Callable[[str], object]]:
    """Draw a bar over the steps that names what is measured, or compiled the first time."""
    with bar(STEPS, "steps", "bench", quiet=quiet) as progress:

        def step(what: str) -> None:
            progress.set_postfix_str(what)
            progress.update()

        def compiled(name: str) -> None:
            progress.set_postfix_str(f"compiling, once: {name}")

        with on_compiled(compiled), showing_compilation(quiet=quiet or sys.stderr.isatty()):
            yield step


def execute(arguments: argparse.Namespace) -> int:
    """Measure and print the table, or one JSON object."""
    if arguments.what == "wire":
        return _busy_admin(arguments) if arguments.admin_rps else _wire(arguments)
    with _steps(quiet=arguments.json) as step:
        figures = measure(arguments.itch, step)
    machine = f"{machine_name()}, Python {platform.python_version()}"
    if arguments.json:
        result: dict[str, Any] = figures | {"machine": machine}
        sys.stdout.write(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode() + "\n")
        return 0
    print(render(figures))
    print(f"\nmachine: {machine}")
    print(
        f"book: {figures['book_messages']:,} messages of {figures['book_file']}, "
        f"state {figures['book_state_hash']}, refused {figures['book_refused']:,}"
    )
    print(
        f"replay: {figures['replay_messages']:,} messages, {figures['replay_on_decisions']:,} decisions, "
        f"{figures['replay_on_fills']:,} fills; two replays left the same journal"
    )
    print("on a shared machine only ratios mean much: rerun when it is quiet")
    return 0


def _on_the_wire(
    arguments: argparse.Namespace, measure: Callable[[Session, Callable[[str], object]], dict[str, Any]]
) -> dict[str, Any]:
    """Measure a session of the options in namespaces, by root or in a user namespace; name the machine."""
    from daemon.wire.bench import Session  # noqa: PLC0415  the rest of `bench` needs no network

    try:
        enter_user_namespace("daemon.main", sys.argv[1:])
        session = Session(
            output_folder(arguments.out), packets_per_s=arguments.rate, seconds=arguments.seconds
        )
        result = measure(session, lambda what: sys.stderr.write(f"{what} ...\n"))
    except NamespaceError as error:
        raise CommandError(str(error)) from None
    return result | {"machine": f"{machine_name()}, Python {platform.python_version()}"}


def _busy_admin(arguments: argparse.Namespace) -> int:
    """Measure what a busy admin endpoint does to the hot loop."""
    from daemon.wire import admin_bench  # noqa: PLC0415  the rest of `bench` needs no network

    result = _on_the_wire(
        arguments, lambda session, tell: admin_bench.measure(session, arguments.admin_rps, tell)
    )
    folder = arguments.out
    with writing(folder):
        (folder / "admin.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    if arguments.json:
        sys.stdout.write(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print(admin_bench.table(result))
        print(f"machine: {result['machine']}; {result['packets_per_s']:,} packets/s")
    return 0


def _wire(arguments: argparse.Namespace) -> int:
    """Measure tick-to-trade; leave distributions and a picture in the folder."""
    from daemon.wire import bench as wire  # noqa: PLC0415  the rest of `bench` needs no network
    from daemon.wire import report  # noqa: PLC0415

    result = _on_the_wire(arguments, wire.measure)
    folder, machine = arguments.out, result["machine"]
    rows = result["rows"]
    with writing(folder):
        (folder / "tick_to_trade.svg").write_text(report.picture(rows), encoding="utf-8")
        for name, row in rows.items():
            (folder / f"{name}.hgrm").write_text(report.distribution(row.pop("ticks_ns")), encoding="ascii")
        (folder / "tick_to_trade.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    if arguments.json:
        sys.stdout.write(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print(report.table(rows))
        print(f"\nmachine: {machine}; {result['packets_per_s']:,} packets/s; see {folder}")
    return 0
