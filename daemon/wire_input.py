"""The live input: the packet sources that the configuration asks for, behind one address.

Lines A and B may come through one tap or through a socket each; the replies of a rerequest server come
through a UDP socket of their own, on which the feed also sends its requests.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, Final

from daemon.config import FeedConfig, endpoint
from daemon.errors import CommandError
from nimbus.feed.af_packet import AfPacketV2
from nimbus.feed.af_xdp import AfXdp
from nimbus.feed.decode import Subscription
from nimbus.feed.dpdk import DpdkBridge
from nimbus.feed.kinds import SourceError
from nimbus.feed.live import LiveSettings
from nimbus.feed.source import Source, Sources
from nimbus.feed.udp import UdpSocket
from nimbus.messages import LINE_RECOVERY
from ringbuf.segment import Segment

PACKET_BYTES: Final = 2_048  # what a short datagram takes of a socket buffer, at most


def subscriptions_of(config: FeedConfig) -> list[Subscription]:
    """Return the (group, port, line) rows of lines A and B."""
    lines = (endpoint(config.line_a), endpoint(config.line_b))
    return [Subscription(where[0], where[1], line) for line, where in enumerate(lines) if where]


def live_settings(config: FeedConfig) -> LiveSettings:
    """Return how the feed repairs itself."""
    server = endpoint(config.rerequest)
    return LiveSettings(
        window_messages=config.gap_messages,
        gap_wait_us=config.gap_wait_us,
        gap_timeout_ms=config.gap_timeout_ms,
        servers=(server,) if server else (),
        snapshot=bool(config.snapshot),
    )


def recorded_settings(config: FeedConfig) -> LiveSettings:
    """Return how the recording of a live session is put in order: what is missing comes later, or never.

    Without a clock: a hole holds the messages behind it back until it is filled, the window is full, or the
    recording ends.
    """
    return LiveSettings(window_messages=config.gap_messages)


class WireInput:
    """Own the sources of a live session; `state` goes to the loops.

    requests_fd: socket on which rerequests are sent, -1 = there is no server.
    recorded: what a recording of the session must hold: the lines, and the replies.
    bridge: the reader of the DPDK bridge, None = another source.
    remarks: what the machine refused the sources, one line each.
    """

    truncated = False

    def __init__(self, config: FeedConfig, segment: Segment) -> None:
        self.subscriptions = subscriptions_of(config)
        self.recorded = list(self.subscriptions)
        owners: list[Source] = []
        try:
            owners += self._lines(config, segment)
            self.requests_fd = -1
            if config.rerequest:
                replies = UdpSocket(segment, config.address, 0, line=LINE_RECOVERY, name="replies")
                owners.append(replies)
                self.requests_fd = replies.fd
                self.recorded.append(Subscription(None, replies.port))
            self._sources = Sources(segment, owners)
        except SourceError as error:
            for owner in owners:
                owner.close()
            raise CommandError(str(error)) from None
        self.state = self._sources.state
        self.bridge = next((owner for owner in owners if isinstance(owner, DpdkBridge)), None)
        self.remarks = [
            remark for owner in owners if isinstance(owner, AfXdp | UdpSocket) for remark in owner.remarks
        ]

    def _lines(self, config: FeedConfig, segment: Segment) -> list[Source]:
        match config.source:
            case "af_packet":
                return [AfPacketV2(segment, config.interface, self.subscriptions, frames=config.ring_packets)]
            case "af_xdp":
                return [AfXdp(segment, config.interface, self.subscriptions, frames=config.ring_packets)]
            case "dpdk":
                return [DpdkBridge(segment, pathlib.Path(config.bridge))]
        owners: list[Source] = []
        try:
            for group, port, line in self.subscriptions:
                owners.append(
                    UdpSocket(
                        segment, str(group), port, interface=config.address, line=line,
                        receive_buffer=config.ring_packets * PACKET_BYTES, name=f"line.{line}",
                    )
                )  # fmt: skip
        except SourceError:
            for owner in owners:
                owner.close()
            raise
        return owners

    @property
    def packets(self) -> int:
        """Frames given to the feed so far, by all sources."""
        return sum(value for name, value in self.counters().items() if name.endswith(".received"))

    @property
    def warnings(self) -> list[str]:
        """One line for each kind of loss before the feed saw a packet."""
        lost = {name: n for name, n in self.counters().items() if name.endswith("dropped") and n}
        return [f"source {name}: {n} packets" for name, n in lost.items()]

    def counters(self) -> dict[str, int]:
        """Return the counters of every source, by number and name."""
        return self._sources.counters()

    def close(self) -> None:
        """Close the sockets; no loop may use them any more."""
        self._sources.close()


class NoInput:
    """What stands in the place of the sources where there are none."""

    state = 0
    requests_fd = -1
    subscriptions: Sequence[Subscription] = ()
    truncated = False

    @property
    def warnings(self) -> list[str]:
        """There is nothing to warn of."""
        return []

    def close(self) -> None:
        """Close nothing."""


def problems_of(config: Any) -> list[str]:
    """Return what in the configuration does not fit together for a live session, one line each."""
    feed, run, found = config.feed, config.run, []
    if feed.source == "capture":
        if not feed.capture:
            found.append("feed.capture: is empty: name the capture to play, or another feed.source")
        if run.placement in {"compact", "dedicated"}:
            found.append(f"run.placement: a capture is played inline, got {run.placement!r}")
        if config.venue.kind == "fix":
            found.append("venue.kind: a capture is played against the paper venue, got 'fix'")
        return found
    if run.placement == "inline":
        found.append(f"run.placement: compact or dedicated with feed.source {feed.source!r}, got 'inline'")
    if feed.source in {"af_packet", "af_xdp"} and not feed.interface:
        found.append(f"feed.interface: must name the interface of {feed.source}, is empty")
    if feed.source == "dpdk" and not feed.bridge:
        found.append("feed.bridge: must name the segment of the DPDK bridge, is empty")
    if not feed.line_a:
        found.append("feed.line_a: must name group and port of line A, is empty")
    if feed.record and feed.source not in {"af_packet", "udp"}:
        found.append(f"feed.record: a tap sees the packets of af_packet and udp, not of {feed.source!r}")
    if feed.record and not feed.interface:
        found.append("feed.interface: must name the interface that is recorded, is empty")
    if (feed.rerequest or feed.source == "udp") and not feed.address:
        found.append("feed.address: must be an own address for udp and for rerequests, is empty")
    return found
