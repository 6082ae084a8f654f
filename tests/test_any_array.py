"""Arrays that are not NumPy's: whatever has DLPack or the buffer protocol, in every place, without a copy."""

from __future__ import annotations

import array
import copy
import ctypes
import gc
import mmap
import pickle
from importlib.util import find_spec

import numpy as np
import pytest

import gdm
from bad_buffers import N, read_only
from classes import assert_same_training, every_class, four_arrays, gradients, three_arrays
from support import RULES, assert_same_bits, call, expected, full, names, numbers, python

OLD_NUMPY = np.lib.NumpyVersion(np.__version__) < "2.1.0"
writable_dlpack = pytest.mark.skipif(
    OLD_NUMPY, reason="NOT TESTED: writing to memory that comes by DLPack; it is read-only in NumPy 2.0"
)


class Exported:
    """Has nothing but DLPack: the memory of a NumPy array, which may be exchanged for another one."""

    def __init__(self, memory, device=None):
        self.memory, self.device, self.asked = memory, device or memory.__dlpack_device__(), []

    def __dlpack__(self, **keywords):
        self.asked.append(keywords)
        return self.memory.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.device


class ExportedWithoutVersion(Exported):
    """By the first version of the protocol, which cannot say what is read-only."""

    def __dlpack__(self, stream=None):
        return self.memory.__dlpack__()


class Broken(Exported):
    """Refuses to be read."""

    def __init__(self, error, dtype=None):
        super().__init__(np.ones(N))
        self.error = error
        if dtype is not None:
            self.dtype = dtype

    def __dlpack__(self, **keywords):
        raise self.error


def in_ctypes(x):
    memory = (ctypes.c_float * x.size if x.dtype == np.float32 else ctypes.c_double * x.size)()
    np.asarray(memory)[...] = x
    return memory


def in_map(x):
    memory = mmap.mmap(-1, x.nbytes)
    np.frombuffer(memory, x.dtype)[...] = x
    return memoryview(memory).cast(x.dtype.char)


# How to make another library's array of one of NumPy's.
WRITABLE = {
    "array": lambda x: array.array(x.dtype.char, x.tolist()),
    "memoryview": memoryview,
    "ctypes": in_ctypes,
    "mmap": in_map,
    "dlpack": Exported,
}
READABLE = {**WRITABLE, "bytes": lambda x: memoryview(x.tobytes()).cast(x.dtype.char), "old": ExportedWithoutVersion}
every_kind = pytest.mark.parametrize(
    "wrap", [pytest.param(f, id=k, marks=[writable_dlpack] * (k == "dlpack")) for k, f in WRITABLE.items()]
)
every_readable_kind = pytest.mark.parametrize("wrap", READABLE.values(), ids=READABLE)


def values(x):
    """What is in the memory of such an array."""
    return x.memory if isinstance(x, Exported) else np.asarray(memoryview(x))


# ---- in every place --------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("rule", list(RULES))
def test_every_argument_of_a_function_may_be_one(backend, rule, wrap):
    """Alone among NumPy's, and all at once; and the memory that was given is updated."""
    good = {name: np.arange(1, N + 1, dtype=np.float32) * (k + 1) for k, name in enumerate(names(rule, full(rule)))}
    wanted = expected(rule, good, full(rule))
    for which in [*([name] for name in good), list(good)]:
        given = {name: wrap(x.copy()) if name in which else x.copy() for name, x in good.items()}
        call(rule, given, full(rule))
        for name, x in given.items():
            assert_same_bits(values(x) if name in which else x, wanted[name])


@every_readable_kind
@pytest.mark.parametrize("rule", list(RULES))
def test_what_is_only_read_may_be_read_only(backend, rule, wrap):
    good = {name: np.arange(1, N + 1, dtype=np.float32) * (k + 1) for k, name in enumerate(names(rule, full(rule)))}
    wanted = expected(rule, good, full(rule))
    given = {name: wrap(x) if name in ("grad", "lr_scale") else x.copy() for name, x in good.items()}
    call(rule, given, full(rule))
    assert_same_bits(given["param"], wanted["param"])


