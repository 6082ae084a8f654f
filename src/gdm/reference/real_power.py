"""Powers with real exponents in a fixed order of + - * /: csrc/real_power.h in Python, operation by operation."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
ONE_OVER_LN2 = float.fromhex("0x1.71547652b82fep+0")
INVERSE_FACTORIALS = [1.0 / math.factorial(i) for i in range(15)]
ROOT_OF_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")


class Two(NamedTuple):
    """An unevaluated sum; ``low`` is about 2**-53 times ``high`` or less."""

    high: float
    low: float


def sum_of(a: float, b: float) -> Two:
    """``a + b`` exactly, for ``a`` that is 0 or has at least the exponent of ``b``."""
    total = a + b
    return Two(total, b - (total - a))


def upper_half(x: float) -> float:
    """The upper half of the digits."""
    c = 134217729.0 * x
    return c - (c - x)


def product_of(a: float, b: float) -> Two:
    """``a * b`` exactly."""
    a1, b1 = upper_half(a), upper_half(b)
    a2, b2, product = a - a1, b - b1, a * b
    return Two(product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2)


def log_of(x: float) -> Two:
    """``log(x)`` for a finite x > 0, by a series in (m - 1) / (m + 1), where x = m * 2**e."""
    m, e = math.frexp(x)
    if m < ROOT_OF_HALF:
        m, e = m * 2.0, e - 1
    n, d = m - 1.0, sum_of(1.0, m)
    s = n / d.high
    back = product_of(s, d.high)
    s_low = ((n - back.high) - back.low - s * d.low) / d.high
    z, series = s * s, 1.0 / 23.0
    for k in range(21, 1, -2):
        series = series * z + 1.0 / k
    log_m = sum_of(2.0 * s, 2.0 * (s_low + s * (z * series)))
    total = sum_of(e * LN2_HIGH, log_m.high)
    return sum_of(total.high, total.low + (e * LN2_LOW + log_m.low))


def exp_of(y: Two) -> float:
    """``e**(y.high + y.low)`` as ``2**k * e**r`` with a small r."""
    if y.high > 710.0:
        return math.inf
    if y.high < -746.0:
        return 0.0
    k = int(y.high * ONE_OVER_LN2 + (-0.5 if y.high < 0 else 0.5))
    r, total = (y.high - k * LN2_HIGH) + (y.low - k * LN2_LOW), INVERSE_FACTORIALS[14]
    for i in range(13, -1, -1):
        total = INVERSE_FACTORIALS[i] + total * r
    half = int(k / 2)  # towards zero, as in C
    return total * math.ldexp(1.0, half) * math.ldexp(1.0, k - half)


def real_power(base: float, exponent: float) -> float:
    """``base**exponent`` for base > 0, which may be infinite, and a finite exponent >= 0."""
    if exponent == 0 or base == 1:
        return 1.0
    if base > sys.float_info.max:
        return base
    log = log_of(base)
    high = exponent * log.high
    if not -800.0 < high < 800.0:
        return math.inf if high > 0 else 0.0
    y = product_of(exponent, log.high)
    return exp_of(sum_of(y.high, y.low + exponent * log.low))
