"""One minimization: the best point so far, when to stop, what is reported."""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from .box import Array

Reporter = Callable[[Any], Any]  # what is called with an OptimizeResult after each iteration

CONVERGED, MAXITER, PRECISION, NONFINITE, STOPPED = 0, 1, 2, 3, 99
MESSAGES = {
    MAXITER: "Maximum number of iterations has been exceeded.",
    PRECISION: "No smaller value was found along the last direction, however short the step: precision loss.",
    NONFINITE: "NaN or infinity encountered: the best finite point is returned. A smaller lr may help, or lr='auto'.",
    STOPPED: "`callback` raised `StopIteration`.",
}
STAGNATION = 10  # iterations within which the value must fall by more than ftol
# Two values whose relative difference is below this are equal: it may come from rounding alone.
ROUNDING = 8


class Point(NamedTuple):
    """A point, and what is known of it."""

    x: Array
    fun: float
    grad: Array
    residual: float  # the largest element of the projected gradient

    @property
    def finite(self) -> bool:
        return math.isfinite(self.fun) and math.isfinite(self.residual)


class Rules(NamedTuple):
    """When to stop."""

    maxiter: int
    gtol: float
    ftol: float


def noise(value: float, dtype: Any) -> float:
    """How much a value may be wrong by rounding."""
    return ROUNDING * float(np.finfo(dtype).eps) * abs(value)


class Run:
    """Follows the iterations: ``status`` is None until it is time to stop."""

    def __init__(self, name: str, first: Point, rules: Rules, report: Reporter | None, disp: bool) -> None:
        self._name, self._rules, self._disp = name, rules, disp
        self._report = report
        self.nit = 0
        self.best = self._lowest = self.first = first
        self._falls = deque([first.fun], maxlen=STAGNATION + 1)  # the lowest value after each of the last iterations
        self.status: int | None = None
        self.message = ""
        self._shown = -math.inf
        if not first.finite:
            what = "value of fun" if not math.isfinite(first.fun) else "gradient"
            self.stop(NONFINITE, f"The {what} at x0 is NaN or infinite.")
        else:
            self._look(first)
        self._show(first)

    def stop(self, status: int, message: str | None = None) -> None:
        """Ends the run, for this reason."""
        self.status, self.message = status, MESSAGES[status] if message is None else message

    def record(self, point: Point, lr: float) -> None:
        """Takes the point that an iteration has arrived at."""
        self.nit += 1
        if not point.finite:
            self.stop(NONFINITE)
            return
        if self._is_better(point):
            self.best = point
        if point.fun < self._lowest.fun:
            self._lowest = point
        self._falls.append(self._lowest.fun)
        self._look(point)
        self._show(point)
        if self._report is not None:
            self._call(self._report, point, lr)

    def _is_better(self, point: Point) -> bool:
        """Whether it has a lower value; among values that only rounding may separate, the smaller gradient counts."""
        lowest, first = self._lowest.fun, self.first.fun
        margin = noise(lowest, point.x.dtype)
        if point.fun < lowest - margin:
            return True
        near = point.fun <= min(lowest + margin, first)
        return near and (point.residual < self.best.residual or self.best.fun > lowest + margin)

    def _look(self, point: Point) -> None:
        maxiter, gtol, ftol = self._rules
        if point is self.best and point.residual <= gtol:
            self.stop(CONVERGED, "Optimization terminated successfully: no element of the gradient exceeds gtol.")
        elif ftol > 0 and len(self._falls) > STAGNATION and self._fall() <= ftol:
            self.stop(
                CONVERGED, f"Optimization terminated successfully: in {STAGNATION} iterations fun fell by ftol or less."
            )
        elif self.nit >= maxiter:
            self.stop(MAXITER)

    def _fall(self) -> float:
        """How much the value fell in the last iterations, relative to its size."""
        before, after = self._falls[0], self._falls[-1]
        return (before - after) / max(abs(before), abs(after), 1.0)

    def _call(self, report: Reporter, point: Point, lr: float) -> None:
        from scipy.optimize import OptimizeResult

        try:
            report(OptimizeResult(x=point.x.copy(), fun=point.fun, jac=point.grad.copy(), nit=self.nit, lr=lr))
        except StopIteration:
            self.stop(STOPPED)

    def _show(self, point: Point) -> None:
        """With ``disp``: a line for the first point, and then one a second."""
        if self._disp and monotonic() - self._shown >= 1:
            self._shown = monotonic()
            print(f"{self._name}: iteration {self.nit:>6}  fun {point.fun:.6e}  largest gradient {point.residual:.2e}")

    def result(self, nfev: int, njev: int, lr: float) -> Any:
        """The result, as ``minimize`` returns it."""
        from scipy.optimize import OptimizeResult

        assert self.status is not None
        if self._disp:
            print(self.message)
            print(f"         Current function value: {self.best.fun:f}")
            print(f"         Iterations: {self.nit:d}")
            print(f"         Function evaluations: {nfev:d}")
            print(f"         Gradient evaluations: {njev:d}")
        return OptimizeResult(
            x=self.best.x,
            fun=self.best.fun,
            jac=self.best.grad,
            success=self.status == CONVERGED,
            status=self.status,
            message=self.message,
            nit=self.nit,
            nfev=nfev,
            njev=njev,
            lr=lr,
        )


def reporter(callback: Any) -> Reporter | None:
    """A callback of either kind, called with an OptimizeResult; SciPy tells them apart by the name of the argument."""
    if callback is None:
        return None
    if not callable(callback):
        raise TypeError(f"callback must be callable, not {type(callback).__name__}")
    try:
        names = set(inspect.signature(callback).parameters)
    except ValueError:  # a compiled function without a signature
        names = set()
    if names == {"intermediate_result"}:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)
