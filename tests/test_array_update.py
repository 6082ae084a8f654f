"""Updates of one array that adapters bind: gdm.optimizer.adapter.ArrayUpdate."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gdm
from gdm.optimizer import adapter

SGD = {"lr": 0.1, "weight_decay": 0.01, "maximize": False, "decoupled_weight_decay": True}
ADAM = {**SGD, "betas": (0.9, 0.99), "eps": 1e-6, "amsgrad": False}
SIZES = [0, 1, 257, 40_000]


def arrays(rule, n, dtype=np.float32, average=True):
    random = np.random.default_rng(n)
    names = ["param", "grad", *(["exp_avg", "exp_avg_sq"] if rule == "adam" else []), *(["average"] if average else [])]
    return {name: random.uniform(0.1, 1, n).astype(dtype) for name in names}


def options(rule):
    return dict(ADAM if rule == "adam" else SGD)


def by_functions(rule, given, of_rule, step, scale, decay, clears):
    """The same by gdm's functions, which make a pass for each thing."""
    if rule == "adam":
        states = given["exp_avg"], given["exp_avg_sq"]
        gdm.adam(given["param"], *states, given["grad"] * given["grad"].dtype.type(scale), step=step, **of_rule)
    else:
        gdm.sgd(given["param"], given["grad"] * given["grad"].dtype.type(scale), **of_rule)
    if "average" in given:
        weight = given["param"].dtype.type(1 - decay)
        given["average"] += weight * (given["param"] - given["average"])
    if clears:
        given["grad"][...] = 0


