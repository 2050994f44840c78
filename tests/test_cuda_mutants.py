"""That the emulated tests can fail: deliberate bugs in the kernels, each of which must be caught.

A mutant changes one place of one file.  It is caught when the emulator reports a fault or a result differs
from the twin, over three schedules.  A change that changes nothing must not be reported.
"""

import re

import pytest
from emulator import build
from emulator.device import PtxCpuDevice

from bicep.cuda import headers, read_source
from bicep.cuda.cases import CheckError, cases
from bicep.device import DeviceError, run

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=build.missing() or "present")
BUDGET = 3_000_000  # backward branches of a launch
ENDLESS = 50_000

# name: (file that changes, text, in its place, kernel, what is said of it)
MUTANTS = {
    "missing barrier": (
        "expert.cuh",
        "words[k] = keep_word(k % units, (u32)job->mask_index, model->bank_number, k / units,",
        None,
        "expert_batch",
        "read after write",
    ),
    "row read one past its end": (
        "layer.cu",
        "j = begin + lane; j < end;",
        "j = begin + lane; j <= end;",
        "csr_layer_mc",
        "differs|outside",
    ),
    "shuffle tree starts too low": (
        "common.cuh",
        "f32 warp_sum(f32 value) {\n#pragma unroll\n    for (i32 step = WARP / 2;",
        "f32 warp_sum(f32 value) {\n#pragma unroll\n    for (i32 step = WARP / 4;",
        "csr_layer_mc",
        "differs",
    ),
    "return before a barrier": (
        "linear.cu",
        "f32 sums[ROWS] = {0.0f, 0.0f, 0.0f, 0.0f};",
        "f32 sums[ROWS] = {0.0f, 0.0f, 0.0f, 0.0f}; if (threadIdx.x > 200) return;",
        "masked_linear",
        "divergent",
    ),
    "barrier in one warp alone": (
        "linear.cu",
        "__syncthreads();  // the chunk before has been read",
        "if (threadIdx.x < WARP) __syncthreads();",
        "masked_linear_dw",
        "divergent|race|deadlock",
    ),
    "shared memory read before it is written": (
        "masks.cu",
        "d < 1 << bits; d += blockDim.x) bins[d] = 0",
        "d < 1 << bits; d += blockDim.x) bins[d & ~1] = 0",
        "score_histogram",
        "uninitialised|race",
    ),
    "store outside the array": (
        "layer.cu",
        "y[unit * samples + sample] =",
        "y[(unit + 1) * samples + sample] =",
        "csr_layer_mc",
        "outside",
    ),
    "shuffle in a loop that lanes leave one by one": (
        "layer.cu",
        "sum = fmaf(weights[j], x[columns[j]], sum);",
        "sum = fmaf(weights[j], x[columns[j]], sum) + 0.0f * __shfl_xor_sync(FULL, sum, 1);",
        "csr_layer_mc",
        "deadlock|exited",
    ),
    "two warps write one place": (
        "expert.cuh",
        "room.partial + (warp * groups + group) * 2 * WARP",
        "room.partial + ((warp & ~1) * groups + group) * 2 * WARP",
        "expert_batch",
        "write after write",
    ),
    "tile overwritten while it is read": (
        "linear.cu",
        "kept[tx][i], sums[r]);\n        __syncthreads();",
        "kept[tx][i], sums[r]);",
        "masked_linear",
        "write after read",
    ),
    "wrong multiplier of the generator": (
        "common.cuh",
        "low_a = 0xD2511F53u",
        "low_a = 0xD2511F57u",
        "mask_words",
        "differs",
    ),
    "counter without its row": (
        "common.cuh",
        "{unit, row, number, group}",
        "{unit, 0u, number, group}",
        "mask_words",
        "differs",
    ),
    "scale of the dropout forgotten": (
        "layer.cu",
        "value * KEEP_SCALE : 0.0f",
        "value : 0.0f",
        "csr_layer_mc",
        "differs",
    ),
    "sum instead of an atomic sum": (
        "masks.cu",
        "atomicAdd(&bins[(score >> shift) & ((1u << bits) - 1)], 1u)",
        "bins[(score >> shift) & ((1u << bits) - 1)] += 1",
        "score_histogram",
        "race",
    ),
    "every lane counts the votes": (
        "masks.cu",
        "if ((threadIdx.x & (WARP - 1)) == 0) atomicAdd(kept",
        "atomicAdd(kept",
        "score_mask",
        "differs",
    ),
    "steps that do not count": (
        "paths.cu",
        "if (n < live)",
        "if (n < max(live, 4))",
        "price_paths",
        "differs",
    ),
    "ties broken the other way": (
        "structured.cu",
        "(a >= b)",
        "(a > b)",
        "mask_2_4",
        "differs",
    ),
    "loop without end": (
        "layer.cu",
        "unit < units; unit += warps",
        "unit < units; unit += 0 * warps",
        "csr_layer_mc",
        "endless",
    ),
    "variance of the population": (
        "expert.cuh",
        "squares / (samples - 1)",
        "squares / samples",
        "expert_batch",
        "differs",
    ),
    "signal seeded one bar late": (
        "series.cu",
        "fold(signal, fast - slow, bar, SLOW_BARS - 1,",
        "fold(signal, fast - slow, bar, SLOW_BARS,",
        "indicators",
        "differs",
    ),
    "store to what is only read": (
        "layer.cu",
        "u32 word = keep_word(first_unit",
        "((f32*)bias)[unit] = 0.0f; u32 word = keep_word(first_unit",
        "csr_layer_mc",
        "const argument",
    ),
    "vote of a mask that names nobody": (
        "structured.cu",
        "__ballot_sync(FULL, live > 2)",
        "__ballot_sync(0xffu, live > 2)",
        "check_2_4",
        "lacks it",
    ),
}


