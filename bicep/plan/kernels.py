"""The tick path of a plan: features in, mean and uncertainty out, no allocation, no exception.

One inference: the cached news half of the symbol plus W_x * features (first layer), GELU, dropout over 32
samples, second layer, GELU, dropout, two heads, then mean, spread, noise and agreement of the samples.
With no dropout on the input, W1 * [x; s] + b1 = W_x * x + (W_s * s + b1), and the bracket changes only
when news does: `refresh_news` computes it once per news state, for every expert.
"""

from __future__ import annotations

from typing import Final

from bicep.masks import SAMPLES
from bicep.plan.analytic import first_slice, heads_of, is_finite, next_slice, propagate
from bicep.plan.layout import (
    ANALYTIC,
    BAD_EXPERT,
    BAD_RUNG,
    BAD_SYMBOL,
    DENSE,
    GROUP,
    GROUP_TAIL,
    INFERENCE,
    JOB,
    LINE,
    MC_32,
    NAN_INPUT,
    NAN_OUTPUT,
    NEWS_BUSY,
    OK,
    PLAN,
    RUNGS_MAX,
    SCRATCH,
    SLOT,
    TILE,
    WORK_AT,
)
from bicep.plan.slices import group_outputs_16, slice_outputs, slice_outputs_16, spread_samples_16
from bicep.plan.vectors import group_outputs, spread_samples, tile_product, to_variances
from ringbuf.atomics import load_acquire, store_release
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    clear,
    copy,
    load_f32,
    load_f64,
    load_i32,
    load_i64,
    load_u32,
    prefetch,
    store_f32,
    store_f64,
    store_i64,
    store_u8,
    store_u16,
    store_u32,
    wrapping_multiply,
)
from ringbuf.seqlock import begin_write, end_write, read

_PLAN, _SLOT, _OUT, _JOB = PLAN.at, SLOT.at, INFERENCE.at, JOB.at
SLOT_SIZE, OUT_SIZE, JOB_SIZE = SLOT.size, INFERENCE.size, JOB.size

_SCRATCH: Final = SCRATCH.at

_EXPONENT: Final = 0x7FF << 52  # of a float64: all ones in NaN and infinity
_EXPONENT_32: Final = 0xFF << 23  # of a float32
_MODE_SHIFT: Final = RUNGS_MAX.bit_length() - 1
_MIX_ONE, _MIX_TWO = 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85  # odd multipliers below 2^63


@inlined
def mask_row(symbol: int, sequence: int, rows: int) -> int:
    """Return the row of a mask bank for (symbol, sequence); rows is a power of two."""
    mixed = wrapping_multiply(sequence ^ (symbol << 40), _MIX_ONE)
    mixed = wrapping_multiply(mixed ^ (mixed >> 32), _MIX_TWO)
    return (mixed >> 40) & (rows - 1)


@inlined
def _count(plan: int, field: int) -> None:
    store_i64(plan + field, load_i64(plan + field) + 1)


@inlined
def _slot(plan: int, expert: int, rung: int) -> int:
    return load_i64(plan + _PLAN.table) + (expert * load_i64(plan + _PLAN.rungs) + rung) * SLOT_SIZE


@inlined
def _cell(plan: int, symbol: int, served: int) -> int:
    index = symbol * load_i64(plan + _PLAN.experts) + served
    return load_i64(plan + _PLAN.cells) + index * load_i64(plan + _PLAN.cell_size)


@inlined
def _refuse(out: int, expert: int, status: int) -> int:
    clear(out, OUT_SIZE)
    store_u16(out + _OUT.status, status)
    store_u8(out + _OUT.expert, expert)
    return status


@inlined
def _take_features(plan: int, features: int, inputs: int) -> bool:
    """Copy the features to inputs as float32; False when one is not finite."""
    strange = 0
    for k in range(load_i64(plan + _PLAN.n_tech)):
        strange |= (
            load_i64(features + 8 * k) & _EXPONENT == _EXPONENT
        )  # NaN or infinity; in words, not in turn
        store_f32(inputs + 4 * k, load_f64(features + 8 * k))
    return strange == 0


