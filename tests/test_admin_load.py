"""The busy client of the admin endpoint, and what the paired benchmark makes of its phases."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from daemon.admin.app import build
from daemon.errors import CommandError
from daemon.wire.admin_bench import STAGES, percentile, summary, table
from daemon.wire.admin_load import ROUTES
from ringbuf.affinity import usable_cores
from ringbuf.histogram import BUCKET_COUNT, Histogram, record_value


class CountingViews:
    def __init__(self):
        self.asked, self.enough = dict.fromkeys(ROUTES, 0), asyncio.Event()

    def _count(self, route, value):
        self.asked[route] += 1
        if min(self.asked.values()) >= 3:
            self.enough.set()
        return value

    def health(self):
        return self._count("/health", (True, {}))

    def positions(self):
        return self._count("/positions", [{"symbol": "S" * 60}] * 500)

    def latency(self):
        return self._count("/latency", [])

    def metrics(self):
        return self._count("/metrics", "contrafusion_up 1\n" * 4_000)


async def test_the_client_asks_every_route_in_turn_and_counts_the_answers(tmp_path):
    views, out = CountingViews(), tmp_path / "out.json"
    async with TestServer(build(views, 60)) as server:
        command = ["-m", "daemon.wire.admin_load", server.host, str(server.port), "400"]
        client = await asyncio.create_subprocess_exec(
            sys.executable, *command, str(usable_cores()[0]), str(out), stdout=asyncio.subprocess.PIPE
        )
        assert await client.stdout.readline() == b"ready\n"
        await asyncio.wait_for(views.enough.wait(), 60)
        client.send_signal(signal.SIGTERM)
        assert await client.wait() == 0
    told = json.loads(out.read_bytes())
    assert sum(told["answers"].values()) == told["asked"]
    assert told["answers"]["200"] == sum(views.asked.values())
    assert set(told["answers"]) <= {"200", "429"}


def test_a_percentile_of_counts_is_that_of_the_histogram():
    histogram = Histogram.private()
    for value in np.random.default_rng(1).integers(1, 1_000_000, 2_000):
        record_value(histogram.addr, int(value))
    shares = (1.0, 50.0, 99.0)
    assert [percentile(histogram.counts(), share) for share in shares] == histogram.percentiles(list(shares))
    assert percentile(np.zeros(BUCKET_COUNT, np.int64), 50.0) == 0


def phase(value):
    counts = np.zeros(BUCKET_COUNT, np.int64)
    counts[value] = 10
    return dict.fromkeys(STAGES, counts)


def load(answers):
    return {"asked": 500, "elapsed_s": 0.5, "answers": answers}


def test_the_ratio_is_that_of_all_busy_phases_to_all_quiet_ones():
    pairs = [(phase(100), phase(105)), (phase(100), phase(105))]
    result = summary(pairs, [load({"200": 500})] * 2, 1_000)
    assert result["ratio_p50"] == dict.fromkeys(STAGES, 1.05)
    assert (result["requests_per_s"], result["quiet"]["tick_to_order"]["count"]) == (1_000, 20)
    assert "1.05" in table(result)


def test_a_request_that_was_refused_or_a_phase_without_orders_is_no_result():
    with pytest.raises(CommandError, match="429"):
        summary([(phase(1), phase(1))], [load({"200": 499, "429": 1})], 1_000)
    empty = dict.fromkeys(STAGES, np.zeros(BUCKET_COUNT, np.int64))
    with pytest.raises(CommandError, match="no order"):
        summary([(phase(1), empty)], [load({"200": 500})], 1_000)
