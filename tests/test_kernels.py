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
    assert_same_bits,
    bits,
    buffers,
    describe,
    function,
    numbers,
    option_cases,
    special_values,
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


def reference(rule, arrays, options):
    """The arrays after one update by the reference."""
    copies = [x.copy() for x in arrays]
    function(rule, native=False)(*copies, **options)
    return copies


@every_case
def test_sizes(rule, dtype, options, isa):
    """All sizes from 0 to 257: what lies behind n stays as it was."""
    arrays = buffers(rule, dtype, 260)
    expected = reference(rule, arrays, options)
    for n in range(258):
        copies = [x.copy() for x in arrays]
        function(rule)(*(x[:n] for x in copies), **options)
        for before, after, wanted in zip(arrays, copies, expected, strict=True):
            assert_same_bits(after, np.concatenate([wanted[:n], before[n:]]), f"n = {n}")


@every_dtype
@every_rule
def test_large_sizes(rule, dtype, isa):
    """Around the size from which other threads may run, and well into memory."""
    for options in option_cases(rule)[::5]:
        arrays = buffers(rule, dtype, 1_000_003)
        expected = reference(rule, arrays, options)
        for n in (4095, 4096, 4097, 32767, 32768, 32769, 1_000_003):
            copies = [x.copy() for x in arrays]
            function(rule)(*(x[:n] for x in copies), **options)
            for before, after, wanted in zip(arrays, copies, expected, strict=True):
                assert_same_bits(after, np.concatenate([wanted[:n], before[n:]]), f"n = {n}")


@every_dtype
@every_rule
def test_alignments(rule, dtype, isa):
    """Every byte offset from 0 to 63 that an element may have, of the parameter against the gradient and the states."""
    places = 64 // dtype.itemsize
    options = option_cases(rule)[-1]
    for n in (1, 19, 67):
        arrays = buffers(rule, dtype, n)
        expected = reference(rule, arrays, options)
        for first, last in itertools.product(range(places), repeat=2):
            offsets = [first, *((first + last) % places for _ in arrays[1:-1]), last]
            shifted = [_at_offset(x, offset) for x, offset in zip(arrays, offsets, strict=True)]
            function(rule)(*shifted, **options)
            for after, wanted in zip(shifted, expected, strict=True):
                assert_same_bits(after, wanted, f"n = {n}, offsets = {offsets} elements")


