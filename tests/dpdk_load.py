"""A reader that checks numbered frames; as a program it is one that can be killed.

`dpdk_load.py SEGMENT LAST` prints "ready", reads, and prints the first number and how it ended.
"""

from __future__ import annotations

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # as a program: this tree, not an installed one

from nimbus.feed.dpdk import DpdkBridge  # noqa: E402
from nimbus.feed.source import next_frame  # noqa: E402
from nimbus.messages import PACKET  # noqa: E402
from ringbuf.atomics import pause  # noqa: E402
from ringbuf.jit import kernel  # noqa: E402
from ringbuf.memory import load_i64, load_u8, load_u32  # noqa: E402
from ringbuf.segment import Segment  # noqa: E402

SEED = 0x9E37
POLLS_MAX = 200_000_000
_P = PACKET.at


@kernel
def check_numbered(state: int, packet: int, first: int, last: int, polls_max: int) -> int:
    """Take the frames numbered first to last; first = 0: from the one that comes.

    Returns the next number, or minus the one that was expected and did not come, or not whole.  Gives up
    after polls_max polls in a row that found nothing.
    """
    number, polls = first, 0
    while number <= last and polls < polls_max:
        if next_frame(state, packet) != 1:
            polls += 1
            pause()
            continue
        polls = 0
        at, size = load_i64(packet + _P.frame_at), load_u32(packet + _P.size)
        if number == 0:
            number = load_i64(at)
        good = size == 8 + number % 192 and load_i64(at) == number
        good = good and load_i64(packet + _P.recv_ns) == number
        for place in range(8, size):
            good = good and load_u8(at + place) == (((number + place) * SEED) >> 8) & 0xFF
        if not good:
            return -number
        number += 1
    return number


def main(path: str, last: int) -> None:
    """Read until killed or done."""
    segment = Segment.anonymous(1 << 16)
    source, packet = DpdkBridge(segment, path), segment.allocate("packet", PACKET.size)
    check_numbered(source.state, packet, 1, 0, 1)  # compiled or loaded before "ready"
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    first = check_numbered(source.state, packet, 0, 1, POLLS_MAX)
    sys.stdout.write(f"{first - 1}\n")
    sys.stdout.flush()
    sys.stdout.write(f"{check_numbered(source.state, packet, first, last, POLLS_MAX)}\n")
    source.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
