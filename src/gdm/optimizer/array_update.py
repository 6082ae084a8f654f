"""Updates of one array, with what an optimizer does around a step, whose options are other ones each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .. import _backend, _checks, _stages, reference
from .._backend import ArrayUpdateCore
from .._checks import Named, Options
from ..errors import StaleBufferError


class ArrayUpdate(ArrayUpdateCore):
    """A rule bound to a parameter, its gradient and its states. ``step`` makes one update in one pass over memory.

    Parameters
    ----------
    rule : str
        The rule, one that keeps no scalars: ``"adam"``.
    arrays : mapping
        The parameter, the gradient, the states in the rule's order (those that are always in use), and the average if
        there is one; under their names for messages. float32 or float64, contiguous, aligned, all alike.
    has_average : bool, default False
        Whether the last array is a moving average of the parameter.
    clears : bool, default False
        Set the gradient to 0 after it has been read. It must then be writable.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        For arrays that are not as described. Nothing has changed then; neither after an exception in ``step``.
    """

    __slots__ = ()

    def __new__(cls, rule: str, arrays: Mapping[str, Any], *, has_average: bool = False, clears: bool = False) -> Self:
        positional, _ = reference.names(getattr(reference, rule).__wrapped__)
        if len(arrays) != len(positional) + has_average:
            wanted = ["param", "grad", *positional[1:-1], *(["average"] if has_average else [])]
            raise ValueError(f"arrays must be {', '.join(wanted)}, got {', '.join(arrays)}")
        found = alike(arrays, clears)
        kept = [x if type(x) is np.ndarray else view for x, view in zip(arrays.values(), found, strict=True)]
        return super().__new__(cls, rule, kept, has_average, clears)

    def _step_checked(self, options: Options, step: int, scale: float, average_decay: float) -> None:
        """An update where something is wrong or unusual, or by the reference."""
        positional, keywords = reference.names(getattr(reference, self.rule).__wrapped__)
        arrays = list(self.arrays)
        average = arrays.pop() if self.has_average else None
        param, grad, *states = arrays
        given: Options = dict(zip(positional, [param, *states, grad], strict=True))
        given |= {name: options.get(name) for name in keywords}
        if "step" in keywords:
            given["step"] = step
        checked = _checks.arguments(self.rule, given, len(positional))
        scale = _checks.finite("scale", scale)
        average_decay = _checks.real("average_decay", average_decay, _checks.BELOW_ONE)
        if _backend.backend() == "native":
            if not self._run({**options, **checked}, step, scale, average_decay):
                raise StaleBufferError("an array has moved, been resized, or changed in another way")
            return
        new = reference.formula.update(self.rule, {**checked, "grad": _stages.scaled(grad, scale)})
        if average is not None:
            weight = _stages.average_weight(average_decay, step, corrected=False)
            average[...] = _stages.averaged(average, new["param"], weight)
        for name, value in new.items():
            given[name][...] = value
        if self.clears:
            grad[...] = 0


def alike(arrays: Mapping[str, Any], clears: bool) -> list[Any]:
    """The arrays as NumPy's: the first, the second like it, which is a gradient, and others; each one checked."""
    names = list(arrays)
    written = [i != 1 or clears for i in range(len(names))]
    found, _ = _checks.buffers(
        names, list(arrays.values()), {name for name, x in zip(names, written, strict=True) if x}
    )
    for name, x in zip(names[1:], found[1:], strict=True):
        _checks.like(name, x, names[0], found[0])
    _checks.disjoint([Named(*x) for x in zip(names, found, written, strict=True)])
    return found
