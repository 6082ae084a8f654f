"""The states of an optimizer: which ones its parameters need, and where in memory they lie.

A kernel reads and writes a parameter and its states side by side. How fast it does depends on their addresses
(docs/decisions.md, "Where states lie"):

- A state lies in its cache lines as its parameter does, so that a kernel reaches the beginning of a line in all of them
  at the same element.
- The k-th state of a parameter begins ``k * DISTANCE`` bytes after it, modulo a period. Streams whose addresses agree
  in their low bits fight for the same places in the caches. A load waits for a store whose last 12 bits are the same.
- Small states lie side by side, since the gaps would cost more than they gain.

All the states that an optimizer allocates at a time are parts of one block of memory. They do not own their memory, so
they cannot be resized, and a step need not check whether they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .. import _checks, reference
from .._arrays import carve, memory_extents
from .._checks import Array, Options
from .._stages import BLOCK, STORED
from .around import Storage, computed_in, stored_as

LINE = 64  # bytes of a cache line
DISTANCE = 17 << 10  # bytes between two streams of one parameter: 1 KiB modulo a page, 17 KiB modulo more
# From so many bytes of a state on, the period after which addresses are alike again.
PERIODS = ((1 << 20, 1 << 17), (32 << 10, 1 << 12))


@cache
def state_names(rule: str) -> tuple[str, ...]:
    """The names of all states that a rule may have, in its order."""
    formula = getattr(reference, rule).__wrapped__
    return tuple(name for name in reference.written(formula) if name != "param" and name not in _checks.SCALARS)


@cache
def scalar_names(rule: str) -> tuple[str, ...]:
    """The names of the scalars that a rule keeps from step to step, in its order."""
    return tuple(name for name in reference.written(getattr(reference, rule).__wrapped__) if name in _checks.SCALARS)


def states_for(rule: str, options: Options) -> list[str | None]:
    """The names of the states of a rule, in its order; None in the place of one that these options do not need."""
    needed_by = _checks.OPTIONAL_STATES
    return [name if name not in needed_by or options[needed_by[name]] else None for name in state_names(rule)]


def places(addresses: list[int], wanted: list[int], sizes: list[int]) -> tuple[list[int], int, int]:
    """Where states lie in a new block of memory.

    ``addresses`` are those of the parameters; ``wanted`` holds, for each state, the index of its parameter, ``sizes``
    its size in bytes. Returns where each state begins, if the block begins at a multiple of the alignment; where the
    last one ends; and the alignment.
    """
    count: dict[int, int] = {}  # of the states of each parameter that is not small
    starts = []
    end, alignment = 0, LINE
    for i, nbytes in zip(wanted, sizes, strict=True):
        address = addresses[i]
        period = LINE
        if nbytes >= PERIODS[-1][0]:
            period = next(period for size, period in PERIODS if nbytes >= size)
            count[i] = count.get(i, 0) + 1
            address += count[i] * DISTANCE
            alignment = max(alignment, period)
        start = end + (address - end) % period
        starts.append(start)
        end = start + nbytes
    return starts, end, alignment


def block(nbytes: int, alignment: int) -> tuple[Array, int]:
    """New memory, filled with zeros; and where in it a block of so many bytes begins at a multiple of the alignment."""
    memory = np.zeros(nbytes + alignment, dtype=np.uint8)
    [(address, _)] = memory_extents([memory])
    return memory, -address % alignment


class Wanted(NamedTuple):
    """An array that a parameter is to get."""

    param: int  # the index of the parameter
    like: Array  # has its shape and order
    dtype: np.dtype[Any]


def allocate(params: list[Array], wanted: list[Wanted]) -> list[Array]:
    """Memory for states and what belongs to them, filled with zeros."""
    if not wanted:
        return []
    sizes = [x.like.size * x.dtype.itemsize for x in wanted]
    starts, end, alignment = places([start for start, _ in memory_extents(params)], [x.param for x in wanted], sizes)
    memory, offset = block(end, alignment)
    return carve(memory, [offset + start for start in starts], [x.like for x in wanted], [x.dtype for x in wanted])


# The states of the kind `square` in csrc/rules.def (a test compares them).
SQUARES = ("state_sum", "square_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "acc_delta", "step_size")


# The states that hold something during a step only: they are not saved, and no user sees them.
WORK = ("update",)


def scale_of(name: str) -> str:
    """The name of the scales of an int8 state."""
    return f"{name}_scale"


Needed = dict[str, tuple[np.dtype[Any], Array]]  # for each array its dtype, and one that has its shape and order


def arrays_for(rule: str, options: Options, param: Array, storage: Storage, average: bool) -> Needed:
    """All arrays that a parameter needs: its states and what belongs to them."""
    return possible_arrays([name for name in states_for(rule, options) if name is not None], param, storage, average)


def possible_arrays(names: Iterable[str], param: Array, storage: Storage, average: bool) -> Needed:
    """The states of these names and what belongs to them."""
    needed: Needed = {}
    stored = stored_as(storage, param)
    for name in names:
        if name in WORK:
            needed[name] = computed_in(param), param
        elif stored == "int8":
            needed[name] = np.dtype(np.uint8 if name in SQUARES else np.int8), param
            needed[scale_of(name)] = np.dtype(np.float32), np.empty(-(-param.size // BLOCK), np.float32)
        else:
            needed[name] = np.dtype(STORED[stored]), param
    if storage.split_masters and param.dtype == np.uint16:
        needed["low_bits"] = np.dtype(np.uint16), param
    if average:
        needed["average"] = computed_in(param), param
    return needed
