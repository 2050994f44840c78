"""`python -m bicep.selfcheck`: every kernel against NumPy on every back end of this machine, with timings.

What is absent is said plainly and is no failure; what is present must be right, then the exit code is 0.  The
last line has a digest of what was checked and how it came out, without timings, to compare machines by.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from bicep import nvrtc
from bicep.crossover import SIZES, Backend, Chooser, Costs
from bicep.cuda import ENTRIES, SOURCES, headers, read_source
from bicep.cuda.cases import Case, CheckError, cases
from bicep.cuda.rings import RingRig, compare
from bicep.cuda.twins import TWINS
from bicep.device import Device, DeviceError, open_device, run
from bicep.mailbox import Mailbox
from bicep.masks import philox
from bicep.offload import GpuBatch, Offload
from bicep.spectrum import power

TIMEOUT_S: Final = 60.0
# Counter, key and words of Philox4x32-10: Random123, tests/kat_vectors.
KNOWN_ANSWERS: Final = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@dataclass(slots=True, frozen=True)
class Effort:
    """How much is run: an emulated device is a million times slower than a real one."""

    jobs: int = 32  # of a batch
    repeats: int = 5  # of what is timed
    sizes: tuple[int, ...] = SIZES  # symbols per decision for the crossover
    hidden: tuple[int, int] = (128, 64)
    threads: int = 0  # of the persistent block; 0 = the table's


FULL: Final = Effort()


@dataclass(slots=True)
class Row:
    """One check: what, on which back end, how it came out, and how long it took."""

    what: str
    backend: str
    ok: bool
    error: float = 0.0
    us: float = 0.0
    note: str = ""


def _timed(call: Callable[[], Any], repeats: int = FULL.repeats) -> float:
    """Return the median time of a call in microseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return float(np.median(times))


def _checked(what: str, backend: str, call: Callable[[], tuple[float, float]]) -> Row:
    """Make a row of a check that returns (largest error, microseconds) or raises."""
    try:
        error, us = call()
    except (CheckError, DeviceError, nvrtc.NvrtcError) as failure:
        return Row(what, backend, ok=False, note=str(failure).splitlines()[0])
    return Row(what, backend, ok=True, error=error, us=us)


def check_compiler() -> list[Row]:
    """Compile every source for every architecture; the note holds the most registers of its kernels."""
    if reason := nvrtc.absent():
        return [Row("compile", "nvrtc", ok=True, note=f"no NVRTC: {reason}")]
    rows = []
    for architecture in nvrtc.ARCHITECTURES:
        for source in SOURCES:
            start = time.perf_counter()
            try:
                program = nvrtc.compile_source(source, read_source(source), headers(), architecture)
            except nvrtc.NvrtcError as error:
                note = str(error).splitlines()[0]
                rows.append(Row(f"compile {source}", f"sm_{architecture}", ok=False, note=note))
                continue
            heavy = [
                name
                for name, usage in program.usage.items()
                if usage.stack or usage.spills or usage.registers > ENTRIES[name].registers
            ]
            registers = max(usage.registers for usage in program.usage.values())
            note = f"{registers} registers" + (f", over budget: {', '.join(heavy)}" if heavy else "")
            us = (time.perf_counter() - start) * 1e6
            rows.append(Row(f"compile {source}", f"sm_{architecture}", ok=not heavy, us=us, note=note))
    return rows


def _check_case(device: Device, case: Case, repeats: int) -> tuple[float, float]:
    arguments = case.copy()
    run(device, case.entry, arguments, sizes=case.sizes)
    error = case.check(arguments)
    return error, _timed(lambda: run(device, case.entry, case.copy(), sizes=case.sizes), repeats)


def check_kernels(device: Device, effort: Effort = FULL) -> list[Row]:
    """Run every kernel on a device against its twin; a time includes the copies of a single call."""
    return [
        _checked(case.label, "device", functools.partial(_check_case, device, case, effort.repeats))
        for case in cases()
    ]


