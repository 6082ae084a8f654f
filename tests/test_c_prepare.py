"""gdm_plan_prepare: it writes what is to be orthogonalized, and nothing else."""

from __future__ import annotations

from ctypes import byref, c_size_t

import numpy as np
import pytest

import gdm
from cplan import (
    BF16,
    F32,
    REFUSE,
    SKIP,
    add,
    add_arrays,
    buffer,
    destroy,
    entry_args,
    new_group,
    new_plan,
    prepare,
    report_of,
    set_num_threads,
    set_scale,
    set_step_args,
    step,
    step_args,
    steps_of,
)
from gdm import _stages
from support import DTYPES, LARGE, assert_same_bits, numbers

OPTIONS = {"lr": 0.1, "momentum": 0.75, "weight_decay": 0.5, "nesterov": True}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))


@pytest.fixture
def plan():
    made = new_plan()
    yield made
    destroy(made)


def buffers(n, dtype):
    """param, velocity, update, grad"""
    return [numbers(dtype, n, seed) for seed in range(4)]


def c_options(**options):
    return {**options, "nesterov": int(options["nesterov"])}


@every_dtype
@pytest.mark.parametrize(("n", "threads"), [(1, 1), (1000, 1), (LARGE, 3)])
def test_two_calls_are_the_two_passes_of_the_function(plan, isa, dtype, n, threads):
    """Another rule's entry is left alone by the first, and stepped by the second."""
    p, v, u, g = buffers(n, dtype)
    other, its_grad = numbers(dtype, 100, 7), numbers(dtype, 100, 8)
    assert set_num_threads(plan, threads) == "OK"
    assert add_arrays(plan, new_group(plan, "sgd", lr=0.5), other, [], its_grad) == "OK"
    assert add_arrays(plan, new_group(plan, "muon", **c_options(**OPTIONS)), p, [v, u], g) == "OK"
    wanted = [x.copy() for x in (p, v, u, g)]
    before = other.copy()
    for count in range(3):
        gdm.reference.muon(*wanted, **OPTIONS, prepare=True)
        assert prepare(plan) == "OK"
        for x, y in zip((p, v, u, g), wanted, strict=True):
            assert_same_bits(x, y)
        assert_same_bits(other, before)
        assert steps_of(plan, 0) == steps_of(plan, 1) == report_of(plan).updates == count
        assert prepare(plan) == "OK"  # it may be called again
        for x in (u, wanted[2]):
            x *= dtype.type(0.375)
        gdm.reference.muon(*wanted, **OPTIONS)
        gdm.reference.sgd(before, its_grad, lr=0.5)
        assert step(plan) == "OK"
        for x, y in zip((p, v, u, g, other), [*wanted, before], strict=True):
            assert_same_bits(x, y)
        assert steps_of(plan, 0) == steps_of(plan, 1) == report_of(plan).updates == count + 1


def test_narrow_buffers_are_left_as_they_are(plan):
    """bfloat16 parameters and states; the rounding would be random."""
    p, v, g = (x.view(np.uint16)[1::2].copy() for x in buffers(3000, np.dtype(np.float32))[:3])
    u = np.zeros(3000, np.float32)
    group = new_group(plan, "muon", **c_options(**OPTIONS))
    states = (buffer(v, BF16), buffer(u, F32))
    given = entry_args(group, p, [], g, dtype=BF16)
    given.states, given.state_count = (type(states[0]) * 2)(*states), 2
    assert add(plan, byref(given), byref(c_size_t())) == "OK"
    assert set_step_args(plan, byref(step_args(rounding=1, seed=5))) == "OK"
    before = [x.copy() for x in (p, v, g)]
    assert prepare(plan) == "OK"
    for x, y in zip((p, v, g), before, strict=True):
        np.testing.assert_array_equal(x, y)
    wide = [(x.astype(np.uint32) << 16).view(np.float32) for x in (p, v, g)]
    wanted = np.zeros_like(u)
    gdm.reference.muon(wide[0], wide[1], wanted, wide[2], **OPTIONS, prepare=True)
    assert_same_bits(u, wanted)