@every_kind
@every_class
def test_an_optimizer_trains_them_where_they_are(backend, name, wrap):
    """Parameters, and gradients that are given or bound; also together with NumPy's own."""
    start, wanted = four_arrays(), four_arrays()
    params = [start[0], *(wrap(x) for x in start[1:])]
    optimizer, other = getattr(gdm, name)(params, lr=0.1), getattr(gdm, name)(wanted, lr=0.1)
    bound = [*(wrap(x) for x in gradients(0)[:3]), gradients(0)[3]]
    optimizer.bind(bound)
    for step in range(4):
        grads = gradients(step)
        if step % 2:
            optimizer.step([wrap(x) for x in grads])
        else:
            for place, x in zip(bound, grads, strict=True):
                (place if isinstance(place, np.ndarray) else values(place))[...] = x
            optimizer.step()
        other.step(grads)
    assert_same_training(optimizer, other, [params[0], *(values(x) for x in params[1:])], wanted)


@every_kind
def test_in_every_structure(backend, wrap):
    """One array, a mapping, a generator, groups; None among the gradients."""
    a, b = wrap(np.ones(4)), wrap(np.ones(3))
    gdm.SGD(a, lr=0.5).step(wrap(np.ones(4)))
    gdm.SGD({"a": a, "b": b}, lr=0.5).step({"a": wrap(np.ones(4)), "b": None})
    gdm.SGD((x for x in (a, b)), lr=0.5).step(x for x in (None, wrap(np.ones(3))))
    optimizer = gdm.SGD([{"params": a}, {"params": [b]}], lr=0.5)
    optimizer.step([wrap(np.ones(4)), [wrap(np.ones(3))]])
    optimizer.bind([None, (wrap(np.ones(3)),)])
    optimizer.step()
    np.testing.assert_array_equal(values(a), -0.5)
    np.testing.assert_array_equal(values(b), -0.5)
    with pytest.raises(TypeError, match=r"^grads must be a sequence like params"):
        gdm.SGD([a]).step(wrap(np.ones(4)))


@every_readable_kind
def test_factors_of_the_learning_rate_may_be_one(backend, wrap):
    """What is given is copied."""
    param, scale = np.zeros(4), np.array([0.0, 0.5, 1.0, 2.0])
    given = wrap(scale)
    optimizer = gdm.SGD([param], lr=1.0, lr_scale=[given])
    if not isinstance(given, memoryview) or not given.readonly:
        values(given)[...] = 7
    optimizer.step([np.ones(4)])
    np.testing.assert_array_equal(param, [0.0, -0.5, -1.0, -2.0])
    optimizer.lr_scale = [wrap(np.full(4, 3.0))]
    optimizer.step([np.ones(4)])
    np.testing.assert_array_equal(param, [-3.0, -3.5, -4.0, -5.0])
    one = gdm.SGD(param, lr=1.0, lr_scale=wrap(np.full(4, 0.5)))
    one.add_group({"params": np.zeros(2), "lr_scale": wrap(np.full(2, 0.25))})
    np.testing.assert_array_equal(one.groups[0].lr_scale, 0.5)
    np.testing.assert_array_equal(one.groups[1].lr_scale, 0.25)


@every_readable_kind
def test_reductions_read_them(backend, wrap):
    x = numbers(np.float32, 10_000, 1)
    nested = {"a": [wrap(x), None], "b": x}
    assert gdm.grad_norm(nested) == gdm.grad_norm([x, x])
    assert gdm.count_nonfinite(wrap(np.array([1.0, np.nan, np.inf]))) == 2


def test_scalars_are_kept_in_one(backend):
    """NAdam's mu_product is written, too."""
    mu_product = array.array("d", [1.0])
    x = [array.array("d", [1.0] * 3) for _ in range(4)]
    gdm.nadam(*x, step=1, mu_product=mu_product)
    assert 0 < mu_product[0] < 1


@writable_dlpack
def test_fortran_order_and_zero_dimensions(backend):
    for make in (lambda x: np.asfortranarray(x.reshape(3, 4)), lambda x: x[:1].reshape(()), lambda x: x[:0]):
        param, grad = make(np.ones(12)), make(np.full(12, 0.5))
        optimizer = gdm.SGD([Exported(param)], lr=1.0)
        optimizer.step([Exported(grad)])
        optimizer.bind([Exported(grad)])
        optimizer.step()
        np.testing.assert_array_equal(param, 0.0)


@writable_dlpack
def test_nothing_is_ever_copied(backend):
    """DLPack is told not to."""
    param, grad = Exported(np.ones(N)), Exported(np.ones(N))
    optimizer = gdm.SGD([param], lr=1.0)
    optimizer.step([grad])
    gdm.sgd(param, grad, lr=1.0)
    gdm.grad_norm(grad)
    assert all(asked["copy"] is False for asked in [*param.asked, *grad.asked])
    np.testing.assert_array_equal(param.memory, -1.0)


