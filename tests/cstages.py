"""Plans in C with any storage dtypes and stages, and what a step must leave: by gdm.reference and gdm._stages."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from ctypes import byref, c_double, c_size_t, c_void_p
from dataclasses import dataclass

import numpy as np

import gdm
import support
from cplan import (
    BF16,
    DTYPE,
    EVAL,
    F16,
    F32,
    F64,
    INT8,
    PROPAGATE,
    REFUSE,
    STOCHASTIC,
    STORED_AS,
    Buffer,
    EntryArgs,
    StepArgs,
    add,
    buffer,
    destroy,
    new_group,
    new_plan,
    reduce,
    report_of,
    set_grad,
    set_progress,
    set_step_args,
    step,
    step_args,
    swap,
)
from gdm import _stages, reference
from gdm._checks import SCALARS
from gdm.optimizer.state import scalar_names, states_for
from support import RULES

NAME = {number: name for name, number in DTYPE.items()}
FLOATS = (F32, F64, BF16, F16)
SQUARES = {name for rule in RULES.values() for name in rule["squares"]}  # int8 storage keeps their roots
# Options that use every state of a rule.
FULL = {
    "momentum": {"momentum": 0.9, "dampening": 0.1},
    "rmsprop": {"centered": True, "momentum": 0.5},
    "adam": {"amsgrad": True, "weight_decay": 0.1, "decoupled_weight_decay": True},
}
UNTOUCHED = 0xA5  # the bytes around every buffer


def numbers(n: int, seed: int = 0) -> np.ndarray:
    """Numbers of many magnitudes."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n) * np.exp2(rng.integers(-8, 3, n))


def place(n: int, dtype, offset: int = 0) -> np.ndarray:
    """An array of zeros that begins so many elements behind a cache line, among bytes that nobody may touch."""
    dtype = np.dtype(dtype)
    memory = np.full((n + 64) * dtype.itemsize + 128, UNTOUCHED, np.uint8)
    start = 64 + -memory.ctypes.data % 64 + offset * dtype.itemsize
    array = memory[start : start + n * dtype.itemsize].view(dtype)
    array[...] = 0
    return array


def is_alone(array: np.ndarray) -> bool:
    """Whether the bytes around an array of place() are what they were."""
    start = array.ctypes.data - array.base.ctypes.data
    outside = array.base[:start], array.base[start + array.nbytes :]
    return all((part == UNTOUCHED).all() for part in outside)


def bits(x: np.ndarray, dtype: int | None = None) -> np.ndarray:
    """The bit patterns, with every NaN made the same one."""
    if dtype == BF16:
        return np.where(x & 0x7FFF > 0x7F80, np.uint16(0x7FC0), x)
    return support.bits(x) if x.dtype.kind == "f" else x


def narrow(x: np.ndarray, dtype: int, draws: np.ndarray | None = None) -> np.ndarray:
    return _stages.narrow(x, NAME[dtype], draws)


