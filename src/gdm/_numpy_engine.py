"""The NumPy engine, where the compiled module does not load."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from . import _checks
from ._checks import Array, Options, address
from ._foreign import Source, look_again
from ._specification import Around, Progress, Specification
from .errors import OverlapError, StaleBufferError

if TYPE_CHECKING:
    from .optimizer.snapshot import GroupRecord, Snapshot


class Engine:
    """The arrays of one specification, and how far they are."""

    def __init__(self, specification: Specification) -> None:
        self.user_arrays, self.sources = specification.user_arrays, specification.sources
        # Where our views are: the user's arrays may have moved since those were made.
        self.places = [(*_place(x)[:-1], True) for x in specification.params]
        self.progress = specification.progress
        self.around = specification.around
        self.copies = specification.user_copies
        self.copy_places = [None if x is None else _place(x) for x in self.copies]
        self.bound: list[Array | None] | None = None
        self.bound_sources: list[Source | None] = []
        self.bound_places: list[Any] = []


class ArrayUpdateCore:
    """The base class of :class:`gdm.optimizer.array_update.ArrayUpdate` where the compiled module does not load."""

    rule: str
    arrays: list[Array]
    has_average: bool
    clears: bool

    def __new__(cls, rule: str, arrays: list[Array], has_average: bool, clears: bool) -> Self:
        self = super().__new__(cls)
        self.rule, self.arrays, self.has_average, self.clears = rule, arrays, has_average, clears
        return self

    def _run(self, options: Options, step: int, scale: float, average_decay: float) -> bool:
        return False

    def step(self, options: Options, step: int, scale: float, average_decay: float) -> None:
        self._step_checked(options, step, scale, average_decay)  # type: ignore[attr-defined]


class _Holder:
    """A value that lives as long as the call that made it: while it does, that call holds the lock."""

    __slots__ = ("__weakref__",)


class OptimizerCore:
    """The base class of :class:`gdm.optimizer.Optimizer` where the compiled module does not load."""

    _snapshot: Any = None
    _engine: Engine
    _threads: int | None = None

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "_turn", {"of": (0, _nobody)})
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            self._set_for_all_groups(name, value)

    # ---- the lock ----

    def _lock(self, holder: weakref.ref[_Holder]) -> None:
        """Locks the optimizer until the holder is gone, however its call ends: also by an interrupt.

        No frame but the one that locks may keep the holder: the traceback of an interrupt keeps the frames.

        Each turn knows the next one. setdefault() lets one thread only have it, in one step that nothing interrupts: no
        mutex could stay locked. ``_turn`` may be one that is over; the last one is found from there.
        """
        pid = os.getpid()  # a forked child is not in the step that its parent was in
        turn, own = self._turn, {"of": (pid, holder)}
        while turn is not own:
            its_pid, present = turn["of"]
            if its_pid == pid and present() is not None:
                raise RuntimeError("this optimizer is already in the middle of a step")
            turn = turn.setdefault("next", own)
        self._turn = own

    def _exclusively(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls the function while no step and no other change runs."""
        holder = _Holder()
        try:
            self._lock(weakref.ref(holder))
            return function(*args)
        finally:
            del holder

    def _hold(self) -> None:
        """Locks the optimizer until ``_release()``."""
        self._require()
        holder = _Holder()
        self._lock(weakref.ref(holder))
        object.__setattr__(self, "_held", holder)

    def _release(self) -> None:
        object.__setattr__(self, "_held", None)

    # ---- changes ----

    def _require(self) -> None:
        if self._snapshot is None:
            raise RuntimeError("this optimizer has not been initialised")

    def _progress(self) -> Progress:
        self._require()
        return self._engine.progress

    def _group_steps(self, index: int) -> int:
        return self._engine.progress.group_steps[index]

    def _any_overlap(self, arrays: list[Array]) -> bool:
        """Whether two arrays may share memory. Here the checks in Python find out."""
        return True

    def _put_in_place(
        self,
        engine: Engine,
        snapshot: Snapshot,
        options: list[tuple[GroupRecord, Options]],
        writes: list[tuple[Array, Array]],
    ) -> None:
        """Puts a snapshot and its engine in place of the present ones, and copies arrays into states."""
        before = self._snapshot
        if before is not None and before.layout is snapshot.layout:
            engine.bound, engine.bound_places = self._engine.bound, self._engine.bound_places
            engine.bound_sources = self._engine.bound_sources

        def put() -> None:
            self._write(writes)
            for record, of_group in options:
                record.options = of_group
            self._engine, self._snapshot = engine, snapshot

        replaced = [record.options for record, _ in options]  # finalizers of the user's run when all is in place
        _complete(put)
        del replaced

    def _configure(self, changes: list[tuple[int, GroupRecord, Options, float]]) -> None:
        """Sets hyperparameters that need no other states: index, record, hyperparameters and ``lr`` of each group."""

        def put() -> None:
            for _, record, options, _ in changes:
                record.options = options

        replaced = [record.options for _, record, _, _ in changes]  # as above
        _complete(put)
        del replaced

    def _try_set_lr(self, record: GroupRecord | None, value: object) -> bool:
        """Sets a learning rate the fast way, if there is one here."""
        return False

    def _write(self, writes: list[tuple[Array, Array]]) -> None:
        for array, value in writes:
            array[...] = value

    # ---- steps ----

    def bind(self, grads: Any) -> None:
        self._exclusively(self._bind_locked, grads)

    def _bind_locked(self, grads: Any) -> None:
        self._require()
        bound, sources = self._checked_grads(grads)
        self._check_params()
        places = [None if grad is None else _place(grad) for grad in bound]
        self._engine.bound, self._engine.bound_places, self._engine.bound_sources = bound, places, sources

    def _set_around(self, around: Around) -> None:
        self._require()
        self._engine.around = around

    def step(self, grads: Any = None, scale: float = 1.0) -> None:
        self._exclusively(self._step_locked, grads, scale)

    def _step_locked(self, grads: Any, scale: float) -> None:
        self._require()
        engine, snapshot = self._engine, self._snapshot
        if engine.progress.evaluating:
            raise RuntimeError(_checks.EVALUATING)
        if grads is None and engine.bound is None:
            raise RuntimeError("no gradients: call step(grads), or bind(grads) first" + self._torch_hint())
        if not abs(scale) < _checks.FLOAT32_OVERFLOW:
            raise ValueError(f"scale must be finite in float32, got {scale!r}")
        lrs = []
        for i, options in enumerate(snapshot.options):
            lr = options["lr"]
            if callable(lr):
                lr = float(self._scheduled_rates(i, lr, engine.progress.group_steps[i], 1)[0])
                self._check_rate(i, lr)
            lrs.append(lr)
        if grads is None:
            arrays = engine.bound or []
            self._check_unmoved("grads", arrays, engine.bound_places, engine.bound_sources)
        else:
            arrays, _ = self._checked_grads(grads)
        self._check_params()
        writes, progress = self._numpy_step(arrays, lrs, engine.progress, scale)
        self._check_params()  # a rule may have called code of the user's

        def put() -> None:
            self._write(writes)
            engine.progress = progress

        _complete(put)

    # ---- the two modes of Schedule-Free methods ----

    def _swap(self, evaluate: bool) -> None:
        """Puts the averages in the place of the parameters, or the reverse, if that is not yet done."""
        self._exclusively(self._swap_locked, evaluate)

    def _swap_locked(self, evaluate: bool) -> None:
        self._require()
        engine = self._engine
        if engine.progress.evaluating == evaluate:
            return
        self._check_params()
        writes = self._numpy_swap(evaluate, engine.progress)
        progress = engine.progress._replace(evaluating=evaluate)

        def put() -> None:
            self._write(writes)
            engine.progress = progress

        _complete(put)

    def _checked_grads(self, grads: Any) -> tuple[list[Array | None], list[Source | None]]:
        given = self._flatten(grads)
        self._check_params()  # first: a changed parameter is not an error of the gradients
        try:
            return self._check_grads(given)
        except OverlapError:
            self._check_params()  # where a parameter was, there may be another array now
            raise

    def _check_params(self) -> None:
        self._check_unmoved("params", self._engine.user_arrays, self._engine.places, self._engine.sources)
        self._check_unmoved("copies", self._engine.copies, self._engine.copy_places, [])

    def _check_unmoved(self, what: str, arrays: list[Any], places: list[Any], sources: list[Source | None]) -> None:
        look_again(arrays, sources)
        for i, (array, place) in enumerate(zip(arrays, places, strict=True)):
            if array is not None and _place(array) != place:
                raise StaleBufferError(
                    f"{self._label(what, i)} has moved, been resized, or changed in another way since it was bound"
                )

    if TYPE_CHECKING:  # what a subclass provides
        _turn: dict[str, Any]  # "of": its process and what holds it; "next": the next turn, if there has been one

        def _set_for_all_groups(self, name: str, value: Any) -> None: ...
        def _flatten(self, grads: Any) -> list[Any]: ...
        def _check_grads(self, grads: list[Any]) -> tuple[list[Array | None], list[Source | None]]: ...
        def _label(self, what: str, i: int) -> str: ...
        def _torch_hint(self) -> str: ...
        def _scheduled_rates(self, index: int, schedule: Any, step: int, count: int) -> Array: ...
        def _check_rate(self, index: int, rate: float) -> None: ...
        def _numpy_step(
            self, grads: list[Array | None], lrs: list[float], progress: Progress, scale: float
        ) -> tuple[list[tuple[Array, Array]], Progress]: ...
        def _numpy_swap(self, evaluate: bool, progress: Progress) -> list[tuple[Array, Array]]: ...


def _nobody() -> None:
    """Who holds a lock at first."""


def _complete(write: Callable[[], None]) -> None:
    """Calls a function that may be called again until it comes to its end; what interrupted it is raised after that."""
    interrupt: BaseException | None = None
    for _ in range(100):
        try:
            write()
            break
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _place(array: Array) -> tuple[Any, ...]:
    """What must stay the same of an array: address, length, dtype, order, flags; and that its base still holds it."""
    flags = array.flags
    return (
        address(array),
        array.size,
        array.dtype,
        flags.aligned,
        flags.writeable,
        flags.c_contiguous,
        flags.f_contiguous,
        _checks.is_inside_base(array),
    )