def test_what_is_to_be_orthogonalized_may_be_narrow(plan):
    p, v, u, g = buffers(3000, np.dtype(np.float32))
    wanted, stored = u.copy(), np.zeros(3000, np.uint16)
    group = new_group(plan, "muon", **c_options(**OPTIONS))
    states = (buffer(v, F32), buffer(stored, BF16))
    given = entry_args(group, p, [], g)
    given.states, given.state_count = (type(states[0]) * 2)(*states), 2
    assert add(plan, byref(given), byref(c_size_t())) == "OK"
    assert prepare(plan) == "OK"
    gdm.reference.muon(p, v, wanted, g, **OPTIONS, prepare=True)
    np.testing.assert_array_equal(stored, _stages.narrow(wanted, "bfloat16"))


def test_what_is_done_to_gradients_is_done_first(plan):
    p, v, u, g = buffers(500, np.dtype(np.float64))
    wanted = [x.copy() for x in (p, v, u, g)]
    wanted[3] *= 0.5
    assert add_arrays(plan, new_group(plan, "muon", **c_options(**OPTIONS)), p, [v, u], g) == "OK"
    assert set_scale(plan, 0.5) == "OK"
    gdm.reference.muon(*wanted, **OPTIONS, prepare=True)
    assert prepare(plan) == "OK"
    assert_same_bits(u, wanted[2])
    gdm.reference.muon(*wanted, **OPTIONS)
    assert step(plan) == "OK"
    assert_same_bits(p, wanted[0])
    limit = float(np.abs(g).max()) / 16
    assert set_step_args(plan, byref(step_args(max_grad_value=limit, clear_grads=1))) == "OK"
    wanted[3] = np.clip(g, -limit, limit)
    gdm.reference.muon(*wanted, **OPTIONS, prepare=True)
    before = g.copy()
    assert prepare(plan) == "OK"
    assert_same_bits(u, wanted[2])
    assert_same_bits(g, before)  # the step clears it
    assert step(plan) == "OK"
    assert not g.any()


def test_a_step_that_will_be_skipped_is_not_prepared(plan):
    p, v, u, g = buffers(50, np.dtype(np.float32))
    g[7] = np.nan
    before = [x.copy() for x in (p, v, u)]
    assert add_arrays(plan, new_group(plan, "muon", **c_options(**OPTIONS)), p, [v, u], g) == "OK"
    assert set_step_args(plan, byref(step_args(nonfinite=SKIP, max_grad_norm=1.0))) == "OK"
    assert prepare(plan) == "OK"
    assert (report_of(plan).was_skipped, report_of(plan).skipped) == (1, 0)
    assert np.isnan(report_of(plan).grad_norm)
    assert step(plan) == "OK"
    assert (report_of(plan).was_skipped, report_of(plan).skipped) == (1, 1)
    assert set_step_args(plan, byref(step_args(nonfinite=REFUSE))) == "OK"
    assert prepare(plan) == "ERR_NONFINITE"
    assert report_of(plan).was_skipped == 1  # by the last step: what fails is none
    for x, y in zip((p, v, u), before, strict=True):
        assert_same_bits(x, y)


def test_what_is_wrong_is_found_first(plan):
    p, v, _u, g = buffers(50, np.dtype(np.float32))
    assert prepare(None) == "ERR_NULL"
    group = new_group(plan, "muon", **c_options(**OPTIONS))
    assert add_arrays(plan, group, p, [v], g) == "ERR_NULL"
    assert add_arrays(plan, group, p, [v, g], g) == "OK"
    before = g.copy()
    assert prepare(plan) == "ERR_OVERLAP"
    assert_same_bits(g, before)


def test_a_step_reports_its_own_norm_after_a_preparation(plan):
    """Not that of the last step, when this one needs none."""
    p, v, u, g = buffers(50, np.dtype(np.float32))
    assert add_arrays(plan, new_group(plan, "muon", **c_options(**OPTIONS)), p, [v, u], g) == "OK"
    assert set_step_args(plan, byref(step_args(max_grad_norm=1.0))) == "OK"
    assert step(plan) == "OK"
    norm = report_of(plan).grad_norm
    assert norm > 0
    assert set_step_args(plan, byref(step_args())) == "OK"
    assert prepare(plan) == "OK"
    assert report_of(plan).grad_norm == norm
    assert step(plan) == "OK"
    assert np.isnan(report_of(plan).grad_norm)
