"""Each kernel in NumPy, in float64, from its formulas: what the self-check compares with, and a CPU body.

A twin takes the kernel's arguments by name; arrays that the kernel fills are filled, counters are added
to.  It shares no line with the CUDA sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bicep.cuda.layout import JOB, MODEL, NEWS_EMBEDDING, NEWS_HALF
from bicep.cuda.model import decode_expert, model_sizes, read_job
from bicep.masks import DROP_PROBABILITY, SAMPLES, philox
from bicep.plan.layout import (
    BAD_EXPERT,
    INFERENCE,
    LOG_VARIANCE_MAX,
    LOG_VARIANCE_MIN,
    NAN_INPUT,
    NAN_OUTPUT,
    OK,
)

Array = NDArray[Any]
KEEP: Final = 1 - DROP_PROBABILITY


def gelu(x: Array) -> Array:
    """Return the tanh form of GELU."""
    result: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result


def gelu_slope(x: Array) -> Array:
    """Return the derivative of `gelu`."""
    inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    result: Array = 0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * slope
    return result


def keep_words(units: Array, row: Any, number: int, group: Any, key: tuple[int, int]) -> Array:
    """Return the mask words of units (arrays of one shape, or scalars)."""
    shape = np.broadcast_shapes(np.shape(units), np.shape(row), np.shape(group))
    counters = np.empty((*shape, 4), np.uint32)
    counters[..., 0], counters[..., 1], counters[..., 2], counters[..., 3] = units, row, number, group
    drawn = philox(counters.reshape(-1, 4), key)
    return (drawn[:, 0] | drawn[:, 1] | drawn[:, 2]).reshape(shape)


def keep_bits(words: Array) -> Array:
    """Return 0/1 float64 [..., 32]: bit s of each word."""
    return ((words[..., None] >> np.arange(SAMPLES, dtype=np.uint32)) & 1).astype(np.float64)


def _philox_words(*, counters: Array, left: int, right: int, words: Array, **_: Any) -> None:
    words[:] = philox(counters, (left, right))


def _mask_words(
    *, rows: int, units: int, number: int, group: int, left: int, right: int, words: Array
) -> None:
    grid = np.meshgrid(np.arange(units), np.arange(rows))
    words[:] = keep_words(grid[0], grid[1], number, group, (left, right))


def _scores(weights: Array, norms: Array | None) -> NDArray[np.uint32]:
    scores = np.abs(weights) if norms is None else np.abs(weights) * np.abs(norms)
    return np.ascontiguousarray(scores, np.float32).view(np.uint32)


def _score_histogram(
    *, weights: Array, norms: Array | None, prefix: int, shift: int, bits: int, counts: Array, **_: Any
) -> None:
    scores = _scores(weights, norms).reshape(-1).astype(np.uint64)
    scores = scores[scores >> np.uint64(shift + bits) == prefix]
    digits = (scores >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
    counts += np.bincount(digits.astype(np.int64), minlength=1 << bits).astype(counts.dtype)


def _score_mask(
    *, weights: Array, norms: Array | None, least: int, mask: Array, kept: Array, **_: Any
) -> None:
    mask[:] = _scores(weights, norms) >= least
    kept += mask.sum(dtype=kept.dtype)


def _best_two(weights: Array) -> Array:
    order = np.argsort(-np.abs(weights.reshape(-1, 4)), axis=1, kind="stable")[:, :2]
    return np.sort(order, axis=1)


def _mask_2_4(*, weights: Array, mask: Array, **_: Any) -> None:
    four = np.zeros((weights.size // 4, 4), mask.dtype)
    np.put_along_axis(four, _best_two(weights), 1, axis=1)
    mask[:] = four.reshape(mask.shape)


def _compress_2_4(*, weights: Array, values: Array, positions: Array, **_: Any) -> None:
    best = _best_two(weights)
    values[:] = np.take_along_axis(weights.reshape(-1, 4), best, axis=1).reshape(values.shape)
    positions[:] = (best[:, 0] | best[:, 1] << 2).reshape(positions.shape)


def _expand_2_4(*, values: Array, positions: Array, weights: Array, **_: Any) -> None:
    four = np.zeros((positions.size, 4), weights.dtype)
    places = np.stack([positions.reshape(-1) & 3, positions.reshape(-1) >> 2 & 3], axis=1).astype(np.int64)
    np.put_along_axis(four, places, values.reshape(-1, 2), axis=1)
    weights[:] = four.reshape(weights.shape)


def _check_2_4(*, weights: Array, bad: Array, **_: Any) -> None:
    bad += ((weights.reshape(-1, 4) != 0).sum(1) > 2).sum(dtype=bad.dtype)


def _csr_layer_mc(
    *, rows: Array, columns: Array, weights: Array, bias: Array, x: Array, units: int, samples: int,
    first_unit: int, row: int, number: int, left: int, right: int, y: Array, **_: Any,
) -> None:  # fmt: skip
    dense = np.zeros((units, len(x)))
    dense[np.repeat(np.arange(units), np.diff(rows)), columns] = weights
    value = gelu(dense @ x.reshape(len(x), -1).astype(np.float64) + bias[:, None])
    unit, group = np.meshgrid(np.arange(units) + first_unit, np.arange(samples // SAMPLES), indexing="ij")
    bits = keep_bits(keep_words(unit, row, number, group, (left, right))).reshape(units, samples)
    y[:] = value * bits / KEEP


def _row_keep(n: int, outputs: int, drop: int, number: int, key: tuple[int, int]) -> Array:
    """Return keep * scale of each (row, output): bit row % 32 of the word (output, row / 32)."""
    if not drop:
        return np.ones((n, outputs))
    unit, row = np.meshgrid(np.arange(outputs), np.arange(-(-n // SAMPLES)))
    bits = keep_bits(keep_words(unit, row, number, 0, key)).transpose(0, 2, 1)
    return bits.reshape(-1, outputs)[:n] / KEEP


def _masked_linear(
    *, x: Array, weights: Array, mask: Array, bias: Array | None, n: int, outputs: int, activate: int,
    drop: int, number: int, left: int, right: int, pre: Array | None, y: Array, **_: Any,
) -> None:  # fmt: skip
    sums = x.astype(np.float64) @ np.where(mask, weights, 0).astype(np.float64).T
    sums = sums if bias is None else sums + bias
    if pre is not None:
        pre[:] = sums
    y[:] = (gelu(sums) if activate else sums) * _row_keep(n, outputs, drop, number, (left, right))


def _masked_linear_inner(
    *, grad: Array, pre: Array, n: int, outputs: int, activate: int, drop: int, number: int, left: int,
    right: int, inner: Array,
) -> None:  # fmt: skip
    slope = gelu_slope(pre.astype(np.float64)) if activate else 1.0
    inner[:] = grad * slope * _row_keep(n, outputs, drop, number, (left, right))


def _masked_linear_dx(*, inner: Array, weights: Array, mask: Array, dx: Array, **_: Any) -> None:
    dx[:] = inner.astype(np.float64) @ np.where(mask, weights, 0).astype(np.float64)


def _masked_linear_dw(
    *, inner: Array, x: Array, rows: Array, columns: Array, outputs: int, dw: Array, db: Array, **_: Any
) -> None:
    whole = inner.astype(np.float64).T @ x.astype(np.float64)
    dw[:] = whole[np.repeat(np.arange(outputs), np.diff(rows)), columns]
    db[:] = inner.astype(np.float64).sum(0)


def _heads(weights: Any, start: Array, features: Array, words: Array) -> tuple[Array, Array]:
    """Return mean and log variance of each sample; words [units, groups]."""
    units = len(weights.bias_one)
    bits = keep_bits(words).reshape(len(words), -1) / KEEP
    hidden = gelu(weights.tech.astype(np.float64) @ features + start)[:, None] * bits[:units]
    outputs = gelu(weights.second.astype(np.float64) @ hidden + weights.bias_two[:, None]) * bits[units:]
    mean = weights.mean_head.astype(np.float64) @ outputs + weights.biases[0]
    return mean, weights.variance_head.astype(np.float64) @ outputs + weights.biases[1]


def answer(model: Array, record: Array) -> Array:
    """Return the INFERENCE record of one job's bytes."""
    out = np.zeros(1, INFERENCE.dtype)
    sizes, header = model_sizes(model), model[: MODEL.size].view(MODEL.dtype)[0]
    behind = {NEWS_HALF: sizes["hidden_one"], NEWS_EMBEDDING: sizes["n_news"]}
    kind = int(record[: JOB.size].view(JOB.dtype)["news"][0])
    head, features, news = read_job(record, sizes["n_tech"], behind.get(kind, 0))
    tag = int(head["expert"])
    if not 0 <= tag < header["experts"]:
        out["status"], out["expert"] = BAD_EXPERT, 255
        return out
    out["expert"] = tag
    if not (np.isfinite(features).all() and (head["news"] != NEWS_EMBEDDING or np.isfinite(news).all())):
        out["status"] = NAN_INPUT
        return out
    weights, served = decode_expert(model, tag)
    start = news.astype(np.float64) if head["news"] == NEWS_HALF else weights.bias_one.astype(np.float64)
    if head["news"] == NEWS_EMBEDDING:
        start = start + weights.news.astype(np.float64) @ news
    unit, group = np.meshgrid(
        np.arange(sizes["hidden_one"] + sizes["hidden_two"]), np.arange(sizes["groups"]), indexing="ij"
    )
    key = int(header["key_left"]), int(header["key_right"])
    words = keep_words(unit, int(head["mask_index"]), int(header["bank_number"]), group, key)
    with np.errstate(all="ignore"):
        mean, log_variance = _heads(weights, start, features.astype(np.float32).astype(np.float64), words)
        noise = np.exp(np.clip(log_variance, LOG_VARIANCE_MIN, LOG_VARIANCE_MAX))
        numbers = mean.mean(), mean.var(ddof=1), noise.mean()
    if not np.isfinite(numbers).all() or np.abs(mean).max() > np.finfo(np.float32).max:
        out["status"] = NAN_OUTPUT
        return out
    scale = float(header["label_scale"])
    out["mean"], out["epistemic"], out["aleatoric"] = np.array(numbers) * [scale, scale**2, scale**2]
    out["agree"] = (np.sign(mean) * np.sign(numbers[0]) > 0).sum()
    out["status"], out["served"], out["rung"] = OK, served, header["rung"]
    for field in ("mask_index", "news_version"):
        out[field] = head[field]
    out["bank"] = header["bank_number"]
    return out


