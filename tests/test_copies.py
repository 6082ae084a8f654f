"""Copies of an optimizer: deepcopy and pickle."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gdm
from classes import assert_same_training, every_case, four_arrays, gradients, three_arrays

every_way = pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)


def assert_goes_on(params, optimizer, copied_params, copied, grads):
    """The copy holds the arrays that were copied along, and makes the same next step."""
    assert repr(copied) == repr(optimizer)
    for each in (optimizer, copied):
        each.step(grads)
    assert_same_training(copied, optimizer, copied_params, params)
    assert not any(np.shares_memory(x, y) for x, y in zip(copied_params, params, strict=True))


@every_way
@every_case
def test_a_copy_goes_on_to_the_bit(backend, name, options, way):
    params = four_arrays()
    optimizer = getattr(gdm, name)(params, **options)
    optimizer.step(gradients(0))
    copied_params, copied = way((params, optimizer))
    assert_goes_on(params, optimizer, copied_params, copied, gradients(1))


@every_way
def test_a_copy_of_an_optimizer_with_groups_goes_on_to_the_bit(backend, way):
    params = three_arrays()
    given = [{"params": params[:1], "lr": 0.3}, {"params": params[1:], "momentum": 0.0}]
    optimizer = gdm.SGD(given, lr=0.1, momentum=0.9)
    grads = [three_arrays()[:1], three_arrays()[1:]]
    optimizer.step(grads)
    copied_params, copied = way((params, optimizer))
    assert_goes_on(params, optimizer, copied_params, copied, grads)


def test_no_step_comes_between_the_parts_of_a_deep_copy(backend):
    """Not even from what is copied."""

    class Rate:
        def __call__(self, step):
            return 0.1

        def __deepcopy__(self, memo):
            with pytest.raises(RuntimeError, match="already in the middle of a step"):
                optimizer.step(np.ones(3))
            refused.append(True)
            return self

    refused, x = [], np.ones(3)
    optimizer = gdm.SGD(x, lr=Rate())
    copy.deepcopy(optimizer)
    assert refused
    optimizer.step(np.ones(3))  # it is free again
    np.testing.assert_array_equal(x, 0.9)


class Named(gdm.SGD):
    """A subclass that says itself what copies hold."""

    def __reduce__(self):
        return (*super().__reduce__(), {"_title": self._title})


class Remembering(Named):
    def __setstate__(self, state):
        self._title = state["_title"] + ", again"


@every_way
@pytest.mark.parametrize(("cls", "title"), [(Named, "mine"), (Remembering, "mine, again")])
def test_a_copy_of_a_subclass_holds_what_it_says(backend, way, cls, title):
    params, grads = three_arrays(), three_arrays()
    optimizer = cls(params, lr=0.1, momentum=0.9)
    optimizer._title = "mine"
    optimizer.step(grads)
    copied_params, copied = way((params, optimizer))
    assert (type(copied), copied._title) == (cls, title)
    assert_goes_on(params, optimizer, copied_params, copied, grads)
