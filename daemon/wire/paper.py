"""`make paper`: the venue and the daemon in two namespaces, and a line of what they do each second.

Run as python -m daemon.wire.paper [--seconds N] [--model KIND] [--speed X] [--out DIR].  Without root it
starts itself again inside a user namespace.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import pathlib
import shutil
import sys
import time
import urllib.request
from typing import Any, Final

from daemon.config import Config, ModelConfig, read_config
from daemon.errors import CommandError, output_folder, positive
from daemon.namespaces import NamespaceError, VethPair, enter_user_namespace
from daemon.settings import SettingsError
from daemon.wire.pair import DAEMON, START_S, Process, daemon_config, start_daemon, start_venue, venue_config

MODULE: Final = "daemon.wire.paper"
CLONE_NEWNET: Final = 0x4000_0000
TIMEOUT_S: Final = 2.0
KINDS: Final = {field.name: field.metadata for field in dataclasses.fields(ModelConfig)}["kind"]["choices"]
FAILED, BAD_CONFIGURATION, INTERRUPTED = 1, 78, 130
_HEAD: Final = (
    f"{'time':>6} {'packets':>9} {'messages':>9} {'gaps':>5} {'orders':>7} {'fills':>6} {'denied':>7}"
    f" {'tick p50':>9} {'p99':>8} {'profit':>12}  state"
)


def join_namespace(name: str) -> None:
    """Move this process into a network namespace, so that it reaches the endpoint there."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if libc.setns(fd, CLONE_NEWNET) != 0:
            msg = f"namespace {name}: {os.strerror(ctypes.get_errno())}"
            raise NamespaceError(msg)
    finally:
        os.close(fd)


class Endpoint:
    """The daemon's admin endpoint."""

    def __init__(self, host: str, port: int) -> None:
        self._base = f"http://{host}:{port}"

    def get(self, path: str) -> Any:
        """Return the JSON of a route."""
        with urllib.request.urlopen(self._base + path, timeout=TIMEOUT_S) as answer:  # noqa: S310  loopback
            return json.load(answer)

    def metrics(self) -> dict[str, float]:
        """Return the sums of the metrics by name, labels added up."""
        with urllib.request.urlopen(self._base + "/metrics", timeout=TIMEOUT_S) as answer:  # noqa: S310
            lines = answer.read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0].removeprefix("contrafusion_")
                found[name] = found.get(name, 0.0) + float(value)
        return found


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def report_line(endpoint: Endpoint, elapsed_s: float) -> str:
    """Return one line of the live report."""
    seen = endpoint.metrics()
    stages = {row["name"]: row for row in endpoint.get("/latency")["stages"]}
    tick = stages["tick_to_order"]
    rows = endpoint.get("/positions")["items"]
    profit = sum(float(row["realized_pnl"]) + float(row["unrealized_pnl"]) for row in rows)
    return (
        f"{elapsed_s:>5.0f}s {seen['feed_packets_total']:>9,.0f} {seen['feed_messages_total']:>9,.0f}"
        f" {seen['feed_gaps_total']:>5,.0f} {seen['orders_sent_total']:>7,.0f} {seen['fills_total']:>6,.0f}"
        f" {seen.get('orders_denied_total', 0.0):>7,.0f} {tick['p50_ns'] / 1e3:>6.1f} us"
        f" {tick['p99_ns'] / 1e3:>5.0f} us {profit:>12,.2f}  {endpoint.get('/health')['state']}"
    )


def _watch(daemon: Process, endpoint: Endpoint, seconds: float) -> None:
    _say(_HEAD)
    began = time.monotonic()
    while (elapsed_s := time.monotonic() - began) < seconds:
        time.sleep(min(1.0, seconds - elapsed_s))
        try:
            _say(report_line(endpoint, time.monotonic() - began))
        except OSError as error:
            msg = f"the daemon does not answer ({error}): see {daemon.log}"
            raise CommandError(msg) from None


def paper(seconds: float, changes: dict[str, Any], speed: float, folder: pathlib.Path, base: Config) -> None:
    """Run both for some seconds, then print what each says it did; raises when they do not agree."""
    pair, flow = VethPair(), {"flow.start": "on_logon", "flow.speed": speed}
    venue_settings = venue_config(pair, folder, flow)
    settings = daemon_config(pair, folder, venue_settings, changes, base)
    output_folder(folder)
    for part in ("venue", "run"):  # a day of its own: the venue would go on with its ledger
        shutil.rmtree(folder / part, ignore_errors=True)
    with pair:
        sys.stderr.write("starting; the first start compiles every kernel, which takes minutes ...\n")
        venue = start_venue(pair, folder, venue_settings)
        daemon = start_daemon(pair, folder, settings)
        try:
            started = daemon.wait_for("started", START_S)
            join_namespace(pair.names[DAEMON])
            host, port = started["admin"][:2]
            _say(f"venue and daemon are joined by {' - '.join(pair.interfaces)}; logs in {folder}")
            _watch(daemon, Endpoint(host, port), seconds)
        finally:
            daemon.stop()
            told = venue.stop()
    compare(base.venue.sender, read_summary("venue", told), read_summary("daemon", summary_of(folder)))


def summary_of(folder: pathlib.Path) -> bytes:
    """Return the text of the daemon's summary, b"" = there is none."""
    path = folder / "run" / "summary.json"
    return path.read_bytes() if path.exists() else b""


def read_summary(name: str, text: bytes) -> dict[str, Any]:
    """Read what one side has left; raises CommandError when that is nothing."""
    if not text:
        msg = f"the {name} left no summary: see {name}.log"
        raise CommandError(msg)
    return dict(json.loads(text))


def compare(client: str, venue: dict[str, Any], ours: dict[str, Any]) -> None:
    """Print both sides' orders, fills and positions; they must be equal."""
    _say(f"orders  venue {venue['orders']:,}  daemon {ours['orders']:,}")
    _say(f"fills   venue {venue['fills']:,}  daemon {ours['fills']:,}")
    booked = venue["positions"].get(client, {})
    theirs = {symbol: row["qty"] for symbol, row in booked.items() if row["qty"]}
    mine = {symbol: row["qty"] for symbol, row in ours["positions"].items() if row["qty"]}
    for symbol in sorted(theirs | mine):
        _say(f"  {symbol:<8} venue {theirs.get(symbol, 0):>8,}  daemon {mine.get(symbol, 0):>8,}")
    if theirs != mine or venue["orders"] != ours["orders"] or venue["fills"] != ours["fills"]:
        msg = "venue and daemon do not agree"
        raise CommandError(msg)


def main(arguments: list[str]) -> int:
    """Parse, run, turn what cannot be done into one line."""
    parser = argparse.ArgumentParser(
        prog=MODULE, description="trade against the paper exchange over real sockets"
    )
    parser.add_argument("--seconds", type=positive, default=30.0, help="how long (default 30)")
    parser.add_argument("--speed", type=positive, default=60.0, help="market seconds per second (default 60)")
    parser.add_argument("--model", default="auto", choices=KINDS, help="model of the daemon (default auto)")
    parser.add_argument("--config", type=pathlib.Path, help="the daemon's settings (default: the defaults)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/paper"), help="folder")
    options = parser.parse_args(arguments)
    try:
        enter_user_namespace(MODULE, arguments)
        base = read_config(options.config)
        paper(
            options.seconds, {"model.kind": options.model, "admin.port": 0}, options.speed, options.out, base
        )
    except (NamespaceError, CommandError, SettingsError) as error:
        sys.stderr.write(f"{error}\n")
        return BAD_CONFIGURATION if isinstance(error, SettingsError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
