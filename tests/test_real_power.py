"""Powers with real exponents: close to the exact ones, and the same bits in C and in Python."""

from __future__ import annotations

import ctypes
import math
import random
import shutil
import subprocess
import sys
from decimal import Context, Decimal

import pytest

from byhand import COMPILERS
from clibrary import EXACT, ROOT, STRICT
from gdm.reference import _ademamix
from gdm.reference.formula import power_of_096
from gdm.reference.real_power import Two, exp_of, log_of, real_power

EXACTLY = Context(prec=45, Emin=-(10**6), Emax=10**6)
TINY, HUGE = 2.0**-1022, math.inf  # below TINY numbers have fewer digits
SOURCE = """
#include "host.h"
double power_of(double base, double exponent);
double high_of(double x);
double low_of(double x);
double exponential_of(double high, double low);
double share_of(double x);
double power_of(double base, double exponent) { return real_power(base, exponent); }
double high_of(double x) { return log_of(x).high; }
double low_of(double x) { return log_of(x).low; }
double exponential_of(double high, double low) { return exp_of((struct two){high, low}); }
double share_of(double x) { return power_of_096(x); }
"""


def arguments(seed: int, count: int) -> list[tuple[float, float]]:
    """Bases and exponents of many kinds, with powers from 0 to infinity."""
    rng = random.Random(seed)
    pairs = [(2.0**-1074, 0.5), (1.7e308, 1.0), (TINY, 0.999), (math.sqrt(0.5), 2047.0), (1.0, 1e308), (3.0, 0.0)]
    for k in range(count):
        base = [
            1 + rng.random() * 10 ** rng.uniform(-15, 5),  # as ASGD has them
            10 ** rng.uniform(-323, 308),
            rng.uniform(0.6, 1.6),
            1 + rng.choice([-1, 1]) * 10 ** rng.uniform(-15, -1),
            2.0 ** rng.randint(-1074, 1023),
        ][k % 5]
        most = 760 / max(abs(math.log(base)), 1e-16)
        pairs.append((base, rng.uniform(0, 2 if k % 3 else most)))
    return pairs


def error(found: float, exact: Decimal) -> float:
    """The relative error of a result; 0 if it is beyond the range as the exact number is."""
    if exact > Decimal(sys.float_info.max) or exact < Decimal(TINY):
        return 0.0 if found in (HUGE, 0.0) or found <= TINY else HUGE
    return float(abs(EXACTLY.divide(EXACTLY.subtract(Decimal(found), exact), exact)))


def test_powers_are_close_to_the_exact_ones():
    worst = 0.0
    for base, exponent in arguments(1, 1000):
        exact = EXACTLY.power(Decimal(base), Decimal(exponent))
        worst = max(worst, error(real_power(base, exponent), exact))
    assert 1e-17 < worst < 1e-14


def test_logarithms_have_more_digits_than_a_double():
    for base, _ in arguments(2, 500):
        exact, found = EXACTLY.ln(Decimal(base)), log_of(base)
        sum_of_both = EXACTLY.add(Decimal(found.high), Decimal(found.low))
        assert abs(EXACTLY.subtract(sum_of_both, exact)) <= abs(exact) * Decimal("1e-17"), base


def test_powers_at_the_ends_of_the_range():
    assert real_power(math.inf, 0.5) == math.inf
    assert real_power(math.inf, 0.0) == real_power(1.0, 1e308) == real_power(5e-324, 0.0) == 1.0
    assert real_power(2.0, 1e308) == real_power(2.0, 1024.0) == math.inf
    assert real_power(0.5, 1e308) == real_power(0.5, 1080.0) == 0.0
    assert real_power(2.0, 1023.0) == 2.0**1023
    assert real_power(0.5, 1074.0) == 2.0**-1074


@pytest.mark.parametrize("compiler", COMPILERS)
def test_c_and_python_have_the_same_bits(compiler, tmp_path):
    if not shutil.which(compiler):
        pytest.skip(f"NOT TESTED: powers in C compiled by {compiler}, which is not here")
    (tmp_path / "powers.c").write_text(SOURCE)
    flags = ["-std=c11", "-O2", "-fPIC", "-shared", *EXACT, *STRICT, f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'include'}"]
    subprocess.run([compiler, *flags, tmp_path / "powers.c", "-o", tmp_path / "powers.so"], check=True)
    library = ctypes.CDLL(str(tmp_path / "powers.so"))
    arity = {"power_of": 2, "high_of": 1, "low_of": 1, "exponential_of": 2, "share_of": 1}
    calls = {name: getattr(library, name) for name in arity}
    for name, call in calls.items():
        call.restype, call.argtypes = ctypes.c_double, [ctypes.c_double] * arity[name]
    for exponent in (0.0, 0.5, 1.0, 3.0):
        assert calls["power_of"](math.inf, exponent) == real_power(math.inf, exponent)
    rng = random.Random(4)
    for x in (rng.uniform(0, 3) if k % 2 else 10 ** rng.uniform(-9, 5) for k in range(40_000)):  # of NAdam
        assert calls["share_of"](x) == power_of_096(x), x
    for base, exponent in arguments(3, 10_000):
        assert calls["power_of"](base, exponent) == real_power(base, exponent), (base, exponent)
        log = log_of(base)
        assert (calls["high_of"](base), calls["low_of"](base)) == log, base
        assert calls["exponential_of"](*log) == exp_of(log), base


def test_the_slow_average_of_ademamix_is_warmed_up_by_its_half_life():
    """From step to step the half-life of beta3 grows by the same number of steps, and ends at that of beta3."""
    rng = random.Random(4)
    for _ in range(100):
        beta1, beta3, last = rng.uniform(0.01, 0.9), rng.uniform(0.9, 0.99999), rng.choice([10.0, 333.5, 100_000.0])
        short, long = (1 / EXACTLY.ln(Decimal(beta)) for beta in (beta1, beta3))
        for step in (1.0, 2.0, 5.0, 9.0):
            x = Decimal(step) / Decimal(last)
            exact = EXACTLY.exp(1 / ((1 - x) * short + x * long))
            found = _ademamix._beta3(step, (beta1, 0.5, beta3), last)
            assert error(found, exact) < 1e-15, (step, beta1, beta3, last)
            assert beta1 < found < beta3
        for step in (last, last + 1, 1e9):
            assert _ademamix._beta3(step, (beta1, 0.5, beta3), last) == beta3


def test_the_warm_up_of_ademamix_has_no_logarithm_of_zero():
    for betas, wanted in {(0.0, 0.5, 0.25): 0.0, (0.5, 0.5, 0.0): 0.0, (0.0, 0.0, 0.0): 0.0}.items():
        assert _ademamix._beta3(1.0, betas, 1e300) == wanted
    assert _ademamix._beta3(1.0, (0.0, 0.5, 0.25), 2.0) == pytest.approx(0.25**2, rel=1e-15)
    assert _ademamix._beta3(1.0, (0.9, 0.5, 0.25), 2.0) == 0.25  # it is not above beta3
    assert exp_of(Two(-math.inf, 0.0)) == 0.0
