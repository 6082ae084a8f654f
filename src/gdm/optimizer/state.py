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

from functools import cache

import numpy as np

from .. import _checks, reference
from .._arrays import carve, memory_extents
from .._checks import Array, Options

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


def places(extents: list[tuple[int, int]], wanted: list[int]) -> tuple[list[int], int, int]:
    """Where states lie in a new block of memory.

    ``extents`` are the address and size of each parameter; ``wanted`` holds, for each state, the index of its
    parameter. Returns where each state begins, if the block begins at a multiple of the alignment; where the last one
    ends; and the alignment.
    """
    count: dict[int, int] = {}  # of the states of each parameter that is not small
    starts = []
    end, alignment = 0, LINE
    for i in wanted:
        address, nbytes = extents[i]
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


def allocate(params: list[Array], wanted: list[int]) -> list[Array]:
    """Memory for states, filled with zeros.

    ``wanted`` holds, for each state, the index of its parameter. The state has that parameter's dtype, shape and order.
    """
    if not wanted:
        return []
    starts, end, alignment = places(memory_extents(params), wanted)
    memory, offset = block(end, alignment)
    return carve(memory, [offset + start for start in starts], [params[i] for i in wanted])