def check_offload(rig: RingRig, gpu: GpuBatch | None, effort: Effort) -> tuple[float, float]:
    """Answer a batch of jobs through the rings on one back end; compare with the twin."""
    count = effort.jobs
    chooser = Chooser(None, forced=Backend.CPU if gpu is None else Backend.CUDA)
    offload = Offload(rig.plan, rig.jobs, rig.answers, gpu, chooser=chooser, timeout_s=TIMEOUT_S)
    first = rig.pushed
    rig.push(count)
    offload.turn()
    error = compare(rig.popped(count), rig.expected(rig.asked(first, count)))

    def again() -> None:
        rig.push(count)
        offload.turn()
        rig.popped(count)

    us = _timed(again, effort.repeats)
    if offload.is_lost:
        raise DeviceError(offload.fault)
    return error, us


def _wait_for(rig: RingRig, box: Mailbox, count: int) -> Any:
    found, end = [], time.monotonic() + TIMEOUT_S
    while count:
        found.append(rig.popped(count, box.answers))
        count -= len(found[-1])
        if time.monotonic() > end:
            msg = f"the persistent kernel left {count} jobs unanswered"
            raise CheckError(msg)
    return np.concatenate(found)


def check_mailbox(device: Device, effort: Effort) -> tuple[float, float]:
    """Answer jobs by the persistent kernel; the time is one job there and back, from Python."""
    rig, count = RingRig(hidden=effort.hidden), effort.jobs
    box = Mailbox(device, rig.model, threads=effort.threads)
    box.start(time.monotonic_ns())
    try:
        rig.push(count, box.jobs)
        found = _wait_for(rig, box, count)
        error = compare(found, rig.expected(rig.asked(0, count, box.jobs)))

        def one() -> None:
            rig.push(1, box.jobs)
            _wait_for(rig, box, 1)

        us = _timed(one, effort.repeats)
    finally:
        ended = box.stop(TIMEOUT_S)
    if not ended:
        msg = "the persistent kernel did not end"
        raise DeviceError(msg)
    return error, us


def check_spectrum(xp: Any) -> tuple[float, float]:
    """Compare the power spectrum with the sums of its definition."""
    series = np.random.default_rng(3).standard_normal((64, 5))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    values = (series - series.mean(0)) * window[:, None]
    waves = np.exp(-2j * np.pi * np.outer(np.arange(33), np.arange(64)) / 64)
    wanted = np.abs(waves @ values) ** 2 / 64 * np.where(np.isin(np.arange(33), (0, 32)), 1, 2)[:, None]
    array = xp.asarray(series)
    found = power(array)
    found = found.get() if hasattr(found, "get") else found
    error = float(np.abs(found - wanted).max())
    if error > 1e-9:
        msg = f"the spectrum differs by {error:.3g}"
        raise CheckError(msg)
    return error, _timed(lambda: power(array))


def check_generator() -> tuple[float, float]:
    """Compare the generator of the masks with the known answers of its authors (Random123)."""
    counters = np.array([counter for counter, _, _ in KNOWN_ANSWERS], np.uint32)
    for row, (_, key, words) in zip(counters, KNOWN_ANSWERS, strict=True):
        if tuple(int(word) for word in philox(row[None], key)[0]) != words:
            msg = f"Philox of {[hex(word) for word in row]} is wrong"
            raise CheckError(msg)
    return 0.0, _timed(lambda: philox(counters, KNOWN_ANSWERS[0][1]))


def check_cpu() -> list[Row]:
    """Check what this machine's CPU runs."""
    from bicep.cpu import check  # noqa: PLC0415  (loads torch)

    def body(case: Case) -> tuple[float, float]:
        return check.run(case), _timed(check.call(case))

    return [
        _checked("generator of masks, known answers", "numpy", check_generator),
        _checked("expert, 32 jobs in rings", "cpu (numba)", lambda: check_offload(RingRig(), None, FULL)),
        _checked("spectrum", "cpu (numpy)", lambda: check_spectrum(np)),
        *(_checked(c.label, "cpu (numba)", functools.partial(body, c)) for c in check.on_cpu(cases())),
    ]