class Stored:
    """A buffer of an entry: its memory, and the numbers that it stands for in the compute dtype."""

    def __init__(self, values, dtype: int, compute, *, offset: int = 0, square: bool = False, split: bool = False):
        self.dtype, self.compute, self.square = dtype, compute, square
        n = len(values)
        self.scales = self.low = None
        if dtype == INT8:
            self.memory = place(n, np.uint8 if square else np.int8, offset)
            self.scales = place((n + 127) // 128, np.float32, offset)
        else:
            self.memory = place(n, STORED_AS[dtype], offset)
        if split:
            self.low = place(n, np.uint16, offset)
        self.set(values)

    def set(self, values) -> None:
        half = np.full(len(values), 1 << 31, np.uint32)
        for array, stored in zip(self.arrays, self.after(np.asarray(values, self.compute), half), strict=True):
            array[...] = stored

    @property
    def buffer(self) -> Buffer:
        return buffer(self.memory, self.dtype)

    @property
    def arrays(self) -> list[np.ndarray]:
        return [x for x in (self.memory, self.scales, self.low) if x is not None]

    @property
    def wide(self) -> np.ndarray:
        if self.dtype == INT8:
            return _stages.dequantize(self.memory, self.scales, square=self.square, compute=self.compute)
        if self.low is not None:
            return _stages.join(self.memory, self.low)
        return _stages.widen(self.memory, NAME[self.dtype], self.compute)

    def after(self, wide: np.ndarray, draws: np.ndarray, random: bool = False) -> list[np.ndarray]:
        """What the arrays must hold after these numbers have been stored. int8 is always stored at random."""
        if self.dtype == INT8:
            return list(_stages.quantize(wide, draws, square=self.square))
        if self.low is not None:
            return list(_stages.split(wide))
        return [narrow(wide, self.dtype, draws if random and self.dtype in (BF16, F16) else None)]


@dataclass
class Group:
    index: int
    rule: str
    options: dict  # as the reference has them
    lr: float

    @property
    def states(self) -> list[str | None]:
        """Their names, in the rule's order; None for one that the options do not use."""
        return states_for(self.rule, self.options)


def defaults(rule: str) -> dict:
    given = inspect.signature(getattr(reference, rule)).parameters.values()
    return {x.name: x.default for x in given if x.default is not x.empty and x.default is not None}


def c_options(options: dict) -> dict:
    """The same options as the fields of the rule's argument struct."""
    forms = {"torch": 0, "classic": 1}
    return {name: forms[x] if name == "form" else x for name, x in options.items() if name != "step"}


class Entry:
    """An entry of a plan, and how the rules and stages in NumPy update it."""

    def __init__(
        self,
        group: Group,
        index: int,
        n: int,
        *,
        param: int = F32,
        grad: int = F32,
        state: int = F32,
        copy: int | None = None,
        average: int | None = None,
        split: bool = False,
        lr_scale: bool = False,
        lr_factor: float = 1.0,
        offset: int = 0,
        fill: Callable[[str, int], np.ndarray] | None = None,
    ) -> None:
        self.group, self.index, self.n, self.lr_factor = group, index, n, lr_factor
        self.compute = np.float64 if param == F64 else np.float32
        self.steps, self.present = 0, True
        self.scalars = {name: SCALARS[name].initial for name in scalar_names(group.rule)}

        def stored(name: str, dtype: int, values, **more) -> Stored:
            return Stored(values if fill is None else fill(name, n), dtype, self.compute, offset=offset, **more)

        self.param = stored("param", param, numbers(n, index), split=split)
        self.grad = stored("grad", grad, numbers(n, index + 1))
        self.state = {
            name: stored(name, state, np.zeros(n), square=name in SQUARES) for name in group.states if name is not None
        }
        self.copy = None if copy is None else stored("copy", copy, np.zeros(n))
        self.average = None if average is None else stored("average", average, self.param.wide)
        self.lr_scale = Stored(np.abs(numbers(n, index + 2)), F64 if param == F64 else F32, self.compute, offset=offset)
        self.has_lr_scale = lr_scale

    @property
    def buffers(self) -> list[Stored]:
        optional = [x for x in (self.copy, self.average) if x is not None]
        return [self.param, self.grad, self.lr_scale, *self.state.values(), *optional]

    def args(self) -> EntryArgs:
        """The argument struct that adds it."""
        none = buffer(None)
        states = [None if name is None else self.state[name] for name in self.group.states]
        scales = [None if x is None or x.scales is None else x.scales.ctypes.data for x in states]
        fields = {
            "size": ctypes.sizeof(EntryArgs),
            "group": self.group.index,
            "n": self.n,
            "param": self.param.buffer,
            "grad": self.grad.buffer if self.present else none,
            "lr_scale": self.lr_scale.buffer if self.has_lr_scale else none,
            "states": (Buffer * max(len(states), 1))(*(none if x is None else x.buffer for x in states)),
            "state_count": len(states),
            "lr_factor": self.lr_factor,
            "copy": none if self.copy is None else self.copy.buffer,
            "average": none if self.average is None else self.average.buffer,
            "low_bits": None if self.param.low is None else self.param.low.ctypes.data,
            "state_scales": (c_void_p * max(len(states), 1))(*scales),
        }
        return EntryArgs(**fields)

    def draws(self, around: StepArgs, updates: int, role: int) -> np.ndarray:
        return _stages.draws(around.seed, updates, self.index, role, 0, self.n)

    def new(self, grad: np.ndarray) -> dict:
        """The new param, states and scalars."""
        names = [name for name in self.group.states if name is not None]
        given = {**self.group.options, "lr": self.group.lr * self.lr_factor, "step": self.steps + 1}
        given |= {"lr_scale": self.lr_scale.wide if self.has_lr_scale else None}
        given |= {name: np.array(x) for name, x in self.scalars.items()}
        given |= {"param": self.param.wide, "grad": grad, **{name: self.state[name].wide for name in names}}
        positional, keywords = reference.names(getattr(reference, self.group.rule).__wrapped__)
        given = {name: x for name, x in given.items() if name in positional + keywords}
        return reference.formula.update(self.group.rule, given, first=not self.steps)

    @np.errstate(all="ignore")
    def after(self, around: StepArgs, updates: int, factor: float) -> list[np.ndarray]:
        """What the arrays of its buffers must hold after a step, in their order. Counts the step."""
        grad = self.grad.wide
        if factor != 1:
            grad = _stages.scaled(grad, factor)
        if around.max_grad_value > 0:
            grad = _stages.limited(grad, around.max_grad_value)
        new = self.new(grad)
        self.steps += 1
        self.scalars = {name: float(new.pop(name)) for name in self.scalars}
        random = around.rounding == STOCHASTIC
        wanted = self.param.after(new["param"], self.draws(around, updates, 0), random)
        wanted += [np.zeros_like(x) if around.clear_grads else x.copy() for x in self.grad.arrays]
        wanted += [x.copy() for x in self.lr_scale.arrays]
        for k, name in enumerate(self.group.states):
            if name is not None:
                wanted += self.state[name].after(new[name], self.draws(around, updates, 3 + k), random)
        if self.copy is not None:
            wanted.append(narrow(new["param"], self.copy.dtype))
        if self.average is not None:
            weight = _stages.average_weight(around.average_decay, updates + 1, bool(around.average_correction))
            wanted.append(narrow(_stages.averaged(self.average.wide, new["param"], weight), self.average.dtype))
        return wanted

    def swapped(self, evaluate: bool) -> list[np.ndarray]:
        """What the arrays must hold after a swap of Schedule-Free's modes."""
        wanted = {id(x): x.copy() for stored in self.buffers for x in stored.arrays}
        if self.steps and "z" in self.state:
            options = self.group.options
            share = options["betas"][0] if "betas" in options else options["momentum"]
            new = _stages.swapped(self.param.wide, self.state["z"].wide, share, evaluate)
            wanted |= zip(map(id, self.param.arrays), self.param.after(new, np.zeros(self.n, np.uint32)), strict=True)
            if self.copy is not None:
                wanted[id(self.copy.memory)] = narrow(new, self.copy.dtype)
        return list(wanted.values())

    def unchanged(self, cleared: bool) -> list[np.ndarray]:
        """The arrays as they are; except the gradient's, if it is cleared."""
        pairs = [(x, cleared and stored is self.grad) for stored in self.buffers for x in stored.arrays]
        return [np.zeros_like(x) if zero else x.copy() for x, zero in pairs]

    def check(self, wanted: list[np.ndarray]) -> None:
        """All arrays hold this, and nothing around them has changed."""
        arrays = [(stored, x) for stored in self.buffers for x in stored.arrays]
        for (stored, found), right in zip(arrays, wanted, strict=True):
            dtype = stored.dtype if found is stored.memory else None
            np.testing.assert_array_equal(bits(found, dtype), bits(right, dtype), f"entry {self.index}")
            assert is_alone(found)


class Plan:
    """A plan, and the same in NumPy. ``step`` compares all memory."""

    def __init__(self) -> None:
        self.plan = new_plan()
        self.groups: list[Group] = []
        self.entries: list[Entry] = []
        self.around = step_args()
        self.updates = self.skipped = 0
        self.seed = 0

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *_) -> None:
        destroy(self.plan)

    def group(self, rule: str, lr: float = 0.01, **options) -> Group:
        options = {**defaults(rule), **FULL.get(rule, {}), **options}
        options.pop("lr", None)
        index = new_group(self.plan, rule, lr=lr, **c_options(options))
        self.groups.append(Group(index, rule, options, lr))
        return self.groups[-1]

    def entry(self, group: Group, n: int, **options) -> Entry:
        entry = Entry(group, len(self.entries), n, **options)
        index = c_size_t(777)
        assert add(self.plan, byref(entry.args()), byref(index)) == "OK"
        assert index.value == entry.index
        self.entries.append(entry)
        return entry

    def set(self, **fields) -> None:
        """What the steps do around the rule."""
        self.around = step_args(**fields)
        assert set_step_args(self.plan, byref(self.around)) == "OK"

    def leave_out(self, entry: Entry, left_out: bool = True) -> None:
        entry.present = not left_out
        assert set_grad(self.plan, entry.index, buffer(None) if left_out else entry.grad.buffer) == "OK"

    def set_progress(self, entry: Entry, steps: int, **scalars: float) -> None:
        entry.steps, entry.scalars = steps, {**entry.scalars, **scalars}
        values = (c_double * 2)(*entry.scalars.values())
        assert set_progress(self.plan, entry.index, steps, values) == "OK"

    def new_grads(self) -> None:
        for entry in self.entries:
            self.seed += 1
            entry.grad.set(numbers(entry.n, self.seed))

    @property
    def grads(self) -> list[np.ndarray]:
        return [entry.grad.wide for entry in self.entries if entry.present]

    @property
    def norm(self) -> float:
        """Of the widened gradients, by gdm_reduce."""
        result, grads = c_double(), self.grads
        buffers = (Buffer * max(len(grads), 1))(*map(buffer, grads))
        lengths = (c_size_t * max(len(grads), 1))(*(x.size for x in grads))
        assert reduce(0, buffers, lengths, len(grads), byref(result)) == "OK"
        return float(np.sqrt(result.value)) * abs(self.around.scale)

    def step(self) -> None:
        around, norm = self.around, self.norm
        stops = around.nonfinite != PROPAGATE and not all(np.isfinite(x).all() for x in self.grads)
        refused = stops and around.nonfinite == REFUSE
        factor = around.scale
        if around.max_grad_norm > 0:
            clip = around.max_grad_norm / (norm + 1e-6)
            factor = factor if clip >= 1 else factor * clip
        wanted = [
            entry.after(around, self.updates, factor)
            if entry.present and not stops
            else entry.unchanged(cleared=bool(entry.present and around.clear_grads and not refused))
            for entry in self.entries
        ]
        assert step(self.plan) == ("ERR_NONFINITE" if refused else "OK")
        for entry, right in zip(self.entries, wanted, strict=True):
            entry.check(right)
        self.updates += not stops
        self.skipped += stops and not refused
        report = report_of(self.plan)
        assert (report.updates, report.skipped) == (self.updates, self.skipped)
        if not refused:
            assert report.was_skipped == stops
            np.testing.assert_array_equal(report.grad_norm, norm if around.max_grad_norm > 0 else np.nan)

    def swap(self, mode: int) -> None:
        """To the other mode of Schedule-Free rules."""
        wanted = [entry.swapped(mode == EVAL) for entry in self.entries]
        assert swap(self.plan, mode) == "OK"
        for entry, right in zip(self.entries, wanted, strict=True):
            entry.check(right)

    def steps(self, count: int = 3, **around) -> None:
        """Steps with these step args, each with new gradients."""
        self.set(**around)
        for _ in range(count):
            self.new_grads()
            self.step()


def with_status(plan: Plan, entry: Entry, **fields) -> str:
    """The status of adding an entry with some fields changed. It does not become a part of ``plan.entries``."""
    wrong = entry.args()
    for name, value in fields.items():
        setattr(wrong, name, value)
    return add(plan.plan, byref(wrong), byref(c_size_t()))


def use_parallel_for(parallel_for) -> None:
    """Runs large steps on this function, a C function pointer; None: on gdm's own threads."""
    set_it = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)(gdm.c_functions()["gdm_set_parallel_for"][0])
    set_it(None if parallel_for is None else ctypes.cast(parallel_for, c_void_p), None)
