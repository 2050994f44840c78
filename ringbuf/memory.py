"""Raw loads and stores for kernels: one machine instruction each, no bounds, no sign surprises.

Addresses are int64, and every load gives an int64 (or a float64), so kernels use one type inside.
Names: `load_i64`, `store_u32`, ... for our own little-endian records; `u1 u2 u4 u6 u8` (loads) and
`put_u1 put_u2 put_u4 put_u6 put_u8` (stores) for big-endian wire fields; a store cuts to its width.
A u8 whose top bit is set comes back as a negative int64 with the same 64 bits.
Nothing here checks anything: lengths and indexes are checked at the door, before these are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

P = ParamSpec("P")
R = TypeVar("R")
Codegen = Callable[[Any, Any, list[Any]], Any]  # (context, IR builder, arguments) -> value, None = nothing

I64: Final = ir.IntType(64)
_BYTE_PTR: Final = ir.IntType(8).as_pointer()
_LINE: Final = ir.VectorType(I64, 8)
_TYPES: Final = {"int": types.int64, "float": types.float64, "None": types.void}


def lowered(codegen: Codegen) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Turn a typed declaration into an instruction of kernels whose machine code `codegen` builds.

    The declaration's annotations are int, float or None and stand for int64, float64 and nothing.
    """

    def declare(declaration: Callable[P, R]) -> Callable[P, R]:
        kinds = dict(declaration.__annotations__)
        signature = _TYPES[kinds.pop("return")](*(_TYPES[kind] for kind in kinds.values()))

        def build(ctx: Any, builder: Any, _signature: Any, args: list[Any]) -> Any:
            value = codegen(ctx, builder, args)
            return ctx.get_dummy_value() if value is None else value

        shapes: list[Callable[..., Any]] = [  # one per number of arguments: Numba wants them named
            lambda _typing: (signature, build),
            lambda _typing, _a: (signature, build),
            lambda _typing, _a, _b: (signature, build),
            lambda _typing, _a, _b, _c: (signature, build),
            lambda _typing, _a, _b, _c, _d: (signature, build),
            lambda _typing, _a, _b, _c, _d, _e: (signature, build),
            lambda _typing, _a, _b, _c, _d, _e, _f: (signature, build),
            lambda _typing, _a, _b, _c, _d, _e, _f, _g: (signature, build),
            lambda _typing, _a, _b, _c, _d, _e, _f, _g, _h: (signature, build),
        ]
        definition = shapes[len(kinds)]
        definition.__name__ = declaration.__name__
        definition.__doc__ = declaration.__doc__
        return cast("Callable[P, R]", intrinsic(definition))

    return declare


def _pointer(builder: Any, addr: Any, kind: Any) -> Any:
    return builder.inttoptr(addr, kind.as_pointer())


def _bswap(builder: Any, value: Any, bits: int) -> Any:
    kind = ir.IntType(bits)
    declare = cast("Any", cgutils).get_or_insert_function
    swap = declare(builder.module, ir.FunctionType(kind, [kind]), f"llvm.bswap.i{bits}")
    return builder.call(swap, [value])


def _load(bits: int, *, signed: bool = False, swapped: bool = False) -> Callable[[int], int]:
    def codegen(_ctx: Any, builder: Any, args: list[Any]) -> Any:
        value = builder.load(_pointer(builder, args[0], ir.IntType(bits)), align=1)
        value = _bswap(builder, value, bits) if swapped else value
        if bits == I64.width:
            return value
        return builder.sext(value, I64) if signed else builder.zext(value, I64)

    @lowered(codegen)
    def load(addr: int) -> int: ...  # type: ignore[empty-body]

    return load


def _store(bits: int, *, swapped: bool = False) -> Callable[[int, int], None]:
    def codegen(_ctx: Any, builder: Any, args: list[Any]) -> None:
        kind = ir.IntType(bits)
        value = args[1] if bits == I64.width else builder.trunc(args[1], kind)
        value = _bswap(builder, value, bits) if swapped else value
        builder.store(value, _pointer(builder, args[0], kind), align=1)

    @lowered(codegen)
    def store(addr: int, value: int) -> None: ...

    return store


