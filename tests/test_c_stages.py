"""Storage dtypes and stages in C plans: every step gives the bits of the rules and the stages in NumPy."""

from __future__ import annotations

import ctypes
import itertools
from ctypes import byref, c_size_t, c_void_p

import numpy as np
import pytest

import cstages
from cheader import args
from cplan import (
    BF16,
    F16,
    F32,
    F64,
    INT8,
    NEAREST,
    REFUSE,
    SKIP,
    STOCHASTIC,
    set_args,
    set_grad,
    set_lr,
    set_lr_factor,
    set_num_threads,
    step,
)
from cstages import FLOATS, NAME, Plan, Stored, c_options, numbers, use_parallel_for
from gdm.optimizer.state import SQUARES
from support import RULES, Guarded, at_once, special_values

BLOCK, PIECE = 4096, 16384


@pytest.fixture
def plan():
    with Plan() as made:
        yield made


def of_name(dtype) -> str:
    return NAME.get(dtype, str(dtype))


# ---- whole steps -------------------------------------------------------------------------------------------------

COMBINATIONS = [
    (param, grad, state)
    for param, grad, state in itertools.product(FLOATS, FLOATS, (*FLOATS, INT8))
    if F64 not in (grad, state) or param == F64
]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("param", "grad", "state"), COMBINATIONS, ids=of_name)
@pytest.mark.parametrize("rounding", [NEAREST, STOCHASTIC], ids=["nearest", "stochastic"])
def test_every_combination_of_dtypes(plan, param, grad, state, rounding):
    plan.entry(plan.group("adam"), 1500, param=param, grad=grad, state=state)
    plan.steps(rounding=rounding, seed=7)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("state", [F32, BF16, F16, INT8], ids=of_name)
@pytest.mark.parametrize("param", [F32, F64, BF16], ids=of_name)
def test_every_rule(plan, rule, param, state):
    plan.entry(plan.group(rule), 1100, param=param, grad=BF16, state=state, lr_scale=True)
    plan.steps(rounding=STOCHASTIC, seed=3, scale=0.5)


