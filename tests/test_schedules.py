"""Schedules: their formulas, how they are put together, what they refuse, and how they are saved and drawn."""

from __future__ import annotations

import copy
import doctest
import inspect
import json
import math
import pickle
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gdm.schedules
from gdm.schedules import (
    Schedule,
    constant,
    cosine,
    exponential,
    from_dict,
    inverse_sqrt,
    join,
    one_cycle,
    piecewise,
    plot,
    polynomial,
    step,
    to_dict,
    warmup,
)
from gdm.schedules.arguments import MAX_RESTARTS, MAX_STEP
from gdm.schedules.schedule import KINDS

# One of each kind at least, with every argument at something else than its default.
EXAMPLES = [
    constant(0.3),
    constant(0.3, warmup=4),
    piecewise([0.3, 0.03, 0.003], [10, 25]),
    step(0.3, every=7, factor=0.5, warmup=4),
    exponential(0.3, factor=0.5, every=7, warmup=4),
    inverse_sqrt(0.3, warmup=16),
    polynomial(0.3, steps=50, power=2.5, end=0.01, warmup=4),
    cosine(0.3, steps=50),
    cosine(0.3, steps=74, end=0.01, restarts=2, stretch=2, warmup=4),
    one_cycle(0.3, steps=100),
    one_cycle(0.3, steps=100, warmup=20, start=0.1, end=0.01),
    warmup(polynomial(0.3, steps=20), 4, start=0.1),
    join([constant(0.3), warmup(cosine(0.3, steps=9), 5)], [10]),
]


def test_the_examples_have_every_kind():
    assert {schedule.kind for schedule in EXAMPLES} == KINDS.keys()


# Formulas.


def half_cosine(x):
    return (1 + math.cos(math.pi * x)) / 2


