"""The iterations: the plain method with a given learning rate, or with one that is sought in every step.

The optimizer makes each update. What is here chooses the rate, takes back steps that fail, and clears the momentum.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .box import Array, Box
from .objective import Objective
from .run import PRECISION, Point, Run, noise

# A step must lower the value by at least this part of what the slope promises (Armijo's condition; Nocedal and Wright,
# Numerical Optimization, 2nd edition, section 3.1).
SUFFICIENT = 1e-4
FIRST = 0.01  # the first step moves the variable that moves most by this, times max(1, largest |x|)
SHRINK = (0.1, 0.5)  # the least and the largest factor of the rate after a step that failed
GROW = 10.0  # its factor while it is too small to change x
FAILURES = 2  # so many failures with the momentum, then without it
TRIALS = 100  # no step is tried more often: the last one is shorter than the first by 30 orders of magnitude or more


class Method(NamedTuple):
    """One of the methods."""

    name: str
    optimizer: Callable[[Array, Any], Any]  # from the point, which it will move, and a learning rate
    unit_steps: bool  # whether the first step has the length lr, whatever the gradient
    memory: int = 1  # a step must lower the largest of so many last values
    change: tuple[float, float] = (
        0.2,
        10.0,
    )  # the least and the largest factor of the rate after a step that succeeded


class Walk:
    """A point that an optimizer moves, the gradient that it reads, and the function that they belong to."""

    def __init__(self, method: Method, x: Array, objective: Objective, box: Box) -> None:
        self.method, self.objective, self.box = method, objective, box
        self.x, self.grad = x, np.empty_like(x)
        self.first = self.point()

    def point(self) -> Point:
        """Evaluates where it is. The gradient is not asked for where the value is not finite."""
        value = self.objective.value(self.x)
        if math.isfinite(value):
            self.objective.gradient(self.x, value, self.grad)
        else:
            self.grad[:] = np.nan
        return self.point_of(value)

    def point_of(self, value: float) -> Point:
        """Where it is, with this value and the gradient as it has been evaluated."""
        return Point(self.x.copy(), value, self.grad.copy(), self.box.residual(self.x, self.grad))

    def plain(self, run: Run, lr: Any) -> float:
        """Makes the method's own steps, and returns the last learning rate."""
        opt = self.bound(lr)
        group = opt.groups[0]
        rate = group.current_lr
        while run.status is None:
            rate = group.current_lr
            run.record(self.iterate(opt), rate)
        return float(rate)

    def iterate(self, opt: Any) -> Point:
        """Makes a step, and returns the point that it leads to."""
        opt.step()
        self.box.project(self.x)
        return self.point()

    def bound(self, lr: Any) -> Any:
        """An optimizer of the point, which reads the gradient."""
        opt = self.method.optimizer(self.x, lr)
        opt.bind(self.grad)
        return opt

    def searching(self, run: Run) -> float:
        """Makes steps that lower the value, and returns the last learning rate."""
        if run.status is not None:
            return 0.0
        search = Search(self, run.best)
        while run.status is None:
            point = search.step()
            if point is None:
                run.stop(PRECISION)
            else:
                run.record(point, search.last_lr)
        return search.last_lr


class Search:
    """Steps whose learning rate is found by trying; see ``docs/scipy.md``."""

    def __init__(self, walk: Walk, start: Point) -> None:
        self._walk, self._at = walk, start
        self._lr = self.last_lr = self._rate_for(FIRST * max(1.0, largest(start.x)))
        self._length = 0.0  # of the last step
        self._opt = walk.bound(self._lr)
        self._cleared = self._state = self._opt.state_dict()
        self._recent = deque([start.fun], maxlen=walk.method.memory)

    def step(self) -> Point | None:
        """Moves to a point of lower value. None if there is none along the gradient, even at the smallest distance."""
        failures = 0
        for _ in range(TRIALS):
            moved, slope = self._try()
            if slope >= 0 and self._state is not self._cleared:
                factor = self._clear(1.0)  # the momentum points uphill
            elif slope >= 0:  # the step is too short to change x
                if failures:
                    self._take_back()
                    return None
                factor = GROW
            else:
                point, factor = self._judge(moved, slope)
                if point is not None:
                    self._keep(point, moved, slope)
                    return point
                failures += 1
                if failures == FAILURES and self._state is not self._cleared:
                    factor = self._clear(factor)
            self._take_back()
            self._lr = self._in_range(self._lr * factor)
        return None

    def _try(self) -> tuple[Array, float]:
        """Makes a step. Returns the movement, and the slope along it: its product with the gradient."""
        walk = self._walk
        self._opt.lr = self._lr
        with np.errstate(over="ignore", invalid="ignore"):
            self._opt.step()
            walk.box.project(walk.x)
            moved = walk.x.astype(float) - self._at.x
            return moved, float(moved @ self._at.grad)

    def _judge(self, moved: Array, slope: float) -> tuple[Point | None, float]:
        """The new point, if it is good enough; else what to multiply the learning rate by."""
        walk, reference = self._walk, max(self._recent)
        if not math.isfinite(slope):
            return None, SHRINK[0]
        value = walk.objective.value(walk.x)
        if not math.isfinite(value):
            return None, SHRINK[0]
        margin = noise(reference, walk.x.dtype)
        if value <= reference + margin:
            walk.objective.gradient(walk.x, value, walk.grad)
            point = walk.point_of(value)
            # Where rounding hides the difference of the values, the slope at the new point decides (Hager and Zhang,
            # SIAM J. Optim. 16, 2005, "approximate Wolfe").
            lower = value <= reference + SUFFICIENT * slope
            if point.finite and (lower or abs(float(moved @ point.grad)) <= (1 - 2 * SUFFICIENT) * -slope):
                return point, 1.0
            if not point.finite:
                return None, SHRINK[0]
        # The parabola through both values with the slope at the first has its minimum here.
        excess = value - self._at.fun - slope
        return None, _between(-slope / (2 * excess) if excess > 0 else SHRINK[1], SHRINK)

    def _keep(self, point: Point, moved: Array, slope: float) -> None:
        """Goes on from a point, with the learning rate for which the slope along the last step would have become 0."""
        bend, limits = float(moved @ point.grad) - slope, self._walk.method.change
        self.last_lr = self._lr
        self._lr = self._in_range(self._lr * _between(-slope / bend if bend > 0 else limits[1], limits))
        self._at, self._length = point, largest(moved)
        self._recent.append(point.fun)
        self._state = self._opt.state_dict()

    def _clear(self, factor: float) -> float:
        """Goes on without momentum, and returns what to multiply the rate by: at least this."""
        self._state = self._cleared
        # Momentum may have been much longer than the gradient, and the rate for it is too small without it.
        return max(factor, self._rate_for(SHRINK[0] * self._length) / self._lr)

    def _take_back(self) -> None:
        self._walk.x[:] = self._at.x
        self._walk.grad[:] = self._at.grad
        self._opt.load_state_dict(self._state)

    def _rate_for(self, length: float) -> float:
        """The rate with which a step without momentum moves the variable that moves most by this length."""
        steepest = 1.0 if self._walk.method.unit_steps else largest(self._at.grad)
        return self._in_range(length / steepest if steepest else length)

    def _in_range(self, lr: float) -> float:
        limits = np.finfo(self._walk.x.dtype)
        return _between(lr, (float(limits.tiny), float(limits.max)))


def largest(x: Array) -> float:
    """The largest magnitude; 0 if there is none."""
    return float(np.abs(x).max(initial=0.0))


def _between(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])
