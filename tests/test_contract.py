"""Bad arguments of a function: the right exception, a message with the argument's name, and no buffer changed."""

from __future__ import annotations

import array
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdm
from bad_buffers import BAD_BUFFERS, NARROW, NOT_LIKE, READ_ONLY, N, read_only
from support import RULES, bits, call, expected, full, function, has, names, plain, values


def good(rule, dtype=np.float32):
    """All buffers that can be in use: new, separate, all in order."""
    return {name: np.arange(1, N + 1, dtype=dtype) * (k + 1) for k, name in enumerate(names(rule, full(rule)))}


def reals(rule):
    """The options that are a number, and the numbers they may be."""
    return {name: kind for name, kind in RULES[rule]["options"].items() if kind in BAD_NUMBERS}


def flags(rule):
    return [name for name, kind in RULES[rule]["options"].items() if kind in ("flag", "form")]


BUFFER_CASES = [
    pytest.param(rule, name, *case, id=f"{rule}-{name}-{what}")
    for rule in RULES
    for name in good(rule)
    for what, case in {
        **BAD_BUFFERS,
        **NARROW,
        **({} if name in ("grad", "lr_scale") else READ_ONLY),
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
    for name, domain in reals(rule).items()
    for value in BAD_NUMBERS[domain]
]
NOT_NUMBERS = ["0.1", b"0.1", None, True, np.False_, 1j, [0.1], np.array([0.1, 0.2]), np.array([0.1])]
NOT_NUMBERS += [np.array("0.1"), np.str_("0.1"), np.complex128(0.1), np.timedelta64(1, "s")]
NUMBER_TYPES = [
    pytest.param(rule, name, value, id=f"{rule}-{name}-{type(value).__name__}")
    for rule in RULES
    for name in reals(rule)
    for value in NOT_NUMBERS
]


def refused(rule, arguments, error, match, **options):
    """Calls the function and checks that nothing changed."""
    before = {name: np.array(x, copy=True) for name, x in arguments.items() if isinstance(x, np.ndarray)}
    with pytest.raises(error, match=match) as caught:
        call(rule, arguments, {**full(rule), **options})
    for name, x in before.items():
        assert arguments[name].tobytes() == x.tobytes(), name
    return caught


@pytest.mark.parametrize(("rule", "name", "make", "error", "message"), BUFFER_CASES)
def test_a_bad_buffer_is_refused(backend, rule, name, make, error, message):
    arguments = good(rule)
    arguments[name] = make(arguments[name])
    refused(rule, arguments, error, f"^{name} {message.format(param='param')}")


@pytest.mark.parametrize("rule", RULES)
def test_the_advice_for_strided_memory_keeps_training_the_right_array(backend, rule):
    """A copy of a gradient has the same numbers. An update of a copy of a parameter would be lost."""
    for name in good(rule):
        arguments = good(rule)
        arguments[name] = np.repeat(arguments[name], 2)[::2]
        message = str(refused(rule, arguments, ValueError, f"^{name} is not contiguous").value)
        if name in ("grad", "lr_scale"):
            assert message.endswith("; pass a contiguous copy, np.ascontiguousarray(...)")
        else:
            assert "if you passed a copy, only the copy would be updated" in message
            assert message.endswith("make the array contiguous before anything else uses it, and use only that array")
    with pytest.raises(ValueError, match=r"^params is not contiguous .* use only that array$"):
        gdm.SGD(np.ones((4, 4))[:, :2], lr=0.1)
    with pytest.raises(ValueError, match=r"^grads is not contiguous .*np\.ascontiguousarray\(\.\.\.\)$"):
        gdm.SGD(np.ones((4, 2)), lr=0.1).step(np.ones((4, 4))[:, :2])


@pytest.mark.parametrize("shift", range(64))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_multiples_of_the_elements_size_are_aligned(backend, shift, dtype):
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
def test_numbers_outside_their_domain_are_refused(backend, rule, name, value):
    refused(rule, good(rule), ValueError, f"^{name} must be", **{name: value})


@pytest.mark.parametrize(("rule", "name", "value"), NUMBER_TYPES)
def test_what_is_no_number_is_refused(backend, rule, name, value):
    refused(rule, good(rule), TypeError, f"^{name} must be a real number", **{name: value})


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.float32(0.5), np.array(0.5), np.int64(0), 0])
def test_numbers_of_other_types_will_do(backend, value):
    param, grad = np.ones(3), np.ones(3)
    gdm.sgd(param, grad, lr=value)
    np.testing.assert_array_equal(param, 1 - float(value))


