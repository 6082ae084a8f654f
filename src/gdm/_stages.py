"""The stages in NumPy: what is done to a tile beside the rule. The compiled stages reproduce it to the last bit.

The code is simple, not fast. No function changes its arguments. Arrays are one-dimensional.

A number is stored in a storage dtype and computed with in a compute dtype, which is float32 or float64. An array of
bfloat16 is an array of uint16 that holds the bits. Every operation is rounded once, to nearest even. A NaN stays a NaN;
its payload is not part of the specification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import _checks
from ._checks import Array
from .reference.formula import power

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

BLOCK = 128  # elements of an int8 state that share a scale
STORED = {"float64": np.float64, "float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio
_MAGNITUDE = 0x7FFFFFFF  # the bits of a float32 without its sign
_INFINITY = 0x7F800000  # the bits of infinity; a magnitude above it is a NaN


# ---- narrow storage ------------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def widen(x: Array, storage: str, compute: DTypeLike) -> Array:
    """The numbers of ``x`` in the compute dtype. Exact.

    Raises ValueError for another storage dtype, or for float64 where the compute dtype is float32.
    """
    if storage not in STORED or (storage == "float64" and np.dtype(compute) != np.float64):
        raise ValueError(f"storage {storage!r} cannot be widened to {np.dtype(compute)}")
    if storage == "bfloat16":
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(compute)


def numbers(x: Array) -> Array:
    """The numbers of an array in a storage dtype for floats: in float64 if it has those, else in float32. Exact."""
    return widen(x, _checks.dtype_name(x), np.float64 if x.dtype == np.float64 else np.float32)


@np.errstate(all="ignore")
def narrow(x: Array, storage: str, draws: Array | None = None) -> Array:
    """The numbers of ``x``, float32 or float64, in a storage dtype.

    To nearest even; or, with ``draws`` (uint32, one for each element), stochastically. Then a number goes to one of its
    two neighbours, the nearer one more often, so that its mean is kept: up with the probability ``(x - below) / (above
    - below)``. A number that the storage dtype has does not move. float32 and float64 ignore ``draws``.

    For bfloat16 and float16 a float64 is first rounded to float32, to nearest even.
    Raises ValueError for another storage dtype.
    """
    if storage not in STORED:
        raise ValueError(f"there is no narrowing to storage {storage!r}")
    if storage in ("float32", "float64"):
        return x.astype(STORED[storage])
    single = x.astype(np.float32)
    if storage == "bfloat16":
        return _to_bfloat16(single, draws)
    return single.astype(np.float16) if draws is None else _to_float16(single, draws)


def _to_bfloat16(x: Array, draws: Array | None) -> Array:
    """The upper half of the bits, after a number is added that carries into it as often as the rounding goes up."""
    b = x.view(np.uint32)
    carry = 0x7FFF + ((b >> 16) & 1) if draws is None else draws >> 16
    quiet = (b >> 16) | 0x7FC0
    return np.where((b & _MAGNITUDE) > _INFINITY, quiet, (b + carry) >> 16).astype(np.uint16)


def _to_float16(x: Array, draws: Array) -> Array:
    b = x.view(np.uint32)
    a, sign = b & _MAGNITUDE, b >> 31
    # Normal results: the exponent's bias goes from 127 to 15, and 13 digits go away.
    normal = np.minimum(((a - (112 << 23)) + (draws >> 19)) >> 13, 0x7C00)
    # Subnormal results: x is m * 2**(e - 150), and the unit of the result is 2**-24, so s digits go away. A draw gives
    # at most 31 bits: with s above 31 the last digits are dropped. The probability changes by less than 2**-31.
    e = np.maximum(a >> 23, 1)
    m = (a & 0x7FFFFF) | np.where(a >> 23, np.uint32(0x800000), np.uint32(0))
    s = 126 - np.minimum(e, 112)  # 112 is the last exponent with a subnormal result
    m, s = m >> np.minimum(np.maximum(s, 31) - 31, 31), np.minimum(s, 31)
    subnormal = (m + (draws >> (32 - s))) >> s
    q = np.where(a >= 0x38800000, normal, subnormal)
    q = np.where(a == _INFINITY, np.uint32(0x7C00), np.where(a > _INFINITY, np.uint32(0x7E00), q))
    result: Array = (q | sign << 15).astype(np.uint16).view(np.float16)
    return result


# ---- random bits ---------------------------------------------------------------------------------------------------


def draws(seed: int, step: int, entry: int, role: int, start: int, count: int) -> Array:
    """The random bits of the elements ``start`` to ``start + count - 1``: uint32, one for each.

    They depend on nothing but these numbers (each from 0 to 2**64 - 1), so on no order, thread or tile. The key of an
    element is a hash of the seed, the step, the entry, the role of the buffer, and the upper half of the element's
    index. So it is the same for 2**32 elements in a row. The lower half is then mixed with the key, in 32 bits.

    Sources: the key is mixed as in splitmix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
    generators", 2014). The 32-bit hash was found with hash-prospector (C. Wellons; its issue 19). The second half of
    the key is put in by exclusive or: with an addition, the streams of two keys would be nearly the same one, shifted.
    """
    elements = np.arange(count, dtype=np.uint64) + np.uint64(start)
    prefix = 0
    for word in (seed, step, entry, role):
        prefix = int(_mix64(np.array([(prefix + word + _GOLDEN) & _WORD], np.uint64))[0])
    key = _mix64((elements >> 32) + np.uint64((prefix + _GOLDEN) & _WORD))
    x: Array = elements.astype(np.uint32) + key.astype(np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = x ^ (x >> 15) ^ (key >> 32).astype(np.uint32)
    x = x * np.uint32(0xD35A2D97)
    hashed: Array = x ^ (x >> 15)
    return hashed


def _mix64(z: Array) -> Array:
    z = (z ^ (z >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27)) * np.uint64(0x94D049BB133111EB)
    mixed: Array = z ^ (z >> 31)
    return mixed


# ---- int8 states ---------------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def quantize(x: Array, draws: Array, *, square: bool) -> tuple[Array, Array]:
    """A state as 8-bit codes, and a float32 scale for each block of 128 elements. The last block may be shorter.

    ``x`` is float32, or float64, which is first rounded to float32. ``draws`` is uint32, one for each element. All
    arithmetic is in float32. ``u``, from the upper half of a draw, is between 0 and 1.

    Without ``square``, the codes are int8, from -127 to 127, and ``x`` is about ``code * scale``::

        scale = max(|x|) / 127                      # of the block
        code = floor(x * (1 / scale) + u)

    With ``square``, for ``x >= 0`` such as a mean of squares, the codes are uint8 and ``x`` is about ``(code *
    scale)**2``, which has more range. The probability p of going up keeps the mean of that square::

        scale = sqrt(max(x)) / 255
        y = sqrt(x) * (1 / scale)
        q = floor(y)
        code = q + 1 if u * (2 * q + 1) < (y - q) * (y + q) else q

    p is (y * y - q * q) / (2 * q + 1).

    Except that a code is at least 1 where x > 0, since a rule divides by the root: below ``scale**2`` the mean is too
    large. The code of a negative number is not specified.

    A block whose scale is subnormal, 0, infinite or NaN has codes 0. So a block with a number that is not finite is
    read as NaN, and one whose numbers are too small as 0.
    """
    n = x.size
    x, r = _blocks(x.astype(np.float32)), _blocks(draws)
    one = np.float32(1.0)
    top = (x.view(np.uint32) & _MAGNITUDE).max(axis=1, keepdims=True).view(np.float32)  # a NaN is above all numbers
    scale = np.sqrt(top) / np.float32(255.0) if square else top / np.float32(127.0)
    u = ((r >> 16).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-16)
    usable = (scale >= np.finfo(np.float32).tiny) & (scale < np.inf)
    inverse = one / scale
    if square:
        y = np.sqrt(np.maximum(x, np.float32(0.0))) * inverse
        q = np.floor(y)
        q = np.where(u * (q + q + one) < (y - q) * (y + q), q + one, q)
        q = np.where((x > 0) & (q < one), one, q)
        codes = np.where(usable, np.clip(q, 0.0, 255.0), 0.0).astype(np.uint8)
    else:
        q = np.floor(x * inverse + u)
        codes = np.where(usable, np.clip(q, -127.0, 127.0), 0.0).astype(np.int8)
    return codes.ravel()[:n], scale.ravel()


@np.errstate(all="ignore")
def dequantize(codes: Array, scales: Array, *, square: bool, compute: DTypeLike) -> Array:
    """The numbers of an int8 state in the compute dtype: ``code * scale``, with ``square`` its square; in float32."""
    t = codes.astype(np.float32) * np.repeat(scales, BLOCK)[: codes.size]
    x: Array = t * t if square else t
    return x.astype(compute)


def _blocks(x: Array) -> Array:
    """The blocks as rows, the last one filled up with zeros."""
    return np.pad(x, (0, -x.size % BLOCK)).reshape(-1, BLOCK)


# ---- split masters -------------------------------------------------------------------------------------------------


def split(x: Array) -> tuple[Array, Array]:
    """A float32 array as two of uint16: the nearest bfloat16, ties away from zero, and what :func:`join` lacks then.

    The bits of x, as a number, are the upper half times 2**16 plus the lower half as a number from -2**15 to 2**15 - 1.
    That range has one of its two ends, so ties must all go the same way. With ties to even, one upper half would be
    nearest to 2**16 + 1 numbers, and 16 bits cannot tell these apart.

    A NaN becomes the quiet NaN with the bits 0x7FC00000.
    """
    b = x.view(np.uint32)
    b = np.where((b & _MAGNITUDE) > _INFINITY, np.uint32(0x7FC00000), b)
    return ((b + 0x8000) >> 16).astype(np.uint16), b.astype(np.uint16)


def join(high: Array, low: Array) -> Array:
    """The float32 array that :func:`split` took apart, exactly."""
    upper, lower = high.astype(np.uint32) << 16, low.view(np.int16).astype(np.int32)
    return (upper + lower.view(np.uint32)).view(np.float32)


# ---- arithmetic in the compute dtype -------------------------------------------------------------------------------


@np.errstate(all="ignore")
def scaled(g: Array, factor: float) -> Array:
    """``g * factor``."""
    result: Array = g * g.dtype.type(factor)
    return result


@np.errstate(all="ignore")
def limited(g: Array, most: float) -> Array:
    """``g``, but at least ``-most`` and at most ``most``. A NaN stays."""
    limit = g.dtype.type(most)
    return np.where(g < -limit, -limit, np.where(g > limit, limit, g))


@np.errstate(all="ignore")
def averaged(average: Array, param: Array, weight: float) -> Array:
    """``average + weight * (param - average)``."""
    result: Array = average + average.dtype.type(weight) * (param - average)
    return result


def swapped(param: Array, z: Array, share: float, evaluate: bool) -> Array:
    """The other one of the two points that a parameter of a Schedule-Free method may be.

    ``y = (1 - share) * z + share * x`` lies between the iterate z and the average x. With ``evaluate`` x from y, else y
    from x: each is a step towards z, or away from it.
    """
    return averaged(param, z, swap_weight(share, evaluate))


def swap_weight(share: float, evaluate: bool) -> float:
    """How far a swap moves a parameter towards z."""
    return 1.0 - 1.0 / share if evaluate else 1.0 - share


@np.errstate(all="ignore")
def accumulated(total: Array, grad: Array, factor: float) -> Array:
    """``total + factor * grad``."""
    result: Array = total + total.dtype.type(factor) * grad
    return result


def average_weight(decay: float, step: int, corrected: bool) -> float:
    """The weight of the parameter in its moving average at a step, which is 1 at first; ``decay`` is in [0, 1).

    ``1 - decay``; if ``corrected``, ``(1 - decay) / (1 - decay**step)``. Then the average after the first step is the
    parameter, as by the bias correction of Adam (D. Kingma, J. Ba, 2014).
    """
    return (1.0 - decay) / (1.0 - power(decay, step)) if corrected else 1.0 - decay
