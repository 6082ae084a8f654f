"""How parameters may be given: one array, sequences, mappings, groups; gradients and states are like them."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import gdm
from bad_buffers import BAD_BUFFERS, READ_ONLY, N
from classes import three_arrays
from support import assert_same_bits, numbers


def test_gradients_and_states_have_the_structure_of_params(backend):
    """One array, a sequence, a mapping, groups of each: grads and velocity have the structure of params."""
    a, b, c = three_arrays()
    ones = [np.ones_like(x) for x in (a, b, c)]
    before = [x.copy() for x in (a, b, c)]
    cases = [
        (a, ones[0], lambda v: [v]),
        ([a, b, c], ones, lambda v: v),
        ((a, b, c), tuple(ones), lambda v: v),
        ({"a": a, "b": b}, {"b": ones[1], "a": ones[0]}, lambda v: [v["a"], v["b"]]),
        (iter([a, b]), ones[:2], lambda v: v),
        ([{"params": [a, b]}, {"params": {"c": c}}], [ones[:2], {"c": ones[2]}], lambda v: [*v[0], v[1]["c"]]),
        ([{"params": a}, {"params": (b,)}], [ones[0], [ones[1]]], lambda v: [v[0], *v[1]]),
    ]
    for params, grads, flat in cases:
        for x, start in zip((a, b, c), before, strict=True):
            x[...] = start
        optimizer = gdm.SGD(params, lr=1.0, momentum=0.5)
        optimizer.step(grads)
        velocity = flat(optimizer.velocity)
        for x, start, v in zip((a, b, c), before, velocity, strict=False):
            np.testing.assert_array_equal(x, start - 1)
            np.testing.assert_array_equal(v, np.ones_like(v))


class Items(list):
    """A list that is none of the compiled module's."""


@pytest.mark.parametrize("kind", [list, Items, tuple, iter, lambda xs: (x for x in xs)])
def test_any_kind_of_sequence_will_do(backend, kind):
    params = three_arrays()
    expected = [x - np.ones_like(x) for x in params]
    optimizer = gdm.SGD(kind(params), lr=1.0)
    optimizer.step(kind([np.ones_like(x) for x in params]))
    for x, wanted in zip(params, expected, strict=True):
        assert_same_bits(x, wanted)


def test_errors_of_iterators_are_passed_on(backend):
    """A TypeError that the user's generator raises is not taken for one of ours."""

    def broken():
        yield np.ones(3)
        raise TypeError("the generator's own")

    for call in (gdm.SGD, gdm.SGD([np.ones(3)]).step, gdm.SGD([np.ones(3)]).bind):
        with pytest.raises(TypeError, match="the generator's own"):
            call(broken())


def test_there_may_be_no_elements_and_no_arrays(backend):
    for params in ([], {}, np.zeros((0, 3)), [np.zeros(0), np.ones(2)]):
        optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
        optimizer.step(copy.deepcopy(params))


def test_states_have_the_shape_and_memory_order_of_their_parameter(backend):
    """States follow the parameter's shape and memory order."""
    for order in "CF":
        param = np.asarray(np.arange(6.0).reshape(2, 3), order=order)
        grad = np.asarray(np.ones((2, 3)), order=order)
        optimizer = gdm.SGD(param, lr=1.0, momentum=0.5)
        optimizer.step(grad)
        np.testing.assert_array_equal(param, np.arange(6.0).reshape(2, 3) - 1)
        assert optimizer.velocity.shape == (2, 3)
        assert optimizer.velocity.flags[f"{order}_CONTIGUOUS"]
        with pytest.raises(ValueError, match=r"^grads and params lie in memory in different orders"):
            optimizer.step(np.asarray(grad, order="F" if order == "C" else "C"))


def test_dtypes_may_be_mixed(backend):
    params = [np.ones(3, np.float32), np.ones(3, np.float64)]
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
    optimizer.step([np.ones_like(x) for x in params])
    np.testing.assert_array_equal(params[0], np.float32(1) - np.float32(0.1))
    np.testing.assert_array_equal(params[1], 1 - 0.1)


@pytest.mark.parametrize("what", [*BAD_BUFFERS, *READ_ONLY])
def test_bad_params_are_refused(backend, what):
    """The bad one comes last, and is named by its place or its key."""
    make, error, message = {**BAD_BUFFERS, **READ_ONLY}[what]
    params = [numbers(np.float32, n, n) for n in (5, 17, N)]
    before = [x.tobytes() for x in params]
    with pytest.raises(error, match=rf"^params\[2\] {message}"):
        gdm.SGD([*params[:2], make(params[2])])
    with pytest.raises(error, match=rf"^params\['c'\] {message}"):
        gdm.SGD(dict(zip("abc", [*params[:2], make(params[2])], strict=True)))
    assert [x.tobytes() for x in params] == before


def test_gradients_of_another_structure_are_refused(backend):
    a, b, c = three_arrays()
    for params, grads, error, message in [
        ([a, b], [a.copy()], ValueError, "grads must have as many items as params, 2, got 1"),
        ([a, b], a.copy(), TypeError, "grads must be a sequence like params, not ndarray"),
        ([a, b], {"a": a}, TypeError, "grads must be a sequence like params, not dict"),
        ([a, b], 3, TypeError, "grads must be an array, or a sequence"),
        (a, [a.copy()], TypeError, "grads must be a NumPy array .* not list"),
        ({"a": a}, [a.copy()], TypeError, "grads must be a mapping like params, not list"),
        ({"a": a, "b": b}, {"a": a, "c": c}, ValueError, r"missing: \['b'\], not in params: \['c'\]"),
        ([{"params": a}, {"params": [b]}], [a.copy()], ValueError, "grads must have as many items"),
        ([{"params": a}, {"params": [b]}], [a.copy(), []], ValueError, r"grads\[1\] must have as many items"),
    ]:
        optimizer = gdm.SGD(params)
        with pytest.raises(error, match=message):
            optimizer.step(grads)


class Tensor:
    """What one of torch's whose memory cannot be had looks like from here."""

    requires_grad = True

    def detach(self):
        raise NotImplementedError("no memory. None at all")

    def resolve_neg(self):
        raise NotImplementedError

    def __iter__(self):
        raise AssertionError("a tensor is not a list of its numbers")


def test_tensors_are_refused_as_a_whole(backend):
    with pytest.raises(TypeError, match=r"^params must be a plain tensor, not Tensor: no memory$"):
        gdm.SGD(Tensor())
    with pytest.raises(TypeError, match=r"^params\[0\] must be a plain tensor, not Tensor: no memory$"):
        gdm.SGD([Tensor()])
    with pytest.raises(TypeError, match=r"^grads must be a plain tensor, not Tensor: no memory$"):
        gdm.SGD(np.ones(2)).step(Tensor())
