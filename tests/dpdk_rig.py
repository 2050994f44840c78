"""The bridge for tests: its C side as a library and as a numbered producer, and the real program over DPDK.

The segment's code knows nothing of DPDK, so everything about the ring is tested wherever there is a compiler.
"""

from __future__ import annotations

import ctypes
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from dpdk_load import SEED

from nimbus.feed.dpdk import DpdkBridge, _try_lock
from ringbuf.segment import Segment

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = ROOT / "nimbus" / "feed" / "dpdk_bridge"
WAIT_S = 60
WARNINGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror")
EAL = ("--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "-m", "128", "--log-level", "error")

# A numbered frame: 8 bytes of its number, then (number + place) * SEED, cut to bytes; 8 to 199 bytes long.
SHIM = f"""
#include "segment.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct segment *shim_open(const char *path, int64_t slots, int64_t frame_size, char *note)
{{
    struct plan plan = {{path, slots, frame_size, 0, 1, 1}};
    struct segment *segment = malloc(sizeof *segment);
    if (segment != NULL && segment_open(segment, &plan, note) == 0)
        return segment;
    free(segment);
    return NULL;
}}

int64_t shim_push(struct segment *segment, const uint8_t *bytes, uint32_t size, uint32_t wire, int64_t ns)
{{
    count_up(&segment->bridge->received, 1);
    if (ring_room(segment, 1) == 0) {{
        ring_refuse(segment, 1);
        return 0;
    }}
    struct dpdk_frame *frame = ring_slot(segment, 0);
    *frame = (struct dpdk_frame){{.recv_ns = ns, .size = size, .wire_size = wire}};
    memcpy(frame + 1, bytes, size);
    ring_publish(segment, 1);
    return 1;
}}

void shim_state(struct segment *segment, int64_t state) {{ segment->bridge->state = state; }}
void shim_beat(struct segment *segment, int64_t ns) {{ beat(segment, ns); }}

void shim_stop(struct segment *segment) {{ segment_close(segment); free(segment); }}

void shim_die(struct segment *segment) /* as a killed bridge leaves it */
{{
    munmap(segment->base, (size_t)segment->size);
    close(segment->descriptor);
    free(segment);
}}

#ifdef PROGRAM
int main(int count, char **words) /* PATH SLOTS LAST: numbered frames from where the ring stands, in bursts */
{{
    char note[REASON_SIZE];
    struct segment *segment = count == 4 ? shim_open(words[1], atoll(words[2]), 256, note) : NULL;
    int64_t last = count == 4 ? atoll(words[3]) : 0;
    if (segment == NULL)
        return 1;
    shim_state(segment, BRIDGE_POLLING);
    puts("ready");
    fflush(stdout);
    for (int64_t number = *ring_word(segment, RING_TAIL_AT) + 1; number <= last;) {{
        int64_t want = 1 + number % 32, left = last - number + 1;
        int64_t fit = ring_room(segment, want < left ? want : left);
        for (int64_t k = 0; k < fit; k++, number++) {{
            uint32_t size = (uint32_t)(8 + number % 192);
            struct dpdk_frame *frame = ring_slot(segment, k);
            uint8_t *bytes = (uint8_t *)(frame + 1);
            memcpy(bytes, &number, sizeof number);
            for (uint32_t at = 8; at < size; at++)
                bytes[at] = (uint8_t)((number + at) * {SEED} >> 8);
            *frame = (struct dpdk_frame){{.recv_ns = number, .size = size, .wire_size = size}};
        }}
        ring_publish(segment, fit);
        count_up(&segment->bridge->received, fit);
        beat(segment, clock_ns(1));
    }}
    segment_close(segment);
    return 0;
}}
#endif
"""


def until(is_done: Callable[[], Any], what: str = "it") -> None:
    """Wait for something, at most WAIT_S."""
    end = time.monotonic() + WAIT_S
    while not is_done():
        assert time.monotonic() < end, f"{what} did not happen within {WAIT_S} s"
        time.sleep(0.002)


def compile_c(folder: pathlib.Path, name: str, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Compile a program text together with segment.c into folder/name, or skip without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")
    source = folder / f"{name}.c"
    source.write_text(text, encoding="ascii")
    command = [compiler, *WARNINGS, "-I", str(SOURCES), *options, str(source), str(SOURCES / "segment.c")]
    return subprocess.run(
        [*command, "-o", str(folder / name)], capture_output=True, text=True, check=False, timeout=120
    )


class Producer:
    """The bridge's C side in this process: pushes whatever a test gives it."""

    def __init__(self, library: Any, path: pathlib.Path, slots: int = 8, frame_size: int = 96) -> None:
        """Open the ring as a bridge does; `note` is what it says, and the error when it refuses."""
        note = ctypes.create_string_buffer(8_192)
        self._library = library
        self._segment = library.shim_open(str(path).encode(), slots, frame_size, note)
        self.note = note.value.decode()
        if self._segment is None:
            raise OSError(self.note)

    def push(
        self, data: bytes, *, wire_size: int | None = None, size: int | None = None, ns: int = 1
    ) -> bool:
        size = len(data) if size is None else size
        wire_size = len(data) if wire_size is None else wire_size
        return bool(self._library.shim_push(self._segment, data, size, wire_size, ns))

    def set_state(self, state: int) -> None:
        self._library.shim_state(self._segment, state)

    def beat(self, ns: int) -> None:
        self._library.shim_beat(self._segment, ns)

    def stop(self) -> None:
        """End as at SIGTERM."""
        self._leave("shim_stop")

    def die(self) -> None:
        """End as at SIGKILL: no word is changed, the lock goes."""
        self._leave("shim_die")

    def _leave(self, how: str) -> None:
        if self._segment is not None:
            getattr(self._library, how)(self._segment)
            self._segment = None


def load_library(folder: pathlib.Path) -> Any:
    """Compile the shim as a library and load it."""
    done = compile_c(folder, "shim.so", SHIM, "-shared", "-fPIC")
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "shim.so"))
    pointer, word, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    library.shim_open.restype, library.shim_open.argtypes = pointer, [text, word, word, text]
    library.shim_push.restype = word
    library.shim_push.argtypes = [pointer, text, ctypes.c_uint32, ctypes.c_uint32, word]
    library.shim_state.argtypes = library.shim_beat.argtypes = [pointer, word]
    library.shim_stop.argtypes = library.shim_die.argtypes = [pointer]
    return library