@pytest.mark.parametrize("rule", list(RULES))
def test_a_number_of_very_many_digits_is_refused(backend, rule):
    """More than Python is ready to print."""
    for name in reals(rule):
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


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule in RULES for name in flags(rule)])
def test_flags_are_checked(backend, rule, name):
    if name == "form":
        for value in ("Torch", "", 0, None, ["torch"]):
            refused(rule, good(rule), ValueError, "^form must be 'torch' or 'classic'", form=value)
    else:
        for value in ("yes", None, 0.0, np.ones(2)):
            refused(rule, good(rule), TypeError, f"^{name} must be True or False", **{name: value})
        call(rule, good(rule), {**full(rule), **({"momentum": 0.9} if has(rule, "momentum") else {}), name: np.True_})
        call(rule, good(rule), {**full(rule), **({"momentum": 0.9} if has(rule, "momentum") else {}), name: 1})


def test_options_that_do_not_go_together_are_refused(backend):
    for options, message in [
        ({"nesterov": True, "momentum": 0.0}, "^nesterov needs momentum > 0"),
        ({"nesterov": True, "dampening": 0.1}, "^dampening must be 0 with nesterov"),
        ({"form": "classic", "dampening": 0.1}, "^dampening must be 0 with form='classic'"),
    ]:
        refused("momentum", good("momentum"), ValueError, message, **options)


@pytest.mark.parametrize("rule", list(RULES))
def test_form_may_be_any_equal_string(backend, rule):
    """The fast path compares by identity; an equal string made at run time must work too."""
    if "form" in flags(rule):
        call(rule, good(rule), {**full(rule), "form": "".join(["clas", "sic"])})


@pytest.mark.parametrize("overlap", [0, 1, N - 1])
@pytest.mark.parametrize(
    ("rule", "one", "other"),
    [(r, *pair) for r in RULES for pair in itertools.combinations(good(r), 2) if pair != ("grad", "lr_scale")],
)
def test_buffers_that_share_memory_are_refused(backend, rule, one, other, overlap):
    """The same array twice, and arrays that share one element, from either side."""
    for first, second in ((one, other), (other, one)):
        arguments = good(rule)
        memory = np.arange(1, 2 * N + 1, dtype=np.float32)
        arguments[first], arguments[second] = memory[:N], memory[overlap : overlap + N]
        caught = refused(rule, arguments, gdm.OverlapError, "share memory")
        assert one in str(caught.value)
        assert other in str(caught.value)


@pytest.mark.parametrize("rule", list(RULES))
def test_what_is_only_read_may_be_shared(backend, rule):
    arguments, others = good(rule), good(rule)
    arguments["lr_scale"] = arguments["grad"]
    others["lr_scale"] = others["grad"].copy()
    for each in (arguments, others):
        call(rule, each, full(rule))
    np.testing.assert_array_equal(arguments["param"], others["param"])


@pytest.mark.parametrize("rule", list(RULES))
def test_buffers_may_touch(backend, rule):
    """Buffers that touch do not overlap."""
    called = names(rule, full(rule))
    memory = np.ones(len(called) * N, np.float32)
    call(rule, {name: memory[k * N : (k + 1) * N] for k, name in enumerate(called)}, full(rule))


@pytest.mark.parametrize("rule", list(RULES))
def test_buffers_in_different_memory_orders_are_refused(backend, rule):
    arguments = {name: x.reshape(2, 4).copy() for name, x in good(rule).items()}
    arguments["grad"] = np.asfortranarray(arguments["grad"])
    refused(rule, arguments, ValueError, "^grad and param lie in memory in different orders")


@pytest.mark.parametrize("rule", list(RULES))
def test_whatever_has_the_buffer_protocol_will_do(backend, rule):
    """Whatever has the buffer protocol works, in place."""
    wanted = expected(rule, good(rule), full(rule))
    others = {name: array.array("f", x.tolist()) for name, x in good(rule).items()}
    call(rule, others, full(rule))
    for name, other in others.items():
        np.testing.assert_array_equal(bits(np.array(other, np.float32)), bits(wanted[name]))
    views = {name: memoryview(x) for name, x in good(rule).items()}
    call(rule, views, full(rule))
    np.testing.assert_array_equal(np.asarray(views["param"]), wanted["param"])


