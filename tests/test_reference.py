"""The specification itself: against the formulas in exact arithmetic, and against PyTorch's documented algorithm."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest

import gdm
from gdm import _checks
from support import DTYPES, RULES, describe, function, numbers, option_cases


class Rounded:
    """A number whose every operation is done exactly and then rounded once to a dtype, to nearest, ties to even."""

    def __init__(self, value, dtype):
        self.dtype = dtype
        self.value = value if isinstance(value, Fraction) else Fraction(float(value))

    def _make(self, exact: Fraction) -> Rounded:
        return Rounded(nearest(exact, self.dtype), self.dtype)

    def __add__(self, other):
        return self._make(self.value + other.value)

    def __sub__(self, other):
        return self._make(self.value - other.value)

    def __mul__(self, other):
        return self._make(self.value * other.value)


def nearest(exact: Fraction, dtype) -> Fraction:
    """Rounded by integer arithmetic alone."""
    if exact == 0:
        return Fraction(0)
    info = np.finfo(dtype)
    exponent = math.floor(math.log2(abs(exact)))
    while Fraction(2) ** exponent > abs(exact):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(exact):
        exponent += 1
    unit = Fraction(2) ** (max(exponent, info.minexp) - info.nmant)
    return round(exact / unit) * unit  # round() takes ties to the even integer


def double(exact: Fraction) -> Fraction:
    return nearest(exact, np.float64)


def exact_update(rule, arrays, options, dtype):
    """One update by the formulas as the documentation gives them, element by element."""
    lr, decay = Fraction(options["lr"]), Fraction(options["weight_decay"])
    keep = double(1 - double(lr * decay)) if options["decoupled_weight_decay"] else Fraction(1)
    constants = {name: Rounded(nearest(Fraction(options[name]), dtype), dtype) for name in RULES[rule]["reals"]}
    keep = Rounded(nearest(keep, dtype), dtype)
    new = []
    for elements in zip(*arrays, strict=True):
        p, *states, g = (Rounded(x, dtype) for x in elements)
        if options["maximize"]:
            g = Rounded(-g.value, dtype)
        if decay and not options["decoupled_weight_decay"]:
            g = g + constants["weight_decay"] * p
        p = p * keep
        eta = constants["lr"]
        if rule == "sgd":
            new.append((p - eta * g,))
            continue
        (v,), mu = states, constants["momentum"]
        if options["form"] == "torch":
            share = Rounded(nearest(double(1 - Fraction(options["dampening"])), dtype), dtype)
            v = mu * v + share * g
            p = p - eta * (g + mu * v) if options["nesterov"] else p - eta * v
        else:
            v = mu * v - eta * g
            p = p + (mu * v - eta * g) if options["nesterov"] else p + v
        new.append((p, v))
    return [np.array([float(x.value) for x in column], dtype) for column in zip(*new, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize(
    ("rule", "options"), [pytest.param(r, o, id=f"{r}-{describe(o)}") for r in RULES for o in option_cases(r)]
)
def test_exact_arithmetic(rule, options, dtype):
    assert rule in ("sgd", "momentum"), "a new rule needs its formula in exact_update"
    arrays = [numbers(dtype, 40, k) for k in range(2 + len(RULES[rule]["states"]))]
    for x in arrays:  # and some that are nearly subnormal
        x[-10:] *= float(np.finfo(dtype).smallest_normal)
    expected = exact_update(rule, arrays, options, dtype)
    function(rule, native=False)(*arrays, **options)
    for after, wanted in zip(arrays, expected, strict=False):
        np.testing.assert_array_equal(after, wanted)


def test_rounding_is_numpys():
    """The exact arithmetic above rounds as the hardware does."""
    for seed in range(3):
        a, b = numbers(np.float32, 50, seed), numbers(np.float32, 50, seed + 10)
        for x, y in zip(a, b, strict=True):
            assert float((Rounded(x, np.float32) * Rounded(y, np.float32)).value) == x * y
            assert float((Rounded(x, np.float32) - Rounded(y, np.float32)).value) == x - y


def torch_documented(theta, gradients, *, lr, momentum, dampening, nesterov, weight_decay, maximize):
    """The algorithm in torch.optim.SGD's documentation, on a list of gradients at known points."""
    b = None
    for t, gradient in enumerate(gradients, start=1):
        g = gradient(theta)
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g + weight_decay * theta
        if momentum != 0:
            b = momentum * b + (1 - dampening) * g if t > 1 else g
            g = g + momentum * b if nesterov else b
        theta = theta - lr * g
    return theta


@pytest.mark.parametrize("seed", range(60))
def test_sgd_follows_pytorchs_formula(backend, seed):
    """200 steps of float64 with random options, on a quadratic that keeps the path bounded."""
    rng = np.random.default_rng(seed)
    nesterov = bool(rng.integers(2))
    options = {
        "lr": rng.uniform(0.001, 0.2),
        "momentum": rng.uniform(0.1, 0.95) if nesterov else rng.choice([0.0, rng.uniform(0, 0.95)]),
        "dampening": 0.0 if nesterov else rng.choice([0.0, rng.uniform(0, 0.9)]),
        "nesterov": nesterov,
        "weight_decay": rng.choice([0.0, rng.uniform(0, 0.1)]),
        "maximize": bool(rng.integers(2)),
    }
    sign = -1.0 if options["maximize"] else 1.0
    curvature, start = rng.uniform(0.1, 1.0, 10), rng.standard_normal(10)

    def gradient(theta):
        return sign * curvature * theta + 0.1

    expected = torch_documented(start.copy(), [gradient] * 200, **options)
    theta = start.copy()
    optimizer = gdm.SGD(theta, **options)
    for _ in range(200):
        optimizer.step(gradient(theta))
    np.testing.assert_allclose(theta, expected, rtol=1e-12, atol=1e-14)


def test_forms_walk_the_same_path_until_lr_changes(backend):
    start = np.linspace(-1, 1, 9)
    paths = {}
    for form in ("torch", "classic"):
        theta = start.copy()
        optimizer = gdm.SGD(theta, lr=0.1, momentum=0.8, form=form)
        for _ in range(10):
            optimizer.step(theta**3)
        same = theta.copy()
        optimizer.lr = 0.01
        optimizer.step(theta**3)
        paths[form] = same, theta
    np.testing.assert_allclose(paths["torch"][0], paths["classic"][0], rtol=1e-12, atol=1e-15)
    assert np.max(np.abs(paths["torch"][1] - paths["classic"][1])) > 1e-3


def test_same_names_and_signatures():
    """The reference mirrors the compiled functions, name for name."""
    for rule in RULES:
        native, reference = (inspect.signature(function(rule, native=n)) for n in (True, False))
        assert list(native.parameters) == list(reference.parameters)
        for name, parameter in native.parameters.items():
            assert parameter.kind == reference.parameters[name].kind
            assert parameter.default == reference.parameters[name].default
        assert list(native.parameters)[: 2 + len(RULES[rule]["states"])] == ["param", *RULES[rule]["states"], "grad"]
        assert set(RULES[rule]["reals"]) | set(RULES[rule]["flags"]) <= set(native.parameters)
        assert function(rule).__doc__


def test_domains_are_those_of_the_table():
    domains = {"not_negative": _checks.NOT_NEGATIVE, "below_one": _checks.BELOW_ONE, "up_to_one": _checks.UP_TO_ONE}
    for rule in RULES.values():
        for name, domain in rule["reals"].items():
            assert _checks.REALS[name] is domains[domain]
        assert set(rule["flags"]) <= {*_checks.FLAGS, "form"}