def _load_float(kind: Any) -> Callable[[int], float]:
    def codegen(_ctx: Any, builder: Any, args: list[Any]) -> Any:
        value = builder.load(_pointer(builder, args[0], kind), align=1)
        return value if isinstance(kind, ir.DoubleType) else builder.fpext(value, ir.DoubleType())

    @lowered(codegen)
    def load(addr: int) -> float: ...  # type: ignore[empty-body]

    return load


def _store_float(kind: Any) -> Callable[[int, float], None]:
    def codegen(_ctx: Any, builder: Any, args: list[Any]) -> None:
        value = args[1] if isinstance(kind, ir.DoubleType) else builder.fptrunc(args[1], kind)
        builder.store(value, _pointer(builder, args[0], kind), align=1)

    @lowered(codegen)
    def store(addr: int, value: float) -> None: ...

    return store


load_u8, load_u16, load_u32 = _load(8), _load(16), _load(32)
load_i16, load_i32, load_i64 = _load(16, signed=True), _load(32, signed=True), _load(64)
store_u8, store_u16, store_u32, store_i64 = _store(8), _store(16), _store(32), _store(64)
store_i16, store_i32 = store_u16, store_u32
load_f32, load_f64 = _load_float(ir.FloatType()), _load_float(ir.DoubleType())
store_f32, store_f64 = _store_float(ir.FloatType()), _store_float(ir.DoubleType())

u1, u2, u4, u8 = load_u8, _load(16, swapped=True), _load(32, swapped=True), _load(64, swapped=True)
put_u1, put_u2, put_u4 = store_u8, _store(16, swapped=True), _store(32, swapped=True)
put_u8 = _store(64, swapped=True)


def _load_u6(_ctx: Any, builder: Any, args: list[Any]) -> Any:
    i16, i32 = ir.IntType(16), ir.IntType(32)
    high = _bswap(builder, builder.load(_pointer(builder, args[0], i16), align=1), 16)
    low_at = _pointer(builder, builder.add(args[0], ir.Constant(I64, 2)), i32)
    low = _bswap(builder, builder.load(low_at, align=1), 32)
    return builder.or_(builder.shl(builder.zext(high, I64), ir.Constant(I64, 32)), builder.zext(low, I64))


@lowered(_load_u6)
def u6(addr: int) -> int:  # type: ignore[empty-body]
    """Load a 48-bit big-endian integer."""


def _store_u6(_ctx: Any, builder: Any, args: list[Any]) -> None:
    i16, i32 = ir.IntType(16), ir.IntType(32)
    high = builder.trunc(builder.lshr(args[1], ir.Constant(I64, 32)), i16)
    builder.store(_bswap(builder, high, 16), _pointer(builder, args[0], i16), align=1)
    low_at = _pointer(builder, builder.add(args[0], ir.Constant(I64, 2)), i32)
    builder.store(_bswap(builder, builder.trunc(args[1], i32), 32), low_at, align=1)


@lowered(_store_u6)
def put_u6(addr: int, value: int) -> None:
    """Store the low 48 bits of value, big-endian."""


def _copy_line(_ctx: Any, builder: Any, args: list[Any]) -> None:
    value = builder.load(_pointer(builder, args[1], _LINE), align=8)
    builder.store(value, _pointer(builder, args[0], _LINE), align=8)


@lowered(_copy_line)
def copy_line(target: int, source: int) -> None:
    """Copy one 64-byte line; both addresses are multiples of 8."""


def _count_above(_ctx: Any, builder: Any, args: list[Any]) -> Any:
    words = builder.load(_pointer(builder, args[0], _LINE), align=8)
    same = builder.insert_element(ir.Constant(_LINE, ir.Undefined), args[1], ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
    same = builder.shuffle_vector(same, ir.Constant(_LINE, ir.Undefined), zeros)
    marks = builder.bitcast(builder.icmp_signed(">", words, same), ir.IntType(8))
    return builder.zext(builder.ctpop(marks), I64)


@lowered(_count_above)
def count_above(addr: int, value: int) -> int:  # type: ignore[empty-body]
    """Return how many of the eight words at addr, a multiple of 8, are greater than value."""


def _copy(_ctx: Any, builder: Any, args: list[Any]) -> None:
    target, source = (builder.inttoptr(a, _BYTE_PTR) for a in args[:2])
    cast("Any", cgutils).raw_memcpy(builder, target, source, args[2], 1)


@lowered(_copy)
def copy(target: int, source: int, size: int) -> None:
    """Copy size bytes between two areas that do not overlap."""


def _clear(_ctx: Any, builder: Any, args: list[Any]) -> None:
    cast("Any", cgutils).memset(builder, builder.inttoptr(args[0], _BYTE_PTR), args[1], 0)


@lowered(_clear)
def clear(addr: int, size: int) -> None:
    """Set size bytes to zero."""


@lowered(lambda _ctx, builder, args: builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0)))
def leading_zeros(value: int) -> int:  # type: ignore[empty-body]
    """Count the zero bits above the highest set bit of a word (64 for zero)."""