@every_kind
def test_the_memory_is_kept_alive(backend, wrap):
    param, grad = wrap(np.ones(100_000)), wrap(np.full(100_000, 0.5))
    optimizer = gdm.SGD([param], lr=1.0)
    optimizer.bind([grad])
    seen = values(param)
    del param, grad
    gc.collect()
    np.full(100_000, 7.0)  # would take memory that is free
    optimizer.step()
    np.testing.assert_array_equal(seen, 0.5)


@every_kind
def test_copies_hold_arrays_of_their_own(backend, wrap):
    param = wrap(np.ones(5))
    optimizer = gdm.SGD([param], lr=0.1, momentum=0.9)
    optimizer.step([np.ones(5)])
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        before = values(param).copy()
        copied.step([np.ones(5)])
        np.testing.assert_array_equal(values(param), before)
        assert copied.steps == 2


# ---- what is refused -------------------------------------------------------------------------------------------------


def every_way(array, *, read=True, written=True):
    """Calls with the array in one place, and the name of that place in messages."""
    others = three_arrays()
    optimizer = gdm.SGD([*others, np.ones(N, np.float32)], lr=0.1)
    grads = [*three_arrays(), array]
    if written:
        yield "param", lambda: gdm.sgd(array, np.ones(N, np.float32), lr=0.1)
        yield "velocity", lambda: gdm.momentum(np.ones(N, np.float32), array, np.ones(N, np.float32), lr=0.1)
        yield r"params\[1\]", lambda: gdm.SGD([np.ones(N, np.float32), array])
    if read:
        yield "grad", lambda: gdm.sgd(np.ones(N, np.float32), array, lr=0.1)
        yield r"grads\['a'\]\[0\]", lambda: gdm.grad_norm({"a": [array]})
        yield r"grads\[3\]", lambda: optimizer.step(grads)
        yield r"grads\[3\]", lambda: optimizer.bind(grads)


def refused(array, error, message, **where):
    for name, attempt in every_way(array, **where):
        with pytest.raises(error, match=f"^{name} {message}"):
            attempt()


def test_memory_of_another_device_is_refused(backend):
    """By the name that PyTorch gives the device, where there is one."""
    for device, name in [((2, 0), "cuda:0"), ((10, 3), "rocm:3"), ((8, 1), "metal:1"), ((99, 0), "DLPack type 99:0")]:
        refused(Exported(np.ones(N, np.float32), device), TypeError, f"is on the device '{name}'; expected the CPU")


@pytest.mark.parametrize("device", [3, 11, 13], ids=["pinned", "rocm-pinned", "managed"])
def test_memory_that_the_cpu_shares_with_a_device_is_fine(backend, device):
    param = np.ones(N)
    gdm.sgd(param, Exported(np.ones(N), (device, 0)), lr=1.0)
    np.testing.assert_array_equal(param, 0.0)


def test_read_only_exports_are_gradients_only(backend):
    dlpack = Exported(np.ones(N, np.float32))
    dlpack.memory.flags.writeable = False
    shared = {"as DLPack gives it": ExportedWithoutVersion(np.ones(N, np.float32))}
    if not OLD_NUMPY:  # where NumPy cannot export it
        shared["as DLPack gives it "] = dlpack
    for how, x in shared.items():
        refused(x, ValueError, f"is read-only, {how.strip()}$", read=False)
        for _, attempt in every_way(x, written=False):
            attempt()
    refused(memoryview(read_only(np.ones(N, np.float32))), ValueError, "is read-only$", read=False)
    refused(memoryview(np.ones(N, np.float32).tobytes()).cast("f"), ValueError, "is read-only$", read=False)


def test_other_dtypes_are_refused(backend):
    for x, dtype in [
        (array.array("i", [1] * N), "int32"),
        (Exported(np.ones(N, np.int64)), "int64"),
        (Exported(np.ones(N, np.complex64)), "complex64"),
        (Exported(np.ones(N, bool)), "bool"),
        (bytearray(N), "uint8"),
        ((ctypes.c_int * N)(), "int32"),
        (Broken(BufferError("no such type"), "bfloat16"), "bfloat16"),
    ]:
        refused(x, TypeError, f"has dtype {dtype}; expected float")


def test_strides_are_refused(backend):
    for x in (np.ones(2 * N, np.float32)[::2], np.ones((N, 2), np.float32)[:, 0], np.ones(N, np.float32)[::-1]):
        for wrap in (memoryview, Exported):
            refused(wrap(x), ValueError, r"is not contiguous \(shape \(8,\), strides \(-?\d+,\) bytes\); ")


