"""The states of an optimizer: which ones its parameters need, and where in memory they lie.

A kernel reads and writes a parameter and its states side by side. How fast it does depends on their addresses
(docs/decisions.md, "Where states lie"):

- A state lies in its cache lines as its parameter does, so that a kernel reaches the beginning of a line in all of them
  at the same element.
- The large states of a parameter, and the parameter itself, are apart from each other, counted modulo ``PERIOD``.
  Streams whose addresses agree there fight for the same places in the caches.

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
LARGE = 1 << 20  # bytes of a state from which it pays to keep it apart from the others
PERIOD = 1 << 16  # bytes after which addresses meet the same places in a cache again
DISTANCE = 1 << 14  # bytes between two streams of one parameter, modulo PERIOD


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


def allocate(params: list[Array], wanted: list[int]) -> list[Array]:
    """Memory for states, filled with zeros.

    ``wanted`` holds, for each state, the index of its parameter. The state has that parameter's dtype, shape and order.
    """
    if not wanted:
        return []
    extents = memory_extents(params)
    distance: dict[int, int] = {}  # of the last state of each large parameter from it, modulo PERIOD
    starts = []  # where each state begins in a block of memory that starts at a multiple of PERIOD
    end = 0
    for i in wanted:
        address, nbytes = extents[i]
        if nbytes < LARGE:
            start = end + (address - end) % LINE
        else:
            distance[i] = distance.get(i, 0) + DISTANCE
            start = end + (address + distance[i] - end) % PERIOD
        starts.append(start)
        end = start + nbytes
    alignment = PERIOD if distance else LINE
    memory = np.zeros(end + alignment, dtype=np.uint8)
    [(address, _)] = memory_extents([memory])
    offset = -address % alignment
    return carve(memory, [offset + start for start in starts], [params[i] for i in wanted])
