"""The plan functions of gdm.h, through ctypes: wrong arguments give a status that says so, and nothing is written."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_double, c_int, c_size_t, c_void_p

import numpy as np
import pytest

import gdm
from cheader import RULE, args
from cplan import (
    EVAL,
    F64,
    INT8,
    NOWHERE,
    EntryArgs,
    add,
    add_arrays,
    add_group,
    buffer,
    create,
    destroy,
    entry_args,
    error_of,
    get_error,
    get_group_steps,
    get_mode,
    get_progress,
    group_steps,
    new_group,
    new_plan,
    plan_reduce,
    scalars_of,
    set_args,
    set_grad,
    set_group_steps,
    set_lr,
    set_lr_factor,
    set_lr_scale,
    set_mode,
    set_num_threads,
    set_progress,
    step,
    steps_of,
    swap,
)
from support import RULES

nan, inf = float("nan"), float("inf")


@pytest.fixture
def plan():
    """An empty plan."""
    plan = new_plan()
    yield plan
    destroy(plan)


@pytest.fixture
def memory():
    """Six rows of eight floats, one after the other; none is touched in a test that asks for `untouched`."""
    return np.arange(1, 49, dtype=np.float32).reshape(6, 8)


@pytest.fixture
def untouched(memory):
    before = memory.copy()
    yield
    np.testing.assert_array_equal(memory, before)


def add_rows(plan, rows) -> str:
    """Adds param, velocity and grad of an entry of a group of momentum."""
    param, velocity, grad = rows
    return add_arrays(plan, 0, param, [velocity], grad, 8)


@pytest.fixture
def momentum_plan(plan, memory):
    """A plan with a group of momentum, and one parameter with all it needs: rows 0 (param), 1 (velocity), 2 (grad)."""
    new_group(plan, "momentum", momentum=0.9)
    assert add_rows(plan, memory[:3]) == "OK"
    return plan


def test_a_plan_computes_what_the_reference_does_even_after_refusals(momentum_plan, memory):
    """What the reference says, first step and later ones, after all the refusals one likes."""
    assert add_rows(momentum_plan, memory[3:]) == "OK"
    expected = memory.copy()
    for k in range(3):
        assert set_args(momentum_plan, 0, byref(args("momentum", lr=nan))) == "ERR_LR"
        assert step(momentum_plan) == "OK"
        for param, velocity, grad in (expected[:3], expected[3:]):
            if k == 0:
                velocity[:] = grad
                gdm.reference.sgd(param, grad, lr=0.1)
            else:
                gdm.reference.momentum(param, velocity, grad, lr=0.1, momentum=0.9)
    np.testing.assert_array_equal(memory, expected)
    assert steps_of(momentum_plan) == 3


def test_a_plan_that_is_null_is_an_error(memory):
    out, good, row = byref(c_size_t()), byref(args("sgd")), buffer(memory[0])
    assert create(None) == "ERR_NULL"
    destroy(None)
    for status in (
        add_group(None, RULE["sgd"], good, out),
        set_args(None, 0, good),
        set_lr(None, 0, 0.1),
        add(None, byref(entry_args(0, memory[0], [], None)), out),
        set_grad(None, 0, row),
        set_lr_scale(None, 0, row),
        set_lr_factor(None, 0, 1.0),
        set_num_threads(None, 1),
        step(None),
        get_progress(None, 0, None, None),
        set_progress(None, 0, 0, None),
        get_group_steps(None, 0, None),
        set_group_steps(None, 0, 0),
        get_error(None, None, None),
        plan_reduce(None, 0, byref(c_double())),
        swap(None, EVAL),
        set_mode(None, EVAL),
        get_mode(None, byref(c_int())),
    ):
        assert status == "ERR_NULL"


def test_an_empty_plan_steps(plan):
    assert step(plan) == "OK"


WRONG = [
    *(("momentum", option, x, f"ERR_{option.upper()}") for option in ("lr", "weight_decay") for x in (-1, nan, inf)),
    *(("momentum", "momentum", x, "ERR_MOMENTUM") for x in (-0.1, 1.0, nan)),
    *(("momentum", "dampening", x, "ERR_DAMPENING") for x in (-0.1, 1.1, nan)),
    ("momentum", "nesterov", 1, "ERR_NESTEROV"),
    ("momentum", "form", 2, "ERR_FORM"),
    ("adagrad", "lr_decay", nan, "ERR_LR_DECAY"),
    ("adagrad", "eps", -1, "ERR_EPS"),
    ("rmsprop", "alpha", nan, "ERR_ALPHA"),
    ("rmsprop", "alpha", 1.0, "ERR_ALPHA"),
    *(("adam", "betas", x, "ERR_BETAS") for x in ((nan, 0.9), (0.9, nan), (1.0, 0.9), (0.9, -0.1))),
    ("adam", "eps", nan, "ERR_EPS"),
    ("nadam", "momentum_decay", nan, "ERR_MOMENTUM_DECAY"),
    ("adadelta", "rho", 1.5, "ERR_RHO"),
    ("lion", "betas", (0.9, 1.0), "ERR_BETAS"),
    *(("rprop", "etas", x, "ERR_ETAS") for x in ((0, 1.2), (1.0, 1.2), (0.5, 1.0), (nan, 1.2), (0.5, nan), (0.5, inf))),
    *(("rprop", "step_sizes", x, "ERR_STEP_SIZES") for x in ((-1, 1), (2, 1), (nan, 1), (0, nan), (0, inf))),
    *(("asgd", name, nan, f"ERR_{name.upper()}") for name in ("lambd", "t0")),
    *(("asgd", "alpha", x, "ERR_ASGD_ALPHA") for x in (-1, nan, inf)),
    *(("ademamix", "alpha", x, "ERR_ADEMAMIX_ALPHA") for x in (-1, nan, inf)),
    *(("ademamix", "betas", x, "ERR_ADEMAMIX_BETAS") for x in ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0, 0, nan))),
    *(("ademamix", name, -1, f"ERR_{name.upper()}") for name in ("t_alpha", "t_beta3")),
    ("schedule_free_sgd", "momentum", 0.0, "ERR_MOMENTUM"),
    ("schedule_free_sgd", "warmup_steps", -1.0, "ERR_WARMUP_STEPS"),
    ("schedule_free_adamw", "betas", (0.0, 0.9), "ERR_BETAS"),
    ("schedule_free_adamw", "r", inf, "ERR_R"),
    ("schedule_free_adamw", "weight_lr_power", nan, "ERR_WEIGHT_LR_POWER"),
    ("sgd", "lr_scale", 1, "ERR_LR_SCALE"),
    *(("sgd", "size", x, "ERR_STRUCT_SIZE") for x in (0, 8, 5000, 2**64 - 1)),
]


@pytest.mark.parametrize(("rule", "option", "value", "status"), WRONG)
def test_wrong_options_of_a_group_are_refused(plan, rule, option, value, status):
    group = c_size_t(77)
    needed = {"schedule_free_sgd": {"momentum": 0.9}, "schedule_free_adamw": {"betas": (0.9, 0.99)}}.get(rule, {})
    wrong = args(rule, **{**needed, option: value})
    assert add_group(plan, RULE[rule], byref(wrong), byref(group)) == status
    assert group.value == 77
    assert add_group(plan, RULE[rule], byref(args(rule, **needed)), byref(group)) == "OK"
    assert group.value == 0
    assert set_args(plan, 0, byref(wrong)) == status


def test_groups_that_are_not_there_are_refused(plan):
    group, good = c_size_t(77), args("sgd")
    for rule in (-1, len(RULE), 2**31 - 1):
        assert add_group(plan, rule, byref(good), byref(group)) == "ERR_INDEX"
    assert add_group(plan, RULE["sgd"], None, byref(group)) == "ERR_NULL"
    assert add_group(plan, RULE["sgd"], byref(good), None) == "ERR_NULL"
    newer = (ctypes.c_char * (good.size + 8)).from_buffer_copy(bytes(good) + b"\0\0\0\0\0\0\0\1")
    c_size_t.from_buffer(newer).value = len(newer)
    assert add_group(plan, RULE["sgd"], newer, byref(group)) == "ERR_STRUCT_SIZE"
    assert group.value == 77
    for index in (0, 2**64 - 1):
        assert set_args(plan, index, byref(good)) == "ERR_INDEX"
        assert set_lr(plan, index, 0.1) == "ERR_INDEX"
        assert get_group_steps(plan, index, None) == "ERR_INDEX"
        assert set_group_steps(plan, index, 0) == "ERR_INDEX"


@pytest.mark.usefixtures("untouched")
def test_wrong_entries_do_not_become_part_of_the_plan(momentum_plan, memory):
    """None of them becomes a part of the plan."""
    param, state, grad = memory[3:]
    odd = memory.view(np.uint8).ravel()[1:].ctypes.data
    good = entry_args(0, param, [state], grad)
    for status, arguments in [
        ("ERR_INDEX", (1, param, [state], grad)),
        ("ERR_INDEX", (2**64 - 1, param, [state], grad)),
        ("ERR_INDEX", (0, param, [state, memory[2]], grad)),  # the rule has one state
        ("ERR_DTYPE", (0, param, [state], grad, 8, INT8)),
        ("ERR_DTYPE", (0, param, [state], grad, 8, INT8 + 1)),
        ("ERR_DTYPE", (0, param, [state], grad, 8, -1)),
        ("ERR_NULL", (0, None, [state], grad, 8)),
        ("ERR_NULL", (0, param, [None], grad)),
        ("ERR_NULL", (0, param, [], grad)),
        ("ERR_ALIGNMENT", (0, odd, [state], grad, 8)),
        ("ERR_ALIGNMENT", (0, param, [odd], grad, 8)),
        ("ERR_ALIGNMENT", (0, param, [state], odd, 8)),
        ("ERR_ALIGNMENT", (0, memory.ravel()[1:], [state], grad, 4, F64)),
        ("ERR_LENGTH", (0, param, [state], grad, 2**62)),
        ("ERR_LENGTH", (0, param, [state], grad, 2**64 - 1)),
        ("ERR_LENGTH", (0, 2**64 - 32, [state], grad, 9)),
        ("ERR_LENGTH", (0, param, [2**64 - 32], grad, 9)),
        ("ERR_LENGTH", (0, param, [state], 2**64 - 32, 9)),
    ]:
        assert add_arrays(momentum_plan, *arguments) == status, arguments
    for status, fields in [
        ("ERR_STRUCT_SIZE", {"size": 0}),
        ("ERR_STRUCT_SIZE", {"size": EntryArgs.copy.offset - 8}),
        ("ERR_STRUCT_SIZE", {"size": 5000}),
        ("ERR_NULL", {"states": None}),
        ("ERR_ALIGNMENT", {"lr_scale": buffer(odd)}),
        ("ERR_DTYPE", {"lr_scale": buffer(grad, 7)}),
        *(("ERR_LR_FACTOR", {"lr_factor": x}) for x in (-1.0, nan, inf)),
    ]:
        wrong = entry_args(0, param, [state], grad)
        for name, value in fields.items():
            setattr(wrong, name, value)
        assert add(momentum_plan, byref(wrong), byref(c_size_t())) == status, fields
    assert add(momentum_plan, byref(good), None) == "ERR_NULL"
    assert add(momentum_plan, None, byref(c_size_t())) == "ERR_NULL"
    out = c_size_t(77)
    newer = (ctypes.c_char * (ctypes.sizeof(EntryArgs) + 8)).from_buffer_copy(bytes(good) + bytes(7) + b"\1")
    c_size_t.from_buffer(newer).value = len(newer)
    as_entry = ctypes.POINTER(EntryArgs)
    assert add(momentum_plan, ctypes.cast(newer, as_entry), byref(out)) == "ERR_STRUCT_SIZE"
    assert out.value == 77
    newer[-1] = b"\0"  # a newer caller that asks for nothing new
    assert add(momentum_plan, ctypes.cast(newer, as_entry), byref(out)) == "OK"
    assert out.value == 1
    assert add_arrays(momentum_plan, 0, None, [None], None, 0) == "OK"  # nothing to do needs no buffers


def test_a_plan_goes_on_after_a_lack_of_memory(plan, memory):
    """An entry for which there was no room for all that a plan notes leaves nothing behind."""
    new_group(plan, "momentum", momentum=0.9)
    param, velocity, grad = memory[:3]
    assert add_arrays(plan, 0, param, [velocity], grad, 2**60) == "ERR_MEMORY"
    for rows in (memory[:3], memory[3:]):
        assert add_rows(plan, rows) == "OK"
    expected = memory[::3] - np.float32(0.1) * memory[2::3]
    assert step(plan) == "OK"
    np.testing.assert_array_equal(memory[::3], expected)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "rows",
    [
        (0, 4, 5),  # the other's parameter
        (1, 4, 5),  # its velocity
        (2, 4, 5),  # its gradient
        (3, 0, 5),
        (3, 1, 5),
        (3, 2, 5),
        (3, 4, 0),
        (3, 4, 1),
        (3, 3, 5),
        (3, 4, 3),
        (3, 4, 4),
    ],
)
def test_buffers_that_overlap_are_refused_at_each_attempt(momentum_plan, memory, rows):
    """Two buffers of which one is written: found before anything is, at each attempt."""
    assert add_rows(momentum_plan, [memory[row] for row in rows]) == "OK"
    for _ in range(2):
        assert step(momentum_plan) == "ERR_OVERLAP"
        with_itself, reads = len(set(rows)) < 3, rows[2] < 2
        assert error_of(momentum_plan) == ((1, 1) if with_itself else (1, 0) if reads else (0, 1))
    assert steps_of(momentum_plan) == 0


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("offset", [1, 7, -7])
def test_buffers_that_overlap_in_part_are_refused(momentum_plan, memory, offset):
    start = memory[0 if offset > 0 else 3].ctypes.data + 4 * offset
    assert add_rows(momentum_plan, [start, memory[4], memory[5]]) == "OK"
    assert step(momentum_plan) == "ERR_OVERLAP"


def test_gradients_may_share_memory_in_a_plan(momentum_plan, memory):
    assert add_rows(momentum_plan, [memory[3], memory[4], memory[2]]) == "OK"
    assert step(momentum_plan) == "OK"


@pytest.mark.parametrize(("set_read"), [set_grad, set_lr_scale])
def test_wrong_buffers_that_are_only_read_are_refused(momentum_plan, memory, set_read):
    assert step(momentum_plan) == "OK"
    before = memory.copy()
    start = memory[5].ctypes.data
    for index in (1, 2**64 - 1):
        assert set_read(momentum_plan, index, buffer(start)) == "ERR_INDEX"
        assert error_of(momentum_plan) == (NOWHERE, NOWHERE)
    for status, wrong in [
        ("ERR_ALIGNMENT", buffer(start + 2)),
        ("ERR_LENGTH", buffer(2**64 - 16)),
        ("ERR_DTYPE", buffer(start, F64)),
        ("ERR_DTYPE", buffer(start, INT8)),
    ]:
        assert set_read(momentum_plan, 0, wrong) == status
        assert error_of(momentum_plan) == (0, NOWHERE)
    for row in (0, 1):
        assert set_read(momentum_plan, 0, buffer(memory[row].ctypes.data + 28)) == "ERR_OVERLAP"
        assert error_of(momentum_plan) == (0, 0)
    np.testing.assert_array_equal(memory, before)
    # The refusals have left what was there.
    assert step(momentum_plan) == "OK"
    expected = before.copy()
    gdm.reference.momentum(*expected[:3], lr=0.1, momentum=0.9)
    np.testing.assert_array_equal(memory, expected)


def test_an_overlap_names_both_entries(momentum_plan, memory):
    assert add_rows(momentum_plan, memory[3:]) == "OK"
    assert step(momentum_plan) == "OK"
    assert set_grad(momentum_plan, 1, buffer(memory[0])) == "ERR_OVERLAP"
    assert error_of(momentum_plan) == (1, 0)
    assert set_grad(momentum_plan, 0, buffer(memory[4])) == "ERR_OVERLAP"
    assert error_of(momentum_plan) == (0, 1)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("row", "other"), [(0, 0), (1, 0), (3, 1), (4, 1)])
def test_an_lr_scale_that_overlaps_is_refused(momentum_plan, memory, row, other):
    assert set_lr_scale(momentum_plan, 0, buffer(memory[row])) == "OK"
    assert add_rows(momentum_plan, memory[3:]) == "OK"
    assert step(momentum_plan) == "ERR_OVERLAP"
    assert error_of(momentum_plan) == (0, other)


@pytest.mark.parametrize(
    ("rule", "option", "value", "needs"),
    [("rmsprop", "centered", 1, 1), ("rmsprop", "momentum", 0.5, 2), ("adam", "amsgrad", 1, 2)],
)
def test_options_that_need_a_missing_state_are_refused(plan, memory, rule, option, value, needs):
    """Refused for an entry that has none; what was set goes on."""
    param, grad, *rows = memory[:5]
    have = [None if k == needs else row for k, row in enumerate(rows)]
    more = args(rule, **{option: value})
    assert new_group(plan, rule) == 0
    assert new_group(plan, rule, **{option: value}) == 1
    assert add_arrays(plan, 1, param, have, grad) == "ERR_NULL"
    assert add_arrays(plan, 0, param[:0], [], grad[:0]) == "OK"
    assert add_arrays(plan, 0, param, have, grad) == "OK"
    assert set_args(plan, 0, byref(more)) == "ERR_NULL"
    assert error_of(plan) == (1, NOWHERE)
    before = memory.copy()
    assert step(plan) == "OK"
    changed = [not np.array_equal(a, b) for a, b in zip(before, memory, strict=True)]
    assert changed[0]
    assert not changed[1]
    assert not changed[2 + needs]


def test_wrong_numbers_of_threads_are_refused(plan):
    for n in (-1, 257, 2**31 - 1, -(2**31)):
        assert set_num_threads(plan, n) == "ERR_THREADS"
    for n in (0, 1, 256):
        assert set_num_threads(plan, n) == "OK"


# ---- the learning rate -----------------------------------------------------------------------------------------------

F32_MAX = float(np.finfo(np.float32).max)
HALF_MORE = F32_MAX + 2.0**103  # the first number that is infinite in float32: half of its last digit more


@pytest.mark.parametrize("rule", list(RULE))
def test_options_of_a_plan_must_be_finite_in_the_compute_dtype(plan, rule):
    """Refused where the group has an entry of that dtype, and when one is added."""
    zeros = np.zeros(48).reshape(6, 8)
    singles = np.zeros((6, 8), np.float32)
    have = [list(x[1:4]) for x in (zeros, singles)]
    names = [name for name, _ in type(args(rule))._fields_]
    usual = {"betas": (0.9, 0.99)} if "betas" in names else {"momentum": 0.9} if "warmup_steps" in names else {}
    have = [states[: len(RULES[rule]["states"])] for states in have]
    for name, kind in RULES[rule]["options"].items():
        if kind != "not_negative":
            continue
        status = f"ERR_{rule.upper()}_ALPHA" if name == "alpha" else f"ERR_{name.upper()}"
        last = np.nextafter(HALF_MORE, 0.0)
        large = new_group(plan, rule, **usual, **{name: HALF_MORE})  # no entry has a dtype yet
        assert add_arrays(plan, large, singles[0], have[1], None) == status
        assert add_arrays(plan, large, zeros[0], have[0], None) == "OK"
        assert set_args(plan, large, byref(args(rule, **usual, **{name: 1e300}))) == "OK"
        small = new_group(plan, rule, **usual, **{name: last})
        assert add_arrays(plan, small, singles[0], have[1], None) == "OK"
        assert set_args(plan, small, byref(args(rule, **usual, **{name: HALF_MORE}))) == status
        assert set_args(plan, small, byref(args(rule, **usual, **{name: last}))) == "OK"


def test_setting_lr_is_setting_all_options_with_it(momentum_plan, memory):
    """The same as setting all options with another lr; wrong ones are refused and leave the last one."""
    expected = memory.copy()
    param, velocity, grad = expected[:3]
    assert step(momentum_plan) == "OK"
    velocity[:] = grad
    gdm.reference.sgd(param, grad, lr=0.1)
    for lr in (0.1, 0.25, 0.0, 0.5, 0.5):
        assert set_lr(momentum_plan, 0, lr) == "OK"
        for wrong in (-1.0, nan, inf, HALF_MORE):
            assert set_lr(momentum_plan, 0, wrong) == "ERR_LR"
        assert step(momentum_plan) == "OK"
        gdm.reference.momentum(param, velocity, grad, lr=lr, momentum=0.9)
        np.testing.assert_array_equal(memory, expected)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_factor_scales_lr_in_double(plan, memory, rule):
    """The learning rate times the factor, in double, decoupled decay too."""
    expected = memory.copy()
    options = {"betas": (0.9, 0.99), "eps": 1e-8} if rule == "adam" else {}
    options |= {"weight_decay": 0.3, "decoupled_weight_decay": 1}
    new_group(plan, rule, lr=0.1, **options)
    count = {"sgd": 0, "adam": 2}[rule]
    param, grad, *rows = memory
    assert add_arrays(plan, 0, param[:4], [row[:4] for row in rows[:count]], grad[:4], lr_factor=0.3) == "OK"
    assert add_arrays(plan, 0, param[4:], [row[4:] for row in rows[:count]], grad[4:]) == "OK"
    options["decoupled_weight_decay"] = True
    for k, factor in enumerate((0.3, 0.3, 0.7, 1.0)):
        assert set_lr_factor(plan, 0, factor) == "OK"
        assert step(plan) == "OK"
        own, other = ([row[part] for row in expected[: 2 + count]] for part in (slice(4), slice(4, 8)))
        for (param, grad, *states), lr in ((own, 0.1 * factor), (other, 0.1)):
            if rule == "sgd":
                gdm.reference.sgd(param, grad, lr=lr, **options)
            else:
                gdm.reference.adam(param, *states, grad, lr=lr, step=k + 1, **options)
    np.testing.assert_array_equal(memory, expected)


def test_a_factor_of_minus_0_is_not_0(plan):
    """0 - 0 is 0, and 0 - -0 is 0, but -0 - 0 is -0: whichever entry comes first."""
    params, grad = np.full((3, 100), -0.0), np.ones(100)
    new_group(plan, "sgd", lr=0.5)
    for param, factor in zip(params, (0.0, -0.0, 0.0), strict=True):
        assert add_arrays(plan, 0, param, [], grad, lr_factor=factor) == "OK"
    assert step(plan) == "OK"
    assert np.signbit(params).all(axis=1).tolist() == [True, False, True]


def test_lr_times_each_factor_must_be_finite(momentum_plan, memory):
    """lr times each factor must be finite, too, whichever of the two is set last."""
    for wrong in (-1.0, nan, inf, 1e300, 10 * HALF_MORE):
        assert set_lr_factor(momentum_plan, 0, wrong) == "ERR_LR_FACTOR"
        assert error_of(momentum_plan) == (0, NOWHERE)
    assert set_lr_factor(momentum_plan, 1, 1.0) == "ERR_INDEX"
    assert add_rows(momentum_plan, memory[3:]) == "OK"
    assert set_lr_factor(momentum_plan, 1, 1e30) == "OK"
    assert set_lr(momentum_plan, 0, 1e10) == "ERR_LR_FACTOR"
    assert error_of(momentum_plan) == (1, NOWHERE)
    assert set_args(momentum_plan, 0, byref(args("momentum", lr=1e10))) == "ERR_LR_FACTOR"
    assert set_lr_factor(momentum_plan, 1, 0.0) == "OK"
    assert set_lr(momentum_plan, 0, 1e10) == "OK"


# ---- entries that are left out, and counts of steps ------------------------------------------------------------------

NADAM = {"betas": (0.9, 0.99), "eps": 1e-8, "momentum_decay": 0.004}


class Expected:
    """An entry of NAdam as the reference has it."""

    def __init__(self, rows, lr=0.1):
        self.rows, self.lr, self.steps, self.product = rows.copy(), lr, 0, np.ones(1)

    def step(self):
        self.steps += 1
        gdm.reference.nadam(
            self.rows[0], *self.rows[1:3], self.rows[3], lr=self.lr, step=self.steps, mu_product=self.product, **NADAM
        )


def test_entries_that_are_left_out_do_not_change(plan):
    """Nothing of them changes, their counts and scalars neither; the others go on as if alone."""
    rng = np.random.default_rng(0)
    memory = rng.random((6, 4, 7), np.float32)
    new_group(plan, "nadam", lr=0.1, **NADAM)
    new_group(plan, "nadam", lr=0.2, **NADAM)
    expected = [Expected(rows, 0.1 if k < 4 else 0.2) for k, rows in enumerate(memory)]
    for k, (param, m, v, grad) in enumerate(memory):
        assert add_arrays(plan, k // 4, param, [m, v], grad if k else None) == "OK"
    # Some entries of a group, all of one, all of both, and all again.
    for present in ("1101 01", "0111 01", "1111 11", "1111 00", "0000 00", "0110 11", "1111 11", "0000 11", "1111 11"):
        given = [c == "1" for c in present.replace(" ", "")]
        for k, has_grad in enumerate(given):
            assert set_grad(plan, k, buffer(memory[k][3] if has_grad else None)) == "OK"
            if has_grad:
                expected[k].step()
        assert step(plan) == "OK"
        for k, own in enumerate(expected):
            np.testing.assert_array_equal(memory[k], own.rows, f"entry {k}")
            assert steps_of(plan, k) == own.steps
            assert scalars_of(plan, k) == own.product[0]
    assert group_steps(plan, 0) == group_steps(plan, 1) == 9


def test_the_first_step_is_each_entrys_own(plan, memory):
    """torch's form of momentum: the velocity becomes the gradient in the entry's first step, whenever that is."""
    new_group(plan, "momentum", momentum=0.9, dampening=0.5)
    assert add_arrays(plan, 0, memory[0], [memory[1]], memory[2]) == "OK"
    assert add_arrays(plan, 0, memory[3], [memory[4]], None) == "OK"
    assert step(plan) == "OK"
    assert step(plan) == "OK"
    assert steps_of(plan, 1) == 0
    assert set_grad(plan, 1, buffer(memory[5])) == "OK"
    assert step(plan) == "OK"
    np.testing.assert_array_equal(memory[4], memory[5])
    assert not np.array_equal(memory[1], memory[2])
    late = np.arange(24, dtype=np.float32).reshape(3, 8)
    assert add_arrays(plan, 0, late[0], [late[1]], late[2]) == "OK"
    assert step(plan) == "OK"
    np.testing.assert_array_equal(late[1], late[2])
    assert [steps_of(plan, k) for k in range(3)] == [4, 2, 1]
    # A count that is set says whether there has been a first step.
    assert set_progress(plan, 2, 7, None) == "OK"
    assert set_progress(plan, 0, 0, None) == "OK"
    before = late[1].copy()
    assert step(plan) == "OK"
    np.testing.assert_array_equal(late[1], np.float32(0.9) * before + np.float32(0.5) * late[2])
    np.testing.assert_array_equal(memory[1], memory[2])
    assert [steps_of(plan, k) for k in range(3)] == [1, 3, 8]


def test_a_count_that_is_set_to_0(plan, memory):
    """The next step is a first one again, for the whole group."""
    new_group(plan, "momentum", momentum=0.9, dampening=0.5)
    assert add_arrays(plan, 0, memory[0], [memory[1]], memory[2]) == "OK"
    for _ in range(3):
        assert step(plan) == "OK"
    assert not np.array_equal(memory[1], memory[2])
    assert set_progress(plan, 0, 0, None) == "OK"
    assert step(plan) == "OK"
    np.testing.assert_array_equal(memory[1], memory[2])
    assert steps_of(plan) == 1


def test_entries_alike_in_groups_that_differ(plan, memory):
    """What entries in a row share is of one group."""
    entries = memory.reshape(3, 2, 8)
    expected = entries.copy()
    for k, (param, grad) in enumerate(entries):
        assert new_group(plan, "sgd", lr=0.1 * (k + 1)) == k
        assert add_arrays(plan, k, param, [], grad, lr_factor=0.5) == "OK"
    assert step(plan) == "OK"
    for k, (param, grad) in enumerate(expected):
        gdm.reference.sgd(param, grad, lr=0.1 * (k + 1) * 0.5)
    np.testing.assert_array_equal(entries, expected)


def test_an_entry_that_is_added_late(plan):
    """It begins with the scalars of a first step."""
    memory = np.random.default_rng(5).random((2, 4, 7), np.float32)
    expected = [Expected(rows) for rows in memory]
    new_group(plan, "nadam", lr=0.1, **NADAM)
    for k in range(5):
        if k in (0, 2):
            param, m, v, grad = memory[k // 2]
            assert add_arrays(plan, 0, param, [m, v], grad) == "OK"
        assert step(plan) == "OK"
        for i, own in enumerate(expected[: 1 + (k > 1)]):
            own.step()
            np.testing.assert_array_equal(memory[i], own.rows)
            assert (steps_of(plan, i), scalars_of(plan, i)) == (own.steps, own.product[0])


def test_an_entry_that_is_added_beside_one_with_other_scalars(plan):
    """Though neither has made a step."""
    memory = np.ones((2, 4, 7), np.float32)
    new_group(plan, "nadam", lr=0.1, **NADAM)
    param, m, v, _ = memory[0]
    assert add_arrays(plan, 0, param, [m, v], None) == "OK"
    assert set_progress(plan, 0, 0, byref(c_double(0.5))) == "OK"
    assert step(plan) == "OK"  # of no entry, since this one has no gradient
    param, m, v, grad = memory[1]
    assert add_arrays(plan, 0, param, [m, v], grad) == "OK"
    assert [scalars_of(plan, k) for k in range(2)] == [0.5, 1.0]


def test_entries_left_out_by_several_threads(plan):
    """Whichever thread meets them."""
    task_type = ctypes.CFUNCTYPE(None, c_void_p, c_size_t)
    ran = []

    @ctypes.CFUNCTYPE(None, c_void_p, c_size_t, task_type, c_void_p)
    def backwards(_host, count, task, context):
        for i in reversed(range(count)):
            task(context, i)
        ran.append(count)

    new_group(plan, "sgd")
    sizes = [70_000, 64, 300_000, 64]
    entries = [np.ones((2, n), np.float32) for n in sizes]
    for param, grad in entries:
        assert add_arrays(plan, 0, param, [], grad) == "OK"
    assert set_num_threads(plan, 4) == "OK"
    set_parallel_for = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)(gdm.c_functions()["gdm_set_parallel_for"][0])
    set_parallel_for(ctypes.cast(backwards, c_void_p), None)
    try:
        for left_out in (None, 3, 0, 2):
            if left_out is not None:
                assert set_grad(plan, left_out, buffer(None)) == "OK"
            assert step(plan) == "OK"
    finally:
        set_parallel_for(None, None)
    assert len(ran) == 4
    assert [steps_of(plan, k) for k in range(4)] == [2, 4, 3, 1]
    for k, (param, _) in enumerate(entries):
        expected = np.ones(1, np.float32)
        for _ in range(steps_of(plan, k)):
            gdm.reference.sgd(expected, np.ones(1, np.float32), lr=0.1)
        np.testing.assert_array_equal(param, np.full(sizes[k], expected[0]))


@pytest.mark.parametrize(
    ("rule", "n", "is_large"),
    [("sgd", 100_000, False), ("sgd", 200_000, True), ("lamb", 50_000, False), ("lamb", 100_000, True)],
)
def test_only_large_steps_use_the_hosts_threads(plan, rule, n, is_large):
    """A host's threads cost time. A step on less than 1 MiB is done by the caller, though it has several pieces."""
    task_type = ctypes.CFUNCTYPE(None, c_void_p, c_size_t)
    ran = []

    @ctypes.CFUNCTYPE(None, c_void_p, c_size_t, task_type, c_void_p)
    def forwards(_host, count, task, context):
        for i in range(count):
            task(context, i)
        ran.append(count)

    options, states = ({"adapt": 1}, 2) if rule == "lamb" else ({}, 0)
    new_group(plan, rule, lr=0.5, **options)
    param, grad, *states = np.ones((2 + states, n), np.float32)
    assert add_arrays(plan, 0, param, states, grad) == "OK"
    assert set_num_threads(plan, 4) == "OK"
    set_parallel_for = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)(gdm.c_functions()["gdm_set_parallel_for"][0])
    set_parallel_for(ctypes.cast(forwards, c_void_p), None)
    try:
        assert step(plan) == "OK"
    finally:
        set_parallel_for(None, None)
    assert (param < 1).all()
    assert bool(ran) == is_large
    assert all(count > 1 for count in ran)


