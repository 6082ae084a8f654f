"""Gradients that are None: their parameters, states, scalars and counts of steps stay as they are."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gdm
from support import CLASSES, assert_same_bits, numbers

OPTIONS = {cls.__name__: {} for cls in CLASSES} | {
    "SGD": {"momentum": 0.9, "dampening": 0.3},
    "Adagrad": {"lr_decay": 0.1},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adam": {"amsgrad": True},
}
SIZES = (5, 300, 0, 17)
# Which of the parameters have a gradient in each step.
PRESENT = [(0, 1, 2, 3), (1, 3), (), (0,), (0, 1, 2, 3), (3,), (0, 1, 3), (0, 1, 2, 3)]
every_class = pytest.mark.parametrize("name", OPTIONS)


def make(dtype=np.float32):
    return [numbers(dtype, n, k) for k, n in enumerate(SIZES)]


def gradient(step, k, dtype=np.float32):
    return numbers(dtype, SIZES[k], 100 + 10 * step + k)


@every_class
@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_parameter_walks_as_if_it_were_alone(backend, name, bound, dtype):
    """It is stepped with its own gradients, at its own count of steps."""
    params, alone = make(dtype), make(dtype)
    together = getattr(gdm, name)(params, lr=0.01, **OPTIONS[name])
    each = [getattr(gdm, name)(x, lr=0.01, **OPTIONS[name]) for x in alone]
    for step, present in enumerate(PRESENT):
        grads = [gradient(step, k, dtype) if k in present else None for k in range(len(SIZES))]
        if bound:
            together.bind(grads)
        together.step(*([] if bound else [grads]))
        for k in present:
            each[k].step(grads[k])
        for x, y in zip(params, alone, strict=True):
            assert_same_bits(x, y, f"step {step}")
    assert together.param_steps == [x.steps for x in each]
    assert together.steps == len(PRESENT)
    for k, (entry, other) in enumerate(zip(together.state_dict()["groups"][0]["params"], each, strict=True)):
        wanted = other.state_dict()["groups"][0]["params"][0]
        assert entry["scalars"] == wanted["scalars"], k
        for state, x in entry["state"].items():
            assert_same_bits(x, wanted["state"][state], state)


@every_class
def test_native_equals_reference_in_large_arrays_and_threads(name):
    results = []
    for backend in ("native", "reference") if gdm.available_isas() else ("reference",):
        gdm.set_backend(backend)
        params = [numbers(np.float32, 50_000, k) for k in range(6)]
        optimizer = getattr(gdm, name)(params, lr=0.01, threads=3, **OPTIONS[name])
        for step in range(6):
            grads = [numbers(np.float32, 50_000, 7 * step + k) if (step + k) % 3 else None for k in range(6)]
            optimizer.step(grads)
        results.append((params, optimizer))
    for x, y in zip(results[0][0], results[-1][0], strict=True):
        assert_same_bits(x, y)
    assert results[0][1]._progress() == results[-1][1]._progress()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), "state_dict", "file"])
@every_class
def test_different_counts_are_saved(backend, name, way, tmp_path):
    params = make()
    optimizer = getattr(gdm, name)(params, lr=0.01, **OPTIONS[name])
    for step, present in enumerate(PRESENT):
        optimizer.step([gradient(step, k) if k in present else None for k in range(len(SIZES))])
    if callable(way):
        others, other = way((params, optimizer))
    else:
        others = [x.copy() for x in params]
        other = getattr(gdm, name)(others)
        if way == "file":
            optimizer.save(tmp_path / "state")
            other.load(tmp_path / "state")
        else:
            other.load_state_dict(optimizer.state_dict())
    assert other._progress() == optimizer._progress()
    for step in (20, 21):
        grads = [gradient(step, k) for k in range(len(SIZES))]
        optimizer.step(grads)
        other.step(grads)
    for x, y in zip(others, params, strict=True):
        assert_same_bits(x, y)


def test_structures(backend):
    """None in a sequence, in a mapping, in the groups; and in the place of a whole group."""
    a, b, c = np.ones(3), np.ones(2), np.ones(1)
    g = {"a": np.ones(3), "b": None}
    gdm.SGD({"a": a, "b": b}, lr=0.5).step(g)
    assert (a[0], b[0]) == (0.5, 1.0)
    optimizer = gdm.SGD([{"params": [a, b]}, {"params": {"c": c}}], lr=0.5)
    optimizer.step([None, {"c": np.ones(1)}])
    optimizer.step([[None, np.ones(2)], None])
    assert (a[0], b[0], c[0]) == (0.5, 0.5, 0.5)
    assert optimizer.param_steps == [[0, 1], {"c": 1}]
    assert optimizer.steps == 2


def test_one_array_needs_its_gradient(backend):
    """``step(None)`` is ``step()``: without anything bound there is nothing to do."""
    optimizer = gdm.SGD(np.ones(3))
    with pytest.raises(RuntimeError, match="no gradients"):
        optimizer.step(None)
    with pytest.raises(TypeError, match="grads must be a NumPy array"):
        optimizer.bind(None)


def test_nothing_is_written_when_another_gradient_is_wrong(backend):
    params = [np.ones(3), np.ones(2)]
    optimizer = gdm.Adam(params)
    with pytest.raises(ValueError, match=r"grads\[1\] has shape"):
        optimizer.step([None, np.ones(7)])
    assert optimizer.param_steps == [0, 0]
    np.testing.assert_array_equal(params[1], 1.0)


def test_a_bound_none_stays_none(backend):
    params = [np.ones(3), np.ones(2)]
    optimizer = gdm.SGD(params, lr=0.5)
    optimizer.bind([np.ones(3), None])
    optimizer.step()
    optimizer.step([None, np.ones(2)])
    optimizer.step()
    np.testing.assert_array_equal(params[0], 0.0)
    np.testing.assert_array_equal(params[1], 0.5)


def test_schedules_count_the_steps_of_the_optimizer(backend):
    """A learning rate belongs to a step of the optimizer, whichever parameters take part in it."""
    params = [np.zeros(1), np.zeros(1)]
    optimizer = gdm.SGD(params, lr=lambda step: float(step + 1))
    optimizer.step([np.ones(1), None])
    optimizer.step([np.ones(1), np.ones(1)])
    assert (params[0][0], params[1][0]) == (-3.0, -2.0)
