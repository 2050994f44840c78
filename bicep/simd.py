"""Sixteen floats at a time: the LLVM instructions from which BICEP's inner loops are built.

A function here writes instructions into a builder; `ringbuf.memory.lowered` makes an instruction of kernels
from them.  The types are legal on any CPU (LLVM splits them for AVX2 or NEON) and every sum has one fixed
order, so the bits are the same wherever there is a fused multiply-add.

GELU is the tanh form, written as x / (1 + exp(-2u)) with u = sqrt(2/pi)*(x + 0.044715*x^3): the same
function as torch's gelu(approximate="tanh"), with one exp and no cancellation in the negative tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

from ringbuf.memory import I64

LANES: Final = 16
F32: Final = ir.FloatType()
I32: Final = ir.IntType(32)
VECTOR: Final = ir.VectorType(F32, LANES)
WORDS: Final = ir.VectorType(I32, LANES)
_BYTES: Final = ir.VectorType(ir.IntType(8), LANES)
_FLAGS: Final = ir.VectorType(ir.IntType(1), LANES)
LINE: Final = 4 * LANES  # bytes of one vector

# exp(r) for |r| <= ln(2)/2: Chebyshev interpolation of degree 6, relative error 2.6e-9.
_EXP: Final = (
    0.0013941118959337473,
    0.008375134319067001,
    0.04166635125875473,
    0.16666415333747864,
    0.5,
    1.0,
    1.0,
)
_LN2_HIGH, _LN2_LOW = 0.693359375, -0.00021219444005471377
EXP_MAX: Final = 87.0  # exp(87) = 6e37 is finite in float32

Values = list[Any]


def splat(kind: Any, value: float) -> Any:
    """Return a constant vector of one value."""
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * LANES)


def number(value: float) -> Any:
    """Return a constant vector of floats."""
    return splat(VECTOR, value)


ZERO: Final = number(0.0)


def broadcast(b: Any, value: Any) -> Any:
    """Return a vector of a float in all lanes."""
    vector = b.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.Constant(I32, 0))
    return b.shuffle_vector(vector, ir.Constant(VECTOR, ir.Undefined), splat(WORDS, 0))


def function(b: Any, name: str, returns: Any, *arguments: Any) -> Any:
    """Return the function of that name in the module being built, declared on first use."""
    known = b.module.globals.get(name)
    return known if known is not None else ir.Function(b.module, ir.FunctionType(returns, arguments), name)


def call(b: Any, name: str, *args: Any) -> Any:
    """Call an LLVM intrinsic that takes and returns vectors of floats."""
    return b.call(function(b, f"llvm.{name}.v16f32", VECTOR, *[VECTOR] * len(args)), args)


def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z, rounded once."""
    return call(b, "fma", x, y, z)


def place(b: Any, base: Any, index: Any, scale: int, offset: int = 0) -> Any:
    """Return the address base + index * scale + offset."""
    step = b.mul(index, ir.Constant(I64, scale)) if scale != 1 else index
    return b.add(base, b.add(step, ir.Constant(I64, offset)) if offset else step)


def plus(b: Any, base: Any, offset: int) -> Any:
    """Return the address base + offset."""
    return b.add(base, ir.Constant(I64, offset)) if offset else base


def load(b: Any, addr: Any, offset: int = 0, align: int = LINE) -> Any:
    """Load a vector, from a whole cache line unless align says less."""
    return b.load(b.inttoptr(plus(b, addr, offset), VECTOR.as_pointer()), align=align)


def store(b: Any, value: Any, addr: Any, offset: int = 0) -> None:
    """Store a vector to a whole cache line."""
    b.store(value, b.inttoptr(plus(b, addr, offset), VECTOR.as_pointer()), align=LINE)


def scalar(b: Any, addr: Any, offset: int = 0, kind: Any = F32) -> Any:
    """Load one number of four bytes."""
    return b.load(b.inttoptr(plus(b, addr, offset), kind.as_pointer()), align=4)


def clamp(b: Any, x: Any, low: float, high: float) -> Any:
    """Clamp x; a NaN becomes a number here, so callers let NaN through by another path."""
    x = b.select(b.fcmp_ordered(">", x, number(low)), x, number(low))
    return b.select(b.fcmp_ordered("<", x, number(high)), x, number(high))


def exp(b: Any, x: Any) -> Any:
    """Return exp of a vector within +-EXP_MAX: 2^k times a polynomial of the rest."""
    k = call(b, "rint", b.fmul(x, number(math.log2(math.e))))
    rest = fma(b, k, number(-_LN2_LOW), fma(b, k, number(-_LN2_HIGH), x))
    power = number(_EXP[0])
    for coefficient in _EXP[1:]:
        power = fma(b, power, rest, number(coefficient))
    shift = b.shl(b.fptosi(k, WORDS), splat(WORDS, 23))
    return b.bitcast(b.add(b.bitcast(power, WORDS), shift), VECTOR)


