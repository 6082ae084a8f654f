"""Gradients: bad ones, and arrays that move or change between the calls."""

from __future__ import annotations

import numpy as np
import pytest

import gdm
from bad_buffers import BAD_BUFFERS, NOT_LIKE, N
from classes import assert_same_training, every_case, every_dtype, four_arrays, gradients, three_arrays
from support import numbers


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("what", [*BAD_BUFFERS, *NOT_LIKE])
def test_bad_gradients_are_refused(backend, what, bound):
    """The bad one comes last."""
    make, error, message = {**BAD_BUFFERS, **NOT_LIKE}[what]
    params, grads, good = ([numbers(np.float32, n, n) for n in (5, 17, N)] for _ in range(3))
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
    optimizer.step(good)
    before = [x.tobytes() for x in (*params, *optimizer.velocity)]
    grads[2] = make(grads[2])
    message = message.format(param=r"params\[2\]")
    with pytest.raises(error, match=rf"^grads\[2\] {message}"):
        (optimizer.bind if bound else optimizer.step)(grads)
    assert [x.tobytes() for x in (*params, *optimizer.velocity)] == before
    optimizer.step(good)


@every_dtype
@every_case
def test_bound_gradients_are_read_in_each_step(backend, name, options, dtype):
    """Until others are bound; gradients that are given are for that step only."""
    params, wanted, grads = four_arrays(dtype), four_arrays(dtype), gradients(0, dtype)
    optimizer, other = getattr(gdm, name)(params, **options), getattr(gdm, name)(wanted, **options)
    with pytest.raises(RuntimeError, match="no gradients"):
        optimizer.step()
    optimizer.bind(grads)
    for step in range(4):
        for x, new in zip(grads, gradients(step, dtype), strict=True):
            x[...] = new
        optimizer.step()
        other.step(gradients(step, dtype))
    optimizer.step(gradients(4, dtype))
    other.step(gradients(4, dtype))
    optimizer.step()
    other.step(grads)
    assert_same_training(optimizer, other, params, wanted)


def test_bound_arrays_are_kept_alive(backend):
    param = np.ones(1000)
    optimizer = gdm.SGD(param, lr=1.0)
    optimizer.bind(np.full(1000, 0.5))
    np.full(1000, 7.0)  # would take the freed memory
    optimizer.step()
    np.testing.assert_array_equal(param, 0.5)


def test_what_becomes_of_the_list_that_was_bound_does_not_matter(backend):
    """What becomes of the caller's list does not matter."""
    param, grads = np.ones(3), [np.ones(3)]
    optimizer = gdm.SGD([param], lr=0.5)
    optimizer.bind(grads)
    grads.clear()
    optimizer.step()
    np.testing.assert_array_equal(param, 0.5)


def test_a_change_of_groups_forgets_what_was_bound(backend):
    optimizer = gdm.SGD([{"params": np.ones(3)}, {"params": np.ones(2)}])
    for change in (lambda: optimizer.add_group({"params": np.ones(1)}), lambda: optimizer.remove_group(0)):
        optimizer.bind([np.ones(x.size) for x in optimizer._snapshot.user_arrays])
        change()
        with pytest.raises(RuntimeError, match="no gradients"):
            optimizer.step()


@pytest.mark.parametrize("which", ["param", "grad"])
@pytest.mark.parametrize("size", [3, 40_000])
def test_a_bound_array_that_was_resized_is_found(backend, which, size):
    """A bound array that was resized, and so moved or got another length, is found before anything is written."""
    params, grads = three_arrays(), three_arrays()
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
    optimizer.bind(grads)
    optimizer.step()
    moved = {"param": params, "grad": grads}[which]
    moved[2].resize(size, refcheck=False)
    snapshot = [x.tobytes() for x in (*params, *optimizer.velocity)]
    with pytest.raises(gdm.StaleBufferError, match=rf"^{which}s\[2\] has moved, been resized, or changed"):
        optimizer.step()
    assert [x.tobytes() for x in (*params, *optimizer.velocity)] == snapshot
    if which == "param":
        with pytest.raises(gdm.StaleBufferError):
            optimizer.step(three_arrays())
        with pytest.raises(gdm.StaleBufferError):
            optimizer.bind(three_arrays())
    else:
        optimizer.bind(three_arrays())
        optimizer.step()