def test_a_memory_mapped_file_is_updated(backend, tmp_path):
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
    wanted = expected(rule, good(rule), full(rule))
    for name in wanted:
        arguments = good(rule)
        call(rule, {**arguments, name: arguments[name].view(subclass)}, full(rule))
        for other, x in arguments.items():
            np.testing.assert_array_equal(bits(x), bits(wanted[other]))
    params, grad = [good(rule)["param"] for _ in range(2)], good(rule)["grad"]
    for param, cls in zip(params, (np.ndarray, subclass), strict=True):
        optimizer = gdm.SGD([param.view(cls)], lr=0.1, momentum=0.9)
        optimizer.step([grad.view(cls)])
        optimizer.bind([grad.view(cls)])
        optimizer.step()
    np.testing.assert_array_equal(bits(params[1]), bits(params[0]))


@pytest.mark.parametrize("rule", list(RULES))
def test_missing_and_unknown_arguments_are_refused(backend, rule):
    arguments = {name: x for name, x in good(rule).items() if name in names(rule, plain(rule))}
    options = {**plain(rule), **({name: np.ones(1) for name in RULES[rule]["scalars"]})}
    required = "step" if has(rule, "step") else "lr" if rule in ("sgd", "momentum") else "grad"
    given = {**arguments, **options}
    with pytest.raises(TypeError, match=required):
        function(rule)(**{name: x for name, x in given.items() if name != required})
    with pytest.raises(TypeError, match="rate"):
        function(rule)(**given, rate=1)
    with pytest.raises(TypeError, match="positional"):
        function(rule)(*arguments.values(), 0.1, **options)
    with pytest.raises(TypeError, match="multiple values for argument 'param'"):
        function(rule)(*arguments.values(), **options, param=arguments["param"])


@pytest.mark.parametrize(
    ("rule", "name"), [(rule, n) for rule in RULES for n, needs in RULES[rule]["states"].items() if needs]
)
def test_a_state_is_given_if_an_option_needs_it_and_not_otherwise(backend, rule, name):
    """Missing where they are needed, or there where they would be left as they are."""
    arguments, needs = good(rule), RULES[rule]["states"][name]
    missing = {other: x for other, x in arguments.items() if other != name}
    refused(rule, missing, ValueError, f"^{name} is needed with {needs}=(True|0.9), got None")
    refused(rule, arguments, ValueError, f"^{name} is only used with {needs}, which is (False|0.0)", **{needs: 0})


@pytest.mark.parametrize("rule", [rule for rule in RULES if has(rule, "betas")])
def test_betas_are_numbers_below_one(backend, rule):
    count = len(values(rule, "betas")[0])
    words, more = ("a pair of", ()) if count == 2 else ("three", (0.75,))
    for value in (0.9, None, (0.9,), (0.9,) * (5 - count), (0.9,) * 4, "abc"[:count], {0.9, 0.5}):
        refused(rule, good(rule), TypeError, f"^betas must be {words} real numbers", betas=value)
    for k in range(count):
        for value, error in [(1.0, ValueError), (-0.1, ValueError), (np.nan, ValueError), ("0.9", TypeError)]:
            betas = [0.5] * count
            betas[k] = value
            refused(rule, good(rule), error, rf"^betas\[{k}\] must be", betas=betas)
    for betas in ([0.5, 0.25, *more], (np.float32(0.5), 0.25, *more), (0.5, np.float64(0.25), *more)):
        arguments, others = good(rule), good(rule)
        call(rule, arguments, {**full(rule), "betas": betas})
        call(rule, others, {**full(rule), "betas": (0.5, 0.25, *more)})
        np.testing.assert_array_equal(arguments["param"], others["param"])


def test_etas_shrink_and_grow(backend):
    for value in (0.5, None, (0.5,), (0.5, 1.2, 1.2), "ab"):
        refused("rprop", good("rprop"), TypeError, "^etas must be a pair of real numbers", etas=value)
    for value in (0.0, -0.5, 1.0, 1.5, np.nan, np.inf):
        refused("rprop", good("rprop"), ValueError, r"^etas\[0\] must be in \(0, 1\), got", etas=(value, 1.2))
    for value in (1.0, 0.5, -2.0, np.nan, np.inf):
        refused("rprop", good("rprop"), ValueError, r"^etas\[1\] must be finite and above 1, got", etas=(0.5, value))
    refused("rprop", good("rprop"), ValueError, r"^etas\[1\] must be finite in float32", etas=(0.5, 1e39))
    call("rprop", good("rprop", np.float64), {**plain("rprop"), "etas": [5e-324, 1e308]})


