"""The reductions of gdm.h: the order of additions that the header promises, on every instruction set and thread."""

from __future__ import annotations

from ctypes import CFUNCTYPE, byref, c_char_p, c_double, c_int, c_size_t

import numpy as np
import pytest

import gdm
from cplan import (
    INT8,
    Buffer,
    add_arrays,
    buffer,
    destroy,
    function,
    new_group,
    new_plan,
    plan_reduce,
    reduce,
    set_grad,
    steps_of,
)
from cplan import set_num_threads as plan_set_num_threads
from gdm import _stages
from support import ISAS

SUM_OF_SQUARES, LARGEST_MAGNITUDE, NONFINITE_COUNT = KINDS = range(3)
BLOCK, LANES, WINDOW = 4096, 32, 1024 * 4096
SIZES = [*range(258), BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 17, 7 * BLOCK]
nan, inf = float("nan"), float("inf")

set_isa = function("set_isa", c_char_p)
set_num_threads = function("set_num_threads", c_int)
get_num_threads = CFUNCTYPE(c_int)(gdm.c_functions()["gdm_get_num_threads"][0])
isa = CFUNCTYPE(c_char_p)(gdm.c_functions()["gdm_isa"][0])


def in_a_tree(results: list, combine):
    """The left part has the largest power of two of the results that is less than their number."""
    if len(results) == 1:
        return results[0]
    left = 1
    while 2 * left < len(results):
        left *= 2
    return combine(in_a_tree(results[:left], combine), in_a_tree(results[left:], combine))


