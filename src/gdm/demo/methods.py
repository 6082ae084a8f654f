"""The methods that the demo compares: what gdm calls them, and the same steps in NumPy, written as fast as it gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._checks import Array

LR = 0.01
MOMENTUM = 0.9


def _descent(p: Array, v: Array, g: Array, scratch: Array) -> None:
    np.multiply(g, LR, out=scratch)
    np.subtract(p, scratch, out=p)


def _torch(p: Array, v: Array, g: Array, scratch: Array) -> None:
    np.multiply(v, MOMENTUM, out=v)
    np.add(v, g, out=v)
    np.multiply(v, LR, out=scratch)
    np.subtract(p, scratch, out=p)


def _classic(p: Array, v: Array, g: Array, scratch: Array) -> None:
    np.multiply(v, MOMENTUM, out=v)
    np.multiply(g, LR, out=scratch)
    np.subtract(v, scratch, out=v)
    np.add(p, v, out=p)


def _nesterov(p: Array, v: Array, g: Array, scratch: Array) -> None:
    np.multiply(v, MOMENTUM, out=v)
    np.add(v, g, out=v)
    np.multiply(v, MOMENTUM, out=scratch)
    np.add(g, scratch, out=scratch)
    np.multiply(scratch, LR, out=scratch)
    np.subtract(p, scratch, out=p)


class Method(NamedTuple):
    """A way to step: a name for people, options for ``gdm.SGD``, and the update of one array in NumPy."""

    name: str
    options: dict[str, Any]
    update: Callable[[Array, Array, Array, Array], None]


DESCENT = Method("gradient descent", {"lr": LR}, _descent)
TORCH = Method("momentum, torch form", {"lr": LR, "momentum": MOMENTUM}, _torch)
CLASSIC = Method("momentum, classic form", {"lr": LR, "momentum": MOMENTUM, "form": "classic"}, _classic)
NESTEROV = Method("Nesterov momentum", {"lr": LR, "momentum": MOMENTUM, "nesterov": True}, _nesterov)
METHODS = (DESCENT, TORCH, CLASSIC, NESTEROV)


class InPlaceNumPy:
    """An optimizer in NumPy that allocates nothing while it steps.

    All arrays share one piece of scratch memory, so that it stays in the cache.
    """

    def __init__(self, method: Method, params: list[Array], grads: list[Array]) -> None:
        shared = np.empty(max(p.size for p in params), params[0].dtype)
        scratch = [shared[: p.size].reshape(p.shape) for p in params]
        velocity = [np.zeros_like(p) for p in params]
        self._update = method.update
        self._buffers = list(zip(params, velocity, grads, scratch, strict=True))

    def step(self) -> None:
        """Updates every parameter, in place."""
        for p, v, g, scratch in self._buffers:
            self._update(p, v, g, scratch)
