"""Learning rates that are functions, in the steps of an optimizer."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gdm


def test_schedules_drive_the_step(backend):
    theta = np.zeros(1)
    optimizer = gdm.SGD(theta, lr=gdm.schedules.piecewise([1.0, 0.25], [2]))
    seen = []
    for _ in range(4):
        seen.append(optimizer.groups[0].current_lr)
        before = theta.copy()
        optimizer.step(np.ones(1))
        assert before - theta == seen[-1]
    assert seen == [1.0, 1.0, 0.25, 0.25]
    assert optimizer.steps == 4


@pytest.mark.parametrize("bad", [-1.0, np.nan, "x", None])
def test_a_rate_that_is_none_stops_the_step_before_it_writes(backend, bad):
    """Found before anything is written; the step can be made once the schedule is mended."""
    theta = np.ones(3)
    optimizer = gdm.SGD([{"params": [np.ones(2)]}, {"params": [theta], "lr": lambda t: 0.5 if t != 1 else bad}])
    optimizer.step([[np.ones(2)], [np.ones(3)]])
    with pytest.raises((TypeError, ValueError), match=r"^lr\(1\) must be"):
        optimizer.step([[np.ones(2)], [np.ones(3)]])
    np.testing.assert_array_equal(theta, 0.5)
    assert optimizer.groups[1].steps == 1
    optimizer.groups[1].lr = 0.5
    optimizer.step([[np.ones(2)], [np.ones(3)]])
    np.testing.assert_array_equal(theta, 0.0)
    with pytest.raises((TypeError, ValueError), match=r"lr\(0\) must be"):
        gdm.SGD(theta, lr=lambda t: bad)


def test_a_schedule_cannot_step_its_own_optimizer():
    theta = np.ones(2)

    def meddle(t):
        if t == 1:
            optimizer.step(np.ones(2))
        return 0.5

    optimizer = gdm.SGD(theta, lr=meddle)
    optimizer.step(np.ones(2))
    with pytest.raises(RuntimeError, match="already in the middle of a step"):
        optimizer.step(np.ones(2))
    np.testing.assert_array_equal(theta, 0.5)


def test_a_schedule_that_raises_cannot_be_set(backend):
    optimizer = gdm.SGD(np.ones(2), lr=0.5)
    optimizer.step(np.ones(2))
    with pytest.raises(IndexError):
        optimizer.lr = lambda step: [0.5][step]
    assert optimizer.lr == 0.5


def test_a_schedule_is_asked_before_the_gradients_are_looked_at(backend):
    """It is asked before they are looked at."""
    params, grads = [np.ones(3), np.ones(3)], []

    def meddling(step):
        grads[1:] = ["none"]
        return 0.5

    optimizer = gdm.SGD(params, lr=meddling)
    grads[:] = [np.ones(3), np.ones(3)]
    with pytest.raises(TypeError, match=r"grads\[1\]"):
        optimizer.step(grads)
    optimizer.lr = lambda step: grads.clear() or 0.5
    with pytest.raises(ValueError, match="grads must have as many items as params"):
        optimizer.step(grads)
    np.testing.assert_array_equal(params, np.ones((2, 3)))


def test_a_schedule_is_asked_once_for_each_step(backend):
    asked = []
    params = [np.zeros(2), np.zeros(2)]
    optimizer = gdm.SGD(params, lr=lambda step: asked.append(step) or float(len(asked)))
    asked.clear()
    optimizer.step([np.ones(2), np.ones(2)])
    assert asked == [0]
    np.testing.assert_array_equal(params, -np.ones((2, 2)))


def test_an_error_of_a_schedule_names_the_group(backend):
    """Some cannot be made from a message alone."""

    def schedule(step):
        raise json.JSONDecodeError("no number", "", 0)

    with pytest.raises(ValueError, match="group 0: no number"):
        gdm.SGD([{"params": np.ones(2)}], lr=schedule)
