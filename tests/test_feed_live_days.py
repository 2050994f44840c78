"""A generated day over bad networks: the books end as if nothing had been lost, all gaps accounted for."""

from __future__ import annotations

import itertools

import pytest
from book_image import datagrams
from hypothesis import given, settings
from hypothesis import strategies as st
from live_market import Exchange, Network, lossless
from live_rig import MS, US

from nimbus.venue.generator import generate

MESSAGES = 2_000


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Return the datagrams of a day in which every kind of message occurs."""
    path = tmp_path_factory.mktemp("live") / "day.pcap"
    generate(path, 3, MESSAGES, 4)
    return datagrams(path.read_bytes())


@pytest.fixture(scope="module")
def truth(stream):
    market = lossless(stream)
    assert market.numbers == list(range(1, MESSAGES + 1))
    return market.state()


def arrives(stream, truth, network: Network, seed: int):
    exchange = Exchange(stream, network, seed)
    us = exchange.run()
    assert us.state() == truth
    assert (us.live.phase, us.feed.stale, us.feed.incomplete) == ("live", False, False)
    assert us.wrong_marks == 0
    assert us.live.missing_now() == us.live.conflict_seq == 0
    if us.live.counters()["snapshots"] == 0:
        assert us.numbers == list(range(1, MESSAGES + 1))
    else:
        assert all(b > a for a, b in itertools.pairwise(us.numbers))
    return us, exchange


def test_the_lines_repair_each_other_without_a_server(stream, truth):
    network = Network(loss=0.01, b_behind_ns=2 * MS, servers=0, settings={"gap_wait_us": 3_000})
    us, _ = arrives(stream, truth, network, 1)
    counts = us.live.counters()
    assert counts["gaps_by_line"] == counts["gaps"] > 5
    assert us.live.lines()["A"]["missing"] > 0


@pytest.mark.parametrize("loss", [0.0001, 0.01, 0.05, 0.2])
def test_losses_are_repaired_by_rerequest(stream, truth, loss):
    us, _ = arrives(stream, truth, Network(loss=loss, repeat=0.05, late_ns=(0, 300 * US)), 2)
    counts = us.live.counters()
    assert counts["lost"] == counts["snapshots"] == 0
    if loss > 0.02:
        assert counts["gaps_by_rerequest"] > 3


def test_a_server_that_loses_replies_is_asked_again(stream, truth):
    us, _ = arrives(
        stream, truth, Network(loss=0.1, reply_loss=0.5, servers=2, settings={"gap_timeout_ms": 500}), 3
    )
    assert us.live.counters()["retried"] > 3
    assert us.live.counters()["snapshots"] == 0


def test_a_dead_server_is_replaced_by_snapshots(stream, truth):
    network = Network(loss=0.1, reply_loss=1.0, servers=2, snapshot=True)
    us, _ = arrives(stream, truth, network, 4)
    counts = us.live.counters()
    assert counts["snapshots"] >= 1
    assert counts["gaps_by_snapshot"] >= 1


def test_a_burst_longer_than_the_window_ends_in_a_snapshot(stream, truth):
    network = Network(burst=(100, 750), snapshot=True, settings={"gap_timeout_ms": 10_000})
    us, _ = arrives(stream, truth, network, 5)
    assert us.live.counters()["snapshots"] == 1


def test_a_late_join_loads_a_snapshot_older_than_what_was_heard(stream, truth):
    us, exchange = arrives(stream, truth, Network(join_at=900, snapshot=True, snapshot_age=40), 6)
    assert us.numbers[0] < 900
    assert us.live.counters()["by_rerequest"] > 0
    assert exchange.requests > 0


def test_snapshots_that_die_half_way_are_loaded_again(stream, truth):
    network = Network(join_at=500, snapshot=True, snapshot_faults=3)
    us, _ = arrives(stream, truth, network, 7)
    assert us.live.counters()["snapshots_failed"] == 3


def test_the_last_packets_are_found_missing_when_the_session_ends(stream, truth):
    last = len(stream)
    us, _ = arrives(stream, truth, Network(burst=(last - 4, last)), 8)
    assert us.live.counters()["by_rerequest"] > 0


def test_a_dead_line_costs_nothing(stream, truth):
    us, _ = arrives(stream, truth, Network(dead_lines=(0,)), 9)
    assert us.live.counters()["gaps"] == 0
    assert set(us.live.lines()) == {"B"}


@settings(max_examples=15)
@given(
    loss=st.sampled_from([0.001, 0.02, 0.2]), repeat=st.sampled_from([0, 0.2]), jitter=st.integers(0, 2 * MS),
    behind=st.integers(0, 5 * MS), reply_loss=st.sampled_from([0, 0.3, 1.0]), servers=st.integers(0, 2),
    age=st.sampled_from([0, 30]), faults=st.integers(0, 2), join=st.sampled_from([0, 0, 700]),
    seed=st.integers(0, 1 << 30),
)  # fmt: skip
def test_any_network_with_a_snapshot_server_ends_in_the_lossless_books(
    stream, truth, loss, repeat, jitter, behind, reply_loss, servers, age, faults, join, seed
):
    network = Network(
        loss=loss, repeat=repeat, late_ns=(0, jitter), b_behind_ns=behind, reply_loss=reply_loss,
        servers=servers, snapshot=True, snapshot_age=age, snapshot_faults=faults, join_at=join,
    )  # fmt: skip
    arrives(stream, truth, network, seed)