def test_each_entry_goes_on_as_if_alone_with_any_number_of_threads(plan):
    """Entries of all sizes, counts and factors: each as if alone, with any number of threads."""
    rng = np.random.default_rng(1)
    sizes = [1, 64, 5000, 0, 40_000, 64, 64, 100_000, 4096, 200_000, 300_000, 5]
    new_group(plan, "adam", lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    entries, expected = [], []
    for n in sizes:
        rows = rng.random((4, n), np.float32)
        entries.append(rows)
        expected.append(rows.copy())
    factors = [(1.0, 0.5)[k % 3 == 0] for k in range(len(sizes))]
    steps = [0] * len(sizes)
    for (param, m, v, grad), factor in zip(entries, factors, strict=True):
        assert add_arrays(plan, 0, param, [m, v], grad, lr_factor=factor) == "OK"
    for k in range(12):
        assert set_num_threads(plan, 1 + k % 8) == "OK"
        for i, n in enumerate(sizes):
            has_grad = bool(rng.random() < 0.7)
            assert set_grad(plan, i, buffer(entries[i][3] if has_grad and n else None)) == "OK"
            if has_grad and n:
                steps[i] += 1
                param, m, v, grad = expected[i]
                gdm.reference.adam(param, m, v, grad, lr=0.1 * factors[i], betas=(0.9, 0.99), eps=1e-8, step=steps[i])
        assert step(plan) == "OK"
    assert [steps_of(plan, i) for i in range(len(sizes))] == steps
    for i, own in enumerate(expected):
        np.testing.assert_array_equal(entries[i], own, f"entry {i}")


@pytest.mark.parametrize("steps", [0, 1, 5, 2**24 - 1, 2**24, 2**24 + 5, 2**33 + 7])
@pytest.mark.parametrize("rule", ["adam", "nadam", "adagrad"])
def test_a_plan_counts_as_a_caller_does(plan, rule, steps):
    """A step of a plan is the function's with that `step`: also where powers are kept from one step to the next."""
    memory = np.random.default_rng(2).random((4, 9))
    expected = memory.copy()
    options = {"lr": 0.1, "eps": 1e-8}
    options |= {"lr_decay": 0.01} if rule == "adagrad" else {"betas": (0.9, 1 - 2.0**-30)}
    new_group(plan, rule, **options)
    count = 1 if rule == "adagrad" else 2
    assert add_arrays(plan, 0, memory[0], list(memory[1 : 1 + count]), memory[3]) == "OK"
    assert set_progress(plan, 0, steps, byref(c_double(1.0)) if rule == "nadam" else None) == "OK"
    more = {"mu_product": np.ones(1), "momentum_decay": 0.0} if rule == "nadam" else {}
    for k in range(6):
        assert step(plan) == "OK"
        states = expected[1 : 1 + count]
        getattr(gdm.reference, rule)(expected[0], *states, expected[3], step=steps + k + 1, **options, **more)
        if k == 2:
            options["lr"] = 0.05
            assert set_lr(plan, 0, 0.05) == "OK"
        if k == 3 and rule != "adagrad":
            options["betas"] = (0.8, 0.99)
            assert set_args(plan, 0, byref(args(rule, **options))) == "OK"
    np.testing.assert_array_equal(memory, expected)


def test_progress_can_be_taken_over_from_another_plan(plan, memory):
    """Counts and scalars are set where another plan ended; entries may differ."""
    new_group(plan, "nadam", lr=0.1, **NADAM)
    rows = [memory[:4, :3], memory[:4, 3:6], memory[:4, 6:]]
    entries = [np.ascontiguousarray(x) for x in rows]
    expected = [Expected(x) for x in entries]
    for (param, m, v, grad), own, (steps, product) in zip(
        entries, expected, [(6, 0.25), (9, 0.125), (6, 0.5)], strict=True
    ):
        assert add_arrays(plan, 0, param, [m, v], grad) == "OK"
        own.steps, own.product[0] = steps, product
    assert set_group_steps(plan, 0, 11) == "OK"
    for k, own in enumerate(expected):
        assert set_progress(plan, k, own.steps, byref(c_double(own.product[0]))) == "OK"
        assert (steps_of(plan, k), scalars_of(plan, k)) == (own.steps, own.product[0])
    assert group_steps(plan) == 11
    for _ in range(3):
        assert step(plan) == "OK"
        for own in expected:
            own.step()
    for k, own in enumerate(expected):
        np.testing.assert_array_equal(entries[k], own.rows)
        assert (steps_of(plan, k), scalars_of(plan, k)) == (own.steps, own.product[0])
    assert group_steps(plan) == 14
    assert set_group_steps(plan, 0, 2) == "OK"
    assert group_steps(plan) == 2
    assert steps_of(plan, 0) == expected[0].steps


@pytest.mark.usefixtures("untouched")
def test_wrong_progress_is_refused(plan, memory):
    new_group(plan, "nadam", lr=0.1, **NADAM)
    assert add_arrays(plan, 0, memory[0], [memory[1], memory[2]], memory[3]) == "OK"
    for product in (nan, -1.0, 1.5, inf):
        assert set_progress(plan, 0, 7, byref(c_double(product))) == "ERR_MU_PRODUCT"
        assert error_of(plan) == (0, NOWHERE)
        assert steps_of(plan) == 0
    assert set_progress(plan, 0, 7, None) == "ERR_NULL"
    for index in (1, 2**64 - 1):
        assert set_progress(plan, index, 7, byref(c_double(1.0))) == "ERR_INDEX"
        assert get_progress(plan, index, None, None) == "ERR_INDEX"
    assert steps_of(plan) == 0


def test_entries_without_elements_make_steps(plan):
    """Such an entry makes steps if it has a gradient: an address is enough."""
    new_group(plan, "momentum", momentum=0.9)
    empty = np.zeros(0, np.float32)
    assert add_arrays(plan, 0, empty, [empty], empty) == "OK"
    assert add_arrays(plan, 0, empty, [None], None) == "OK"
    for _ in range(2):
        assert step(plan) == "OK"
    assert [steps_of(plan, k) for k in range(2)] == [2, 0]


def test_entries_without_elements_lie_nowhere(plan):
    """Also if their addresses are in the middle of a buffer that a step writes to."""
    new_group(plan, "sgd")
    param, grad = np.ones((2, 16), np.float32)
    inside = param[4:].ctypes.data  # of param[4:4] NumPy says where param begins
    assert add_arrays(plan, 0, param, [], grad) == "OK"
    assert add(plan, byref(entry_args(0, inside, [], inside + 4, n=0)), byref(c_size_t())) == "OK"
    assert step(plan) == "OK"
    assert set_grad(plan, 1, buffer(inside + 8)) == "OK"
    assert step(plan) == "OK"
    assert [steps_of(plan, k) for k in range(2)] == [2, 2]


def test_a_group_may_have_entries_of_both_dtypes(plan):
    new_group(plan, "momentum", momentum=0.9)
    singles = np.random.default_rng(3).random((3, 3000), np.float32)
    doubles = np.random.default_rng(4).random((3, 3000))
    expected = [singles.copy(), doubles.copy()]
    for param, velocity, _ in (singles, doubles):
        assert add_arrays(plan, 0, param, [velocity], None) == "OK"
    for k, rows in enumerate((singles, doubles)):
        assert set_grad(plan, k, buffer(rows[2])) == "OK"
    assert set_grad(plan, 0, buffer(doubles[2])) == "ERR_DTYPE"  # it would be narrowed
    for _ in range(2):
        assert step(plan) == "OK"
    for param, velocity, grad in expected:
        velocity[:] = grad
        gdm.reference.sgd(param, grad, lr=0.1)
        gdm.reference.momentum(param, velocity, grad, lr=0.1, momentum=0.9)
    np.testing.assert_array_equal(singles, expected[0])
    np.testing.assert_array_equal(doubles, expected[1])


# ---- scalars that depend on the learning rate ------------------------------------------------------------------------

ASGD = {"lambd": 0.5, "alpha": 0.75, "t0": 2.0}


class Averaged:
    """An entry of ASGD as the reference has it."""

    def __init__(self, rows):
        self.rows, self.steps, self.eta, self.mu = rows.copy(), 0, np.zeros(1), np.ones(1)

    def step(self, lr):
        self.steps += 1
        scalars = {"eta": self.eta, "mu": self.mu}
        gdm.reference.asgd(self.rows[0], self.rows[1], self.rows[2], lr=lr, step=self.steps, **scalars, **ASGD)


def test_each_learning_rate_of_asgd_falls_from_its_own(plan):
    """An entry with a factor has an eta of its own, from its first step on or from when the factor is set; and eta
    follows from the learning rate of the step before."""
    memory = np.random.default_rng(0).random((5, 3, 7))
    expected, factors = [Averaged(rows) for rows in memory], [1.0, 0.5, 1.0, 2.0, 1.0]
    new_group(plan, "asgd", lr=0.1, **ASGD)

    def follow(lr, present=(True,) * 5):
        for k, (own, rows) in enumerate(zip(expected, memory, strict=True)):
            assert set_grad(plan, k, buffer(rows[2] if present[k] else None)) == "OK"
            if present[k]:
                own.step(lr * factors[k])
        assert step(plan) == "OK"
        scalars = (ctypes.c_double * 2)()
        for k, (own, rows) in enumerate(zip(expected, memory, strict=True)):
            np.testing.assert_array_equal(rows, own.rows, f"entry {k}")
            assert get_progress(plan, k, None, scalars) == "OK"
            assert list(scalars) == [own.eta[0], own.mu[0]], k

    for rows, factor in zip(memory, factors, strict=True):
        assert add_arrays(plan, 0, rows[0], [rows[1]], rows[2], lr_factor=factor) == "OK"
    follow(0.1)
    follow(0.1, (True, False, True, True, False))
    assert set_lr(plan, 0, 0.7) == "OK"
    follow(0.7)
    factors[0], factors[3] = 3.0, 1.0
    for k in (0, 3):
        assert set_lr_factor(plan, k, factors[k]) == "OK"
    for lr in (0.7, 0.2, 0.2, 0.0, 0.3):
        assert set_lr(plan, 0, lr) == "OK"
        follow(lr)