AROUND = {
    "scale": {"scale": 1 / 1024},
    "negative scale": {"scale": -0.3},
    "zero scale": {"scale": 0.0},
    "norm": {"max_grad_norm": 1.0},
    "norm, negative scale": {"max_grad_norm": 1.0, "scale": -2.0},
    "large norm": {"max_grad_norm": 1e9},
    "value": {"max_grad_value": 0.1},
    "both": {"max_grad_norm": 2.0, "max_grad_value": 0.01, "scale": 3.0},
    "clear": {"clear_grads": 1},
    "no average": {"average_decay": 0.0},
    "average": {"average_decay": 0.9},
    "corrected average": {"average_decay": 0.99, "average_correction": 1},
    "corrected average of the last": {"average_decay": 0.0, "average_correction": 1},
    "skip": {"nonfinite": SKIP},
    "all": {
        "scale": 0.7,
        "max_grad_norm": 1.0,
        "max_grad_value": 0.05,
        "average_decay": 0.9,
        "average_correction": 1,
        "nonfinite": REFUSE,
        "clear_grads": 1,
        "rounding": STOCHASTIC,
        "seed": 2**64 - 1,
    },
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("param", [F32, F64, BF16, "split"], ids=of_name)
def test_what_is_done_around_the_rule(plan, param, around):
    split = param == "split"
    group = plan.group("adam")
    for n, copy, average in ((1300, F16, F32), (7, F64, BF16), (4200, F32, F16)):
        plan.entry(group, n, param=BF16 if split else param, split=split, copy=copy, average=average)
    plan.steps(**around)


@pytest.mark.usefixtures("isa")
def test_step_args_may_change_between_steps(plan):
    """Each step does what the last step args say; all in one plan, one after the other."""
    group = plan.group("adam")
    plan.entry(group, 1300, param=BF16, state=INT8, copy=F32, average=F32)
    plan.entry(group, 600)
    for around in (*AROUND.values(), {}, {"rounding": STOCHASTIC}, {"max_grad_norm": 0.1}, {}):
        plan.steps(1, **around)


def test_options_may_change_between_steps(plan):
    group = plan.group("adam")
    entry = plan.entry(group, 1300, param=BF16, state=INT8, average=F32, lr_factor=0.5)
    plan.steps(2, average_decay=0.5)
    group.lr = 0.3
    assert set_lr(plan.plan, 0, 0.3) == "OK"
    plan.steps(2, average_decay=0.5)
    entry.lr_factor = 0.25
    assert set_lr_factor(plan.plan, 0, 0.25) == "OK"
    group.options = {**group.options, "betas": (0.5, 0.75), "amsgrad": False}
    assert set_args(plan.plan, 0, byref(args("adam", lr=0.3, **c_options(group.options)))) == "OK"
    unused = entry.state.pop("max_exp_avg_sq")
    unused.memory[...] = 1  # stored once more, the largest of each block would become 255
    before = [x.copy() for x in unused.arrays]
    plan.steps(2, average_decay=0.5)
    for array, old in zip(unused.arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_gradients_may_change_their_dtype(plan):
    """An entry may need conversions in one step, and none in the next."""
    entry = plan.entry(plan.group("momentum"), 1300)
    for dtype in (F32, BF16, F32, F16, BF16, F32):
        entry.grad = Stored(np.zeros(entry.n), dtype, entry.compute)
        assert set_grad(plan.plan, entry.index, entry.grad.buffer) == "OK"
        plan.steps(1)


# ---- sizes, addresses, cuts --------------------------------------------------------------------------------------

MIXTURES = [
    {"param": F32, "grad": BF16, "state": BF16, "average": F16},
    {"param": BF16, "grad": F16, "state": F32, "copy": F32},
    {"param": BF16, "grad": BF16, "state": INT8, "split": True, "copy": BF16},
    {"param": F64, "grad": F32, "state": INT8, "copy": F16, "average": F64},
]
SIZES = [
    0,
    *(1, 2, 3, 31, 32, 33, 63, 64, 65),  # vectors
    *(127, 128, 129, 255, 256, 257, 511, 512, 513),  # blocks of scales, tiles of float64
    *(1023, 1024, 1025, 2047, 2048, 2049),  # tiles, WORTH_ALIGNING
    *(BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 129, 2 * BLOCK + 5, 3 * BLOCK - 7),
]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("offset", [0, 1, 7, 17])
def test_sizes_and_offsets(plan, n, offset):
    group = plan.group("adam")
    for mixture in MIXTURES:
        plan.entry(group, n, offset=offset, **mixture)
    plan.steps(2, rounding=STOCHASTIC, average_decay=0.5, max_grad_value=1.0)


@pytest.mark.usefixtures("isa")
def test_all_small_sizes(plan):
    """Entries of 0 to 257 elements in one plan."""
    group = plan.group("momentum")
    for n in range(258):
        plan.entry(group, n, offset=n % 5, **MIXTURES[n % 4])
    plan.steps(2, rounding=STOCHASTIC, average_decay=0.5, clear_grads=1)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("where", [Guarded.at_start, Guarded.at_end], ids=["start", "end"])
def test_stages_touch_no_byte_beside_the_buffers(plan, where, monkeypatch):
    """Not one byte before or behind a buffer is read or written."""
    monkeypatch.setattr(
        cstages, "place", lambda n, dtype, offset: where(Guarded(n * np.dtype(dtype).itemsize), np.dtype(dtype), n)
    )
    monkeypatch.setattr(cstages, "is_alone", lambda array: True)  # there is no memory beside it
    group = plan.group("adam")
    for n in (1, 31, 33, 127, 129, 1023, 1025, BLOCK + 129):
        for mixture in MIXTURES:
            plan.entry(group, n, **mixture)
    plan.steps(2, rounding=STOCHASTIC, average_decay=0.5, max_grad_value=1.0, clear_grads=1)


TASK = ctypes.CFUNCTYPE(None, c_void_p, c_size_t)
PARALLEL_FOR = ctypes.CFUNCTYPE(None, c_void_p, c_size_t, TASK, c_void_p)
AROUND_IN_THREADS = {"seed": 5, "average_decay": 0.9, "max_grad_norm": 1.0, "clear_grads": 1}


def add_large(plan: Plan, more: int = 0) -> None:
    """Entries that end at, before and behind the ends of pieces, which begin within others."""
    group = plan.group("adam")
    for k, n in enumerate((PIECE, 5, PIECE + 1, 2 * PIECE - 6, 70_001, 3 * PIECE, PIECE - 1, 129, more)):
        plan.entry(group, n, offset=k % 3, **MIXTURES[k % 4])


@pytest.mark.parametrize("threads", range(1, 9))
def test_the_number_of_threads_changes_nothing(plan, threads):
    """A host's threads, which all begin at once, and take pieces in turn."""
    ran = []

    @PARALLEL_FOR
    def parallel_for(_host, count, task, context):
        at_once(lambda k: [task(context, i) for i in range(k, count, threads)], threads)
        ran.append(count)

    add_large(plan)
    assert set_num_threads(plan.plan, threads) == "OK"
    use_parallel_for(parallel_for)
    try:
        plan.steps(2, rounding=STOCHASTIC, **AROUND_IN_THREADS)
    finally:
        use_parallel_for(None)
    assert len(ran) == (0 if threads == 1 else 2)  # the gradients alone are too few for threads


@pytest.mark.parametrize("threads", [2, 3])
def test_gdms_own_threads_change_nothing(plan, threads):
    add_large(plan, 500_000)
    assert set_num_threads(plan.plan, threads) == "OK"
    plan.steps(2, rounding=STOCHASTIC, **AROUND_IN_THREADS)


# ---- many groups and entries -------------------------------------------------------------------------------------


def test_entries_of_all_kinds_in_one_plan(plan):
    """Several rules, dtypes, counts of steps, factors; some left out, one added late."""
    groups = [plan.group("adam"), plan.group("nadam", lr=0.1), plan.group("momentum"), plan.group("sgd")]
    for k, n in enumerate((1500, 300, 5000, 0, 128, 70_000, 1, 2048)):
        factor = (1.0, 0.5, 0.0)[k % 3]
        plan.entry(groups[k % 4], n, lr_factor=factor, lr_scale=k == 2, **(MIXTURES[k % 4] if k != 6 else {}))
    around = {"rounding": STOCHASTIC, "average_decay": 0.9, "average_correction": 1, "max_grad_norm": 3.0}
    for k, left_out in enumerate(("", "0 5", "1 2 6", "0 1 2 3 4 5 6 7", "", "4 8", "8", "")):
        for entry in plan.entries:
            plan.leave_out(entry, str(entry.index) in left_out.split())
        if k == 3:
            plan.entry(groups[1], 777, **MIXTURES[2])
            plan.leave_out(plan.entries[8])
        plan.steps(1, clear_grads=k % 2, **around)


def test_progress_of_their_own(plan):
    """Counts of steps and scalars that are set change the constants; the random bits depend on the updates alone."""
    group = plan.group("nadam")
    for k in range(4):
        plan.entry(group, 700, **MIXTURES[k])
    plan.set_progress(plan.entries[1], 6, mu_product=0.25)
    plan.set_progress(plan.entries[3], 1000, mu_product=0.5)
    plan.steps(2, rounding=STOCHASTIC, seed=9)
    plan.set_progress(plan.entries[3], 0, mu_product=1.0)
    plan.steps(2, rounding=STOCHASTIC, seed=9)


# ---- special values ----------------------------------------------------------------------------------------------


def special(name: str, n: int) -> np.ndarray:
    """Special values of float16, bfloat16, float32 and float64, in an order of the buffer's own; squares >= 0."""
    values = np.concatenate(
        [
            special_values(np.float32).astype(np.float64),
            special_values(np.float64),
            special_values(np.float16).astype(np.float64),
            [65519.0, 65520.0, 3.3895e38, 3.3896e38, 2.0**-25, 2.0**-134, 1e-39, -1e-39, 0.1, -300.0],
        ]
    )
    rng = np.random.default_rng(len(name))
    x = rng.permutation(np.resize(values, n))
    if name.startswith(SQUARES):
        x = np.abs(x)
    x[256:1152] = numbers(896, 3)  # some blocks of int8 states have no special values, or one
    x[600] = x[128 * 5 + len(name)]
    x[1024 + len(name)] = (np.nan, np.inf, -np.inf)[len(name) % 3]
    return np.abs(x) if name.startswith(SQUARES) else x


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rounding", [NEAREST, STOCHASTIC], ids=["nearest", "stochastic"])
@pytest.mark.parametrize(("param", "grad", "state"), COMBINATIONS, ids=of_name)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast", "ignore:invalid value encountered")
def test_special_values(plan, param, grad, state, rounding):
    for rule in ("adam", "momentum", "lion"):
        plan.entry(plan.group(rule), 1500, param=param, grad=grad, state=state, copy=F16, average=BF16, fill=special)
    plan.set(scale=0.5, max_grad_value=1e30, rounding=rounding, average_decay=0.9)
    plan.step()
    plan.step()


@pytest.mark.usefixtures("isa")
@pytest.mark.filterwarnings("ignore:overflow encountered in cast", "ignore:invalid value encountered")
def test_special_values_of_a_split_parameter(plan):
    plan.entry(plan.group("sgd"), 1500, param=BF16, split=True, copy=F32, average=F32, fill=special)
    plan.set(average_decay=0.9)
    plan.step()
    plan.step()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_of_an_int8_state_becomes_nan(plan, bad):
    """All of the block with a number that is not finite, and no other."""
    entry = plan.entry(plan.group("adam", amsgrad=False), 400, state=INT8)
    plan.steps(2)
    entry.grad.memory[200] = bad
    plan.step()
    for state in entry.state.values():
        assert np.isnan(state.wide[128:256]).all()
        assert np.isfinite(state.wide[:128]).all()
        assert np.isfinite(state.wide[256:]).all()


# ---- off leaves no trace -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", ["float32", "float64", *range(len(MIXTURES))])
def test_a_plan_without_step_args_steps_as_with_the_defaults(kind):
    """Also the random bits of int8 states, which differ from step to step, and averages."""
    mixture = {"param": F64, "grad": F64, "state": F64} if kind == "float64" else {}
    mixture = MIXTURES[kind] if isinstance(kind, int) else mixture
    with Plan() as one, Plan() as other:
        for plan in (one, other):
            plan.entry(plan.group("adam"), 5000, **mixture)
            if plan is other:
                plan.set()
            for _ in range(3):
                plan.new_grads()
                plan.step()
        other.entries[0].check([x.copy() for stored in one.entries[0].buffers for x in stored.arrays])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("around", [{}, {"max_grad_norm": 1e30}, {"max_grad_value": 1e30}, {"nonfinite": REFUSE}])
def test_what_changes_no_number_leaves_no_trace(around):
    """The kernel tile by tile gives the bits of the kernel on the buffers; so do stages that have nothing to do."""
    with Plan() as one, Plan() as other:
        for plan in (one, other):
            group = plan.group("adam")
            for n in (5000, 7, 70_000):
                plan.entry(group, n, offset=1)
        other.set(**around)
        for _ in range(2):
            for plan in (one, other):
                plan.new_grads()
                assert step(plan.plan) == "OK"
        for a, b in zip(one.entries, other.entries, strict=True):
            b.check([x.copy() for stored in a.buffers for x in stored.arrays])
