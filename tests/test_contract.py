"""Bad input: the right exception, a message that names the argument, and every buffer as it was, to the byte."""

from __future__ import annotations

import array
import re
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdm
from support import HOOKS, RULES, at_once, bits, every_hook, function, python

N = 8


def good(rule, dtype=np.float32):
    """param, states..., grad: fresh, separate, all in order."""
    return {
        name: np.arange(1, N + 1, dtype=dtype) * (k + 1)
        for k, name in enumerate(["param", *RULES[rule]["states"], "grad"])
    }


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def misaligned(x):
    return np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(x.dtype)


def released(x):
    view = memoryview(x)
    view.release()
    return view


# What to put in an argument's place, and what is raised.
BAD_BUFFERS = {
    "a list": (lambda x: x.tolist(), TypeError, "must be a NumPy array .* not list"),
    "None": (lambda x: None, TypeError, "must be a NumPy array .* not NoneType"),
    "text": (lambda x: "abc", TypeError, "must be a NumPy array .* not str"),
    "bytes": (lambda x: bytes(N), TypeError, "has dtype uint8; expected float32 or float64"),
    "integers": (lambda x: x.astype(np.int32), TypeError, "has dtype int32"),
    "half precision": (lambda x: x.astype(np.float16), TypeError, "has dtype float16"),
    "complex": (lambda x: x.astype(np.complex64), TypeError, "has dtype complex64"),
    "objects": (lambda x: x.astype(object), TypeError, "has dtype object"),
    "long double": (lambda x: x.astype(np.longdouble), TypeError, f"has dtype {np.dtype(np.longdouble)}"),
    "byte-swapped": (lambda x: x.astype(x.dtype.newbyteorder()), TypeError, "is byte-swapped"),
    "every other element": (lambda x: np.repeat(x, 2)[::2], ValueError, "is not contiguous"),
    "backwards": (lambda x: x[::-1], ValueError, "is not contiguous"),
    "a column": (lambda x: np.stack([x, x], axis=1)[:, 0], ValueError, "is not contiguous"),
    "broadcast": (lambda x: np.broadcast_to(x.dtype.type(1), x.shape), ValueError, "is not contiguous"),
    "misaligned": (misaligned, ValueError, "is misaligned"),
    "masked": (np.ma.MaskedArray, TypeError, "is a masked array"),
    "released": (released, TypeError, "must be a NumPy array .* not memoryview"),
}
READ_ONLY = {"read-only": (read_only, ValueError, "is read-only")}
# Of an argument that is not param.
NOT_LIKE = {
    "another dtype": (lambda x: x.astype(np.float64), ValueError, "has dtype float64, but param has float32"),
    "shorter": (lambda x: x[:-1].copy(), ValueError, r"has shape \(7,\), but param has \(8,\)"),
    "longer": (lambda x: np.append(x, x[:1]), ValueError, r"has shape \(9,\), but param has \(8,\)"),
    "another shape": (lambda x: x.reshape(2, 4).copy(), ValueError, r"has shape \(2, 4\), but param has \(8,\)"),
}
BUFFER_CASES = [
    pytest.param(rule, name, *case, id=f"{rule}-{name}-{what}")
    for rule in RULES
    for name in good(rule)
    for what, case in {
        **BAD_BUFFERS,
        **({} if name == "grad" else READ_ONLY),
        **({} if name == "param" else NOT_LIKE),
    }.items()
]

BAD_NUMBERS = {
    "not_negative": [-1e-9, -1, np.nan, np.inf, -np.inf, 10**400],
    "below_one": [-1e-9, 1.0, 1.5, np.nan, np.inf],
    "up_to_one": [-1e-9, 1.0000001, np.nan, np.inf],
}
NUMBER_CASES = [
    pytest.param(rule, name, value, id=f"{rule}-{name}-{str(value)[:8]}")
    for rule in RULES
    for name, domain in RULES[rule]["reals"].items()
    for value in BAD_NUMBERS[domain]
]
NOT_NUMBERS = ["0.1", b"0.1", None, 1j, [0.1], np.array([0.1, 0.2]), np.array([0.1])]
NOT_NUMBERS += [np.array("0.1"), np.str_("0.1"), np.complex128(0.1), np.timedelta64(1, "s")]
NUMBER_TYPES = [
    pytest.param(rule, name, value, id=f"{rule}-{name}-{type(value).__name__}")
    for rule in RULES
    for name in RULES[rule]["reals"]
    for value in NOT_NUMBERS
]


