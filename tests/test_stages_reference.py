"""The specification of the stages: against ml_dtypes, exact arithmetic, and statistics with fixed seeds."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from gdm import _stages
from test_reference import Rounded

inf, nan = math.inf, math.nan
CODES = np.arange(1 << 16, dtype=np.uint32)  # every pattern of 16 bits
EVERY_DRAW = CODES << 16  # every upper half of a draw
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
NARROW = ["bfloat16", "float16"]
narrow_storage = pytest.mark.parametrize("storage", NARROW)
both_kinds = pytest.mark.parametrize("square", [False, True], ids=["plain", "square"])
compute_dtypes = pytest.mark.parametrize("compute", [F32, F64], ids=["f32", "f64"])


def random_bits(n, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 32, n, dtype=np.uint32)


def from_bits(*bits):
    return np.array(bits, np.uint32).view(np.float32)


def bits_of(x):
    return x.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[x.itemsize])


def same_bits(x, y):
    """Whether all bits agree, but for those of NaNs."""
    assert x.dtype == y.dtype
    assert x.shape == y.shape
    with np.errstate(invalid="ignore"):
        both_nan = np.isnan(x) & np.isnan(y)
    return bool(np.all((bits_of(x) == bits_of(y)) | both_nan))


def floats(x, storage):
    """Stored numbers as ml_dtypes or NumPy understand them."""
    return x.view(ml_dtypes.bfloat16) if storage == "bfloat16" else x


def magnitudes(storage):
    """Every magnitude of a storage dtype, as float64; instead of infinity what would come there."""
    last = {"bfloat16": 0x7F80, "float16": 0x7C00}[storage]
    stored = np.arange(last + 1, dtype=np.uint16)
    values = floats(stored if storage == "bfloat16" else stored.view(np.float16), storage).astype(np.float64)
    values[last] = 2 * values[last - 1] - values[last - 2]
    return values


def neighbours(x, storage):
    """For finite float32 numbers: the code of the magnitude below or equal; and how far above it they are, 0 to 1."""
    values, size = magnitudes(storage), np.abs(x.astype(np.float64))
    below = np.minimum(np.searchsorted(values, size, side="right") - 1, values.size - 1)
    above = np.minimum(below + 1, values.size - 1)
    width = np.where(above > below, values[above] - values[below], 1.0)
    return below, np.minimum((size - values[below]) / width, 1.0)


def magnitude_codes(x):
    return (bits_of(x) & 0x7FFF).astype(np.int64)


def interesting_floats(lower):
    """float32 numbers with every upper half, of some kind with every exponent, and each of these lower halves."""
    return np.concatenate([((CODES << 16) | np.uint32(low)).view(np.float32) for low in lower])


# ---- widening ------------------------------------------------------------------------------------------------------


@compute_dtypes
@narrow_storage
def test_widening_is_that_of_ml_dtypes_and_numpy(storage, compute):
    stored = CODES.astype(np.uint16) if storage == "bfloat16" else CODES.astype(np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):
        wanted = floats(stored, storage).astype(compute)
    assert same_bits(_stages.widen(stored, storage, compute), wanted)


def test_widening_of_wide_storage():
    single, double = random_bits(1000).view(np.float32), np.array([1.0, -5e-324, inf, nan])
    assert same_bits(_stages.widen(single, "float32", np.float32), single)
    with np.errstate(invalid="ignore"):
        assert same_bits(_stages.widen(single, "float32", np.float64), single.astype(np.float64))
    assert same_bits(_stages.widen(double, "float64", np.float64), double)


@pytest.mark.parametrize(("storage", "compute"), [("float64", F32), ("int8", F32), ("int8", F64), ("half", F32)])
def test_what_cannot_be_widened_is_refused(storage, compute):
    with pytest.raises(ValueError, match=f"'{storage}'.*{compute}"):
        _stages.widen(np.zeros(3), storage, compute)


@narrow_storage
def test_narrowing_what_was_widened_gives_it_back(storage):
    stored = CODES.astype(np.uint16) if storage == "bfloat16" else CODES.astype(np.uint16).view(np.float16)
    for compute, r in itertools.product((F32, F64), (None, random_bits(stored.size), np.full(stored.size, 2**32 - 1))):
        r = None if r is None else r.astype(np.uint32)
        back = _stages.narrow(_stages.widen(stored, storage, compute), storage, r)
        assert same_bits(floats(back, storage), floats(stored, storage))


# ---- narrowing to nearest even -------------------------------------------------------------------------------------


# Zero, ties and their neighbours: of bfloat16 at bit 15, of normal float16 at bit 12; of subnormal float16 at any bit.
LOWER = sorted({0, 1, 0x5555, 0xFFFF} | {(1 << k) + d for k in range(1, 16) for d in (-1, 0, 1)})
NUMPYS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@narrow_storage
def test_narrowing_is_that_of_ml_dtypes_and_numpy(storage):
    for low in LOWER:
        x = interesting_floats([low])
        with np.errstate(all="ignore"):
            wanted = x.astype(NUMPYS[storage])
        assert same_bits(floats(_stages.narrow(x, storage), storage), wanted), hex(low)


@narrow_storage
def test_narrowing_is_to_nearest_even(storage):
    """Neither library is trusted: the nearest one of all numbers, found in float64."""
    x = np.concatenate([interesting_floats([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]), random_bits(200_000).view(F32)])
    x = x[np.isfinite(x)]
    values, (below, _) = magnitudes(storage), neighbours(x, storage)
    above = np.minimum(below + 1, values.size - 1)
    middle, size = (values[below] + values[above]) / 2, np.abs(x.astype(np.float64))
    up = (size > middle) | ((size == middle) & (below % 2 == 1))
    narrowed = _stages.narrow(x, storage)
    np.testing.assert_array_equal(magnitude_codes(narrowed), np.where(up, above, below))
    np.testing.assert_array_equal(bits_of(narrowed) >> 15, np.signbit(x))


@narrow_storage
def test_float64_is_first_rounded_to_float32(storage):
    """A tie of float32 and a bit goes to the tie, and from there to even: not to the nearest."""
    x = np.array([1 + 2**-8 + 2**-40, 1 + 2**-11 + 2**-40, 1e300, -1e300, 1e-300, nan, inf])
    with np.errstate(over="ignore"):
        single = x.astype(np.float32)
    for r in (None, random_bits(x.size)):
        narrowed = _stages.narrow(x, storage, r)
        assert same_bits(floats(narrowed, storage), floats(_stages.narrow(single, storage, r), storage))
    widened = _stages.widen(_stages.narrow(x, storage), storage, np.float64)
    assert widened[0 if storage == "bfloat16" else 1] == 1
    np.testing.assert_array_equal(widened[2:], [inf, -inf, 0, nan, inf])


def test_narrowing_to_wide_storage_is_a_cast_and_ignores_draws():
    x = np.array([1 + 2**-24, 1 + 3 * 2**-24, 1e300, -0.0, 1e-46, nan, -inf])
    for r in (None, random_bits(x.size)):
        wanted = np.array([1, 1 + 2**-22, inf, -0.0, 0, nan, -inf], F32)
        assert same_bits(_stages.narrow(x, "float32", r), wanted)
        assert same_bits(_stages.narrow(x, "float64", r), x)
        assert same_bits(_stages.narrow(wanted, "float64", r), wanted.astype(F64))
        assert same_bits(_stages.narrow(wanted, "float32", r), wanted)


def test_narrowing_to_another_storage_is_refused():
    for storage in ("int8", "half"):
        with pytest.raises(ValueError, match=f"'{storage}'"):
            _stages.narrow(np.zeros(3), storage)


@narrow_storage
def test_a_nan_stays_a_quiet_nan(storage):
    """Whatever its bits are: also where a carry would make infinity or zero of them."""
    quiet = from_bits(0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF)
    signaling = from_bits(0x7F800001, 0xFF800001, 0x7F80FFFF, 0x7FBFFFFF)
    for x in (quiet, signaling):
        for r in (None, np.zeros(4, np.uint32), np.full(4, 2**32 - 1, np.uint32)):
            narrowed = _stages.narrow(x, storage, r)
            assert np.isnan(_stages.widen(narrowed, storage, np.float32)).all()
            if storage == "bfloat16" or r is not None:
                assert (bits_of(narrowed) & (0x40 if storage == "bfloat16" else 0x200)).all()


# ---- stochastic rounding -------------------------------------------------------------------------------------------


@narrow_storage
def test_numbers_that_the_storage_has_do_not_move(storage):
    """Infinity is one of them."""
    stored = CODES.astype(np.uint16) if storage == "bfloat16" else CODES.astype(np.uint16).view(np.float16)
    x = _stages.widen(stored, storage, np.float32)
    for r in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        narrowed = _stages.narrow(x, storage, np.full(x.size, r, np.uint32))
        assert same_bits(floats(narrowed, storage), floats(stored, storage))


@narrow_storage
def test_stochastic_rounding_gives_one_of_the_two_neighbours(storage):
    x = np.concatenate([interesting_floats([0, 1, 0x1234, 0x8000, 0xFFFF]), random_bits(200_000).view(F32)])
    x = x[np.isfinite(x)]
    below, fraction = neighbours(x, storage)
    top = magnitudes(storage).size - 1
    lowest, highest = (np.full(x.size, r, np.uint32) for r in (0, 0xFFFFFFFF))
    for r in (lowest, random_bits(x.size, 1), highest):
        narrowed = _stages.narrow(x, storage, r)
        step = magnitude_codes(narrowed) - below
        assert ((step == 0) | ((step == 1) & (fraction > 0))).all()
        np.testing.assert_array_equal(bits_of(narrowed) >> 15, np.signbit(x))
    # The lowest draw never goes up; the highest does, unless a number is nearly the one below.
    np.testing.assert_array_equal(magnitude_codes(_stages.narrow(x, storage, lowest)), np.minimum(below, top))
    step = magnitude_codes(_stages.narrow(x, storage, highest)) - below
    assert (step[fraction >= 2.0**-13] == np.where(below < top, 1, 0)[fraction >= 2.0**-13]).all()


@pytest.mark.parametrize(
    "x", [1 + 2**-8, 1 / 3, -math.pi, 1e-39, -3e-42, 2.0**-149, 3e38, 3.4e38, 65504.1, 1 + 2**-23, 2 - 2**-23]
)
def test_all_draws_together_give_bfloat16_its_exact_mean(x):
    x = np.float32(x)
    below, fraction = neighbours(np.array([x]), "bfloat16")
    for low in (0, 0xFFFF):  # the lower half of a draw does not matter
        narrowed = _stages.narrow(np.full(1 << 16, x), "bfloat16", EVERY_DRAW | np.uint32(low))
        assert (magnitude_codes(narrowed) > below).sum() == fraction[0] * 2**16
    values = magnitudes("bfloat16")[magnitude_codes(narrowed)]
    assert sum(map(Fraction, values)) == 2**16 * abs(Fraction(float(x)))


@pytest.mark.parametrize(
    ("x", "bits"),
    [
        (1 + 2**-11, 13),
        (1 / 3, 13),
        (-65504.5, 13),
        (65519.0, 13),
        (2.0**-14 + 2.0**-30, 13),
        (-(2.0**-14) + 2.0**-36, 14),
        (5.5 * 2.0**-24, 21),  # a subnormal of float16: more digits go away
        (0.75 * 2.0**-24, 24),
    ],
)
def test_all_draws_together_give_float16_its_exact_mean(x, bits):
    """Of the upper ``bits`` of a draw, as many as digits go away; in 2**20 even steps where these are more."""
    x, steps = np.float32(x), 1 << min(bits, 20)
    r = np.arange(steps, dtype=np.uint32) * np.uint32(2**32 // steps)
    narrowed = _stages.narrow(np.full(steps, x), "float16", r)
    below, fraction = neighbours(np.array([x]), "float16")
    assert (magnitude_codes(narrowed) > below).sum() == fraction[0] * steps


def test_float16_keeps_means_of_many_numbers():
    """Also where a number is a small part of the smallest one, 2**-24."""
    n = 200_000
    sizes = [12345.678, 1.0001, 6.1e-5, 6.0e-5, 1.2345e-5, 1e-6, 9.5e-8, 5.9e-8, 3.3e-8, 2.0**-26, 1.1e-9, 3e-12]
    for k, x in enumerate(np.array(sizes, F32)):
        x = -x if k % 2 else x
        narrowed = _stages.narrow(np.full(n, x), "float16", _stages.draws(1, k, 0, 0, 0, n))
        below, (p,) = neighbours(np.array([x]), "float16")
        ups = (magnitude_codes(narrowed) > below).sum()
        assert abs(ups - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1, x


@pytest.mark.parametrize("exponent", [-32, -40, -55, -56, -57, -58, -70, -100, -126, -127, -149])
def test_float16_goes_up_from_tiny_numbers_with_their_probability(exponent):
    """To within 2**-31: x goes up to 2**-24 if a draw, of which 31 bits count, is among the last x / 2**-24 of all."""
    x = np.full(2, 2.0**exponent + (2.0 ** (exponent - 23) if exponent > -100 else 0), F32)
    out_of_2_31 = math.floor(Fraction(float(x[0])) * 2 ** (24 + 31))
    first = 2**31 - out_of_2_31
    r = np.array([2 * first - 1, min(2 * first, 2**32 - 1)], np.uint32)
    assert bits_of(_stages.narrow(x, "float16", r)).tolist() == [0, 1 if out_of_2_31 else 0]
    assert bits_of(_stages.narrow(-x, "float16", r)).tolist() == [0x8000, 0x8001 if out_of_2_31 else 0x8000]


def test_float16_overflows_to_infinity():
    x = np.array([65504, 65520, 65535, 65536, 1e5, 3e38, inf, -65520, -65536, -inf], F32)
    low, high = (_stages.narrow(x, "float16", np.full(x.size, r, np.uint32)) for r in (0, 2**32 - 1))
    np.testing.assert_array_equal(low, [65504, 65504, 65504, inf, inf, inf, inf, -65504, -inf, -inf])
    np.testing.assert_array_equal(high, [65504, inf, inf, inf, inf, inf, inf, -inf, -inf, -inf])


# ---- random bits ---------------------------------------------------------------------------------------------------


def mix64(z):
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 % 2**64
    z ^= z >> 27
    z = z * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def draw(seed, step, entry, role, element):
    """One draw in Python's integers."""
    key = 0
    for word in (seed, step, entry, role, element >> 32):
        key = mix64((key + word + 0x9E3779B97F4A7C15) % 2**64)
    x = (element + key) % 2**32
    x ^= x >> 16
    x = x * 0x21F0AAAD % 2**32
    x ^= x >> 15
    x ^= key >> 32
    x = x * 0xD35A2D97 % 2**32
    return x ^ x >> 15


