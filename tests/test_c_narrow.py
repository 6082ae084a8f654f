"""Conversions between dtypes in C, for every number: widening, narrowing, int8 states, split parameters.

With GDM_EXHAUSTIVE=1 all 2**32 numbers of float32 are narrowed, else those beside which the result changes, and some
millions more.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

import gdm
from clibrary import EXHAUSTIVE
from cplan import BF16, F16, F32, F64, INT8, NEAREST, STOCHASTIC, buffer, set_grad, step
from cstages import FLOATS, NAME, Plan, bits, narrow
from gdm import _stages
from support import ISAS

CHUNK = 1 << 18  # its arrays stay in the cache

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of special values


def float32(patterns: np.ndarray) -> np.ndarray:
    return patterns.astype(np.uint32).view(np.float32)


def with_lower(digits: int) -> np.ndarray:
    """Patterns of float32 whose lower digits are half of their last place, or one more or less, or near none: beside
    them a narrowing that drops so many digits changes its result."""
    half = 1 << (digits - 1)
    upper = np.arange(1 << (32 - digits), dtype=np.uint32) << digits
    lower = np.array([0, 1, half - 1, half, half + 1, 2 * half - 1], np.uint32)
    return (upper[:, None] | lower).ravel()


@functools.cache
def sample() -> np.ndarray:
    """All ties and their neighbours in bfloat16 (16 digits are dropped) and float16 (13, or more below its smallest
    normal number: those ties end in 13 zeros, too); and each 4,099th number. So all exponents, NaN, infinities."""
    strided = np.arange(0, 1 << 32, 4099, dtype=np.uint64).astype(np.uint32)
    return float32(np.concatenate([with_lower(16), with_lower(13), strided]))


def every_number() -> Iterator[np.ndarray]:
    """All numbers of float32 in chunks, or the sample."""
    if not EXHAUSTIVE:
        yield sample()
        return
    for start in range(0, 1 << 32, CHUNK):
        yield np.arange(start, start + CHUNK, dtype=np.int64).astype(np.uint32).view(np.float32)


class Conversion(Plan):
    """Converts numbers: in the first step of momentum the velocity becomes the gradient, widened, then narrowed."""

    def __init__(self, n: int, source: int, targets: tuple[int, ...], compute: int = F32, **around) -> None:
        super().__init__()
        group = self.group("momentum", lr=0.0)
        for target in targets:
            self.entry(group, n, param=compute, grad=source, state=target)
        self.set(**around)

    def convert(self, given: np.ndarray) -> list:
        """The velocities, one for each target; their memory is used again."""
        for entry in self.entries:
            assert set_grad(self.plan, entry.index, buffer(given, entry.grad.dtype)) == "OK"
            self.set_progress(entry, 0)
        assert step(self.plan) == "OK"
        self.updates += 1
        return [entry.state["velocity"] for entry in self.entries]


def converted(given: np.ndarray, source: int, target: int, compute: int = F32, **around) -> np.ndarray:
    with Conversion(given.size, source, (target,), compute, **around) as plan:
        return plan.convert(given)[0].memory


def assert_same(found: np.ndarray, wanted: np.ndarray, dtype: int) -> None:
    """The same bits, except those of NaN. Quick where all are the same."""
    differ = np.flatnonzero(found.view(f"u{found.itemsize}") != wanted.view(f"u{wanted.itemsize}"))
    differ = differ[bits(found[differ], dtype) != bits(wanted[differ], dtype)]
    assert not differ.size, f"{differ.size} differ, the first is {differ[0]}: {found[differ[0]]}, {wanted[differ[0]]}"


ALL_16_BITS = np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("wide", [F32, F64], ids=NAME.get)
def test_widening_every_bfloat16(wide):
    found = converted(ALL_16_BITS, BF16, wide, compute=wide)
    assert_same(found, ALL_16_BITS.view(ml_dtypes.bfloat16).astype(found.dtype), wide)
    assert_same(found, _stages.widen(ALL_16_BITS, "bfloat16", found.dtype), wide)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("wide", [F32, F64], ids=NAME.get)
def test_widening_every_float16(wide):
    found = converted(ALL_16_BITS.view(np.float16), F16, wide, compute=wide)
    assert_same(found, ALL_16_BITS.view(np.float16).astype(found.dtype), wide)


def nearest_float16(x: np.ndarray) -> np.ndarray:
    """By NumPy, but where all numbers are far from those of float16: NumPy reports each of them, which takes long."""
    magnitude = np.abs(x)
    if (magnitude >= 65536).all() or (magnitude < 2.0**-26).all():
        result = np.float16(np.inf if magnitude[0] > 1 else 0)
        return np.where(np.signbit(x), -result, result)
    return x.astype(np.float16)


def test_narrowing_every_float32_to_the_nearest():
    """On every instruction set, against ml_dtypes and NumPy, which share no code with gdm."""
    plan = None
    for x in every_number():
        plan = plan or Conversion(x.size, F32, (BF16, F16))
        wanted = x.astype(ml_dtypes.bfloat16).view(np.uint16), nearest_float16(x)
        for isa in ISAS:
            gdm.set_isa(isa)
            for found, right in zip(plan.convert(x), wanted, strict=True):
                assert_same(found.memory, right, found.dtype)
    plan.__exit__()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("narrower", [BF16, F16], ids=NAME.get)
def test_narrowing_float32_at_random(narrower):
    x = sample()
    found = converted(x, F32, narrower, rounding=STOCHASTIC, seed=11)
    assert_same(found, narrow(x, narrower, _stages.draws(11, 0, 0, 3, 0, x.size)), narrower)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("goes_up", [True, False])
def test_narrowing_to_the_smallest_float16_uses_31_bits_of_a_draw(goes_up):
    """m * 2^-55 is m / 2^31 of that number. It goes up if m and the upper 31 bits of the draw are 2^31 or more."""
    draws = _stages.draws(11, 0, 0, 3, 0, 1 << 16)
    m = (1 << 31) - (draws >> 1).astype(np.int64) - (not goes_up)
    m[(m < 1 << 23) | (m >= 1 << 24)] = 0  # with fewer bits or more, the probability is another one
    found = converted((m * 2.0**-55).astype(np.float32), F32, F16, rounding=STOCHASTIC, seed=11)
    assert np.count_nonzero(m & 1) > 50
    assert_same(found, ((m > 0) & goes_up).astype(np.uint16), F32)


def doubles() -> np.ndarray:
    """Some numbers of float32, and those of float64 beside them and halfway to the next one."""
    x = sample()[::31].astype(np.float64)
    halfway = (x + np.nextafter(x.astype(np.float32), np.float32(np.inf)).astype(np.float64)) / 2
    near = [np.nextafter(y, side) for y in (x, halfway) for side in (-np.inf, np.inf)]
    return np.concatenate([x, halfway, *near, [1e300, -1e300, 5e-324, 1e-46, 3.5e38]])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rounding", [NEAREST, STOCHASTIC], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("narrower", [F32, BF16, F16], ids=NAME.get)
def test_narrowing_float64(narrower, rounding):
    """By way of float32; float32 itself never at random."""
    x = doubles()
    found = converted(x, F64, narrower, compute=F64, rounding=rounding, seed=3)
    draws = _stages.draws(3, 0, 0, 3, 0, x.size) if rounding == STOCHASTIC else None
    assert_same(found, narrow(x, narrower, draws), narrower)


# ---- int8 --------------------------------------------------------------------------------------------------------


def blocks() -> np.ndarray:
    """Blocks of 128 numbers: for every exponent of the largest number, numbers of all magnitudes below it; multiples of
    the scale and their neighbours; zeros; special values alone and among others."""
    rng = np.random.default_rng(0)
    tops = np.ldexp(1.0, np.arange(-149, 128))[:, None]
    spread = rng.standard_normal((tops.size, 128)) * np.exp2(rng.integers(-20, 1, (tops.size, 128)))
    spread = tops * spread / np.abs(spread).max(axis=1, keepdims=True)
    codes = np.arange(-127, 128, dtype=np.float32)
    multiples = [np.resize(codes * np.float32(scale), 256).reshape(2, 128) for scale in (1.0, 1 / 127, 0.1, 1e-36)]
    beside = [np.nextafter(x, np.float32(side)) for x in multiples for side in (-np.inf, np.inf)]
    special = rng.standard_normal((40, 128))
    special[np.arange(32), np.arange(0, 128, 4)] = np.resize([np.nan, np.inf, -np.inf, 3e38], 32)
    special[32:] = np.array([0.0, -0.0, 1e-45, 1e-38, 3.4e38, np.inf, np.nan, 1e-30])[:, None]
    special[33, 77] = 1.0
    everything = np.concatenate([spread, *multiples, *beside, special]).astype(np.float32).ravel()
    return np.concatenate([everything, everything[5:105]])  # the last block is short


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("compute", [F32, F64], ids=NAME.get)
def test_int8_of_plain_states(compute):
    x = blocks()
    grads = x.astype(np.float64) * (1 + 2.0**-40) if compute == F64 else x
    with Conversion(x.size, compute, (INT8,), compute) as plan:
        for updates in range(2):
            stored = plan.convert(grads)[0]
            codes, scales = _stages.quantize(grads, _stages.draws(0, updates, 0, 3, 0, x.size), square=False)
            np.testing.assert_array_equal(stored.memory, codes)
            np.testing.assert_array_equal(bits(stored.scales), bits(scales))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("compute", [F32, F64], ids=NAME.get)
def test_int8_of_squares(compute):
    """rmsprop with alpha = 0: the state becomes the gradient's square."""
    x = np.sqrt(np.abs(blocks()))
    x[::5] *= np.float32(1e-9)
    with Plan() as plan:
        entry = plan.entry(plan.group("rmsprop", alpha=0.0, lr=0.0), x.size, param=compute, grad=F32, state=INT8)
        stored = entry.state["square_avg"]
        for updates in range(2):
            entry.grad.memory[...] = x
            for array in stored.arrays:
                array[...] = 0
            assert step(plan.plan) == "OK"
            grads = x.astype(entry.compute)
            codes, scales = _stages.quantize(grads * grads, _stages.draws(0, updates, 0, 3, 0, x.size), square=True)
            np.testing.assert_array_equal(stored.memory, codes)
            np.testing.assert_array_equal(bits(stored.scales), bits(scales))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("compute", [F32, F64], ids=NAME.get)
