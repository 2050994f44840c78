"""The tick path of a plan: features in, mean and uncertainty out, no allocation, no exception.

One inference: the cached news half of the symbol plus W_x * features (first layer), GELU, dropout over 32
samples, second layer, GELU, dropout, two heads, then mean, spread, noise and agreement of the samples.
With no dropout on the input, W1 * [x; s] + b1 = W_x * x + (W_s * s + b1), and the bracket changes only
when news does: `refresh_news` computes it once per news state, for every expert.
"""

from __future__ import annotations

from typing import Final

from bicep.masks import SAMPLES
from bicep.plan.layout import (
    BAD_EXPERT,
    BAD_SYMBOL,
    GROUP,
    GROUP_TAIL,
    INFERENCE,
    JOB,
    NAN_INPUT,
    NAN_OUTPUT,
    NEWS_BUSY,
    OK,
    PLAN,
    SLOT,
    TILE,
    WIDTH_MAX,
)
from bicep.plan.vectors import group_outputs, spread_samples, tile_product, to_variances
from ringbuf.atomics import load_acquire
from ringbuf.jit import inlined, kernel
from ringbuf.memory import (
    clear,
    copy,
    load_f32,
    load_f64,
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
from ringbuf.records import CACHE_LINE, record
from ringbuf.seqlock import begin_write, end_write, read

_PLAN, _SLOT, _OUT, _JOB = PLAN.at, SLOT.at, INFERENCE.at, JOB.at
SLOT_SIZE, OUT_SIZE, JOB_SIZE = SLOT.size, INFERENCE.size, JOB.size

# One inference's working memory, owned by the agent that infers.
SCRATCH = record(
    "SCRATCH",
    f"""
    {WIDTH_MAX}f4 inputs    features, or an embedding, as float32
    {WIDTH_MAX}f4 start     cached news half
    {WIDTH_MAX}f4 hidden    first layer
    64f4        samples   mean and log variance of the 32 samples
    """,
)
_SCRATCH: Final = SCRATCH.at
SPREAD_AT: Final = SCRATCH.size  # behind it: float32[hidden_one][32], the first layer's samples

_MIX_ONE, _MIX_TWO = 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85  # odd multipliers below 2^63


@inlined
def mask_row(symbol: int, sequence: int, rows: int) -> int:
    """Return the row of a mask bank for (symbol, sequence); rows is a power of two."""
    mixed = wrapping_multiply(sequence ^ (symbol << 40), _MIX_ONE)
    mixed = wrapping_multiply(mixed ^ (mixed >> 32), _MIX_TWO)
    return (mixed >> 40) & (rows - 1)


@inlined
def is_finite(value: float) -> bool:
    """Say that value is neither NaN nor infinite."""
    return value - value == 0.0


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
    total = 0.0
    for k in range(load_i64(plan + _PLAN.n_tech)):
        value = load_f64(features + 8 * k)
        total += value - value  # 0, or NaN for NaN and infinity
        store_f32(inputs + 4 * k, value)
    return total == 0.0


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
def _sample_outputs(plan: int, groups: int, scratch: int, masks: int) -> None:
    """Run both dropouts, the second layer and the heads for all samples; groups: see layout.py."""
    units, outputs = load_i64(plan + _PLAN.hidden_one), load_i64(plan + _PLAN.hidden_two)
    group_size = 4 * (units * GROUP + GROUP_TAIL)
    heads = groups + outputs // GROUP * group_size
    samples, spread = scratch + _SCRATCH.samples, scratch + SPREAD_AT
    for s in range(SAMPLES):
        store_f32(samples + 4 * s, load_f32(heads))
        store_f32(samples + 4 * (SAMPLES + s), load_f32(heads + 4))
    spread_samples(scratch + _SCRATCH.hidden, masks, units, spread)
    for n in range(outputs // GROUP):
        group_outputs(spread, units, groups + n * group_size, masks + 4 * (units + n * GROUP), samples)
    to_variances(samples)


@inlined
def _summarise(samples: int, scale: float, out: int) -> bool:
    """Write mean, variances and agreement of the samples; False when one of them is not finite."""
    mean, aleatoric, squares, agree = 0.0, 0.0, 0.0, 0
    for s in range(SAMPLES):
        mean += load_f32(samples + 4 * s)
        aleatoric += load_f32(samples + 4 * (SAMPLES + s))
    mean /= SAMPLES
    for s in range(SAMPLES):
        value = load_f32(samples + 4 * s)
        squares += (value - mean) * (value - mean)
        agree += (mean > 0.0 and value > 0.0) or (mean < 0.0 and value < 0.0)
    store_f64(out + _OUT.mean, mean * scale)
    store_f64(out + _OUT.epistemic, squares / (SAMPLES - 1) * scale * scale)
    store_f64(out + _OUT.aleatoric, aleatoric / SAMPLES * scale * scale)
    store_i64(out + _OUT.agree, agree)
    return is_finite(mean * scale) and is_finite((squares + aleatoric) * scale * scale)


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
    rung = load_acquire(plan + _PLAN.rung)  # pairs with set_rung(): the rung's pack is visible
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
    row = mask_row(symbol, sequence, load_i64(plan + _PLAN.bank_rows))
    masks = load_i64(plan + _PLAN.bank) + row * 4 * (units + load_i64(plan + _PLAN.hidden_two))
    groups = _first_layer(plan, load_i64(slot + _SLOT.pack), scratch)
    _sample_outputs(plan, groups, scratch, masks)
    if not _summarise(scratch + _SCRATCH.samples, load_f64(plan + _PLAN.label_scale), out):
        _count(plan, _PLAN.nan_output)
        return _refuse(out, expert, NAN_OUTPUT)
    store_i64(out + _OUT.mask_index, row)
    store_i64(out + _OUT.news_version, version)
    store_u32(out + _OUT.bank, load_i64(plan + _PLAN.bank_number))
    store_u16(out + _OUT.status, OK)
    store_u16(out + _OUT.rung, rung)
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


@kernel
def refresh_news(plan: int, symbol: int, embedding: int) -> int:
    """Recompute the news half of a symbol for every expert; call it when the symbol's NEWS record changes.

    embedding: float32[n_news].  One agent alone may call this (the cells' writer); infer may run beside it.
    Returns OK, BAD_SYMBOL, or NAN_INPUT: then the cells keep what they have.
    """
    if symbol < 0 or symbol >= load_i64(plan + _PLAN.symbols_max):
        return BAD_SYMBOL
    n_news, units = load_i64(plan + _PLAN.n_news), load_i64(plan + _PLAN.hidden_one)
    for k in range(n_news):
        if not is_finite(load_f32(embedding + 4 * k)):
            return NAN_INPUT
    for expert in range(load_i64(plan + _PLAN.experts)):
        slot = _slot(plan, expert, 0)
        if load_u32(slot + _SLOT.served) != expert:
            continue  # a starved tag reads the cell of the expert that stands in for it
        bias = load_i64(slot + _SLOT.news)
        cell = _cell(plan, symbol, expert)
        target = begin_write(cell)
        for first in range(0, units, TILE):
            tile = bias + 4 * units + 4 * first * n_news
            tile_product(target + 4 * first, bias + 4 * first, tile, embedding, n_news)
        end_write(cell)
    _count(plan, _PLAN.refreshes)
    return OK


@kernel
def news_version(plan: int, symbol: int) -> int:
    """Return twice the number of news states a symbol has had (0 = no news yet), or BAD_SYMBOL."""
    if symbol < 0 or symbol >= load_i64(plan + _PLAN.symbols_max):
        return BAD_SYMBOL
    return load_acquire(_cell(plan, symbol, 0))  # pairs with end_write() in refresh_news()


assert SCRATCH.size % CACHE_LINE == 0
