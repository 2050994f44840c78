"""The recording of a live session as a capture: repairs come behind what overtook them."""

from __future__ import annotations

import struct

import captures as c
import pytest
from live_rig import LiveFed

from daemon.config import Config
from daemon.wire_input import recorded_settings
from nimbus.feed.capture import CaptureSource
from nimbus.feed.decode import close_feed
from nimbus.feed.inspect import inspect_capture
from nimbus.feed.live import LiveSettings
from nimbus.feed.pcapng import RECORDED_BY
from nimbus.feed.recorder import file_head
from nimbus.feed.state import OK

SESSION, OTHER = b"000010059B", b"000010060C"


def message(number: int) -> bytes:
    return c.itch("D", 19, ts_ns=number)


def datagram(first: int, count: int = 1, session: bytes = SESSION) -> bytes:
    return c.mold(session, first, [message(first + k) for k in range(count)])


def numbers(fed: LiveFed) -> list[int]:
    assert all(m == message(n) for n, m in fed.messages)
    return [n for n, _ in fed.messages]


def closed(fed: LiveFed) -> int:
    """Close the feed until it has nothing more; return how often it had something."""
    count = 0
    while close_feed(fed.feed.addr) == OK:
        fed.drain()
        count += 1
    fed.check()
    return count


def head(application: bytes | None) -> bytes:
    options = b""
    if application is not None:
        padding = b"\0" * (-len(application) % 4)
        options = struct.pack("<HH", 3, 2) + b"os\0\0" + struct.pack("<HH", 4, len(application))
        options += application + padding + struct.pack("<HH", 0, 0)
    return c.block("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + options)


@pytest.mark.parametrize(
    ("application", "is_recording"), [(None, False), (b"dumpcap", False), (b"", False), (RECORDED_BY, True)]
)
def test_a_recording_is_known_by_the_application_in_its_head(tmp_path, application, is_recording):
    path = tmp_path / "x.pcapng"
    path.write_bytes(head(application) + c.interface())
    with CaptureSource.open(path) as source:
        assert source.is_recording is is_recording


def test_a_recorder_writes_such_a_head_and_any_cut_of_it_is_read(tmp_path):
    whole = file_head("eth0")
    for size in range(4, len(whole) + 1):
        path = tmp_path / f"{size}.pcapng"
        path.write_bytes(whole[:size])
        with CaptureSource.open(path) as source:
            assert size >= 28 + len(RECORDED_BY) or not source.is_recording
    assert source.is_recording


def test_repairs_that_come_later_are_put_in_order(tmp_path):
    """Numbers 3 and 6 are on no line; the replies are in the file behind what overtook them."""
    order = [1, 2, 4, 5, 7, 3, 8, 6, 9]
    frames = [c.enhanced("<", 0, n, c.frame(datagram(number))) for n, number in enumerate(order)]
    path = tmp_path / "x.pcapng"
    path.write_bytes(file_head("eth0") + b"".join(frames))
    as_file = inspect_capture(path)
    assert as_file["delivered"] == len(order) - 2
    recorded = inspect_capture(path, live=LiveSettings(window_messages=1_024))
    assert recorded["delivered"] == len(order)
    assert recorded["counters"]["missing"] == 2
    assert "duplicate" not in recorded["refused"]


def test_holes_that_were_never_filled_are_given_up_at_the_end_one_by_one():
    fed = LiveFed(recorded_settings(Config().feed))
    for number in (1, 2, 4, 5, 8, 9):
        fed.datagram(datagram(number))
    assert numbers(fed) == [1, 2]
    assert closed(fed) == 2
    assert numbers(fed) == [1, 2, 4, 5, 8, 9]
    assert fed.live.counters()["lost"] == 3
    assert fed.live.missing_now() == 0
    assert fed.feed.stale


def test_a_hole_at_the_very_end_is_lost():
    fed = LiveFed(recorded_settings(Config().feed))
    fed.datagram(datagram(1))
    fed.datagram(c.mold(SESSION, 4, [], count=0))
    closed(fed)
    assert numbers(fed) == [1]
    assert fed.live.counters()["lost"] == 2


def test_a_session_that_began_with_the_last_packets_is_taken_up():
    fed = LiveFed(recorded_settings(Config().feed))
    fed.datagram(datagram(1))
    fed.datagram(datagram(1, session=OTHER))
    fed.datagram(datagram(2, session=OTHER))
    assert fed.run == 1
    closed(fed)
    assert fed.run == 2
    assert numbers(fed) == [1, 1, 2]
