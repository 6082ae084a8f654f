"""What ``_core.Stepper`` is where the compiled module does not load: every step is one of the reference."""

from __future__ import annotations

from typing import Any

from ._checks import Array, address
from .errors import StaleBufferError


class Stepper:
    def _table(self, params: list[Array], groups: list[int], group_count: int) -> None:
        self._params = params
        self._params_at = [_where(param) for param in params]
        self._bound: list[Array] | None = None
        self._started = [False] * len(params)
        self._busy = False

    def _states(self, i: int, states: list[Array]) -> None:
        """The reference finds the states in the optimizer."""

    def _configure(self, index: int, rule: str, options: dict[str, Any]) -> None:
        self._enter()
        self._busy = False

    def bind(self, grads: Any) -> None:
        self._enter()
        try:
            self._check_unmoved("params", self._params, self._params_at)
            self._bound = self._check_grads(self._flatten(grads))
            self._bound_at = [_where(grad) for grad in self._bound]
        finally:
            self._busy = False

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
            self._busy = False

    def _enter(self) -> None:
        if self._busy:
            raise RuntimeError("this optimizer is in the middle of a step in another thread")
        self._busy = True

    def _check_unmoved(self, what: str, arrays: list[Array], where: list[tuple[int, int]]) -> None:
        for i, (array, was) in enumerate(zip(arrays, where, strict=True)):
            if _where(array) != was:
                raise StaleBufferError(f"{self._label(what, i)} has moved or been resized")

    def _flatten(self, grads: Any) -> list[Any]:
        raise NotImplementedError

    def _check_grads(self, grads: list[Any]) -> list[Array]:
        raise NotImplementedError

    def _reference_step(self, grads: list[Array]) -> None:
        raise NotImplementedError

    def _label(self, what: str, i: int) -> str:
        raise NotImplementedError


def _where(array: Array) -> tuple[int, int]:
    return address(array), array.size
