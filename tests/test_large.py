"""More than 2^31 and 2^32 elements: each of them is updated once, with its own random bits.

The buffers are long ranges of addresses in which the same small piece of memory stands again and again, so that they
take no more memory than that piece. One thread updates it window after window.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import shutil
import sys
import tempfile
from ctypes import byref, c_double, c_int, c_long, c_size_t, c_void_p

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE
from cplan import (
    BF16,
    F32,
    STOCHASTIC,
    Buffer,
    accumulate,
    add,
    destroy,
    entry_args,
    new_group,
    new_plan,
    reduce,
    set_num_threads,
    set_step_args,
    step,
    step_args,
    steps_of,
)
from faults_table import FULL
from gdm import _stages
from gdm._checkpoint import load, save

pytestmark = [
    pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module"),
    pytest.mark.skipif(
        not FULL or not sys.platform.startswith("linux") or platform.architecture()[0] != "64bit",
        reason="NOT TESTED: more than 2^31 elements, which take a minute: make faults",
    ),
]
WINDOW = 1 << 22  # elements that have memory of their own
LONG, LONGER = 2**31 + 4099, 2**32 + 4099  # elements


class Repeated:
    """`n` elements at consecutive addresses; those whose numbers are equal modulo WINDOW are the same memory."""

    def __init__(self, n: int, dtype) -> None:
        self.dtype = np.dtype(dtype)
        self.size = -(-n // WINDOW) * WINDOW * self.dtype.itemsize
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = c_void_p
        self.libc.mmap.argtypes = [c_void_p, c_size_t, c_int, c_int, c_int, c_long]
        self.libc.munmap.argtypes = [c_void_p, c_size_t]
        piece = WINDOW * self.dtype.itemsize
        no_memory = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
        with tempfile.TemporaryFile() as file:
            os.truncate(file.fileno(), piece)
            self.start = self.map(None, self.size, 0, no_memory, -1)
            for at in range(self.start, self.start + self.size, piece):
                self.map(at, piece, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | 0x10, file.fileno())  # FIXED
        self.window = np.frombuffer((ctypes.c_char * piece).from_address(self.start), self.dtype)
        self.array = np.frombuffer((ctypes.c_char * (n * self.dtype.itemsize)).from_address(self.start), self.dtype)

    def map(self, at, size: int, protection: int, flags: int, file: int) -> int:
        start = self.libc.mmap(at, size, protection, flags, file, 0)
        if start == c_void_p(-1).value:
            pytest.skip(f"NOT TESTED: many elements; no addresses for them: {os.strerror(ctypes.get_errno())}")
        return start

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        assert self.libc.munmap(self.start, self.size) == 0


def times(n: int) -> np.ndarray:
    """How often each place of the window is met by n elements."""
    return n // WINDOW + (np.arange(WINDOW) < n % WINDOW)


def small_numbers() -> np.ndarray:
    """Whole numbers, so small that a thousand updates are exact."""
    return (np.arange(WINDOW) % 13 - 6).astype(np.float32)


@pytest.mark.parametrize("call", ["the function", "the class", "the plan"])
def test_each_of_many_elements_is_updated_once(call, counted):
    """The parameter goes down by as many gradients as there are elements at a place."""
    with Repeated(LONG, np.float32) as param, Repeated(LONG, np.float32) as grad:
        param.window[:], grad.window[:] = 5.0, small_numbers()
        with gdm.threads(1):
            if call == "the function":
                gdm.sgd(param.array, grad.array, lr=1.0)
            elif call == "the class":
                optimizer = gdm.SGD(param.array, lr=1.0, threads=1)
                optimizer.step(grad.array)
                del optimizer
            else:
                plan = new_plan()
                new_group(plan, "sgd", lr=1.0)
                entry = entry_args(0, param.array, [], grad.array)
                assert add(plan, byref(entry), byref(c_size_t())) == "OK"
                assert set_num_threads(plan, 1) == "OK"
                assert step(plan) == "OK"
                assert steps_of(plan) == 1
                destroy(plan)
        np.testing.assert_array_equal(param.window, 5.0 - times(LONG) * small_numbers())
    counted(f"a step of {call}", "elements", LONG)


def test_reductions_of_many_elements(counted):
    with Repeated(LONG, np.float32) as grad, gdm.threads(2):
        grad.window[:] = small_numbers()
        squares = int((times(LONG) * small_numbers().astype(np.int64) ** 2).sum())
        assert gdm.grad_norm(grad.array) == np.sqrt(squares)
        result = c_double()
        buffer, length = Buffer(grad.start, F32), c_size_t(LONG)
        assert reduce(0, byref(buffer), byref(length), 1, byref(result)) == "OK"
        assert result.value == squares
        grad.window[[3, 4098, 4099, -1]] = np.nan, np.inf, -np.inf, np.nan
        assert gdm.count_nonfinite(grad.array) == int(times(LONG)[[3, 4098, 4099, -1]].sum())
    counted("reductions", "elements", LONG)


def test_many_gradients_are_accumulated(counted):
    with Repeated(LONG, np.float32) as total, Repeated(LONG, np.float32) as grad, gdm.threads(1):
        total.window[:], grad.window[:] = 1.0, small_numbers()
        buffers = Buffer(total.start, F32), Buffer(grad.start, F32)
        assert accumulate(byref(buffers[0]), byref(buffers[1]), byref(c_size_t(LONG)), 1, 1.0) == "OK"
        np.testing.assert_array_equal(total.window, 1.0 + times(LONG) * small_numbers())
    counted("accumulate", "elements", LONG)


def test_random_bits_beyond_2_to_the_32_elements(counted):
    """The velocity's first value is the gradient. It stays as the last elements at each place have rounded it."""
    numbers = np.random.default_rng(0).standard_normal(WINDOW).astype(np.float32)
    with Repeated(LONGER, np.float32) as param, Repeated(LONGER, np.uint16) as state:
        with Repeated(LONGER, np.float32) as grad:
            param.window[:], grad.window[:] = 1.0, numbers
            plan = new_plan()
            new_group(plan, "momentum", lr=0.0, momentum=0.9)
            entry = entry_args(0, param.array, [], grad.array)
            states = (Buffer * 1)(Buffer(state.start, BF16))
            entry.states, entry.state_count = states, 1
            assert add(plan, byref(entry), byref(c_size_t())) == "OK"
            assert set_step_args(plan, byref(step_args(rounding=STOCHASTIC, seed=7))) == "OK"
            assert set_num_threads(plan, 1) == "OK"
            assert step(plan) == "OK"
            destroy(plan)
        assert (param.window == 1.0).all()
        rest = LONGER % WINDOW
        draws = np.concatenate(
            [
                _stages.draws(7, 0, 0, 3, LONGER - rest, rest),
                _stages.draws(7, 0, 0, 3, LONGER - WINDOW, WINDOW - rest),
            ]
        )
        np.testing.assert_array_equal(state.window, _stages.narrow(numbers, "bfloat16", draws))
        wrapped = _stages.draws(7, 0, 0, 3, LONGER - rest - 2**32, rest)
        assert (draws[:rest] != wrapped).any()  # so that a counter of 32 bits would have been found
    counted("a step with stochastic rounding", "elements", LONGER)


def test_a_file_of_more_than_4_gib(tmp_path, counted):
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < 14 << 30 or shutil.disk_usage(tmp_path).free < 12 << 30:
        pytest.skip("NOT TESTED: a file of more than 4 GiB, which needs 14 GiB of free memory and 12 GiB of disk")
    x = np.zeros(2**32 + 4099, np.int8)
    x[[0, 2**31, 2**32 - 1, 2**32, -1]] = 1, 2, 3, 4, 5
    save(tmp_path / "state", {"x": x, "y": np.arange(3.0)})
    assert (tmp_path / "state").stat().st_size > 2**32
    y = load(tmp_path / "state")
    (tmp_path / "state").unlink()
    assert y["y"].tolist() == [0, 1, 2]
    assert np.array_equal(y["x"], x)  # NumPy's assert_array_equal would need 20 GiB
    counted("save and load", "bytes of one array", x.nbytes)
