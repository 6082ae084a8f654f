"""Optimizers: structures, groups, state, binding, and the contract for many buffers at once."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import time
import weakref
from textwrap import dedent

import numpy as np
import pytest

import gdm
from support import CLASSES, DTYPES, HOOKS, assert_same_bits, describe, every_hook, numbers, option_cases, python


def three(dtype=np.float32):
    return [numbers(dtype, n, n) for n in (5, 17, 33)]


SGD_CASES = [
    pytest.param({name: x for name, x in o.items() if name != "lr_scale"}, id=describe(o))
    for o in option_cases("momentum")
    if not o["lr_scale"]  # what the function takes is not what the class does
]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("options", SGD_CASES)
def test_native_equals_reference(options, dtype, isa):
    """Several steps, the first one among them, over sizes with and without a tail; -0 in the gradient too."""
    results = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        params = [numbers(dtype, n, n) for n in (1, 16, 257, 40_000)]
        optimizer = gdm.SGD(params, **options)
        for step in range(3):
            grads = [numbers(dtype, x.size, 10 * step + k) for k, x in enumerate(params)]
            grads[1][:4] = -0.0
            optimizer.step(grads)
        results.append((params, optimizer.velocity))
    for native, reference in zip(*(r[0] for r in results), strict=True):
        assert_same_bits(native, reference)
    for native, reference in zip(*(r[1] for r in results), strict=True):
        assert (native is None) == (reference is None) == (options["momentum"] == 0)
        if native is not None:
            assert_same_bits(native, reference)


def test_first_step_takes_the_gradient_undampened(backend):
    param, grad = np.array([1.0, 2.0]), np.array([0.5, -0.0])
    optimizer = gdm.SGD(param, lr=0.5, momentum=0.9, dampening=0.6)
    optimizer.step(grad)
    assert_same_bits(optimizer.velocity, grad)
    optimizer.step(grad)
    np.testing.assert_allclose(optimizer.velocity, 0.9 * grad + 0.4 * grad)


def test_structures(backend):
    """One array, a sequence, a mapping, groups of each: grads and velocity have the structure of params."""
    a, b, c = three()
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
def test_kinds_of_sequences(backend, kind):
    params = three()
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


def test_empty_is_fine(backend):
    for params in ([], {}, np.zeros((0, 3)), [np.zeros(0), np.ones(2)]):
        optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
        optimizer.step(copy.deepcopy(params))


def test_shapes_and_orders(backend):
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


def test_mixed_dtypes(backend):
    params = [np.ones(3, np.float32), np.ones(3, np.float64)]
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
    optimizer.step([np.ones_like(x) for x in params])
    np.testing.assert_array_equal(params[0], np.float32(1) - np.float32(0.1))
    np.testing.assert_array_equal(params[1], 1 - 0.1)


# ---- hyperparameters and groups ----


def test_groups(backend):
    a, b, _ = three()
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


def test_hyperparameters_are_checked_when_set(backend):
    optimizer = gdm.SGD([{"params": np.ones(2)}, {"params": np.ones(2), "momentum": 0.5, "nesterov": True}], lr=0.5)
    for name, value, error in [
        ("lr", -1.0, ValueError),
        ("lr", "fast", TypeError),
        ("weight_decay", float("nan"), ValueError),
        ("momentum", 1.0, ValueError),
        ("momentum", 0.0, ValueError),  # the second group has nesterov
        ("maximize", "yes", TypeError),
    ]:
        before = repr(optimizer)
        with pytest.raises(error, match=name):
            setattr(optimizer, name, value)
        with pytest.raises(error, match=name):
            setattr(optimizer.groups[1], name, value)
        assert repr(optimizer) == before
    with pytest.raises(AttributeError, match="form is fixed"):
        optimizer.form = "classic"
    with pytest.raises(AttributeError, match="no hyperparameter 'rate'"):
        optimizer.groups[0].rate = 1.0
    with pytest.raises(AttributeError, match="no hyperparameter 'rate'"):
        _ = optimizer.groups[0].rate
    assert "lr" in dir(optimizer.groups[0])


def test_constructor_is_checked():
    for options, error in [
        ({"lr": -1}, ValueError),
        ({"momentum": 1.0}, ValueError),
        ({"nesterov": True}, ValueError),
        ({"momentum": 0.9, "nesterov": True, "dampening": 0.1}, ValueError),
        ({"form": "keras"}, ValueError),
        ({"weight_decay": "a"}, TypeError),
    ]:
        with pytest.raises(error):
            gdm.SGD(np.ones(2), **options)
    with pytest.raises(ValueError, match=r"params\[1\] has an option 'betas' that SGD does not know; it knows lr,"):
        gdm.SGD([{"params": np.ones(2)}, {"params": np.ones(2), "betas": 1}])
    with pytest.raises(TypeError, match="params must be an array, or a sequence or mapping of arrays, not int"):
        gdm.SGD(3)


def test_errors_of_groups_are_located(backend):
    a, b, _ = three()
    with pytest.raises(ValueError, match=r"^group 1: lr must be finite"):
        gdm.SGD([{"params": a}, {"params": b, "lr": -1.0}])
    optimizer = gdm.SGD([{"params": a}, {"params": b}])
    with pytest.raises(ValueError, match=r"^group 1: lr must be finite"):
        optimizer.groups[1].lr = -1.0
    with pytest.raises(TypeError, match=r"^group 1: lr must be a real number"):
        optimizer.groups[1].lr = "fast"


def test_groups_can_be_copied(backend):
    """To the same group of the same optimizer."""
    optimizer = gdm.SGD([{"params": np.ones(2)}, {"params": np.ones(2)}], lr=0.5)
    copied = copy.copy(optimizer.groups[1])
    copied.lr = 0.25
    assert (optimizer.groups[0].lr, optimizer.groups[1].lr) == (0.5, 0.25)


@pytest.mark.parametrize("optimizer", CLASSES)
def test_groups_come_and_go(backend, optimizer):
    """Each group walks on as if it had an optimizer of its own, whatever is added or removed beside it."""
    rate = gdm.schedules.exponential(0.1, factor=0.5)
    scale = [0.5, np.full(17, 2.0)]
    a, b, c = three(np.float64)
    together = optimizer([{"params": [a, b], "lr_scale": scale, "name": "ab"}], lr=rate)
    others = three(np.float64)
    alone = [optimizer(others[:2], lr=rate, lr_scale=scale), optimizer(others[2], lr=rate)]
    for step in range(9):
        grads = [numbers(np.float64, x.size, 10 * step + k) for k, x in enumerate((a, b, c))]
        if step == 3:
            assert together.add_group({"params": c, "name": "c"}).steps == 0
        if step == 6:
            together.remove_group("ab")
        together.step(([grads[:2]] if step < 6 else []) + ([grads[2]] if step >= 3 else []))
        if step < 6:
            alone[0].step(grads[:2])
        if step >= 3:
            alone[1].step(grads[2])
    assert together.steps == alone[1].steps == 6
    for x, y in zip((a, b, c), others, strict=True):
        assert_same_bits(x, y)


def test_without_groups(backend):
    opt = gdm.SGD(np.ones(3), lr=0.1, momentum=0.9)
    opt.step(np.ones(3))
    opt.remove_group(0)
    assert (opt.steps, len(opt.groups), opt.velocity) == (0, 0, [])
    opt.step([])
    with pytest.raises(ValueError, match="there are no groups, and so no lr"):
        opt.lr  # noqa: B018
    with pytest.raises(ValueError, match="there are no groups whose hyperparameters could be set"):
        opt.lr = 0.2
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert len(other.groups) == 0
        assert other.add_group({"params": np.ones(2)}).lr == 0.1


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


# ---- the contract for many buffers: the bad one comes last ----


def released(x):
    view = memoryview(x)
    view.release()
    return view


BAD_PARAMS = {
    "list": (lambda x: x.tolist(), TypeError, r"^params\[2\] must be a NumPy array"),
    "integers": (lambda x: x.astype(int), TypeError, r"^params\[2\] has dtype int64"),
    "swapped": (lambda x: x.astype(x.dtype.newbyteorder()), TypeError, r"^params\[2\] is byte-swapped"),
    "strided": (lambda x: np.repeat(x, 2)[::2], ValueError, r"^params\[2\] is not contiguous"),
    "misaligned": (
        lambda x: np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(x.dtype),
        ValueError,
        r"^params\[2\] is misaligned",
    ),
    "masked": (np.ma.MaskedArray, TypeError, r"^params\[2\] is a masked array"),
    "released": (released, TypeError, r"^params\[2\] must be a NumPy array .* not memoryview"),
    "read-only": (lambda x: np.frombuffer(x.tobytes(), x.dtype), ValueError, r"^params\[2\] is read-only"),
}
BAD_GRADS = {
    **{k: (m, e, t.replace("params", "grads")) for k, (m, e, t) in BAD_PARAMS.items() if k != "read-only"},
    "dtype": (
        lambda x: x.astype(np.float64),
        ValueError,
        r"^grads\[2\] has dtype float64, but params\[2\] has float32",
    ),
    "shape": (lambda x: x[:-1].copy(), ValueError, r"^grads\[2\] has shape \(32,\), but params\[2\] has \(33,\)"),
}


@pytest.mark.parametrize("what", BAD_PARAMS)
def test_bad_params(backend, what):
    make, error, message = BAD_PARAMS[what]
    params = three()
    before = [x.tobytes() for x in params]
    with pytest.raises(error, match=message):
        gdm.SGD([*params[:2], make(params[2])])
    with pytest.raises(error, match=message.replace(r"\[2\]", r"\['c'\]")):
        gdm.SGD(dict(zip("abc", [*params[:2], make(params[2])], strict=True)))
    assert [x.tobytes() for x in params] == before


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("what", BAD_GRADS)
def test_bad_grads(backend, what, bound):
    make, error, message = BAD_GRADS[what]
    params = three()
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
    optimizer.step(three())
    snapshot = [x.tobytes() for x in (*params, *optimizer.velocity)]
    grads = three()
    grads[2] = make(grads[2])
    with pytest.raises(error, match=message):
        (optimizer.bind if bound else optimizer.step)(grads)
    assert [x.tobytes() for x in (*params, *optimizer.velocity)] == snapshot
    optimizer.step(three())  # and it still works


@pytest.mark.parametrize("started", [False, True])
def test_shared_memory(backend, started):
    params = three()
    with pytest.raises(gdm.OverlapError, match=r"params\[\d\] and params\[\d\] share memory"):
        gdm.SGD([*params, params[0]])
    with pytest.raises(gdm.OverlapError, match=r"params\[\d\] and params\[\d\] share memory"):
        gdm.SGD([*params, params[1][3:9]])
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9)
    if started:
        optimizer.step(three())
    snapshot = [x.tobytes() for x in (*params, *optimizer.velocity)]
    n = params[2].size
    for grad, other in [
        (params[2], r"params\[2\]"),
        (params[2].view(), r"params\[2\]"),
        (optimizer.velocity[2], r"the velocity of params\[2\]"),
    ]:
        with pytest.raises(gdm.OverlapError, match=other):
            optimizer.step([*three()[:2], grad])
        assert [x.tobytes() for x in (*params, *optimizer.velocity)] == snapshot
    # Another parameter's memory, and only in part.
    memory = np.zeros(100, np.float32)
    optimizer = gdm.SGD([memory[:n], memory[n : 2 * n]], lr=0.1)
    with pytest.raises(gdm.OverlapError, match=r"params\[1\] and grads\[0\]"):
        optimizer.step([memory[2 * n - 1 : 3 * n - 1], np.ones(n, np.float32)])
    optimizer.step([memory[2 * n : 3 * n], memory[2 * n : 3 * n]])  # gradients may share memory


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_overlap_by_brute_force(backend, dtype):
    """A gradient for each of twelve parameters at every place in the memory they lie in."""
    memory = numbers(dtype, 100, 1)
    before = memory.copy()
    spans, end = [], 5
    for n, gap in [(1, 0), (9, 1), (2, 0), (6, 3), (1, 1), (1, 0), (12, 0), (3, 7), (4, 2), (1, 12), (7, 0), (2, 9)]:
        spans.append((end, n))
        end += n + gap
    spans = spans[::2] + spans[::-2]  # not in the order of their addresses
    owner = np.full(memory.size, -1)
    for k, (start, n) in enumerate(spans):
        owner[start : start + n] = k
    optimizer = gdm.SGD([memory[start : start + n] for start, n in spans], lr=0.0)
    apart = [np.ones(n, dtype) for _, n in spans]
    outcomes = set()
    for k, (_, n) in enumerate(spans):
        for start in range(memory.size - n + 1):
            grads = [*apart[:k], memory[start : start + n], *apart[k + 1 :]]
            shared = set(owner[start : start + n]) - {-1}
            outcomes.add(bool(shared))
            if shared:
                with pytest.raises(gdm.OverlapError) as caught:
                    optimizer.step(grads)
                assert any(f"params[{i}] and grads[{k}]" in str(caught.value) or
                           f"grads[{k}] and params[{i}]" in str(caught.value) for i in shared)  # fmt: skip
            else:
                optimizer.step(grads)
    assert outcomes == {False, True}
    assert_same_bits(memory, before)


def test_the_end_of_a_parameter_is_protected(backend):
    """Lengths in bytes are those of the dtype, also where dtypes are mixed."""
    memory = np.zeros(32)
    optimizer = gdm.SGD([np.ones(8, np.float32), memory[:8], memory[8:9]], lr=0.1)
    for start, shared in [(7, True), (4, True), (9, False), (16, False)]:
        grads = [np.ones(8, np.float32), memory[start : start + 8], np.ones(1)]
        if shared:
            with pytest.raises(gdm.OverlapError, match=r"params\[1\] and grads\[1\]"):
                optimizer.step(grads)
        else:
            optimizer.step(grads)
    with pytest.raises(gdm.OverlapError, match=r"params\[1\] and grads\[0\]"):
        optimizer.step([memory[7:11].view(np.float32), np.ones(8), np.ones(1)])


def test_gradients_may_share_memory(backend):
    """With each other, whole and in part; and one of length 0 lies nowhere."""
    a, b, memory = np.zeros(8), np.zeros(8), np.arange(1.0, 13.0)
    memory.flags.writeable = False
    optimizer = gdm.SGD([a, b, np.zeros(0)], lr=1.0)
    optimizer.step([memory[:8], memory[:8], a[3:3]])
    optimizer.step([memory[:8], memory[4:], memory[2:2]])
    optimizer.bind([memory[4:], memory[:8], b[:0]])
    optimizer.step()
    optimizer.step([memoryview(memory[4:]), memoryview(memory[:8]), memoryview(a[3:3])])  # checked in Python
    np.testing.assert_array_equal(a, -2 * (memory[:8] + memory[4:]))
    np.testing.assert_array_equal(b, -(3 * memory[:8] + memory[4:]))


def test_wrong_structures(backend):
    a, b, c = three()
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


# ---- binding ----


def test_bind(backend):
    params, grads = three(), three()
    optimizer, other = gdm.SGD(params, lr=0.1, momentum=0.9), gdm.SGD(expected := three(), lr=0.1, momentum=0.9)
    with pytest.raises(RuntimeError, match="no gradients"):
        optimizer.step()
    optimizer.bind(grads)
    for step in range(3):
        for g in grads:
            g *= step + 0.5
        optimizer.step()
        other.step(grads)
    optimizer.step(three())  # for this step only
    other.step(three())
    optimizer.step()
    other.step(grads)
    for x, wanted in zip(params, expected, strict=True):
        assert_same_bits(x, wanted)


def test_bound_arrays_are_kept_alive(backend):
    param = np.ones(1000)
    optimizer = gdm.SGD(param, lr=1.0)
    optimizer.bind(np.full(1000, 0.5))
    np.full(1000, 7.0)  # would take the freed memory
    optimizer.step()
    np.testing.assert_array_equal(param, 0.5)


@pytest.mark.parametrize("which", ["param", "grad"])
@pytest.mark.parametrize("size", [3, 40_000])
def test_stale_buffers(backend, which, size):
    """A bound array that was resized, and so moved or got another length, is found before anything is written."""
    params, grads = three(), three()
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
            optimizer.step(three())
        with pytest.raises(gdm.StaleBufferError):
            optimizer.bind(three())
    else:
        optimizer.bind(three())
        optimizer.step()


def _read_only(x):
    x.flags.writeable = False


@pytest.mark.parametrize("change", [_read_only, lambda x: setattr(x, "dtype", np.int32)], ids=["read-only", "dtype"])
@pytest.mark.filterwarnings("ignore:Setting the dtype")
def test_arrays_that_change_in_place(backend, change):
    params, grads = three(), three()
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
def test_layouts_that_change_in_place(backend, which, what):
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
def test_the_same_length_elsewhere(backend, which):
    """All that has changed is the address, as it may when an array is resized away and back."""
    params, grads = three(), three()
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


MOVES = {
    "params": ("params['a'].resize(1, refcheck=False)", "StaleBufferError params['a'] has moved, been resized, or"),
    "grads": ("grads['a'].resize(1, refcheck=False)", "ValueError grads['a'] has shape (1,), but params['a'] has"),
}
IN_A_MAPPING = """
    class Grads(dict):
        def __getitem__(self, key):
            if key == "b":
                act()
            return dict.__getitem__(self, key)