GOLDEN = {
    (0, 0, 0, 0, 0): "78bd3815 bef5542a 3f83fa10 d15ecd28",
    (1, 2, 3, 4, 5): "84d6e0ba 281f1235 52f8d3ea 2894cb9a",
    (0, 1, 0, 0, 2**32 - 2): "01471065 e5d310cd 77b911e7 2993540e",
    (42, 1000, 7, 2, 5 * 2**32 - 1): "e165b0cd e335261a 302deb81 3da05060",
    (2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 4): "f06f4f18 9af400b6 ffd36537 b192096d",
}


@pytest.mark.parametrize("first", GOLDEN)
def test_draws_do_not_change(first):
    *key, start = first
    found = _stages.draws(*key, start, 4)
    assert found.dtype == np.uint32
    assert " ".join(f"{x:08x}" for x in found) == GOLDEN[first]
    assert found.tolist() == [draw(*key, start + k) for k in range(4)]


def test_keys_are_mixed_as_by_splitmix64():
    """Its published first three outputs for the seed 1234567."""
    state, found = 1234567, []
    for _ in range(3):
        state += 0x9E3779B97F4A7C15
        found.append(int(_stages._mix64(np.array([state % 2**64], np.uint64))[0]))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_those_of_each_element():
    """Wherever a tile begins: also around a multiple of 2**32, where the key changes."""
    for start in (0, 2**32 - 50, 2**63 - 1):
        whole = _stages.draws(9, 8, 7, 6, start, 100)
        assert whole.tolist() == [draw(9, 8, 7, 6, start + k) for k in range(100)]
        parts = [_stages.draws(9, 8, 7, 6, start + k, n) for k, n in ((0, 0), (0, 49), (49, 2), (51, 49))]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_draws_depend_on_every_word():
    base = _stages.draws(0, 0, 0, 0, 0, 8)
    for word in range(4):
        for value in (1, 2**32, 2**63):
            key = [0, 0, 0, 0]
            key[word] = value
            assert (_stages.draws(*key, 0, 8) != base).all()
    assert (_stages.draws(0, 0, 0, 0, 2**32, 8) != base).all()
    assert len({tuple(_stages.draws(*key, 0, 4)) for key in itertools.permutations(range(4))}) == 24


