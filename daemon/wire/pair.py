"""A venue and a daemon as processes, each in its namespace, with configurations that fit together."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from daemon.config import Config
from daemon.errors import CommandError
from daemon.exchange_config import ExchangeConfig
from daemon.namespaces import VethPair
from daemon.settings import adjusted, to_toml
from ringbuf.affinity import usable_cores

VENUE, DAEMON = 0, 1
STOP_S: Final = 60.0
START_S: Final = 600.0  # the first start compiles every kernel


def venue_config(pair: VethPair, folder: pathlib.Path, changes: Mapping[str, Any]) -> ExchangeConfig:
    """Return the configuration of a venue at its end of the pair."""
    address = pair.addresses[VENUE]
    base = {
        "feed.interface": address, "rerequest.host": address, "snapshot.host": address, "fix.host": address,
        "run.folder": str(folder / "venue"), "run.core": usable_cores()[0],
    }  # fmt: skip
    return adjusted(ExchangeConfig(), base | dict(changes))


def daemon_config(
    pair: VethPair, folder: pathlib.Path, venue: ExchangeConfig, changes: Mapping[str, Any], base: Config
) -> Config:
    """Return the configuration of a daemon that trades at that venue."""
    feed, host = venue.feed, pair.addresses[VENUE]
    fitting = {
        "feed.source": "af_packet", "feed.interface": pair.interfaces[DAEMON],
        "feed.address": pair.addresses[DAEMON], "feed.line_a": f"{feed.group_a}:{feed.port_a}",
        "feed.line_b": f"{feed.group_b}:{feed.port_b}" if feed.group_b else "",
        "feed.rerequest": f"{host}:{venue.rerequest.port}", "feed.snapshot": f"{host}:{venue.snapshot.port}",
        "venue.kind": "fix", "venue.host": host, "venue.port": venue.fix.port,
        "venue.target": venue.fix.sender, "run.folder": str(folder / "run"),
    }  # fmt: skip
    return adjusted(base, fitting | dict(changes))


class Process:
    """One of our commands, run in a namespace: its log events as they come, its end."""

    def __init__(self, pair: VethPair, side: int, command: list[str], log: pathlib.Path) -> None:
        self.log = log
        self._out = log.open("wb")
        self._read = 0
        python = [sys.executable, "-m", *command]
        self.process = pair.start(side, python, stdout=subprocess.PIPE, stderr=self._out)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the log events that came since the last call; lines that are no events are passed over."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        yield event

    def wait_for(self, event: str, timeout_s: float) -> dict[str, Any]:
        """Wait for a log event.  Raises CommandError when the process ends, or time is up, before."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            for found in self.events():
                if found.get("event") == event:
                    return found
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        msg = f"{self.log.stem}: no event {event!r}: {last[0] if last else 'it said nothing'}"
        raise CommandError(msg)

    def stop(self, number: int = signal.SIGTERM) -> bytes:
        """Send a signal, wait for the end and return what was written to stdout."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            out, _ = self.process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, _ = self.process.communicate()
        self._out.close()
        return out or b""


def start_venue(pair: VethPair, folder: pathlib.Path, config: ExchangeConfig) -> Process:
    """Start the venue of a configuration and wait until it listens."""
    path = folder / "venue.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    command = ["daemon.main", "venue", "--config", str(path), "--json"]
    process = Process(pair, VENUE, command, folder / "venue.log")
    process.wait_for("venue_started", START_S)
    return process


def start_daemon(pair: VethPair, folder: pathlib.Path, config: Config) -> Process:
    """Start the daemon of a configuration; its event `started` says where it answers."""
    path = folder / "daemon.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return Process(pair, DAEMON, ["daemon.main", "run", "--config", str(path)], folder / "daemon.log")