def _prefetch(builder: Any, addr: Any, purpose: int) -> None:
    """Emit a prefetch; purpose: 0 = to read, 1 = to write."""
    i32 = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [_BYTE_PTR, i32, i32, i32])
    declare = cast("Any", cgutils).get_or_insert_function
    hints = [ir.Constant(i32, hint) for hint in (purpose, 3, 1)]  # keep near, data cache
    fetch = declare(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(fetch, [builder.inttoptr(addr, _BYTE_PTR), *hints])


@lowered(lambda _ctx, builder, args: _prefetch(builder, args[0], 0))
def prefetch(addr: int) -> None:
    """Ask the processor to bring the line at addr near; any address is allowed."""


@lowered(lambda _ctx, builder, args: _prefetch(builder, args[0], 1))
def prefetch_write(addr: int) -> None:
    """Ask the processor to bring the line at addr near and to own it, for a store; any address is allowed."""


def _byte_marks(_ctx: Any, builder: Any, args: list[Any]) -> Any:
    ones = ir.Constant(I64, 0x0101010101010101)
    pattern = builder.mul(builder.and_(args[1], ir.Constant(I64, 0xFF)), ones)
    word = builder.xor(builder.load(_pointer(builder, args[0], I64), align=1), pattern)  # 0 where equal
    borrowed = builder.and_(builder.sub(word, ones), builder.not_(word))
    return builder.and_(borrowed, ir.Constant(I64, 0x8080808080808080))


@lowered(_byte_marks)
def byte_marks(addr: int, value: int) -> int:  # type: ignore[empty-body]
    """Mark the bytes equal to value among the eight at addr: 0 = none of them.

    The lowest set bit is the top bit of the first that is equal; bits above it mean nothing.
    """


@lowered(lambda _ctx, builder, args: builder.cttz(args[0], ir.Constant(ir.IntType(1), 0)))
def trailing_zeros(value: int) -> int:  # type: ignore[empty-body]
    """Return how many zero bits lie below the lowest set bit; 64 for 0."""


def _add_around(_ctx: Any, builder: Any, args: list[Any]) -> Any:
    both = builder.uadd_with_overflow(args[0], args[1])
    return builder.add(builder.extract_value(both, 0), builder.zext(builder.extract_value(both, 1), I64))


@lowered(_add_around)
def add_around(left: int, right: int) -> int:  # type: ignore[empty-body]
    """Add two words in ones' complement: what is carried out of bit 63 is added at bit 0."""


def _fold_around(_ctx: Any, builder: Any, args: list[Any]) -> Any:
    value = args[0]
    for bits in (32, 16):  # a sum of the two orders of its halves has theirs, with its carry, on top
        kind = ir.IntType(2 * bits)
        half = ir.Constant(kind, bits)
        value = value if value.type == kind else builder.trunc(value, kind)
        turned = builder.or_(builder.shl(value, half), builder.lshr(value, half))
        value = builder.lshr(builder.add(value, turned), half)
    return builder.zext(value, I64)


@lowered(_fold_around)
def fold_around(total: int) -> int:  # type: ignore[empty-body]
    """Return the ones' complement sum of the four 16-bit words of a word, 0 only when all are 0."""


@lowered(lambda _ctx, builder, args: builder.mul(args[0], args[1]))
def wrapping_multiply(left: int, right: int) -> int:  # type: ignore[empty-body]
    """Multiply modulo 2**64, for hashes: Numba's own `*` of int64 is undefined where it overflows (nsw)."""