def test_draws_are_balanced_and_not_correlated():
    """Each bit; and each draw with that of the next element, step, entry, role, seed, and 2**32 elements on."""
    n = 1 << 18
    for step in (0, 1, 12345):
        x = _stages.draws(0, step, 0, 0, 0, n)
        ones = np.array([np.count_nonzero(x >> k & 1) for k in range(32)])
        assert (np.abs(ones - n / 2) < 5 * math.sqrt(n) / 2).all()
        u = (x - 2.0**31) / (2**32 / math.sqrt(12))  # of mean 0 and variance 1
        others = [
            _stages.draws(0, step, 0, 0, 1, n),
            _stages.draws(0, step + 1, 0, 0, 0, n),
            _stages.draws(0, step, 1, 0, 0, n),
            _stages.draws(0, step, 0, 1, 0, n),
            _stages.draws(1, step, 0, 0, 0, n),
            _stages.draws(0, step, 0, 0, 2**32, n),
        ]
        for other in others:
            v = (other - 2.0**31) / (2**32 / math.sqrt(12))
            assert abs(u @ v) < 5 * math.sqrt(n)
            agree = np.array([np.count_nonzero(~(x ^ other) >> k & 1) for k in range(32)])
            assert (np.abs(agree - n / 2) < 5 * math.sqrt(n) / 2).all()
        cells = np.bincount((x >> 24).astype(np.int64), minlength=256)  # chi-squared with 255 degrees of freedom
        assert abs(((cells - n / 256) ** 2).sum() / (n / 256) - 255) < 5 * math.sqrt(2 * 255)