def build_bridge(folder: pathlib.Path) -> pathlib.Path:
    """Build the real program by its make target, or skip and say what is missing."""
    for tool in ("make", "cc", "pkg-config"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: make dpdk-deps")
    if subprocess.run(["pkg-config", "--exists", "libdpdk >= 22.11"], check=False).returncode != 0:
        pytest.skip("DPDK 22.11 is not installed: apt-get install libdpdk-dev (make dpdk-deps)")
    subprocess.run(["make", "-s", "-C", str(ROOT), "dpdk", f"OUT={folder}"], check=True, timeout=300)
    return folder / "contrafusion-dpdk-bridge"


class BridgeProcess:
    """The real program; `lines` is what it has said so far."""

    def __init__(
        self,
        program: pathlib.Path,
        segment: pathlib.Path,
        *options: str,
        devices: Sequence[str] = (),
        start: Callable[..., Any] = subprocess.Popen,
    ) -> None:
        """Start it; start: what makes a process of a command (in another namespace)."""
        self._log = segment.with_name(f"{segment.name}-{time.monotonic_ns()}.log")
        command = [str(program), "--segment", str(segment), *options, "--", *EAL]
        command += [word for device in devices for word in ("--vdev", device)]
        with self._log.open("w") as log:
            self.child = start(command, stdout=log, stderr=log)

    @property
    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def wait_polling(self) -> None:
        until(lambda: self.child.poll() is not None or any(": polling" in line for line in self.lines))
        assert self.child.poll() is None, self.lines

    def finish(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        return int(self.child.wait(WAIT_S))


def try_reader_lock(path: pathlib.Path) -> bool:
    """Say whether the reader's lock of a segment can be had."""
    with path.open("r+b") as file:
        return _try_lock(file.fileno(), 1)


def reader(path: pathlib.Path) -> tuple[Segment, DpdkBridge]:
    """Attach a reader with a segment of its own."""
    segment = Segment.anonymous(1 << 16)
    return segment, DpdkBridge(segment, path)