def test_what_does_not_fit_is_refused(backend):
    """By the same checks as NumPy's arrays."""
    single = gdm.SGD([np.ones(N, np.float32)])
    message = r"^grads\[0\] has dtype float64, but params\[0\] has float32.*; convert it to float32 first$"
    with pytest.raises(ValueError, match=message):
        single.step([Exported(np.ones(N))])
    optimizer = gdm.SGD([np.ones(N)])
    for grad, message in [
        (np.ones(3), r"grads\[0\] has shape \(3,\), but params\[0\] has \(8,\)"),
        (np.asfortranarray(np.ones((2, 4))), r"grads\[0\] has shape \(2, 4\), but params\[0\] has \(8,\)"),
    ]:
        for attempt in (optimizer.step, optimizer.bind):
            with pytest.raises(ValueError, match=f"^{message}"):
                attempt([Exported(grad)])
    x = np.ones(2 * N)
    for attempt in (
        lambda: gdm.sgd(x[:N], Exported(x[N - 1 : -1]), lr=0.1),
        lambda: gdm.SGD([x[:N]]).step([Exported(x[N - 1 : -1])]),
        lambda: gdm.SGD([memoryview(x), memoryview(x)]),
    ):
        with pytest.raises(gdm.OverlapError, match="share memory"):
            attempt()
    np.testing.assert_array_equal(x, 1.0)


@pytest.mark.parametrize("error", [TypeError, ValueError, BufferError, RuntimeError, AttributeError])
def test_a_producer_that_refuses_is_quoted(backend, error):
    refused(Broken(error("not today")), TypeError, f"cannot be read by DLPack: {error.__name__}: not today$")


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, ZeroDivisionError])
def test_other_errors_of_a_producer_pass(backend, error):
    """They are not about the array. Nothing has changed then."""
    param = np.ones(N)
    optimizer = gdm.SGD([param])
    for attempt in (
        lambda: optimizer.step([Broken(error("later"))]),
        lambda: optimizer.bind([Broken(error("later"))]),
        lambda: gdm.sgd(param, Broken(error("later")), lr=0.1),
        lambda: gdm.grad_norm(Broken(error("later"))),
    ):
        with pytest.raises(error, match="later"):
            attempt()
    np.testing.assert_array_equal(param, 1.0)
    optimizer.step([np.ones(N)])


# ---- memory that moves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["param", "grad"])
@pytest.mark.parametrize("change", ["moved", "shorter", "longer", "dtype", "gone"])
@writable_dlpack
def test_an_array_that_comes_to_mean_other_memory_is_found(backend, which, change):
    """Before a byte is written; and the step is made when it means the first memory again."""
    params, grads = three_arrays(), three_arrays()
    wrapped = {"param": [Exported(x) for x in params], "grad": [Exported(x) for x in grads]}
    optimizer = gdm.SGD(wrapped["param"], lr=0.1, momentum=0.9)
    optimizer.bind(wrapped["grad"])
    optimizer.step()
    moved = wrapped[which][2]
    first = moved.memory
    moved.memory = {
        "moved": first.copy(),
        "shorter": first[:-1],
        "longer": np.append(first, first),
        "dtype": first.view(np.int32),
        "gone": None,
    }[change]
    before = [x.tobytes() for x in (*params, *optimizer.velocity)]
    attempts = [optimizer.step]
    if which == "param":
        attempts += [lambda: optimizer.step(three_arrays()), lambda: optimizer.bind(three_arrays())]
    for attempt in attempts:
        with pytest.raises(gdm.StaleBufferError, match=rf"^{which}s\[2\] has moved, been resized, or changed"):
            attempt()
    assert [x.tobytes() for x in (*params, *optimizer.velocity)] == before
    moved.memory = first
    optimizer.step()
    assert [x.tobytes() for x in params] != before[:3]


@pytest.mark.parametrize("which", ["param", "grad"])
@writable_dlpack
def test_sources_go_with_their_arrays(backend, which):
    """Groups that come and go, and a state that is loaded, change nothing: what is looked at is the right array."""
    arrays = [Exported(np.ones(n)) for n in (3, 4, 5)]
    grads = [Exported(np.ones(n)) for n in (3, 4, 5)]
    optimizer = gdm.SGD([{"params": [x]} for x in arrays[:2]], lr=0.1)
    optimizer.add_group({"params": [arrays[2]]})
    optimizer.remove_group(0)
    optimizer.bind([[x] for x in grads[1:]])
    optimizer.momentum = 0.5  # another engine, with the same gradients
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    arrays[0].memory, grads[0].memory = np.zeros(7), np.zeros(7)
    optimizer.step()
    moved = {"param": arrays, "grad": grads}[which][2]
    moved.memory = moved.memory.copy()
    with pytest.raises(
        gdm.StaleBufferError, match=rf"^{which}s\[1\]{r'..params..' * (which == 'param')}\[0\] has moved"
    ):
        optimizer.step()