# ---- int8 states ---------------------------------------------------------------------------------------------------


def state(n, square, seed=0):
    x = np.random.default_rng(seed).standard_normal(n) * 10.0 ** np.random.default_rng(seed + 1).uniform(-3, 0, n)
    return (x * x if square else x).astype(np.float32)


def read(x, r, square, compute=F64):
    codes, scales = _stages.quantize(x, r, square=square)
    return _stages.dequantize(codes, scales, square=square, compute=compute)


@both_kinds
def test_quantize_is_its_formula_rounded_at_each_operation(square):
    """In exact arithmetic, rounded as float32: two blocks, of which the second is short."""
    x, r = state(150, square), random_bits(150)
    x[7], x[130] = 0.0, np.float32(1e-20)
    codes, scales = _stages.quantize(x, r, square=square)
    for first, scale in zip((0, 128), scales, strict=True):
        block = [Rounded(v, F32) for v in x[first : first + 128]]
        top = Rounded(max(abs(v.value) for v in block), F32)
        wanted_scale = top.sqrt() / Rounded(255.0, F32) if square else top / Rounded(127.0, F32)
        assert Fraction(float(scale)) == wanted_scale.value
        for k, v in enumerate(block, first):
            u = Fraction(2 * (int(r[k]) >> 16) + 1, 2**17)
            if square:
                y = v.sqrt() / wanted_scale
                q = Rounded(Fraction(math.floor(y.value)), F32)
                p = (y - q) * (y + q) / (q + q + Rounded(1.0, F32))
                code = min(q.value + (u < p.value), 255)
                code = max(code, 1) if v.value > 0 else code
            else:
                code = max(-127, min(127, math.floor((v / wanted_scale + Rounded(u, F32)).value)))
            assert codes[k] == code, k


