"""States: the first step, and options that switch states on and off."""

from __future__ import annotations

import numpy as np
import pytest

import gdm
from classes import three_arrays
from support import assert_same_bits, numbers


def test_the_first_step_takes_the_gradient_undampened(backend):
    param, grad = np.array([1.0, 2.0]), np.array([0.5, -0.0])
    optimizer = gdm.SGD(param, lr=0.5, momentum=0.9, dampening=0.6)
    optimizer.step(grad)
    assert_same_bits(optimizer.velocity, grad)
    optimizer.step(grad)
    np.testing.assert_allclose(optimizer.velocity, 0.9 * grad + 0.4 * grad)


def test_momentum_switched_on_later_begins_undampened(backend):
    """Steps without momentum do not count as the velocity's first."""
    param, grad = np.ones(4), np.array([2.0, -3.0, 0.5, -0.0])
    optimizer = gdm.SGD(param, lr=0.1, dampening=0.6)
    optimizer.step(np.ones(4))
    optimizer.momentum = 0.9
    optimizer.step(grad)
    assert_same_bits(optimizer.velocity, grad)
    optimizer.step(np.ones(4))
    np.testing.assert_allclose(optimizer.velocity, 0.9 * grad + 0.4)


def test_momentum_can_be_switched_on_and_off(backend):
    """Without momentum there is no velocity; a later one starts with the gradient."""
    param = np.ones(4)
    optimizer = gdm.SGD(param, lr=0.1)
    optimizer.step(np.ones(4))
    assert optimizer.velocity is None
    optimizer.momentum = 0.9
    optimizer.step(np.full(4, 2.0))
    np.testing.assert_array_equal(optimizer.velocity, np.full(4, 2.0))
    optimizer.momentum = 0.0
    optimizer.step(np.full(4, 3.0))
    np.testing.assert_array_equal(optimizer.velocity, np.full(4, 2.0))


def test_a_saved_state_that_is_not_in_use_is_kept(backend):
    """An option that was switched off, saved, loaded and switched on again goes on where it was."""
    for make, off, on in [
        (lambda p: gdm.SGD(p, lr=0.1, momentum=0.9), {"momentum": 0.0}, {"momentum": 0.9}),
        (lambda p: gdm.Adam(p, amsgrad=True), {"amsgrad": False}, {"amsgrad": True}),
        (lambda p: gdm.RMSprop(p, centered=True), {"centered": False}, {"centered": True}),
    ]:
        param = np.linspace(1, 2, 7)
        optimizer = make(param)
        for k in range(3):
            optimizer.step(numbers(np.float64, 7, k))
        ((name, value),) = off.items()
        setattr(optimizer, name, value)
        other = param.copy()
        loaded = type(optimizer)(other)
        loaded.load_state_dict(optimizer.state_dict())
        setattr(optimizer, name, on[name])
        setattr(loaded, name, on[name])
        for k in range(3):
            optimizer.step(numbers(np.float64, 7, k))
            loaded.step(numbers(np.float64, 7, k))
        assert_same_bits(other, param)


def test_nadam_goes_on_when_its_product_of_momenta_is_zero(backend):
    """It underflows after some hundred steps with a beta1 up to 0.5, and is 0 at once with 0."""
    for beta1, steps in [(0.0, 3), (0.5, 1500)]:
        param = np.ones(4)
        optimizer = gdm.NAdam(param, lr=0.01, betas=(beta1, 0.9))
        for _ in range(steps):
            optimizer.step(np.ones(4))
        saved = optimizer.state_dict()
        assert saved["groups"][0]["params"][0]["scalars"] == {"mu_product": 0.0}
        optimizer.load_state_dict(saved)
        before = param.copy()
        optimizer.step(np.ones(4))
        np.testing.assert_allclose(param, before - 0.01, rtol=1e-6)


def test_states_cannot_be_resized():
    optimizer = gdm.SGD(three_arrays(), momentum=0.9)
    with pytest.raises(ValueError, match="resize"):
        optimizer.velocity[0].resize(100, refcheck=False)
