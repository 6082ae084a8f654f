"""What is done around the rule in C plans: what is refused, skipped and reported, and that nothing has changed then."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_void_p, cast
from dataclasses import replace

import numpy as np
import pytest

from cheader import args
from cplan import (
    BF16,
    F16,
    F32,
    F64,
    INT8,
    NOWHERE,
    REFUSE,
    SKIP,
    STOCHASTIC,
    Buffer,
    EntryArgs,
    StepArgs,
    StepReport,
    add_arrays,
    buffer,
    error_of,
    get_report,
    group_steps,
    new_group,
    report_of,
    set_args,
    set_grad,
    set_lr_scale,
    set_scale,
    set_step_args,
    set_updates,
    step,
    step_args,
    steps_of,
)
from cstages import Entry, Plan, c_options, with_status

nan, inf = float("nan"), float("inf")


@pytest.fixture
def plan():
    with Plan() as made:
        yield made


def memory_of(plan: Plan) -> list[np.ndarray]:
    return [x.copy() for entry in plan.entries for stored in entry.buffers for x in stored.arrays]


# ---- the argument structs ----------------------------------------------------------------------------------------

WRONG = [
    *(("scale", x) for x in (nan, inf, -inf)),
    *((name, x) for name in ("max_grad_norm", "max_grad_value") for x in (nan, inf, -1.0, -1e-300)),
    *(("average_decay", x) for x in (nan, inf, -0.1, 1.0, 1.5)),
    *(("nonfinite", x) for x in (-1, 3, 2**31 - 1)),
    *(("rounding", x) for x in (-1, 2, 2**31 - 1)),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_wrong_step_args_are_refused_and_the_last_ones_stay(plan, field, value):
    plan.entry(plan.group("adam"), 300, param=BF16, state=INT8, average=F32)
    plan.steps(1, scale=0.5, average_decay=0.9, max_grad_norm=0.1, rounding=STOCHASTIC)
    assert set_step_args(plan.plan, byref(step_args(**{field: value}))) == "ERR_STEP_ARGS"
    if field == "scale":
        assert set_scale(plan.plan, value) == "ERR_STEP_ARGS"
    plan.new_grads()
    plan.step()


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": -0.0},
        {"scale": 1.7e308},
        {"max_grad_norm": 5e-324, "max_grad_value": 1.7e308},
        {"average_decay": 1 - 2.0**-53, "average_correction": -7},
        {"clear_grads": 2**31 - 1, "seed": 2**64 - 1},
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's: the factor is infinite in float32
def test_extreme_step_args_are_legal(plan, fields):
    plan.entry(plan.group("adam"), 300, param=BF16, average=F32)
    plan.entry(plan.groups[0], 300, param=F64, average=F32)
    plan.steps(2, **fields)


def test_a_scale_of_minus_0_is_not_0(plan):
    """0 - 0 is 0, and 0 - -0 is 0, but -0 - 0 is -0."""
    param, grad = np.full(300, -0.0), np.ones(300)
    assert add_arrays(plan.plan, new_group(plan.plan, "sgd", lr=0.5), param, [], grad) == "OK"
    for scale, is_negative in ((0.0, True), (-0.0, False)):
        assert set_scale(plan.plan, scale) == "OK"
        assert step(plan.plan) == "OK"
        assert np.signbit(param).all() == np.signbit(param).any() == is_negative


def test_step_args_of_other_versions(plan):
    """In an older caller's struct the missing fields are off; a newer one's may not ask for anything new."""
    entry = plan.entry(plan.group("sgd"), 300, average=F32)
    whole = ctypes.sizeof(StepArgs)
    older = step_args(scale=0.5, max_grad_norm=nan, nonfinite=77, rounding=77)
    older.size = StepArgs.max_grad_norm.offset
    assert set_step_args(plan.plan, byref(older)) == "OK"
    plan.around = step_args(scale=0.5)
    plan.new_grads()
    plan.step()
    older.max_grad_norm, older.average_decay, older.size = 0.01, nan, StepArgs.average_decay.offset
    assert set_step_args(plan.plan, byref(older)) == "OK"
    plan.around = step_args(scale=0.5, max_grad_norm=0.01)
    plan.step()
    memory = ctypes.create_string_buffer(bytes(step_args(scale=2.0)), 8192)
    newer = cast(memory, POINTER(StepArgs))
    for size, status in ((whole + 8, "OK"), (4096, "OK"), (4097, "ERR_STRUCT_SIZE"), (2**64 - 1, "ERR_STRUCT_SIZE")):
        newer.contents.size = size
        assert set_step_args(plan.plan, newer) == status
    memory[whole + 7] = b"\1"
    newer.contents.size = whole + 8
    assert set_step_args(plan.plan, newer) == "ERR_STRUCT_SIZE"
    for size in (0, 8, 15):
        assert set_step_args(plan.plan, byref(step_args(size=size))) == "ERR_STRUCT_SIZE"
    assert set_step_args(plan.plan, None) == "ERR_NULL"
    plan.around = step_args(scale=2.0)
    plan.step()
    assert entry.steps == 3


def test_a_report_is_not_longer_than_the_callers_struct(plan):
    memory = ctypes.create_string_buffer(b"\xa5" * 128, 128)
    report = cast(memory, POINTER(StepReport))
    report.contents.size = ctypes.sizeof(StepReport) - 1
    assert get_report(plan.plan, report) == "ERR_STRUCT_SIZE"
    assert get_report(plan.plan, None) == "ERR_NULL"
    report.contents.size = 128  # a newer caller
    assert get_report(plan.plan, report) == "OK"
    assert (report.contents.size, report.contents.updates, report.contents.skipped) == (128, 0, 0)
    assert memory.raw[ctypes.sizeof(StepReport) :] == b"\xa5" * (128 - ctypes.sizeof(StepReport))


def test_a_plan_that_is_null_is_an_error():
    assert set_step_args(None, byref(step_args())) == "ERR_NULL"
    assert set_scale(None, 1.0) == "ERR_NULL"
    assert set_updates(None, 0, 0) == "ERR_NULL"
    assert get_report(None, byref(StepReport(size=ctypes.sizeof(StepReport)))) == "ERR_NULL"


# ---- entries -----------------------------------------------------------------------------------------------------


def spare(dtype: int, n: int = 300) -> Buffer:
    """A buffer for this test, of any dtype; its memory is kept until the process ends."""
    KEPT.append(np.zeros(n + 1))
    return Buffer(KEPT[-1].ctypes.data, dtype)


KEPT: list[np.ndarray] = []
NARROWER = (F32, BF16, F16)


def refused_dtypes() -> list[tuple[int, dict]]:
    """The dtype of a parameter, and fields of its entry that are refused beside it."""
    cases = []
    for param in (F32, F64, BF16, F16):
        wide = F64 if param == F64 else F32
        bad = (INT8, INT8 + 1, -1)
        cases += [(param, {name: x}) for x in bad for name in ("param", "grad", "lr_scale", "copy", "average")]
        cases += [(param, {"state": x}) for x in bad[1:]]
        cases += [(param, {"lr_scale": x}) for x in (F32, F64, BF16, F16) if x != wide]
        if param != F64:
            cases += [(param, {name: F64}) for name in ("grad", "state", "average")]
        if param != BF16:
            cases.append((param, {"low_bits": BF16}))
    return cases


@pytest.mark.parametrize(("param", "fields"), refused_dtypes())
def test_dtypes_that_do_not_fit_are_refused(plan, param, fields):
    entry = Entry(plan.group("momentum"), 0, 300, param=param)
    (name, dtype), *_ = fields.items()
    value = spare(dtype)
    if name == "low_bits":
        value = value.data
    if name == "state":
        name, value = "states", (Buffer * 1)(value)
    assert with_status(plan, entry, **{name: value}) == "ERR_DTYPE"
    assert with_status(plan, entry) == "OK"
    if name in ("grad", "lr_scale"):
        change = set_grad if name == "grad" else set_lr_scale
        assert change(plan.plan, 0, value) == "ERR_DTYPE"
        assert error_of(plan.plan) == (0, NOWHERE)


def test_wrong_companions_are_refused(plan):
    """Misaligned ones, ones that leave the address space, int8 states without scales."""
    entry = Entry(plan.group("momentum"), 0, 300, param=BF16, state=INT8, split=True, copy=F32, average=F16)
    start, scales = spare(F32).data, (c_void_p * 1)

    def at(address: int, dtype: int) -> Buffer:
        return Buffer(address, dtype)

    for status, fields in [
        ("ERR_ALIGNMENT", {"copy": at(start + 2, F32)}),
        ("ERR_ALIGNMENT", {"copy": at(start + 4, F64)}),
        ("ERR_ALIGNMENT", {"average": at(start + 1, F16)}),
        ("ERR_ALIGNMENT", {"low_bits": start + 1}),
        ("ERR_ALIGNMENT", {"state_scales": scales(start + 2)}),
        ("ERR_NULL", {"state_scales": scales(None)}),
        ("ERR_NULL", {"state_scales": None}),
        ("ERR_LENGTH", {"copy": at(2**64 - 64, F32)}),
        ("ERR_LENGTH", {"average": at(2**64 - 64, F16)}),
        ("ERR_LENGTH", {"low_bits": 2**64 - 64}),
        ("ERR_LENGTH", {"state_scales": scales(2**64 - 8)}),
    ]:
        assert with_status(plan, entry, **fields) == status, fields
    assert with_status(plan, entry) == "OK"


def test_scales_are_as_many_as_there_are_blocks(plan):
    """Not one more: the address space may end behind them."""
    group = plan.group("momentum")
    for n, count in ((1, 1), (127, 1), (128, 1), (129, 2), (256, 2), (257, 3)):
        for room, status in ((count, "OK"), (count - 1, "ERR_LENGTH")):
            entry = Entry(group, 0, n, state=INT8)
            last = (c_void_p * 1)(2**64 - 4 - 4 * room)
            assert with_status(plan, entry, state_scales=last) == status, (n, room)


def test_entries_without_elements_need_nothing(plan):
    entry = Entry(plan.group("momentum"), 0, 0, param=BF16, state=INT8, split=True, copy=F32, average=F16)
    none = buffer(None)
    assert with_status(plan, entry) == "OK"
    assert with_status(plan, entry, param=none, copy=none, average=none, state_scales=None) == "OK"
    assert step(plan.plan) == "OK"
    assert steps_of(plan.plan, 1) == 1


def test_an_older_callers_entry_has_no_companions(plan):
    """Its struct ends before `copy`: what lies behind it in memory is not read."""
    entry = Entry(plan.group("momentum"), 0, 300)
    nonsense = {"copy": Buffer(1, 99), "average": Buffer(1, 99), "low_bits": 1}
    assert with_status(plan, entry, size=EntryArgs.copy.offset, **nonsense) == "OK"
    plan.entries.append(entry)
    plan.steps(2)


def test_set_args_that_need_another_state(plan):
    """Refused while an entry has none. Else the state is used from then on; it may be narrow, too."""
    group = plan.group("adam", amsgrad=False)
    more = replace(group, options={**group.options, "amsgrad": True})
    entry = Entry(more, 0, 300, state=INT8)
    largest = entry.state["max_exp_avg_sq"].memory
    options = [byref(args("adam", lr=0.01, **c_options(x.options))) for x in (group, more)]
    assert with_status(plan, entry) == "OK"
    assert step(plan.plan) == "OK"
    assert not largest.any()
    assert set_args(plan.plan, 0, options[1]) == "OK"
    assert step(plan.plan) == "OK"
    assert largest.any()
    assert set_args(plan.plan, 0, options[0]) == "OK"
    more_entries = [Entry(group, 1, 0), Entry(group, 2, 300, state=INT8)]  # whose memory the plan uses
    assert [with_status(plan, x) for x in more_entries] == ["OK", "OK"]
    before = largest.copy()
    assert set_args(plan.plan, 0, options[1]) == "ERR_NULL"
    assert error_of(plan.plan) == (2, NOWHERE)
    assert step(plan.plan) == "OK"
    np.testing.assert_array_equal(largest, before)


# ---- overlap -----------------------------------------------------------------------------------------------------

WRITTEN = ("param", "low_bits", "copy", "average", "velocity", "scales")


def place_of(entry: Entry, name: str) -> np.ndarray:
    """The memory of a buffer of an entry."""
    if name == "low_bits":
        return entry.param.low
    if name == "scales":
        return entry.state["velocity"].scales
    stored = entry.state.get(name) or getattr(entry, name)
    return stored.memory


def moved(entry: Entry, name: str, address: int) -> dict:
    """The field that lets a buffer of an entry begin at this address."""
    if name == "low_bits":
        return {name: address}
    if name == "scales":
        return {"state_scales": (c_void_p * 1)(address)}
    stored = entry.state.get(name) or getattr(entry, name)
    changed = Buffer(address, stored.dtype)
    return {"states": (Buffer * 1)(changed)} if name == "velocity" else {name: changed}


FEW = 16  # a buffer of so many elements that begins at the end of another one ends in the unused bytes behind that
MIXTURE = {"param": BF16, "split": True, "state": INT8, "copy": F32, "average": F16, "lr_scale": True}


@pytest.mark.parametrize("other", [*WRITTEN, "grad", "lr_scale"])
@pytest.mark.parametrize("name", WRITTEN)
def test_two_buffers_of_which_one_is_written_may_not_overlap(plan, name, other):
    """Of one entry or of two: every step fails and names them; nothing has been written."""
    group = plan.group("momentum")
    first, second = (Entry(group, k, FEW, **MIXTURE) for k in range(2))
    reads = other in ("grad", "lr_scale")
    for owner, found in ((first, (0, 1)), (second, (1, 1))):
        if owner is second and name == other:
            continue
        with Plan() as own:
            own.group("momentum")
            end = place_of(owner, other)
            address = end.ctypes.data + end.nbytes - 4  # the last bytes of the one are the first of the other
            assert with_status(own, first) == "OK"
            assert with_status(own, second, **moved(second, name, address)) == "OK"
            before = [x.copy() for entry in (first, second) for stored in entry.buffers for x in stored.arrays]
            for _ in range(2):
                assert step(own.plan) == "ERR_OVERLAP"
                assert error_of(own.plan) == found
            after = [x for entry in (first, second) for stored in entry.buffers for x in stored.arrays]
            for a, b in zip(before, after, strict=True):
                np.testing.assert_array_equal(a, b)
            if reads and owner is first:  # without the buffer that is read the two are apart
                change = set_grad if other == "grad" else set_lr_scale
                assert change(own.plan, 0, buffer(None)) == "OK"
                assert set_grad(own.plan, 1, buffer(None)) == "OK"
                assert step(own.plan) == "OK"


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize(("change", "dtype"), [(set_grad, F16), (set_lr_scale, F32)])
def test_setting_a_buffer_that_overlaps_is_refused(plan, name, change, dtype):
    """At once, if the plan has made a step; what was set before stays."""
    group = plan.group("momentum")
    for _ in range(2):
        plan.entry(group, FEW, **MIXTURE)
    plan.steps(1)
    memory = place_of(plan.entries[1], name)
    for address in (memory.ctypes.data, memory.ctypes.data + memory.nbytes - 4):
        assert change(plan.plan, 0, Buffer(address, dtype)) == "ERR_OVERLAP"
        assert error_of(plan.plan) == (0, 1)
    plan.steps(1)


def test_cleared_gradients_may_not_share_memory(plan):
    """With each other; found in the step after one was set, or after clearing was switched on."""
    group = plan.group("sgd")
    a, b, _ = (plan.entry(group, 64) for _ in range(3))
    plan.steps(1)
    shared = buffer(a.grad.memory)
    assert set_grad(plan.plan, 2, shared) == "OK"
    assert step(plan.plan) == "OK"
    assert set_step_args(plan.plan, byref(step_args(clear_grads=1))) == "OK"
    before = memory_of(plan)
    for _ in range(2):
        assert step(plan.plan) == "ERR_OVERLAP"
        assert error_of(plan.plan) == (0, 2)
    for wrong, found in ((buffer(b.grad.memory[:0]), None), (Buffer(b.grad.memory.ctypes.data + 252, F32), (1, 2))):
        assert set_grad(plan.plan, 2, wrong) == "OK"
        if found:
            assert step(plan.plan) == "ERR_OVERLAP"
            assert error_of(plan.plan) == found
    for x, old in zip(memory_of(plan), before, strict=True):
        np.testing.assert_array_equal(x, old)
    assert set_step_args(plan.plan, byref(step_args())) == "OK"
    assert step(plan.plan) == "OK"


def test_a_cleared_gradient_may_not_be_an_lr_scale(plan):
    """Of any entry; whichever of them is set last. Clearing would change the factors."""
    group = plan.group("sgd")
    a, b = plan.entry(group, 64), plan.entry(group, 64, lr_scale=True)
    plan.steps(1, clear_grads=1)
    last = Buffer(a.grad.memory.ctypes.data + 252, F32)
    for index in (0, 1):
        assert set_lr_scale(plan.plan, index, last) == "OK"
        for _ in range(2):
            assert step(plan.plan) == "ERR_OVERLAP"
            assert error_of(plan.plan) == (index, 0)
        assert set_lr_scale(plan.plan, index, buffer(None)) == "OK"
    assert set_lr_scale(plan.plan, 1, b.lr_scale.buffer) == "OK"
    plan.steps(1, clear_grads=1)
    assert set_grad(plan.plan, 0, b.lr_scale.buffer) == "OK"
    assert step(plan.plan) == "ERR_OVERLAP"
    assert error_of(plan.plan) == (1, 0)
    assert set_step_args(plan.plan, byref(step_args())) == "OK"  # both are only read
    assert step(plan.plan) == "OK"
    assert set_step_args(plan.plan, byref(step_args(clear_grads=1))) == "OK"
    assert step(plan.plan) == "ERR_OVERLAP"


# ---- gradients that are not finite -------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("norm", [0.0, 1.0], ids=["count", "norm"])
@pytest.mark.parametrize("what", [SKIP, REFUSE], ids=["skip", "refuse"])
def test_a_step_with_gradients_that_are_not_finite(plan, bad, norm, what):
    """Skipped: nothing changes and nothing is counted, but gradients are cleared if they are to be. Refused: not even
    that. The next step goes on."""
    group = plan.group("adam")
    plan.entry(group, 5000, param=BF16, state=INT8, grad=F16, copy=F32, average=F32)
    plan.entry(group, 300, grad=BF16)
    plan.entry(plan.group("nadam"), 300, param=F64, grad=F64)
    plan.leave_out(plan.entry(group, 300))
    plan.entries[3].grad.memory[5] = nan  # not a gradient of this step
    around = {"nonfinite": what, "max_grad_norm": norm, "average_decay": 0.5, "rounding": STOCHASTIC}
    plan.set(**around)
    for clear in (0, 1):
        for entry in plan.entries[:3]:
            plan.set(clear_grads=clear, **around)
            for other in plan.entries[:3]:
                other.grad.set(np.full(other.n, 0.01))
            plan.step()
            counts = [(steps_of(plan.plan, k), group_steps(plan.plan, k % 2)) for k in range(4)]
            entry.grad.set(np.where(np.arange(entry.n) == entry.n - 7, bad, 0.01))
            plan.step()
            assert [(steps_of(plan.plan, k), group_steps(plan.plan, k % 2)) for k in range(4)] == counts
    assert (plan.updates, plan.skipped) == (6, 6 if what == SKIP else 0)


def test_gradients_that_are_not_finite_propagate(plan):
    entry = plan.entry(plan.group("sgd"), 300)
    entry.grad.memory[7] = nan
    plan.set()
    plan.step()
    assert np.isnan(entry.param.memory[7])
    assert np.isfinite(np.delete(entry.param.memory, 7)).all()
    plan.set(max_grad_norm=1.0)
    plan.step()
    assert np.isnan(entry.param.memory).all()  # by a norm that is NaN


@pytest.mark.parametrize("what", [SKIP, REFUSE], ids=["skip", "refuse"])
def test_gradients_whose_squares_overflow_are_finite(plan, what):
    """The norm is infinite, so nothing is left of them."""
    entry = plan.entry(plan.group("sgd"), 300, param=F64, grad=F64)
    entry.grad.memory[...] = 1e300
    before = entry.param.memory.copy()
    plan.set(nonfinite=what, max_grad_norm=1.0)
    plan.step()
    assert report_of(plan.plan).grad_norm == inf
    np.testing.assert_array_equal(entry.param.memory, before)
    plan.set(nonfinite=what)
    plan.step()
    assert (plan.updates, plan.skipped) == (2, 0)
    assert not np.array_equal(entry.param.memory, before)


# ---- what is reported and set ------------------------------------------------------------------------------------


def test_the_norm_of_the_last_step_is_reported(plan):
    """That of all gradients, after `scale`: with a limit, also if that is not reached; else NaN."""
    plan.entry(plan.group("sgd"), 5000, grad=BF16)
    plan.entry(plan.groups[0], 300, param=F64)
    assert np.isnan(report_of(plan.plan).grad_norm)
    for limit, scale in ((1e-3, 1.0), (1e9, -0.5), (0.0, 1.0), (1.0, 0.0)):
        plan.steps(1, max_grad_norm=limit, scale=scale)  # compares the norm
    plan.leave_out(plan.entries[0])
    plan.leave_out(plan.entries[1])
    plan.steps(1, max_grad_norm=1.0)
    assert report_of(plan.plan).grad_norm == 0.0


def test_updates_that_are_set_go_on(plan):
    """Averages and random bits depend on them."""
    plan.entry(plan.group("adam"), 1500, param=BF16, state=INT8, average=F32)
    around = {"rounding": STOCHASTIC, "average_decay": 0.9, "average_correction": 1}
    for updates, skipped in ((6, 2), (2**32 + 5, 0), (2**64 - 10, 2**64 - 1), (0, 0)):
        assert set_updates(plan.plan, updates, skipped) == "OK"
        plan.updates, plan.skipped = updates, skipped
        plan.steps(2, **around)


def test_a_scale_that_is_set_is_that_of_the_next_steps(plan):
    """The other step args stay."""
    plan.entry(plan.group("momentum"), 1500, param=BF16, average=F16)
    plan.set(max_grad_norm=1.0, average_decay=0.5, clear_grads=1)
    for scale in (0.25, 1.0, -3.0, 0.0, 1 / 65536):
        assert set_scale(plan.plan, scale) == "OK"
        plan.around.scale = scale
        plan.new_grads()
        plan.step()


def test_a_scale_is_enough_where_no_step_args_were_set(plan):
    new_group(plan.plan, "sgd", lr=1.0)
    param, grad = np.zeros(8, np.float32), np.ones(8, np.float32)
    assert add_arrays(plan.plan, 0, param, [], grad) == "OK"
    assert step(plan.plan) == "OK"
    assert set_scale(plan.plan, 0.5) == "OK"
    assert step(plan.plan) == "OK"
    np.testing.assert_array_equal(param, np.full(8, -1.5, np.float32))