@compute_dtypes
@both_kinds
def test_dequantize_is_its_formula_in_float32(square, compute):
    codes = np.arange(256).astype(np.uint8) if square else np.arange(-128, 128).astype(np.int8)
    scales = np.array([0.1, 1e-23], F32)
    t = codes.astype(F32) * np.repeat(scales, 128)
    found = _stages.dequantize(codes, scales, square=square, compute=compute)
    assert same_bits(found, (t * t if square else t).astype(compute))


@both_kinds
def test_shapes_and_dtypes_of_codes_and_scales(square):
    for n in (0, 1, 127, 128, 129, 255, 256, 257, 1000):
        x = state(n, square)
        codes, scales = _stages.quantize(x, random_bits(n), square=square)
        assert codes.dtype == (np.uint8 if square else np.int8)
        assert scales.dtype == np.float32
        assert (codes.size, scales.size) == (n, -(-n // 128))
        for compute in (F32, F64):
            back = _stages.dequantize(codes, scales, square=square, compute=compute)
            assert (back.size, back.dtype) == (n, compute)


@both_kinds
def test_blocks_do_not_see_each_other(square):
    """And begin at the start of the entry; a float64 state is first rounded to float32."""
    x, r = state(1000, square), random_bits(1000)
    codes, scales = _stages.quantize(x, r, square=square)
    for first in range(0, 1000, 128):
        part = slice(first, first + 128)
        some, scale = _stages.quantize(x[part], r[part], square=square)
        np.testing.assert_array_equal(codes[part], some)
        assert scale == scales[first // 128]
    for found, wanted in zip(
        _stages.quantize(x.astype(F64) * (1 + 2.0**-30), r, square=square), (codes, scales), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@both_kinds
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30, 1e-34])
def test_quantized_states_are_within_one_code(square, size):
    x = state(10_000, square) * np.float32(size)
    codes, scales = _stages.quantize(x, random_bits(x.size), square=square)
    scale = np.repeat(scales, 128)[: x.size].astype(F64)
    back = codes * scale
    wanted = np.sqrt(x.astype(F64)) if square else x
    assert (np.abs(back - wanted) <= scale * (1 + 2.0**-15)).all()
    largest = np.maximum.reduceat(np.abs(codes.astype(int)), range(0, x.size, 128))
    assert (largest == (255 if square else 127)).all()


def every_draw_of(values, top, square):
    """The mean of what is read, over all upper halves of a draw, for each value in a block with this largest number."""
    x = np.zeros((1 << 16, 128), F32)
    x[:, : len(values)], x[:, -1] = np.array(values, F32), top
    r = np.repeat(EVERY_DRAW, 128)
    codes, scales = _stages.quantize(x.ravel(), r, square=square)
    return codes.reshape(x.shape)[:, : len(values)].astype(F64), float(scales[0])


def test_all_draws_together_keep_the_mean_of_a_state():
    """To within half a step of the 2**16 that u has."""
    values = [0.0, 1.0, -1.0, 0.3, -0.3, 1e-3, -1e-5, 0.999, 63.5, -100.25, 126.9]
    codes, scale = every_draw_of(values, 127.0, square=False)
    assert scale == 1
    np.testing.assert_allclose(codes.mean(axis=0), values, rtol=0, atol=2.0**-17 + 2.0**-18)
    assert (codes[:, :3] == [0, 1, -1]).all()


def test_all_draws_together_keep_the_mean_of_a_square():
    """Relative to the width 2 * q + 1 of the step that is rounded. Below one code, the code is 1."""
    roots = np.array([1.0, 1.25, 1.5, 2.75, 17.3, 100.0, 200.7, 254.9, 255.0])
    codes, scale = every_draw_of(roots**2, 255.0**2, square=True)
    assert scale == 1
    squares = np.array(roots**2, F32).astype(F64)
    assert (np.abs((codes**2).mean(axis=0) - squares) <= (2 * roots + 1) * (2.0**-17 + 2.0**-18)).all()
    assert (codes[:, [0, 5, 8]] == [1, 100, 255]).all()
    below_one, _ = every_draw_of([0.0, 1e-45, 1e-10, 0.25, 0.99], 255.0**2, square=True)
    assert (below_one == [0, 1, 1, 1, 1]).all()


@both_kinds
def test_quantized_states_keep_the_mean(square):
    """The errors of many states, each over its standard deviation."""
    n = 400_000
    x = state(n, square).astype(F64)
    codes, scales = _stages.quantize(x.astype(F32), _stages.draws(3, 1, 4, 1, 0, n), square=square)
    scale = np.repeat(scales, 128)[:n].astype(F64)
    y = np.sqrt(x) / scale if square else x / scale
    q = np.floor(y)
    low, high = (q**2, (q + 1) ** 2) if square else (q, q + 1)
    exact = y**2 if square else y
    p = (exact - low) / (high - low)
    chosen = (p > 0.01) & (p < 0.99) & (y >= 1 if square else True)
    assert chosen.sum() > n / 2
    found = codes.astype(F64) ** 2 if square else codes.astype(F64)
    p, z = p[chosen], ((found - exact) / (high - low))[chosen]
    z = z / np.sqrt(p * (1 - p))
    assert abs(z.sum()) < 5 * math.sqrt(z.size)
    assert z.std() == pytest.approx(1, abs=0.02)


def test_a_square_goes_up_if_the_draw_is_below_its_probability():
    """And not if they are equal, as here: the probability is 41308.5 / 2**16."""
    x = np.array([float.fromhex("0x1.720ac2p+1"), 255.0**2], F32)
    for upper, code in ((41307, 2), (41308, 1), (41309, 1)):
        codes, scales = _stages.quantize(x, np.full(2, upper << 16, np.uint32), square=True)
        assert (scales[0], codes[0]) == (1, code)


@pytest.mark.parametrize(("x", "square", "most"), [("0x1.021a6ap+0", True, 255), ("0x1.0000440000000p+0", False, 127)])
def test_codes_do_not_overflow_where_the_scale_was_rounded_down(x, square, most):
    """The largest number over the scale is then a bit more than the last code."""
    x = np.float32(float.fromhex(x))
    y = np.sqrt(x) / (np.sqrt(x) / np.float32(255)) if square else x / (x / np.float32(127))
    assert y > most
    for sign in (1,) if square else (1, -1):
        for r in (0, 0xFFFFFFFF):
            codes, _ = _stages.quantize(np.array([sign * x]), np.array([r], np.uint32), square=square)
            assert codes[0] == sign * most


@both_kinds
def test_blocks_that_are_not_finite_or_zero(square):
    """A block with NaN or infinity is read as NaN, also if it is short; the others are not touched by it."""
    x, r = np.ones(128 * 6 + 5, F32), random_bits(128 * 6 + 5)
    x[5] = nan
    x[128 + 127] = inf
    x[256:384] = 0.0
    x[384:512] = -0.0
    x[512:514] = from_bits(0x7F800001, 0xFFFFFFFF)  # a signaling NaN, and a negative one
    x[-1] = inf
    codes, scales = _stages.quantize(x, r, square=square)
    assert not codes[:640].any()
    assert not codes[-5:].any()
    np.testing.assert_array_equal(scales[:5], [nan, inf, 0, 0, nan])
    assert scales[6] == inf
    for compute in (F32, F64):
        back = _stages.dequantize(codes, scales, square=square, compute=compute)
        wanted = np.repeat([nan, nan, 0, 0, nan, 1, nan], 128)[: x.size]
        np.testing.assert_allclose(back, wanted, rtol=1e-6)


def test_negative_infinity_is_not_finite_either():
    back = read(np.array([1.0, -inf], F32), random_bits(2), square=False)
    assert np.isnan(back).all()


def test_tiny_states():
    """Those whose scale would be subnormal are 0; those of squares always have a normal scale."""
    for top, wanted in ((2.0**-149, 0), (126 * 2.0**-126, 0), (127 * 2.0**-126, 127), (2.0**-118, 127)):
        x = np.array([top, -top, 0.0], F32)
        codes, scales = _stages.quantize(x, random_bits(3), square=False)
        assert scales[0] == np.float32(top) / np.float32(127)
        assert codes.tolist() == [wanted, -wanted, 0]
    codes, scales = _stages.quantize(np.array([2.0**-149, 0.0], F32), random_bits(2), square=True)
    assert scales[0] > np.finfo(F32).smallest_normal
    assert codes.tolist() == [255, 0]
    np.testing.assert_allclose(np.sqrt(read(np.array([1e-44], F32), random_bits(1), True)), np.sqrt(1e-44), rtol=0.3)


def test_largest_states():
    """But the very largest may overflow when it is read, where the scale was rounded up."""
    largest = np.finfo(F32).max * np.float32(1 - 2.0**-20)
    x = np.array([largest, -largest, largest / 2], F32)
    np.testing.assert_allclose(read(x, random_bits(3), False), x, rtol=0.02)
    np.testing.assert_allclose(read(np.abs(x), random_bits(3), True), np.abs(x), rtol=0.02)


def test_negative_numbers_where_a_square_is_expected_do_not_raise():
    x = np.array([-1.0, 4.0, -9.0, -0.0], F32)
    codes, scales = _stages.quantize(x, random_bits(4), square=True)
    assert scales[0] == np.float32(3) / np.float32(255)
    assert (codes[1], codes[3]) in {(170, 0), (171, 0)}


def test_a_float64_state_too_large_for_float32_is_not_finite():
    for square in (False, True):
        assert np.isnan(read(np.array([1e300, 1.0]), random_bits(2), square)).all()


# ---- split masters -------------------------------------------------------------------------------------------------


def test_split_masters_come_back_exactly():
    """Every upper half, of all exponents and both signs, with ties, subnormals, the largest and infinities."""
    x = np.concatenate([interesting_floats(LOWER), random_bits(500_000).view(F32)])
    high, low = _stages.split(x)
    assert high.dtype == low.dtype == np.uint16
    back = _stages.join(high, low)
    assert same_bits(back, x)
    assert (bits_of(back)[np.isnan(x)] == 0x7FC00000).all()


def test_the_upper_half_of_a_split_master_is_the_nearest_bfloat16():
    x = interesting_floats([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    x = x[np.isfinite(x)]
    below, fraction = neighbours(x, "bfloat16")
    high, _ = _stages.split(x)
    np.testing.assert_array_equal(magnitude_codes(high), np.where(fraction >= 0.5, below + 1, below))
    np.testing.assert_array_equal(high >> 15, np.signbit(x))
    nearest = _stages.narrow(x, "bfloat16")
    np.testing.assert_array_equal(high[fraction != 0.5], nearest[fraction != 0.5])


@pytest.mark.parametrize(
    ("bits", "high", "low"),
    [
        (0x3F800000, 0x3F80, 0x0000),
        (0x3F807FFF, 0x3F80, 0x7FFF),
        (0x3F808000, 0x3F81, 0x8000),  # a tie: away from zero
        (0xBF818000, 0xBF82, 0x8000),
        (0x7F7FFFFF, 0x7F80, 0xFFFF),  # the largest: infinity, and one less
        (0xFF7FFFFF, 0xFF80, 0xFFFF),
        (0x7F800000, 0x7F80, 0x0000),
        (0xFF800000, 0xFF80, 0x0000),
        (0x80000000, 0x8000, 0x0000),
        (0x00000001, 0x0000, 0x0001),
        (0x7F800001, 0x7FC0, 0x0000),
        (0xFFFFFFFF, 0x7FC0, 0x0000),
    ],
)
def test_halves_of_split_masters(bits, high, low):
    assert [x.tolist() for x in _stages.split(from_bits(bits))] == [[high], [low]]


# ---- arithmetic in the compute dtype -------------------------------------------------------------------------------


@compute_dtypes
def test_arithmetic_is_rounded_once_at_each_operation(compute):
    """The factor, too."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 100)).astype(compute)
    factor = 0.1234567890123
    f = Rounded(Fraction(float(compute.type(factor))), compute)
    exact = [(Rounded(x, compute), Rounded(y, compute)) for x, y in zip(a, b, strict=True)]
    for found, wanted in (
        (_stages.scaled(a, factor), [f * x for x, _ in exact]),
        (_stages.averaged(a, b, factor), [x + f * (y - x) for x, y in exact]),
        (_stages.accumulated(a, b, factor), [x + f * y for x, y in exact]),
    ):
        assert found.dtype == compute
        np.testing.assert_array_equal(found, [float(x.value) for x in wanted])


@compute_dtypes
def test_limited(compute):
    most = 0.1  # not a number of either dtype
    limit = compute.type(most)
    g = np.array([nan, inf, -inf, 0.0, -0.0, limit, -limit, np.nextafter(limit, compute.type(1)), -1, 0.05], compute)
    wanted = np.array([nan, limit, -limit, 0.0, -0.0, limit, -limit, limit, -limit, g[-1]], compute)
    assert same_bits(_stages.limited(g, most), wanted)
    assert same_bits(_stages.limited(g, inf), g)
    assert same_bits(_stages.limited(g[3:5], 0.0), g[3:5])  # the sign of a zero stays
    assert same_bits(_stages.limited(g[3:], 1e300)[:2], g[3:5])


def test_arithmetic_propagates_what_is_not_finite_without_a_warning():
    x, y = np.array([inf, nan, 3e38, 1e-45], F32), np.array([inf, 1, -3e38, 0], F32)
    np.testing.assert_array_equal(_stages.scaled(x, 1e300), [inf, nan, inf, inf])
    np.testing.assert_array_equal(_stages.averaged(x, y, 0.5), [nan, nan, -inf, np.float32(1e-45)])
    np.testing.assert_array_equal(_stages.accumulated(x, y, -2.0), [nan, nan, inf, np.float32(1e-45)])


def test_the_weight_of_an_average():
    assert _stages.average_weight(0.999, 7, False) == 1.0 - 0.999
    assert _stages.average_weight(0.0, 7, True) == _stages.average_weight(0.5, 1, True) == 1.0
    assert _stages.average_weight(0.999, 1, True) == 1.0
    power = (0.9 * (0.9 * 0.9)) * ((0.9 * 0.9) * (0.9 * 0.9))  # 0.9**7, in the order of its bits
    assert _stages.average_weight(0.9, 7, True) == (1.0 - 0.9) / (1.0 - power)
    assert _stages.average_weight(0.999, 10**9, True) == 1.0 - 0.999
    # The weights of all parameters so far add up to 1.
    shares = [1.0]
    for step in range(2, 50):
        weight = _stages.average_weight(0.9, step, True)
        shares = [share * (1 - weight) for share in shares] + [weight]
    np.testing.assert_allclose(shares, 0.9 ** np.arange(48, -1, -1) * 0.1 / (1 - 0.9**49), rtol=1e-12)


# ---- all of them ---------------------------------------------------------------------------------------------------


def test_inputs_are_not_modified():
    """They may even be read-only."""
    n = 300
    single, double, r = random_bits(n).view(F32), state(n, True).astype(F64), random_bits(n, 1)
    half, upper = single.view(np.float16)[:n].copy(), r.astype(np.uint16)
    codes, scales = np.arange(n).astype(np.int8), np.ones(3, F32)
    inputs = single, double, r, half, upper, codes, scales
    before = [x.tobytes() for x in inputs]
    for x in inputs:
        x.flags.writeable = False
    for storage, x in (("bfloat16", upper), ("float16", half), ("float32", single), ("float64", double)):
        assert not np.shares_memory(_stages.widen(x, storage, np.float64), x)
    for storage, x, draws in itertools.product(_stages.STORED, (single, double), (None, r)):
        assert not np.shares_memory(_stages.narrow(x, storage, draws), x)
    for x, square in itertools.product((single, double), (False, True)):
        _stages.quantize(x, r, square=square)
    _stages.dequantize(codes, scales, square=False, compute=np.float32)
    _stages.join(*_stages.split(single))
    _stages.join(upper, upper)
    for x in (single, double):
        for y in (_stages.scaled(x, 1.0), _stages.limited(x, inf), _stages.averaged(x, x, 1.0)):
            assert not np.shares_memory(x, y)
        _stages.accumulated(x, x, 1.0)
    assert [x.tobytes() for x in inputs] == before


def test_empty_arrays():
    empty, none = np.zeros(0, F32), np.zeros(0, np.uint32)
    for storage in _stages.STORED:
        assert _stages.widen(_stages.narrow(empty, storage, none), storage, np.float64).size == 0
    assert _stages.draws(1, 2, 3, 4, 5, 0).size == 0
    assert _stages.join(*_stages.split(empty)).size == 0
    for square in (False, True):
        assert read(empty, none, square).size == 0
