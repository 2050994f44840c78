"""Uncertainty by moment propagation: one forward pass and one back, instead of 32 samples.

With k = p/(1-p) of each layer, h the first layer's activations, g = GELU and w a head, inverted dropout
gives the second layer's sums a the means W2*h + b2 and the variances k * sum_j (W2_oj*h_j)^2, and

    mean     = w . E[g(a)] + bias
    variance = k * sum_o w_o^2 * E[g(a_o)^2]  +  k * sum_j (h_j*J_j)^2,    J = W2^T (w . E[g'(a)])

The first sum is the dropout of the second layer, the second that of the first one.  The expectations are
taken to second order: with g(W2*h + b2) alone, trained nets came out up to 15 % too certain.  Both heads
are propagated; the log variance is taken as normal, so its exponential has the mean exp(m + v/2).  How near
this is to many samples is measured per net (bicep/calibration.py); the samples are the reference.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

from bicep.masks import SAMPLES
from bicep.plan.layout import (
    COLUMN_SIZE,
    DENSE,
    GROUP,
    GROUP_TAIL,
    INFERENCE,
    LINE,
    LOG_VARIANCE_MAX,
    LOG_VARIANCE_MIN,
    PLAN,
    SCRATCH,
    SLOT,
    WORK_AT,
)
from bicep.plan.moments import (
    activate,
    expect_outputs,
    group_sums,
    pull_groups,
    pull_slice,
    slice_sums,
)
from bicep.plan.vectors import to_variances
from ringbuf.jit import inlined
from ringbuf.memory import (
    clear,
    load_f32,
    load_f64,
    load_i32,
    load_i64,
    load_u32,
    store_f32,
    store_f64,
    store_i64,
)

_PLAN, _SLOT, _OUT, _SCRATCH = PLAN.at, SLOT.at, INFERENCE.at, SCRATCH.at
_LANES: Final = LINE // 4
# The n-th of them is the |mean| in deviations from which n more of 32 samples than half share its sign.
_AGREEMENT: Final = tuple(
    NormalDist().inv_cdf((n - 0.5) / SAMPLES) for n in range(SAMPLES // 2 + 1, SAMPLES + 1)
)


@inlined
def is_finite(value: float) -> bool:
    """Say that value is neither NaN nor infinite."""
    return value - value == 0.0


@inlined
def heads_of(plan: int, slot: int, behind: int) -> int:
    """Return the address of the heads' biases of a pack; behind: what follows W_x."""
    if load_u32(slot + _SLOT.kind) != DENSE:
        return behind
    units, outputs = load_i64(plan + _PLAN.hidden_one), load_i64(plan + _PLAN.hidden_two)
    return behind + outputs // GROUP * 4 * (units * GROUP + GROUP_TAIL)


