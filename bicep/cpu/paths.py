"""Monte-Carlo price paths, sixteen at a time: geometric Brownian motion, four steps per Philox call.

The words are those of bicep/cuda/paths.cu: counter (path, block of four steps, asset, number), so a path is
the same whoever draws it.  A word w is the uniform (w + 1/2) / 2^32; two of them are two normals
(Box-Muller).
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

from bicep import simd
from bicep.cpu.words import philox_rounds
from ringbuf.jit import kernel
from ringbuf.memory import I64, lowered

STEPS: Final = 4  # of one call of the generator
_LANES: Final = ir.Constant(simd.WORDS, list(range(simd.LANES)))
_SIGN: Final = simd.splat(simd.WORDS, -(1 << 31))

# (log(1 + f) - f) / f^2 for sqrt(1/2) - 1 <= f <= sqrt(2) - 1, the highest power first: error 6e-9.
_LOG: Final = (
    0.0694197227, -0.116565787, 0.117889063, -0.124027494, 0.142330141,
    -0.166685818, 0.200014524, -0.249999913, 0.333333226, -0.5,
)  # fmt: skip
_LN2_HIGH, _LN2_LOW = 0.693359375, -0.00021219444005471377
_ROOT_HALF: Final = 0x3F3504F3  # bits of sqrt(1/2)
_SINE: Final = (
    0.0810017382,
    -0.599202097,
    2.55016265,
    -5.16771277,
    3.14159265,
)  # sin(pi r) / r by r^2, |r| <= 1/4
_COSINE: Final = (0.231329246, -1.33504451, 4.05870726, -4.93480216, 1.0)


def _polynomial(b: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    value = simd.number(coefficients[0])
    for coefficient in coefficients[1:]:
        value = simd.fma(b, value, x, simd.number(coefficient))
    return value


def _log(b: Any, x: Any) -> Any:
    """Return the logarithm of normal numbers above 0."""
    bits = b.bitcast(x, simd.WORDS)
    whole = b.ashr(b.sub(bits, simd.splat(simd.WORDS, _ROOT_HALF)), simd.splat(simd.WORDS, 23))
    rest = b.bitcast(b.sub(bits, b.shl(whole, simd.splat(simd.WORDS, 23))), simd.VECTOR)
    f, exponent = b.fsub(rest, simd.number(1.0)), b.sitofp(whole, simd.VECTOR)
    tail = b.fmul(b.fmul(f, f), _polynomial(b, f, _LOG))
    low = simd.fma(b, exponent, simd.number(_LN2_LOW), b.fadd(tail, f))
    return simd.fma(b, exponent, simd.number(_LN2_HIGH), low)


def _waves(b: Any, turn: Any) -> tuple[Any, Any]:
    """Return cos(pi turn) and sin(pi turn) of 0 <= turn <= 2: by quarters, then one polynomial each."""
    quarters = simd.call(b, "rint", b.fadd(turn, turn))
    rest = simd.fma(b, quarters, simd.number(-0.5), turn)
    square, k = b.fmul(rest, rest), b.fptosi(quarters, simd.WORDS)
    sine, cosine = b.fmul(rest, _polynomial(b, square, _SINE)), _polynomial(b, square, _COSINE)
    one, two = simd.splat(simd.WORDS, 1), simd.splat(simd.WORDS, 2)
    is_odd = b.icmp_unsigned("!=", b.and_(k, one), ir.Constant(simd.WORDS, None))

    def signed(value: Any, number: Any) -> Any:
        is_negative = b.icmp_unsigned("!=", b.and_(number, two), ir.Constant(simd.WORDS, None))
        flip = b.select(is_negative, _SIGN, ir.Constant(simd.WORDS, None))
        return b.bitcast(b.xor(b.bitcast(value, simd.WORDS), flip), simd.VECTOR)

    return (
        signed(b.select(is_odd, sine, cosine), b.add(k, one)),
        signed(b.select(is_odd, cosine, sine), k),
    )


def _normals(b: Any, radius_word: Any, angle_word: Any) -> tuple[Any, Any]:
    uniform = simd.fma(b, b.uitofp(radius_word, simd.VECTOR), simd.number(2.0**-32), simd.number(2.0**-33))
    radius = simd.call(b, "sqrt", b.fmul(simd.number(-2.0), _log(b, uniform)))
    turn = simd.fma(b, b.uitofp(angle_word, simd.VECTOR), simd.number(2.0**-31), simd.number(2.0**-32))
    cosine, sine = _waves(b, turn)
    return b.fmul(radius, cosine), b.fmul(radius, sine)


def _paths_codegen(_ctx: Any, b: Any, args: list[Any]) -> None:
    floats, words, first, paths, steps, last, lowest, highest = args
    spot, drift, noise = (simd.broadcast(b, simd.scalar(b, floats, 4 * n)) for n in range(3))
    asset, number, left, right = (simd.scalar(b, words, 4 * n, simd.I32) for n in range(4))
    trend = b.fsub(drift, b.fmul(b.fmul(simd.number(0.5), noise), noise))
    path = b.add(simd.every(b, b.trunc(first, simd.I32)), _LANES)

    def four(n: Any, carried: simd.Values) -> simd.Values:
        block = simd.every(b, b.trunc(n, simd.I32))
        counter = [path, block, simd.every(b, asset), simd.every(b, number)]
        drawn = philox_rounds(b, counter, left, right)
        normals = [*_normals(b, drawn[0], drawn[1]), *_normals(b, drawn[2], drawn[3])]
        price, least, most = carried
        left_over = b.sub(steps, b.mul(n, ir.Constant(I64, STEPS)))
        for k, normal in enumerate(normals):
            counts = b.icmp_signed("<", ir.Constant(I64, k), left_over)
            moved = b.fadd(price, simd.fma(b, noise, normal, trend))
            price = b.select(counts, moved, price)
            least = b.select(b.fcmp_ordered("<", price, least), price, least)
            most = b.select(b.fcmp_ordered(">", price, most), price, most)
        return [price, least, most]

    calls = b.lshr(b.add(steps, ir.Constant(I64, STEPS - 1)), ir.Constant(I64, 2))
    ends = simd.loop(b, calls, [simd.ZERO] * 3, four)
    lanes = simd.flags(b, b.sub(paths, first))
    for value, target in zip(ends, (last, lowest, highest), strict=True):
        bounded = simd.clamp(b, value, -simd.EXP_MAX, simd.EXP_MAX)
        price = b.fmul(spot, simd.exp(b, bounded))
        simd.store_part(b, price, simd.place(b, target, first, 4), lanes)


@lowered(_paths_codegen)
def _sixteen_paths(
    floats: int, words: int, first: int, paths: int, steps: int, last: int, lowest: int, highest: int
) -> None:
    """Write the ends of paths first .. first + 15 of one asset."""


@kernel
def price_paths(
    floats: int, words: int, assets: int, paths: int, steps: int, last: int, lowest: int, highest: int
) -> None:
    """Write the last, the lowest and the highest price (the start included) of every path of every asset.

    floats: float32[assets][3]: start, drift and volatility per step; words: uint32[assets][4]: the asset's
    number, the draw's number, the two words of the key; last, lowest, highest: float32[assets][paths].
    A price is cut at exp(+-87) of its start.
    """
    for asset in range(assets):
        at = 4 * paths * asset
        for first in range(0, paths, simd.LANES):
            _sixteen_paths(
                floats + 12 * asset, words + 16 * asset, first, paths, steps,
                last + at, lowest + at, highest + at,
            )  # fmt: skip
