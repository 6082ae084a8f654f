"""The function to minimize and its gradient: evaluated, checked and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .box import Array, Box

DIFFERENCES = ("2-point", "3-point", "cs")


class Objective:
    """Values and gradients of ``fun`` at points of a box. A user's function always gets a copy of the point.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)``; with ``jac=True`` it returns the value and the gradient.
    jac : callable, bool, str or None
        ``jac(x, *args)``; True; or how to compute finite differences, by default by ``differences``.
    """

    def __init__(
        self, fun: Callable[..., Any], jac: Any, args: Any, box: Box, differences: str, rel_step: Any = None
    ) -> None:
        if not callable(fun):
            raise TypeError(f"fun must be callable, not {type(fun).__name__}")
        if isinstance(jac, str):
            differences, jac = jac, None
        if not (jac is None or isinstance(jac, bool) or callable(jac)):
            raise TypeError(f"jac must be callable, True, None or one of {DIFFERENCES}, not {type(jac).__name__}")
        if differences not in DIFFERENCES:
            raise ValueError(f"finite_diff must be one of {DIFFERENCES}, got {differences!r}")
        self._args = args if isinstance(args, tuple) else (args,)
        self._fun, self._box, self._differences, self._rel_step = fun, box, differences, rel_step
        self._jac = _Both(fun) if jac is True else jac
        if isinstance(self._jac, _Both):
            self._fun = self._jac.value
        self.nfev = self.njev = 0

    def value(self, x: Array) -> float:
        """The value at a point, which may be NaN or infinite."""
        value = np.asarray(self._call(x))
        if value.dtype.kind not in "fiub":
            raise TypeError(f"fun must return a real number, got dtype {value.dtype}")
        if value.size != 1:
            raise ValueError(f"fun must return a scalar, got shape {value.shape}")
        return float(value.item())

    def gradient(self, x: Array, value: float, out: Array) -> None:
        """Writes the gradient at a point, at which the function has this value, to ``out``."""
        self.njev += 1
        if not self._jac:
            self._difference(x, value, out)
            return
        grad = np.asarray(self._jac(x.copy(), *self._args))
        if grad.dtype.kind not in "fiub":
            raise TypeError(f"jac must return real numbers, got dtype {grad.dtype}")
        if grad.shape != x.shape and not (grad.size == x.size == 1):
            raise ValueError(f"jac must return an array of shape {x.shape}, as x0 has, got shape {grad.shape}")
        with np.errstate(over="ignore"):
            out[:] = grad.reshape(x.shape)

    def _call(self, x: Array) -> Any:
        self.nfev += 1
        return self._fun(x.copy(), *self._args)

    def _difference(self, x: Array, value: float, out: Array) -> None:
        # What minimize itself uses. Variables whose bounds are equal have no room for a difference; they cannot move.
        from scipy.optimize._numdiff import approx_derivative

        free = self._box.free(x)
        out[:] = 0
        if not free.any():
            return
        point = x.astype(complex) if self._differences == "cs" else x.copy()

        def along_free(z: Array) -> Any:
            point[free] = z
            return self._call(point)

        with np.errstate(invalid="ignore", over="ignore"):
            out[free] = approx_derivative(
                along_free,
                x[free],
                method=self._differences,
                rel_step=None if self._rel_step is None else np.broadcast_to(self._rel_step, x.shape)[free],
                f0=value,
                bounds=self._box.sides(free),
            ).ravel()


class _Both:
    """A function that returns value and gradient, as two functions; each point is evaluated once."""

    def __init__(self, fun: Callable[..., Any]) -> None:
        self._fun = fun
        self._x: Array | None = None
        self._grad: Any = None

    def value(self, x: Array, *args: Any) -> Any:
        both = self._fun(x, *args)
        if not isinstance(both, tuple) or len(both) != 2:
            raise TypeError("with jac=True, fun must return the pair (value, gradient)")
        self._x, self._grad = x.copy(), both[1]
        return both[0]

    def __call__(self, x: Array, *args: Any) -> Any:
        if self._x is None or not np.array_equal(x, self._x):
            self.value(x, *args)
        return self._grad
