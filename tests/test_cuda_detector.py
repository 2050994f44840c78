"""The emulator's own tests: what it must report, and what looks alike and must stay silent."""

import numpy as np
import pytest
from emulator import build
from emulator.device import PtxCpuDevice
from emulator.translate import translate

from bicep.cuda import Entry, Launch, _parse
from bicep.device import DeviceError

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=build.missing() or "present")
THREADS = 64

# name: body of a kernel k(int* a, const int* b, int n) with int s[64] in shared memory; what is said of it
PROGRAMS = {
    "two stores to one shared word": (
        "s[0] = t; __syncthreads(); a[t] = s[0];",
        "shared race, write after write",
    ),
    "a load of what another thread stored": (
        "s[t] = 0; __syncthreads(); s[t] = t; a[t] = s[63 - t];",
        "read after write|write after read",
    ),
    "a store to what another thread loaded": (
        "s[t] = t; __syncthreads(); int v = s[63 - t]; s[t] = v; a[t] = v;",
        "write after read|read after write",
    ),
    "a barrier between": ("s[t] = t; __syncthreads(); a[t] = s[63 - t];", ""),
    "two barriers between": (
        "s[t] = t; __syncthreads(); int v = s[63 - t]; __syncthreads(); s[t] = v; a[t] = v;",
        "",
    ),
    "__syncwarp within a warp": ("s[t] = t; __syncwarp(); a[t] = s[t ^ 1];", ""),
    "__syncwarp between two warps": ("s[t] = t; __syncwarp(); a[t] = s[t ^ 32];", "read after write"),
    "a shuffle orders nothing": (
        "s[t] = t; int v = __shfl_xor_sync(0xffffffffu, t, 1); a[t] = s[t ^ 1] + v;",
        "read after write",
    ),
    "a vote orders nothing": (
        "s[t] = t; int v = __ballot_sync(0xffffffffu, t); a[t] = s[t ^ 1] + v;",
        "read after write",
    ),
    "atomics to one word": ("if (t == 0) s[0] = 0; __syncthreads(); atomicAdd(&s[0], 1); a[t] = t;", ""),
    "an atomic and a plain load": (
        "if (t == 0) s[0] = 0; __syncthreads(); atomicAdd(&s[0], 1); a[t] = s[0];",
        "race",
    ),
    "a broadcast": ("if (t == 0) s[0] = 5; __syncthreads(); a[t] = s[0];", ""),
    "shared memory nobody wrote": (
        "if (t < 32) s[t] = t; __syncthreads(); a[t] = s[t];",
        "uninitialised shared",
    ),
    "device memory nobody wrote": ("a[t] = a[t] + 1;", "uninitialised global"),
    "a store behind the array": ("a[t + 1] = t;", "store of 4 bytes outside"),
    "a load before the array": ("a[t] = b[t - 1];", "load of 4 bytes outside"),
    "a load behind shared memory": ("s[t] = t; __syncthreads(); a[t] = s[t + n];", "out of bounds"),
    "a misaligned store": ("*(int*)((char*)a + 2) = t;", "misaligned"),
    "a store to a const argument": ("((int*)b)[t] = t; a[t] = t;", "const argument"),
    "blocks that write one word": ("a[0] = blockIdx.x + t;", "global race, write after write"),
    "blocks that add to one word": (
        "if (t == 0 && blockIdx.x == 0) a[n] = 0; atomicAdd(&a[0], 1);",
        "uninitialised",
    ),
    "a block reads what another wrote": (
        "if (blockIdx.x == 0) a[t] = t; else a[64 + t] = a[63 - t];",
        "global race|uninitialised",
    ),
    "threads of one block, a barrier between": (
        "if (blockIdx.x) return; a[t] = t; __syncthreads(); int v = a[63 - t]; __syncthreads(); a[t] = v;",
        "",
    ),
    "threads of one block, no barrier": (
        "if (blockIdx.x) return; a[t] = t; __syncthreads(); int v = a[63 - t]; a[t] = v;",
        "global race",
    ),
    "an exit before the barrier": ("if (t > 40) return; __syncthreads(); a[t] = t;", "divergent barrier: 41"),
    "a barrier that some never reach": (
        "if (t < 32) __syncthreads(); else a[t] = __shfl_xor_sync(0xffffffffu, t, 1); a[t] = t;",
        "divergent|deadlock",
    ),
    "a collective without all its lanes": (
        "if (t % 32 < 8) a[t] = __shfl_xor_sync(0xffffffffu, t, 1); else { __syncthreads(); a[t] = 0; }",
        "deadlock",
    ),
    "a mask without the caller": ("a[t] = __ballot_sync(0x0000ffffu, t);", "lacks it"),
    "a lane that has exited": ("if (t % 32 > 20) return; a[t] = __ballot_sync(0xffffffffu, t);", "exited"),
    "half a warp, with its mask": (
        "if (t % 32 < 16) a[t] = __shfl_xor_sync(0x0000ffffu, t, 1); else a[t] = 0;",
        "",
    ),
    "a shuffle from outside the mask": (
        "if (t % 32 < 16) a[t] = __shfl_xor_sync(0x0000ffffu, t, 16); else a[t] = 0;",
        "not in mask",
    ),
    "no end": ("while (n) { a[t] = n; if (((volatile int*)a)[t] == -1) break; }", "endless"),
    "bytes side by side": ("((char*)a)[t] = t; if (t < 48) ((char*)a)[64 + t] = t;", ""),
}


