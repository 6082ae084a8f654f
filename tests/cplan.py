"""The plan and reduction functions of gdm.h through ctypes, as the tests call them: each returns its status's name."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_double, c_int, c_size_t, c_uint64, c_void_p

import numpy as np

import gdm
from cheader import RULE, STATUS, args

F32, F64, BF16, F16, INT8 = range(5)
DTYPE = {"float32": F32, "float64": F64, "bfloat16": BF16, "float16": F16, "int8": INT8}
STORED_AS = {F32: np.float32, F64: np.float64, BF16: np.uint16, F16: np.float16}  # bfloat16: its bits
PROPAGATE, SKIP, REFUSE = range(3)
NEAREST, STOCHASTIC = range(2)
TRAIN, EVAL = range(2)
NOWHERE = 2**64 - 1  # SIZE_MAX


class Buffer(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("dtype", c_int))


class EntryArgs(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("group", c_size_t),
        ("n", c_size_t),
        ("param", Buffer),
        ("grad", Buffer),
        ("lr_scale", Buffer),
        ("states", POINTER(Buffer)),
        ("state_count", c_size_t),
        ("lr_factor", c_double),
        ("copy", Buffer),
        ("average", Buffer),
        ("low_bits", c_void_p),
        ("state_scales", POINTER(c_void_p)),
    )


class StepArgs(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("scale", c_double),
        ("max_grad_norm", c_double),
        ("max_grad_value", c_double),
        ("average_decay", c_double),
        ("average_correction", c_int),
        ("nonfinite", c_int),
        ("clear_grads", c_int),
        ("rounding", c_int),
        ("seed", c_uint64),
    )


class StepReport(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("updates", c_uint64),
        ("skipped", c_uint64),
        ("grad_norm", c_double),
        ("was_skipped", c_int),
    )


def function(name: str, *types):
    call = ctypes.CFUNCTYPE(c_int, *types)(gdm.c_functions()[f"gdm_{name}"][0])
    return lambda *arguments: STATUS[call(*arguments)]


create = function("plan_create", POINTER(c_void_p))
destroy = ctypes.CFUNCTYPE(None, c_void_p)(gdm.c_functions()["gdm_plan_destroy"][0])
add_group = function("plan_add_group", c_void_p, c_int, c_void_p, POINTER(c_size_t))
set_args = function("plan_set_args", c_void_p, c_size_t, c_void_p)
set_lr = function("plan_set_lr", c_void_p, c_size_t, c_double)
add = function("plan_add", c_void_p, POINTER(EntryArgs), POINTER(c_size_t))
set_grad = function("plan_set_grad", c_void_p, c_size_t, Buffer)
set_lr_scale = function("plan_set_lr_scale", c_void_p, c_size_t, Buffer)
set_lr_factor = function("plan_set_lr_factor", c_void_p, c_size_t, c_double)
set_scale = function("plan_set_scale", c_void_p, c_double)
set_step_args = function("plan_set_step_args", c_void_p, POINTER(StepArgs))
set_scale = function("plan_set_scale", c_void_p, c_double)
get_report = function("plan_get_report", c_void_p, POINTER(StepReport))
swap = function("plan_swap", c_void_p, c_int)
set_mode = function("plan_set_mode", c_void_p, c_int)
get_mode = function("plan_get_mode", c_void_p, POINTER(c_int))
set_updates = function("plan_set_updates", c_void_p, c_uint64, c_uint64)
accumulate = function("accumulate", POINTER(Buffer), POINTER(Buffer), POINTER(c_size_t), c_size_t, c_double)
set_num_threads = function("plan_set_num_threads", c_void_p, c_int)
step = function("plan_step", c_void_p)
prepare = function("plan_prepare", c_void_p)
get_progress = function("plan_get_progress", c_void_p, c_size_t, POINTER(c_uint64), POINTER(c_double))
set_progress = function("plan_set_progress", c_void_p, c_size_t, c_uint64, POINTER(c_double))
get_group_steps = function("plan_get_group_steps", c_void_p, c_size_t, POINTER(c_uint64))
set_group_steps = function("plan_set_group_steps", c_void_p, c_size_t, c_uint64)
get_error = function("plan_get_error", c_void_p, POINTER(c_size_t), POINTER(c_size_t))
reduce = function("reduce", c_int, POINTER(Buffer), POINTER(c_size_t), c_size_t, POINTER(c_double))
plan_reduce = function("plan_reduce", c_void_p, c_int, POINTER(c_double))


def buffer(x, dtype: int | None = None) -> Buffer:
    """A buffer of an array, of an address, or of None; of the array's dtype unless another one is named."""
    if isinstance(x, np.ndarray):
        of_array = {np.dtype(stored): dtype for dtype, stored in STORED_AS.items()}
        return Buffer(
            x.ctypes.data, of_array.get(x.dtype, INT8 if x.itemsize == 1 else F32) if dtype is None else dtype
        )
    return Buffer(x, dtype or F32)


def entry_args(group: int, param, states, grad, n: int | None = None, dtype: int | None = None, **more) -> EntryArgs:
    """The argument struct of an entry; `states` is a list."""
    own = (Buffer * len(states))(*(buffer(state, dtype) for state in states))
    return EntryArgs(
        **{
            "size": ctypes.sizeof(EntryArgs),
            "group": group,
            "n": param.size if n is None else n,
            "param": buffer(param, dtype),
            "grad": buffer(grad, dtype),
            "states": own,
            "state_count": len(states),
            "lr_factor": 1.0,
            **more,
        }
    )


def step_args(**fields) -> StepArgs:
    return StepArgs(**{"size": ctypes.sizeof(StepArgs), "scale": 1.0, **fields})


def report_of(plan) -> StepReport:
    report = StepReport(size=ctypes.sizeof(StepReport))
    assert get_report(plan, byref(report)) == "OK"
    return report


def add_arrays(plan, group: int, param, states, grad, *more, **fields) -> str:
    return add(plan, byref(entry_args(group, param, states, grad, *more, **fields)), byref(c_size_t()))


def new_plan():
    """An empty plan. Whoever asks for it destroys it."""
    plan = c_void_p()
    assert create(byref(plan)) == "OK"
    return plan


def new_group(plan, rule: str, **options) -> int:
    group = c_size_t()
    assert add_group(plan, RULE[rule], byref(args(rule, **options)), byref(group)) == "OK"
    return group.value


def steps_of(plan, entry: int = 0) -> int:
    steps = c_uint64(999)
    assert get_progress(plan, entry, byref(steps), None) == "OK"
    return steps.value


def scalars_of(plan, entry: int = 0) -> float:
    """The only scalar of a rule that has one."""
    scalar = c_double(999)
    assert get_progress(plan, entry, None, byref(scalar)) == "OK"
    return scalar.value


def group_steps(plan, group: int = 0) -> int:
    steps = c_uint64(999)
    assert get_group_steps(plan, group, byref(steps)) == "OK"
    return steps.value


def error_of(plan) -> tuple[int, int]:
    """The entries that the last status is about."""
    entry, other = c_size_t(), c_size_t()
    assert get_error(plan, byref(entry), byref(other)) == "OK"
    return entry.value, other.value