@pytest.mark.parametrize("square", [False, True], ids=["plain", "square"])
def test_reading_every_int8(square, compute):
    """All codes with scales of all magnitudes, in a step with gradients of zero."""
    scales = np.resize(np.concatenate([np.ldexp(1.0, np.arange(-149, 128)), [0.0, np.inf, np.nan, 3.4e38]]), 562)
    with Plan() as plan:
        rule, name = ("adagrad", "state_sum") if square else ("momentum", "velocity")
        entry = plan.entry(plan.group(rule, lr=1.0), scales.size * 128, param=compute, state=INT8, copy=F64)
        stored = entry.state[name]
        stored.memory.view(np.uint8)[...] = np.resize(np.arange(256, dtype=np.uint8), stored.memory.size)
        stored.scales[...] = scales
        entry.grad.set(np.zeros(entry.n))
        plan.set_progress(entry, 1)
        plan.step()


# ---- split parameters --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
def test_reading_split_parameters():
    """Every upper half, with lower halves at the ends of their range."""
    high = np.repeat(ALL_16_BITS, 6)
    low = np.resize(np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint16), high.size)
    with Plan() as plan:
        entry = plan.entry(plan.group("sgd", lr=0.0), high.size, param=BF16, split=True, copy=F32)
        entry.param.memory[...], entry.param.low[...] = high, low
        entry.grad.set(np.zeros(high.size))
        assert step(plan.plan) == "OK"
        assert_same(entry.copy.memory, _stages.join(high, low), F32)


def test_splitting_every_float32():
    """From -0 a step of sgd with lr = 1 leads to any number."""
    plan = None
    for x in every_number():
        if plan is None:
            plan = Plan()
            entry = plan.entry(plan.group("sgd", lr=1.0), x.size, param=BF16, split=True)
        (high, low), negative = _stages.split(x), -x
        for isa in ISAS:
            gdm.set_isa(isa)
            entry.param.memory[...], entry.param.low[...] = 0x8000, 0
            assert set_grad(plan.plan, 0, buffer(negative)) == "OK"
            assert step(plan.plan) == "OK"
            assert_same(entry.param.memory, high, F32)
            assert_same(entry.param.low, low, F32)
    plan.__exit__()


def test_every_dtype_is_converted_here():
    assert set(FLOATS) | {INT8} == set(NAME)