"""
SETUP = """
    params, grads = ({key: np.zeros(N) for key in "ab"} for _ in range(2))
    optimizer = gdm.SGD(params, lr=1.0, momentum=0.5)
    optimizer.bind(grads)
"""


@pytest.mark.parametrize("call", ["step", "bind"])
@pytest.mark.parametrize("what", MOVES)
def test_a_mapping_that_moves_arrays(backend, what, call):
    act, message = MOVES[what]
    code = f"""
    def act():
        {act}
    attempt(optimizer.{call}, Grads({{key: grads[key] for key in "ab"}}))
    print(*(x[0] for x in params.values()))
    """
    refused, values = python("".join(map(dedent, (HOOKS, IN_A_MAPPING, SETUP, code))), GDM_BACKEND=backend).splitlines()
    assert refused.startswith(message)
    assert values == "0.0 0.0"


@every_hook
@pytest.mark.parametrize("call", ["step", "bind"])
@pytest.mark.parametrize("what", MOVES)
def test_a_gradient_that_moves_arrays(backend, what, call, how):
    act, message = MOVES[what]
    code = f"""
    def act():
        {act}
    attempt(optimizer.{call}, {{"a": grads["a"], "b": hook({how!r})}})
    print(*(x[0] for x in params.values()))
    """
    refused, values = python("".join(map(dedent, (HOOKS, SETUP, code))), GDM_BACKEND=backend).splitlines()
    assert refused.startswith(message)
    assert values == "0.0 0.0"


@every_hook
@pytest.mark.parametrize("place", [0, 1])
def test_a_gradient_that_shortens_the_list(backend, place, how):
    code = f"""
    params = [np.zeros(N) for _ in range(2)]
    grads = [np.ones(N) for _ in range(2)]
    grads[{place}] = hook({how!r})
    act = grads.clear
    optimizer = gdm.SGD(params, lr=1.0)
    attempt(optimizer.step, grads)
    print(*(np.all(x == x[0]) and x[0] in (0, -1) for x in params))
    """
    *refused, whole = python(dedent(HOOKS) + dedent(code), GDM_BACKEND=backend).splitlines()
    assert all(line.startswith(("ValueError", "StaleBufferError")) for line in refused)
    assert whole == "True True"


INITIALISED_TWICE = """
    import numpy as np, gdm
    param = np.zeros(1_000_000)
    optimizer = gdm.SGD([param], lr=1.0, momentum=0.5)
    optimizer.bind([np.ones(1_000_000)])
    optimizer.step()
    try:
        optimizer.__init__([np.zeros(3)], momentum=0.1)
    except RuntimeError as error:
        print(error)
    optimizer.step()
    print(np.all(param == -2.5), optimizer.momentum, optimizer.velocity[0][0])
