"""What the control loop tells of packet sources: refusals of the machine, a bridge that comes and goes."""

from __future__ import annotations

import time

import pytest
from dpdk_rig import Producer, load_library
from net.rig import CAP_NET_ADMIN, in_thread, without_capabilities

from daemon.config import Config
from daemon.settings import adjusted
from daemon.source_watch import SourceWatch
from daemon.wire_input import WireInput
from nimbus.feed.dpdk import HEARTBEAT_MAX_NS
from nimbus.feed.dpdk_layout import BRIDGE_POLLING
from ringbuf.segment import Segment


class Log:
    """Keeps (level, event, fields)."""

    def __init__(self):
        self.told = []

    def info(self, event, **fields):
        self.told.append(("info", event, fields))

    def warning(self, event, **fields):
        self.told.append(("warning", event, fields))

    def new(self):
        told, self.told = self.told, []
        return told


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return load_library(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def opened():
    made = []

    def make(**changes):
        config = adjusted(Config(), {f"feed.{name}": value for name, value in changes.items()}).feed
        made.append(WireInput(config, Segment.anonymous(1 << 20)))
        return made[-1]

    yield make
    for source in made:
        source.close()


def test_each_change_of_a_bridge_is_told_once(library, tmp_path, opened):
    path = tmp_path / "frames"
    first = Producer(library, path)
    source = opened(source="dpdk", bridge=str(path), line_a="239.1.1.1:5000")
    log, heard_ns = Log(), time.monotonic_ns()
    watch = SourceWatch(source, log)
    watch.begin()

    def seen(now_ns):
        watch.look(now_ns)
        watch.look(now_ns)
        return [(level, event, fields["state"], fields["generation"]) for level, event, fields in log.new()]

    first.beat(heard_ns)
    assert seen(heard_ns) == [("info", "bridge_status", "starting", 1)]
    first.set_state(BRIDGE_POLLING)
    assert seen(heard_ns) == [("info", "bridge_status", "polling", 1)]
    assert seen(heard_ns + 2 * HEARTBEAT_MAX_NS) == [("warning", "bridge_status", "silent", 1)]
    first.die()
    assert seen(heard_ns) == [("warning", "bridge_status", "dead", 1)]
    second = Producer(library, path)
    second.set_state(BRIDGE_POLLING)
    second.beat(heard_ns)
    assert seen(heard_ns) == [("info", "bridge_status", "polling", 2)]
    second.stop()
    assert seen(heard_ns) == [("warning", "bridge_status", "stopped", 2)]


def test_a_segment_that_cannot_be_followed_is_told(library, tmp_path, opened):
    path = tmp_path / "frames"
    first = Producer(library, path)
    source, log = opened(source="dpdk", bridge=str(path), line_a="239.1.1.1:5000"), Log()
    watch = SourceWatch(source, log)
    first.stop()
    watch.look(time.monotonic_ns())
    log.new()
    path.unlink()
    path.write_bytes(b"no segment")
    watch.look(time.monotonic_ns())
    watch.look(time.monotonic_ns())
    ((level, event, fields),) = log.new()
    assert (level, event) == ("warning", "bridge_trouble")
    assert str(path) in fields["reason"]


def test_a_smaller_receive_buffer_than_asked_for_is_told_at_the_start(opened):
    def attempt():
        options = {
            "source": "udp",
            "address": "127.0.0.1",
            "line_a": "127.0.0.1:26999",
            "ring_packets": 1 << 18,
        }
        return without_capabilities(lambda: opened(**options), CAP_NET_ADMIN)

    source, log = in_thread(attempt), Log()
    SourceWatch(source, log).begin()
    ((level, event, fields),) = log.new()
    assert (level, event) == ("warning", "source_remark")
    assert "sysctl -w net.core.rmem_max=268435456" in fields["remark"]