def _expert_batch(*, model: Array, jobs: Array, job_size: int, count: int, answers: Array) -> None:
    whole = np.ascontiguousarray(jobs).view(np.uint8).reshape(-1)
    target = answers.view(INFERENCE.dtype).reshape(-1)
    for n in range(count):
        target[n] = answer(model, whole[n * job_size : (n + 1) * job_size])[0]


def _fold(old: Array, value: Array, bar: int, first: int, bars: int) -> Array:
    if bar < first:
        return old
    if bar < first + bars:
        return (old + value) / (bars if bar == first + bars - 1 else 1)
    return (value - old) * (2 / (bars + 1)) + old


def _wilder(old: Array, value: Array, bar: int, bars: int) -> Array:
    if bar <= bars:
        return (old + value) / (bars if bar == bars else 1)
    return (old * (bars - 1) + value) / bars


def _indicators(
    *, close: Array, high: Array, low: Array, bars: int, instruments: int, out: Array, **_: Any
) -> None:
    gain, loss, spread, mean, fast, slow, signal = np.zeros((7, instruments))
    out[:] = np.nan
    for bar in range(bars):
        now = close[bar]
        if bar:
            before = close[bar - 1]
            gain = _wilder(gain, np.maximum(now - before, 0), bar, 14)
            loss = _wilder(loss, np.maximum(before - now, 0), bar, 14)
            spread = _wilder(spread, np.maximum(high[bar], before) - np.minimum(low[bar], before), bar, 14)
        mean, fast = _fold(mean, now, bar, 0, 20), _fold(fast, now, bar, 14, 12)
        slow = _fold(slow, now, bar, 0, 26)
        signal = _fold(signal, fast - slow, bar, 25, 9)
        if bar >= 14:
            both = gain + loss
            moving = both > 1e-9
            out[0, bar] = np.where(moving, 100 * gain / np.where(moving, both, 1), 50.0)
            out[4, bar] = spread
        if bar >= 19:
            out[1, bar] = mean
        if bar >= 33:
            out[2, bar], out[3, bar] = fast - slow, signal


