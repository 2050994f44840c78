"""Records that the device and the host share, declared once; the C header is written from them.

A model on the device is one block of bytes, so a new one is one copy and one pointer:

MODEL | EXPERT per tag | rows, entries, biases, heads of each expert that serves itself (offsets in EXPERT)

A job is a JOB, its features (float64[n_tech]) and its news: nothing, the cached news half of the first layer
(float32[hidden_one]), or the embedding itself (float32[n_news]).  It carries all that its answer depends on
but the weights, so it can be answered anywhere.  The answer is the CPU plan's INFERENCE record.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from bicep.masks import SAMPLES
from bicep.plan.layout import INFERENCE, LOG_VARIANCE_MAX, LOG_VARIANCE_MIN, STATUS_NAMES
from ringbuf import spsc
from ringbuf.records import Record, record

NEWS_NONE, NEWS_HALF, NEWS_EMBEDDING = 0, 1, 2  # JOB.news
GROUPS_MAX: Final = 32  # of 32 samples each
COMMAND_STOP, COMMAND_IDLE = -1, -2  # MAILBOX.ended
_LINE: Final = 64

MODEL = record(
    "MODEL",
    """
    i8  size         bytes of the whole model
    f8  label_scale  the net's output of 1 is a return of this size
    i4  n_tech       features
    i4  n_news       dimensions of an embedding
    i4  hidden_one   units of the first layer
    i4  hidden_two   units of the second layer
    i4  experts      EXPERT rows behind this record
    i4  groups       Monte-Carlo samples / 32
    i4  rung         of the ladder that these weights are
    u4  bank_number  of the mask bank
    u4  key_left     of the generator
    u4  key_right    of the generator
    2i4 pad          zero
    """,
)

EXPERT = record(
    "EXPERT",
    """
    i8  tech_rows       int32[hidden_one + 1]: where the entries of a row begin
    i8  tech_entries    ENTRY[...]
    i8  news_rows       int32[hidden_one + 1]
    i8  news_entries    ENTRY[...]
    i8  second_rows     int32[hidden_two + 1]
    i8  second_entries  ENTRY[...]
    i8  bias_one        float32[hidden_one]
    i8  bias_two        float32[hidden_two]
    i8  heads           float32[hidden_two] mean, [hidden_two] log variance, [2] their biases
    i4  served          expert that answers for this tag
    13i4 pad            zero
    """,
)

ENTRY = record(
    "ENTRY",
    """
    i4  column  input that the weight belongs to
    f4  weight  not zero, or kept as zero by the mask
    """,
    line=8,
)

JOB = record(
    "JOB",
    """
    i8  sequence      market sequence number behind the features
    i8  symbol        stock locate
    i8  expert        tag that is asked for
    i8  mask_index    row of the mask bank
    i8  news_version  version of the cached news half, 0 = no news yet
    i8  news          NEWS_NONE, NEWS_HALF or NEWS_EMBEDDING: what stands behind the features
    2i8 pad           zero
    """,
)

MAILBOX = record(
    "MAILBOX",
    """
    i8   stop         1 = end                                 (this pair of lines: written by the host)
    i8   model        address of the model on the device
    i8   epoch        number of the model
    i8   idle_limit   polls without a job after which the kernel ends by itself
    12i8 host_pad     zero
    i8   heartbeat    polls so far                            (this pair of lines: written by the device)
    i8   epoch_taken  number of the model of the last job
    i8   ended        0 = runs, else COMMAND_STOP or COMMAND_IDLE
    13i8 device_pad   zero
    """,
)

RING_WORDS: Final = ("TAIL", "MASK", "RECORD_SIZE", "HEAD", "HEADER_SIZE")
STRUCTS: Final = {"Model": MODEL, "Expert": EXPERT, "Entry": ENTRY, "Job": JOB, "Inference": INFERENCE}


def _struct(name: str, source: Record) -> str:
    lines = []
    for field, (dtype, *_) in (source.dtype.fields or {}).items():
        base, shape = dtype.base, dtype.shape
        kind = {"i": "i", "u": "u", "f": "f"}[base.kind] + str(8 * base.itemsize)
        lines.append(f"    {kind} {field}{f'[{shape[0]}]' if shape else ''};")
    body = "\n".join(lines)
    return f'struct {name} {{\n{body}\n}};\nstatic_assert(sizeof({name}) == {source.size}, "{name}");\n'


def header() -> str:
    """Return the text of layouts.cuh: structs of the records, offsets of mailbox and ring, the limits."""
    offsets = [f"MAILBOX_{field.upper()} = {at}" for field, at in MAILBOX.at._asdict().items()]
    offsets += [f"RING_{word} = {getattr(spsc, word)}" for word in RING_WORDS]
    offsets += [f"STATUS_{name.upper()} = {code}" for code, name in STATUS_NAMES.items()]
    return (
        "#pragma once\n"
        + "".join(_struct(name, source) for name, source in STRUCTS.items())
        + "enum {\n"
        + "".join(f"    {line},\n" for line in offsets)
        + "};\n"
        + f"#define LOG_VARIANCE_LEAST {LOG_VARIANCE_MIN}f\n#define LOG_VARIANCE_MOST {LOG_VARIANCE_MAX}f\n"
    )


def job_size(n_tech: int, n_news: int, hidden_one: int, news: int = NEWS_HALF) -> int:
    """Return the bytes of a job that brings `news`: a multiple of a cache line, so that rings can hold it."""
    behind = {NEWS_NONE: 0, NEWS_HALF: hidden_one, NEWS_EMBEDDING: n_news}[news]
    return -(-(JOB.size + 8 * n_tech + 4 * behind) // _LINE) * _LINE


def job_record(n_tech: int, n_news: int, hidden_one: int, news: int = NEWS_HALF) -> Record:
    """Return the record of a job with its features and room for its news, for rings and numpy."""
    behind = {NEWS_NONE: 0, NEWS_HALF: hidden_one, NEWS_EMBEDDING: n_news}[news]
    parts: list[tuple[Any, ...]] = [(name, kind[0]) for name, kind in (JOB.dtype.fields or {}).items()]
    parts += [("features", np.float64, (n_tech,)), ("vector", np.float32, (behind,))]
    pad = job_size(n_tech, n_news, hidden_one, news) - np.dtype(parts).itemsize
    dtype = np.dtype([*parts, ("fill", np.uint8, (pad,))])
    return Record("JOB", dtype.itemsize, JOB.at, dtype, JOB.meaning)


def room_size(n_tech: int, n_news: int, hidden: tuple[int, int], groups: int, threads: int) -> int:
    """Return the bytes of shared memory in which one block answers a job; expert.cuh lays them out."""
    words = n_tech + max(n_news, hidden[0]) + hidden[0] + groups * sum(hidden)
    return 4 * (words + groups * 2 * SAMPLES * (threads // 32 + 1))