@inlined
def _first_layer(plan: int, pack: int, scratch: int) -> int:
    """Compute the first layer before its activation; return the address of what follows W_x in the pack."""
    units, n_tech = load_i64(plan + _PLAN.hidden_one), load_i64(plan + _PLAN.n_tech)
    for first in range(0, units, TILE):
        tile_product(
            scratch + _SCRATCH.hidden + 4 * first,
            scratch + _SCRATCH.start + 4 * first,
            pack + 4 * first * n_tech,
            scratch + _SCRATCH.inputs,
            n_tech,
        )
    return pack + 4 * units * n_tech


@inlined
def _dense_outputs(plan: int, groups: int, scratch: int, masks: int, mode: int) -> None:
    units, outputs = load_i64(plan + _PLAN.hidden_one), load_i64(plan + _PLAN.hidden_two)
    group_size = 4 * (units * GROUP + GROUP_TAIL)
    samples, spread = scratch + _SCRATCH.samples, scratch + WORK_AT
    for n in range(outputs // GROUP):
        words = masks + 4 * (units + n * GROUP)
        if mode == MC_32:
            group_outputs(spread, units, groups + n * group_size, words, samples)
        else:
            group_outputs_16(spread, units, groups + n * group_size, words, samples)


@inlined
def _sparse_outputs(plan: int, heads: int, scratch: int, masks: int, mode: int) -> None:
    units, outputs = load_i64(plan + _PLAN.hidden_one), load_i64(plan + _PLAN.hidden_two)
    samples, spread = scratch + _SCRATCH.samples, scratch + WORK_AT
    place = first_slice(heads, outputs)
    for n in range(outputs // GROUP):
        steps = load_i32(heads + LINE + 4 * n)
        if mode == MC_32:
            slice_outputs(spread, steps, place, masks + 4 * units, samples)
        else:
            slice_outputs_16(spread, steps, place, masks + 4 * units, samples)
        place = next_slice(place, steps)


@inlined
def _sample_outputs(plan: int, slot: int, behind: int, scratch: int, masks: int, mode: int) -> None:
    """Run both dropouts, the second layer and the heads for all samples; behind: the pack behind W_x."""
    units, heads = load_i64(plan + _PLAN.hidden_one), heads_of(plan, slot, behind)
    samples, spread = scratch + _SCRATCH.samples, scratch + WORK_AT
    for s in range(SAMPLES):
        store_f32(samples + 4 * s, load_f32(heads))
        store_f32(samples + 4 * (SAMPLES + s), load_f32(heads + 4))
    if mode == MC_32:
        spread_samples(scratch + _SCRATCH.hidden, masks, units, spread)
    else:
        spread_samples_16(scratch + _SCRATCH.hidden, masks, units, spread)
    if load_u32(slot + _SLOT.kind) == DENSE:
        _dense_outputs(plan, behind, scratch, masks, mode)
    else:
        _sparse_outputs(plan, behind, scratch, masks, mode)
    to_variances(samples)


@inlined
def _sum_of_four(addr: int) -> float:
    return (load_f32(addr) + load_f32(addr + 4)) + (load_f32(addr + 8) + load_f32(addr + 12))


@inlined
def _summarise(samples: int, count: int, scale: float, out: int) -> bool:
    """Write mean, variances and agreement of the samples; False when one of them is not finite."""
    mean, aleatoric, squares, agree = 0.0, 0.0, 0.0, 0
    for s in range(0, count, 4):  # by fours: a sum of 32 in turn waits for each addition
        mean += _sum_of_four(samples + 4 * s)
        aleatoric += _sum_of_four(samples + 4 * (SAMPLES + s))
    mean /= count
    for s in range(0, count, 4):
        first, second = load_f32(samples + 4 * s) - mean, load_f32(samples + 4 * s + 4) - mean
        third, fourth = load_f32(samples + 4 * s + 8) - mean, load_f32(samples + 4 * s + 12) - mean
        squares += (first * first + second * second) + (third * third + fourth * fourth)
    for s in range(count):
        value = load_f32(samples + 4 * s)
        agree += (mean > 0.0 and value > 0.0) or (mean < 0.0 and value < 0.0)
    store_f64(out + _OUT.mean, mean * scale)
    store_f64(out + _OUT.epistemic, squares / (count - 1) * scale * scale)
    store_f64(out + _OUT.aleatoric, aleatoric / count * scale * scale)
    store_i64(out + _OUT.agree, agree * (SAMPLES // count))
    return is_finite(mean * scale) and is_finite((squares + aleatoric) * scale * scale)


@inlined
def _answer(plan: int, slot: int, row: int, mode: int, out: int) -> bool:
    """Write the numbers of an answer; False when one of them is not finite.  The scratch holds the inputs."""
    scratch, scale = load_i64(plan + _PLAN.scratch), load_f64(plan + _PLAN.label_scale)
    units = load_i64(plan + _PLAN.hidden_one)
    behind = _first_layer(plan, load_i64(slot + _SLOT.pack), scratch)
    if mode == ANALYTIC:
        return propagate(plan, slot, behind, scale, out)
    masks = load_i64(plan + _PLAN.bank) + row * 4 * (units + load_i64(plan + _PLAN.hidden_two))
    _sample_outputs(plan, slot, behind, scratch, masks, mode)
    return _summarise(scratch + _SCRATCH.samples, SAMPLES >> mode, scale, out)


@kernel
def infer(plan: int, expert: int, features: int, symbol: int, sequence: int, out: int) -> int:
    """Evaluate the expert of a tag for a symbol; write one INFERENCE to out and return its status.

    plan: address of a PLAN; features: float64[n_tech], normalised; sequence: with symbol it picks the masks.
    Returns OK, or a status below 0: then out says so and holds no number.
    """
    if expert < 0 or expert >= load_i64(plan + _PLAN.experts):
        _count(plan, _PLAN.bad_expert)
        return _refuse(out, 255, BAD_EXPERT)
    if symbol < 0 or symbol >= load_i64(plan + _PLAN.symbols_max):
        _count(plan, _PLAN.bad_symbol)
        return _refuse(out, expert, BAD_SYMBOL)
    word = load_acquire(plan + _PLAN.rung)  # pairs with set_rung(): the rung's pack is visible
    rung, mode = word & (RUNGS_MAX - 1), word >> _MODE_SHIFT
    if rung >= load_i64(plan + _PLAN.rungs) or mode < 0 or mode > ANALYTIC:
        _count(plan, _PLAN.bad_rung)
        return _refuse(out, expert, BAD_RUNG)
    slot = _slot(plan, expert, rung)
    served, scratch = load_u32(slot + _SLOT.served), load_i64(plan + _PLAN.scratch)
    units = load_i64(plan + _PLAN.hidden_one)
    if not _take_features(plan, features, scratch + _SCRATCH.inputs):
        _count(plan, _PLAN.nan_input)
        return _refuse(out, expert, NAN_INPUT)
    version = read(_cell(plan, symbol, served), scratch + _SCRATCH.start, 4 * units)
    if version < 0:
        _count(plan, _PLAN.news_busy)
        return _refuse(out, expert, NEWS_BUSY)
    if version == 0:  # no news ever: the half of an embedding of zeros is the bias, first in the news pack
        copy(scratch + _SCRATCH.start, load_i64(slot + _SLOT.news), 4 * units)
    row = mask_row(symbol, sequence, load_i64(plan + _PLAN.bank_rows)) if mode != ANALYTIC else 0
    if not _answer(plan, slot, row, mode, out):
        _count(plan, _PLAN.nan_output)
        return _refuse(out, expert, NAN_OUTPUT)
    store_i64(out + _OUT.mask_index, row)
    store_i64(out + _OUT.news_version, version)
    store_u32(out + _OUT.bank, load_i64(plan + _PLAN.bank_number))
    store_u16(out + _OUT.status, OK)
    store_u16(out + _OUT.rung, word)
    store_u8(out + _OUT.expert, expert)
    store_u8(out + _OUT.served, served)
    clear(out + _OUT.pad, OUT_SIZE - _OUT.pad)
    _count(plan, _PLAN.inferences)
    return OK


@kernel
def infer_batch(plan: int, jobs: int, count: int, out: int) -> int:
    """Evaluate `count` JOB records into as many INFERENCE records; return how many were answered."""
    answered = 0
    for n in range(count):
        job = jobs + n * JOB_SIZE
        if n + 1 < count:
            prefetch(load_i64(job + JOB_SIZE + _JOB.features))
        status = infer(
            plan,
            load_i64(job + _JOB.expert),
            load_i64(job + _JOB.features),
            load_i64(job + _JOB.symbol),
            load_i64(job + _JOB.sequence),
            out + n * OUT_SIZE,
        )
        answered += status == OK
    return answered


@inlined
def _write_half(plan: int, expert: int, symbol: int, embedding: int) -> None:
    """Compute the news half of a symbol for an expert that serves itself."""
    n_news, units = load_i64(plan + _PLAN.n_news), load_i64(plan + _PLAN.hidden_one)
    bias, cell = load_i64(_slot(plan, expert, 0) + _SLOT.news), _cell(plan, symbol, expert)
    target = begin_write(cell)
    for first in range(0, units, TILE):
        tile = bias + 4 * units + 4 * first * n_news
        tile_product(target + 4 * first, bias + 4 * first, tile, embedding, n_news)
    end_write(cell)


@inlined
def _check_news(plan: int, symbol: int, embedding: int) -> int:
    if symbol < 0 or symbol >= load_i64(plan + _PLAN.symbols_max):
        return BAD_SYMBOL
    strange = 0
    for k in range(load_i64(plan + _PLAN.n_news)):  # without a branch: sixteen words at a time
        strange |= load_u32(embedding + 4 * k) & _EXPONENT_32 == _EXPONENT_32
    return OK if strange == 0 else NAN_INPUT


@kernel
def refresh_expert(plan: int, expert: int, symbol: int, embedding: int) -> int:
    """Do what refresh_news does for one expert: before an inference, the cost of having nothing cached."""
    if expert < 0 or expert >= load_i64(plan + _PLAN.experts):
        return BAD_EXPERT
    status = _check_news(plan, symbol, embedding)
    if status == OK:
        _write_half(plan, load_u32(_slot(plan, expert, 0) + _SLOT.served), symbol, embedding)
    return status


@kernel
def refresh_news(plan: int, symbol: int, embedding: int) -> int:
    """Recompute the news half of a symbol for every expert; call it when the symbol's NEWS record changes.

    embedding: float32[n_news].  One agent alone may call this (the cells' writer); infer may run beside it.
    Returns OK, BAD_SYMBOL, or NAN_INPUT: then the cells keep what they have.
    """
    status = _check_news(plan, symbol, embedding)
    if status != OK:
        return status
    for expert in range(load_i64(plan + _PLAN.experts)):
        # A starved tag reads the cell of the expert that stands in for it.
        if load_u32(_slot(plan, expert, 0) + _SLOT.served) == expert:
            _write_half(plan, expert, symbol, embedding)
    _count(plan, _PLAN.refreshes)
    return OK


@kernel
def news_version(plan: int, symbol: int) -> int:
    """Return twice the number of news states a symbol has had (0 = no news yet), or BAD_SYMBOL."""
    if symbol < 0 or symbol >= load_i64(plan + _PLAN.symbols_max):
        return BAD_SYMBOL
    return load_acquire(_cell(plan, symbol, 0))  # pairs with end_write() in refresh_news()


@kernel
def set_rung(plan: int, rung: int, mode: int) -> int:
    """Make the next inference use a rung and a mode, by one store; return OK, or BAD_RUNG and change nothing.

    One writer alone: the control loop.  The cached news halves stay valid: they belong to all rungs.
    """
    if rung < 0 or rung >= load_i64(plan + _PLAN.rungs) or mode < 0 or mode > ANALYTIC:
        return BAD_RUNG
    store_release(plan + _PLAN.rung, rung + RUNGS_MAX * mode)  # pairs with load_acquire() in infer()
    return OK