def refused(rule, arguments, error, match, **options):
    """Calls the function and checks that nothing changed."""
    before = {name: np.array(x, copy=True) for name, x in arguments.items() if isinstance(x, np.ndarray)}
    with pytest.raises(error, match=match) as caught:
        function(rule)(*arguments.values(), **{"lr": 0.1, **options})
    for name, x in before.items():
        assert arguments[name].tobytes() == x.tobytes(), name
    return caught


@pytest.mark.parametrize(("rule", "name", "make", "error", "message"), BUFFER_CASES)
def test_buffers(backend, rule, name, make, error, message):
    arguments = good(rule)
    arguments[name] = make(arguments[name])
    refused(rule, arguments, error, f"^{name} {message}")


@pytest.mark.parametrize("shift", range(64))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_byte_offset(backend, shift, dtype):
    """An address that is a multiple of the element's size is fine, any other is refused."""
    memory = np.zeros(N * 8 + 128, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64 + shift
    size = np.dtype(dtype).itemsize
    param = memory[start : start + N * size].view(dtype)
    arguments = {"param": param, "grad": np.ones(N, dtype)}
    if shift % size:
        refused("sgd", arguments, ValueError, "^param is misaligned")
    else:
        gdm.sgd(**arguments, lr=1.0)
        assert np.all(param == -1)


@pytest.mark.parametrize(("rule", "name", "value"), NUMBER_CASES)
def test_numbers_outside_their_domain(backend, rule, name, value):
    refused(rule, good(rule), ValueError, f"^{name} must be", **{name: value})


@pytest.mark.parametrize(("rule", "name", "value"), NUMBER_TYPES)
def test_not_a_number(backend, rule, name, value):
    refused(rule, good(rule), TypeError, f"^{name} must be a real number", **{name: value})


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.float32(0.5), np.array(0.5), np.int64(0), 0, False])
def test_numbers_of_other_types(backend, value):
    param, grad = np.ones(3), np.ones(3)
    gdm.sgd(param, grad, lr=value)
    np.testing.assert_array_equal(param, 1 - float(value))


@pytest.mark.parametrize("rule", list(RULES))
def test_a_number_of_very_many_digits(backend, rule):
    """More than Python is ready to print."""
    for name in RULES[rule]["reals"]:
        refused(rule, good(rule), ValueError, f"^{name} must be .* very many digits", **{name: 10**5000})


class Odd(float):
    """Not the number that float() makes of it."""

    def __float__(self):
        return 7.0


def test_a_float_is_its_own_value(backend):
    param = np.ones(3)
    gdm.sgd(param, np.ones(3), lr=Odd(0.5))
    np.testing.assert_array_equal(param, 0.5)
    optimizer = gdm.SGD(param, lr=Odd(0.5))
    optimizer.step(np.ones(3))
    np.testing.assert_array_equal(param, 0.0)
    assert optimizer.lr == 0.5


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule in RULES for name in RULES[rule]["flags"]])
def test_flags(backend, rule, name):
    if name == "form":
        for value in ("Torch", "", 0, None, ["torch"]):
            refused(rule, good(rule), ValueError, "^form must be 'torch' or 'classic'", form=value)
    else:
        for value in ("yes", None, 0.0, np.ones(2)):
            refused(rule, good(rule), TypeError, f"^{name} must be True or False", **{name: value})
        function(rule)(*good(rule).values(), lr=0.1, **{name: np.True_})
        function(rule)(*good(rule).values(), lr=0.1, **{name: 1})


