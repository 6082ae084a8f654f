"""Storage dtypes and stages in C plans: every step gives the bits of the rules and the stages in NumPy."""

from __future__ import annotations

import ctypes
import itertools
from ctypes import byref, c_size_t, c_void_p

import numpy as np
import pytest

import gdm
from cplan import (
    BF16,
    DTYPE,
    F16,
    F32,
    F64,
    INT8,
    REFUSE,
    SKIP,
    STOCHASTIC,
    STORED_AS,
    EntryArgs,
    StepArgs,
    add,
    buffer,
    destroy,
    new_group,
    new_plan,
    set_num_threads,
    set_step_args,
    step,
    step_args,
)
from gdm import _stages, reference
from gdm.optimizer.state import scalar_names, states_for
from support import ISAS, RULES

NAME = {number: name for name, number in DTYPE.items()}
SQUARES = {"state_sum", "square_avg", "exp_avg_sq", "max_exp_avg_sq"}
# Options that use every state of a rule.
OPTIONS = {
    "momentum": {"momentum": 0.9, "dampening": 0.1},
    "rmsprop": {"centered": True, "momentum": 0.5},
    "adam": {"amsgrad": True, "weight_decay": 0.1, "decoupled_weight_decay": True},
}
SIZES = [1, 2, 63, 127, 128, 129, 1023, 1024, 1025, 4095, 4096, 4097, 5000, 9000]


@pytest.fixture
def plan():
    made = new_plan()
    yield made
    destroy(made)


@pytest.fixture(params=ISAS)
def isa(request):
    before = gdm.isa()
    gdm.set_isa(request.param)
    yield request.param
    gdm.set_isa(before)


