"""The modes of plans with Schedule-Free rules: each swap gives the bits of the stages in NumPy."""

from __future__ import annotations

import itertools
from ctypes import CFUNCTYPE, byref, c_int, c_size_t, c_void_p

import numpy as np
import pytest

from cplan import (
    EVAL,
    F16,
    F32,
    F64,
    INT8,
    STOCHASTIC,
    TRAIN,
    add_arrays,
    destroy,
    error_of,
    get_mode,
    new_group,
    new_plan,
    set_lr_factor,
    set_mode,
    set_num_threads,
    step,
    swap,
)
from cstages import FLOATS, NAME, Plan, use_parallel_for

RULES = ["schedule_free_sgd", "schedule_free_adamw"]
PARALLEL_FOR = CFUNCTYPE(None, c_void_p, c_size_t, CFUNCTYPE(None, c_void_p, c_size_t), c_void_p)
every_rule = pytest.mark.parametrize("rule", RULES)


@pytest.fixture
def plan():
    with Plan() as made:
        yield made


def of_name(dtype) -> str:
    return NAME.get(dtype, str(dtype))


def mode_of(plan) -> int:
    mode = c_int(77)
    assert get_mode(plan, byref(mode)) == "OK"
    return mode.value


COMBINATIONS = [
    (param, state) for param, state in itertools.product(FLOATS, (*FLOATS, INT8)) if state != F64 or param == F64
]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("param", "state"), COMBINATIONS, ids=of_name)
@every_rule
def test_every_combination_of_dtypes(plan, rule, param, state):
    group = plan.group(rule)
    for n, copy, offset in ((1100, None, 0), (1, F32, 3), (4500, F16, 1), (0, None, 0)):
        plan.entry(group, n, param=param, state=state, copy=copy, offset=offset, grad=F64 if param == F64 else F32)
    plan.steps(2, rounding=STOCHASTIC, seed=5)
    for mode in (EVAL, TRAIN, EVAL, EVAL, TRAIN):
        if mode_of(plan.plan) != mode:
            plan.swap(mode)
        assert swap(plan.plan, mode) == "OK"  # does nothing
        for entry in plan.entries:
            entry.check([x.copy() for stored in entry.buffers for x in stored.arrays])
        assert mode_of(plan.plan) == mode
    plan.steps(2, rounding=STOCHASTIC, seed=5)


@every_rule
def test_split_masters_averages_and_other_rules(plan, rule):
    """A swap changes the parameter and its copy, of Schedule-Free rules only, and nothing else."""
    group, share = plan.group(rule), "betas" if "adamw" in rule else "momentum"
    other = plan.group(rule, **{share: (0.5, 0.9) if "adamw" in rule else 0.5})
    for k, each in enumerate((group, other, plan.group("adam"), plan.group("sgd"))):
        plan.entry(each, 700, param=2, split=True, average=F32, copy=F32, lr_factor=(1.0, 0.5)[k % 2], lr_scale=k > 1)
    plan.entry(group, 500)
    late = plan.entry(other, 300)
    plan.leave_out(late)
    plan.steps(3, average_decay=0.9, clear_grads=1)
    plan.swap(EVAL)
    plan.swap(TRAIN)
    plan.leave_out(late, False)
    plan.steps(2)
    plan.swap(EVAL)


@pytest.mark.parametrize("threads", [1, 4])
def test_many_entries_on_several_threads(plan, threads):
    """Pieces that hold several entries, and pieces that begin and end within one; a host's threads take them."""
    ran = []

    @PARALLEL_FOR
    def backwards(_host, count, task, context):
        for i in reversed(range(count)):
            task(context, i)
        ran.append(count)

    group = plan.group("schedule_free_sgd")
    for k in range(60):
        plan.entry(group, (7000, 5, 9000, 129)[k % 4], copy=(None, F16)[k % 2])
    plan.entry(group, 100_000)
    plan.steps(2)  # after the first step the parameter is its own average
    assert set_num_threads(plan.plan, threads) == "OK"
    use_parallel_for(backwards)
    try:
        plan.swap(EVAL)
        plan.swap(TRAIN)
    finally:
        use_parallel_for(None)
    assert len(ran) == (0 if threads == 1 else 2)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_large_entries_on_several_threads(plan, threads):
    sizes, kinds = [100_000, 5, 40_000, 64, 64, 300_000], [F32, F16, F64]
    groups = [plan.group(rule) for rule in RULES]
    for k, n in enumerate(sizes):
        param = kinds[k % 3]
        plan.entry(groups[k % 2], n, param=param, state=F64 if param == F64 else F32)
    assert set_num_threads(plan.plan, threads) == "OK"
    plan.steps(2)
    plan.swap(EVAL)
    plan.swap(TRAIN)


def test_no_step_is_made_in_eval_mode(plan):
    plan.entry(plan.group("schedule_free_sgd"), 30)
    plan.steps(2)
    plan.swap(EVAL)
    before = plan.entries[0].unchanged(False)
    assert step(plan.plan) == "ERR_MODE"
    plan.entries[0].check(before)
    assert swap(plan.plan, 2) == set_mode(plan.plan, -1) == "ERR_MODE"
    assert get_mode(plan.plan, None) == "ERR_NULL"
    plan.entries[0].check(before)
    assert mode_of(plan.plan) == EVAL


def test_a_mode_is_taken_over_from_another_plan(plan):
    entry = plan.entry(plan.group("schedule_free_adamw"), 30)
    plan.steps(2)
    before = entry.unchanged(False)
    assert set_mode(plan.plan, EVAL) == "OK"
    assert mode_of(plan.plan) == EVAL
    entry.check(before)
    plan.swap(TRAIN)


def test_a_swap_finds_overlaps_first():
    plan, memory = new_plan(), np.ones(12)
    group = new_group(plan, "schedule_free_sgd", momentum=0.9)
    assert add_arrays(plan, group, memory[:6], [memory[5:11]], None) == "OK"
    assert swap(plan, EVAL) == "ERR_OVERLAP"
    assert error_of(plan) == (0, 0)
    assert mode_of(plan) == TRAIN
    destroy(plan)


@every_rule
def test_a_factor_of_the_learning_rate_keeps_its_own_weights(plan, rule):
    """Also when it comes between steps, and when others of the group have none."""
    group = plan.group(rule, lr=0.5, r=0.5, warmup_steps=3.0)
    entries = [plan.entry(group, 40, lr_factor=factor) for factor in (1.0, 3.0, 0.0, 1.0)]
    plan.steps(2)
    for factor in (2.0, 1.0, 0.25):
        entries[3].lr_factor = factor
        assert set_lr_factor(plan.plan, 3, factor) == "OK"
        plan.steps(2)
    plan.leave_out(entries[0])
    plan.steps(1)
    plan.leave_out(entries[0], False)
    plan.entry(group, 10, lr_factor=0.5)
    plan.entry(group, 10)
    plan.steps(2)