def test_step_sizes_are_the_smallest_and_the_largest(backend):
    for value in (0.5, None, (0.5,), (0.5, 1.2, 1.2), "ab"):
        refused("rprop", good("rprop"), TypeError, "^step_sizes must be a pair of real numbers", step_sizes=value)
    for k, value in itertools.product((0, 1), (-1.0, np.nan, np.inf)):
        sizes = [0.5, 0.5]
        sizes[k] = value
        message = rf"^step_sizes\[{k}\] must be finite and not negative, got"
        refused("rprop", good("rprop"), ValueError, message, step_sizes=sizes)
    message = r"^step_sizes must not begin with the larger number, got \(0.5, 0.25\)"
    refused("rprop", good("rprop"), ValueError, message, step_sizes=(0.5, 0.25))
    refused("rprop", good("rprop"), ValueError, r"^step_sizes\[1\] must be finite in float32", step_sizes=(0.5, 1e39))
    call("rprop", good("rprop", np.float64), {**plain("rprop"), "step_sizes": [0, 1e308]})
    call("rprop", good("rprop"), {**plain("rprop"), "step_sizes": (0.5, 0.5)})


@pytest.mark.parametrize("rule", ["asgd", "ademamix", "rmsprop"])
def test_alpha_is_below_one_only_where_it_is_a_share(backend, rule):
    for value in (-0.1, np.nan, np.inf):
        refused(rule, good(rule), ValueError, "^alpha must be", alpha=value)
    if rule == "rmsprop":
        refused(rule, good(rule), ValueError, r"^alpha must be in \[0, 1\), got 1.0", alpha=1.0)
    else:
        call(rule, good(rule), {**full(rule), "alpha": 1.0})
        refused(rule, good(rule), ValueError, "^alpha must be finite in float32", alpha=1e39)


@pytest.mark.parametrize("rule", [rule for rule in RULES if has(rule, "step")])
def test_step_is_a_whole_number_from_one(backend, rule):
    for value in (0.5, None, "1", 1.0):
        refused(rule, good(rule), TypeError, "^step must be a whole number", step=value)
    for value in (0, -1, 2**63, -(2**70)):
        refused(rule, good(rule), ValueError, "^step must be from 1 to", step=value)
    for value in (np.int64(3), np.uint8(3)):
        call(rule, good(rule), {**full(rule), "step": value})


def test_mu_product_is_one_writable_float64(backend):
    for value, error, message in [
        (0.5, TypeError, "must be a NumPy array"),
        (None, TypeError, "must be a NumPy array"),
        (np.ones(1, np.float32), ValueError, "must be one float64"),
        (np.ones(2), ValueError, "must be one float64"),
        (read_only(np.ones(1)), ValueError, "is read-only"),
        *((np.array([x]), ValueError, r"must be in \[0, 1\]") for x in (-0.1, 1.1, np.nan)),
    ]:
        refused("nadam", good("nadam"), error, f"^mu_product {message}", mu_product=value)
    arguments = good("nadam", np.float64)
    arguments["param"][2] = 0.5
    refused("nadam", arguments, gdm.OverlapError, "share memory", mu_product=arguments["param"][2:3])


@st.composite
def maybe_bad_calls(draw):
    rule = draw(st.sampled_from(list(RULES)))
    arguments = good(rule)
    for name in draw(st.lists(st.sampled_from(list(arguments)), max_size=2, unique=True)):
        make = draw(st.sampled_from([case[0] for case in {**BAD_BUFFERS, **NARROW, **READ_ONLY, **NOT_LIKE}.values()]))
        arguments[name] = make(arguments[name])
    options = full(rule)
    for name in draw(st.lists(st.sampled_from(list(reals(rule))), max_size=2, unique=True)):
        options[name] = draw(st.sampled_from([0.0, 0.5, 1.0, -1.0, np.nan, np.inf, None, "x", 0, 1]))
    for name in draw(st.lists(st.sampled_from(flags(rule) or ["maximize"]), max_size=2, unique=True)):
        options[name] = draw(st.sampled_from([True, False, 1, None, "torch", "classic"]))
    return rule, arguments, options


@settings(max_examples=600, deadline=None)
@given(maybe_bad_calls())
def test_native_and_reference_raise_the_same_or_do_the_same(given_call):
    """The same exception in the same words from both, or the same bits."""
    rule, arguments, options = given_call
    outcomes = []
    for native in (True, False):
        arrays = {name: x.copy() if isinstance(x, np.ndarray) and x.flags.forc else x for name, x in arguments.items()}
        for name, x in arrays.items():
            if isinstance(x, np.ndarray) and not arguments[name].flags.writeable:
                x.flags.writeable = False
        try:
            call(rule, arrays, options, native=native)
            outcomes.append([x.tobytes() for x in arrays.values()])
        except (TypeError, ValueError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]