def test_a_moved_parameter_is_not_the_gradients_mistake(backend):
    param = np.ones(4)
    optimizer = gdm.SGD(param)
    param.resize(8, refcheck=False)
    for grads in (np.ones(8), np.ones(4)):
        for call in (optimizer.step, optimizer.bind):
            with pytest.raises(gdm.StaleBufferError, match=r"^params has moved, been resized"):
                call(grads)


def _read_only(x):
    x.flags.writeable = False


@pytest.mark.parametrize("change", [_read_only, lambda x: setattr(x, "dtype", np.int32)], ids=["read-only", "dtype"])
@pytest.mark.filterwarnings("ignore:Setting the dtype")
def test_a_parameter_that_became_read_only_or_of_another_dtype_is_found(backend, change):
    params, grads = three_arrays(), three_arrays()
    optimizer = gdm.SGD(params, lr=0.1)
    optimizer.bind(grads)
    change(params[2])
    before = [x.tobytes() for x in params]
    with pytest.raises(gdm.StaleBufferError, match=r"^params\[2\]"):
        optimizer.step()
    assert [x.tobytes() for x in params] == before


IN_PLACE = {
    "byte order": (lambda x: setattr(x, "dtype", x.dtype.newbyteorder()), (2, 3), True),
    "memory order": (lambda x: setattr(x, "strides", (8, 16)), (2, 3), True),
    "flat": (lambda x: setattr(x, "shape", (6,)), (2, 3), True),
    "square": (lambda x: setattr(x, "shape", (2, 3)), (6,), True),
    "transposed": (lambda x: setattr(x, "shape", (3, 2)), (2, 3), False),
    "a row": (lambda x: setattr(x, "shape", (1, 6)), (6,), False),
    "a column": (lambda x: setattr(x, "shape", (6, 1)), (6,), False),
    "one more axis": (lambda x: setattr(x, "shape", (2, 1, 3)), (2, 3), False),
}


@pytest.mark.parametrize("which", ["param", "grad"])
@pytest.mark.parametrize("what", IN_PLACE)
@pytest.mark.filterwarnings("ignore:Setting the")
def test_a_layout_that_changes_in_place_is_found_unless_it_means_the_same(backend, which, what):
    """What means the same memory in the same order goes on; anything else is found before a byte is written."""
    change, shape, stale = IN_PLACE[what]
    runs = []
    for changed in (False, True):
        params, grads = ([numbers(np.float64, 6, k).reshape(shape) for k in ks] for ks in ((1, 2), (3, 4)))
        optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
        optimizer.bind(grads)
        optimizer.step()
        if changed:
            change({"param": params, "grad": grads}[which][1])
        views = [*optimizer._snapshot.params, *optimizer.velocity]  # the memory as it was
        before = [x.tobytes() for x in views]
        try:
            optimizer.step()
        except gdm.StaleBufferError as error:
            assert f"{which}s[1] has moved" in str(error)  # noqa: PT017
            runs.append(before)
        finally:
            after = [x.tobytes() for x in views]
        if len(runs) == changed:
            runs.append(after)
        assert (runs[-1] == before) == (after == before) == (stale and changed)
    assert stale or runs[0] == runs[1]


@pytest.mark.parametrize("which", ["param", "grad"])
def test_an_array_whose_address_alone_has_changed_is_found(backend, which):
    """All that has changed is the address, as it may when an array is resized away and back."""
    params, grads = three_arrays(), three_arrays()
    optimizer = gdm.SGD(params, lr=0.1)
    optimizer.bind(grads)
    moved = {"param": params, "grad": grads}[which][2]
    address, state = moved.ctypes.data, moved.__reduce__()[2]
    moved.__setstate__((1, (0,), moved.dtype, False, b""))
    taken = [np.empty(33, np.float32) for _ in range(20)]  # one of them gets what has been freed
    moved.__setstate__(state)
    assert address in [x.ctypes.data for x in taken]
    assert moved.ctypes.data != address
    before = [x.tobytes() for x in params]
    with pytest.raises(gdm.StaleBufferError, match=rf"^{which}s\[2\] has moved"):
        optimizer.step()
    assert [x.tobytes() for x in params] == before
