"""Operations on many arrays at once: those in NumPy do the same as those of the compiled module."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import gdm
from gdm import _arrays
from gdm._backend import native

pytestmark = pytest.mark.skipif(native is None, reason="NOT TESTED: against the compiled module, which does not load")


class Subclass(np.ndarray):
    pass


ARRAYS = [
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    np.zeros(0),
    np.arange(5, dtype=np.float16),
    np.arange(6, dtype=np.float32).reshape(2, 1, 3).view(Subclass),
    np.arange(6.0).astype(ml_dtypes.bfloat16).reshape(2, 3),
    np.array(7.0),
]


@pytest.fixture(autouse=True)
def _bfloat16_is_known():
    """The compiled module knows the dtype once an array of it has been checked."""
    gdm.grad_norm([ARRAYS[5]])


def assert_the_same_arrays(found, wanted):
    """The same memory, seen in the same way, as plain arrays."""
    assert len(found) == len(wanted)
    for x, y in zip(found, wanted, strict=True):
        assert type(x) is type(y) is np.ndarray
        assert (x.shape, x.strides, x.dtype) == (y.shape, y.strides, y.dtype)
        assert x.ctypes.data == y.ctypes.data or x.size == 0


def test_views_are_of_the_same_memory():
    views = _arrays._views(ARRAYS)
    assert_the_same_arrays(views, native.views(ARRAYS))
    for view, x in zip(views, ARRAYS, strict=True):
        assert view.ctypes.data == x.ctypes.data
        assert view.dtype == (np.uint16 if x.dtype == ml_dtypes.bfloat16 else x.dtype)


def test_extents_are_the_same():
    assert _arrays._memory_extents(ARRAYS) == [tuple(x) for x in native.memory_extents(ARRAYS)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.int8])
def test_parts_of_a_block_of_memory_are_the_same(dtype):
    """Each has the shape and order of an array, and a dtype of its own."""
    likes, memory = _arrays._views(ARRAYS), np.zeros(4096, np.uint8)
    starts, dtypes = [256 * k for k in range(len(likes))], [np.dtype(dtype)] * len(likes)
    parts = _arrays._carve(memory, starts, likes, dtypes)
    assert_the_same_arrays(parts, native.carve(memory, starts, likes, dtypes))
    for k, (part, x) in enumerate(zip(parts, likes, strict=True)):
        assert part.shape == x.shape
        part[...] = k + 1
        assert memory[256 * k : 256 * (k + 1)].any() == (x.size > 0)
    assert not memory[256 * len(likes) :].any()
