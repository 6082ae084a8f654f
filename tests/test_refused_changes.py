"""Changes that one of several groups refuses: no group has them then, and the next step shows it."""

from __future__ import annotations

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE
from support import python

RATE = 2.0**-30
# What the second group refuses: an lr that is not finite in its dtype, or with its factor.
SECOND = {"dtype": {"params": np.ones(2, "f4")}, "lr_scale": {"params": np.ones(2), "lr_scale": 1e300}}


def make(refuses):
    second = {**SECOND[refuses], "params": SECOND[refuses]["params"].copy()}
    params = [np.ones(2), second["params"]]
    return gdm.SGD([{"params": params[0]}, second], lr=RATE), params


@pytest.mark.parametrize("refuses", SECOND)
@pytest.mark.parametrize("value", [1e300, lambda step: 1e300], ids=["number", "schedule"])
def test_a_learning_rate_that_one_group_refuses(backend, value, refuses):
    optimizer, params = make(refuses)
    with pytest.raises(ValueError, match=r"group 1: .*must be finite"):
        optimizer.lr = value
    assert optimizer.lr == RATE
    optimizer.step([np.full_like(x, RATE) for x in params])
    np.testing.assert_array_equal(params[0], np.full(2, 1 - RATE * RATE))


def test_a_weight_decay_that_one_group_refuses(backend):
    optimizer, params = make("dtype")
    with pytest.raises(ValueError, match="group 1: weight_decay must be finite in float32"):
        optimizer.weight_decay = 1e300
    optimizer.step([np.full_like(x, RATE) for x in params])
    np.testing.assert_array_equal(params[0], np.full(2, 1 - RATE * RATE))


def test_a_later_rate_that_one_group_refuses(backend):
    """The step is not made, for no group."""
    optimizer, params = make("dtype")
    optimizer.lr = lambda step: [0.5, 1e300][step]
    optimizer.step([np.ones_like(x) for x in params])
    with pytest.raises(ValueError, match=r"group 1: lr must be finite in float32, got 1e\+300"):
        optimizer.step([np.ones_like(x) for x in params])
    np.testing.assert_array_equal(params, 0.5)
    assert optimizer.steps == 1


@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module")
def test_the_number_of_threads_stays_after_changes():
    """An optimizer that may use one thread starts none, whatever has been changed."""
    code = """
    import os
    import numpy as np, gdm
    gdm.set_num_threads(4)
    params = [np.ones(3_000_000), np.ones(3_000_000)]
    optimizer = gdm.SGD([{"params": params}], lr=0.5, threads=1)
    optimizer.momentum = 0.5
    optimizer.add_group({"params": np.ones(3)})
    optimizer.remove_group(1)
    optimizer.load_state_dict(optimizer.state_dict())
    def workers():
        return sum(open(f"/proc/self/task/{x}/comm").read() == "gdm\\n" for x in os.listdir("/proc/self/task"))
    for _ in range(3):
        optimizer.step([[np.ones(3_000_000)] * 2])
    alone = workers()
    optimizer.threads = None
    for _ in range(3):
        optimizer.step([[np.ones(3_000_000)] * 2])
    print(alone, workers())
    """
    alone, together = map(int, python(code).split())
    assert alone == 0 < together


def test_a_state_cannot_be_a_parameter(backend):
    """Neither whole nor in part, of a group that is added."""
    optimizer = gdm.SGD([{"params": [np.ones(3), np.ones(4)]}], momentum=0.5)
    for given in (optimizer.velocity[0][1], optimizer.velocity[0][0][1:2]):
        with pytest.raises(gdm.OverlapError, match=r"the velocity of params\[0\]\['params'\]\[.\]") as caught:
            optimizer.add_group({"params": [np.ones(2), given]})
        assert "params[1]['params'][1]" in str(caught.value)
    assert len(optimizer.groups) == 1


def test_a_loaded_rate_that_is_not_finite_in_float32(backend):
    """It is a mistake of the state's."""
    optimizer = gdm.SGD([np.ones(3, "f4")], lr=0.5)
    state = optimizer.state_dict()
    state["groups"][0]["options"]["lr"] = 1e300
    with pytest.raises(gdm.CheckpointError, match="group 0: lr must be finite in float32"):
        optimizer.load_state_dict(state)
    assert optimizer.lr == 0.5


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 1, 1), (3,), (4, 3), (3, 4, 1), (0,), (2, 4)])
def test_an_lr_scale_that_does_not_broadcast(backend, shape):
    """One with more dimensions than its parameter, too, as NumPy would not give it the parameter's shape."""
    with pytest.raises(ValueError, match=r"lr_scale\[0\] has shape .* does not broadcast to its parameter's \(3, 4\)"):
        gdm.SGD([np.ones((3, 4))], lr_scale=[np.ones(shape)])


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 4), (1, 1), (3, 4)])
def test_an_lr_scale_that_broadcasts(backend, shape):
    scale = np.arange(1.0, 1 + np.prod(shape, dtype=int)).reshape(shape)
    for order in "CF":
        param = np.zeros((3, 4), order=order)
        gdm.SGD([param], lr=0.5, lr_scale=[scale]).step([np.ones((3, 4), order=order)])
        np.testing.assert_array_equal(param, np.broadcast_to(-0.5 * scale, (3, 4)))


def test_two_groups_of_one_name(backend):
    optimizer = gdm.SGD([{"params": [np.ones(3)], "name": "head"}])
    with pytest.raises(ValueError, match="'head', which another group has"):
        optimizer.add_group({"params": [np.ones(2)], "name": "head"})
    assert len(optimizer.groups) == 1


def test_an_added_group_begins_with_its_initial_accumulator(backend):
    optimizer = gdm.Adagrad([{"params": [np.ones(3)]}], initial_accumulator_value=0.25)
    optimizer.add_group({"params": [np.ones(2)]})
    np.testing.assert_array_equal(optimizer.state_sum[1][0], [0.25, 0.25])
