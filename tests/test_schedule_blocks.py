"""Learning rates in blocks: the same bits as one step at a time, from the compiled formulas and without them."""

from __future__ import annotations

import inspect
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdm.schedules import (
    _blocks,
    constant,
    cosine,
    exponential,
    formulas,
    inverse_sqrt,
    join,
    one_cycle,
    piecewise,
    polynomial,
    step,
    warmup,
)
from gdm.schedules._blocks import rates
from gdm.schedules.arguments import MAX_STEP
from gdm.schedules.schedule import KINDS
from test_schedules import EXAMPLES, own, schedules

# Every kind, with and without what may be put before it, of ordinary and of extreme lengths and numbers.
MORE = [
    *EXAMPLES,
    constant(-0.0),
    piecewise([0.1, 0.2, 0.3, 0.4], [1, 2, 3]),
    piecewise([0.3], []),
    step(0.3, every=1, factor=0.9),
    step(0.3, every=3, factor=0.0),
    step(0.3, every=3, factor=1.0),
    step(1e300, every=2**52, factor=1e-200, warmup=3),
    exponential(0.3, factor=0.999),
    exponential(0.3, factor=0.0, every=3),
    exponential(1e300, factor=0.5, every=2**50),
    inverse_sqrt(0.3, warmup=1),
    inverse_sqrt(0.3, warmup=MAX_STEP),
    polynomial(0.3, steps=MAX_STEP, power=0.9, end=0.1),
    polynomial(0.3, steps=777, power=0.0),
    polynomial(0.3, steps=777, power=1e300),
    cosine(0.3, steps=1),
    cosine(0.3, steps=2),
    cosine(0.3, steps=3000, end=0.01),
    cosine(0.3, steps=MAX_STEP, warmup=MAX_STEP - 2),
    cosine(0.3, steps=51, restarts=50, warmup=0),
    cosine(0.3, steps=4000, restarts=3, stretch=3, warmup=7),
    one_cycle(0.3, steps=1),
    one_cycle(0.3, steps=3000, end=0.0),
    one_cycle(0.3, steps=MAX_STEP),
    warmup(cosine(0.3, steps=2000, restarts=4), 100, start=0.2),
    warmup(warmup(inverse_sqrt(0.3, warmup=5), 6), 7, start=0.5),
    join([cosine(0.3, steps=500), join([step(0.3, every=50), one_cycle(0.2, steps=90)], [60])], [33]),
    join([cosine(0.3, steps=500), join([constant(0.1), constant(0.2)], [MAX_STEP])], [MAX_STEP]),
]


@pytest.fixture(params=["compiled", "not compiled"], autouse=True)
def compiled(request, monkeypatch):
    """With the compiled formulas, and as where they do not load."""
    if request.param == "not compiled":
        monkeypatch.setattr(_blocks, "compiled", None)
    elif _blocks.compiled is None:
        pytest.skip("NOT TESTED: the compiled formulas; this run is without compiled modules")
    return request.param


def assert_same_bits(schedule, first_step, count):
    found = rates(schedule, first_step, count)
    expected = np.array([schedule(t) for t in range(first_step, first_step + count)], np.float64)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.view(np.int64), expected.view(np.int64), f"{schedule} from step {first_step}")


def boundaries(schedule):
    """The first steps of all pieces, and the first and the last step of all."""
    return {0, MAX_STEP, *schedule._starts}


def test_the_schedules_have_every_kind_and_every_formula():
    assert {schedule.kind for schedule in MORE} == KINDS.keys()
    used = {formula for schedule in MORE for _, formula, _ in schedule._pieces}
    defined = {f for _, f in inspect.getmembers(formulas, inspect.isfunction) if f.__module__ == formulas.__name__}
    assert used == defined - {formulas.own_function}


@pytest.mark.parametrize("schedule", MORE, ids=repr)
def test_from_the_first_step_on(schedule):
    for count in (0, 1, 2, 255, 256, 3000):
        assert_same_bits(schedule, 0, count)


@pytest.mark.parametrize("schedule", MORE, ids=repr)
def test_around_every_boundary(schedule):
    """Blocks that begin before, at and after a boundary, and blocks that end there."""
    for boundary in boundaries(schedule):
        for first_step in range(max(0, boundary - 3), min(boundary + 3, MAX_STEP)):
            for count in (1, 2, 3, 64):
                assert_same_bits(schedule, first_step, min(count, MAX_STEP + 1 - first_step))


@pytest.mark.parametrize("schedule", MORE, ids=repr)
def test_anywhere(schedule):
    """Not only in the first steps: in blocks between two boundaries, of which the last steps may be very large."""
    chance = random.Random(0)
    marks = sorted(boundaries(schedule))
    for a, b in pairwise(marks):
        for _ in range(5):
            first_step = chance.randint(a, b)
            assert_same_bits(schedule, first_step, min(100, MAX_STEP + 1 - first_step))


@given(schedules, st.integers(0, 5000) | st.integers(0, MAX_STEP), st.integers(0, 300))
def test_any_schedule(schedule, first_step, count):
    count = min(count, MAX_STEP + 1 - first_step)
    assert_same_bits(schedule, first_step, count)
    for boundary in schedule._starts:
        first_step = max(0, boundary - 2)
        assert_same_bits(schedule, first_step, min(5, MAX_STEP + 1 - first_step))


@pytest.mark.parametrize(
    "schedule",
    [
        own,
        lambda step: 0.1,
        warmup(own, 3),
        join([constant(0.1), own], [50]),
        join([constant(0.1), own], [MAX_STEP]),
        warmup(join([constant(0.1), join([own, constant(0.1)], [3])], [3]), 5),
    ],
)
def test_an_own_function_has_none(schedule):
    """It must be called once for each step, also where it is a part of a schedule."""
    assert rates(schedule, 0, 100) is None


def test_an_own_function_that_is_never_reached_does_not_count():
    schedule = join([join([constant(0.2), own], [50]), constant(0.1)], [5])
    assert_same_bits(schedule, 0, 100)


@pytest.mark.parametrize("schedule", [constant(0.3), cosine(0.3, steps=MAX_STEP)], ids=repr)
def test_a_block_ends_at_the_last_step(schedule):
    assert rates(schedule, MAX_STEP - 2, 100).tolist() == [schedule(MAX_STEP - i) for i in (2, 1, 0)]
    assert rates(schedule, MAX_STEP + 1, 100).tolist() == []
    assert rates(schedule, MAX_STEP + 50, 100).tolist() == []


def test_blocks_do_not_share_memory():
    schedule = constant(0.3)
    rates(schedule, 0, 8)[:] = 7.0
    assert rates(schedule, 0, 8).tolist() == [0.3] * 8


def test_the_compiled_formulas_are_used_where_they_load(compiled):
    assert (_blocks.compiled is not None) == (compiled == "compiled")


def test_where_the_compiled_formulas_do_not_load():
    """The schedules and the blocks are there all the same."""
    code = """
import sys
sys.modules["gdm.schedules._formulas"] = None
import gdm
from gdm.schedules import _blocks
assert _blocks.compiled is None
schedule = gdm.schedules.cosine(0.1, steps=100, warmup=10)
assert _blocks.rates(schedule, 5, 50).tolist() == [schedule(t) for t in range(5, 55)]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_gdm_does_not_import_schedules():
    code = "import gdm, sys; assert not [name for name in sys.modules if name.startswith('gdm.schedules')]"
    subprocess.run([sys.executable, "-c", code], check=True)