def test_a_ctypes_array_that_moved_is_found(backend):
    """ctypes frees memory that others use."""
    for which in ("params", "grads"):
        param, grad = (ctypes.c_float * 100)(), (ctypes.c_float * 100)()
        optimizer = gdm.SGD([param])
        optimizer.bind([grad])
        optimizer.step()
        ctypes.resize({"params": param, "grads": grad}[which], 4_000_000)
        with pytest.raises(gdm.StaleBufferError, match=rf"^{which}\[0\] has moved"):
            optimizer.step()


def test_an_array_cannot_be_resized_while_it_is_kept(backend):
    param, grad = array.array("f", [1.0] * 4), bytearray(16)
    optimizer = gdm.SGD([param])
    optimizer.bind([memoryview(grad).cast("f")])
    for x in (param, grad):
        with pytest.raises(BufferError):
            x.append(0)
    del optimizer
    param.append(0)


@pytest.mark.parametrize("which", [0, 1])
def test_a_producer_that_moves_other_arrays_is_found_out(backend, which):
    """Before anything is written."""

    class Hook(Exported):
        def __dlpack__(self, **keywords):
            arrays[which].resize(1, refcheck=False)
            return super().__dlpack__(**keywords)

    for attempt in (
        lambda a, b: gdm.momentum(a, b, Hook(np.ones(100_000)), lr=0.1),
        lambda a, b: gdm.SGD([a, np.ones(100_000)]).step([b, Hook(np.ones(100_000))]),
        lambda a, b: gdm.SGD([a, np.ones(100_000)]).bind([b, Hook(np.ones(100_000))]),
    ):
        arrays = [np.zeros(100_000) for _ in range(2)]
        with pytest.raises((ValueError, gdm.StaleBufferError), match=r"has (moved|shape)"):
            attempt(*arrays)
        assert [x[0] for x in arrays] == [0.0, 0.0]


# ---- JAX -------------------------------------------------------------------------------------------------------------


BY_JAX = """
    import numpy as np, jax.numpy as jnp, gdm

    param = np.ones(8, np.float32)
    optimizer = gdm.SGD([param], lr=0.25, lr_scale=[jnp.full(8, 2, jnp.float32)])
    optimizer.step([jnp.ones(8, jnp.float32)])
    optimizer.bind([jnp.ones(8, jnp.float32)])
    optimizer.step()
    gdm.sgd(param, jnp.ones(8, jnp.float32), lr=1.0, lr_scale=jnp.full(8, 0.5, jnp.float32))
    print(param.tolist(), gdm.grad_norm({"a": jnp.full(4, 2, jnp.float32)}))
    deleted = jnp.ones(8, jnp.float32)
    deleted.delete()
    for attempt in (
        lambda: gdm.SGD([jnp.ones(8, jnp.float32)]),
        lambda: gdm.sgd(jnp.ones(8, jnp.float32), param, lr=0.1),
        lambda: optimizer.step([jnp.ones(8, jnp.bfloat16)]),
        lambda: optimizer.bind([jnp.ones(8, jnp.int32)]),
        lambda: gdm.grad_norm(deleted),
    ):
        try:
            attempt()
        except (TypeError, ValueError) as error:
            print(type(error).__name__, error)
"""


@pytest.mark.skipif(find_spec("jax") is None, reason="NOT TESTED: JAX's arrays; there is no JAX here")
def test_arrays_of_jax_are_gradients(backend):
    """They cannot be written to. In a process of its own: JAX warns of every later fork."""
    results, *refused, deleted = python(BY_JAX, GDM_BACKEND=backend).splitlines()
    assert results == f"{[-0.5] * 8} 4.0"
    assert refused == [
        "ValueError params[0] is read-only",
        "ValueError param is read-only",
        "TypeError grads[0] has dtype bfloat16; expected float32, float64 or float16, which NumPy can read by DLPack",
        "TypeError grads[0] has dtype int32; expected float64, float32, float16 or bfloat16",
    ]
    assert deleted.startswith("TypeError grads cannot be read by DLPack: ")
