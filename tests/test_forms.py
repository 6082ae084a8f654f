"""SGD's two forms of momentum, and states that are converted from one to the other."""

from __future__ import annotations

import numpy as np
import pytest

import gdm
from support import assert_same_bits


@pytest.mark.parametrize(("form", "other"), [("torch", "classic"), ("classic", "torch")])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_converted_state_goes_on_along_the_same_path(backend, form, other, nesterov):
    """An optimizer of the other form that takes over walks on along the same path."""

    def gradient(x):
        return 2 * x + 0.1

    options = {"lr": 0.05, "momentum": 0.8, "nesterov": nesterov, "lr_scale": [0.5, np.linspace(0.5, 1, 9)]}
    params = [np.linspace(-1, 1, 9), np.linspace(0, 1, 9)]
    one = gdm.SGD(params, form=form, **options)
    for _ in range(6):
        one.step([gradient(x) for x in params])
    taken = [x.copy() for x in params]
    two = gdm.SGD(taken, form=other, **options)
    with pytest.raises(gdm.CheckpointError, match="form"):
        two.load_state_dict(one.state_dict())
    two.load_state_dict(gdm.SGD.to_form(one.state_dict(), other))
    for _ in range(10):
        one.step([gradient(x) for x in params])
        two.step([gradient(x) for x in taken])
    for x, y in zip(params, taken, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_a_velocity_is_converted_at_the_learning_rate_of_the_next_step():
    optimizer = gdm.SGD(np.ones(2), lr=gdm.schedules.piecewise([1.0, 0.5, 0.25], [1, 2]), momentum=0.5)
    optimizer.step(np.ones(2))
    (saved,) = gdm.SGD.to_form(optimizer.state_dict(), "classic")["groups"][0]["params"]
    np.testing.assert_array_equal(saved["state"]["velocity"], [-0.5, -0.5])


@pytest.mark.parametrize("form", ["torch", "classic"])
def test_a_velocity_that_has_not_begun_is_converted_at_any_learning_rate(form):
    """A velocity that is nothing yet does not mind a learning rate of 0, with which a warm-up begins."""
    optimizer = gdm.SGD(np.ones(2), lr=gdm.schedules.constant(0.5, warmup=3), momentum=0.5, form=form)
    other = {"torch": "classic", "classic": "torch"}[form]
    (saved,) = gdm.SGD.to_form(optimizer.state_dict(), other)["groups"][0]["params"]
    assert_same_bits(saved["state"]["velocity"], np.zeros(2))


def test_states_that_cannot_be_converted_are_refused():
    with pytest.raises(ValueError, match=r"dampening=0\.5, which the classic form does not know"):
        gdm.SGD.to_form(gdm.SGD(np.ones(2), momentum=0.9, dampening=0.5).state_dict(), "classic")
    with pytest.raises(ValueError, match="form must be"):
        gdm.SGD.to_form(gdm.SGD(np.ones(2)).state_dict(), "other")
    with pytest.raises(ValueError, match="only SGD has forms"):
        gdm.SGD.to_form(gdm.Adam(np.ones(2)).state_dict(), "classic")
    optimizer = gdm.SGD(np.ones(2), lr=0.0, momentum=0.9, form="classic")
    optimizer.step(np.ones(2))
    with pytest.raises(ValueError, match="learning rate of 0"):
        gdm.SGD.to_form(optimizer.state_dict(), "torch")
