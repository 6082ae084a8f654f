"""gdm_accumulate: the bits of the stages in NumPy, and what it refuses."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

import gdm
from cplan import BF16, F16, F32, F64, INT8, Buffer, accumulate, buffer
from cstages import FLOATS, NAME, Stored, bits, is_alone, narrow, numbers, use_parallel_for
from gdm import _stages
from support import special_values

PAIRS = [(total, grad) for total, grad in itertools.product(FLOATS, FLOATS) if grad != F64 or total == F64]
SIZES = [0, 1, 7, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 16383, 16384, 16385, 40_000]
nan, inf = float("nan"), float("inf")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of special values


def accumulated(totals: list, grads: list, scale: float, lengths: list[int] | None = None) -> str:
    """The status, for lists of Stored or of Buffer."""
    both = [[x.buffer if isinstance(x, Stored) else x for x in side] for side in (totals, grads)]
    lengths = [x.memory.size for x in totals] if lengths is None else lengths
    count = len(totals)
    totals, grads = ((Buffer * count)(*side) for side in both)
    return accumulate(totals, grads, (ctypes.c_size_t * count)(*lengths), count, scale)


def pair(total: int, grad: int, n: int, seed: int = 0, offset: int = 0) -> tuple[Stored, Stored]:
    compute = np.float64 if total == F64 else np.float32
    return (
        Stored(numbers(n, seed), total, compute, offset=offset),
        Stored(numbers(n, seed + 1), grad, compute, offset=offset),
    )


def check(pairs: list[tuple[Stored, Stored]], scale: float) -> None:
    """Totals become what the stages say; nothing else changes."""
    totals, grads = map(list, zip(*pairs, strict=True))
    wanted = [narrow(_stages.accumulated(t.wide, g.wide, scale), t.dtype) for t, g in pairs]
    before = [g.memory.copy() for g in grads]
    assert accumulated(totals, grads, scale) == "OK"
    for total, right in zip(totals, wanted, strict=True):
        np.testing.assert_array_equal(bits(total.memory, total.dtype), bits(right, total.dtype))
        assert is_alone(total.memory)
    for grad, old in zip(grads, before, strict=True):
        np.testing.assert_array_equal(bits(grad.memory, grad.dtype), bits(old, grad.dtype))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("total", "grad"), PAIRS, ids=NAME.get)
def test_totals_have_the_bits_of_the_stages(total, grad):
    """All sizes and some offsets, at once and one by one; with scales that round."""
    every = [pair(total, grad, n, seed, offset) for seed, n in enumerate(SIZES) for offset in (0, 1)]
    check(every, 1.0)
    check(every, -0.1)
    for one in every[::5]:
        check([one], 1 / 3)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("total", "grad"), PAIRS, ids=NAME.get)
def test_special_values(total, grad):
    """All pairs of them; also a scale that is not finite, or not in float32."""
    values = np.concatenate([special_values(np.float32), special_values(np.float64), special_values(np.float16)])
    for scale in (1.0, -2.0, 0.0, 1e-30, 1e30, 1e300, nan, inf):
        totals, grads = pair(total, grad, values.size**2)
        totals.set(np.repeat(values, values.size))
        grads.set(np.tile(values, values.size))
        check([(totals, grads)], scale)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_nothing(threads):
    """gdm's own, and a host's that does pieces in any order."""
    task_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
    ran = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, task_type, ctypes.c_void_p)
    def backwards(_host, count, task, context):
        for i in reversed(range(count)):
            task(context, i)
        ran.append(count)

    gdm.set_num_threads(threads)
    pairs = [pair(BF16, F32, 1_300_001), pair(F32, BF16, 300_000), pair(F64, F16, 5), pair(F16, F16, 70_000)]
    check(pairs, 0.5)
    use_parallel_for(backwards)
    try:
        check(pairs, 0.5)
    finally:
        use_parallel_for(None)
    assert bool(ran) == (threads > 1)


def test_gradients_may_be_shared():
    """By several totals, whole or in part."""
    totals = [Stored(numbers(64, k), F32, np.float32) for k in range(3)]
    grad = Stored(numbers(72), F32, np.float32)
    wanted = [t.wide + grad.wide[part] for t, part in zip(totals, (np.s_[:64], np.s_[:64], np.s_[8:]), strict=True)]
    grads = [grad.buffer, grad.buffer, buffer(grad.memory[8:])]
    assert accumulated(totals, grads, 1.0) == "OK"
    for total, right in zip(totals, wanted, strict=True):
        np.testing.assert_array_equal(total.memory, right)


def test_nothing_to_add_is_nothing():
    assert accumulate(None, None, None, 0, 1.0) == "OK"
    assert accumulated([buffer(None, 99)], [buffer(None, -1)], 1.0, [0]) == "OK"


def test_wrong_arguments_are_refused_and_change_nothing():
    """Wherever in the list they are: nothing has been added then."""
    memory = np.arange(64, dtype=np.float64)
    before = memory.copy()
    start = memory.ctypes.data
    good = Buffer(start, F32), Buffer(start + 64, F32)
    for status, total, grad, n in [
        ("ERR_DTYPE", (256, INT8), (384, F32), 8),
        ("ERR_DTYPE", (256, F32), (384, INT8), 8),
        ("ERR_DTYPE", (256, INT8 + 1), (384, F32), 8),
        ("ERR_DTYPE", (256, F32), (384, 10**6), 8),
        ("ERR_DTYPE", (256, -1), (384, F32), 8),
        *(("ERR_DTYPE", (256, narrower), (384, F64), 8) for narrower in (F32, BF16, F16)),
        ("ERR_NULL", None, (384, F32), 8),
        ("ERR_NULL", (256, F32), None, 8),
        ("ERR_ALIGNMENT", (258, F32), (384, F32), 8),
        ("ERR_ALIGNMENT", (257, BF16), (384, F32), 8),
        ("ERR_ALIGNMENT", (256, F32), (385, F16), 8),
        ("ERR_ALIGNMENT", (260, F64), (384, F64), 8),
        ("ERR_LENGTH", (256, F32), (384, F32), 2**62),
        ("ERR_LENGTH", (256, F32), (384, F32), 2**64 - 1),
        ("ERR_OVERLAP", (256, F32), (256, F32), 8),
        ("ERR_OVERLAP", (256, F32), (284, F32), 8),
        ("ERR_OVERLAP", (256, F64), (316, F32), 8),
        ("ERR_OVERLAP", (284, F32), (256, F32), 8),
        ("ERR_OVERLAP", (28, F32), (384, F32), 8),  # with the other total
        ("ERR_OVERLAP", (92, F32), (384, F32), 8),  # with the other gradient
        ("ERR_OVERLAP", (256, F32), (0, F32), 8),
    ]:
        bad = [buffer(None) if x is None else Buffer(start + x[0], x[1]) for x in (total, grad)]
        for first, second, lengths in ((good, bad, [8, n]), (bad, good, [n, 8])):
            totals, grads = zip(first, second, strict=True)
            assert accumulated(list(totals), list(grads), 1.0, lengths) == status, (status, total, grad)
    count = ctypes.c_size_t(8)
    for missing in ((None, good[1], count), (good[0], None, count), (good[0], good[1], None)):
        assert accumulate(*(x and ctypes.byref(x) for x in missing), 1, 1.0) == "ERR_NULL"
    np.testing.assert_array_equal(memory, before)
