"""What lies in the segment of the DPDK bridge: frames in a ring, the bridge's words beside it.

The bridge, a process in C, creates the segment and is the ring's producer; the market loop is its consumer.
Both layouts are declared here and in `ringbuf`; the C side compiles against layout.h, which is the same
tables as text: `python -m nimbus.feed.dpdk_layout` writes it, and a test compares the two.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Final

import numpy as np

from ringbuf import process, segment, spsc
from ringbuf.records import CACHE_LINE, LINE_PAIR, Record, record
from ringbuf.segment import AREA, SEGMENT_HEADER

DPDK_LAYOUT_VERSION: Final = 1  # of what follows; a segment of another version is refused, and made anew
SEGMENT_DEFAULT: Final = "/dev/shm/contrafusion-dpdk"  # noqa: S108  shared memory is meant
BRIDGE_AREA, RING_AREA = "dpdk.bridge", "dpdk.frames"

# DPDK_BRIDGE.state
BRIDGE_STARTING, BRIDGE_POLLING, BRIDGE_STOPPED = 0, 1, 2

DPDK_BRIDGE = record(
    "DPDK_BRIDGE",
    """
    i8  generation    bridges that have had this ring, the present one included; written last
    i8  frame_size    bytes kept of a frame
    i8  lossless      1 = a full ring makes the bridge wait, 0 = it drops
    i8  ports         ports polled
    i8  queues        receive queues of each
    i8  started_ns    Unix time at which this bridge took the ring
    i8  state         BRIDGE_*
    9i8 pad0          zero

    i8  heartbeat_ns  CLOCK_MONOTONIC; moves while the polling thread lives
    i8  received      frames the ports gave; written = the ring's tail, dropped = its refused
    i8  oversized     of those written: frames longer than frame_size, cut
    13i8 pad1         zero

    i8  rx_missed     frames the cards dropped because their queues were full (statistics thread)
    i8  rx_errors     frames the cards found damaged
    i8  rx_nombuf     frames lost because buffers were short
    13i8 pad2         zero
    """,
)

FRAME_SIZE_DEFAULT, FRAME_SIZE_MIN, FRAME_SIZE_MAX = 1_536, 64, 16_352
SLOTS_DEFAULT, SLOTS_MAX = 65_536, 1 << 24
_FRAME_HEAD: Final = """
    i8  recv_ns     Unix time at which its burst was received
    u4  size        bytes kept
    u4  wire_size   bytes it had
    u2  port        port it came from
    u2  queue       receive queue of the port
    u4  pad         zero
    i8  pad2        zero
    """
DPDK_FRAME = record("DPDK_FRAME", _FRAME_HEAD, line=32)  # its bytes follow


def frame_record(frame_size: int) -> Record:
    """Return the ring's record for frames of up to frame_size bytes: DPDK_FRAME, bytes, whole cache lines."""
    size = (DPDK_FRAME.size + frame_size + CACHE_LINE - 1) & -CACHE_LINE
    return record("DPDK_FRAME", f"{_FRAME_HEAD}\n{size - DPDK_FRAME.size}u1 bytes the frame, zeros behind it")


_C_TYPES: Final = {"i8": "int64_t", "u4": "uint32_t", "u2": "uint16_t", "u1": "uint8_t", "S1": "char"}
_HEAD: Final = """\
/* The segment that bridge and reader share. Generated from nimbus/feed/dpdk_layout.py and ringbuf by
 * `python -m nimbus.feed.dpdk_layout`: do not edit. A test compares the two, and the compiler checks that
 * its structs lie as the tables say. */
#ifndef CONTRAFUSION_DPDK_LAYOUT_H
#define CONTRAFUSION_DPDK_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

"""


def _constants() -> dict[str, str]:
    """Return the names and values of layout.h; the ring's are byte positions from its start."""
    numbers = {
        "SEGMENT_MAGIC": segment.MAGIC,
        "SEGMENT_HEADER_VERSION": segment.HEADER_VERSION,
        "SEGMENT_AREAS_MAX": segment.AREAS_MAX,
        "SEGMENT_AREAS_AT": segment.HEADER_SIZE,
        "SEGMENT_AREA_ALIGN": LINE_PAIR,
        "BOOT_DIGITS": process.BOOT_DIGITS,
        "DPDK_LAYOUT_VERSION": DPDK_LAYOUT_VERSION,
        "BRIDGE_STARTING": BRIDGE_STARTING,
        "BRIDGE_POLLING": BRIDGE_POLLING,
        "BRIDGE_STOPPED": BRIDGE_STOPPED,
        "FRAME_SIZE_DEFAULT": FRAME_SIZE_DEFAULT,
        "FRAME_SIZE_MIN": FRAME_SIZE_MIN,
        "FRAME_SIZE_MAX": FRAME_SIZE_MAX,
        "SLOTS_DEFAULT": SLOTS_DEFAULT,
        "SLOTS_MAX": SLOTS_MAX,
        "RING_HEADER_SIZE": spsc.HEADER_SIZE,
        "RING_TAIL_AT": spsc.TAIL,
        "RING_TAIL_OWN_AT": spsc.TAIL_OWN,
        "RING_HEAD_AT": spsc.HEAD,
        "RING_HEAD_CACHE_AT": spsc.HEAD_CACHE,
        "RING_MASK_AT": spsc.MASK,
        "RING_RECORD_SIZE_AT": spsc.RECORD_SIZE,
        "RING_REFUSED_AT": spsc.REFUSED,
    }
    texts = {"SEGMENT_DEFAULT": SEGMENT_DEFAULT, "BRIDGE_AREA": BRIDGE_AREA, "RING_AREA": RING_AREA}
    return {k: f"INT64_C({v})" for k, v in numbers.items()} | {k: f'"{v}"' for k, v in texts.items()}


def _struct(name: str, layout: Record) -> str:
    """Return a C struct of a record, and the checks that the compiler lays it out as numpy does."""
    lines, checks = [], [f'_Static_assert(sizeof(struct {name}) == {layout.size}, "{name}");']
    for field, meaning in layout.meaning.items():
        dtype = layout.dtype.fields[field][0]  # type: ignore[index]
        base, shape = dtype.subdtype or (dtype, ())
        if base.kind == "S":
            base, shape = np.dtype("S1"), (base.itemsize,)
        count = f"[{shape[0]}]" if shape else ""
        lines.append(f"    {_C_TYPES[base.str[1:]]} {field}{count}; /* {meaning} */")
        at = getattr(layout.at, field)
        checks.append(f'_Static_assert(offsetof(struct {name}, {field}) == {at}, "{name}.{field}");')
    return "\n".join([f"struct {name} {{", *lines, "};", *checks, "", ""])


def c_header() -> str:
    """Return layout.h."""
    defines = "".join(f"#define {name} {value}\n" for name, value in _constants().items())
    records = {
        "segment_header": SEGMENT_HEADER,
        "area": AREA,
        "dpdk_bridge": DPDK_BRIDGE,
        "dpdk_frame": DPDK_FRAME,
    }
    structs = "".join(_struct(name, layout) for name, layout in records.items())
    return f"{_HEAD}{defines}\n{structs}#endif\n"


HEADER_PATH: Final = pathlib.Path(__file__).with_name("dpdk_bridge") / "layout.h"

if __name__ == "__main__":
    HEADER_PATH.write_text(c_header(), encoding="ascii")
    sys.stdout.write(f"{HEADER_PATH}\n")