# Each with its formula as it is written down elsewhere, and how many steps that holds. All were compared once with the
# class or function named, of torch 2.13 and optax, and agreed to 2e-16.
FORMULAS = {
    "torch MultiStepLR": (EXAMPLES[2], lambda t: 0.3 * 0.1 ** ((t >= 10) + (t >= 25)), 60),
    "torch StepLR": (step(0.3, every=7, factor=0.5), lambda t: 0.3 * 0.5 ** (t // 7), 60),
    "torch ExponentialLR": (exponential(0.3, factor=0.9), lambda t: 0.3 * 0.9**t, 60),
    "optax exponential_decay": (exponential(0.3, factor=0.5, every=7), lambda t: 0.3 * 0.5 ** (t / 7), 60),
    "Vaswani et al.": (
        # The highest value of theirs, for d_model = 512 and 400 steps of warm-up.
        inverse_sqrt(512**-0.5 * 400**-0.5, warmup=400),
        lambda t: 512**-0.5 * min(t**-0.5, t * 400**-1.5) if t else 0.0,
        4000,
    ),
    "torch PolynomialLR": (polynomial(0.3, steps=50, power=2), lambda t: 0.3 * (1 - min(t, 50) / 50) ** 2, 60),
    "optax polynomial_schedule": (
        polynomial(0.3, steps=50, power=0.9, end=0.01),
        lambda t: 0.29 * (1 - min(t, 50) / 50) ** 0.9 + 0.01,
        60,
    ),
    "torch CosineAnnealingLR": (cosine(0.3, steps=50, end=0.01), lambda t: 0.01 + 0.29 * half_cosine(t / 50), 51),
    "optax warmup_cosine_decay_schedule": (
        cosine(0.3, steps=60, warmup=10),
        lambda t: 0.3 * t / 10 if t < 10 else 0.3 * half_cosine(min((t - 10) / 50, 1)),
        80,
    ),
    "torch CosineAnnealingWarmRestarts": (
        cosine(0.3, steps=60, restarts=5, end=0.01),
        lambda t: 0.01 + 0.29 * half_cosine(t % 10 / 10),
        60,
    ),
    "torch CosineAnnealingWarmRestarts, T_mult=2": (
        cosine(0.3, steps=70, restarts=2, stretch=2),
        lambda t: 0.3 * half_cosine(t / 10 if t < 10 else (t - 10) / 20 if t < 30 else (t - 30) / 40),
        70,
    ),
    "torch OneCycleLR, pct_start=0.3, total_steps=100": (
        one_cycle(0.3, steps=99, warmup=29),
        lambda t: (
            0.012 + 0.288 * (1 - half_cosine(t / 29))
            if t < 29
            else 1.2e-6 + (0.3 - 1.2e-6) * half_cosine((t - 29) / 70)
        ),
        100,
    ),
    "torch LinearLR": (warmup(constant(0.3), 10, start=0.1), lambda t: 0.1 + 0.2 * min(t, 10) / 10, 30),
    "optax join_schedules": (
        join([constant(0.3), polynomial(0.3, steps=20), constant(0.1)], [10, 25]),
        lambda t: 0.3 if t < 10 else 0.3 * (1 - (t - 10) / 20) if t < 25 else 0.1,
        60,
    ),
}


@pytest.mark.parametrize(("schedule", "formula", "steps"), FORMULAS.values(), ids=list(FORMULAS))
def test_values_are_those_of_the_formula(schedule, formula, steps):
    np.testing.assert_allclose(
        [schedule(t) for t in range(steps)], [formula(t) for t in range(steps)], rtol=1e-14, atol=1e-16
    )


@pytest.mark.parametrize(
    ("schedule", "marks"),
    [
        (constant(0.3), {0: 0.3, MAX_STEP: 0.3}),
        (piecewise([0.3, 0.7], [5]), {4: 0.3, 5: 0.7, MAX_STEP: 0.7}),
        (piecewise([0.3], []), {0: 0.3, MAX_STEP: 0.3}),
        (step(0.3, every=7, factor=0.0), {6: 0.3, 7: 0.0, MAX_STEP: 0.0}),
        (exponential(0.3, factor=0.5), {0: 0.3, 1: 0.15, MAX_STEP: 0.0}),
        (inverse_sqrt(0.3, warmup=9), {0: 0.0, 9: 0.3, 36: 0.15}),
        (polynomial(0.3, steps=7, end=0.1), {0: 0.3, 7: 0.1, MAX_STEP: 0.1}),
        (cosine(0.3, steps=1), {0: 0.3, 1: 0.0, MAX_STEP: 0.0}),
        (cosine(0.3, steps=10_000, warmup=500, end=0.1), {0: 0.0, 500: 0.3, 10_000: 0.1, MAX_STEP: 0.1}),
        # Cycles of 3.4, 6.8, 13.6 and 27.2 steps: each begins at a whole step, with the whole learning rate.
        (cosine(0.3, steps=51, restarts=3, stretch=2), {0: 0.3, 3: 0.3, 10: 0.3, 23: 0.3, 51: 0.0}),
        (cosine(0.3, steps=9, restarts=3, warmup=5), {5: 0.3, 6: 0.3, 7: 0.3, 8: 0.3, 9: 0.0}),
        (one_cycle(0.3, steps=100), {0: 0.3 / 25, 30: 0.3, 100: 0.3 / 25 / 10_000, MAX_STEP: 0.3 / 25 / 10_000}),
        (one_cycle(0.3, steps=3), {0: 0.3, 3: 0.3 / 25 / 10_000}),
        (one_cycle(0.3, steps=10, warmup=2, start=0.1, end=0.2), {0: 0.1, 2: 0.3, 10: 0.2, 11: 0.2}),
        (warmup(piecewise([0.3, 0.1], [2]), 4, start=0.7), {0: 0.7, 4: 0.3, 5: 0.3, 6: 0.1}),
        (
            join([cosine(0.3, steps=5), constant(0.7), step(0.9, every=1)], [3, 4]),
            {0: 0.3, 3: 0.7, 4: 0.9, 5: 0.9 * 0.1},
        ),
    ],
    ids=lambda x: repr(x) if isinstance(x, Schedule) else "",
)
def test_values_at_boundaries_are_exact(schedule, marks):
    """First and last values, and those at a boundary, are the very numbers that were given."""
    for t, lr in marks.items():
        assert schedule(t) == lr, t
        assert type(schedule(t)) is float


WARMED = [
    lambda **w: constant(0.3, **w),
    lambda **w: step(0.3, every=3, **w),
    lambda **w: exponential(0.3, factor=0.9, **w),
    lambda steps=20, **w: polynomial(0.3, steps=steps, power=2, **w),
    lambda steps=20, **w: cosine(0.3, steps=steps, restarts=1, **w),
]


@pytest.mark.parametrize("make", WARMED)
def test_warmup_argument_and_function_agree(make):
    """The schedule begins where its warm-up ends; ``steps`` counts both."""
    total = {"steps": 27} if "steps" in inspect.signature(make).parameters else {}
    short, long = make(warmup=7, **total), warmup(make(), 7)
    assert [short(t) for t in range(40)] == [long(t) for t in range(40)]
    assert [short(t + 7) for t in range(40)] == [make()(t) for t in range(40)]


@pytest.mark.parametrize(
    ("schedule", "turn", "end"),
    [
        (cosine(0.3, steps=1000, warmup=100, end=0.01), 100, 1000),
        (polynomial(0.3, steps=1000, warmup=100, power=3), 100, 1000),
        (polynomial(0.3, steps=1000, warmup=100, power=0.5), 100, 1000),
        (one_cycle(0.3, steps=1000), 300, 1000),
        (inverse_sqrt(0.3, warmup=100), 100, 1000),
        (exponential(0.3, factor=0.99, warmup=100), 100, 1000),
    ],
    ids=lambda x: repr(x) if isinstance(x, Schedule) else str(x),
)
def test_rises_then_falls_without_a_jump(schedule, turn, end):
    values = [schedule(t) for t in range(end + 1)]
    assert all(a < b for a, b in pairwise(values[: turn + 1]))
    assert all(a > b for a, b in pairwise(values[turn:]))
    assert max(abs(a - b) for a, b in pairwise(values)) < 0.01 + 0.3 / 30


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_values_do_not_depend_on_earlier_calls(schedule):
    forwards = [schedule(t) for t in range(120)]
    assert [schedule(t) for t in reversed(range(120))] == forwards[::-1]


# Any schedule: what comes out, and what it is as a value.

numbers = st.floats(0, allow_infinity=False, allow_nan=False)
shares = st.floats(0, 1)
counts = st.integers(1, 1000) | st.integers(1, MAX_STEP)
waits = st.integers(0, 1000)


def timed(make, **options):
    """Those with a length, longer than their warm-up."""
    steps = st.integers(1001, 3000) | st.integers(1001, MAX_STEP)
    return st.builds(make, numbers, steps=steps, warmup=waits, **options)


simple = st.one_of(
    st.builds(constant, numbers, warmup=waits),
    st.builds(step, numbers, every=counts, factor=shares, warmup=waits),
    st.builds(exponential, numbers, factor=shares, every=counts, warmup=waits),
    st.builds(inverse_sqrt, numbers, warmup=counts),
    timed(polynomial, end=numbers, power=numbers),
    timed(cosine, end=numbers),
    st.builds(
        cosine,
        numbers,
        steps=st.integers(5000, 9000),
        warmup=waits,
        end=numbers,
        restarts=st.integers(0, 5),
        stretch=st.integers(1, 3),
    ),
    timed(one_cycle, start=st.none() | numbers, end=st.none() | numbers),
)


@st.composite
def sequences(draw, make, elements):
    boundaries = sorted(draw(st.sets(counts, max_size=4)))
    return make(draw(st.lists(elements, min_size=len(boundaries) + 1, max_size=len(boundaries) + 1)), boundaries)


schedules = st.recursive(
    simple | sequences(piecewise, numbers),
    lambda parts: st.builds(warmup, parts, counts, start=numbers) | sequences(join, parts),
    max_leaves=5,
)


@given(schedules, st.integers(0, 5000) | st.integers(0, MAX_STEP))
def test_every_value_is_a_learning_rate(schedule, t):
    lr = schedule(t)
    assert type(lr) is float
    assert math.isfinite(lr)
    assert lr >= 0
    assert schedule(t) == lr


@given(schedules)
def test_a_schedule_can_be_saved_and_made_again(schedule):
    """From its dictionary, through JSON; its pickle; its copy; and what it is written as."""
    d = to_dict(schedule)
    text = json.dumps(d, allow_nan=False)
    assert json.loads(text) == d
    for again in (
        from_dict(d),
        from_dict(json.loads(text)),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
        eval(repr(schedule)),
    ):
        assert type(again) is Schedule
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert repr(again) == repr(schedule)
        assert to_dict(again) == d
        assert [again(t) for t in (0, 1, 10, 1000)] == [schedule(t) for t in (0, 1, 10, 1000)]


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (cosine(0.1, steps=10_000, warmup=500), "cosine(0.1, steps=10000, warmup=500)"),
        (one_cycle(1, steps=10, end=0), "one_cycle(1.0, steps=10, end=0.0)"),
        (warmup(step(0.1, every=3), 5), "warmup(step(0.1, every=3), 5)"),
        (join((constant(0.1), constant(0.2)), (3,)), "join([constant(0.1), constant(0.2)], [3])"),
    ],
    ids=lambda x: "" if isinstance(x, str) else repr(x),
)
def test_repr_is_the_call_that_makes_it(schedule, text):
    assert repr(schedule) == text


