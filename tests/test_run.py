"""The daemon as a process: its endpoint, its signals, its shared memory, and the results it leaves."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import pytest
from replays import SMALL, Outcome, environment, positions_of, replay, write_config

from daemon.config import read_config
from daemon.main import main
from daemon.pipeline import run_inline
from daemon.start_up import masked, terminable
from daemon.system import ORDERS_STREAM, System
from daemon.wind_down import cancel_working
from nimbus.journal.types import RecordType
from nimbus.messages import HALTED
from nimbus.orders.kill_switch import CONTROL
from ringbuf.segment import orphans

DECIMAL = re.compile(r"-?\d+\.\d{4}")
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
SETTINGS = (
    "[venue]\norder_latency_us = 100.0\n[journal]\nring_records = 262144\n[orders]\nday_orders_max = 65536\n"
)
POSITION_FIELDS = {
    "symbol", "qty", "avg_px", "mark_px", "realized_pnl", "unrealized_pnl", "open_buy_qty", "open_sell_qty",
    "limit_qty", "limit_used",
}  # fmt: skip
FILL_FIELDS = {
    "exec_id", "cl_ord_id", "symbol", "side", "qty", "price", "liquidity", "strategy", "contradiction", "at",
}  # fmt: skip
ORDER_FIELDS = {
    "cl_ord_id", "symbol", "side", "type", "qty", "price", "leaves_qty", "cum_qty", "avg_px", "state",
    "strategy", "created_at", "updated_at",
}  # fmt: skip


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> pathlib.Path:
    """Return a day of a few minutes, for a few seconds of wall time."""
    path = tmp_path_factory.mktemp("run") / "day.pcap"
    assert main(["generate", "--seed", "6", "--messages", "9000", "--symbols", "4", str(path), "--json"]) == 0
    return path


@pytest.fixture
def shared():
    """Give a folder for segments that only this test uses, in memory where the machine has some."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = pathlib.Path(tempfile.mkdtemp(prefix="contrafusion-test-", dir=base))
    yield folder
    shutil.rmtree(folder)