def contents(given):
    return {name: x.tobytes() for name, x in given.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("clears", [False, True], ids=["keeps", "clears"])
@pytest.mark.parametrize("average", [False, True], ids=["plain", "average"])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_one_pass_gives_the_bits_of_many(rule, average, clears, n, dtype):
    given, expected = arrays(rule, n, dtype, average), arrays(rule, n, dtype, average)
    update = adapter.ArrayUpdate(rule, given, has_average=average, clears=clears)
    for step, scale, lr in ((1, 1.0, 0.1), (2, 0.5, 0.2), (9, -3.0, 0.2), (10, 1.0, 0.0)):
        of_rule = {**options(rule), "lr": lr}
        update.step(of_rule, step, scale, 1 - 1 / step)
        by_functions(rule, expected, of_rule, step, scale, 1 - 1 / step, clears)
        assert contents(given) == contents(expected)
        given["grad"][...] = expected["grad"][...] = lr


@pytest.mark.parametrize("shape", [(3, 5), (5, 1), (2, 3, 4)])
@pytest.mark.parametrize("order", "CF")
def test_any_shape_and_order(shape, order):
    param = np.ones(shape, order=order)
    given = {"param": param, "grad": np.ones_like(param), "average": adapter.new_states(param, 1)[0]}
    adapter.ArrayUpdate("sgd", given, has_average=True).step({**SGD, "weight_decay": 0.0}, 1, 1.0, 0.5)
    assert (param == 0.9).all()
    assert (given["average"] == 0.45).all()


def test_numbers_that_are_no_floats_count_as_floats():
    given, expected = arrays("adam", 7, average=False), arrays("adam", 7, average=False)
    adapter.ArrayUpdate("adam", given).step({**ADAM, "lr": np.float32(0.5), "weight_decay": 0, "eps": 1}, 1, 1, 0)
    adapter.ArrayUpdate("adam", expected).step({**ADAM, "lr": 0.5, "weight_decay": 0.0, "eps": 1.0}, 1, 1.0, 0.0)
    assert contents(given) == contents(expected)


BAD_ARRAYS = {
    "dtype": ({"grad": np.ones(3)}, ValueError, "grad has dtype float64"),
    "no float": ({"param": np.ones(3, int)}, TypeError, "param"),
    "shape": ({"exp_avg": np.ones(4, np.float32)}, ValueError, "exp_avg has shape"),
    "no array": ({"exp_avg_sq": None}, TypeError, "exp_avg_sq"),
    "strides": ({"average": np.ones(6, np.float32)[::2]}, ValueError, "average"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_named(case):
    changes, error, words = BAD_ARRAYS[case]
    with pytest.raises(error, match=words):
        adapter.ArrayUpdate("adam", {**arrays("adam", 3), **changes}, has_average=True)


def test_each_array_of_the_rule_is_needed_and_no_other():
    for rule, has_average in (("sgd", False), ("adam", False), ("lion", True)):
        with pytest.raises(ValueError, match="arrays must be"):
            adapter.ArrayUpdate(rule, arrays("adam" if rule == "adam" else "sgd", 3), has_average=has_average)


def test_a_read_only_gradient_is_refused_where_it_is_to_be_cleared():
    given = arrays("sgd", 3)
    given["grad"].flags.writeable = False
    with pytest.raises(ValueError, match="grad"):
        adapter.ArrayUpdate("sgd", given, has_average=True, clears=True)
    adapter.ArrayUpdate("sgd", given, has_average=True).step(SGD, 1, 1.0, 0.0)


def test_shared_memory_is_refused():
    given = arrays("adam", 3)
    with pytest.raises(gdm.OverlapError, match=r"average.*exp_avg|exp_avg.*average"):
        adapter.ArrayUpdate("adam", {**given, "average": given["exp_avg"]}, has_average=True)


BAD_NUMBERS = {
    "lr": (({**ADAM, "lr": -1.0}, 1, 1.0, 0.0), "lr must be"),
    "eps": (({**ADAM, "eps": float("nan")}, 1, 1.0, 0.0), "eps must be"),
    "betas": (({**ADAM, "betas": (0.9, 1.0)}, 1, 1.0, 0.0), "betas"),
    "too large": (({**ADAM, "lr": 1e39}, 1, 1.0, 0.0), "lr must be finite in float32"),
    "step": ((ADAM, 0, 1.0, 0.0), "step must be"),
    "scale": ((ADAM, 1, float("inf"), 0.0), "scale must be"),
    "decay": ((ADAM, 1, 1.0, 1.0), "average_decay must be"),
}


@pytest.mark.parametrize("case", BAD_NUMBERS)
def test_bad_numbers_are_named_and_change_nothing(case):
    given = arrays("adam", 3)
    update, before = adapter.ArrayUpdate("adam", given, has_average=True, clears=True), contents(given)
    with pytest.raises(ValueError, match=BAD_NUMBERS[case][1]):
        update.step(*BAD_NUMBERS[case][0])
    assert contents(given) == before
    update.step(ADAM, 1, 1.0, 0.5)  # and it goes on
    expected = arrays("adam", 3)
    by_functions("adam", expected, ADAM, 1, 1.0, 0.5, True)
    assert contents(given) == contents(expected)


def test_an_array_that_has_changed_is_refused():
    given = arrays("sgd", 3)
    update = adapter.ArrayUpdate("sgd", given, has_average=True)
    given["param"].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        update.step(SGD, 1, 1.0, 0.0)
    given["param"].flags.writeable = True
    update.step(SGD, 1, 1.0, 0.0)


@pytest.mark.skipif(gdm.backend() == "reference", reason="the reference holds the interpreter's lock")
def test_two_threads_cannot_make_it_at_once():
    given = arrays("adam", 1 << 20)
    update, refused, done = adapter.ArrayUpdate("adam", given, has_average=True), [], []

    def work():
        for _ in range(40):
            try:
                update.step(ADAM, 1, 1.0, 0.5)
                done.append(1)
            except RuntimeError:
                refused.append(1)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    expected = arrays("adam", 1 << 20)
    for _ in done:
        by_functions("adam", expected, ADAM, 1, 1.0, 0.5, False)
    assert contents(given) == contents(expected)
    assert len(done) + len(refused) == 120
