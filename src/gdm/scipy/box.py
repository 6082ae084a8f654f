"""Bounds of variables: a box, onto which points are projected."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Box:
    """The points between a lower and an upper bound; all points if there are no bounds.

    Parameters
    ----------
    bounds : scipy.optimize.Bounds, sequence of pairs, or None
        As ``minimize`` takes them; None in a pair stands for no bound.
    x : array
        The initial point: its number of variables, and its dtype.
    """

    def __init__(self, bounds: Any, x: Array) -> None:
        from scipy.optimize import Bounds

        self.lower: Array | None = None
        self.upper: Array | None = None
        if bounds is None:
            return
        if isinstance(bounds, Bounds):
            pair = (bounds.lb, bounds.ub)
        else:
            pairs = list(bounds)
            if len(pairs) != x.size or any(np.size(each) != 2 for each in pairs):
                raise ValueError(f"bounds must have a pair for each of the {x.size} variables")
            pair = ([low for low, _ in pairs], [high for _, high in pairs])
        self.lower, self.upper = (
            _side(side, x, missing) for side, missing in zip(pair, (-np.inf, np.inf), strict=True)
        )
        for i in np.flatnonzero(~(self.lower <= self.upper)):
            raise ValueError(f"bounds[{i}]: the lower one, {self.lower[i]}, is not below the upper, {self.upper[i]}")

    def project(self, x: Array) -> None:
        """Moves a point to the nearest one in the box, in place."""
        if self.lower is not None:
            np.clip(x, self.lower, self.upper, out=x)

    def residual(self, x: Array, grad: Array) -> float:
        """The largest element of the projected gradient ``x - project(x - grad)``; without bounds, of the gradient."""
        if self.lower is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                grad = x - np.clip(x - grad, self.lower, self.upper)
        return float(np.abs(grad).max(initial=0.0))

    def free(self, x: Array) -> Array:
        """Which variables can move, as an array of bool."""
        return np.ones(x.shape, bool) if self.lower is None else self.lower < self.upper

    def sides(self, free: Array) -> tuple[Any, Any]:
        """The bounds of some variables."""
        return (-np.inf, np.inf) if self.lower is None else (self.lower[free], self.upper[free])  # type: ignore[index]


def _side(given: Any, x: Array, missing: float) -> Array:
    values = [missing if value is None else value for value in np.ravel(np.asarray(given, object))]
    try:
        side = np.asarray(values, x.dtype)
        return np.broadcast_to(side, x.shape).copy()
    except (TypeError, ValueError) as error:
        raise ValueError(f"bounds must be numbers or None, for each of the {x.size} variables ({error})") from error
