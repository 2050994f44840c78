"""The daemon under NANopt, as a process: a pin from outside, and a replay of what it did."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from replays import Outcome, environment
from rung_rig import config_of, make_model

from daemon.main import main
from daemon.settings import to_toml
from nimbus.venue.generator import generate

WAIT_S = 280.0


def events(log: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


def until(found, child, log):
    """Wait for something that is true; the process must live meanwhile."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if value := found():
            return value
        assert child.poll() is None, log.read_text()
        time.sleep(0.05)
    pytest.fail(log.read_text())


def call(url: str, body: dict | None = None, token: str = "") -> tuple[int, dict]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def decisions(address: str) -> int:
    """Return how many decisions were taken so far, as the metrics have it."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(line.rsplit(" ", 1)[1]) for line in lines if "decision_total{" in line)


@pytest.mark.timeout(600)
def test_a_pin_reaches_a_running_session_and_its_journal_replays_every_decision(tmp_path):
    make_model(tmp_path / "models")
    capture, out, log = tmp_path / "day.pcap", tmp_path / "out", tmp_path / "stderr.log"
    generate(capture, 6, 60_000, 4)
    shared = tmp_path / "shared"
    shared.mkdir()
    session = config_of(
        tmp_path / "models", bicep__rung="auto", bicep__error_budget=100.0, bicep__slo_us=1_000.0,
        bicep__dwell_ms=10, bicep__period_ms=5, bicep__shadow_every=4, feed__capture=str(capture),
        feed__speed=40.0, admin__port=0, run__folder=str(out), segment_directory=str(shared),
        journal__ring_records=1 << 18, orders__day_orders_max=65_536,
    )  # fmt: skip
    (tmp_path / "run.toml").write_text(to_toml(session))
    words = [sys.executable, "-m", "daemon.main", "run", "--config", str(tmp_path / "run.toml")]
    with log.open("w") as file:
        child = subprocess.Popen(words, env=environment(), stderr=file, stdout=subprocess.DEVNULL)
    try:
        started = until(lambda: [e for e in events(log) if e["event"] == "started"], child, log)[0]
        host, port = started["admin"][:2]
        address = f"http://{host}:{port}"
        status, shown = call(f"{address}/bicep")
        assert (status, shown["adaptive"]) == (200, True)
        token = (out / "admin.token").read_text().strip()
        assert call(f"{address}/bicep/pin", {"density": 1.0})[0] == 401
        rest = [s for s in shown["settings"] if (s["density"], s["samples"]) != (1.0, 32)]
        chosen = {"density": rest[-1]["density"], "samples": rest[-1]["samples"], "who": "test"}
        until(lambda: call(f"{address}/bicep/pin", chosen, token)[0] == 200, child, log)
        before = shown["changes"]
        until(lambda: call(f"{address}/bicep")[1]["changes"] > before, child, log)
        until(lambda: call(f"{address}/bicep")[1]["checks"]["checked"] > 0, child, log)
        last = decisions(address)  # what comes after the stop was asked for may differ: orders are cancelled
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    check(tmp_path, Outcome(out), capture, log, last)
    assert os.listdir(shared) == []  # noqa: PTH208


def check(folder: pathlib.Path, live: Outcome, capture: pathlib.Path, log: pathlib.Path, last: int) -> None:
    """Hold the session against a replay from its own journal."""
    assert not (live.folder / "admin.token").exists()
    assert "Traceback" not in log.read_text()
    assert {"rung_pinned", "rung_changed", "stopped"} <= {e["event"] for e in events(log)}
    assert " x " in events(log)[-1]["rungs"]
    assert any("pinned" in row["text"] for row in live.records("LOG"))
    assert main(["journal", "verify", str(live.folder / "journal")]) == 0
    words = ["replay", str(capture), "--config", str(folder / "run.toml"), "--out", str(folder / "again")]
    assert main([*words, "--rungs", str(live.folder / "journal"), "--json"]) == 0
    again = Outcome(folder / "again")
    lived, played = (strategy_stream(outcome, last) for outcome in (live, again))
    assert len(lived) > last / 2
    assert any('"type": "RUNG"' in row for row in lived)
    assert lived == played


def strategy_stream(outcome: Outcome, last: int) -> list[str]:
    """Return the decisions up to a number and the changes of rung before them, in the order of the stream."""
    rows = [row for kind in ("DECISION", "RUNG") for row in outcome.records(kind) if row["decision"] <= last]
    return [json.dumps(row | {"record": 0}) for row in sorted(rows, key=lambda row: row["seq"])]
