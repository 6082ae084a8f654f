"""Rounding modes and flush-to-zero that somebody has set in a thread change no result, and are there afterwards."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import threading
from ctypes import byref, c_double, c_size_t, c_void_p

import numpy as np
import pytest

import gdm
from cheader import ARGS, RULE, args
from cplan import (
    BF16,
    F16,
    F32,
    F64,
    INT8,
    NEAREST,
    SKIP,
    STOCHASTIC,
    accumulate,
    add_arrays,
    add_group,
    buffer,
    destroy,
    function,
    new_group,
    new_plan,
    reduce,
    report_of,
    set_args,
    set_lr,
    set_num_threads,
    set_progress,
    set_scale,
    set_step_args,
    step,
    step_args,
)
from cstages import Plan, Stored
from support import RULES

HELPER = """
#if defined __x86_64__
#include <immintrin.h>
unsigned long get_mode(void) { return _mm_getcsr() & 0xffc0; }
void set_mode(unsigned long mode) { _mm_setcsr((unsigned)mode); }
#else
unsigned long get_mode(void) { unsigned long mode; __asm__ volatile("mrs %0, fpcr" : "=r"(mode)); return mode; }
void set_mode(unsigned long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif
"""
MODES = {
    "x86_64": {
        "flush to zero": 0x9F80,
        "denormals are zero": 0x1FC0,
        "both": 0x9FC0,
        "down": 0x3F80,
        "up": 0x5F80,
        "towards zero": 0x7F80,
        "invalid operations trap": 0x1F00,
        "divisions by zero trap": 0x1D80,
    },
    "aarch64": {"flush to zero": 1 << 24, "up": 1 << 22, "down": 2 << 22, "towards zero": 3 << 22},
}.get(platform.machine(), {})


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("helper")
    (folder / "mode.c").write_text(HELPER)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", folder / "mode.c", "-o", folder / "mode.so"], check=True)
    library = ctypes.CDLL(str(folder / "mode.so"))
    library.get_mode.restype = ctypes.c_ulong
    library.set_mode.argtypes = [ctypes.c_ulong]
    return library


@pytest.fixture(params=MODES)
def in_mode(request, helper):
    """Calls a function in a mode that is not the default one, and asserts that the mode is still there."""

    def call(run, *arguments):
        default = helper.get_mode()
        helper.set_mode(MODES[request.param])
        result = run(*arguments)
        after = helper.get_mode()
        helper.set_mode(default)
        assert after == MODES[request.param]
        return result

    return call


def numbers(n: int, dtype=np.float32) -> np.ndarray:
    """Rows of numbers, many of them subnormal or near, some infinite or NaN."""
    rng = np.random.default_rng(n)
    tiny = float(np.finfo(dtype).tiny)
    rows = rng.standard_normal((5, n)) * np.where(rng.random((5, n)) < 0.5, tiny, 1.0)
    rows[2:4] = np.abs(rows[2:4])
    rows[0, ::50], rows[1, ::70], rows[4, ::90] = np.inf, -np.inf, np.nan
    return rows.astype(dtype)


OPTIONS = {
    "momentum": {"momentum": 0.9, "dampening": 0.1, "weight_decay": 1 / 3},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "step": 7},
    "nadam": {"betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 0.004, "step": 7},
    "asgd": {"lambd": 0.1, "alpha": 0.7, "t0": 1, "step": 7},
    "ademamix": {"betas": (0.9, 0.999, 0.9999), "eps": 1e-8, "alpha": 5, "t_alpha": 50, "t_beta3": 50, "step": 7},
}
OPTIONS["schedule_free_sgd"] = {"momentum": 0.9, "warmup_steps": 9, "r": 0.7, "weight_lr_power": 1.5, "step": 7}
OPTIONS["schedule_free_adamw"] = {"betas": (0.9, 0.999), "eps": 1e-8, "warmup_steps": 9, "r": 0.7, "step": 7}
STATES = {"momentum": 1, "adam": 2, "nadam": 2, "asgd": 1, "ademamix": 3}
STATES |= {"schedule_free_sgd": 1, "schedule_free_adamw": 2}


@pytest.mark.parametrize("rule", OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [64, 5000])
def test_functions_compute_in_the_default_mode_and_put_back_the_callers(in_mode, rule, dtype, n):
    rows = numbers(n, dtype)
    expected = rows.copy()
    used = list(range(1 + STATES[rule]))
    pointers = [c_void_p] * (len(used) + 1 + (rule == "adam"))
    suffix = "f32" if dtype == np.float32 else "f64"
    call = function(f"{rule}_{suffix}", *pointers, c_size_t, c_void_p)

    def run(memory):
        scalars = {name: c_double(0.9) for name in RULES[rule]["scalars"]}
        more = {name: ctypes.addressof(x) for name, x in scalars.items()}
        buffers = [memory[k].ctypes.data for k in used]
        buffers += [None] * (rule == "adam") + [memory[4].ctypes.data]
        status = call(*buffers, n, byref(args(rule, **OPTIONS[rule], **more)))
        return status, [x.value for x in scalars.values()]

    default = run(expected)
    assert default[0] == "OK"
    assert in_mode(run, rows) == default
    np.testing.assert_array_equal(rows, expected)


@pytest.fixture
def plans():
    made = [new_plan(), new_plan()]
    yield made
    for plan in made:
        destroy(plan)


def make_plan(plan, rule: str, memory: list[np.ndarray]) -> None:
    options = {name: x for name, x in OPTIONS[rule].items() if name != "step"}
    new_group(plan, rule, **options)
    for k, rows in enumerate(memory):
        states = list(rows[1 : 1 + STATES[rule]])
        assert add_arrays(plan, 0, rows[0], states, rows[4], lr_factor=1 / (1 + k)) == "OK"


@pytest.mark.parametrize("rule", OPTIONS)
@pytest.mark.parametrize("threads", [1, 4])
def test_plans_compute_in_the_default_mode_in_every_thread(in_mode, plans, rule, threads):
    """Those who work for the caller compute in the default mode, too, whenever they have been started."""
    memory = [[numbers(n) for n in (64, 300_000, 60_000)] for _ in plans]
    for plan, its in zip(plans, memory, strict=True):
        make_plan(plan, rule, its)
    assert set_num_threads(plans[0], 1) == "OK"
    assert set_num_threads(plans[1], threads) == "OK"
    for k in range(10 if threads > 1 else 2):
        assert step(plans[0]) == "OK"
        assert in_mode(step, plans[1]) == "OK"
        if k == 0:
            assert set_lr(plans[0], 0, 1 / 3) == "OK"
            assert in_mode(set_lr, plans[1], 0, 1 / 3) == "OK"
    for one, other in zip(*memory, strict=True):
        np.testing.assert_array_equal(one, other)


def test_options_are_checked_in_the_default_mode(in_mode, plans):
    """Negative numbers that are subnormal are 0 in some modes, and would be legal."""
    good, bad, group = args("nadam"), args("nadam", eps=-5e-324), c_size_t()
    for call in (lambda run, *given: run(*given), in_mode):
        assert call(add_group, plans[0], RULE["nadam"], byref(bad), byref(group)) == "ERR_EPS"
    assert add_group(plans[0], RULE["nadam"], byref(good), byref(group)) == "OK"
    rows = numbers(64)
    assert add_arrays(plans[0], 0, rows[0], [rows[2], rows[3]], rows[1]) == "OK"
    assert in_mode(set_args, plans[0], 0, byref(bad)) == "ERR_EPS"
    assert in_mode(set_progress, plans[0], 0, 1, byref(c_double(-5e-324))) == "ERR_MU_PRODUCT"
    assert in_mode(set_scale, plans[0], c_double(float("nan"))) == "ERR_STEP_ARGS"  # and nothing traps


def special(name: str, n: int) -> np.ndarray:
    """Numbers for an entry of cstages, many of them subnormal in one of the dtypes."""
    rng = np.random.default_rng(len(name))
    return rng.standard_normal(n) * np.exp2(rng.choice([-149, -126, -24, -14, 0], n))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("rounding", [NEAREST, STOCHASTIC], ids=["nearest", "stochastic"])
def test_stages_compute_in_the_default_mode_in_every_thread(in_mode, threads, rounding):
    """The decision about the step, too: the norm and the weight of the average."""
    around = {"max_grad_norm": 1 / 3, "max_grad_value": 0.1, "average_decay": 1 / 3, "average_correction": 1}
    with Plan() as one, Plan() as other:
        for plan in (one, other):
            group = plan.group("adam")
            for param, grad, state in ((BF16, F16, INT8), (F32, BF16, F16), (F64, F16, INT8)):
                more = {"copy": F16, "average": BF16, "fill": special}
                plan.entry(group, 5000, param=param, grad=grad, state=state, **more)
            plan.entry(group, 300_000 if threads > 1 else 300, param=BF16, split=True, fill=special)
            assert set_num_threads(plan.plan, threads if plan is other else 1) == "OK"
            fields = step_args(**around, scale=1 / 3, rounding=rounding, nonfinite=SKIP)
            set_them = (set_step_args, plan.plan, byref(fields))
            assert (in_mode(*set_them) if plan is other else set_step_args(*set_them[1:])) == "OK"
        for _ in range(2):
            assert step(one.plan) == "OK"
            assert in_mode(step, other.plan) == "OK"
        assert report_of(one.plan).grad_norm == report_of(other.plan).grad_norm
        for a, b in zip(one.entries, other.entries, strict=True):
            b.check([x for stored in a.buffers for x in stored.arrays])


@pytest.mark.parametrize(("total", "grad"), [(BF16, F16), (F16, BF16), (F32, F16), (F64, F32)])
def test_gradients_are_accumulated_in_the_default_mode(in_mode, total, grad):
    compute = np.float64 if total == F64 else np.float32
    totals = [Stored(special("total", 5000), total, compute) for _ in range(2)]
    grads = Stored(special("grad", 5000), grad, compute)

    def run(into):
        return accumulate(byref(into.buffer), byref(grads.buffer), byref(c_size_t(5000)), 1, 1 / 3)

    assert run(totals[0]) == "OK"
    assert in_mode(run, totals[1]) == "OK"
    np.testing.assert_array_equal(totals[0].memory, totals[1].memory)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_reductions_of_narrow_buffers_compute_in_the_default_mode(in_mode, dtype):
    """Of subnormal numbers."""
    x = Stored(special("x", 5000), dtype, np.float32)

    def run(kind):
        result = c_double()
        assert reduce(kind, byref(x.buffer), byref(c_size_t(5000)), 1, byref(result)) == "OK"
        return result.value

    for kind in range(3):
        assert in_mode(run, kind) == run(kind)


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reductions_compute_in_the_default_mode(in_mode, kind, dtype):
    x = np.random.default_rng(0).standard_normal(20_000).astype(dtype)

    def run():
        result = c_double()
        assert reduce(kind, byref(buffer(x)), byref(c_size_t(x.size)), 1, byref(result)) == "OK"
        return result.value

    assert in_mode(run) == run()


TASK = ctypes.CFUNCTYPE(None, c_void_p, c_size_t)
PARALLEL_FOR = ctypes.CFUNCTYPE(None, c_void_p, c_size_t, TASK, c_void_p)


@pytest.mark.parametrize("mode", MODES)
def test_the_threads_of_a_host_get_their_mode_back(helper, plans, mode):
    """A host's threads get their own mode back."""
    left: list[int] = []

    def work(count, task, context):
        helper.set_mode(MODES[mode])
        for i in range(count):
            task(context, i)
        left.append(helper.get_mode())

    @PARALLEL_FOR
    def parallel_for(_host, count, task, context):
        thread = threading.Thread(target=work, args=(count, task, context))
        thread.start()
        thread.join()

    memory = [[numbers(n) for n in (64, 300_000, 60_000)] for _ in plans]
    for plan, its in zip(plans, memory, strict=True):
        make_plan(plan, "adam", its)
    assert set_num_threads(plans[0], 1) == "OK"
    assert set_num_threads(plans[1], 4) == "OK"
    assert step(plans[0]) == "OK"
    set_parallel_for = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)(gdm.c_functions()["gdm_set_parallel_for"][0])
    set_parallel_for(ctypes.cast(parallel_for, c_void_p), None)
    try:
        assert step(plans[1]) == "OK"
    finally:
        set_parallel_for(None, None)
    assert left == [MODES[mode]]
    for one, other in zip(*memory, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_rule_that_keeps_scalars_is_here():
    """A rule whose host part computes with a scalar belongs into OPTIONS."""
    for rule, struct in ARGS.items():
        pointers = [name for name, type in struct._fields_ if type is c_void_p and name != "lr_scale"]
        assert not pointers or rule in OPTIONS