def gelu(b: Any, x: Any) -> Any:
    """Return tanh-GELU of a vector."""
    cubic = fma(b, b.fmul(x, x), number(0.044715), number(1.0))
    twice = b.fmul(b.fmul(x, cubic), number(-2 * math.sqrt(2 / math.pi)))
    return b.fdiv(x, b.fadd(number(1.0), exp(b, clamp(b, twice, -EXP_MAX, EXP_MAX))))


def loop(b: Any, count: Any, values: Values, body: Callable[[Any, Values], Values]) -> Values:
    """Emit `for i in range(count): values = body(i, values)`; return the values after it."""
    before = b.block
    head, inside, after = (b.append_basic_block(name) for name in ("head", "inside", "after"))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    carried = [b.phi(value.type) for value in values]
    b.cbranch(b.icmp_signed("<", index, count), inside, after)
    b.position_at_end(inside)
    produced = body(index, carried)
    following = b.add(index, ir.Constant(I64, 1))
    for phi, first, later in zip(
        [index, *carried], [ir.Constant(I64, 0), *values], [following, *produced], strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(later, b.block)
    b.branch(head)
    b.position_at_end(after)
    return carried


# ---- memory that belongs to others: any alignment, and a last vector that is not full


def flags(b: Any, count: Any) -> Any:
    """Return which lanes lie below count, an i64 (all of them for 16 and more)."""
    numbers = ir.Constant(WORDS, [ir.Constant(I32, n) for n in range(LANES)])
    whole = b.select(b.icmp_signed("<", count, ir.Constant(I64, LANES)), count, ir.Constant(I64, LANES))
    return b.icmp_signed("<", numbers, every(b, b.trunc(whole, I32)))


def every(b: Any, value: Any) -> Any:
    """Return a vector of a 32-bit word in all lanes."""
    vector = b.insert_element(ir.Constant(WORDS, ir.Undefined), value, ir.Constant(I32, 0))
    return b.shuffle_vector(vector, ir.Constant(WORDS, ir.Undefined), splat(WORDS, 0))


def _mangled(kind: Any) -> str:
    element = kind.element
    return f"v{LANES}" + ("f32" if element == F32 else f"i{element.width}")


def load_part(b: Any, addr: Any, lanes: Any, kind: Any = VECTOR) -> Any:
    """Load the flagged lanes from any address; the others are 0 and their memory is not touched."""
    pointer = kind.as_pointer()
    fetch = function(b, f"llvm.masked.load.{_mangled(kind)}.p0", kind, pointer, I32, _FLAGS, kind)
    zero = ir.Constant(kind, None)
    return b.call(fetch, [b.inttoptr(addr, pointer), ir.Constant(I32, 1), lanes, zero])


def store_part(b: Any, value: Any, addr: Any, lanes: Any) -> None:
    """Store the flagged lanes to any address."""
    kind = value.type
    pointer = kind.as_pointer()
    put = function(b, f"llvm.masked.store.{_mangled(kind)}.p0", ir.VoidType(), kind, pointer, I32, _FLAGS)
    b.call(put, [value, b.inttoptr(addr, pointer), ir.Constant(I32, 1), lanes])


def kept(b: Any, mask: Any, lanes: Any) -> Any:
    """Return which of the flagged lanes have a byte other than 0 at mask, one byte per lane."""
    return b.icmp_unsigned("!=", load_part(b, mask, lanes, _BYTES), ir.Constant(_BYTES, None))


def compress(b: Any, value: Any, addr: Any, lanes: Any) -> None:
    """Store the flagged lanes side by side to any address."""
    kind = value.type
    pointer = kind.as_pointer()
    name = f"llvm.masked.compressstore.{_mangled(kind)}.p0"
    b.call(function(b, name, ir.VoidType(), kind, pointer, _FLAGS), [value, b.inttoptr(addr, pointer), lanes])


def flag_count(b: Any, lanes: Any) -> Any:
    """Return how many lanes are flagged, an i64."""
    return b.zext(b.ctpop(b.bitcast(lanes, ir.IntType(LANES))), I64)


def transposed(b: Any, rows: Values) -> Values:
    """Return the columns of 16 vectors: four rounds that interleave the first half with the second."""
    half = LANES // 2
    low = [n // 2 + (LANES if n % 2 else 0) for n in range(LANES)]
    orders = [ir.Constant(WORDS, [ir.Constant(I32, n + shift) for n in low]) for shift in (0, half)]
    for _ in range(4):
        rows = [b.shuffle_vector(rows[n // 2], rows[n // 2 + half], orders[n % 2]) for n in range(LANES)]
    return rows


def total(b: Any, vector: Any) -> Any:
    """Return the sum of the lanes, in one fixed order: halves onto each other."""
    width = LANES // 2
    while width:
        order = [ir.Constant(I32, n + width if n < width else n) for n in range(LANES)]
        moved = b.shuffle_vector(vector, vector, ir.Constant(WORDS, order))
        vector, width = b.fadd(vector, moved), width // 2
    return b.extract_element(vector, ir.Constant(I32, 0))