def source():
    """Return all programs as one CUDA source."""
    kernels = []
    for n, (body, _) in enumerate(PROGRAMS.values()):
        shared = "__shared__ int s[64]; if (n < 0) s[t] = 0;" if "s[" in body else ""
        kernels.append(
            f'extern "C" __global__ void k{n}(int* a, const int* b, int n) '
            f"{{ int t = threadIdx.x; {shared} {body} }}"
        )
    return "\n".join(kernels)


@pytest.fixture(scope="module")
def library():
    return build.load("programs.cu", {"programs.cu": source()})


def launch(library, number, seed, grid=1):
    """Run program `number` on device memory of 128 integers, the first half of b written."""
    entry = Entry(
        f"k{number}", "programs.cu", _parse("i32* a, const i32* b, i32 n"), lambda *_: Launch((1, 1), 1), 0, 0
    )
    device = PtxCpuDevice(seed, libraries={"programs.cu": library}, budget=100_000)
    a, b = device.alloc(4 * 64 * grid), device.alloc(4 * 64)
    stream, event = device.stream(), device.event()
    device.upload(b, np.arange(64, dtype=np.int32), stream)
    device.launch(entry, Launch((grid, 1), THREADS), entry.pack({"a": a, "b": b, "n": 1}), stream)
    device.record(event, stream)
    try:
        assert device.is_done(event)
    finally:
        device.free(a)
        device.free(b)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_reported_or_not(library, name):
    number, words = list(PROGRAMS).index(name), PROGRAMS[name][1]
    grid = 2 if "block" in name else 1
    for seed in (0, 1, 2, 3):
        if words:
            with pytest.raises(DeviceError, match=words):
                launch(library, number, seed, grid)
        else:
            launch(library, number, seed, grid)


def test_a_report_names_the_line(library):
    with pytest.raises(DeviceError, match=r"programs\.cu:1$"):
        launch(library, 0, 0)


def test_memory_that_was_given_back_is_outside(library):
    entry = Entry(
        "k13", "programs.cu", _parse("i32* a, const i32* b, i32 n"), lambda *_: Launch((1, 1), 1), 0, 0
    )
    device = PtxCpuDevice(0, libraries={"programs.cu": library})
    a = device.alloc(256)
    device.free(a)
    number = list(PROGRAMS).index("a broadcast")
    entry = Entry(f"k{number}", "programs.cu", entry.arguments, entry.shape, 0, 0)
    with pytest.raises(DeviceError, match="outside"):
        device.run_kernel(entry, Launch((1, 1), THREADS), entry.pack({"a": a, "b": None, "n": 0}))


def test_an_array_is_not_there_before_its_stream_has_come_to_it(library):
    """Copies and launches happen when an event is looked at: a host that does not wait reads the past."""
    device = PtxCpuDevice(0, libraries={"programs.cu": library})
    stream, target = device.stream(), np.zeros(4, np.int32)
    at = device.alloc(16)
    device.upload(at, np.arange(4, dtype=np.int32), stream)
    device.download(target, at, stream)
    assert not target.any()
    event = device.event()
    device.record(event, stream)
    assert device.is_done(event)
    assert target.tolist() == [0, 1, 2, 3]


def test_streams_that_no_event_ties_go_on_in_any_order(library):
    found = set()
    for seed in range(1, 12):
        device = PtxCpuDevice(seed, libraries={"programs.cu": library})
        one, two, target = device.stream(), device.stream(), np.zeros(1, np.int32)
        at = device.alloc(4)
        device.upload(at, np.array([1], np.int32), one)
        device.upload(at, np.array([2], np.int32), two)
        events = [device.event(), device.event()]
        for event, stream in zip(events, (one, two), strict=True):
            device.record(event, stream)
        device.wait(two, events[0])
        device.wait(one, events[1])
        device.download(target, at, one)
        device.record(events[0], one)
        assert device.is_done(events[0])
        found.add(int(target[0]))
    assert found == {1, 2}


def test_what_the_translator_does_not_know_it_refuses():
    body = ".reg .b32 %r<3>;\n\ttex.1d.v4.s32.s32 %r1, [%r2];\n\tret;\n"
    with pytest.raises(NotImplementedError, match="tex"):
        translate(f".visible .entry k()\n{{\n{body}}}\n")
    with pytest.raises(NotImplementedError, match="local"):
        translate(
            ".visible .entry k()\n{\n.reg .b32 %r<3>;\n.reg .b64 %rd<3>;\n\tld.local.u32 %r1, [%rd1];\n}\n"
        )