def test_schedules_are_equal_if_their_arguments_are():
    assert cosine(1, steps=5) == cosine(lr=1.0, steps=5, warmup=0)
    assert cosine(1, steps=5) != cosine(1, steps=6)
    assert polynomial(1, steps=5) != cosine(1, steps=5)
    assert piecewise((1, 2), [3]) == piecewise([1.0, 2.0], np.array([3]))
    assert len({*EXAMPLES, *map(copy.deepcopy, EXAMPLES)}) == len(EXAMPLES)
    assert warmup(abs, 3) == warmup(abs, 3) != warmup(float, 3)


def test_pickles_name_the_public_module():
    """They outlive a change of the files inside it."""
    for name in gdm.schedules.__all__:
        assert getattr(gdm.schedules, name).__module__ == "gdm.schedules"
    for found in pickle.dumps(cosine(0.1, steps=5)), pickle.dumps(cosine):
        assert b"gdm.schedules\x94" in found
        assert b"gdm.schedules." not in found


def test_a_pickle_of_an_earlier_version_loads():
    text = b"cgdm.schedules\n_make\n(Vconstant\n(dVlr\nF0.3\nsVwarmup\nI4\nstR."
    assert pickle.loads(text) == constant(0.3, warmup=4)


def test_a_schedule_cannot_be_changed():
    schedule = constant(0.1)
    for name in ("kind", "arguments", "_pieces", "lr"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(schedule, name, 3)
    assert schedule == constant(0.1)


@pytest.mark.parametrize(
    "calculate",
    [
        lambda x: x * 0.5,
        lambda x: 0.5 * x,
        lambda x: np.float64(0.5) * x,
        lambda x: x / 2,
        lambda x: 2 / x,
        lambda x: x // 2,
        lambda x: 2 // x,
        lambda x: x + 0.1,
        lambda x: 0.1 + x,
        lambda x: x - 0.1,
        lambda x: 0.1 - x,
        lambda x: x**2,
        lambda x: 2**x,
        lambda x: x * x,
    ],
)
def test_a_schedule_is_not_a_number(calculate):
    """The error says what to do instead."""
    with pytest.raises(TypeError) as caught:
        calculate(constant(0.1))
    assert str(caught.value) == (
        "a schedule is not a number: constant(0.1). Make a new schedule, or set lr to a number; "
        "opt.groups[i].current_lr is the learning rate of the next step"
    )


def test_an_optimizer_whose_lr_is_a_schedule_says_how_to_change_it():
    schedule = constant(0.1, warmup=4)
    opt = gdm.SGD(np.ones(2), lr=schedule)
    with pytest.raises(TypeError, match=r"a schedule is not a number: .*current_lr"):
        opt.lr *= 0.5
    with pytest.raises(TypeError, match=r"a schedule is not a number: .*current_lr"):
        opt.groups[0].lr /= 2
    assert opt.lr == schedule


def test_numbers_may_be_numpys():
    schedule = join([constant(np.float32(0.5)), step(np.array(0.25), every=np.int16(3))], np.array([4], np.uint8))
    assert schedule == join([constant(0.5), step(0.25, every=3)], [4])
    assert json.loads(json.dumps(to_dict(schedule))) == to_dict(schedule)
    assert schedule(np.int64(4)) == 0.25


# A user's own functions.


def test_own_functions_count_their_own_steps():
    schedule = join([lambda t: 10 + t, warmup(lambda t: 20 + t, 2, start=10)], [3])
    assert [schedule(t) for t in range(8)] == [10, 11, 12, 10, 15, 20, 21, 22]
    assert all(type(schedule(t)) is float for t in range(8))


def test_what_own_functions_give_is_checked():
    schedule = join([constant(0.1), lambda t: 1.0 - t], [5])
    assert schedule(6) == 0
    with pytest.raises(ValueError, match=r"^schedules\[1\]\(2\) must be finite and not negative, got -1.0$"):
        schedule(7)
    with pytest.raises(TypeError, match=r"^schedule\(0\) must be a real number, not NoneType$"):
        warmup(lambda t: None, 3)


@pytest.mark.parametrize("schedule", [abs, warmup(abs, 3), join([constant(0.1), warmup(abs, 3)], [5])], ids=str)
def test_own_functions_have_no_dictionary(schedule):
    with pytest.raises(
        TypeError, match=r"only schedules made by gdm\.schedules .* not <built-in function abs>; .*join"
    ):
        to_dict(schedule)


# What is refused.

NOT_A_RATE = [
    (-0.1, ValueError, "must be finite and not negative, got -0.1"),
    (math.nan, ValueError, "must be finite and not negative, got nan"),
    (math.inf, ValueError, "must be finite and not negative, got inf"),
    (10**400, ValueError, "must be finite and not negative, got 1000"),
    ("0.1", TypeError, "must be a real number, not str ('0.1')"),
    (1j, TypeError, "must be a real number, not complex"),
    (np.zeros(1), TypeError, "must be a real number, not ndarray"),
]
NOT_A_SHARE = [
    (1.1, ValueError, "must be in [0, 1], got 1.1"),
    (-0.1, ValueError, "must be in [0, 1], got -0.1"),
    (math.nan, ValueError, "must be in [0, 1], got nan"),
    (None, TypeError, "must be a real number, not NoneType"),
]
NOT_A_WAIT = [
    (-1, ValueError, "must be from 0 to 2**53, got -1"),
    (2**53 + 1, ValueError, "must be from 0 to 2**53, got 9007199254740993"),
    (10**5000, ValueError, "must be from 0 to 2**53, got a number of very many digits"),
    (1.0, TypeError, "must be a whole number, not float (1.0)"),
    ("1", TypeError, "must be a whole number, not str ('1')"),
]
NOT_A_COUNT = [
    (0, ValueError, "must be from 1 to 2**53, got 0"),
    (-3, ValueError, "must be from 1 to 2**53, got -3"),
    (None, TypeError, "must be a whole number, not NoneType"),
    (1e3, TypeError, "must be a whole number, not float (1000.0)"),
]
NOT_BOUNDARIES = [
    ([3, 3], ValueError, "must increase, got boundaries[1] = 3 after 3"),
    ([1, 5, 4], ValueError, "must increase, got boundaries[2] = 4 after 5"),
    ([0], ValueError, "[0] must be from 1 to 2**53, got 0"),
    ([2, 3.0], TypeError, "[1] must be a whole number, not float (3.0)"),
    (3, TypeError, "must be a sequence, not int (3)"),
    (np.array(3), TypeError, "must be a sequence, not int (3)"),
    (np.array([[3]]), TypeError, "[0] must be a whole number, not list"),
    ({3}, TypeError, "must be a sequence, not set"),
    (b"\x03", TypeError, "must be a sequence, not bytes"),
    ([3, 4], ValueError, "must be one more than boundaries, so 3, got 2"),
]
REFUSED = {
    "lr": NOT_A_RATE,
    "start": NOT_A_RATE,
    "end": NOT_A_RATE,
    "power": NOT_A_RATE,
    "factor": NOT_A_SHARE,
    "steps": NOT_A_COUNT,
    "every": NOT_A_COUNT,
    "stretch": NOT_A_COUNT,
    "warmup": NOT_A_WAIT,
    "restarts": [*NOT_A_WAIT, (MAX_RESTARTS + 1, ValueError, "must be at most 1000, got 1001")],
    "values": [
        ([0.1, -0.1], ValueError, "[1] must be finite and not negative, got -0.1"),
        ([0.1, "b"], TypeError, "[1] must be a real number, not str ('b')"),
        (0.1, TypeError, "must be a sequence, not float (0.1)"),
        ("01", TypeError, "must be a sequence, not str ('01')"),
        ([], ValueError, "must be one more than boundaries, so 2, got 0"),
        ([0.1, 0.2, 0.3], ValueError, "must be one more than boundaries, so 2, got 3"),
    ],
    "boundaries": NOT_BOUNDARIES,
    "schedule": [(0.1, TypeError, "must be a schedule or a function step -> lr, not float (0.1)")],
    "schedules": [
        ([abs, 0.1], TypeError, "[1] must be a schedule or a function step -> lr, not float (0.1)"),
        (abs, TypeError, "must be a sequence, not builtin_function_or_method"),
        ([abs], ValueError, "must be one more than boundaries, so 2, got 1"),
    ],
}
GOOD = {
    "lr": 0.1,
    "factor": 0.1,
    "steps": 10,
    "every": 3,
    "warmup": 1,
    "values": [0.1, 0.2],
    "boundaries": [3],
    "schedule": abs,
    "schedules": [abs, abs],
}


def required(kind):
    parameters = inspect.signature(KINDS[kind]).parameters
    return {name: GOOD[name] for name, p in parameters.items() if p.default is inspect.Parameter.empty}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in inspect.signature(KINDS[kind]).parameters]
)
def test_wrong_arguments_are_refused_by_name(kind, name):
    """Each argument of each kind: the message begins with its name, and says what was found and expected."""
    for value, error, text in REFUSED[name]:
        with pytest.raises(error) as caught:
            KINDS[kind](**{**required(kind), name: value})
        assert name in str(caught.value)
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: cosine(0.1, steps=10, warmup=10), ValueError, "warmup must be less than steps=10, got 10"),
        (lambda: polynomial(0.1, steps=10, warmup=11), ValueError, "warmup must be less than steps=10, got 11"),
        (lambda: one_cycle(0.1, steps=10, warmup=10), ValueError, "warmup must be less than steps=10, got 10"),
        (lambda: inverse_sqrt(0.1, warmup=0), ValueError, "warmup must be from 1 to 2**53, got 0"),
        (
            lambda: cosine(0.1, steps=15, restarts=3, stretch=2, warmup=1),
            ValueError,
            "restarts=3 with stretch=2 need at least 15 steps after the warm-up, got 14",
        ),
        (
            lambda: cosine(0.1, steps=15, restarts=MAX_RESTARTS, stretch=MAX_STEP),
            ValueError,
            "need at least a number of very many digits steps after the warm-up, got 15",
        ),
        (lambda: constant(None), TypeError, "lr must be a real number, not NoneType"),
        (lambda: warmup(abs, 3, start=None), TypeError, "start must be a real number, not NoneType"),
        (lambda: cosine(0.1), TypeError, "argument: 'steps'"),
        (lambda: cosine(0.1, 10), TypeError, "cosine() too many positional arguments"),
        (lambda: cosine(0.1, steps=5, alpha=0), TypeError, "cosine() got an unexpected keyword argument 'alpha'"),
        (lambda: constant(0.1)(-1), ValueError, "step must be from 0 to 2**53, got -1"),
        (lambda: constant(0.1)(MAX_STEP + 1), ValueError, "step must be from 0 to 2**53, got 9007199254740993"),
        (lambda: constant(0.1)(3.0), TypeError, "step must be a whole number, not float (3.0)"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


CONSTANT = to_dict(constant(0.1))
WARMUP = to_dict(warmup(constant(0.1), 3))
NESTED = CONSTANT
for _ in range(sys.getrecursionlimit()):
    NESTED = {**WARMUP, "schedule": NESTED}


@pytest.mark.parametrize(
    ("d", "text"),
    [
        (None, "a schedule must be a dictionary here, not NoneType"),
        ([CONSTANT], "a schedule must be a dictionary here, not list"),
        (constant(0.1), "a schedule must be a dictionary here, not Schedule"),
        ({}, "a schedule's kind must be one of constant, piecewise, "),
        ({**CONSTANT, "kind": "linear"}, "got 'linear'"),
        ({**CONSTANT, "kind": ["constant"]}, "got ['constant']"),
        ({**CONSTANT, "decay": 1}, "must have the keys ['lr', 'warmup'], got ['lr', 'warmup', 'decay']"),
        ({"kind": "constant", "lr": 0.1}, "must have the keys ['lr', 'warmup'], got ['lr']"),
        ({**CONSTANT, 3: 4}, "got ['lr', 'warmup', 3]"),
        ({**CONSTANT, "lr": -1}, "constant: lr must be finite and not negative, got -1"),
        ({**CONSTANT, "lr": math.nan}, "constant: lr must be finite and not negative, got nan"),
        ({**CONSTANT, "lr": "0.1"}, "constant: lr must be a real number, not str ('0.1')"),
        ({**CONSTANT, "lr": None}, "constant: lr must be a real number, not NoneType"),
        ({**CONSTANT, "lr": True}, "constant: lr must be a number, a list or a dictionary, not bool (True)"),
        ({**CONSTANT, "lr": [0.1]}, "constant: lr must be a real number, not list"),
        ({**CONSTANT, "lr": CONSTANT}, "constant: lr must be a real number, not Schedule"),
        ({**CONSTANT, "warmup": 1.0}, "constant: warmup must be a whole number, not float (1.0)"),
        ({**WARMUP, "schedule": None}, "warmup: schedule must be a schedule or a function"),
        ({**WARMUP, "schedule": abs}, "schedule must be a number, a list or a dictionary, not builtin_function"),
        ({**WARMUP, "schedule": {}}, "warmup: schedule: a schedule's kind must be one of"),
        ({**WARMUP, "schedule": {**CONSTANT, "lr": -1}}, "warmup: schedule: constant: lr must be finite"),
        (
            {"kind": "join", "schedules": [CONSTANT, {"kind": "x"}], "boundaries": [3]},
            "join: schedules[1]: a schedule's kind must be",
        ),
        ({"kind": "piecewise", "values": [0.1, None], "boundaries": [3]}, "piecewise: values[1] must be a real number"),
        ({"kind": "piecewise", "values": [0.1], "boundaries": [3]}, "values must be one more than boundaries"),
        (NESTED, "recursion"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_wrong_dictionaries_are_refused(d, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        from_dict(d)
    assert text in str(caught.value)


# Pictures.


@pytest.fixture
def pyplot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_backend()
    pyplot.switch_backend("Agg")
    yield pyplot
    pyplot.close("all")
    pyplot.switch_backend(before)


def own(t):
    return 0.1


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (cosine(0.1, steps=90), ["cosine(0.1, steps=90)"]),
        (own, ["own"]),
        ([constant(0.1), own, constant(0.1)], ["constant(0.1)", "own", "constant(0.1)"]),
        ({"a": constant(0.1), "b": own}, ["a", "b"]),
    ],
)
def test_plot_draws_every_schedule(given, labels, pyplot):
    ax = plot(given, 100)
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == labels
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "learning rate")
    assert ax.get_ylim()[0] == 0
    for line in ax.lines:
        assert list(line.get_xdata()) == list(range(100))
    schedules = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else [given]
    assert [list(line.get_ydata()) for line in ax.lines] == [[f(t) for t in range(100)] for f in schedules]


def test_plot_draws_on_given_axes(pyplot):
    ax = pyplot.subplots()[1]
    assert plot(constant(0.1), 1, ax) is ax
    assert list(ax.lines[0].get_xdata()) == [0]
    assert pyplot.get_fignums() == [1]


def test_plot_of_many_steps_goes_from_the_first_to_the_last(pyplot):
    at = list(plot(constant(0.1), 1_234_567).lines[0].get_xdata())
    assert (at[0], at[-1], len(at)) == (0, 1_234_566, 10_000)
    assert {b - a for a, b in pairwise(at)} == {123, 124}


@pytest.mark.parametrize(
    ("given", "steps", "error", "text"),
    [
        (constant(0.1), 0, ValueError, "steps must be from 1 to 2**53, got 0"),
        (0.1, 5, TypeError, "schedules must be a sequence, not float (0.1)"),
        ([0.1], 5, TypeError, "schedules[0] must be a schedule or a function step -> lr, not float (0.1)"),
        ({"a": 0.1}, 5, TypeError, "schedules['a'] must be a schedule or a function step -> lr, not float (0.1)"),
    ],
)
def test_plot_refuses_wrong_arguments(given, steps, error, text):
    with pytest.raises(error) as caught:
        plot(given, steps)
    assert text in str(caught.value)


def test_plot_names_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^plot needs matplotlib: pip install 'gdm-optim\[demo\]'"):
        plot(constant(0.1), 5)


# Documentation.


@pytest.mark.parametrize("name", gdm.schedules.__all__)
def test_docstring_examples_of_schedules_run(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(gdm.schedules, name), name, module=False, globs={})
    assert test.examples
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
