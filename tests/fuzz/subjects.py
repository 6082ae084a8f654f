"""Optimizers to load states into, and whether two states are the same to the bit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

import gdm

Made = tuple[Any, list[np.ndarray], Any]  # an optimizer, its parameters, and gradients as its step takes them


def _array(n: int, dtype: type = np.float32) -> np.ndarray:
    return np.linspace(-1, 1, n, dtype=dtype)


def _adamw() -> Made:
    weight, bias = _array(6).reshape(2, 3), _array(3)
    rate = gdm.schedules.cosine(0.1, steps=100, warmup=10)
    groups = [{"name": "head", "params": [weight], "lr": rate}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = gdm.AdamW(groups, lr=0.01, amsgrad=True, max_grad_norm=1.0, average=0.9)
    return optimizer, [weight, bias], [[weight / 2], [bias / 2]]


def _sgd() -> Made:
    params = [_array(4, np.float64), _array(0, np.float64)]
    return gdm.SGD(params, lr=0.1, momentum=0.9, nesterov=True), params, [x / 2 for x in params]


def _int8_states() -> Made:
    param = _array(150)
    return gdm.Adam(param, lr=0.1, state_dtype="int8", rounding="stochastic", seed=7), [param], param / 2


def _nadam() -> Made:
    params = {"a": _array(2), "b": _array(3)}
    optimizer = gdm.NAdam(params, lr=0.1, lr_scale={"a": 0.5, "b": _array(3) + 2})
    return optimizer, list(params.values()), {name: x / 2 for name, x in params.items()}


def _schedule_free() -> Made:
    params = [_array(3), _array(2)]
    return gdm.ScheduleFreeAdamW(params, lr=0.1, warmup_steps=3), params, [x / 2 for x in params]


MAKERS: list[Callable[[], Made]] = [_adamw, _sgd, _int8_states, _nadam, _schedule_free]


def same(a: Any, b: Any) -> bool:
    """The same types, order and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return struct.pack("d", a) == struct.pack("d", b) if isinstance(a, float) else bool(a == b)


class Subject:
    """An optimizer that has made two steps, and how it was then."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self.optimizer, self.params, self._grads = make()
        for _ in range(2):
            self.optimizer.step(self._grads)
        self.state = self.optimizer.state_dict()
        self._before = [x.copy() for x in self.params]

    def check(self, load: Callable[[], None], save_and_load: Callable[[], None]) -> None:
        """A load takes over everything, or raises ``CheckpointError`` and changes nothing.

        What has been loaded comes back when it is saved and loaded again, and the optimizer can make a step.
        """
        try:
            load()
        except gdm.CheckpointError as error:
            if not str(error):
                raise RuntimeError("an error without a text") from error
            assert same(self.optimizer.state_dict(), self.state), "a load that fails has changed the optimizer"
        else:
            loaded = self.optimizer.state_dict()
            save_and_load()
            assert same(self.optimizer.state_dict(), loaded), "what has been loaded does not come back"
            if self.optimizer.state_dict().get("mode") != "eval":
                self.optimizer.step(self._grads)
            for param, before in zip(self.params, self._before, strict=True):
                param[...] = before
            self.optimizer.load_state_dict(self.state)
            assert same(self.optimizer.state_dict(), self.state), "the first state does not come back"
        for param, before in zip(self.params, self._before, strict=True):
            assert same(param, before), "a load has changed a parameter"