"""


def test_initialised_twice(backend):
    """Refused, and the optimizer goes on as it was."""
    told, state = python(INITIALISED_TWICE, GDM_BACKEND=backend).splitlines()
    assert told == "an optimizer cannot be initialised twice"
    assert state == "True 0.5 1.5"


def test_freed_at_once(backend):
    """No cycles: the arrays of a model do not wait for the garbage collector."""
    gc.disable()
    try:
        optimizer = gdm.SGD([{"params": three()}], lr=0.1, momentum=0.9)
        optimizer.bind([three()])
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.groups[0].lr == optimizer.lr
        gone = weakref.ref(optimizer)
        del optimizer
        assert gone() is None
    finally:
        gc.enable()


def test_bound_list_is_the_optimizers_own(backend):
    """What becomes of the caller's list does not matter."""
    param, grads = np.ones(3), [np.ones(3)]
    optimizer = gdm.SGD([param], lr=0.5)
    optimizer.bind(grads)
    grads.clear()
    optimizer.step()
    np.testing.assert_array_equal(param, 0.5)


def test_states_cannot_be_resized():
    optimizer = gdm.SGD(three(), momentum=0.9)
    with pytest.raises(ValueError, match="resize"):
        optimizer.velocity[0].resize(100, refcheck=False)


