"""Every class does in native steps what its reference does, and what its function does."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

import gdm
from classes import CASES, CLASS_CASES, SGD_CASES, assert_same_training, every_case, every_dtype, four_arrays, gradients
from support import CLASSES, RULES, assert_same_bits, numbers

SIZES = (1, 16, 257, 40_000)  # with and without a tail, and enough for several threads


@functools.cache
def shared_gradients(step, dtype):
    """Nobody may write to them. One of them begins with -0."""
    grads = [numbers(dtype, n, 10 * step + k) for k, n in enumerate(SIZES)]
    grads[1][:4] = -0.0
    for x in grads:
        x.flags.writeable = False
    return grads


@every_dtype
@pytest.mark.parametrize(("name", "options"), [*CLASS_CASES, *SGD_CASES])
def test_native_equals_reference(name, options, dtype, isa):
    """Several steps, the first one among them."""
    results = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        params = [numbers(dtype, n, n) for n in SIZES]
        optimizer = getattr(gdm, name)(params, **options)
        for step in range(5):
            optimizer.step(shared_gradients(step, dtype))
        results.append((optimizer, params))
    (native, params), (reference, wanted) = results
    assert_same_training(native, reference, params, wanted)
    assert native._progress() == reference._progress()
    assert not np.array_equal(params[2], numbers(dtype, 257, 257))
    if name == "SGD":
        assert [x is None for x in native.velocity] == [native.momentum == 0] * len(SIZES)


@every_case
def test_class_is_its_function(name, options):
    """A class steps as its function does, called with the step's number and learning rate."""
    params, plain = four_arrays(), four_arrays()
    optimizer = getattr(gdm, name)(params, **options)
    rule = optimizer._rule_of(optimizer._snapshot.options[0])
    if rule == "momentum" and options.get("form") != "classic":
        pytest.skip("the first step of torch's form is the class's own")
    formula = getattr(gdm.reference, rule)
    keywords = gdm.reference.names(formula.__wrapped__)[1]
    own = optimizer._snapshot.options[0]
    kept = {n: own[n] for n in keywords if n in own and n != "lr_scale"}
    state = [
        {n: x.copy() for n, x in entry["state"].items()} for entry in optimizer.state_dict()["groups"][0]["params"]
    ]
    initial = RULES[rule]["scalars"]
    scalars = [{name: np.array([x]) for name, x in initial.items()} for _ in params]
    for step in range(4):
        grads = gradients(step)
        for i, (param, grad) in enumerate(zip(plain, grads, strict=True)):
            scale = options.get("lr_scale", [1.0] * 4)[i]
            lr = options["lr"](step) if callable(options["lr"]) else options["lr"]
            given = {**kept, **scalars[i], "lr": lr * (scale if isinstance(scale, float) else 1.0)}
            if not isinstance(scale, float):
                given["lr_scale"] = scale
            if "step" in keywords:
                given["step"] = step + 1
            getattr(gdm, rule)(param=param, grad=grad, **state[i], **given)
        optimizer.step(grads)
        for x, y in zip(params, plain, strict=True):
            assert_same_bits(x, y)


def test_every_class_is_in_the_cases():
    """Every class that steps is here."""
    assert {cls.__name__ for cls in CLASSES} == set(CASES)
    assert len(list(itertools.chain(*CASES.values()))) > len(CASES)


@every_dtype
def test_rprops_first_step_does_not_depend_on_what_its_states_hold(backend, dtype):
    """It goes as far as the learning rate of that moment says, times its factors, between the smallest and the largest
    step; the states begin with it."""
    for lr, wanted in ((0.25, 0.25), (5.0, 1.0), (1e-9, 0.125)):
        param, prev, size = np.ones(3, dtype), np.full(3, np.nan, dtype), np.full(3, np.inf, dtype)
        grad = np.array([2.0, -0.5, 0.0], dtype)
        gdm.rprop(param, prev, size, grad, step=1, lr=lr, step_sizes=(0.125, 1.0))
        np.testing.assert_array_equal(param, 1 - wanted * np.sign(grad))
        np.testing.assert_array_equal(size, wanted)
        np.testing.assert_array_equal(prev, grad)
    one, other = np.ones(2, dtype), np.ones(2, dtype)
    optimizer = gdm.Rprop([one, other], lr=7.0, lr_scale=[2.0, np.array([0.5, 4.0])])
    optimizer.lr = 0.25
    optimizer.step([np.ones(2, dtype), None])
    optimizer.lr = 0.5
    optimizer.step([None, np.ones(2, dtype)])
    np.testing.assert_array_equal(one, 1 - 0.5)
    np.testing.assert_array_equal(other, [1 - 0.25, 1 - 2.0])


def test_asgds_learning_rate_is_that_which_the_step_before_gave(backend):
    """A new lr has an effect one step later, as in PyTorch; and the average begins at step t0 + 3."""
    theta = np.zeros(1)
    optimizer = gdm.ASGD(theta, lr=0.5, lambd=0.5, alpha=2.0, t0=1.0)
    path, averages, last = [], [], 0.5
    for step, lr in enumerate((0.5, 0.25, 0.25, 0.25), 1):
        optimizer.lr = lr
        before = theta.item()
        eta = last if step == 1 else last / (1 + 0.5 * last * (step - 1)) ** 2
        optimizer.step(np.ones(1))
        assert theta.item() == pytest.approx((1 - 0.5 * eta) * before - eta, rel=1e-15)
        path.append(theta.item())
        averages.append(optimizer.ax.item())
        last = lr
    assert averages[:3] == path[:3]
    assert averages[3] == pytest.approx((path[2] + path[3]) / 2, rel=1e-15)
