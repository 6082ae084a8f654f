"""The learning rates of many steps in a row: what an optimizer asks for, since one step at a time costs more."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import MAX_STEP
from .schedule import Schedule

compiled: Callable[[tuple[Any, ...], int, int, int], NDArray[np.float64]] | None
try:
    from ._formulas import block as compiled
except ImportError:
    compiled = None


def rates(schedule: Callable[[int], float], first_step: int, count: int) -> NDArray[np.float64] | None:
    """``schedule(step)``, bit for bit, for ``count`` steps from ``first_step`` on.

    ``first_step`` and ``count`` are whole numbers, not negative; they are not checked. There are fewer values where the
    steps would go beyond 2**53, the last step of a schedule, and none if ``first_step`` is beyond it.

    None for a user's own function, and for a schedule that contains one: it must be called once for each step, at that
    step.
    """
    if not isinstance(schedule, Schedule) or schedule._has_own_function:
        return None
    count = max(0, min(count, MAX_STEP + 1 - first_step))
    if compiled is None:
        return np.array([schedule(step) for step in range(first_step, first_step + count)], np.float64)
    return compiled(schedule._pieces, bisect_right(schedule._starts, first_step), first_step, count)
