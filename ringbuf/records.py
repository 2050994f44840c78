"""Records: byte layouts declared once, as text, with the meaning of every field beside it."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, Final, NamedTuple

import numpy as np

CACHE_LINE: Final = 64
LINE_PAIR: Final = 128  # what the processor may fetch at once: two writers keep at least so far apart


class Record(NamedTuple):
    """A declared layout.

    name; size in bytes; at: a namedtuple, field -> byte offset (Numba freezes it into kernels);
    dtype: the same layout for numpy; meaning: field -> what it holds, for the docs.
    """

    name: str
    size: int
    at: Any
    dtype: np.dtype[Any]
    meaning: dict[str, str]


def record(name: str, fields: str, *, line: int = CACHE_LINE) -> Record:
    """Declare a record from "type field meaning" lines; types are numpy's, little-endian ("i8", "6u1").

    Raises ValueError when the layout hides padding or its size is not a multiple of `line` bytes.
    """
    pairs: list[tuple[str, str]] = []
    meaning: dict[str, str] = {}
    for text in filter(str.strip, fields.splitlines()):
        code, field, words = text.split(maxsplit=2)
        pairs.append((field, code))
        meaning[field] = words
    dtype, aligned = np.dtype(pairs), np.dtype(pairs, align=True)
    if dtype.itemsize != aligned.itemsize:
        msg = f"{name}: {dtype.itemsize} bytes packed, {aligned.itemsize} aligned: reorder the fields"
        raise ValueError(msg)
    if dtype.itemsize % line:
        msg = f"{name}: {dtype.itemsize} bytes is not a multiple of {line}"
        raise ValueError(msg)
    offsets = {field: int(dtype.fields[field][1]) for field, _ in pairs}  # type: ignore[index]
    at = namedtuple(name, list(offsets))(**offsets)
    return Record(name, dtype.itemsize, at, dtype, meaning)
