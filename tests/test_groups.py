"""Groups: their hyperparameters and names; how they come and go."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gdm
from classes import every_class, three_arrays
from support import assert_same_bits, numbers


def test_each_group_has_hyperparameters_of_its_own(backend):
    a, b, _ = three_arrays()
    before = a.copy(), b.copy()
    optimizer = gdm.SGD([{"params": a, "lr": 1.0}, {"params": b}], lr=0.5)
    assert (optimizer.groups[0].lr, optimizer.groups[1].lr) == (1.0, 0.5)
    optimizer.groups[1].lr = 0.25
    optimizer.step([np.ones_like(a), np.ones_like(b)])
    np.testing.assert_array_equal(a, before[0] - 1)
    np.testing.assert_array_equal(b, before[1] - np.float32(0.25))
    with pytest.raises(ValueError, match="the groups differ in lr"):
        _ = optimizer.lr
    optimizer.lr = 2.0
    assert optimizer.lr == optimizer.groups[0].lr == optimizer.groups[1].lr == 2.0


def test_errors_name_the_group(backend):
    a, b, _ = three_arrays()
    with pytest.raises(ValueError, match=r"^group 1: lr must be finite"):
        gdm.SGD([{"params": a}, {"params": b, "lr": -1.0}])
    optimizer = gdm.SGD([{"params": a}, {"params": b}])
    with pytest.raises(ValueError, match=r"^group 1: lr must be finite"):
        optimizer.groups[1].lr = -1.0
    with pytest.raises(TypeError, match=r"^group 1: lr must be a real number"):
        optimizer.groups[1].lr = "fast"


def test_a_copy_of_a_group_is_of_the_same_optimizer(backend):
    """To the same group of the same optimizer."""
    optimizer = gdm.SGD([{"params": np.ones(2)}, {"params": np.ones(2)}], lr=0.5)
    copied = copy.copy(optimizer.groups[1])
    copied.lr = 0.25
    assert (optimizer.groups[0].lr, optimizer.groups[1].lr) == (0.5, 0.25)


def named():
    return gdm.Adam(
        [{"params": [np.ones(3)], "name": "body"}, {"params": np.ones(2), "name": "head", "lr": 0.5}], lr=0.1
    )


def test_groups_are_found_by_name_and_by_number(backend):
    optimizer = named()
    assert [group.name for group in optimizer.groups] == ["body", "head"]
    assert optimizer.groups["head"].lr == optimizer.groups[-1].lr == 0.5
    optimizer.groups["head"].lr = 0.001
    assert optimizer.groups[1].lr == 0.001
    assert "name='head'" in repr(optimizer.groups["head"])
    with pytest.raises(KeyError, match="no group 'tail'"):
        _ = optimizer.groups["tail"]
    with pytest.raises(IndexError, match="no group 2; there are 2"):
        _ = optimizer.groups[2]
    with pytest.raises(ValueError, match="which another group has"):
        gdm.SGD([{"params": [np.ones(1)], "name": "a"}, {"params": [np.ones(1)], "name": "a"}])
    with pytest.raises(TypeError, match="must be a string"):
        gdm.SGD([{"params": [np.ones(1)], "name": 3}])


@every_class
def test_groups_come_and_go(backend, name):
    """Each group walks on as if it had an optimizer of its own, whatever is added or removed beside it."""
    optimizer, rate = getattr(gdm, name), gdm.schedules.exponential(0.1, factor=0.5)
    scale = [0.5, np.full(17, 2.0)]
    a, b, c = three_arrays(np.float64)
    together = optimizer([{"params": [a, b], "lr_scale": scale, "name": "ab"}], lr=rate)
    others = three_arrays(np.float64)
    alone = [optimizer(others[:2], lr=rate, lr_scale=scale), optimizer(others[2], lr=rate)]
    for step in range(9):
        grads = [numbers(np.float64, x.size, 10 * step + k) for k, x in enumerate((a, b, c))]
        if step == 3:
            late = together.add_group({"params": c, "name": "c"})
            assert (late.name, late.steps, together.groups["ab"].steps) == ("c", 0, 3)
            with pytest.raises(ValueError, match="grads must have as many items as params"):
                together.step([grads[:2]])
        if step == 6:
            together.remove_group("ab")
            assert len(together.groups) == 1
        together.step(([grads[:2]] if step < 6 else []) + ([grads[2]] if step >= 3 else []))
        if step < 6:
            alone[0].step(grads[:2])
        if step >= 3:
            alone[1].step(grads[2])
    assert together.steps == together.groups["c"].steps == alone[1].steps == 6
    assert pickle.loads(pickle.dumps(together)).groups["c"].steps == 6
    for x, y in zip((a, b, c), others, strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize(
    ("make", "grads", "groups", "state"),
    [
        (lambda: gdm.SGD(np.ones(3), lr=0.1, momentum=0.9), np.ones(3), [0], "velocity"),
        (named, [[np.ones(3)], np.ones(2)], ["body", "head"], "exp_avg"),
    ],
    ids=["one", "named"],
)
def test_an_optimizer_whose_groups_are_all_removed_can_get_new_ones(backend, make, grads, groups, state):
    optimizer = make()
    optimizer.step(grads)
    for group in groups:
        optimizer.remove_group(group)
    assert (optimizer.steps, len(optimizer.groups), getattr(optimizer, state)) == (0, 0, [])
    optimizer.step([])
    with pytest.raises(ValueError, match="there are no groups, and so no lr"):
        optimizer.lr  # noqa: B018
    with pytest.raises(ValueError, match="there are no groups whose hyperparameters could be set"):
        optimizer.lr = 0.2
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), optimizer):
        assert len(other.groups) == 0
        assert other.add_group({"params": np.ones(2)}).lr == 0.1
        assert other.add_group({"params": [np.ones(2)], "lr": 0.5}).lr == 0.5


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ([np.ones(2)], TypeError, "group must be a mapping with the key 'params'"),
        ({"params": [np.ones(2)], "rate": 1}, ValueError, "option 'rate' that Adam does not know"),
        ({"params": [np.ones(2)], "lr": -1}, ValueError, "group 2: lr must be"),
        ({"params": [np.ones(2)], "name": "body"}, ValueError, "which another group has"),
        ({"params": [np.ones(2, int)]}, TypeError, r"params\[2\]\['params'\]\[0\] has dtype"),
    ],
)
def test_bad_groups_are_refused(backend, group, error, message):
    optimizer = named()
    before = repr(optimizer.state_dict())
    with pytest.raises(error, match=message):
        optimizer.add_group(group)
    assert repr(optimizer.state_dict()) == before
    optimizer.step([[np.ones(3)], np.ones(2)])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([{"param": np.ones(2)}], r"^params\[0\] must be a group, .* but it has only \['param'\]"),
        ([{"params": np.ones(2)}, np.ones(2)], r"^params\[1\] must be a group, .* not ndarray"),
    ],
)
def test_what_is_no_group_is_refused(params, message):
    with pytest.raises(TypeError, match=message):
        gdm.SGD(params)
    with pytest.raises(TypeError, match=r"^group must be a mapping with the key 'params', but it has only"):
        gdm.SGD([np.ones(1)]).add_group({"lr": 3})


def test_a_group_that_has_been_removed_says_so(backend):
    optimizer = gdm.SGD([{"params": np.ones(3)}, {"params": np.ones(2)}])
    group = optimizer.groups[1]
    optimizer.remove_group(1)
    for action in (lambda: group.lr, lambda: group.steps, lambda: setattr(group, "lr", 0.5), lambda: group.name):
        with pytest.raises(RuntimeError, match="this group has been removed"):
            action()
    assert repr(group) == "Group(removed)"


def test_a_group_has_its_first_step_whatever_those_before_it_had(backend):
    """A group that has not been stepped yet has its first step before it, whatever those before it had."""
    optimizer = gdm.SGD([{"params": np.ones(3)}], momentum=0.5, dampening=0.5)
    optimizer.step([np.ones(3)])
    optimizer.add_group({"params": np.ones(2)})
    optimizer.remove_group(0)
    optimizer.step([np.ones(2)])
    np.testing.assert_array_equal(optimizer.velocity, [[1.0, 1.0]])
    assert optimizer.steps == 1


def test_a_group_without_parameters_counts_its_steps(backend):
    empty, other = gdm.NAdam([]), gdm.NAdam([np.ones(2)])
    for _ in range(3):
        empty.step([])
        other.step([np.ones(2)])
    assert empty.steps == other.steps == 3