def squares_of_block(block: np.ndarray) -> np.float64:
    padded = np.zeros(-(-block.size // LANES) * LANES)
    padded[: block.size] = block
    lanes = np.zeros(LANES)
    for row in padded.reshape(-1, LANES):
        lanes += row * row
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return lanes[0]


def expected(kind: int, *arrays: np.ndarray | None) -> float:
    """What the header promises."""
    given = [x for x in arrays if x is not None and x.size]
    if kind == LARGEST_MAGNITUDE:
        return float(max((np.abs(x).max() for x in given), default=0.0, key=lambda m: (np.isnan(m), m)))
    if kind == NONFINITE_COUNT:
        return float(sum(np.count_nonzero(~np.isfinite(x)) for x in given))
    sums = []
    for x in given:
        blocks = [squares_of_block(x[i : i + BLOCK].astype(np.float64)) for i in range(0, x.size, BLOCK)]
        sums.append(in_a_tree(blocks, np.add))
    return float(in_a_tree(sums, np.add)) if sums else 0.0


def reduced(kind: int, *arrays: np.ndarray | None) -> float:
    result = c_double(777)
    buffers = (Buffer * len(arrays))(*map(buffer, arrays))
    lengths = (c_size_t * len(arrays))(*(0 if x is None else x.size for x in arrays))
    assert reduce(kind, buffers, lengths, len(arrays), byref(result)) == "OK"
    return result.value


def assert_same(kind: int, *arrays: np.ndarray | None) -> None:
    np.testing.assert_array_equal(reduced(kind, *arrays), expected(kind, *arrays), f"kind {kind}")


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


@pytest.fixture(params=ISAS)
def every_isa(request):
    """Each instruction set that this CPU has, in use."""
    before = isa().decode()
    assert set_isa(request.param.encode()) == "OK"
    yield
    assert set_isa(before.encode()) == "OK"


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = get_num_threads()
    assert set_num_threads(request.param) == "OK"
    yield request.param
    assert set_num_threads(before) == "OK"


def numbers(n: int, dtype, seed: int = 0) -> np.ndarray:
    """Of many magnitudes, so that another order of additions gives other bits."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)).astype(dtype)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("kind", KINDS)
def test_reductions_are_right_at_all_sizes(kind, dtype):
    for n in SIZES:
        assert_same(kind, numbers(n, dtype, n))


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("kind", KINDS)
def test_the_alignment_does_not_matter(kind, dtype):
    memory = np.zeros(3 * BLOCK + 64, dtype)
    x = numbers(2 * BLOCK + 100, dtype)
    for offset in range(17):
        moved = memory[offset : offset + x.size]
        moved[:] = x
        assert_same(kind, moved)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", [0.0, -0.0, inf, -inf, nan, 5e-324, 1e-40, 3e38, -3e38])
def test_special_values_are_found_anywhere(kind, dtype, special):
    for place in (0, 31, 32, 100, BLOCK, BLOCK + 299):
        x = numbers(BLOCK + 300, dtype)
        x[place] = special
        assert_same(kind, x)
        x[:] = special
        assert_same(kind, x[: place + 1])


def test_a_magnitude_is_of_either_sign(dtype):
    x = np.array([1, -3, 2], dtype)
    assert reduced(LARGEST_MAGNITUDE, x) == 3
    assert reduced(LARGEST_MAGNITUDE, -x) == 3
    assert str(reduced(LARGEST_MAGNITUDE, np.array([-0.0], dtype))) == "0.0"


def test_nan_is_the_largest_magnitude_wherever_it_is(dtype):
    rng = np.random.default_rng(0)
    for _ in range(50):
        arrays = [numbers(int(n), dtype) for n in rng.integers(1, 3 * BLOCK, 5)]
        arrays[rng.integers(5)][0] = nan
        arrays[rng.integers(5)][-1] = inf
        assert np.isnan(reduced(LARGEST_MAGNITUDE, *arrays))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", KINDS)
def test_reductions_are_right_over_many_blocks(kind, dtype):
    """More than are handed to the threads at once; the buffers' ends lie within and between them."""
    x = numbers(WINDOW + 5 * BLOCK + 7, dtype)
    assert_same(kind, x)
    assert_same(kind, x[: 3 * BLOCK], x[:WINDOW], x[WINDOW:], x[:5])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", KINDS)
def test_reductions_are_right_over_many_buffers(kind):
    """Of both dtypes, some empty, some missing: those are left out of the tree."""
    rng = np.random.default_rng(1)
    arrays = [numbers(int(n), (np.float32, np.float64)[k % 2], k) for k, n in enumerate(rng.integers(0, 3000, 2500))]
    for k in (0, 7, 8, 100, 2499):
        arrays[k] = None
    assert_same(kind, *arrays)
    assert reduced(kind, *arrays) == reduced(kind, *(x for x in arrays if x is not None and x.size))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_buffers_are_reduced_as_their_numbers_in_float32(kind):
    """All numbers of bfloat16 and float16, finite ones and others; all sizes; mixed with other dtypes."""
    every = np.arange(1 << 16, dtype=np.uint16)
    rng = np.random.default_rng(0)
    for n in (*range(0, 70, 3), 257, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17, every.size):
        patterns = rng.permutation(every)[:n]
        finite = patterns & 0xBBFF  # without one digit of the exponent, in either dtype
        for x in (patterns, finite):
            halves, wide = x.view(np.float16), _stages.widen(x, "bfloat16", np.float32)
            np.testing.assert_equal(reduced(kind, halves), reduced(kind, halves.astype(np.float32)))
            np.testing.assert_equal(reduced(kind, x), reduced(kind, wide))
            mixed = reduced(kind, x, halves, wide, wide.astype(np.float64))
            np.testing.assert_equal(
                mixed, reduced(kind, wide, halves.astype(np.float32), wide, wide.astype(np.float64))
            )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_buffers_are_reduced_by_several_threads(kind):
    x = np.resize(np.arange(0x7C00, dtype=np.uint16), WINDOW + 5 * BLOCK + 7).view(np.float16)
    assert reduced(kind, x) == reduced(kind, x.astype(np.float32))


@pytest.mark.parametrize("dtype", [-1, 99, 2**31 - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_dtype_of_a_buffer_that_is_left_out_does_not_matter(kind, dtype):
    x = np.full(8, 2.0, np.float32)
    result = c_double()
    for left_out, n in ((buffer(None, dtype), 8), (buffer(x, dtype), 0)):
        buffers = (Buffer * 3)(left_out, buffer(x), left_out)
        assert reduce(kind, buffers, (c_size_t * 3)(n, 8, n), 3, byref(result)) == "OK"
        assert result.value == expected(kind, x)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_reduce_gives_zero(kind):
    empty = np.zeros(0, np.float32)
    for arrays in ((), (None,), (empty,), (empty, None, empty)):
        assert str(reduced(kind, *arrays)) == "0.0"
    assert reduce(kind, None, None, 0, byref(c_double())) == "OK"


def test_wrong_arguments_of_a_reduction_are_refused():
    x = np.ones(8, np.float32)
    result = c_double(777)
    odd = Buffer(x.ctypes.data + 2, 0)
    for status, kind, buffers, length in [
        ("ERR_INDEX", 3, buffer(x), 8),
        ("ERR_INDEX", -1, buffer(x), 8),
        ("ERR_NULL", 0, None, 8),
        ("ERR_DTYPE", 0, buffer(x, INT8), 8),
        ("ERR_DTYPE", 0, buffer(x, -1), 8),
        ("ERR_ALIGNMENT", 0, odd, 7),
        ("ERR_ALIGNMENT", 0, Buffer(x.ctypes.data + 4, 1), 3),
        ("ERR_LENGTH", 0, buffer(x), 2**62),
        ("ERR_LENGTH", 0, Buffer(2**64 - 16, 0), 8),
    ]:
        assert reduce(kind, buffers and byref(buffers), byref(c_size_t(length)), 1, byref(result)) == status
    assert reduce(0, byref(buffer(x)), None, 1, byref(result)) == "ERR_NULL"
    assert reduce(0, byref(buffer(x)), byref(c_size_t(8)), 1, None) == "ERR_NULL"
    assert result.value == 777


@pytest.fixture
def plan():
    plan = new_plan()
    yield plan
    destroy(plan)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_reduces_the_gradients_that_are_set(plan, kind):
    """Those that are set; nothing is counted or written."""
    new_group(plan, "sgd")
    grads = [numbers(n, (np.float32, np.float64)[k % 2], k) for k, n in enumerate((5, 0, 100, 9000, 300_000, 70_000))]
    params = [np.zeros_like(grad) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        assert add_arrays(plan, 0, param, [], grad) == "OK"
    for left_out in (None, 3, 4):
        if left_out is not None:
            assert set_grad(plan, left_out, buffer(None)) == "OK"
            grads[left_out] = None
        for n in (1, 2, 5):
            assert plan_set_num_threads(plan, n) == "OK"
            result = c_double(777)
            assert plan_reduce(plan, kind, byref(result)) == "OK"
            np.testing.assert_array_equal(result.value, expected(kind, *grads))
    assert steps_of(plan) == 0
    assert not any(param.any() for param in params)
    for kind in (-1, 3):
        assert plan_reduce(plan, kind, byref(c_double())) == "ERR_INDEX"
    assert plan_reduce(plan, 0, None) == "ERR_NULL"