def test_two_threads_at_once():
    """One of them steps, the other is told; nothing is lost."""
    param = np.zeros(4_000_000, np.float32)
    optimizer = gdm.SGD(param, lr=1.0)
    optimizer.bind(np.full_like(param, -1.0))
    done, refused, start = [], [], threading.Barrier(2)
    switch = sys.getswitchinterval()

    def work():
        start.wait()
        for _ in range(30):
            try:
                optimizer.step()
                done.append(1)
            except RuntimeError as error:
                assert "already in the middle of a step" in str(error)  # noqa: PT017
                refused.append(1)

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert refused
    np.testing.assert_array_equal(param, len(done))


def _untorn_state(optimizer):
    velocity = optimizer.state_dict()["groups"][0]["params"][0]["state"]["velocity"]
    assert np.all(velocity == velocity[0])


WHILE_STEPPING = {
    "state_dict": _untorn_state,
    "lr": lambda o: setattr(o, "lr", 0.5),
    "lr of a group": lambda o: setattr(o.groups[0], "lr", 0.5),
    "bind": lambda o: o.bind([np.ones_like(o._snapshot.params[0])]),
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("what", WHILE_STEPPING)
def test_in_the_middle_of_a_step(backend, what):
    """Another thread is told, or comes between two steps; it neither sees nor makes half a step."""
    optimizer = gdm.SGD([np.zeros(1_000_000, np.float32)], lr=1.0, momentum=0.999)
    optimizer.bind([np.ones(1_000_000, np.float32)])
    stop, refused = threading.Event(), 0

    def work():
        while not stop.is_set():
            try:
                optimizer.step()
            except RuntimeError as error:
                assert "already in the middle of a step" in str(error)  # noqa: PT017

    thread = threading.Thread(target=work)
    thread.start()
    try:
        end = time.monotonic() + 60  # a change is over so soon that most come between two steps
        while time.monotonic() < end:
            try:
                WHILE_STEPPING[what](optimizer)
            except RuntimeError as error:
                assert "already in the middle of a step" in str(error)  # noqa: PT017
                refused += 1
            if refused == 3:
                break
    finally:
        stop.set()
        thread.join()
    assert refused == 3


def test_native_step_outlives_the_callers_list():
    """Cleared by another thread while the interpreter is released: the gradients live until the step is done."""
    code = """
    import sys, threading
    import numpy as np, gdm
    sys.setswitchinterval(1)
    n, done = 5_000_000, 0  # more than malloc would keep
    param = np.zeros(n)
    optimizer = gdm.SGD([param], lr=1.0)
    for _ in range(5):
        grads, go = [np.full(n, -1.0)], threading.Event()
        other = threading.Thread(target=lambda: go.wait() and grads.clear())
        other.start()
        go.set()
        try:
            optimizer.step(grads)
            done += 1
        except ValueError:  # cleared too early
            pass
        other.join()
        assert not grads
    print(done > 0 and np.all(param == done))
    """
    assert python(code) == "True"


def test_a_failed_step_marks_nothing_as_started(monkeypatch):
    """The reference, with an error in its second parameter: a later first step is still a first one."""
    gdm.set_backend("reference")
    update, calls = gdm.reference.update, []

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return update(*args, **options)

    params = three()
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9, dampening=0.5)
    before = [x.tobytes() for x in (*params, *optimizer.velocity)]
    with monkeypatch.context() as patch:
        patch.setattr(gdm.reference, "update", failing)
        with pytest.raises(MemoryError):
            optimizer.step(three())
    assert [x.tobytes() for x in (*params, *optimizer.velocity)] == before
    assert not any(entry["begun"] for entry in optimizer.state_dict()["groups"][0]["params"])
    optimizer.step(three())
    for velocity, grad in zip(optimizer.velocity, three(), strict=True):
        assert_same_bits(velocity, grad)