def _at_offset(x, offset):
    """A copy that starts so many elements behind a cache line's beginning."""
    memory = np.zeros(x.nbytes + 128, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64 + offset * x.itemsize
    copy = memory[start : start + x.nbytes].view(x.dtype)
    copy[...] = x
    return copy


@every_case
def test_special_values(rule, dtype, options, isa):
    """Zeros of both signs, subnormals, infinities, NaN, in every combination across the buffers."""
    specials = special_values(dtype)
    count = 2 + len(RULES[rule]["states"])
    arrays = [np.array(column) for column in zip(*itertools.product(specials, repeat=count), strict=True)]
    expected = reference(rule, arrays, options)
    function(rule)(*arrays, **options)
    for after, wanted in zip(arrays, expected, strict=True):
        assert_same_bits(after, wanted)


@every_case
def test_options_off_leave_no_trace(rule, dtype, options, isa):
    """An infinite parameter stays infinite and -0 stays -0 where nothing is added to them."""
    arrays = buffers(rule, dtype, 2)
    for x in arrays:
        x[...] = 0.0
    arrays[0][...] = [np.inf, -0.0]
    before = bits(arrays[0]).copy()
    options = {**options, "weight_decay": 0.0, "maximize": False}
    if options.get("form") == "classic":
        arrays[1][...] = -0.0  # p + (+0) would be +0: the formula itself, not a trace of an option
    function(rule)(*arrays, **options)
    np.testing.assert_array_equal(bits(arrays[0]), before)


@every_rule
def test_derived_numbers_are_rounded_once_each(rule):
    """``1 - lr * weight_decay``: two roundings, as in Python. A compiler with FMA would like to make them one."""
    rng = np.random.default_rng(0)
    for lr, weight_decay in rng.uniform(0, 1, (1000, 2)).tolist():
        arrays = [np.ones(1), *(np.zeros(1) for _ in RULES[rule]["states"]), np.zeros(1)]
        options = {"lr": lr, "weight_decay": weight_decay, "decoupled_weight_decay": True}
        expected = reference(rule, arrays, options)
        function(rule)(*arrays, **options)
        assert_same_bits(arrays[0], expected[0], f"lr = {lr!r}, weight_decay = {weight_decay!r}")
        assert arrays[0][0] == 1.0 - lr * weight_decay


@every_dtype
@every_rule
def test_guard_pages(rule, dtype, isa):
    """Not one byte before or behind a buffer is read or written."""
    count = 2 + len(RULES[rule]["states"])
    guarded = [Guarded(257 * dtype.itemsize) for _ in range(count)]
    options = option_cases(rule)[-1]
    for n in range(258):
        source = buffers(rule, dtype, n)
        expected = reference(rule, source, options)
        for place in (Guarded.at_start, Guarded.at_end):
            arrays = [place(memory, dtype, n) for memory in guarded]
            for array, x in zip(arrays, source, strict=True):
                array[...] = x
            function(rule)(*arrays, **options)
            for after, wanted in zip(arrays, expected, strict=True):
                assert_same_bits(after, wanted, f"n = {n}")


@every_dtype
@every_rule
def test_gradient_is_only_read(rule, dtype, isa):
    arrays = buffers(rule, dtype, 100)
    expected = reference(rule, arrays, option_cases(rule)[0])
    arrays[-1].flags.writeable = False
    function(rule)(*arrays, **option_cases(rule)[0])
    assert_same_bits(arrays[0], expected[0])


@st.composite
def calls(draw):
    rule = draw(st.sampled_from(list(RULES)))
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    options = dict(draw(st.sampled_from(option_cases(rule))))
    for name, domain in RULES[rule]["reals"].items():
        if options[name] != 0:
            high = {"not_negative": 1e6, "below_one": 0.999999, "up_to_one": 1.0}[domain]
            options[name] = draw(st.floats(1e-12, high))
    n = draw(st.integers(0, 700))
    elements = st.floats(width=dtype.itemsize * 8)
    fill = draw(st.lists(elements, min_size=1, max_size=20))
    arrays = [np.resize(np.array(fill[k:] + fill[:k], dtype), n) for k in range(2 + len(RULES[rule]["states"]))]
    return rule, arrays, options


@settings(max_examples=400, deadline=None)
@given(calls(), st.sampled_from(ISAS))
def test_any_call(call, isa):
    """Hyperparameters and values nobody thought of."""
    rule, arrays, options = call
    gdm.set_isa(isa)
    expected = reference(rule, arrays, options)
    function(rule)(*arrays, **options)
    for after, wanted in zip(arrays, expected, strict=True):
        assert_same_bits(after, wanted)


@pytest.mark.parametrize("order", ["C", "F"])
@every_rule
def test_shapes(rule, order, backend):
    """Any shape, in C or Fortran order."""
    for shape in [(), (0,), (3, 0), (5,), (4, 7), (2, 3, 5)]:
        n = int(np.prod(shape))
        flat = buffers(rule, DTYPES["f32"], n)
        expected = reference(rule, flat, {"lr": 0.1})
        arrays = [x.reshape(shape, order=order) for x in flat]
        function(rule)(*arrays, lr=0.1)
        for after, wanted in zip(arrays, expected, strict=True):
            assert_same_bits(after, wanted.reshape(shape, order=order))


def test_numbers_are_not_trivial():
    """The other tests mean something: no zeros, several magnitudes, arrays that differ."""
    x = numbers(np.float32, 1000, 1)
    assert np.all(x != 0)
    assert np.log10(np.abs(x)).std() > 1
    assert not np.array_equal(x, numbers(np.float32, 1000, 2))
