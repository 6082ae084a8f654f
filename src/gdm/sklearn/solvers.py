"""What scikit-learn's perceptrons call an optimizer, with its updates by gdm's functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import adam, momentum, sgd
from ..optimizer.adapter import in_order_of

Array = np.ndarray[Any, np.dtype[Any]]


class Solver:
    """Stands in for the optimizer that scikit-learn has made, and asks it for the learning rate and when to stop."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "made":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.made, name)  # learning_rate, iteration_ends, trigger_stopping

    def update_params(self, params: Sequence[Array], grads: Sequence[Array]) -> None:
        """Updates all parameters in place."""
        raise NotImplementedError


class SGD(Solver):
    """Momentum in the classic form, heavy ball or Nesterov's; or gradient descent."""

    def __init__(self, made: Any, momentum: float, nesterov: bool) -> None:
        super().__init__(made)
        self.momentum, self.nesterov = float(momentum), bool(nesterov)
        self.velocities: list[Array] = []

    def update_params(self, params: Sequence[Array], grads: Sequence[Array]) -> None:
        lr = float(self.made.learning_rate)
        if not self.momentum:
            for param, grad in zip(params, grads, strict=True):
                sgd(param, in_order_of(param, grad), lr=lr)
            return
        self.velocities = self.velocities or [np.zeros_like(param) for param in params]
        options: Any = {"lr": lr, "momentum": self.momentum, "nesterov": self.nesterov, "form": "classic"}
        for param, velocity, grad in zip(params, self.velocities, grads, strict=True):
            momentum(param, velocity, in_order_of(param, grad), **options)


class Adam(Solver):
    """Adam, with eps where scikit-learn adds it: before the bias of the root is corrected."""

    def __init__(self, made: Any, betas: tuple[float, float], eps: float) -> None:
        super().__init__(made)
        self.betas, self.eps, self.steps = (float(betas[0]), float(betas[1])), float(eps), 0
        self.averages: list[tuple[Array, Array]] = []

    def update_params(self, params: Sequence[Array], grads: Sequence[Array]) -> None:
        self.averages = self.averages or [(np.zeros_like(param), np.zeros_like(param)) for param in params]
        self.steps += 1
        options: Any = {
            "step": self.steps,
            "lr": float(self.made.learning_rate_init),
            "betas": self.betas,
            "eps": self.eps / math.sqrt(1.0 - self.betas[1] ** self.steps),
        }
        for param, (mean, square), grad in zip(params, self.averages, grads, strict=True):
            adam(param, mean, square, in_order_of(param, grad), **options)