def test_options_that_do_not_go_together(backend):
    for options, message in [
        ({"nesterov": True, "momentum": 0.0}, "^nesterov needs momentum > 0"),
        ({"nesterov": True, "dampening": 0.1}, "^dampening must be 0 with nesterov"),
        ({"form": "classic", "dampening": 0.1}, "^dampening must be 0 with form='classic'"),
    ]:
        refused("momentum", good("momentum"), ValueError, message, **options)


@pytest.mark.parametrize("rule", list(RULES))
def test_form_may_be_any_equal_string(backend, rule):
    """The fast path compares by identity; an equal string made at run time must work too."""
    if "form" in RULES[rule]["flags"]:
        function(rule)(*good(rule).values(), lr=0.1, form="".join(["clas", "sic"]))


@pytest.mark.parametrize("overlap", [0, 1, N - 1])
@pytest.mark.parametrize(
    ("rule", "one", "other"),
    [(r, a, b) for r in RULES for a in good(r) for b in good(r) if list(good(r)).index(a) < list(good(r)).index(b)],
)
def test_shared_memory(backend, rule, one, other, overlap):
    """The same array twice, and arrays that share one element, from either side."""
    for first, second in ((one, other), (other, one)):
        arguments = good(rule)
        memory = np.arange(1, 2 * N + 1, dtype=np.float32)
        arguments[first], arguments[second] = memory[:N], memory[overlap : overlap + N]
        caught = refused(rule, arguments, gdm.OverlapError, "share memory")
        assert one in str(caught.value)
        assert other in str(caught.value)


@pytest.mark.parametrize("rule", list(RULES))
def test_neighbours_are_fine(backend, rule):
    """Buffers that touch do not overlap."""
    names = list(good(rule))
    memory = np.ones(len(names) * N, np.float32)
    function(rule)(*(memory[k * N : (k + 1) * N] for k in range(len(names))), lr=0.1)


@pytest.mark.parametrize("rule", list(RULES))
def test_memory_orders(backend, rule):
    arguments = {name: x.reshape(2, 4).copy() for name, x in good(rule).items()}
    arguments["grad"] = np.asfortranarray(arguments["grad"])
    refused(rule, arguments, ValueError, "^grad and param lie in memory in different orders")


@pytest.mark.parametrize("rule", list(RULES))
def test_other_buffers(backend, rule):
    """Whatever has the buffer protocol works, in place."""
    arrays = list(good(rule).values())
    expected = [x.copy() for x in arrays]
    function(rule, native=False)(*expected, lr=0.1)
    others = [array.array("f", x.tolist()) for x in arrays]
    function(rule)(*others, lr=0.1)
    for other, wanted in zip(others, expected, strict=True):
        np.testing.assert_array_equal(bits(np.array(other, np.float32)), bits(wanted))
    views = [memoryview(x.copy()) for x in arrays]
    function(rule)(*views, lr=0.1)
    np.testing.assert_array_equal(np.asarray(views[0]), expected[0])


def test_subclasses(backend, tmp_path):
    """A memory-mapped file is an array like any other."""
    param = np.memmap(tmp_path / "param", np.float32, "w+", shape=(N,))
    gdm.sgd(param, np.ones(N, np.float32), lr=1.0)
    assert np.all(param == -1)


class NoUfuncs(np.ndarray):
    __array_ufunc__ = None


class NoItems(np.ndarray):
    def __getitem__(self, key):
        raise ZeroDivisionError

    def __setitem__(self, key, value):
        raise ZeroDivisionError

    def view(self, *args):
        raise ZeroDivisionError


