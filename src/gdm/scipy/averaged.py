"""Iterations of Schedule-Free, whose result is an average of the points that it walks through."""

from __future__ import annotations

from typing import Any

import numpy as np

from .box import Array
from .run import PRECISION, Point, Run
from .walk import FIRST, Walk, largest

CYCLE, LONGEST = 10, 1000  # how many iterations a cycle of the search for a rate has: the first one, and the most
FASTER, SLOWER = 2.0, 0.25  # the factors of the rate


class AveragedWalk(Walk):
    """The gradients are computed at one sequence of points, and the run is judged by their average.

    So an iteration evaluates the function twice. Bounds are refused: the iterates cannot be projected.
    """

    def searching(self, run: Run) -> float:
        """Restarts from the best point after each cycle.

        A cycle that lowered the value is followed by one with a larger rate, or by a longer one if that rate is near
        one that failed. A cycle that failed is followed by a short one with a smaller rate.
        """
        rate, length, ceiling = self._first_rate(run.best), CYCLE, np.inf
        last = 0.0
        while run.status is None:
            start = run.best
            if not _moves(start, rate):
                run.stop(PRECISION)
                break
            self.x[:], self.grad[:] = start.x, start.grad
            if not self._cycle(run, rate, length):
                ceiling, rate, length = rate, rate * SLOWER, CYCLE
                continue
            last = rate
            if rate * FASTER < ceiling:
                rate *= FASTER
            else:
                length, ceiling = min(2 * length, LONGEST), ceiling * FASTER
        return last

    def _cycle(self, run: Run, rate: float, length: int) -> bool:
        """Makes some iterations; False if the value did not fall."""
        opt, start = self.bound(rate), run.best
        for _ in range(length):
            point = self.iterate(opt)
            if not point.finite or not np.isfinite(self.grad).all():
                return False
            if point.fun > start.fun + abs(start.fun - run.first.fun):  # far above what it began with
                return False
            run.record(point, rate)
            if run.status is not None:
                return True
        return run.best is not start

    def iterate(self, opt: Any) -> Point:
        """Makes a step; returns the average, and leaves the gradient at the next point to compute it at."""
        with np.errstate(over="ignore", invalid="ignore"):
            opt.step()
        walked = self.x.copy()
        opt.eval()
        point = self.point()
        opt.train()
        self.x[:] = walked  # to the bit: train() may have changed the last ones
        self.point()
        return point

    def _first_rate(self, start: Point) -> float:
        """The rate with which the first step moves the variable that moves most by a small share."""
        return FIRST * max(1.0, largest(start.x)) / (largest(start.grad) or 1.0)


def _moves(point: Point, rate: float) -> bool:
    """Whether a step changes more than rounding does."""
    x: Array = point.x
    return bool(np.any(np.abs(rate * point.grad) > np.finfo(x.dtype).eps * np.abs(x)))
