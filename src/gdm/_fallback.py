"""What ``_core.Stepper`` is where the compiled module does not load: every step is one of the reference."""

from __future__ import annotations

import threading
from typing import Any

from ._checks import Array, address
from .errors import StaleBufferError


class Stepper:
    _started: list[bool]

    def _table(self, params: list[Array], groups: list[int], group_count: int) -> None:
        self._params = params
        self._params_at = [_where(param) for param in params]
        self._bound: list[Array] | None = None
        self._started = [False] * len(params)
        self._alone = threading.Lock()

    def _states(self, i: int, states: list[Array]) -> None:
        """The reference finds the states in the optimizer."""

    def _configure(self, index: int, rule: str, options: dict[str, Any]) -> None:
        """The reference finds the options in the optimizer."""

    def bind(self, grads: Any) -> None:
        self._enter()
        try:
            self._check_unmoved("params", self._params, self._params_at)
            self._bound = self._check_grads(self._flatten(grads))
            self._bound_at = [_where(grad) for grad in self._bound]
        finally:
            self._leave()

    def step(self, grads: Any = None) -> None:
        self._enter()
        try:
            self._check_unmoved("params", self._params, self._params_at)
            if grads is not None:
                self._reference_step(self._check_grads(self._flatten(grads)))
            elif self._bound is not None:
                self._check_unmoved("grads", self._bound, self._bound_at)
                self._reference_step(self._bound)
            else:
                raise RuntimeError("no gradients: call step(grads), or bind(grads) first")
        finally:
            self._leave()

    def _enter(self) -> None:
        if not self._alone.acquire(blocking=False):
            raise RuntimeError("this optimizer is in the middle of a step in another thread")

    def _leave(self) -> None:
        self._alone.release()

    def _check_unmoved(self, what: str, arrays: list[Array], where: list[Any]) -> None:
        for i, (array, was) in enumerate(zip(arrays, where, strict=True)):
            if _where(array) != was:
                raise StaleBufferError(
                    f"{self._label(what, i)} has moved, been resized, or changed in another way since it was bound"
                )

    def _flatten(self, grads: Any) -> list[Any]:
        raise NotImplementedError

    def _check_grads(self, grads: list[Any]) -> list[Array]:
        raise NotImplementedError

    def _reference_step(self, grads: list[Array]) -> None:
        raise NotImplementedError

    def _label(self, what: str, i: int) -> str:
        raise NotImplementedError


def _where(array: Array) -> tuple[Any, ...]:
    return address(array), array.size, array.dtype, array.flags.aligned, array.flags.writeable, array.flags.forc