def _run_twin(case: Case) -> None:
    TWINS[case.entry.name](**case.copy())


def time_twins() -> list[Row]:
    """Time the NumPy twins, which the kernels are compared with: no checks."""
    rows = []
    for case in cases():
        us = _timed(functools.partial(_run_twin, case))
        rows.append(Row(case.label, "numpy twin", ok=True, us=us))
    return rows


def check_device(device: Device, effort: Effort = FULL) -> tuple[list[Row], Costs | None]:
    """Check kernels, batches by graph and the persistent kernel on a device; measure the crossover."""
    rows, rig = check_kernels(device, effort), RingRig(hidden=effort.hidden)
    try:
        gpu = GpuBatch(device, rig.model)
    except DeviceError as error:
        return [*rows, Row("expert by graph", "device", ok=False, note=str(error))], None
    what = f"expert, {effort.jobs} jobs by graph"
    rows.append(_checked(what, "device", lambda: check_offload(rig, gpu, effort)))
    offload = Offload(rig.plan, rig.jobs, rig.answers, gpu, timeout_s=TIMEOUT_S)
    costs = offload.remeasure(effort.sizes, effort.repeats)
    rows.append(_checked("expert, persistent", "device", lambda: check_mailbox(device, effort)))
    return rows, costs


def digest(rows: Iterable[Row]) -> str:
    """Return 16 hex digits of what was checked and how it came out."""
    text = "\n".join(f"{row.what} {row.backend} {row.ok}" for row in rows)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _lines(rows: Iterable[Row], verdict: str = "") -> Iterable[str]:
    for row in rows:
        words = verdict or ("PASS" if row.ok else "FAIL")
        numbers = f"{row.error:9.1e} {row.us:11.1f} us"
        yield f"{words:4}  {row.what:36} {row.backend:14} {numbers}  {row.note}".rstrip()


def _report(rows: list[Row], twins: list[Row], gpu: str, costs: Costs | None) -> Iterable[str]:
    yield from _lines(twins, "time")
    yield from _lines(rows)
    yield gpu
    if costs is not None:
        yield (
            f"crossover {costs.crossover:.1f} symbols per decision: CPU {costs.cpu_us:.2f} us each, "
            f"GPU {costs.launch_us:.2f} us + {costs.symbol_us:.3f} us each"
        )
    passed = sum(row.ok for row in rows)
    verdict = "PASS" if passed == len(rows) else "FAIL"
    yield f"{verdict} {passed} of {len(rows)} checks, digest {digest(rows)}"


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bicep.selfcheck", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if any"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--no-compile", action="store_true", help="do not compile for every architecture")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Check this machine, print the table, return the exit code."""
    options = _options(words)
    try:
        device, reason = open_device(options.device)
    except DeviceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    rows, costs = check_cpu(), None
    rows += [] if options.no_compile else check_compiler()
    if device is not None:
        on_device, costs = check_device(device)
        import cupy  # noqa: PLC0415  (the device is its)

        rows += [*on_device, _checked("spectrum", "device (cufft)", lambda: check_spectrum(cupy))]
    gpu = device.name if device is not None else f"no GPU: {reason}"
    ok = all(row.ok for row in rows)
    if options.json:
        measured = None if costs is None else {**asdict(costs), "crossover": costs.crossover}
        result = {"gpu": gpu, "ok": ok, "digest": digest(rows), "costs": measured}
        sys.stdout.write(json.dumps({**result, "rows": [asdict(row) for row in rows]}) + "\n")
    else:
        sys.stdout.writelines(line + "\n" for line in _report(rows, time_twins(), gpu, costs))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
