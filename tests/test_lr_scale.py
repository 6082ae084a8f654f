"""lr_scale: factors of the learning rate, for a parameter or each of its elements."""

from __future__ import annotations

import numpy as np
import pytest

import gdm


def test_a_number_scales_a_parameter_and_an_array_each_element(backend):
    """A number scales a parameter's learning rate, an array each element's, decoupled decay included."""
    a, b, c = np.ones(3), np.ones(3), np.ones(3)
    scale = np.array([0.0, 1.0, 2.0], np.float32)
    optimizer = gdm.SGD([a, b, c], lr=0.25, lr_scale=[2.0, scale, 1])
    scale[...] = 7  # it was copied
    optimizer.step([np.ones(3)] * 3)
    np.testing.assert_array_equal(a, 0.5)
    np.testing.assert_array_equal(b, [1.0, 0.75, 0.5])
    np.testing.assert_array_equal(c, 0.75)
    optimizer.lr_scale = 0
    optimizer.step([np.ones(3)] * 3)
    np.testing.assert_array_equal(c, 0.75)
    x = np.ones(3)
    decayed = gdm.AdamW(x, lr=0.5, weight_decay=0.5, lr_scale=np.array([0.0, 1.0, 2.0]))
    decayed.step(np.zeros(3))
    np.testing.assert_array_equal(x, [1.0, 0.75, 0.5])


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (-1, ValueError, "^lr_scale must be finite and not negative, got -1"),
        (np.inf, ValueError, "^lr_scale must be finite"),
        ("x", TypeError, "^lr_scale must be a"),
        ([1.0], ValueError, "^lr_scale must have as many items as params, 2, got 1"),
        ([1.0, np.ones(4)], ValueError, r"^lr_scale\[1\] has shape \(4,\), which does not broadcast"),
        ([1.0, np.ones((1, 3))], ValueError, r"^lr_scale\[1\] has shape \(1, 3\), which does not broadcast"),
        ([1.0, -np.ones(3)], ValueError, r"^lr_scale\[1\] must be finite and not negative in each element"),
        ([1.0, np.full(3, np.nan)], ValueError, r"^lr_scale\[1\] must be finite"),
        ([1.0, "x"], (TypeError, ValueError), r"^lr_scale\[1\]"),
    ],
)
def test_bad_factors_are_refused(backend, scale, error, message):
    params = [np.ones(2), np.ones(3)]
    with pytest.raises(error, match=message):
        gdm.SGD(params, lr_scale=scale)
    in_a_group = message.replace("^", "^group 1: ")
    with pytest.raises(error, match=in_a_group):
        gdm.SGD([{"params": np.ones(1)}, {"params": params, "lr_scale": scale}])
    optimizer = gdm.SGD(params)
    with pytest.raises(error, match=message):
        optimizer.lr_scale = scale
    assert optimizer.lr_scale == 1.0


def test_a_group_without_factors_has_the_number_that_was_given(backend):
    """A group without one of its own has the number that was given, and not what is another parameter's."""
    optimizer = gdm.SGD(np.ones(3), lr=0.1, lr_scale=np.array([0.0, 1.0, 1.0]))
    assert optimizer.add_group({"params": np.ones(3)}).lr_scale == 1.0
    assert gdm.SGD([{"params": np.ones(3)}], lr_scale=0.5).add_group({"params": np.ones(2)}).lr_scale == 0.5
    with pytest.raises(TypeError, match=r"^lr_scale must be a number where there are groups"):
        gdm.SGD([{"params": np.ones(3)}, {"params": np.ones(3)}], lr_scale=np.ones(3))


def test_a_learning_rate_too_large_with_its_factor_is_refused(backend):
    param = np.ones(2)
    with pytest.raises(ValueError, match="lr \\* lr_scale must be finite"):
        gdm.SGD(param, lr=1e300, lr_scale=1e300)
    optimizer = gdm.SGD(param, lr=1.0, lr_scale=1e300)
    for name, value in (("lr", 1e300), ("lr", lambda step: 1e300)):
        with pytest.raises(ValueError, match="lr \\* lr_scale must be finite"):
            setattr(optimizer, name, value)
        assert optimizer.lr == 1.0
    optimizer.lr = lambda step: 1e300 * step
    optimizer.step(np.zeros(2))
    with pytest.raises(ValueError, match="lr \\* lr_scale must be finite"):
        optimizer.step(np.ones(2))
    np.testing.assert_array_equal(param, np.ones(2))
    assert optimizer.steps == 1


def test_factors_are_copied(backend, tmp_path):
    """What is saved is what is in use, whatever became of what was given, and in the order of params."""
    factors, given = np.array([1, 2, 3], dtype=np.int32), np.full(3, 0.5)
    optimizer = gdm.SGD(np.ones(3), lr_scale=factors)
    factors[:] = 9
    optimizer.lr_scale[:] = 9
    optimizer.groups[0].lr_scale[:] = 9
    np.testing.assert_array_equal(optimizer.lr_scale, [1, 2, 3])
    optimizer.save(tmp_path / "state")
    optimizer.load(tmp_path / "state")
    assert optimizer.lr_scale.dtype == np.float64
    several = {"a": np.ones(3), "b": np.ones(3)}
    optimizer = gdm.SGD(several, lr=1.0, momentum=0.5, lr_scale={"b": 2, "a": given})
    given[:] = 9
    optimizer.step({"a": np.ones(3), "b": np.ones(3)})
    saved = gdm.SGD.to_form(optimizer.state_dict(), "classic")
    a, b = (entry["state"]["velocity"] for entry in saved["groups"][0]["params"])
    assert (a.tolist(), b.tolist()) == ([-0.5] * 3, [-2.0] * 3)
    saved = gdm.SGD.to_form(gdm.SGD(np.ones(3), lr_scale=[1, 2, 3]).state_dict(), "classic")
    for number in (np.float32(0.5), np.int64(2)):
        optimizer = gdm.SGD(np.ones(3), lr_scale=number)
        assert type(optimizer.lr_scale) is float
        optimizer.save(tmp_path / "state")
    assert gdm.SGD([np.ones(1)], lr_scale=iter([0.5])).lr_scale == [0.5]


@pytest.mark.parametrize("order", "CF")
def test_factors_lie_in_memory_as_their_parameter_does(backend, order):
    """Whatever the order of the array they came in, and whatever becomes of that."""
    given = np.arange(6.0).reshape(2, 3)
    param, grad = np.zeros((2, 3), order=order), np.zeros((2, 3), order=order)
    grad[...] = [[1, 2, 4], [8, 16, 32]]
    for factors in (given.copy("C"), given.copy("F")):
        grouped = gdm.SGD([{"params": param, "lr_scale": factors}], lr=1.0)
        later = gdm.SGD(param, lr=1.0)
        later.lr_scale = factors
        factors[:] = 9
        for optimizer, grads in ((grouped, [grad]), (later, grad)):
            param[:] = 0
            optimizer.step(grads)
            np.testing.assert_array_equal(param, -given * grad)
