"""Every source under load: what was sent was received, byte for byte and once, or counted as dropped."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from net.traffic import GROUP_A, PORT_A, Datagrams, Reader, send

from nimbus.feed.af_packet import AfPacketV2
from nimbus.feed.af_xdp import AfXdp
from nimbus.feed.decode import Subscription
from nimbus.feed.source import SourceError
from nimbus.feed.udp import UdpSocket
from ringbuf.segment import Segment

LINE = [Subscription(GROUP_A, PORT_A)]
RATE = 100_000
OPENERS = {
    "af_packet": lambda segment: AfPacketV2(segment, "mdc0", LINE),
    "af_xdp-generic": lambda segment: AfXdp(segment, "mdc0", LINE),
    "af_xdp-native": lambda segment: AfXdp(segment, "mdc0", LINE, mode="native"),
    "udp": lambda segment: UdpSocket(
        segment, GROUP_A, PORT_A, interface="10.77.0.2", receive_buffer=256 << 20
    ),
}


def load(rig, kind: str, seconds: float) -> dict[str, int]:
    """Send at RATE for so long; check what came, and return the counters."""
    segment, datagrams = Segment.anonymous(1 << 20), Datagrams.numbered(int(RATE * seconds))
    try:
        source = rig.client.run(OPENERS[kind], segment)
    except SourceError as error:
        if kind.startswith("af_xdp") and "needs" in str(error):
            pytest.skip(str(error))
        raise
    with contextlib.closing(source):
        reader = Reader(segment, [source], datagrams)
        reader.start()
        sent = 0
        try:
            sent = send(rig.exchange, datagrams, RATE)
        finally:
            reader.finish(lambda: reader.good + source.counters()["dropped"] >= sent)
        counts = source.counters()
    assert sent == datagrams.count
    assert reader.wrong == 0
    assert counts["received"] == reader.good
    assert counts["received"] + counts["dropped"] == sent
    assert int(np.max(reader.seen)) == 1
    assert int(np.sum(reader.seen)) == reader.good
    assert reader.ordered == reader.good  # the times never fall
    assert counts["received"] > 0
    return counts


@pytest.mark.alone
@pytest.mark.parametrize("kind", OPENERS)
def test_two_seconds_at_full_rate_are_received_or_counted(rig, kind):
    load(rig, kind, 2)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("kind", OPENERS)
def test_thirty_seconds_at_full_rate_are_received_or_counted(rig, kind):
    load(rig, kind, 30)