@pytest.mark.parametrize("subclass", [NoUfuncs, NoItems])
@pytest.mark.parametrize("rule", list(RULES))
def test_subclasses_are_plain_memory(backend, rule, subclass):
    """Whatever they override, in any argument's place; in an optimizer too."""
    expected = good(rule)
    function(rule, native=False)(*expected.values(), lr=0.1)
    for name in expected:
        arguments = good(rule)
        function(rule)(*{**arguments, name: arguments[name].view(subclass)}.values(), lr=0.1)
        for after, wanted in zip(arguments.values(), expected.values(), strict=True):
            np.testing.assert_array_equal(bits(after), bits(wanted))
    params, grad = [good(rule)["param"] for _ in range(2)], good(rule)["grad"]
    for param, cls in zip(params, (np.ndarray, subclass), strict=True):
        optimizer = gdm.SGD([param.view(cls)], lr=0.1, momentum=0.9)
        optimizer.step([grad.view(cls)])
        optimizer.bind([grad.view(cls)])
        optimizer.step()
    np.testing.assert_array_equal(bits(params[1]), bits(params[0]))


@every_hook
@pytest.mark.parametrize("name", ["param", "velocity"])
def test_code_that_runs_during_a_call(backend, how, name):
    """A gradient that moves another argument while it is looked at: an error, and no crash."""
    code = f"""
    param, velocity = np.zeros(N), np.zeros(N)
    def act():
        {name}.resize(1, refcheck=False)
    attempt(gdm.momentum, param, velocity, hook({how!r}), lr=0.1)
    print(param[0], velocity[0])
    """
    refused, values = python(dedent(HOOKS) + dedent(code), GDM_BACKEND=backend).splitlines()
    assert re.fullmatch(r"ValueError (velocity|grad) has shape \(.*\), but param has \(.*\)", refused)
    assert values == "0.0 0.0"


@pytest.mark.parametrize("rule", list(RULES))
def test_wrong_call(backend, rule):
    arguments = good(rule)
    with pytest.raises(TypeError, match="lr"):
        function(rule)(*arguments.values())
    with pytest.raises(TypeError, match="rate"):
        function(rule)(*arguments.values(), lr=0.1, rate=1)
    with pytest.raises(TypeError, match="positional"):
        function(rule)(*arguments.values(), 0.1)


@st.composite
def maybe_bad_calls(draw):
    rule = draw(st.sampled_from(list(RULES)))
    arguments = good(rule)
    for name in draw(st.lists(st.sampled_from(list(arguments)), max_size=2, unique=True)):
        make = draw(st.sampled_from([case[0] for case in {**BAD_BUFFERS, **READ_ONLY, **NOT_LIKE}.values()]))
        arguments[name] = make(arguments[name])
    options = {"lr": 0.1}
    for name in draw(st.lists(st.sampled_from(list(RULES[rule]["reals"])), max_size=2, unique=True)):
        options[name] = draw(st.sampled_from([0.0, 0.5, 1.0, -1.0, np.nan, np.inf, None, "x", 0, 1]))
    for name in draw(st.lists(st.sampled_from(RULES[rule]["flags"]), max_size=2, unique=True)):
        options[name] = draw(st.sampled_from([True, False, 1, None, "torch", "classic"]))
    return rule, arguments, options


@settings(max_examples=600, deadline=None)
@given(maybe_bad_calls())
def test_native_and_reference_agree(call):
    """The same exception in the same words from both, or the same bits."""
    rule, arguments, options = call
    outcomes = []
    for native in (True, False):
        arrays = [x.copy() if isinstance(x, np.ndarray) and x.flags.forc else x for x in arguments.values()]
        for x, given_ in zip(arrays, arguments.values(), strict=True):
            if isinstance(x, np.ndarray) and not given_.flags.writeable:
                x.flags.writeable = False
        try:
            function(rule, native=native)(*arrays, **options)
            outcomes.append([x.tobytes() for x in arrays])
        except (TypeError, ValueError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


def test_calls_from_many_threads():
    """Functions have no state of their own: threads with arrays of their own do not meet."""
    n, steps = 40_000, 20  # large enough for the interpreter to be released
    results = {}

    def work(k):
        param, velocity, grad = (np.full(n, x, np.float32) for x in (1.0, 0.0, 0.1 * k))
        for _ in range(steps):
            gdm.momentum(param, velocity, grad, lr=0.1)
        results[k] = param

    at_once(work, 4)
    for k, param in results.items():
        work(k)
        np.testing.assert_array_equal(param, results[k])