def _rolling_correlation(
    *, values: Array, pairs: Array, times: int, window: int, out: Array, **_: Any
) -> None:
    out[:] = np.nan
    if times < window:
        return
    views = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)  # [time, instrument, window]
    views = views - views.mean(-1, keepdims=True)
    norms = np.sqrt((views**2).sum(-1))
    for n, (one, two) in enumerate(pairs.reshape(-1, 2)):
        scale = norms[:, one] * norms[:, two]
        product = (views[:, one] * views[:, two]).sum(-1)
        out[n, window - 1 :] = np.where(scale > 0, product / np.where(scale > 0, scale, 1), 0.0)


def _price_paths(
    *, spot: Array, drift: Array, volatility: Array, assets: int, paths: int, steps: int, number: int,
    left: int, right: int, last: Array, lowest: Array, highest: Array,
) -> None:  # fmt: skip
    turns = -(-steps // 4)
    counters = np.zeros((assets, paths, turns, 4), np.uint32)
    counters[..., 0] = np.arange(paths)[None, :, None]
    counters[..., 1] = np.arange(turns)[None, None, :]
    counters[..., 2] = np.arange(assets)[:, None, None]
    counters[..., 3] = number
    words = philox(counters.reshape(-1, 4), (left, right)).reshape(assets, paths, turns, 2, 2)
    uniform = (words.astype(np.float64) + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(uniform[..., 0])), 2 * math.pi * uniform[..., 1]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(assets, paths, -1)
    noise = volatility.astype(np.float64)[:, None, None]
    trend = drift.astype(np.float64)[:, None, None] - noise**2 / 2
    price = np.cumsum(trend + noise * normal[..., :steps], axis=-1)
    start = spot.astype(np.float64)[:, None]
    last[:] = start * np.exp(price[..., -1])
    lowest[:] = start * np.exp(np.minimum(price.min(-1), 0))
    highest[:] = start * np.exp(np.maximum(price.max(-1), 0))


TWINS: Final[dict[str, Callable[..., None]]] = {
    "philox_words": _philox_words,
    "mask_words": _mask_words,
    "score_histogram": _score_histogram,
    "score_mask": _score_mask,
    "mask_2_4": _mask_2_4,
    "compress_2_4": _compress_2_4,
    "expand_2_4": _expand_2_4,
    "check_2_4": _check_2_4,
    "csr_layer_mc": _csr_layer_mc,
    "masked_linear": _masked_linear,
    "masked_linear_inner": _masked_linear_inner,
    "masked_linear_dx": _masked_linear_dx,
    "masked_linear_dw": _masked_linear_dw,
    "expert_batch": _expert_batch,
    "indicators": _indicators,
    "rolling_correlation": _rolling_correlation,
    "price_paths": _price_paths,
}