# ---- state ----


@pytest.mark.parametrize("options", SGD_CASES[::3])
def test_state_goes_on_to_the_bit(backend, options):
    def run(params, optimizer, steps):
        for step in steps:
            optimizer.step([numbers(np.float32, x.size, 100 + 10 * step + k) for k, x in enumerate(params)])

    straight = three()
    run(straight, gdm.SGD(straight, **options), range(6))
    params = three()
    first = gdm.SGD(params, **options)
    run(params, first, range(3))
    saved = pickle.loads(pickle.dumps(first.state_dict()))
    run(params, first, [9])  # what the old one does later must not matter
    stopped = three()
    run(stopped, gdm.SGD(stopped, **options), range(3))
    second = gdm.SGD(stopped, lr=0.5, momentum=0.1, form=options["form"])
    second.load_state_dict(saved)
    run(stopped, second, range(3, 6))
    for x, wanted in zip(stopped, straight, strict=True):
        assert_same_bits(x, wanted)


def test_state_before_the_first_step(backend):
    """Whether a velocity has begun is part of the state."""
    param, grad = np.ones(2), np.array([0.5, 2.0])
    optimizer = gdm.SGD(param, lr=0.1, momentum=0.9, dampening=0.5)
    fresh = optimizer.state_dict()
    optimizer.step(grad)
    begun = optimizer.state_dict()
    optimizer.load_state_dict(fresh)
    optimizer.step(grad)
    np.testing.assert_array_equal(optimizer.velocity, grad)
    optimizer.load_state_dict(begun)
    optimizer.step(grad)
    np.testing.assert_allclose(optimizer.velocity, 0.9 * grad + 0.5 * grad)


