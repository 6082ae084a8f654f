"""Modes that another library has set in the calling thread: calls of the compiled module give the same bits."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE
from support import RULES, assert_same_bits, buffers, call, option_cases

if WITHOUT_CORE:
    pytest.skip("of the compiled module", allow_module_level=True)
from test_c_fp_mode import MODES, helper, in_mode, numbers  # noqa: F401 (fixtures)

pytestmark = pytest.mark.skipif(not MODES, reason="NOT TESTED: modes of this machine, which the test does not know")
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


SCHEDULES = {
    "cosine": gdm.schedules.cosine(1 / 3, steps=700, warmup=50),
    "one_cycle": gdm.schedules.one_cycle(1 / 3, steps=700),
    "exponential": gdm.schedules.exponential(1 / 3, factor=0.99),
    "polynomial": gdm.schedules.polynomial(1 / 3, steps=700, power=1.7),
    "inverse_sqrt": gdm.schedules.inverse_sqrt(1 / 3, warmup=9),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(in_mode, schedule):  # noqa: F811
    steps = range(0, 700, 7)
    assert in_mode(lambda: [schedule(step) for step in steps]) == [schedule(step) for step in steps]
    rows = []
    for run in (lambda f, *given: f(*given), in_mode):
        rows.append(np.ones(3))
        optimizer, grad = gdm.SGD(rows[-1], lr=schedule), np.full(3, 0.1)
        for _ in range(100):
            run(optimizer.step, grad)
    assert_same_bits(*rows)


MADE = {
    **SCHEDULES,
    "cosine with an end": gdm.schedules.cosine(1 / 3, steps=700, end=1 / 70, restarts=2, warmup=9),
    "warmup": gdm.schedules.warmup(gdm.schedules.polynomial(1 / 3, steps=700, end=1e-5), 9, 1 / 30),
    "join": gdm.schedules.join([gdm.schedules.one_cycle(1 / 3, steps=70), gdm.schedules.constant(0.1)], [70]),
    "tiny": gdm.schedules.polynomial(3e-308, steps=700, end=2.5e-308),  # whose difference is subnormal
}


@pytest.mark.parametrize("schedule", MADE.values(), ids=MADE)
def test_schedules_that_are_made_in_another_mode(in_mode, schedule):  # noqa: F811
    made = in_mode(partial(getattr(gdm.schedules, schedule.kind), **dict(schedule.arguments)))
    assert made._pieces == schedule._pieces
    assert [made(step) for step in range(0, 701, 7)] == [schedule(step) for step in range(0, 701, 7)]


def test_a_function_of_the_users_runs_in_the_mode_of_its_thread(in_mode, helper):  # noqa: F811
    modes = []

    def rate(step):
        modes.append(helper.get_mode())
        return 0.1

    in_mode(lambda: gdm.schedules.warmup(rate, 3)(3))
    in_mode(rate, 0)
    assert len(modes) == 3
    assert len(set(modes)) == 1


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
