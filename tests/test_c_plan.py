"""The plan functions of gdm.h, through ctypes: wrong arguments give a status that says so, and nothing is written."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_double, c_int, c_size_t, c_uint64, c_void_p

import numpy as np
import pytest

import gdm
from cheader import RULE, STATUS, args

F32, F64 = 0, 1
nan, inf = float("nan"), float("inf")


def function(name: str, *types):
    call = ctypes.CFUNCTYPE(c_int, *types)(gdm.c_functions()[f"gdm_plan_{name}"][0])
    return lambda *arguments: STATUS[call(*arguments)]


create = function("create", POINTER(c_void_p))
destroy = ctypes.CFUNCTYPE(None, c_void_p)(gdm.c_functions()["gdm_plan_destroy"][0])
add_group = function("add_group", c_void_p, c_int, c_void_p, POINTER(c_size_t))
set_args = function("set_args", c_void_p, c_size_t, c_void_p)
add = function("add", c_void_p, c_size_t, c_int, c_void_p, POINTER(c_void_p), c_void_p, c_size_t, POINTER(c_size_t))
set_grad = function("set_grad", c_void_p, c_size_t, c_void_p)
set_lr_scale = function("set_lr_scale", c_void_p, c_size_t, c_void_p)
set_num_threads = function("set_num_threads", c_void_p, c_int)
step = function("step", c_void_p)
get_progress = function("get_progress", c_void_p, c_size_t, POINTER(c_uint64), POINTER(c_double))
set_progress = function("set_progress", c_void_p, c_size_t, c_uint64, c_double)


def address(x):
    return None if x is None else x.ctypes.data if isinstance(x, np.ndarray) else x


def states(*arrays):
    return (c_void_p * len(arrays))(*map(address, arrays))


def add_arrays(plan, group, param, state, grad, n=None, dtype=F32) -> str:
    """gdm_plan_add of a rule with one state."""
    n = param.size if n is None else n
    return add(plan, group, dtype, address(param), states(state), address(grad), n, byref(c_size_t()))


def steps_made(plan, group=0) -> int:
    steps = c_uint64(999)
    assert get_progress(plan, group, byref(steps), None) == "OK"
    return steps.value


@pytest.fixture
def plan():
    """An empty plan."""
    plan = c_void_p()
    assert create(byref(plan)) == "OK"
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


@pytest.fixture
def momentum_plan(plan, memory):
    """A plan with a group of momentum, and one parameter with all it needs: rows 0 (param), 1 (velocity), 2 (grad)."""
    assert add_group(plan, RULE["momentum"], byref(args("momentum", momentum=0.9)), byref(c_size_t())) == "OK"
    assert add_arrays(plan, 0, *memory[:3]) == "OK"
    return plan


def test_numbers(momentum_plan, memory):
    """What the reference says, first step and later ones, after all the refusals one likes."""
    assert add_arrays(momentum_plan, 0, *memory[3:]) == "OK"
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
    assert steps_made(momentum_plan) == 3


def test_null_plan(memory):
    out, good, row = byref(c_size_t()), byref(args("sgd")), memory[0].ctypes.data
    assert create(None) == "ERR_NULL"
    destroy(None)
    for status in (
        add_group(None, RULE["sgd"], good, out),
        set_args(None, 0, good),
        add(None, 0, F32, row, None, None, 8, out),
        set_grad(None, 0, row),
        set_lr_scale(None, 0, row),
        set_num_threads(None, 1),
        step(None),
        get_progress(None, 0, None, None),
        set_progress(None, 0, 0, 1.0),
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
    ("lion", "betas", (0.9, 1.0), "ERR_BETAS"),
    ("sgd", "lr_scale", 1, "ERR_LR_SCALE"),
    *(("sgd", "size", x, "ERR_STRUCT_SIZE") for x in (0, 8, 5000, 2**64 - 1)),
]


@pytest.mark.parametrize(("rule", "option", "value", "status"), WRONG)
def test_wrong_options(plan, rule, option, value, status):
    group = c_size_t(77)
    assert add_group(plan, RULE[rule], byref(args(rule, **{option: value})), byref(group)) == status
    assert group.value == 77
    assert add_group(plan, RULE[rule], byref(args(rule)), byref(group)) == "OK"
    assert group.value == 0
    assert set_args(plan, 0, byref(args(rule, **{option: value}))) == status


def test_wrong_groups(plan):
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
        assert get_progress(plan, index, None, None) == "ERR_INDEX"
        assert set_progress(plan, index, 0, 1.0) == "ERR_INDEX"


@pytest.mark.usefixtures("untouched")
def test_wrong_parameters(momentum_plan, memory):
    """None of them becomes a part of the plan."""
    param, state, grad = memory[3:]
    odd = memory.view(np.uint8).ravel()[1:]
    for status, arguments in [
        ("ERR_INDEX", (1, param, state, grad)),
        ("ERR_INDEX", (2**64 - 1, param, state, grad)),
        ("ERR_INDEX", (0, param, state, grad, 8, 2)),
        ("ERR_INDEX", (0, param, state, grad, 8, -1)),
        ("ERR_NULL", (0, None, state, grad, 8)),
        ("ERR_NULL", (0, param, None, grad)),
        ("ERR_ALIGNMENT", (0, odd, state, grad, 8)),
        ("ERR_ALIGNMENT", (0, param, odd, grad, 8)),
        ("ERR_ALIGNMENT", (0, param, state, odd, 8)),
        ("ERR_ALIGNMENT", (0, memory.ravel()[1:], state, grad, 4, F64)),
        ("ERR_LENGTH", (0, param, state, grad, 2**62)),
        ("ERR_LENGTH", (0, param, state, grad, 2**64 - 1)),
        ("ERR_LENGTH", (0, 2**64 - 32, state, grad, 9)),
        ("ERR_LENGTH", (0, param, 2**64 - 32, grad, 9)),
        ("ERR_LENGTH", (0, param, state, 2**64 - 32, 9)),
    ]:
        assert add_arrays(momentum_plan, *arguments) == status, arguments
    out = c_size_t(77)
    row = param.ctypes.data
    assert add(momentum_plan, 0, F32, row, None, None, 8, byref(out)) == "ERR_NULL"
    assert add(momentum_plan, 0, F32, row, states(state), None, 8, None) == "ERR_NULL"
    assert out.value == 77
    assert add(momentum_plan, 0, F32, row, states(state), None, 8, byref(out)) == "OK"
    assert out.value == 1
    assert add_arrays(momentum_plan, 0, None, None, None, 0) == "OK"  # nothing to do needs no buffers


def test_a_plan_goes_on_after_a_lack_of_memory(plan, memory):
    """A parameter for which there was no room for all that a plan notes leaves nothing behind."""
    assert add_group(plan, RULE["momentum"], byref(args("momentum", momentum=0.9)), byref(c_size_t())) == "OK"
    assert add_arrays(plan, 0, *memory[:3], 2**60) == "ERR_MEMORY"
    for rows in (memory[:3], memory[3:]):
        assert add_arrays(plan, 0, *rows) == "OK"
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
def test_overlap(momentum_plan, memory, rows):
    """Two buffers of which one is written: found before anything is, at each attempt."""
    assert add_arrays(momentum_plan, 0, *(memory[row] for row in rows)) == "OK"
    for _ in range(2):
        assert step(momentum_plan) == "ERR_OVERLAP"
    assert steps_made(momentum_plan) == 0


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("offset", [1, 7, -7])
def test_partial_overlap(momentum_plan, memory, offset):
    start = memory[0 if offset > 0 else 3].ctypes.data + 4 * offset
    assert add_arrays(momentum_plan, 0, start, memory[4], memory[5], 8) == "OK"
    assert step(momentum_plan) == "ERR_OVERLAP"


def test_gradients_may_share(momentum_plan, memory):
    assert add_arrays(momentum_plan, 0, memory[3], memory[4], memory[2]) == "OK"
    assert step(momentum_plan) == "OK"


@pytest.mark.usefixtures("untouched")
def test_a_gradient_that_is_missing(momentum_plan, memory):
    assert add_arrays(momentum_plan, 0, memory[3], memory[4], None) == "OK"
    assert step(momentum_plan) == "ERR_NULL"
    assert steps_made(momentum_plan) == 0


@pytest.mark.usefixtures("untouched")
def test_an_overlap_behind_a_gradient_that_is_missing(plan, memory):
    """The first refusal does not hide the second."""
    assert add_group(plan, RULE["momentum"], byref(args("momentum")), byref(c_size_t())) == "OK"
    assert add_arrays(plan, 0, memory[0], memory[1], None) == "OK"
    assert add_arrays(plan, 0, memory[3], memory[4], memory[0]) == "OK"
    assert step(plan) == "ERR_NULL"
    assert set_grad(plan, 0, memory[2].ctypes.data) == "OK"
    assert step(plan) == "ERR_OVERLAP"


@pytest.mark.parametrize("set_read", [set_grad, set_lr_scale])
def test_wrong_buffers_that_are_read(momentum_plan, memory, set_read):
    assert step(momentum_plan) == "OK"
    before = memory.copy()
    for index in (1, 2**64 - 1):
        assert set_read(momentum_plan, index, memory[5].ctypes.data) == "ERR_INDEX"
    assert set_read(momentum_plan, 0, memory[5].ctypes.data + 2) == "ERR_ALIGNMENT"
    assert set_read(momentum_plan, 0, 2**64 - 16) == "ERR_LENGTH"
    for row in (0, 1):
        assert set_read(momentum_plan, 0, memory[row].ctypes.data + 28) == "ERR_OVERLAP"
    np.testing.assert_array_equal(memory, before)
    # The refusals have left what was there.
    assert step(momentum_plan) == "OK"
    expected = before.copy()
    gdm.reference.momentum(*expected[:3], lr=0.1, momentum=0.9)
    np.testing.assert_array_equal(memory, expected)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("row", [0, 1, 3, 4])
def test_lr_scale_that_overlaps(momentum_plan, memory, row):
    assert set_lr_scale(momentum_plan, 0, memory[row].ctypes.data) == "OK"
    assert add_arrays(momentum_plan, 0, *memory[3:]) == "OK"
    assert step(momentum_plan) == "ERR_OVERLAP"


@pytest.mark.parametrize(
    ("rule", "option", "value", "needs"),
    [("rmsprop", "centered", 1, 1), ("rmsprop", "momentum", 0.5, 2), ("adam", "amsgrad", 1, 2)],
)
def test_options_that_need_another_state(plan, memory, rule, option, value, needs):
    """Refused for a parameter that has none; what was set goes on."""
    param, grad, *rows = memory[:5]
    have = states(*(None if k == needs else row for k, row in enumerate(rows)))
    more = args(rule, **{option: value})
    assert add_group(plan, RULE[rule], byref(args(rule)), byref(c_size_t())) == "OK"
    assert add_group(plan, RULE[rule], byref(more), byref(c_size_t())) == "OK"
    arguments = (F32, address(param), have, address(grad), 8, byref(c_size_t()))
    assert add(plan, 1, *arguments) == "ERR_NULL"
    assert add(plan, 0, *arguments) == "OK"
    assert set_args(plan, 0, byref(more)) == "ERR_NULL"
    before = memory.copy()
    assert step(plan) == "OK"
    changed = [not np.array_equal(a, b) for a, b in zip(before, memory, strict=True)]
    assert changed[0]
    assert not changed[1]
    assert not changed[2 + needs]


def test_wrong_numbers_of_threads(plan):
    for n in (-1, 257, 2**31 - 1, -(2**31)):
        assert set_num_threads(plan, n) == "ERR_THREADS"
    for n in (0, 1, 256):
        assert set_num_threads(plan, n) == "OK"


def test_wrong_progress(momentum_plan):
    for product in (nan, -1.0, 1.5, inf):
        assert set_progress(momentum_plan, 0, 7, product) == "ERR_MU_PRODUCT"
        assert steps_made(momentum_plan) == 0


def test_progress_goes_on(plan, memory):
    """NAdam's count and product are set where another plan ended."""
    param, exp_avg, exp_avg_sq, grad = memory[:4]
    expected = memory.copy()
    options = {"betas": (0.9, 0.99), "eps": 1e-8, "momentum_decay": 0.004}
    assert add_group(plan, RULE["nadam"], byref(args("nadam", **options)), byref(c_size_t())) == "OK"
    arguments = (F32, address(param), states(exp_avg, exp_avg_sq), address(grad), 8, byref(c_size_t()))
    assert add(plan, 0, *arguments) == "OK"
    assert set_progress(plan, 0, 6, 0.25) == "OK"
    assert step(plan) == "OK"
    steps, product = c_uint64(), c_double()
    assert get_progress(plan, 0, byref(steps), byref(product)) == "OK"
    assert steps.value == 7

    p, m, v, g = expected[:4]
    direct = args("nadam", **options, step=7, mu_product=ctypes.addressof(started := c_double(0.25)))
    address_of, _ = gdm.c_functions()["gdm_nadam_f32"]
    call = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p)(address_of)
    assert STATUS[call(*(x.ctypes.data for x in (p, m, v, g)), 8, byref(direct))] == "OK"
    assert product.value == started.value
    np.testing.assert_array_equal(memory, expected)