class Daemon:
    """A daemon under test; `address` is where its endpoint answers."""

    def __init__(self, folder, shared, capture, *, speed=100_000.0, port=0, text=SETTINGS, epoch=1, cache=""):
        self.folder, self.log = folder, folder / "stderr.log"
        folder.mkdir(exist_ok=True)
        config = folder / "run.toml"
        config.write_text(
            f'epoch = {epoch}\nsegment_directory = "{shared}"\n[model]\nkind = "rule"\n{SMALL}'
            f'[feed]\ncapture = "{capture}"\nspeed = {speed}\n[admin]\nport = {port}\n'
            f'[run]\nfolder = "{folder / "out"}"\n{text}'
        )
        words = [sys.executable, "-m", "daemon.main", "run", "--config", str(config)]
        with self.log.open("w") as log:
            more = {"XDG_CACHE_HOME": str(cache)} if cache else {}
            self.child = subprocess.Popen(
                words, env=environment() | more, stderr=log, stdout=subprocess.DEVNULL, cwd=folder
            )

    def events(self) -> list[dict]:
        """Return the log lines so far; each is JSON, but for the lines about compiling."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for(self, event: str, timeout_s: float = 200.0) -> dict:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for row in self.events():
                if row["event"] == event:
                    return row
            if self.child.poll() is not None:
                break
            time.sleep(0.05)
        pytest.fail(f"no event {event!r}: {self.log.read_text()}")

    def start(self) -> dict:
        started = self.wait_for("started")
        host, port = started["admin"][:2]
        self.address = f"http://{host}:{port}"
        return started

    def get(self, path: str) -> tuple[int, str, dict[str, str]]:
        try:
            with urllib.request.urlopen(self.address + path, timeout=20) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)

    def json(self, path: str):
        status, body, headers = self.get(path)
        assert status == 200, body
        assert headers["X-Contrafusion-API"] == "1"
        return json.loads(body)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.child.wait(60)


@contextlib.contextmanager
def running(*arguments, **options):
    """Start a daemon; whatever happens, it is gone at the end."""
    daemon = Daemon(*arguments, **options)
    try:
        yield daemon
    finally:
        if daemon.child.poll() is None:
            daemon.child.kill()
            daemon.child.wait()


def test_a_run_answers_trades_as_a_replay_does_and_leaves_its_results(capture, shared, tmp_path):
    wanted = replay(capture, tmp_path / "replay", SETTINGS)
    with running(tmp_path / "run", shared, capture) as daemon:
        started = daemon.start()
        assert started["epoch"] == 1
        assert [path.name for path in shared.iterdir()] == ["contrafusion-1"]
        daemon.wait_for("capture_ended")
        check_the_endpoint(daemon)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log.read_text()
        assert daemon.events()[-1]["event"] == "stopped"
    assert list(shared.iterdir()) == []
    found = Outcome(tmp_path / "run/out")
    assert {path.name for path in found.folder.iterdir()} == {
        "journal", "summary.json", "orders.csv", "fills.csv", "report.html",
    }  # fmt: skip
    assert len(found.fills) > 0
    assert found.fills == wanted.fills
    assert found.orders == wanted.orders
    for name in (
        "positions",
        "pnl",
        "book_state_hash",
        "decisions",
        "decision_reasons",
        "messages",
        "orders",
    ):
        assert found.summary[name] == wanted.summary[name]
    for kind in ("DECISION", "ORDER_OUT", "EXECUTION", "FILL", "NEWS", "DENIAL"):
        assert stream_of(found, kind) == stream_of(wanted, kind), kind
    assert main(["journal", "verify", str(found.folder / "journal")]) == 0


def stream_of(outcome, kind):
    """Return the records of a type as text, without their place in the merged journal."""
    return [json.dumps(row | {"record": 0}) for row in outcome.records(kind)]


def check_the_endpoint(daemon: Daemon) -> None:
    health = daemon.json("/health")
    assert {"state", "role", "epoch", "uptime_ns", "hashes", "agents", "clock"} <= set(health)
    assert health["state"] == "PAPER"
    assert set(health["hashes"]) == {"config", "code", "model"}
    assert {"name", "placement", "core", "beats", "age_ns"} <= set(health["agents"][0])
    assert health["agents"][0]["beats"] == 9_000
    check_positions(daemon)
    check_orders(daemon)
    stages = daemon.json("/latency")["stages"]
    for stage in stages:
        assert {"name", "count", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"} <= set(stage)
    assert {"feed", "book", "strategy", "orders", "tick_to_order"} <= {stage["name"] for stage in stages}
    status, text, headers = daemon.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "contrafusion_feed_messages_total 9000\n" in text
    assert "contrafusion_journal_lost_total 0\n" in text
    for line in text.splitlines():
        assert re.fullmatch(r'# TYPE \w+ (counter|gauge)|\w+(\{\w+="[^"]*"\})? -?[0-9.e+-]+', line), line
    status, body, _ = daemon.get("/positions/NOSUCH")
    assert (status, set(json.loads(body))) == (404, {"error"})


def check_positions(daemon: Daemon) -> None:
    page = daemon.json("/positions")
    assert set(page) == {"items", "next"}
    assert len(page["items"]) > 0
    for row in page["items"]:
        assert set(row) >= POSITION_FIELDS
        assert isinstance(row["qty"], int)
        for name in ("avg_px", "mark_px", "realized_pnl", "unrealized_pnl"):
            assert DECIMAL.fullmatch(row[name]), (name, row[name])
    symbol = page["items"][0]["symbol"]
    one = daemon.json(f"/positions/{symbol}")
    assert one["qty"] == page["items"][0]["qty"]
    assert {order["symbol"] for order in one["orders"]} == {symbol}
    check_fills(one)


def check_fills(one: dict) -> None:
    """Hold the last fills of a symbol against its orders and its position."""
    assert 0 < len(one["fills"]) <= 20
    orders = {order["cl_ord_id"]: order for order in one["orders"]}
    for fill in one["fills"]:
        assert set(fill) == FILL_FIELDS
        assert DECIMAL.fullmatch(fill["price"])
        assert RFC3339.fullmatch(fill["at"])
        assert fill["symbol"] == one["symbol"]
        if order := orders.get(fill["cl_ord_id"]):
            assert fill["side"] == order["side"]
            assert fill["qty"] <= order["cum_qty"]
    assert [fill["at"] for fill in one["fills"]] == sorted(fill["at"] for fill in one["fills"])
    assert len({fill["exec_id"] for fill in one["fills"]} - {""}) == len(one["fills"])


def check_orders(daemon: Daemon) -> None:
    seen, after = [], "0"
    while after is not None:
        page = daemon.json(f"/orders?limit=50&after={after}")
        seen, after = seen + page["items"], page["next"]
    assert len({row["cl_ord_id"] for row in seen}) == len(seen) > 0
    for row in seen:
        assert set(row) >= ORDER_FIELDS
        assert row["side"] in {"buy", "sell"}
        assert DECIMAL.fullmatch(row["price"])
        assert RFC3339.fullmatch(row["created_at"])


def test_a_run_at_recorded_speed_answers_while_it_trades_and_ends_on_an_interrupt(capture, shared, tmp_path):
    with running(tmp_path / "run", shared, capture, speed=5.0) as daemon:
        daemon.start()
        beats = [daemon.json("/health")["agents"][0] for _ in (0, time.sleep(1.0))]
        assert beats[0]["running"]
        assert beats[0]["beats"] <= beats[1]["beats"] < 9_000
        assert daemon.stop(signal.SIGINT) == 0
    assert list(shared.iterdir()) == []
    found = Outcome(tmp_path / "run/out")
    assert positions_of(found.fills) == {n: row["qty"] for n, row in found.summary["positions"].items()}
    assert main(["journal", "verify", str(found.folder / "journal")]) == 0


def test_a_port_that_is_taken_is_one_line_and_leaves_no_segment(capture, shared, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with running(tmp_path / "run", shared, capture, port=taken.getsockname()[1]) as daemon:
            assert daemon.child.wait(200) == 1
            lines = [line for line in daemon.log.read_text().splitlines() if "compil" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("contrafusion run: admin endpoint 127.0.0.1:")
    assert list(shared.iterdir()) == []


def test_a_killed_run_leaves_a_segment_that_the_next_one_removes(capture, shared, tmp_path):
    with running(tmp_path / "first", shared, capture, speed=1.0, epoch=1) as daemon:
        daemon.start()
        daemon.child.kill()
        daemon.child.wait()
    left = shared / "contrafusion-1"
    assert orphans(shared) == [left]
    with running(tmp_path / "second", shared, capture, speed=1.0, epoch=2) as daemon:
        daemon.start()
        assert daemon.wait_for("orphan_removed")["path"] == str(left)
        assert [path.name for path in shared.iterdir()] == ["contrafusion-2"]
        assert daemon.stop() == 0
    assert list(shared.iterdir()) == []


def test_a_second_run_of_the_same_epoch_is_refused_while_the_first_lives(capture, shared, tmp_path):
    with running(tmp_path / "first", shared, capture, speed=1.0) as first:
        first.start()
        with running(tmp_path / "second", shared, capture, speed=1.0) as second:
            assert second.child.wait(100) == 1
            assert "alive" in second.log.read_text()
            assert len(second.log.read_text().splitlines()) == 1
        assert first.json("/health")["state"] == "PAPER"
        assert first.stop() == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[feed]\ncapture = "none.pcap"\n', "none.pcap: No such file"),
        ('segment_directory = "/nonexistent"\n[feed]\ncapture = "none.pcap"\n', "/nonexistent"),
    ],
)
def test_a_run_that_cannot_begin_is_one_line(text, says, shared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "segment_directory" not in text:
        text = f'segment_directory = "{shared}"\n{text}'
    (tmp_path / "run.toml").write_text(text)
    assert main(["run", "--config", "run.toml"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]
    assert list(shared.iterdir()) == []


def test_a_run_without_a_source_is_a_problem_of_the_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text("seed = 2\n")
    assert main(["run", "--config", "run.toml"]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run.toml: feed.capture: is empty")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_kernels_compile_ends_the_start_and_leaves_no_segment(
    number, capture, shared, tmp_path
):
    with running(tmp_path / "run", shared, capture, cache=tmp_path / "cache") as daemon:
        deadline = time.monotonic() + 100
        while not (shared / "contrafusion-1").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1.0)  # inside the build, of which compiling takes minutes
        assert daemon.stop(number) == 130
        told = daemon.log.read_text()
    assert list(shared.iterdir()) == []
    assert told.splitlines()[-1] == "contrafusion run: interrupted"
    assert "Traceback" not in told


RESTING = (  # every entry joins the best price, and stays
    "[strategy]\ncross_edge_bp = 10000.0\nworking_max_s = 100000.0\nagreement_min = 0.5\nstop_bp = 0.0\n"
    "trailing_bp = 0.0\ntarget_bp = 0.0\n"
)
OPEN = {"pending_new", "new", "partially_filled"}


def test_a_journal_that_fails_halts_trading_and_cancels_what_works(capture, shared, tmp_path):
    with running(tmp_path / "run", shared, capture, speed=20.0, text=SETTINGS + RESTING) as daemon:
        daemon.start()
        deadline = time.monotonic() + 100
        while not working(daemon) and time.monotonic() < deadline:
            time.sleep(0.02)
        (segment,) = (tmp_path / "run/out/journal").glob("*.journal")
        size = segment.stat().st_size
        resource.prlimit(daemon.child.pid, resource.RLIMIT_FSIZE, (size, size))  # a full disk, for it alone
        daemon.wait_for("journal_failed")
        told = daemon.wait_for("orders_cancelled")
        assert told["left"] == 0
        assert daemon.json("/health")["state"] == "HALTED"
        assert working(daemon) == []
        assert daemon.stop() == 1
        assert "Traceback" not in daemon.log.read_text()
    assert list(shared.iterdir()) == []


def working(daemon: Daemon) -> list[dict]:
    """Return the orders that are open at the venue, of the first page."""
    return [row for row in daemon.json("/orders?limit=500")["items"] if row["state"] in OPEN]


def test_working_orders_are_cancelled_by_hand_once_the_hot_loop_has_ended(capture, tmp_path):
    config = write_config(tmp_path / "c.toml", SETTINGS + RESTING)
    with contextlib.closing(System(read_config(config), capture)) as system:
        system.arm("test", "to trade")
        for _ in range(200):  # 40 messages at a time, and stop with some orders at work
            run_inline(system.pipeline, 40)
            if system.orders.pool.open_count:
                break
        open_before = system.orders.pool.open_count
        assert open_before > 0
        system.orders.kill_switch.set(CONTROL, HALTED)
        assert cancel_working(system) == 0
        assert system.venue.open_orders() == []
        assert system.orders.counters()["cancels_sent"] > 0
        assert cancel_working(system) == 0  # nothing is left to do


def test_with_no_room_in_the_journal_the_orders_that_are_left_are_counted(capture, tmp_path):
    config = write_config(tmp_path / "c.toml", SETTINGS + RESTING)
    with contextlib.closing(System(read_config(config), capture)) as system:
        system.arm("test", "to trade")
        for _ in range(200):
            run_inline(system.pipeline, 40)
            if system.orders.pool.open_count:
                break
        stream = system.streams[ORDERS_STREAM]
        while stream.append(RecordType.LOG, b"full", system.now_ns):
            pass
        assert cancel_working(system) == system.orders.pool.open_count > 0


@pytest.fixture
def hooks(monkeypatch):
    """Restore what an ended start leaves to its ending process."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