def test_state_is_a_copy(backend):
    optimizer = gdm.SGD(np.ones(2), momentum=0.9)
    optimizer.step(np.ones(2))
    saved = optimizer.state_dict()
    saved["groups"][0]["params"][0]["state"]["velocity"][...] = 7
    np.testing.assert_array_equal(optimizer.velocity, 1)
    optimizer.load_state_dict(saved)
    saved["groups"][0]["params"][0]["state"]["velocity"][...] = 8
    np.testing.assert_array_equal(optimizer.velocity, 7)


def test_state_without_velocities(backend):
    """Loaded into an optimizer that has some: they begin anew."""
    params, grads = three(), three()
    plain = gdm.SGD(three(), lr=0.1, dampening=0.5)
    plain.step(grads)
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9, dampening=0.5)
    optimizer.step(grads)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.momentum == 0.0
    assert optimizer.velocity == [None, None, None]
    optimizer.momentum = 0.9
    optimizer.step(grads)
    for velocity, grad in zip(optimizer.velocity, grads, strict=True):
        assert_same_bits(velocity, grad)


def test_state_made_of_the_live_velocities(backend):
    """Swapped between two parameters: all is read before anything is written."""
    optimizer = gdm.SGD([np.ones(3), np.ones(3)], lr=0.1, momentum=0.9)
    optimizer.step([np.full(3, 2.0), np.full(3, 5.0)])
    saved = optimizer.state_dict()
    for entry, velocity in zip(saved["groups"][0]["params"], reversed(optimizer.velocity), strict=True):
        entry["state"]["velocity"] = velocity
    optimizer.load_state_dict(saved)
    np.testing.assert_array_equal(optimizer.velocity, [[5.0] * 3, [2.0] * 3])