@inlined
def first_slice(heads: int, outputs: int) -> int:
    """Return the address of the first slice of a CSR pack: behind the heads' line and the table of steps."""
    return heads + LINE + ((4 * (outputs // GROUP) + LINE - 1) & -LINE)


@inlined
def next_slice(place: int, steps: int) -> int:
    """Return the address of the slice behind the one at place."""
    return place + ((4 * GROUP_TAIL + steps * GROUP * (4 + COLUMN_SIZE) + LINE - 1) & -LINE)


@inlined
def _forward(plan: int, slot: int, behind: int, sums: int, spreads: int) -> None:
    """Write means and variances of the second layer's sums, in the order of the pack."""
    hidden = load_i64(plan + _PLAN.scratch) + _SCRATCH.hidden
    units, outputs = load_i64(plan + _PLAN.hidden_one), load_i64(plan + _PLAN.hidden_two)
    if load_u32(slot + _SLOT.kind) == DENSE:
        for n in range(outputs // GROUP):
            group = behind + n * 4 * (units * GROUP + GROUP_TAIL)
            group_sums(hidden, units, group, sums + 4 * GROUP * n, spreads + 4 * GROUP * n)
        return
    place = first_slice(behind, outputs)
    for n in range(outputs // GROUP):
        steps = load_i32(behind + LINE + 4 * n)
        slice_sums(hidden, steps, place, sums + 4 * GROUP * n, spreads + 4 * GROUP * n)
        place = next_slice(place, steps)


@inlined
def _add_group(tail: int, values: int, wide: int, pulls: int, head: int) -> tuple[float, float]:
    """Return what eight units give to a head and to its variance; write their pulls on it.

    values: of the eight units; wide: bytes from there to their squares, and from these to their slopes.
    """
    total, square = 0.0, 0.0
    for unit in range(GROUP):
        weight = load_f32(tail + 4 * (GROUP * (1 + head) + unit))
        total += weight * load_f32(values + 4 * unit)
        square += weight * weight * load_f32(values + wide + 4 * unit)
        store_f32(pulls + 4 * (GROUP * head + unit), weight * load_f32(values + 2 * wide + 4 * unit))
    return total, square


@inlined
def _back(plan: int, slot: int, behind: int, pulls: int, back: int) -> None:
    """Write the second layer's transpose times the pulls to back."""
    units, outputs = load_i64(plan + _PLAN.hidden_one), load_i64(plan + _PLAN.hidden_two)
    if load_u32(slot + _SLOT.kind) == DENSE:
        pull_groups(behind, units, outputs, pulls, back)
        return
    clear(back, 8 * units)
    place = first_slice(behind, outputs)
    for n in range(outputs // GROUP):
        steps = load_i32(behind + LINE + 4 * n)
        pull_slice(place, steps, pulls + LINE * n, back)
        place = next_slice(place, steps)


@inlined
def _agreement(mean: float, variance: float) -> int:
    """Return how many of 32 normal samples are expected to share the mean's sign."""
    agree = SAMPLES // 2 if mean != 0.0 else 0
    for bound in _AGREEMENT:
        agree += mean != 0.0 and mean * mean >= bound * bound * variance
    return agree


@inlined
def _write(scratch: int, moments: tuple[float, float, float, float], scale: float, out: int) -> bool:
    mean, variance, log_mean, log_variance = moments
    samples = scratch + _SCRATCH.samples
    noise = min(max(log_mean + 0.5 * log_variance, LOG_VARIANCE_MIN), LOG_VARIANCE_MAX)
    store_f32(samples + 4 * SAMPLES, noise)
    to_variances(samples)
    aleatoric = load_f32(samples + 4 * SAMPLES) * scale * scale
    store_f64(out + _OUT.mean, mean * scale)
    store_f64(out + _OUT.epistemic, variance * scale * scale)
    store_f64(out + _OUT.aleatoric, aleatoric)
    store_i64(out + _OUT.agree, _agreement(mean, variance))
    return is_finite(mean * scale) and is_finite(variance * scale * scale + log_mean + log_variance)


@inlined
def propagate(plan: int, slot: int, behind: int, scale: float, out: int) -> bool:
    """Write mean, variances and agreement of a net whose first layer stands in the scratch area.

    behind: the pack behind W_x.  Returns False when a number is not finite.
    """
    units, outputs = load_i64(plan + _PLAN.hidden_one), load_i64(plan + _PLAN.hidden_two)
    scratch = load_i64(plan + _PLAN.scratch)
    padding = outputs & (_LANES - 1)  # half a vector at the end of the outputs, or none
    wide = 4 * (outputs + padding)
    hidden, values = scratch + _SCRATCH.hidden, scratch + WORK_AT
    pulls = values + 3 * wide
    back = pulls + 8 * outputs
    activate(hidden, units)
    scale_one = load_f64(plan + _PLAN.mean_one)
    if scale_one != 1.0:
        for j in range(units):
            store_f32(hidden + 4 * j, load_f32(hidden + 4 * j) * scale_one)
    clear(values + 4 * outputs, 4 * padding)
    clear(values + wide + 4 * outputs, 4 * padding)
    _forward(plan, slot, behind, values, values + wide)
    odds_one, scale_two = load_f64(plan + _PLAN.odds_one), load_f64(plan + _PLAN.mean_two)
    expect_outputs(values, values + wide, outputs + padding, values + 2 * wide, odds_one)
    heads, place = heads_of(plan, slot, behind), first_slice(behind, outputs)
    mean, log_mean, own, log_own, through, log_through = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for n in range(outputs // GROUP):
        at, line = 4 * GROUP * n, pulls + LINE * n
        if load_u32(slot + _SLOT.kind) == DENSE:
            tail = behind + n * 4 * (units * GROUP + GROUP_TAIL) + 4 * units * GROUP
        else:
            tail = place
            place = next_slice(place, load_i32(behind + LINE + 4 * n))
        total, squares = _add_group(tail, values + at, wide, line, 0)
        log_total, log_squares = _add_group(tail, values + at, wide, line, 1)
        mean, own, log_mean, log_own = (
            mean + total, own + squares, log_mean + log_total, log_own + log_squares,
        )  # fmt: skip
    _back(plan, slot, behind, pulls, back)
    for j in range(units):
        value = load_f32(hidden + 4 * j)
        part, log_part = value * load_f32(back + 8 * j), value * load_f32(back + 8 * j + 4)
        through += part * part
        log_through += log_part * log_part
    odds_two, square = load_f64(plan + _PLAN.odds_two), scale_two * scale_two
    moments = (
        load_f32(heads) + scale_two * mean, square * (odds_two * own + odds_one * through),
        load_f32(heads + 4) + scale_two * log_mean, square * (odds_two * log_own + odds_one * log_through),
    )  # fmt: skip
    return _write(scratch, moments, scale, out)