def changed(file, old, new):
    """Return the files that differ: one place of one file."""
    text = headers()[file] if file in headers() else read_source(file)
    if new is None:  # the barrier that follows goes
        at = text.index("__syncthreads();", text.index(old))
        return {file: text[:at] + text[at + len("__syncthreads();") :]}
    assert text.count(old) >= 1, f"{file} has no {old!r}"
    return {file: text.replace(old, new, 1)}


def verdicts(kernel, files, budget=BUDGET):
    """Return what is said of a mutant, over cases and schedules."""
    said = []
    chosen = [case for case in cases() if case.entry.name == kernel]
    library = build.load(chosen[0].entry.source, files)
    for case in chosen:
        expected = case.expected()
        for seed in (0, 1, 2):
            arguments = case.copy()
            device = PtxCpuDevice(seed, libraries={case.entry.source: library}, budget=budget)
            try:
                run(device, case.entry, arguments, sizes=case.sizes)
                case.check(arguments, expected)
            except (DeviceError, CheckError) as fault:
                said.append(str(fault))
    return said


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught_and_named(name):
    file, old, new, kernel, words = MUTANTS[name]
    said = verdicts(kernel, changed(file, old, new), ENDLESS if words == "endless" else BUDGET)
    assert said, "the bug went unnoticed"
    assert any(re.search(words, one) for one in said), said


EQUIVALENT = {
    "a barrier more": (
        "linear.cu",
        "    if (threadIdx.x < WARP) {\n        f32 sum",
        "    __syncthreads();\n    if (threadIdx.x < WARP) {\n        f32 sum",
        "masked_linear_dw",
    ),
    "a sum by way of a variable": (
        "expert.cuh",
        "to_mean = fmaf(kept, mean[unit], to_mean);",
        "f32 added = fmaf(kept, mean[unit], to_mean); to_mean = added;",
        "expert_batch",
    ),
    "zeros added": ("masks.cu", "if (bins[d]) atomicAdd", "atomicAdd", "score_histogram"),
}


@pytest.mark.parametrize("name", EQUIVALENT)
def test_a_change_that_changes_nothing_is_not_reported(name):
    file, old, new, kernel = EQUIVALENT[name]
    assert verdicts(kernel, changed(file, old, new)) == []


def test_the_unchanged_kernels_are_not_reported():
    assert not any(verdicts(kernel, {}) for kernel in ("csr_layer_mc", "masked_linear", "score_histogram"))
