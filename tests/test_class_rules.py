"""Every class does in native steps what its reference does, and what its function does."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

import gdm
from classes import CASES, CLASS_CASES, SGD_CASES, assert_same_training, every_case, every_dtype, four_arrays, gradients
from support import CLASSES, assert_same_bits, numbers

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
    products = [np.ones(1) for _ in params]
    for step in range(4):
        grads = gradients(step)
        for i, (param, grad) in enumerate(zip(plain, grads, strict=True)):
            scale = options.get("lr_scale", [1.0] * 4)[i]
            lr = options["lr"](step) if callable(options["lr"]) else options["lr"]
            given = {**kept, "lr": lr * (scale if isinstance(scale, float) else 1.0)}
            if not isinstance(scale, float):
                given["lr_scale"] = scale
            if "step" in keywords:
                given["step"] = step + 1
            if "mu_product" in keywords:
                given["mu_product"] = products[i]
            getattr(gdm, rule)(param=param, grad=grad, **state[i], **given)
        optimizer.step(grads)
        for x, y in zip(params, plain, strict=True):
            assert_same_bits(x, y)


def test_every_class_is_in_the_cases():
    """Every class that steps is here."""
    assert {cls.__name__ for cls in CLASSES} == set(CASES)
    assert len(list(itertools.chain(*CASES.values()))) > len(CASES)
