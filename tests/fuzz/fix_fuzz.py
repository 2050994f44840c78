"""Mutate FIX streams in a kernel, each ending at a page that may not be touched; print counts.

Run in a process of its own, the project and its tests on PYTHONPATH: one byte read too far ends it with a
segmentation fault.
usage: fix_fuzz.py STREAMS SEED
"""

from __future__ import annotations

import json
import sys

from feed_fuzz import SAMPLE, Samples, mutate, random
from feeding import guarded_page
from test_fix_kernels import HEADER_AT, NOW, PEER_AT, PIECES_PLAIN, text

from nimbus.fix.digits import check_digits
from nimbus.fix.frames import cut
from nimbus.fix.header import HEADER, judge, read_header
from nimbus.fix.message import stamp
from nimbus.fix.table import Event
from ringbuf.jit import kernel
from ringbuf.memory import load_i64, store_i64
from ringbuf.segment import Segment

_SAMPLE_SIZE, _HEADER = SAMPLE.size, HEADER.at
BROKEN, CHECKED_MIN = -1, 24


@kernel
def fuzz(
    samples: int, sample_count: int, end: int, steps: int, seed: int, header: int, peer: int, counts: int
) -> int:
    """Walk `steps` mutated streams to their end; count each event at counts; return messages or BROKEN."""
    messages = 0
    for step in range(steps):
        sample = samples + random(seed, step * 32 + 31) % sample_count * _SAMPLE_SIZE
        size = mutate(seed, step, sample, end)
        at = end - size
        if step & 1 and size > CHECKED_MIN:
            check_digits(at, size)  # what was changed gets past the checksum
        for _piece in range(size + 1):  # every answer but 0 takes at least a byte
            got = cut(at, end)
            if got == 0:
                break
            taken = got if got > 0 else -got
            if taken > end - at:
                return BROKEN
            if got > 0:
                read_header(at, got, header, peer)
                event = judge(header, peer, 7, 1_764_111_111_123_456_789)
                if event < 1 or event > 63 or load_i64(header + _HEADER.seq) > 999_999_999:
                    return BROKEN
                store_i64(counts + 8 * event, load_i64(counts + 8 * event) + 1)
                messages += 1
            at += taken
    return messages


def samples() -> Samples:
    """Return streams: whole messages of every kind, some behind each other, and what is nearly one."""
    now = stamp(NOW)
    head = [b"34=7", b"49=VENUE", b"52=" + now, b"56=US"]
    rows = [piece for piece in PIECES_PLAIN if piece]
    for kind in (b"0", b"1", b"2", b"3", b"4", b"5", b"8", b"9", b"A", b"D", b"*", b"ABC"):
        rows.append(text(b"35=" + kind, *head, b"36=9", b"123=Y"))
        for seq in (b"34=6", b"34=9"):
            rows.append(text(b"35=" + kind, seq, *head[1:], b"43=Y", b"122=" + now, b"36=9"))
            rows.append(text(b"35=" + kind, seq, *head[1:]))
    rows += [text(b"35=8", *head, b"58=" + b"x" * n) * 2 for n in range(1, 40, 3)]
    rows += [text(b"35=0", *head[:n]) for n in range(4)]
    rows.append(text(b"35=0", b"34=7", b"49=VENUE", b"52=" + stamp(NOW - 10**12), b"56=US"))
    rows.append(text(b"35=0", b"34=7", b"49=OTHER", b"52=" + now, b"56=US"))
    rows.append(text(b"35=0", *head, begin=b"8=FIX.4.2"))
    rows.append(text(b"35=D", b"34=6", *head[1:], b"43=Y", b"122=" + stamp(NOW + 10**9)))
    rows.append(text(b"35=D", b"34=6", *head[1:], b"43=Y"))
    return Samples([(row, 0) for row in rows])


def main() -> None:
    """Fuzz and print what came of it as JSON."""
    steps, seed = (int(word) for word in sys.argv[1:3])
    segment, rows = Segment.anonymous(1 << 16), samples()
    counts = segment.allocate("counts", 64 * 8)
    messages = fuzz(rows.addr, rows.count, guarded_page(), steps, seed, HEADER_AT, PEER_AT, counts)
    assert messages >= 0
    events = {Event(n).name: int(c) for n, c in enumerate(segment.words(counts, 64)) if c}
    sys.stdout.write(json.dumps({"messages": messages, "events": events}) + "\n")


if __name__ == "__main__":
    main()
