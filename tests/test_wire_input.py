"""What a live configuration must say, and in which words it is refused."""

from __future__ import annotations

import pytest

from daemon.config import Config, endpoint
from daemon.settings import adjusted
from daemon.wire_input import problems_of, subscriptions_of

LIVE = {"feed.source": "af_packet", "feed.interface": "eth0", "feed.line_a": "239.1.1.1:5000"}


def problems(changes: dict[str, object]) -> list[str]:
    return [line.partition(":")[0] for line in problems_of(adjusted(Config(), changes))]


def test_a_complete_configuration_has_no_problem() -> None:
    assert problems(LIVE) == []
    assert problems({"feed.capture": "day.pcap"}) == []
    assert problems({"feed.source": "udp", "feed.address": "10.0.0.1", "feed.line_a": "239.1.1.1:5000"}) == []


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, ["feed.capture"]),
        ({"feed.capture": "x", "run.placement": "compact"}, ["run.placement"]),
        ({"feed.capture": "x", "venue.kind": "fix"}, ["venue.kind"]),
        (LIVE | {"run.placement": "inline"}, ["run.placement"]),
        (LIVE | {"feed.interface": ""}, ["feed.interface"]),
        (LIVE | {"feed.line_a": ""}, ["feed.line_a"]),
        ({"feed.source": "udp"}, ["feed.line_a", "feed.address"]),
        ({"feed.source": "dpdk", "feed.line_a": "239.1.1.1:5000"}, ["feed.bridge"]),
        (LIVE | {"feed.rerequest": "10.0.0.9:26479"}, ["feed.address"]),
    ],
)
def test_what_does_not_fit_together_is_named(changes: dict[str, object], keys: list[str]) -> None:
    assert problems(changes) == keys


def test_lines_become_subscriptions() -> None:
    config = adjusted(Config(), LIVE | {"feed.line_b": "239.1.1.2:5001"}).feed
    assert [tuple(row) for row in subscriptions_of(config)] == [
        ("239.1.1.1", 5_000, 0),
        ("239.1.1.2", 5_001, 1),
    ]


@pytest.mark.parametrize(
    "text", ["239.1.1.1", "239.1.1.1:", ":5000", "239.1.1.1:0", "239.1.1.1:65536", "a.b:1"]
)
def test_an_endpoint_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"ADDRESS:PORT|octets|permitted"):
        endpoint(text)