def _edit(path, value):
    def edit(saved):
        place = saved
        for key in path[:-1]:
            place = place[key]
        if value is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return edit


LAST = ("groups", 0, "params", 2)
BAD_STATES = {
    "format": (_edit(["format"], 99), "has format 99; expected 3"),
    "class": (_edit(["optimizer"], "Adam"), "is of Adam; expected SGD"),
    "no groups": (_edit(["groups"], KeyError), "not one of gdm's"),
    "groups": (_edit(["groups"], []), "has 0 groups; expected 1"),
    "fewer": (_edit(LAST, KeyError), r"has \[2\] parameters in its groups; expected \[3\]"),
    "name": (_edit([*LAST, "name"], "[7]"), r"has a parameter '\[7\]' where '\[2\]' was expected"),
    "lr": (_edit(["groups", 0, "options", "lr"], -1.0), "group 0: lr must be finite and not negative"),
    "steps": (_edit(["groups", 0, "steps"], -1), "group 0: steps must be from 0 to 9223372036854775807, got -1"),
    "steps as a float": (_edit(["groups", 0, "steps"], 1.0), "group 0: steps must be a whole number"),
    "a scalar": (_edit([*LAST, "scalars"], {"mu_product": 1.0}), r"params\[2\]: it has the scalars \['mu_product'\]"),
    "a parameter's steps": (_edit([*LAST, "steps"], -1), r"params\[2\]: steps must be from 0 to 9223372036854775807"),
    "option": (_edit(["groups", 0, "options", "beta"], 1.0), "group 0 has options"),
    "form": (_edit(["groups", 0, "options", "form"], "classic"), "has form 'classic'; expected 'torch'"),
    "shape": (
        _edit([*LAST, "state", "velocity"], np.zeros(4, np.float32)),
        r"velocity of params\[2\] has dtype float32",
    ),
    "dtype": (_edit([*LAST, "state", "velocity"], np.zeros(33)), r"velocity of params\[2\] has dtype float64"),
    "state": (_edit([*LAST, "state", "speed"], np.zeros(33)), r"unknown states \['speed'\]"),
    "started": (_edit([*LAST, "begun"], "yes"), r"params\[2\]: begun must be True or False"),
    "missing": (_edit([*LAST, "state"], {}), r"lacks the states \['velocity'\] of params\[2\]"),
    "ragged": (_edit([*LAST, "state", "velocity"], [[1.0, 2.0], [3.0]]), "not one of gdm's"),
    "format as an array": (_edit(["format"], np.array([1, 1])), "has format array"),
    "format as text": (_edit(["format"], "1"), "has format '1'; expected 3"),
    "name as an array": (_edit([*LAST, "name"], np.array(["[2]", "[2]"])), "not one of gdm's"),
    "params": (_edit(["groups", 0, "params"], 3), "not one of gdm's"),
}


