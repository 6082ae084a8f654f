"""The methods that the demo compares, in gdm and in NumPy. The NumPy steps are written to be as fast as possible."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

import gdm

from .._checks import Array
from ..reference.formula import power

LR = 0.01
PEAK = 0.1  # of the schedule
MOMENTUM = 0.9


class Buffers(NamedTuple):
    """The arrays for the NumPy update of one parameter."""

    p: Array
    g: Array
    states: tuple[Array, ...]
    scratch: tuple[Array, Array]


def _descent(at: Buffers, lr: float, step: int) -> None:
    p, g, _, (x, _) = at
    np.multiply(g, lr, out=x)
    np.subtract(p, x, out=p)


def _torch(at: Buffers, lr: float, step: int) -> None:
    p, g, (v,), (x, _) = at
    np.multiply(v, MOMENTUM, out=v)
    np.add(v, g, out=v)
    np.multiply(v, lr, out=x)
    np.subtract(p, x, out=p)


def _classic(at: Buffers, lr: float, step: int) -> None:
    p, g, (v,), (x, _) = at
    np.multiply(v, MOMENTUM, out=v)
    np.multiply(g, lr, out=x)
    np.subtract(v, x, out=v)
    np.add(p, v, out=p)


def _nesterov(at: Buffers, lr: float, step: int) -> None:
    p, g, (v,), (x, _) = at
    np.multiply(v, MOMENTUM, out=v)
    np.add(v, g, out=v)
    np.multiply(v, MOMENTUM, out=x)
    np.add(g, x, out=x)
    np.multiply(x, lr, out=x)
    np.subtract(p, x, out=p)


def _average(a: Array, share: float, x: Array) -> None:
    """Updates the moving average: ``a = share * a + (1 - share) * x``. It overwrites ``x``."""
    np.multiply(a, share, out=a)
    np.multiply(x, 1 - share, out=x)
    np.add(a, x, out=a)


def _rmsprop(at: Buffers, lr: float, step: int) -> None:
    p, g, (s,), (x, _) = at
    np.multiply(g, g, out=x)
    _average(s, 0.99, x)
    np.sqrt(s, out=x)
    np.add(x, 1e-8, out=x)
    np.divide(g, x, out=x)
    np.multiply(x, lr, out=x)
    np.subtract(p, x, out=p)


def _adam(at: Buffers, lr: float, step: int) -> None:
    p, g, (m, v), (x, _) = at
    np.copyto(x, g)
    _average(m, 0.9, x)
    np.multiply(g, g, out=x)
    _average(v, 0.999, x)
    np.sqrt(v, out=x)
    # gdm's own function for powers: the last bit of Python's powers may differ, and then the weights could differ too.
    np.multiply(x, 1 / sqrt(1 - power(0.999, step)), out=x)
    np.add(x, 1e-8, out=x)
    np.divide(m, x, out=x)
    np.multiply(x, lr / (1 - power(0.9, step)), out=x)
    np.subtract(p, x, out=p)


def _lion(at: Buffers, lr: float, step: int) -> None:
    p, g, (m,), (x, y) = at
    np.multiply(m, 0.9, out=x)
    np.multiply(g, 1 - 0.9, out=y)
    np.add(x, y, out=x)
    # The sign; with np.sign, which branches on each element, the step takes twice as long.
    np.greater(x, 0, out=y)
    np.less(x, 0, out=x)
    np.subtract(y, x, out=x)
    np.multiply(x, lr, out=x)
    np.subtract(p, x, out=p)
    np.copyto(y, g)
    _average(m, 0.99, y)


class Method(NamedTuple):
    """A method: its name in the report, gdm's optimizer with its options, and the update of one array in NumPy."""

    name: str
    optimizer: Callable[..., Any]
    lr: float
    options: dict[str, Any]
    update: Callable[[Buffers, float, int], None]
    states: int = 1  # how many arrays the update keeps for each parameter
    scheduled: bool = False  # lr rises to the given value in the first tenth of the training, and then falls to 0

    def rate(self, steps: int) -> float | gdm.schedules.Schedule:
        """The learning rate in a training with this number of steps."""
        return gdm.schedules.cosine(self.lr, steps=steps, warmup=steps // 10) if self.scheduled else self.lr


DESCENT = Method("gradient descent", gdm.SGD, LR, {}, _descent, states=0)
TORCH = Method("momentum, torch form", gdm.SGD, LR, {"momentum": MOMENTUM}, _torch)
CLASSIC = Method("momentum, classic form", gdm.SGD, LR, {"momentum": MOMENTUM, "form": "classic"}, _classic)
NESTEROV = Method("Nesterov momentum", gdm.SGD, LR, {"momentum": MOMENTUM, "nesterov": True}, _nesterov)
COSINE = Method("momentum, warm-up and cosine", gdm.SGD, PEAK, {"momentum": MOMENTUM}, _torch, scheduled=True)
# The adaptive methods have gdm's defaults, except for RMSprop's lr, which is Keras': with 0.01 the loss jumps.
RMSPROP = Method("RMSprop", gdm.RMSprop, 0.001, {}, _rmsprop)
ADAM = Method("Adam", gdm.Adam, 0.001, {}, _adam, states=2)
LION = Method("Lion", gdm.Lion, 0.0001, {}, _lion)
METHODS = (DESCENT, TORCH, CLASSIC, NESTEROV, COSINE, RMSPROP, ADAM, LION)
CHECKED = (TORCH, ADAM)  # trained again on the reference


class InPlaceNumPy:
    """An optimizer in NumPy that allocates no memory while it steps.

    All parameters share two scratch arrays, so that these stay in the cache.
    """

    def __init__(self, method: Method, params: list[Array], grads: list[Array], steps: int) -> None:
        shared = np.empty((2, max(p.size for p in params)), params[0].dtype)
        self._update, self._rate, self._steps = method.update, method.rate(steps), 0
        self._buffers = [
            Buffers(
                p,
                g,
                tuple(np.zeros_like(p) for _ in range(method.states)),
                (shared[0, : p.size].reshape(p.shape), shared[1, : p.size].reshape(p.shape)),
            )
            for p, g in zip(params, grads, strict=True)
        ]

    def step(self) -> None:
        """Updates every parameter, in place."""
        lr = self._rate(self._steps) if callable(self._rate) else self._rate
        self._steps += 1
        for buffers in self._buffers:
            self._update(buffers, lr, self._steps)
