"""What ``_core.Stepper`` is where the compiled module does not load: every step is one of the reference."""

from __future__ import annotations

import threading
from typing import Any

from ._checks import Array, Options, address
from .errors import StaleBufferError


class Stepper:
    _started: list[bool]
    _threads: int | None = None
    _scheduled = False
    _version = 0

    def _table(
        self,
        given: list[Array],
        params: list[Array],
        states: list[list[Array | None]],
        scales: list[Array | None],
        group_of: list[int],
        groups: list[tuple[str, Options]],
        one: bool,
        flat: bool,
        started: list[bool],
        progress: list[tuple[int, float]],
        scheduled: bool,
        writes: list[tuple[Array, Array]],
    ) -> None:
        where = [_where(param) for param in given]
        if not hasattr(self, "_alone"):
            self._alone = threading.Lock()
        self._version += 1
        if len(params) != len(getattr(self, "_given", ())) or not hasattr(self, "_bound"):
            self._bound: list[Array] | None = None
        self._given, self._given_at, self._scheduled = given, where, scheduled
        self._stepped(writes, started, progress)

    def _configure(self, changes: list[tuple[int, str, Options]], scheduled: bool) -> None:
        """The reference finds the options in the optimizer."""
        self._version += 1
        self._scheduled = scheduled

    def _set_rate(self, index: int, lr: float) -> None:
        """The reference asks the optimizer."""

    def _progress_of(self, index: int) -> tuple[int, float]:
        return self._progress[index]

    def _stepped(self, writes: list[tuple[Array, Any]], started: list[bool], progress: list[tuple[int, float]]) -> None:
        self._write(writes)
        self._started, self._progress = started, progress

    def _write(self, writes: list[tuple[Array, Any]]) -> None:
        for array, value in writes:
            array[...] = value

    def bind(self, grads: Any) -> None:
        self._enter()
        try:
            given = list(self._flatten(grads))
            self._check_unmoved("params", self._given, self._given_at)
            bound = self._check_grads(given)
            self._check_unmoved("params", self._given, self._given_at)
            self._bound, self._bound_at = bound, [_where(grad) for grad in bound]
        finally:
            self._leave()

    def step(self, grads: Any = None) -> None:
        self._enter()
        try:
            if grads is None and self._bound is None:
                raise RuntimeError("no gradients: call step(grads), or bind(grads) first")
            if self._scheduled:
                self._set_rates()
            if grads is None:
                arrays = self._bound or []
                self._check_unmoved("grads", arrays, self._bound_at)
            else:
                given = list(self._flatten(grads))
                self._check_unmoved("params", self._given, self._given_at)
                arrays = self._check_grads(given)
            self._check_unmoved("params", self._given, self._given_at)
            self._reference_step(arrays)
        finally:
            self._leave()

    def _enter(self) -> None:
        if not self._alone.acquire(blocking=False):
            raise RuntimeError("this optimizer is already in the middle of a step")

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

    def _set_rates(self) -> None:
        raise NotImplementedError

    def _label(self, what: str, i: int) -> str:
        raise NotImplementedError


def _where(array: Array) -> tuple[Any, ...]:
    flags = array.flags
    return (
        address(array),
        array.size,
        array.dtype,
        flags.aligned,
        flags.writeable,
        flags.c_contiguous,
        flags.f_contiguous,
    )
