"""Every kernel gives the bits of the reference: each rule, dtype, option, instruction set, size, alignment, value."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdm
from support import (
    DTYPES,
    ISAS,
    RULES,
    Guarded,
    assert_all_same_bits,
    assert_same_bits,
    bits,
    buffers,
    call,
    describe,
    expected,
    full,
    has,
    is_legal,
    names,
    numbers,
    option_cases,
    plain,
    special_values,
    start_and_end,
    takes_norms,
    values,
    written,
)

CASES = [
    pytest.param(rule, dtype, options, id=f"{rule}-{name}-{describe(options)}")
    for rule in RULES
    for name, dtype in DTYPES.items()
    for options in option_cases(rule)
]
every_case = pytest.mark.parametrize(("rule", "dtype", "options"), CASES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
every_rule = pytest.mark.parametrize("rule", list(RULES))


def check_first(rule, options, arrays, wanted, n):
    """An update of the first n elements: what lies behind them stays as it was."""
    copies = {name: x.copy() for name, x in arrays.items()}
    if takes_norms(rule, options):
        wanted = expected(rule, {name: x[:n] for name, x in arrays.items()}, options)
    call(rule, {name: x[:n] for name, x in copies.items()}, options)
    for name, x in copies.items():
        assert_same_bits(x[:n], wanted[name][:n], f"{name}, n = {n}")
        assert_same_bits(x[n:], arrays[name][n:], f"{name} behind n = {n}")


@every_case
def test_kernels_have_the_bits_of_the_reference_at_all_sizes(rule, dtype, options, isa):
    """All sizes from 0 to 257."""
    arrays, wanted = start_and_end(rule, options, dtype, 260)
    for n in range(258):
        check_first(rule, options, arrays, wanted, n)


@every_dtype
@every_rule
def test_kernels_have_the_bits_of_the_reference_at_large_sizes(rule, dtype, isa):
    """Around the size from which other threads may run, and well into memory."""
    for options in option_cases(rule)[::7]:
        arrays, wanted = start_and_end(rule, options, dtype, 300_003)
        for n in (2047, 2048, 2049, 32767, 32768, 32769, 300_003):
            some, some_wanted = ({name: x[: n + 3] for name, x in all_of_it.items()} for all_of_it in (arrays, wanted))
            check_first(rule, options, some, some_wanted, n)


@every_dtype
@every_rule
def test_kernels_have_the_same_bits_at_any_alignment(rule, dtype, isa):
    """Every byte offset from 0 to 63 that an element may have, of the parameter against the gradient and the states."""
    places = 64 // dtype.itemsize
    options = full(rule)
    for n in (1, 19, 67):
        arrays = buffers(rule, options, dtype, n)
        wanted = expected(rule, arrays, options)
        for first, last in itertools.product(range(places), repeat=2):
            places_of = {"param": first, "grad": last}
            shifted = {name: _at_offset(x, places_of.get(name, (first + last) % places)) for name, x in arrays.items()}
            call(rule, shifted, options)
            assert_all_same_bits(shifted, wanted, f"n = {n}, offsets = {first}, {last} elements")


def _at_offset(x, offset):
    """A copy that starts so many elements behind a cache line's beginning."""
    memory = np.zeros(x.nbytes + 128, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64 + offset * x.itemsize
    copy = memory[start : start + x.nbytes].view(x.dtype)
    copy[...] = x
    return copy


@every_case
def test_kernels_treat_special_values_as_the_reference_does(rule, dtype, options, isa):
    """Zeros of both signs, subnormals, infinities, NaN: every combination in three buffers, many in more."""
    specials, called = special_values(dtype), names(rule, options)
    if len(called) <= 3:
        columns = list(zip(*itertools.product(specials, repeat=len(called)), strict=True))
    else:
        columns = list(np.random.default_rng(0).choice(specials, (len(called), 20_000)))
    arrays = {name: np.array(column) for name, column in zip(called, columns, strict=True)}
    wanted = expected(rule, arrays, options)
    call(rule, arrays, options)
    assert_all_same_bits(arrays, wanted)


@every_case
def test_options_off_leave_no_trace(rule, dtype, options, isa):
    """An infinite parameter stays infinite and -0 stays -0 where nothing is added to them."""
    if has(rule, "weight_lr_power"):
        pytest.skip("Schedule-Free always adds the way to z")
    off = {"weight_decay": 0.0, "maximize": False, "eps": 1.0}
    options = {**options, **{name: value for name, value in off.items() if has(rule, name)}}
    arrays = buffers(rule, options, dtype, 2)
    for name, x in arrays.items():
        x[...] = 1.0 if name == "lr_scale" else 0.0
    arrays["param"][...] = [np.inf, -0.0]
    before = bits(arrays["param"]).copy()
    if options.get("form") == "classic":
        arrays["velocity"][...] = -0.0  # p + (+0) would be +0: the formula itself, not a trace of an option
    call(rule, arrays, options)
    np.testing.assert_array_equal(bits(arrays["param"]), before)


@pytest.mark.parametrize("rule", [rule for rule in RULES if has(rule, "decoupled_weight_decay")])
def test_derived_numbers_are_rounded_once_each(rule):
    """``1 - lr * weight_decay``: two roundings, as in Python. A compiler with FMA would like to make them one."""
    rng = np.random.default_rng(0)
    for lr, weight_decay in rng.uniform(0, 1, (1000, 2)).tolist():
        options = {**plain(rule), "lr": lr, "weight_decay": weight_decay, "decoupled_weight_decay": True}
        arrays = {name: np.full(1, float(name == "param")) for name in names(rule, options)}
        wanted = expected(rule, arrays, options)
        call(rule, arrays, options)
        assert_same_bits(arrays["param"], wanted["param"], f"lr = {lr!r}, weight_decay = {weight_decay!r}")
        assert arrays["param"][0] == 1.0 - lr * weight_decay


@pytest.mark.parametrize("rule", [rule for rule in RULES if has(rule, "step")])
def test_constants_of_any_step_are_those_of_the_reference(rule):
    """What depends on the step is worked out alike at any step, however far."""
    rng = np.random.default_rng(0)
    for k, step in enumerate(
        [*range(1, 200), *(2 ** np.arange(8, 63)).tolist(), *rng.integers(1, 10**6, 200).tolist()]
    ):
        options = {**plain(rule), "step": step}
        if has(rule, "betas"):
            count = len(values(rule, "betas")[0])
            options["betas"] = tuple(rng.choice([0.0, 0.5, 0.9, 0.999, 1 - 1e-12, rng.uniform()], count).tolist())
            if not is_legal(rule, "betas", options["betas"]):
                options["betas"] = (0.75, options["betas"][1])
        if has(rule, "momentum_decay"):
            options["momentum_decay"] = float(rng.choice([0.0, 0.004, 1e-9, 1e9, rng.exponential()]))
        if has(rule, "lr_decay"):
            options["lr_decay"] = float(rng.choice([0.0, 0.1, 1e-9, 1e9]))
        for name in ("lambd", "t0", "t_alpha", "t_beta3"):
            if has(rule, name):
                options[name] = float(rng.choice([0.0, 0.1, 3.5, 1e-9, 1e9, 2.0 * step, 1e300]))
        if rule == "asgd":
            options["alpha"] = float(rng.choice([0.0, 0.75, 1.0, 1e-9, 1e9, rng.exponential()]))
        if has(rule, "weight_lr_power"):
            options["warmup_steps"] = float(rng.choice([0.0, 3.0, 2.5, 1e6]))
            options["r"], options["weight_lr_power"] = rng.choice(
                [0.0, 1.0, 0.5, 7.25, 1e9, rng.exponential()], 2
            ).tolist()
        arrays = buffers(rule, options, np.dtype(np.float64), 3, seed=k)
        products = [{name: np.array([0.3]) for name in RULES[rule]["scalars"]} for _ in range(2)]
        copies = {name: x.copy() for name, x in arrays.items()}
        call(rule, arrays, {**options, **products[0]})
        call(rule, copies, {**options, **products[1]}, native=False)
        assert_all_same_bits(arrays, copies, f"step = {step}, {options}")
        assert products[0] == products[1]


@every_dtype
@every_rule
def test_kernels_touch_no_byte_beside_their_buffers(rule, dtype, isa):
    """Not one byte before or behind a buffer is read or written."""
    options = full(rule)
    guarded = [Guarded(257 * dtype.itemsize) for _ in names(rule, options)]
    whole = start_and_end(rule, options, dtype, 257)
    for n in range(258):
        source, wanted = ({name: x[:n] for name, x in all_of_it.items()} for all_of_it in whole)
        if takes_norms(rule, options):
            wanted = expected(rule, source, options)
        for place in (Guarded.at_start, Guarded.at_end):
            arrays = {name: place(memory, dtype, n) for name, memory in zip(source, guarded, strict=True)}
            for name, array in arrays.items():
                array[...] = source[name]
            call(rule, arrays, options)
            assert_all_same_bits(arrays, wanted, f"n = {n}")


@every_dtype
@every_rule
def test_kernels_do_not_write_to_what_is_only_read(rule, dtype, isa):
    options = full(rule)
    arrays = buffers(rule, options, dtype, 100)
    wanted = expected(rule, arrays, options)
    for name in ("grad", "lr_scale"):
        arrays[name].flags.writeable = False
    call(rule, arrays, options)
    assert_all_same_bits(arrays, wanted)


@st.composite
def calls(draw):
    rule = draw(st.sampled_from(list(RULES)))
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    options = dict(draw(st.sampled_from(option_cases(rule))))
    highest = {"not_negative": 1e6, "below_one": 0.999999, "up_to_one": 1.0}
    for name, kind in RULES[rule]["options"].items():
        if kind in highest and options[name] != 0:
            options[name] = draw(st.floats(1e-12, highest[kind]))
        if kind in ("betas", "three_betas"):
            options[name] = tuple(
                draw(st.floats(1e-12 if has(rule, "weight_lr_power") else 0, 0.999999)) for _ in options[name]
            )
        if kind == "etas":
            options[name] = (draw(st.floats(1e-6, 0.999999)), draw(st.floats(1.000001, 1e6)))
        if kind == "step_sizes":
            options[name] = tuple(sorted((draw(st.floats(0, 1e6)), draw(st.floats(0, 1e6)))))
        if kind == "count":
            options[name] = draw(st.integers(1, 2**63 - 1))
    n = draw(st.integers(0, 700))
    elements = st.floats(width=dtype.itemsize * 8)
    fill = draw(st.lists(elements, min_size=1, max_size=20))
    arrays = {name: np.resize(np.array(fill[k:] + fill[:k], dtype), n) for k, name in enumerate(names(rule, options))}
    return rule, arrays, options


@settings(max_examples=600, deadline=None)
@given(calls(), st.sampled_from(ISAS))
def test_any_call_has_the_bits_of_the_reference(given_call, isa):
    """Hyperparameters and values nobody thought of."""
    rule, arrays, options = given_call
    gdm.set_isa(isa)
    wanted = expected(rule, arrays, options)
    call(rule, arrays, options)
    assert_all_same_bits(arrays, wanted)


@pytest.mark.parametrize("order", ["C", "F"])
@every_rule
def test_arrays_may_have_any_shape_and_order(rule, order, backend):
    """Any shape, in C or Fortran order."""
    for shape in [(), (0,), (3, 0), (5,), (4, 7), (2, 3, 5)]:
        n = int(np.prod(shape))
        flat = buffers(rule, full(rule), DTYPES["f32"], n)
        wanted = expected(rule, flat, full(rule))
        arrays = {name: x.reshape(shape, order=order) for name, x in flat.items()}
        call(rule, arrays, full(rule))
        assert_all_same_bits(arrays, {name: x.reshape(shape, order=order) for name, x in wanted.items()})


def test_numbers_are_not_trivial():
    """The other tests mean something: no zeros, several magnitudes, arrays that differ."""
    x = numbers(np.float32, 1000, 1)
    assert np.all(x != 0)
    assert np.log10(np.abs(x)).std() > 1
    assert not np.array_equal(x, numbers(np.float32, 1000, 2))


@every_case
def test_updates_are_not_trivial(rule, dtype, options):
    """Few results are NaN, and what is written changes."""
    if options.get("rho") == 1.0 or (options.get("adapt") and options.get("trust_coefficient") == 0.0):
        pytest.skip("with these options the averages or the step are 0 times something")
    arrays = buffers(rule, options, dtype, 1000)
    wanted = expected(rule, arrays, options)
    for name, x in wanted.items():
        assert np.isfinite(x).mean() > 0.5, name
        changed = np.mean(x != arrays[name])
        assert changed > 0.1 if name in written(rule, options) else changed == 0, name
