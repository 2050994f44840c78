"""No kernel of the pipeline allocates, raises or takes the GIL: read from the LLVM IR of all of them."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
from replays import ROOT, environment


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> dict:
    """Return the findings of purity_probe.py in a process with an empty cache folder: everything compiles."""
    cache = tmp_path_factory.mktemp("cache")
    done = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).with_name("purity_probe.py"))],
        env={**environment(), "XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True, check=False,
        timeout=1_700, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(1_800)
def test_no_kernel_allocates_raises_or_takes_the_gil(probe):
    assert probe["impure"] == {}


@pytest.mark.timeout(1_800)
def test_the_kernels_of_every_part_were_looked_at(probe):
    wanted = {
        "daemon.pipeline.run_inline", "daemon.pipeline.settle", "daemon.loops.run_compact",
        "daemon.loops.run_market", "daemon.loops.run_strategy", "daemon.loops.run_orders",
        "daemon.rung_change.change_rung",
        "nimbus.books_only.walk_books", "bicep.cpu.linear.forward", "bicep.cpu.gradient.backward",
        "bicep.cpu.words.keep_rows", "bicep.cpu.product.multiply", "bicep.cpu.sparse.count_kept",
        "bicep.cpu.series.indicators", "bicep.cpu.series.rolling_correlation", "bicep.cpu.paths.price_paths",
        "nimbus.feed.arbiter.open_live", "nimbus.feed.timers.feed_timers", "nimbus.feed.gaps.next_kept",
        "nimbus.feed.rerequest.send_request", "nimbus.feed.snapshot_rows.take_rows",
        "nimbus.feed.decode.open_packet", "nimbus.book.book.apply", "nimbus.book.publish.write_event",
        "strategy.agent.work", "bicep.plan.kernels.infer", "nimbus.orders.send.take_intent",
        "nimbus.orders.reports.receive", "nimbus.fix.parse.parse", "nimbus.venue.paper.receive",
        "nimbus.venue.queue_model.on_change", "nimbus.journal.log.append",
        "nimbus.feed.source.next_of", "nimbus.feed.source.wait_readable", "nimbus.feed.udp_send.send_paced",
        "nimbus.feed.recorder.pack_block", "nimbus.feed.af_packet.next_ring_frame",
        "nimbus.feed.af_xdp.next_xdp_frame", "nimbus.feed.udp.next_datagram",
        "nimbus.feed.dpdk.next_bridge_frame", "nimbus.feed.dpdk._follow",
        "nimbus.venue.exchange_loop.run_exchange", "nimbus.venue.engine_flow.step_flow",
        "nimbus.venue.engine_orders.new_order", "nimbus.venue.lines.transmit", "nimbus.venue.shadow.follow",
        "nimbus.venue.rerequests.answer", "nimbus.venue.gateway.push_request",
        "nimbus.orders.link.transport_work", "nimbus.orders.doubt.doubt_pending",
        "nimbus.fix.transport.exchange", "nimbus.fix.receive._take", "nimbus.fix.frames.cut",
        "bicep.jobs.push_job", "bicep.jobs.peek_jobs", "bicep.jobs.give_answers",
        "bicep.mailbox.copy_unanswered",
    }  # fmt: skip
    assert wanted - set(probe["compiled"]) == set()
    assert len(probe["compiled"]) > 200


@pytest.mark.timeout(1_800)
def test_the_check_can_fail(probe):
    assert any("NRT_" in call for call in probe["planted"]["allocates"])
    assert probe["planted"]["raises"] == ["numba_exception_output"]
