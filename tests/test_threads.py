"""Threads: how many, and the same bits whatever their number."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest

import gdm
from support import (
    DTYPES,
    LARGE,
    RULES,
    assert_all_same_bits,
    call,
    full,
    numbers,
    python,
    start_and_end,
)


def test_the_default_number_is_of_the_environment_or_the_cpus():
    show = "import gdm; print(gdm.get_num_threads())"
    cpus = len(os.sched_getaffinity(0))
    assert 1 <= int(python(show)) <= cpus
    assert python(show, GDM_NUM_THREADS="3") == "3"
    assert python(show, OMP_NUM_THREADS="5") == "5"
    assert python(show, OMP_NUM_THREADS="5,2") == "5"
    assert python(show, GDM_NUM_THREADS="3", OMP_NUM_THREADS="5") == "3"
    assert int(python(show, OMP_NUM_THREADS="many")) <= cpus
    assert python("import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); " + show) == "1"


@pytest.mark.parametrize("value", ["0", "-1", "two", "257", "2.0"])
def test_a_wrong_environment_is_an_error(value):
    done = subprocess.run(
        [sys.executable, "-c", "import gdm"],
        env={**os.environ, "GDM_NUM_THREADS": value},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert f"GDM_NUM_THREADS must be from 1 to 256, got '{value}'" in done.stderr


def test_the_number_is_set_and_put_back():
    gdm.set_num_threads(3)
    with gdm.threads(2):
        assert gdm.get_num_threads() == 2
        with gdm.threads(5):
            assert gdm.get_num_threads() == 5
        assert gdm.get_num_threads() == 2
    assert gdm.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), gdm.threads(7):
        raise ZeroDivisionError
    assert gdm.get_num_threads() == 3
    optimizer = gdm.SGD(np.ones(3), threads=4)
    assert optimizer.threads == 4
    optimizer.threads = None
    assert optimizer.threads is None


def test_a_context_can_be_entered_more_than_once():
    """Each exit sets the number that was there before its own entry."""
    gdm.set_num_threads(3)
    two = gdm.threads(2)
    with two:
        gdm.set_num_threads(4)
        with two, two:
            assert gdm.get_num_threads() == 2
        assert gdm.get_num_threads() == 4
    assert gdm.get_num_threads() == 3
    with two:
        assert gdm.get_num_threads() == 2
    assert gdm.get_num_threads() == 3


@pytest.mark.parametrize(
    "set_to", [gdm.set_num_threads, gdm.threads, lambda n: gdm.SGD(np.ones(2), threads=n)], ids=["set", "with", "SGD"]
)
def test_wrong_numbers_are_refused(set_to):
    before = gdm.get_num_threads()
    for n in (0, -1, 257):
        with pytest.raises(ValueError, match=r"must be from 1 to 256, got"):
            set_to(n)
    for n in (1.5, "two", [1]):
        with pytest.raises(TypeError, match=r"must be a whole number"):
            set_to(n)
    assert gdm.get_num_threads() == before


def test_threadpoolctl_finds_and_limits_the_threads():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    gdm.set_num_threads(2)
    (info,) = [i for i in threadpoolctl.threadpool_info() if i["internal_api"] == "gdm"]
    assert info["num_threads"] == 2
    assert info["version"] == gdm.__version__
    with threadpoolctl.threadpool_limits(1):
        assert gdm.get_num_threads() == 1
    assert gdm.get_num_threads() == 2
    with threadpoolctl.threadpool_limits({"gdm": 1}):
        assert gdm.get_num_threads() == 1


@pytest.mark.parametrize("first", ["threadpoolctl", "gdm"])
def test_threadpoolctl_may_be_imported_before_or_after(first):
    pytest.importorskip("threadpoolctl")
    second = "gdm" if first == "threadpoolctl" else "threadpoolctl"
    code = f"import {first}, {second}; print([i['internal_api'] for i in threadpoolctl.threadpool_info()])"
    assert "'gdm'" in python(code)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("rule", list(RULES))
def test_functions_have_the_same_bits_with_any_number_of_threads(rule, dtype, isa):
    options = full(rule)
    arrays, wanted = start_and_end(rule, options, dtype, LARGE)
    copies = {name: np.empty_like(x) for name, x in arrays.items()}
    for n in range(1, 9):
        for name, x in arrays.items():
            copies[name][...] = x
        with gdm.threads(n):
            call(rule, copies, options)
        assert_all_same_bits(copies, wanted, f"{n} threads")


SIZES = {
    "one": [LARGE],
    "a few": [LARGE, 0, 3, 70_000, 16_384, 16_385, 200_000],
    "many small": [64] * 12_000,
    "uneven": [1 + (k * 7919) % 3000 for k in range(800)],
}


@functools.cache
def start(name):
    """Parameters and gradients of both dtypes, which nobody may write to."""
    params = [numbers(np.float64 if k % 3 == 1 else np.float32, n, k) for k, n in enumerate(SIZES[name])]
    grads = [numbers(p.dtype, p.size, k + 1) for k, p in enumerate(params)]
    for x in (*params, *grads):
        x.flags.writeable = False
    return params, grads


def trained(name, threads):
    """The bytes of all parameters after the first step and a later one, in two groups."""
    params, grads = [x.copy() for x in start(name)[0]], start(name)[1]
    half = len(params) // 2
    optimizer = gdm.SGD(
        [{"params": params[:half], "weight_decay": 0.01}, {"params": params[half:]}],
        lr=0.1,
        momentum=0.9,
        threads=threads,
    )
    optimizer.bind([grads[:half], grads[half:]])
    for _ in range(2):
        optimizer.step()
    return np.concatenate([x.view(np.uint8) for x in params])


@functools.cache
def trained_by_the_reference(name):
    gdm.set_backend("reference")
    params = trained(name, threads=1)
    gdm.set_backend("native")
    return params


@pytest.mark.parametrize("name", SIZES)
def test_optimizers_have_the_same_bits_with_any_number_of_threads(name, isa):
    expected = trained_by_the_reference(name)
    for threads in (1, 2, 3, 8):
        np.testing.assert_array_equal(trained(name, threads), expected, err_msg=f"{threads} threads")
