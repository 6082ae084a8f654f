"""A schedule as a list of pieces: each a formula and the step from which it holds.

The list is flat: a schedule made of schedules consists of all their pieces. Single steps (:class:`Schedule`) and blocks
of steps (``_blocks.py``) are computed from the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import sub
from typing import Any, TypeVar

from . import formulas
from .arguments import MAX_STEP

X = TypeVar("X")
Y = TypeVar("Y")

try:
    from ._formulas import in_default_mode as in_default_mode
except ImportError:

    def in_default_mode(function: Callable[[X, Y], float], x: X, y: Y) -> float:
        return function(x, y)


Formula = Callable[[int, Any], float]
# The step from which it holds, which is step 0 of the formula; the formula; its constants. A piece ends where the next
# one starts. It is a plain tuple, since Python takes longer to unpack any other.
Piece = tuple[int, Formula, tuple[Any, ...]]
Pieces = tuple[Piece, ...]


def everywhere(formula: Formula, *constants: Any) -> Pieces:
    """One formula for all steps."""
    return ((0, formula, constants),)


def transition(formula: Formula, first: float, last: float, steps: int, *constants: Any) -> Pieces:
    """A formula that leads from the first value, at step 0, towards the last value, which holds from ``steps`` on."""
    change = in_default_mode(sub, last, first)
    return (0, formula, (first, change, steps, *constants)), (steps, formulas.constant, (last,))


def concatenate(parts: Sequence[Pieces], boundaries: Sequence[int]) -> Pieces:
    """Schedules one after the other, as one list. Each counts its own steps, and ends where the next begins."""
    begins = (0, *boundaries)
    ends = (*boundaries, MAX_STEP + 1)
    return tuple(
        (begin + start, formula, constants)
        for part, begin, end in zip(parts, begins, ends, strict=True)
        for start, formula, constants in part
        if begin + start < end
    )


def with_warmup(steps: int, pieces: Pieces, start: float = 0.0) -> Pieces:
    """A straight line from ``start`` to the first value, and then the pieces."""
    if steps == 0:
        return pieces
    _, formula, constants = pieces[0]
    is_own = formula is formulas.own_function  # it runs in the mode of its thread
    first = formula(0, constants) if is_own else in_default_mode(formula, 0, constants)
    rise = transition(formulas.line, start, first, steps)
    return concatenate([rise, pieces], [steps])
