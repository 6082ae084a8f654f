"""gdm.scipy: methods of scipy.optimize.minimize."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning, minimize, rosen, rosen_der

import gdm
from gdm import scipy as methods
from gdm.scipy.run import Point, Rules, Run

NAMES = methods.__all__
SINGLE = [name for name in NAMES if name != "schedule_free"]  # those that walk through the points that they judge
PLAIN = {
    "gradient_descent": lambda x, lr: gdm.SGD(x, lr=lr),
    "momentum": lambda x, lr: gdm.SGD(x, lr=lr, momentum=0.9),
    "nesterov": lambda x, lr: gdm.SGD(x, lr=lr, momentum=0.9, nesterov=True),
    "adam": lambda x, lr: gdm.Adam(x, lr=lr),
}
WIDE = np.logspace(0, 3, 20)


def quadratic(x):
    return 0.5 * x @ (WIDE * x)


def quadratic_der(x):
    return WIDE * x


def beale(x):
    a, b = x
    terms = np.array([1.5 - a + a * b, 2.25 - a + a * b**2, 2.625 - a + a * b**3])
    slopes = np.array([[b - 1, a], [b**2 - 1, 2 * a * b], [b**3 - 1, 3 * a * b**2]])
    return terms @ terms, 2 * terms @ slopes


def himmelblau(x):
    a, b = x
    p, q = a**2 + b - 11, a + b**2 - 7
    return p**2 + q**2, np.array([4 * p * a + 2 * q, 2 * p + 4 * q * b])


def log_barrier(x):
    """Defined for 0 < x < 1 only, with the minimum at 1/2."""
    if not (np.all(x > 0) and np.all(x < 1)):
        return np.nan, np.full(x.shape, np.nan)
    return -np.log(x).sum() - np.log(1 - x).sum(), -1 / x + 1 / (1 - x)


def steep(x):
    """Overflows soon where steps are too long."""
    with np.errstate(over="ignore"):
        return np.exp(x**2).sum(), 2 * x * np.exp(x**2)


# The function with its gradient, the start, and gtol.
PROBLEMS = {
    "rosen-2": (lambda x: (rosen(x), rosen_der(x)), [-1.2, 1.0], 1e-5),
    "rosen-10": (lambda x: (rosen(x), rosen_der(x)), [-1.2, 1.0] * 5, 1e-5),
    "quadratic": (lambda x: (quadratic(x), quadratic_der(x)), np.ones(20), 1e-5),
    "beale": (beale, [1.0, 1.0], 1e-5),
    "himmelblau": (himmelblau, [0.0, 0.0], 1e-5),
    "barrier": (log_barrier, [0.01, 0.9, 0.999], 1e-5),
    "steep": (steep, [5.0, -8.0], 1e-5),
    "large": (lambda x: (1e12 * rosen(x), 1e12 * rosen_der(x)), [-1.2, 1.0], 1e7),
    "small": (lambda x: (1e-6 * rosen(x), 1e-6 * rosen_der(x)), [-1.2, 1.0], 1e-11),
    "far": (lambda x: (rosen(x / 1e6), rosen_der(x / 1e6) / 1e6), [-1.2e6, 1e6], 1e-11),
}


def run(name, fun, x0, jac=True, **others):
    return minimize(fun, x0, jac=jac, method=getattr(methods, name), **others)


# ---- the path with a given learning rate -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("lr", [1e-3, gdm.schedules.cosine(1e-3, steps=50)], ids=["constant", "schedule"])
@pytest.mark.parametrize("name", SINGLE)
def test_a_given_rate_walks_the_path_of_the_optimizer_bit_for_bit(name, lr, dtype):
    points, rates = [], []

    def collect(intermediate_result):
        points.append(intermediate_result.x)
        rates.append(intermediate_result.lr)

    x = np.array([-1.2, 1.0, 0.3], dtype)
    result = run(name, rosen, x, rosen_der, callback=collect, options={"lr": lr, "maxiter": 40, "gtol": 0})
    opt = PLAIN[name](x, lr)
    for k in range(40):
        opt.step(rosen_der(x).astype(dtype))
        assert points[k].dtype == dtype
        assert points[k].tobytes() == x.tobytes()
    assert rates == [lr(k) if callable(lr) else lr for k in range(40)]
    assert result.status == 1
    assert result.nit == 40
    assert result.nfev == result.njev == 41
    assert result.lr == rates[-1]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_schedule_free_reports_the_averages_bit_for_bit(dtype):
    """The gradients are those at the points of train mode; the results are those of eval mode."""
    points = []
    x = np.array([-1.2, 1.0, 0.3], dtype)
    options = {"lr": 1e-3, "maxiter": 40, "gtol": 0}
    result = run("schedule_free", rosen, x, rosen_der, callback=lambda xk: points.append(xk), options=options)
    opt = gdm.ScheduleFreeSGD(x, lr=1e-3)
    for k in range(40):
        opt.step(rosen_der(x).astype(dtype))
        walked = x.copy()
        opt.eval()
        assert points[k].tobytes() == x.tobytes()
        opt.train()
        x[:] = walked
    assert (result.nit, result.nfev, result.njev) == (40, 81, 81)


def test_schedule_free_refuses_bounds():
    with pytest.raises(ValueError, match=r"^bounds: schedule_free cannot handle them"):
        run("schedule_free", rosen, [0.0, 0.0], rosen_der, bounds=[(0, 1), (0, 1)])


@pytest.mark.parametrize("name", SINGLE)
def test_a_given_rate_with_bounds_projects_each_step(name):
    points = []
    low, high = np.array([-1.5, 0.5]), np.array([0.5, 2.0])
    options = {"lr": 1e-3, "maxiter": 30, "gtol": 0}
    run(name, rosen, [-1.2, 1.0], rosen_der, bounds=Bounds(low, high), callback=points.append, options=options)
    x = np.array([-1.2, 1.0])
    opt = PLAIN[name](x, 1e-3)
    for k in range(30):
        opt.step(rosen_der(x))
        np.clip(x, low, high, out=x)
        assert points[k].tobytes() == x.tobytes()


@pytest.mark.parametrize(("name", "options"), [("momentum", {"momentum": 0.5}), ("nesterov", {"momentum": 0.5})])
def test_the_options_of_a_method_reach_its_optimizer(name, options):
    result = run(name, rosen, [0.0, 0.0], rosen_der, options={"lr": 0.01, "maxiter": 2, **options})
    x = np.zeros(2)
    opt = gdm.SGD(x, lr=0.01, nesterov=name == "nesterov", **options)
    opt.step(rosen_der(x))
    opt.step(rosen_der(x))
    assert np.array_equal(result.x, x)


def test_adams_options_reach_it():
    options = {"betas": (0.5, 0.9), "eps": 0.1}
    result = run("adam", rosen, [0.0, 0.0], rosen_der, options={"lr": 0.01, "maxiter": 2, **options})
    x = np.zeros(2)
    opt = gdm.Adam(x, lr=0.01, **options)
    opt.step(rosen_der(x))
    opt.step(rosen_der(x))
    assert np.array_equal(result.x, x)


# ---- lr="auto" -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", NAMES)
def test_auto_finds_a_stationary_point(name, problem):
    fun, x0, gtol = PROBLEMS[problem]
    options = {"gtol": gtol} | ({"eps": 1e-30} if name == "adam" else {})
    result = run(name, fun, x0, options=options)
    assert result.success, result
    assert result.status == 0
    assert np.abs(result.jac).max() <= gtol
    assert np.array_equal(result.jac, fun(result.x)[1])
    assert result.fun == fun(result.x)[0]
    assert result.fun < fun(np.array(x0, float))[0]


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam"])
def test_auto_lowers_the_value_in_every_iteration(name):
    values = []
    run(name, rosen, [-1.2, 1.0], rosen_der, callback=lambda x: values.append(rosen(x)), options={"maxiter": 200})
    assert len(values) == 200
    assert np.all(np.diff(values) < 0)


def test_gradient_descent_lowers_the_largest_of_ten_values():
    values = [rosen([-1.2, 1.0])]
    run("gradient_descent", rosen, [-1.2, 1.0], rosen_der, callback=lambda x: values.append(rosen(x)))
    assert np.any(np.diff(values) > 0)
    assert all(values[k] < max(values[max(0, k - 10) : k]) for k in range(1, len(values)))


@pytest.mark.parametrize("name", NAMES)
def test_auto_keeps_within_the_domain_of_the_function(name):
    """Points outside are tried, and taken back."""
    points = []
    result = run(name, log_barrier, [1e-6, 0.5], callback=points.append)
    assert all(np.isfinite(log_barrier(x)[0]) for x in points)
    assert result.x == pytest.approx([0.5, 0.5], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_auto_needs_no_scaling_by_the_user(name):
    """Values times a power of 2 change no point: neither the steps nor the tests of them depend on it."""
    points = {}
    for scale in (1.0, 2.0**30, 2.0**-30):
        visited = points[scale] = []
        options = {"maxiter": 20, "gtol": 0} | ({"eps": 0.0} if name == "adam" else {})
        run(
            name,
            lambda x, scale=scale: (scale * rosen(x), scale * rosen_der(x)),
            [-1.2, 1.0],
            callback=visited.append,
            options=options,
        )
    assert np.allclose(points[1.0], points[2.0**30], rtol=1e-9)
    assert np.allclose(points[1.0], points[2.0**-30], rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_auto_in_float32(name):
    points = []
    x0 = np.array([-1.2, 1.0], np.float32)
    result = run(name, rosen, x0, rosen_der, callback=points.append, options={"maxiter": 3000, "gtol": 1e-2})
    assert result.x.dtype == np.float32
    assert all(x.dtype == np.float32 for x in points)
    assert result.fun < 0.1


def test_a_wrong_gradient_ends_the_run_with_the_start():
    result = run("momentum", rosen, [-1.2, 1.0], lambda x: -rosen_der(x))
    assert not result.success
    assert result.status == 2
    assert "precision" in result.message
    assert result.fun == rosen([-1.2, 1.0])
    assert result.nit == 0
    assert result.nfev <= 110


@pytest.mark.parametrize("name", NAMES)
def test_a_tolerance_out_of_reach_ends_with_precision_loss_at_the_minimum(name):
    result = run(name, lambda x: (1 + quadratic(x), quadratic_der(x)), np.ones(20), options={"gtol": 1e-300})
    assert result.status in (0, 1, 2)
    assert result.fun == pytest.approx(1, abs=1e-13)
    assert np.abs(result.jac).max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_stationary_start_needs_no_step(name):
    result = run(name, rosen, [1.0, 1.0], rosen_der)
    assert result.success
    assert (result.nit, result.nfev, result.njev) == (0, 1, 1)


# ---- results and stops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_counted(name):
    calls = {"fun": 0, "jac": 0}

    def fun(x):
        calls["fun"] += 1
        return rosen(x)

    def jac(x):
        calls["jac"] += 1
        return rosen_der(x)

    result = run(name, fun, [-1.2, 1.0], jac, options={"maxiter": 40})
    assert (result.nfev, result.njev) == (calls["fun"], calls["jac"])
    assert result.nfev >= result.njev >= 41 == result.nit + 1


def test_results_are_scipys():
    result = run("momentum", rosen, [-1.2, 1.0], rosen_der)
    assert isinstance(result, OptimizeResult)
    assert set(result) == {"x", "fun", "jac", "success", "status", "message", "nit", "nfev", "njev", "lr"}
    assert isinstance(result.fun, float)
    assert result.success is True


def test_maxiter_ends_the_run():
    result = run("momentum", rosen, [-1.2, 1.0], rosen_der, options={"maxiter": 3})
    assert (result.success, result.status, result.nit) == (False, 1, 3)
    assert result.message == "Maximum number of iterations has been exceeded."
    result = run("momentum", rosen, [-1.2, 1.0], rosen_der, options={"maxiter": 0})
    assert (result.status, result.nit, list(result.x)) == (1, 0, [-1.2, 1.0])


def test_gtol_is_the_largest_element_of_the_gradient():
    for options, others in (({"gtol": 1e-3}, {}), ({}, {"tol": 1e-3}), ({"gtol": 1e-3}, {"tol": 1e-9})):
        largest = []
        result = run(
            "nesterov",
            rosen,
            [-1.2, 1.0],
            rosen_der,
            callback=lambda x, largest=largest: largest.append(np.abs(rosen_der(x)).max()),
            options=options,
            **others,
        )
        assert result.success
        assert largest[-1] <= 1e-3 < min(largest[:-1])


def test_ftol_ends_a_run_without_progress():
    flat = run("adam", rosen, [-1.2, 1.0], rosen_der, options={"gtol": 0, "ftol": 1e-4})
    assert flat.success
    assert "ftol" in flat.message
    assert rosen_der(flat.x).any()
    assert flat.nit < run("adam", rosen, [-1.2, 1.0], rosen_der, options={"gtol": 0, "ftol": 1e-12}).nit


def test_after_a_step_that_is_too_long_comes_the_minimum_of_the_parabola():
    """From 0.004 the first step of 0.01 goes to -0.006. The parabola through both values is the function itself."""
    points = []
    result = run("gradient_descent", lambda x: points.append(float(x[0])) or x @ x / 2, [0.004], lambda x: x)
    np.testing.assert_allclose(points, [0.004, -0.006, 0.0], atol=1e-15)
    assert result.success


def test_a_run_that_ends_in_its_first_cycle_reports_its_rate():
    result = run("schedule_free", rosen, [-1.2, 1.0], rosen_der, options={"maxiter": 1})
    assert result.nit == 1
    assert 0 < result.lr < 1


def follow(values, residuals):
    """Which of these points is the best one, of a run that begins at the first."""
    points = [Point(np.zeros(1), fun, np.zeros(1), residual) for fun, residual in zip(values, residuals, strict=True)]
    followed = Run("momentum", points[0], Rules(100, 0.0, 0.0), None, False)
    for point in points[1:]:
        followed.record(point, 1.0)
    return next(i for i, point in enumerate(points) if point is followed.best)


def test_of_values_that_only_rounding_separates_the_smaller_gradient_counts():
    apart = np.finfo(float).eps
    assert follow([1, 1], [2, 1]) == 1
    assert follow([1, 1, 1], [2, 1, 3]) == 1
    assert follow([1, 1 - 4 * apart], [1, 2]) == 0
    assert follow([1, 1 - 4 * apart, 1 - 3 * apart], [3, 2, 1]) == 2
    assert follow([1, 1 - 100 * apart], [1, 2]) == 1
    # The lowest value creeps away from that of the best point, until rounding alone does not explain it.
    assert follow([1, *(1 - 5 * k * apart for k in (1, 2))], [1, 2, 2]) == 0
    assert follow([1, *(1 - 5 * k * apart for k in (1, 2, 3))], [1, 2, 2, 2]) == 3
    assert follow([1, 1 + 2 * apart], [2, 1]) == 0  # never above the start


def test_the_best_point_is_returned_and_not_the_last():
    values = [rosen([-1.2, 1.0])]
    options = {"lr": 2e-3, "maxiter": 30, "gtol": 0}
    result = run("momentum", rosen, [-1.2, 1.0], rosen_der, callback=lambda x: values.append(rosen(x)), options=options)
    assert result.fun == min(values) < values[-1]
    assert result.fun == rosen(result.x)


# ---- callbacks -------------------------------------------------------------------------------------------------------


def test_a_callback_gets_the_point():
    points = []

    def callback(xk):
        points.append(xk)
        xk[:] = np.nan  # a copy

    result = run("momentum", rosen, [-1.2, 1.0], rosen_der, callback=callback, options={"maxiter": 5})
    assert len(points) == result.nit == 5
    assert np.isfinite(result.x).all()


def test_a_callback_gets_an_intermediate_result():
    seen = []

    def callback(*, intermediate_result):
        seen.append(intermediate_result)

    run("momentum", rosen, [-1.2, 1.0], rosen_der, callback=callback, options={"maxiter": 5})
    assert [each.nit for each in seen] == [1, 2, 3, 4, 5]
    assert all(each.fun == rosen(each.x) for each in seen)
    assert all(np.array_equal(each.jac, rosen_der(each.x)) for each in seen)
    assert all(each.lr > 0 for each in seen)


@pytest.mark.parametrize("lr", ["auto", 1e-3])
def test_a_callback_may_stop_the_run(lr):
    def callback(intermediate_result):
        if intermediate_result.nit == 3:
            raise StopIteration

    result = run("adam", rosen, [-1.2, 1.0], rosen_der, callback=callback, options={"lr": lr})
    assert (result.status, result.success, result.nit) == (99, False, 3)
    assert result.message == "`callback` raised `StopIteration`."


def test_errors_of_user_functions_come_through():
    def broken(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run("adam", broken, [1.0], None)
    with pytest.raises(KeyError, match="mine"):
        run("adam", rosen, [1.0, 2.0], broken)
    with pytest.raises(KeyError, match="mine"):
        run("adam", rosen, [1.0, 2.0], rosen_der, callback=broken)


# ---- functions and gradients -----------------------------------------------------------------------------------------


def test_args_reach_both_functions():
    def fun(x, a, b):
        return a * (x[0] - b) ** 2

    def jac(x, a, b):
        return np.array([2 * a * (x[0] - b)])

    assert run("momentum", fun, 0.0, jac, args=(3.0, 2.0)).x == pytest.approx([2.0], abs=1e-5)
    assert run("momentum", lambda x, b: (x[0] - b) ** 2, 0.0, None, args=2.0).x == pytest.approx([2.0], abs=1e-5)
    assert methods.momentum(fun, [0.0], (3.0, 2.0), jac=jac).x == pytest.approx([2.0], abs=1e-5)


@pytest.mark.parametrize("direct", [False, True])
def test_a_function_may_return_its_gradient(direct):
    points = []

    def both(x):
        points.append(x.tobytes())
        return rosen(x), rosen_der(x)

    if direct:
        result = methods.momentum(both, [-1.2, 1.0], jac=True, maxiter=50)
    else:
        result = run("momentum", both, [-1.2, 1.0], options={"maxiter": 50})
    assert len(points) == len(set(points)) == result.nfev  # no point is evaluated twice
    apart = run("momentum", rosen, [-1.2, 1.0], rosen_der, options={"maxiter": 50})
    assert np.array_equal(result.x, apart.x)


@pytest.mark.parametrize("kind", ["2-point", "3-point", "cs"])
def test_finite_differences(kind):
    calls = []

    def fun(x):
        calls.append(x)
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    option = run("adam", fun, [-1.2, 1.0], None, options={"finite_diff": kind})
    assert option.x == pytest.approx([1, 1], abs=1e-3)
    assert option.nfev == len(calls) > option.nit * {"2-point": 3, "3-point": 5, "cs": 3}[kind]
    direct = methods.adam(fun, [-1.2, 1.0], jac=kind)
    assert np.array_equal(direct.x, option.x)


def test_finite_differences_have_the_asked_step():
    points = []

    def fun(x):
        points.append(x[0])
        return x[0] ** 2

    run("gradient_descent", fun, [4.0], None, options={"maxiter": 0, "finite_diff_rel_step": 0.25})
    assert points == [4.0, 5.0]


def test_user_functions_get_copies():
    x0 = np.array([-1.2, 1.0])
    kept = []

    def fun(x):
        value = rosen(x)
        kept.append(x)
        x[:] = np.nan
        return value

    def jac(x):
        grad = rosen_der(x)
        x[:] = np.nan
        return grad

    result = run("momentum", fun, x0, jac, options={"maxiter": 20})
    assert np.array_equal(x0, [-1.2, 1.0])
    assert result.fun == rosen(result.x) < rosen(x0)
    assert not any(np.shares_memory(x, result.x) for x in kept)


@pytest.mark.parametrize("x0", [[0, 3], np.array([0, 3], np.uint8), np.array([0, 3], np.float16)])
def test_x0_becomes_float64(x0):
    assert run("momentum", rosen, x0, rosen_der, options={"maxiter": 1}).x.dtype == np.float64


BAD_FUNCTIONS = {
    "short": (rosen, lambda x: rosen_der(x)[:1], ValueError, r"jac must return an array of shape \(2,\).*shape \(1,\)"),
    "column": (rosen, lambda x: rosen_der(x)[:, None], ValueError, r"jac must return an array of shape \(2,\)"),
    "complex": (rosen, lambda x: rosen_der(x) + 0j, TypeError, "jac must return real numbers, got dtype complex128"),
    "none": (rosen, lambda x: None, TypeError, "jac must return real numbers, got dtype object"),
    "vector": (lambda x: x, rosen_der, ValueError, r"fun must return a scalar, got shape \(2,\)"),
    "text": (lambda x: "1", rosen_der, TypeError, "fun must return a real number"),
    "complex fun": (lambda x: 1j, rosen_der, TypeError, "fun must return a real number, got dtype complex128"),
}


@pytest.mark.parametrize("case", BAD_FUNCTIONS)
def test_what_functions_return_is_checked(case):
    fun, jac, error, message = BAD_FUNCTIONS[case]
    with pytest.raises(error, match=message):
        run("adam", fun, [0.0, 3.0], jac)


BAD_ARGUMENTS = [
    ({"options": {"lr": "fast"}}, ValueError, "lr must be a number, a schedule or 'auto', got 'fast'"),
    ({"options": {"lr": -1.0}}, ValueError, "lr must be finite and not negative"),
    ({"options": {"momentum": 1.0}}, ValueError, r"momentum must be in \[0, 1\)"),
    ({"options": {"maxiter": 1.5}}, TypeError, "maxiter must be an integer"),
    ({"options": {"maxiter": -1}}, ValueError, "maxiter must not be negative"),
    ({"options": {"gtol": np.nan}}, ValueError, "gtol must not be negative"),
    ({"options": {"ftol": "x"}}, TypeError, "ftol must be a real number"),
    ({"options": {"finite_diff": "4-point"}}, ValueError, "finite_diff must be one of"),
    ({"callback": 3}, TypeError, "callback must be callable"),
    ({"bounds": [(0, 1)]}, ValueError, "bounds must have a pair for each of the 2 variables"),
    ({"bounds": [(0, 1), (1, 0)]}, ValueError, r"bounds\[1\]"),
    ({"bounds": [(0, 1), (0, np.nan)]}, ValueError, r"bounds\[1\]"),
    ({"bounds": [(0, 1), (0, "x")]}, ValueError, "bounds must be numbers"),
    ({"constraints": [{"type": "eq", "fun": rosen}]}, ValueError, "constraints: momentum cannot handle them"),
    ({"constraints": {"type": "eq", "fun": rosen}}, ValueError, "constraints: momentum cannot handle them"),
]


@pytest.mark.parametrize(("others", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named_before_the_function_is_called(others, error, message):
    def fun(x):
        pytest.fail("fun is called")

    with pytest.raises(error, match=message):
        minimize(fun, [0.0, 3.0], jac=fun, method=methods.momentum, **others)


@pytest.mark.parametrize("x0", [[1j, 0], ["a", "b"]])
def test_x0_must_be_real(x0):
    with pytest.raises(TypeError, match="x0 must have real numbers"):
        methods.momentum(rosen, x0)
    with pytest.raises(ValueError, match="x0 must have one dimension"):
        methods.momentum(rosen, [[1.0, 2.0]])


# ---- NaN and overflow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", ["auto", 0.1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_start_that_is_not_finite_is_reported(bad, lr):
    result = run("momentum", lambda x: bad, [1.0, 2.0], rosen_der, options={"lr": lr})
    assert (result.success, result.status, result.nit) == (False, 3, 0)
    assert "value of fun at x0" in result.message
    assert np.array_equal(result.x, [1.0, 2.0])
    result = run("momentum", rosen, [1.0, 2.0], lambda x: [0.0, bad], options={"lr": lr})
    assert result.status == 3
    assert "gradient at x0" in result.message


@pytest.mark.parametrize("name", ["gradient_descent", "momentum", "nesterov"])
def test_divergence_is_reported_with_the_best_point(name):
    with np.errstate(over="ignore", invalid="ignore"):
        result = run(name, quadratic, np.ones(20), quadratic_der, options={"lr": 0.1})
    assert (result.success, result.status) == (False, 3)
    assert "NaN or infinity" in result.message
    assert result.fun <= quadratic(np.ones(20))
    assert np.isfinite(result.x).all()
    assert np.isfinite(result.jac).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_nan_somewhere_is_walked_around(name):
    def fun(x):
        return np.nan if x[0] > 1.5 else (x[0] - 1.4) ** 2 + (x[1] - 1) ** 2

    result = run(name, fun, [-1.0, -1.0], lambda x: 2 * (x - [1.4, 1.0]))
    assert result.success
    assert result.x == pytest.approx([1.4, 1.0], abs=1e-4)


def test_no_variables_are_no_problem():
    result = run("adam", lambda x: 1.0, [], lambda x: x)
    assert result.success
    assert result.x.shape == (0,)


# ---- bounds ----------------------------------------------------------------------------------------------------------

BOX = {
    "pairs": [(-2.0, 0.5), (None, 2.0)],
    "Bounds": Bounds([-2.0, -np.inf], [0.5, 2.0]),
}


@pytest.mark.parametrize("bounds", BOX)
@pytest.mark.parametrize("jac", [rosen_der, None], ids=["jac", "differences"])
@pytest.mark.parametrize("name", SINGLE)
def test_bounds_hold_at_every_evaluation_and_the_solution_is_constrained(name, jac, bounds):
    points = []

    def fun(x):
        points.append(x)
        return rosen(x)

    result = run(name, fun, [-1.2, 1.0], jac, bounds=BOX[bounds])
    assert result.success
    assert result.x == pytest.approx([0.5, 0.25], abs=1e-4)
    assert np.abs(rosen_der(result.x)).max() > 0.1  # only the projected gradient vanishes
    assert all(-2 <= x[0] <= 0.5 and x[1] <= 2 for x in points)


@pytest.mark.parametrize("jac", [rosen_der, None], ids=["jac", "differences"])
def test_variables_may_be_fixed(jac):
    result = run("momentum", rosen, [-1.2, 1.0], jac, bounds=[(-1.2, -1.2), (-5, 5)])
    assert result.success
    assert result.x[0] == -1.2
    assert result.x[1] == pytest.approx(1.44, abs=1e-4)
    result = run("momentum", rosen, [-1.2, 1.0], jac, bounds=[(-1.2, -1.2), (1, 1)])
    assert result.success
    assert result.nit == 0


def test_one_bound_may_hold_for_all():
    result = run("momentum", rosen, [-1.2, 0.5], rosen_der, bounds=Bounds(-2, 0.5))
    assert result.x == pytest.approx([0.5, 0.25], abs=1e-4)


def test_a_start_outside_the_bounds_is_moved_with_a_warning():
    with pytest.warns(OptimizeWarning, match="x0 is outside the bounds"):
        result = run("momentum", rosen, [3.0, 0.0], rosen_der, bounds=BOX["pairs"], options={"maxiter": 0})
    assert np.array_equal(result.x, [0.5, 0.0])


# ---- warnings and messages -------------------------------------------------------------------------------------------


def test_hessians_are_ignored_with_a_warning():
    with pytest.warns(RuntimeWarning, match=r"Method momentum does not use Hessian information \(hess\)"):
        run("momentum", rosen, [-1.2, 1.0], rosen_der, hess=lambda x: None, options={"maxiter": 1})
    with pytest.warns(RuntimeWarning, match=r"Hessian-vector product information \(hessp\)"):
        run("momentum", rosen, [-1.2, 1.0], rosen_der, hessp=lambda x, p: p, options={"maxiter": 1})


def test_unknown_options_warn_at_the_callers_line():
    with pytest.warns(OptimizeWarning, match="Unknown solver options: speed, xtol") as caught:
        run("adam", rosen, [-1.2, 1.0], rosen_der, options={"speed": 1, "xtol": 1, "maxiter": 1})
    assert [Path(each.filename).name for each in caught] == ["test_scipy.py"]


def test_disp_shows_progress_and_the_end(capsys):
    run("momentum", rosen, [-1.2, 1.0], rosen_der, options={"maxiter": 20, "disp": True})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("momentum: iteration      0  fun 2.42")
    assert lines[-5] == "Maximum number of iterations has been exceeded."
    assert lines[-3].split() == ["Iterations:", "20"]
    run("momentum", rosen, [-1.2, 1.0], rosen_der, options={"maxiter": 20})
    assert capsys.readouterr().out == ""


def test_disp_shows_a_line_each_second(capsys, monkeypatch):
    from gdm.scipy import run as module

    clock = iter(np.arange(0.0, 1000.0, 0.26))
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    run("momentum", rosen, [-1.2, 1.0], rosen_der, options={"maxiter": 20, "disp": True})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("momentum: iteration")]
    assert 3 <= len(lines) <= 8


# ---- the module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_have_every_option_and_run(name):
    method = getattr(methods, name)
    text = method.__doc__
    from gdm.scipy.methods import Common

    own = set(method.__kwdefaults__ or {})
    for option in (set(Common.__annotations__) | own) - {"hess", "hessp", "constraints"}:
        assert f"\n{option} : " in text, option
    assert (
        text.index("Parameters\n") < text.index("Other Parameters\n") < text.index("Notes\n") < text.index("Examples\n")
    )
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(recurse=False).find(method, name, module=False):
        assert test.examples
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_importing_gdm_scipy_does_not_import_scipy():
    code = "import sys, gdm; gdm.scipy.momentum; assert not [m for m in sys.modules if m.split('.')[0] == 'scipy']"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"gdm\.scipy needs SciPy: pip install 'gdm-optim\[scipy\]'"):
        methods.momentum(rosen, [0.0, 0.0])


def test_the_module_uses_only_the_public_facade():
    for file in Path(methods.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                assert not node.module, (file.name, node.module)
                assert {alias.name for alias in node.names} <= set(gdm.__all__)


def test_methods_can_be_reached_by_attribute_and_import():
    assert gdm.scipy is methods
    assert "scipy" in dir(gdm)
    assert dir(methods) == NAMES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = {}
        exec("from gdm import *", names)
    assert "scipy" not in names