def aligned(n: int, dtype, offset: int = 0):
    """An array of zeros that begins so many elements behind a cache line."""
    dtype = np.dtype(dtype)
    memory = np.zeros((n + 64) * dtype.itemsize + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset * dtype.itemsize
    return memory[start : start + n * dtype.itemsize].view(dtype)


def numbers(n: int, seed: int = 0, scale: float = 1.0):
    """Numbers of many magnitudes."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n) * np.exp2(rng.integers(-8, 3, n)) * scale


class Stored:
    """A buffer of an entry: its memory, and what it holds in the compute dtype."""

    def __init__(self, values, dtype: int, compute, offset: int = 0, square: bool = False, split: bool = False) -> None:
        self.dtype, self.compute, self.square = dtype, compute, square
        n = len(values)
        self.scales = self.low = None
        if dtype == INT8:
            self.memory = aligned(n, np.uint8 if square else np.int8, offset)
            self.scales = np.zeros((n + 127) // 128, np.float32)
            return
        self.memory = aligned(n, STORED_AS[dtype], offset)
        if split:
            self.low = aligned(n, np.uint16, offset)
            self.memory[:], self.low[:] = _stages.split(values.astype(np.float32))
            return
        self.memory[:] = _stages.narrow(values.astype(compute), NAME[dtype])

    @property
    def buffer(self):
        return buffer(self.memory, self.dtype)

    @property
    def wide(self):
        if self.dtype == INT8:
            return _stages.dequantize(self.memory, self.scales, square=self.square, compute=self.compute)
        if self.low is not None:
            return _stages.join(self.memory, self.low)
        return _stages.widen(self.memory, NAME[self.dtype], self.compute)

    def expected(self, wide, random: bool, draws):
        """What the memory must hold after these numbers have been stored: a list of arrays."""
        if self.dtype == INT8:
            return list(_stages.quantize(wide, draws(), square=self.square))
        if self.low is not None:
            return list(_stages.split(wide))
        narrow = self.dtype in (BF16, F16)
        return [_stages.narrow(wide, NAME[self.dtype], draws() if random and narrow else None)]

    @property
    def arrays(self):
        return [x for x in (self.memory, self.scales, self.low) if x is not None]


class Entry:
    """An entry of a plan, and how the rules and stages in NumPy update it."""

    def __init__(
        self,
        plan,
        rule: str,
        n: int,
        *,
        param: int = F32,
        grad: int = F32,
        state: int = F32,
        copy: int | None = None,
        average: int | None = None,
        split: bool = False,
        offset: int = 0,
        index: int = 0,
        seed: int = 0,
        lr_scale: bool = False,
    ) -> None:
        self.rule, self.index, self.steps = rule, index, 0
        self.options = OPTIONS.get(rule, {})
        self.compute = np.float64 if param == F64 else np.float32
        names = reference.names(getattr(reference, rule).__wrapped__)[1]
        filled = {name: value for name, value in self.options.items() if name in names}
        self.states = [name for name in states_for(rule, {**defaults(rule), **filled}) if name is not None]
        every = states_for(rule, {**defaults(rule), **filled})
        self.param = Stored(numbers(n, seed), param, self.compute, offset, split=split)
        self.grad = Stored(numbers(n, seed + 1), grad, self.compute, offset)
        self.state = {
            name: Stored(np.zeros(n), state, self.compute, offset, square=name in SQUARES) for name in self.states
        }
        self.copy = None if copy is None else Stored(np.zeros(n), copy, self.compute, offset)
        self.average = None if average is None else Stored(self.param.wide, average, self.compute, offset)
        self.lr_scale = None
        more = {}
        if lr_scale:
            self.lr_scale = aligned(n, self.compute, offset)
            self.lr_scale[:] = np.abs(numbers(n, seed + 2))
            more["lr_scale"] = buffer(self.lr_scale)
        if copy is not None:
            more["copy"] = self.copy.buffer
        if average is not None:
            more["average"] = self.average.buffer
        if split:
            more["low_bits"] = self.param.low.ctypes.data
        states = [None if name is None else self.state[name] for name in every]
        if state == INT8:
            scales = [None if x is None else x.scales.ctypes.data for x in states]
            more["state_scales"] = (c_void_p * len(states))(*scales)
        buffers = [buffer(None) if x is None else x.buffer for x in states]
        more["states"] = (type(buffer(None)) * max(len(buffers), 1))(*buffers)
        if index == 0:
            new_group(plan, rule, lr=0.01, **c_options(rule, self.options))
        fields = {"size": ctypes.sizeof(EntryArgs), "n": n, "param": self.param.buffer, "grad": self.grad.buffer}
        fields |= {"state_count": len(states), "lr_factor": 1.0, **more}
        assert add(plan, byref(EntryArgs(**fields)), byref(c_size_t())) == "OK"

    def expected(self, around: StepArgs, updates: int, norm: float | None) -> list[tuple]:
        """What a step must leave: pairs of an array and what it must hold. Counts the step."""
        n = len(self.param.memory)
        factor = around.scale
        if around.max_grad_norm > 0:
            clip = around.max_grad_norm / (norm + 1e-6)
            factor = factor if clip >= 1 else factor * clip
        grad = self.grad.wide
        if factor != 1:
            grad = _stages.scaled(grad, factor)
        if around.max_grad_value > 0:
            grad = _stages.limited(grad, around.max_grad_value)
        self.steps += 1
        param = self.param.wide
        given = {**defaults(self.rule), **self.options, "lr": 0.01, "step": self.steps, "lr_scale": self.lr_scale}
        given |= {name: np.array(self.scalar()) for name in scalar_names(self.rule)}
        buffers = {"param": param, "grad": grad, **{name: x.wide for name, x in self.state.items()}}
        names = [*buffers, *reference.names(getattr(reference, self.rule).__wrapped__)[1], *scalar_names(self.rule)]
        given = {name: value for name, value in {**given, **buffers}.items() if name in names}
        new = reference.update(self.rule, given, first=self.steps == 1)
        for name in scalar_names(self.rule):
            self.kept = float(new.pop(name))
        random = around.rounding == STOCHASTIC

        def draws(role):
            return lambda: _stages.draws(around.seed, updates, self.index, role, 0, n)

        pairs = list(zip(self.param.arrays, self.param.expected(new["param"], random, draws(0)), strict=True))
        every = states_for(self.rule, {**defaults(self.rule), **self.options})
        for k, name in enumerate(every):
            if name is not None:
                stored = self.state[name]
                pairs += zip(stored.arrays, stored.expected(new[name], random, draws(3 + k)), strict=True)
        if self.copy is not None:
            pairs.append((self.copy.memory, _stages.narrow(new["param"], NAME[self.copy.dtype])))
        if self.average is not None:
            weight = _stages.average_weight(around.average_decay, updates + 1, bool(around.average_correction))
            wide = _stages.averaged(self.average.wide, new["param"], weight)
            pairs.append((self.average.memory, _stages.narrow(wide, NAME[self.average.dtype])))
        if around.clear_grads:
            pairs.append((self.grad.memory, np.zeros_like(self.grad.memory)))
        else:
            pairs.append((self.grad.memory, self.grad.memory.copy()))
        return pairs

    kept = 1.0

    def scalar(self) -> float:
        return self.kept


def defaults(rule: str) -> dict:
    import inspect

    parameters = inspect.signature(getattr(reference, rule)).parameters.values()
    return {x.name: x.default for x in parameters if x.default is not x.empty and x.default is not None}


def c_options(rule: str, options: dict) -> dict:
    given = {**defaults(rule), **options}
    given = {name: value for name, value in given.items() if name not in ("lr", "step", "lr_scale")}
    if "form" in given:
        given["form"] = ("torch", "classic").index(given["form"])
    return {name: tuple(x) if isinstance(x, (tuple, list)) else x for name, x in given.items()}


def check_steps(plan, entries: list[Entry], around: StepArgs, steps: int = 3) -> None:
    assert set_step_args(plan, byref(around)) == "OK"
    for updates in range(steps):
        for entry in entries:
            entry.grad.memory[:] = _stages.narrow(
                numbers(len(entry.grad.memory), 10 * updates + entry.index).astype(entry.compute),
                NAME[entry.grad.dtype],
            )
        squares = [entry.grad.wide for entry in entries]
        norm = gdm.grad_norm(squares) * abs(around.scale)
        pairs = [pair for entry in entries for pair in entry.expected(around, updates, norm)]
        assert step(plan) == "OK"
        for found, wanted in pairs:
            np.testing.assert_array_equal(bits(found), bits(wanted))


def bits(x):
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[x.itemsize])


# ---- whole steps ----

COMBINATIONS = [
    (param, grad, state)
    for param, grad, state in itertools.product(
        (F32, F64, BF16, F16), (F32, F64, BF16, F16), (F32, F64, BF16, F16, INT8)
    )
    if F64 not in (grad, state) or param == F64
]


@pytest.mark.parametrize(("param", "grad", "state"), COMBINATIONS, ids=lambda x: NAME[x])
@pytest.mark.parametrize("rounding", [0, STOCHASTIC], ids=["nearest", "stochastic"])
def test_every_combination_of_dtypes(plan, isa, param, grad, state, rounding):
    entry = Entry(plan, "adam", 1500, param=param, grad=grad, state=state)
    check_steps(plan, [entry], step_args(rounding=rounding, seed=7))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("state", [F32, BF16, F16, INT8], ids=lambda x: NAME[x])
@pytest.mark.parametrize("param", [F32, F64, BF16], ids=lambda x: NAME[x])
def test_every_rule(plan, isa, rule, param, state):
    entry = Entry(plan, rule, 1100, param=param, grad=BF16, state=state, lr_scale=True)
    check_steps(plan, [entry], step_args(rounding=STOCHASTIC, seed=3, scale=0.5))


AROUND = {
    "scale": {"scale": 1 / 1024},
    "negative scale": {"scale": -0.3},
    "norm": {"max_grad_norm": 1.0},
    "large norm": {"max_grad_norm": 1e9},
    "value": {"max_grad_value": 0.1},
    "both": {"max_grad_norm": 2.0, "max_grad_value": 0.01, "scale": 3.0},
    "clear": {"clear_grads": 1},
    "average": {"average_decay": 0.9},
    "corrected average": {"average_decay": 0.99, "average_correction": 1},
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


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("param", [F32, F64, BF16, "split"], ids=["float32", "float64", "bfloat16", "split"])
def test_what_is_done_around_the_rule(plan, isa, param, around):
    split = param == "split"
    dtype = BF16 if split else param
    entries = [
        Entry(
            plan,
            "adam",
            n,
            param=dtype,
            split=split,
            grad=F32,
            copy=(F16, F64, F32)[index],
            average=(F32, BF16, F16)[index],
            index=index,
        )
        for index, n in enumerate((1300, 7, 4200))
    ]
    check_steps(plan, entries, step_args(**around))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("offset", [0, 1, 7])
def test_sizes_and_offsets(isa, n, offset):
    for param, state in ((F32, BF16), (BF16, F32), (BF16, INT8), (F64, INT8)):
        plan = new_plan()
        entry = Entry(plan, "adam", n, param=param, grad=BF16, state=state, average=F32, offset=offset)
        check_steps(plan, [entry], step_args(rounding=STOCHASTIC, average_decay=0.5), steps=2)
        destroy(plan)


@pytest.mark.parametrize("threads", range(1, 9))
def test_the_number_of_threads_changes_nothing(plan, threads):
    sizes = (300_000, 5, 40_000, 70_001)
    entries = [
        Entry(plan, "adam", n, param=BF16, grad=BF16, state=(BF16, INT8)[index % 2], copy=F32, average=F32, index=index)
        for index, n in enumerate(sizes)
    ]
    assert set_num_threads(plan, threads) == "OK"
    around = step_args(rounding=STOCHASTIC, seed=5, average_decay=0.9, max_grad_norm=1.0, clear_grads=1)
    check_steps(plan, entries, around, steps=2)
