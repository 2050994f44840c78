"""exp and log from additions, multiplications and one division: the same bits on every machine.

The C library picks its exp and log by processor, and their last bits differ; a feature digest that went
through them would make a journal differ from machine to machine.  IEEE arithmetic does not differ.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ringbuf.jit import inlined

LN2: Final = 0.6931471805599453
_LN2_HIGH: Final = 0.693147180369123816490  # 32 significant bits, so that k * it is exact
_LN2_LOW: Final = 1.90821492927058770002e-10
_LOG2E: Final = 1.4426950408889634
_SMALL: Final = 0.015625
_DECAY_MAX: Final = 708.0  # exp(-708) is the last one that is not denormal
NEAR: Final = 0.01  # |a - b| of a + b up to which log_ratio is a short series
_HALVINGS_MAX: Final = 64


@inlined
def _polynomial(r: float) -> float:
    """exp(r) for |r| <= ln(2)/2: Taylor to r^13, error below one unit in the last place."""
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    return (p * r + 1.0) * r + 1.0


@inlined
def decay(x: float) -> float:
    """Return exp(-x) for x >= 0; 0 from 708 on."""
    if x < _SMALL:  # the common case: two events of one symbol lie close together
        y = x * x
        even = 1.0 + y * (0.5 + y * (1.0 / 24.0 + y * (1.0 / 720.0)))
        odd = 1.0 + y * (1.0 / 6.0 + y * (1.0 / 120.0 + y * (1.0 / 5040.0)))
        return even - x * odd
    if not x < _DECAY_MAX:
        return 0.0
    k = int(x * _LOG2E + 0.5)
    power = np.int64((1023 - k) << 52).view(np.float64)  # 2^-k
    return power * _polynomial((k * _LN2_HIGH - x) + k * _LN2_LOW)


@inlined
def log_ratio(a: float, b: float) -> float:
    """Return ln(a/b) for a, b > 0: 2*atanh((a - b)/(a + b)) after halving the larger to within 3/2.

    Ratios beyond 2^64 are cut there.
    """
    z = (a - b) / (a + b)
    if abs(z) < NEAR:
        y = z * z
        return 2.0 * z * (1.0 + y * (1.0 / 3.0 + y * (0.2 + y * (1.0 / 7.0 + y * (1.0 / 9.0)))))
    halvings = 0
    for _ in range(_HALVINGS_MAX):
        if a > 1.5 * b:
            a *= 0.5
            halvings += 1
        elif b > 1.5 * a:
            b *= 0.5
            halvings -= 1
        else:
            break
    z = (a - b) / (a + b)
    y = z * z
    p = 0.0
    for odd in range(23, 0, -2):
        p = p * y + 1.0 / odd
    return halvings * LN2 + 2.0 * z * p
