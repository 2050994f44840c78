"""`contrafusion bench wire --admin-rps N`: what a busy admin endpoint does to the hot loop.

One daemon trades over one wire while phases alternate, a quiet one and one in which a process asks the admin
endpoint N times a second, its rate limit raised.  The histograms of the hot loop are read from shared memory
at the edges of each phase, so both figures are of the same minute, the same flow and the same process.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from daemon.config import Config
from daemon.errors import CommandError
from daemon.live import SEGMENT_NAME
from daemon.namespaces import VethPair
from daemon.wire.bench import EAGER, Session, helper
from daemon.wire.pair import DAEMON, START_S, daemon_config, start_daemon, start_venue
from nimbus.messages import LAYOUT_VERSION
from ringbuf.affinity import usable_cores
from ringbuf.histogram import Histogram, lowest_values
from ringbuf.segment import Segment

STAGES: Final = ("tick_to_order", "wire_to_order")
PAIRS: Final = 6
SETTLE_S: Final = 0.5  # after each change, in neither figure
BAR: Final = 1.10
RATE_MAX: Final = 1_000_000

Counts = dict[str, NDArray[np.int64]]


def percentile(counts: NDArray[np.int64], percent: float) -> int:
    """Return the value that so many of the counted values do not exceed (<= 1.6 % too high); 0 if empty."""
    below = np.cumsum(counts)
    if not below[-1]:
        return 0
    wanted = max(1, int(np.ceil(percent / 100 * below[-1])))
    return int(lowest_values()[int(np.searchsorted(below, wanted)) + 1] - 1)


class HotFigures:
    """The histograms of a daemon that runs, read from its shared memory."""

    def __init__(self, folder: pathlib.Path, epoch: int) -> None:
        self._segment = Segment.attach(
            folder / SEGMENT_NAME.format(epoch=epoch), layout_version=LAYOUT_VERSION
        )
        self._histograms = {name: Histogram.attach(self._segment, f"latency.{name}") for name in STAGES}

    def counts(self) -> Counts:
        """Return the counts of every bucket at this moment."""
        return {name: histogram.counts() for name, histogram in self._histograms.items()}

    def during(self, seconds: float) -> Counts:
        """Return what is counted from now on, for so long."""
        before = self.counts()
        time.sleep(seconds)
        return {name: counts - before[name] for name, counts in self.counts().items()}

    def close(self) -> None:
        """Unmap."""
        self._segment.close()


@contextlib.contextmanager
def busy(pair: VethPair, folder: pathlib.Path, at: tuple[str, int], per_s: int) -> Iterator[dict[str, Any]]:
    """Ask the endpoint inside the block; what was answered is in the dictionary afterwards."""
    out, told = folder / "admin_load.json", dict[str, Any]()
    arguments = (at[0], str(at[1]), str(per_s), str(usable_cores()[0]), str(out))
    out.unlink(missing_ok=True)
    with helper(pair, DAEMON, "daemon.wire.admin_load", *arguments):
        yield told
    if not out.exists():
        msg = "the client of the admin endpoint failed"
        raise CommandError(msg)
    told |= json.loads(out.read_bytes())


def figures(phases: list[Counts]) -> dict[str, Any]:
    """Return the percentiles of all phases of a kind together."""
    rows = {}
    for name in STAGES:
        counts = np.sum([phase[name] for phase in phases], axis=0)
        rows[name] = {
            "count": int(counts.sum()), "p50_ns": percentile(counts, 50.0), "p99_ns": percentile(counts, 99.0)
        }  # fmt: skip
    return rows


def summary(pairs: list[tuple[Counts, Counts]], loads: list[Mapping[str, Any]], per_s: int) -> dict[str, Any]:
    """Return both rows, the ratio of their p50 and what the endpoint has answered.

    Raises CommandError when there is nothing to compare, or an answer was none.
    """
    quiet, loaded = (figures([pair[side] for pair in pairs]) for side in (0, 1))
    answers: dict[str, int] = {}
    for load in loads:
        for status, count in load["answers"].items():
            answers[status] = answers.get(status, 0) + count
    if set(answers) != {"200"}:
        msg = f"the admin endpoint answered {answers or 'nothing'}, expected 200 each time"
        raise CommandError(msg)
    if not quiet[STAGES[0]]["count"] or not loaded[STAGES[0]]["count"]:
        msg = "no order was sent in one of the phases"
        raise CommandError(msg)
    asked, elapsed_s = (sum(load[name] for load in loads) for name in ("asked", "elapsed_s"))
    return {
        "requests_per_s_wanted": per_s,
        "requests_per_s": round(asked / elapsed_s),
        "answers": answers,
        "quiet": quiet,
        "busy": loaded,
        "ratio_p50": {name: round(loaded[name]["p50_ns"] / quiet[name]["p50_ns"], 3) for name in STAGES},
        "phases_p50_ns": [
            [percentile(counts[STAGES[0]], 50.0) for counts in pair] for pair in pairs
        ],
    }  # fmt: skip


def measure(session: Session, per_s: int, tell: Callable[[str], object]) -> dict[str, Any]:
    """Measure with the fixed rule as the model; session.seconds are those of each kind of phase."""
    changes = EAGER | dict(session.book) | {
        "model.kind": "linear", "admin.port": 0, "admin.requests_per_s": RATE_MAX,
    }  # fmt: skip
    phase_s, pairs, loads = session.seconds / PAIRS, list[tuple[Counts, Counts]](), list[Mapping[str, Any]]()
    with VethPair() as pair:
        config = session.venue(pair, "on_logon")
        venue = start_venue(pair, session.folder, config)
        daemon = start_daemon(
            pair, session.folder, daemon_config(pair, session.folder, config, changes, Config())
        )
        try:
            started = daemon.wait_for("started", START_S)
            venue.wait_for("flow_started", START_S)
            host, port = started["admin"][:2]
            hot = HotFigures(pathlib.Path(Config().segment_directory), started["epoch"])
            with contextlib.closing(hot):
                for number in range(PAIRS):
                    tell(f"phases {number + 1} of {PAIRS}")
                    time.sleep(SETTLE_S)
                    quiet = hot.during(phase_s)
                    with busy(pair, session.folder, (host, port), per_s) as told:
                        time.sleep(SETTLE_S)
                        loaded = hot.during(phase_s)
                    pairs.append((quiet, loaded))
                    loads.append(told)
        finally:
            daemon.stop()
            venue.stop()
    return summary(pairs, loads, per_s) | {"packets_per_s": session.packets_per_s, "seconds": session.seconds}


def table(result: Mapping[str, Any]) -> str:
    """Return what was measured as text."""
    lines = [f"{'in the daemon, us':<34}{'p50':>10}{'p99':>10}{'orders':>10}{'p50 ratio':>11}"]
    names = {"tick_to_order": "packet taken to order", "wire_to_order": "packet stamped to order"}
    for stage in STAGES:
        for kind in ("quiet", "busy"):
            row = result[kind][stage]
            ratio = f"{result['ratio_p50'][stage]:>11.2f}" if kind == "busy" else ""
            lines.append(
                f"{names[stage] + ', ' + kind:<34}{row['p50_ns'] / 1e3:>10.2f}{row['p99_ns'] / 1e3:>10.2f}"
                f"{row['count']:>10,}{ratio}"
            )
    wanted = result["requests_per_s_wanted"]
    lines.append(f"\nadmin endpoint: {result['requests_per_s']:,} requests/s of {wanted:,} wanted")
    return "\n".join(lines)
