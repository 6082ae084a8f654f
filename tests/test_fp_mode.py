"""Modes that another library has set in the calling thread: Python's calls of the compiled module give the same bits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE
from support import RULES, assert_same_bits, buffers, call, option_cases
from test_c_fp_mode import MODES, helper, in_mode, numbers  # noqa: F401 (fixtures)

pytestmark = pytest.mark.skipif(WITHOUT_CORE or not MODES, reason="of the compiled module, on x86-64 and AArch64")
CLASSES = {"SGD": {"momentum": 0.9}, "NAdam": {}}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions(in_mode, rule, dtype):  # noqa: F811
    for seed, options in enumerate(option_cases(rule)[::5]):
        arrays = buffers(rule, options, dtype, 90, seed)
        for x in arrays.values():
            x[::3] *= np.finfo(dtype).tiny
        expected = {name: x.copy() for name, x in arrays.items()}
        call(rule, expected, options)
        in_mode(call, rule, arrays, options)
        for name, x in arrays.items():
            assert_same_bits(x, expected[name], f"{options} {name}")


def test_a_subnormal_option_is_not_zero(in_mode):  # noqa: F811
    """Whether there is weight decay is decided in the default mode, too."""
    param, velocity, grad = np.ones(3), np.zeros(3), np.zeros(3)
    in_mode(lambda: gdm.momentum(param, velocity, grad, lr=0.5, momentum=0.5, weight_decay=1e-310))
    np.testing.assert_array_equal(velocity.view(np.int64), np.full(3, 1e-310).view(np.int64))


@cache
def start():
    """Parameters and gradients, large enough for several threads."""
    rows = [numbers(n) for n in (64, 1_100_000, 60_000)]
    return [x[0] for x in rows], [x[3] for x in rows]


def after_steps(name, threads, step):
    params = [x.copy() for x in start()[0]]
    optimizer = getattr(gdm, name)(params, lr=1 / 3, threads=threads, **CLASSES[name])
    for _ in range(3):
        step(optimizer.step, start()[1])
    return params


@cache
def expected_after_steps(name):
    return after_steps(name, 1, lambda run, grads: run(grads))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CLASSES)
def test_steps(in_mode, name, threads):  # noqa: F811
    """Also on workers, which may have been started in that mode or before."""
    for x, y in zip(after_steps(name, threads, in_mode), expected_after_steps(name), strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize("threads", [1, 4])
def test_reductions(in_mode, threads):  # noqa: F811
    grads = [np.random.default_rng(n).standard_normal(n).astype(np.float32) * np.float32(1e-20) for n in (5, 2_000_000)]
    with gdm.threads(threads):
        for run in (lambda: gdm.grad_norm(grads), lambda: gdm.grad_norm(grads, order=np.inf)):
            expected = [run() for _ in range(3)]
            assert [in_mode(run) for _ in range(3)] == expected
        assert in_mode(gdm.count_nonfinite, grads) == 0


def test_the_mode_is_back_after_an_error(in_mode):  # noqa: F811
    x, shared = np.ones(5), np.ones(6)
    optimizer = gdm.Adam([np.ones(3)])

    def wrong():
        errors = []
        for act in (
            lambda: gdm.sgd(x, np.ones(4), lr=0.1),
            lambda: gdm.sgd(shared[:5], shared[1:], lr=0.1),
            lambda: gdm.sgd(x, x.copy(), lr=-1.0),
            lambda: optimizer.step([np.ones(4)]),
            lambda: setattr(optimizer, "lr", -1.0),
            lambda: setattr(optimizer, "lr", 1e308 * 10),
            lambda: gdm.grad_norm([3]),
        ):
            try:
                act()
            except (TypeError, ValueError) as error:
                errors.append(type(error).__name__)
        return errors

    assert len(in_mode(wrong)) == 7
