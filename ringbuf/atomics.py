"""Atomic words on int64 addresses, with the memory order in the name of the call.

Release to publish, acquire to consume, relaxed for a word that the caller alone writes.  Every use says
in a comment what it pairs with and what is visible afterwards.  Addresses are multiples of 8; the `_u32`
forms are for words that Linux shares with us (packet rings), at multiples of 4.
"""

from __future__ import annotations

import platform
from typing import Any, Final, cast

from llvmlite import ir
from numba.core import cgutils

from ringbuf.memory import I64, Codegen, lowered

_WORD_SIZE, _HALF_SIZE = 8, 4
_I32: Final = ir.IntType(32)
_IS_ARM: Final = platform.machine() in {"aarch64", "arm64"}


def _at(builder: Any, addr: Any) -> Any:
    return builder.inttoptr(addr, I64.as_pointer())


def _load(order: str) -> Codegen:
    return lambda _ctx, builder, args: builder.load_atomic(_at(builder, args[0]), order, _WORD_SIZE)


def _store(order: str) -> Codegen:
    def codegen(_ctx: Any, builder: Any, args: list[Any]) -> None:
        builder.store_atomic(args[1], _at(builder, args[0]), order, _WORD_SIZE)

    return codegen


def _load_u32(_ctx: Any, builder: Any, args: list[Any]) -> Any:
    at = builder.inttoptr(args[0], _I32.as_pointer())
    return builder.zext(builder.load_atomic(at, "acquire", _HALF_SIZE), I64)


def _store_u32(_ctx: Any, builder: Any, args: list[Any]) -> None:
    at = builder.inttoptr(args[0], _I32.as_pointer())
    builder.store_atomic(builder.trunc(args[1], _I32), at, "release", _HALF_SIZE)


def _fence(order: str) -> Codegen:
    def codegen(_ctx: Any, builder: Any, _args: list[Any]) -> None:
        builder.fence(order)

    return codegen


def _call(name: str) -> Codegen:
    def codegen(_ctx: Any, builder: Any, _args: list[Any]) -> Any:
        kind = ir.FunctionType(I64, [])
        return builder.call(cast("Any", cgutils).get_or_insert_function(builder.module, kind, name), [])

    return codegen


@lowered(_load("acquire"))
def load_acquire(addr: int) -> int:  # type: ignore[empty-body]
    """Load a word; what its writer stored before its release is visible afterwards."""


@lowered(_load("monotonic"))
def load_relaxed(addr: int) -> int:  # type: ignore[empty-body]
    """Load a word without ordering anything else."""


@lowered(_store("release"))
def store_release(addr: int, value: int) -> None:
    """Store a word; everything written before is visible to an acquire that reads it."""


@lowered(_store("monotonic"))
def store_relaxed(addr: int, value: int) -> None:
    """Store a word without ordering anything else."""


@lowered(_load_u32)
def load_acquire_u32(addr: int) -> int:  # type: ignore[empty-body]
    """Load 32 bits, like load_acquire."""


@lowered(_store_u32)
def store_release_u32(addr: int, value: int) -> None:
    """Store the low 32 bits of value, like store_release."""


@lowered(lambda _ctx, b, args: b.atomic_rmw("add", _at(b, args[0]), args[1], "acq_rel"))
def fetch_add(addr: int, value: int) -> int:  # type: ignore[empty-body]
    """Add to a word in one step (acquire and release); return what was there before."""


@lowered(_fence("acquire"))
def fence_acquire() -> None:
    """Keep later loads and stores after earlier loads (reader side of a seqlock)."""


@lowered(_fence("release"))
def fence_release() -> None:
    """Keep later stores after earlier loads and stores (writer side of a seqlock)."""


def _pause(_ctx: Any, builder: Any, _args: list[Any]) -> None:
    i32 = ir.IntType(32)
    name, kinds = ("llvm.aarch64.hint", [i32]) if _IS_ARM else ("llvm.x86.sse2.pause", [])
    kind = ir.FunctionType(ir.VoidType(), kinds)
    spin = cast("Any", cgutils).get_or_insert_function(builder.module, kind, name)
    builder.call(spin, [ir.Constant(i32, 1) for _ in kinds])  # hint 1 is `yield`


@lowered(_call("llvm.readsteadycounter" if _IS_ARM else "llvm.readcyclecounter"))
def cycles() -> int:  # type: ignore[empty-body]
    """Return the processor's time-stamp counter (x86) or generic timer (ARM: it is open to user code)."""


@lowered(_pause)
def pause() -> None:
    """Tell the processor that this is a spin loop."""