def begin(callback, fault: str = "") -> None:
    """Build something under terminable(): a compiler calls back, and may fail by it."""
    with terminable() as check:
        callback()
        if fault:
            raise RuntimeError(fault)
        check()


@pytest.mark.usefixtures("hooks")
def test_an_interrupt_that_a_callback_lost_still_ends_the_start(capsys):
    """The compiler calls Python back through ctypes, where an exception is printed and lost."""
    interrupted = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="its own"):
        begin(ctypes.CFUNCTYPE(None)(lambda: None), "its own")
    for fault in ("", "half-made"):
        with pytest.raises(KeyboardInterrupt):
            begin(interrupted, fault)
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("hooks")
def test_a_lost_interrupt_comes_again_while_the_build_goes_on():
    interrupted = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGTERM))
    steps = []

    def build() -> None:
        with terminable():
            interrupted()
            for step in range(6_000):  # a minute of compiling
                time.sleep(0.01)
                steps.append(step)

    with pytest.raises(KeyboardInterrupt):
        build()
    assert len(steps) < 6_000


@pytest.mark.usefixtures("hooks")
def test_a_masked_signal_arrives_when_what_it_undoes_is_known():
    made = []

    def build() -> None:
        with terminable(), masked() as unmask:
            signal.raise_signal(signal.SIGTERM)
            made.append("a segment")
            try:
                unmask()
            except KeyboardInterrupt:
                made.append("undone")
                raise

    with pytest.raises(KeyboardInterrupt):
        build()
    assert made == ["a segment", "undone"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT} == set()