@pytest.mark.parametrize("what", BAD_STATES)
def test_bad_states(backend, what):
    """Nothing is loaded, not even what comes before the mistake."""
    edit, message = BAD_STATES[what]
    optimizer, other = gdm.SGD(three(), lr=0.1, momentum=0.9), gdm.SGD(three(), lr=0.2, momentum=0.8)
    optimizer.step(three())
    other.step(three()[::1])
    saved = other.state_dict()
    edit(saved)
    before = repr(optimizer.state_dict())
    with pytest.raises(gdm.CheckpointError, match=message):
        optimizer.load_state_dict(saved)
    assert repr(optimizer.state_dict()) == before


def test_not_a_state(backend):
    optimizer = gdm.SGD(three())
    for bad in (None, [], {}, 3, "state"):
        with pytest.raises(gdm.CheckpointError):
            optimizer.load_state_dict(bad)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("grouped", [False, True])
def test_copies(backend, way, grouped):
    """A copy holds the arrays that were copied along, and goes on to the bit."""
    params = three()
    given = [{"params": params[:1], "lr": 0.3}, {"params": params[1:], "momentum": 0.0}] if grouped else params
    optimizer = gdm.SGD(given, lr=0.1, momentum=0.9)
    grads = [three()[:1], three()[1:]] if grouped else three()
    optimizer.step(grads)
    copied_params, copied = way((params, optimizer))
    assert repr(copied) == repr(optimizer)
    for each in (optimizer, copied):
        each.step(grads)
    for x, wanted in zip(copied_params, params, strict=True):
        assert x is not wanted
        assert_same_bits(x, wanted)


def test_repr():
    text = repr(gdm.SGD([np.ones(2000), np.ones(345)], lr=0.1, momentum=0.9))
    assert text.startswith("<SGD of 2 arrays, 2,345 elements: Group(lr=0.1, momentum=0.9")
