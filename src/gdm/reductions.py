"""Work on all gradients beside a step: their norm, how many elements are not finite, and their sum over batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _backend, _checks, _foreign, _stages, reference
from ._arrays import are_plain, views
from ._checks import Accepts, Array, Named

__all__ = ["accumulate", "count_nonfinite", "grad_norm"]

_SUM_OF_SQUARES, _LARGEST_MAGNITUDE, _NONFINITE_COUNT = range(3)  # GDM_SUM_OF_SQUARES, ...


def grad_norm(grads: Any, *, order: float = 2) -> float:
    """The norm of all gradients together, as if they were one long vector. They are only read.

    Parameters
    ----------
    grads : array, sequence or mapping of arrays, or nested ones
        float64, float32, float16 or bfloat16, any shapes, contiguous (C or Fortran order) and aligned. NumPy arrays,
        tensors, or anything else in the CPU's memory with DLPack or the buffer protocol. A None is left out, so these
        may be the gradients that an optimizer's ``step`` takes.
    order : 2 or inf, default 2
        2: the root of the sum of the squares. inf: the largest absolute value.

    Returns
    -------
    float
        The norm, in float64; 0.0 without elements; NaN if an element is NaN. For float64 gradients larger than about
        1e154 the square overflows, and the norm of order 2 is inf.

    Raises
    ------
    TypeError, ValueError
        For what is no such array; the message says which. Or for another ``order``.

    Notes
    -----
    Squares are added in float64, in blocks of 4,096 elements of each array, which are combined in a fixed tree. So the
    result has the same bits on every machine, for any number of threads. :mod:`gdm.reference` has the order in full.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> gdm.grad_norm([np.array([3.0, 0.0]), None, np.array([[-4.0]])])
    5.0
    >>> gdm.grad_norm([np.array([3.0, 0.0]), np.array([[-4.0]])], order=float("inf"))
    4.0
    """
    if order not in (2, math.inf):
        raise ValueError(f"order must be 2 or inf, got {order!r}")
    if order == 2:
        squares = _reduce(_SUM_OF_SQUARES, grads)
        root: float = math.sqrt(squares) if _backend.native is None else _backend.native.square_root(squares)
        return root
    return _reduce(_LARGEST_MAGNITUDE, grads)


def count_nonfinite(grads: Any) -> int:
    """How many elements of all gradients are NaN or infinite. They are only read.

    Parameters
    ----------
    grads : array, sequence or mapping of arrays, or nested ones
        As for :func:`gdm.grad_norm`.

    Returns
    -------
    int
        The number of elements that are not finite.

    Raises
    ------
    TypeError, ValueError
        As by :func:`gdm.grad_norm`.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> gdm.count_nonfinite({"a": np.array([1.0, np.nan]), "b": np.array([-np.inf])})
    2
    """
    return int(_reduce(_NONFINITE_COUNT, grads))


def _reduce(reduction: int, grads: Any) -> float:
    arrays = [grads]
    if type(grads) is not np.ndarray or not are_plain(arrays, False):  # one array is quick
        names: list[str] = []
        given: list[Any] = []
        _collect("grads", grads, names, given)
        arrays = _foreign.views(given)
        if not are_plain(arrays, False):
            arrays, _ = _checks.buffers(names, given, (), Accepts(narrow=True))
    if _backend.native is not None and _backend.backend() == "native":
        result: float = _backend.native.reduce(reduction, arrays)
        return result
    functions = reference.sum_of_squares, reference.largest_magnitude, reference.count_nonfinite
    return functions[reduction]([_stages.numbers(x) for x in views(arrays)])


def accumulate(total: Any, grads: Any, *, scale: float = 1.0) -> None:
    """Adds gradients to totals, in place: ``total += scale * grad`` for each array.

    Parameters
    ----------
    total : array, sequence or mapping of arrays, or nested ones
        Where the sums are kept: float64, float32, float16 or bfloat16, contiguous, aligned and writable. NumPy arrays,
        tensors, or anything else in the CPU's memory with DLPack or the buffer protocol.
    grads : in the structure of ``total``
        The gradients, each of the shape and memory order of its total; of another dtype if they like, float64 only for
        a total of float64. A None adds nothing.
    scale : float, default 1
        What the gradients are multiplied by, finite: one over the number of batches, for example.

    Raises
    ------
    TypeError, ValueError
        For what is no such array, or does not fit; the message says which. Nothing has changed then.
    gdm.OverlapError
        If a total shares memory with another array.

    Notes
    -----
    Computed in float64 if the total is float64, else in float32, and rounded once to the total's dtype.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> total = [np.zeros(2), np.zeros(1)]
    >>> for batch in range(4):
    ...     gdm.accumulate(total, [np.array([1.0, 2.0]), None], scale=0.25)
    >>> total
    [array([1., 2.]), array([0.])]
    """
    factor = _checks.finite("scale", scale)
    names: list[str] = []
    totals: list[Any] = []
    _collect("total", total, names, totals)
    given = _matching("grads", total, grads)
    present = [i for i, x in enumerate(given) if x is not None]
    labels = ["grads" + name.removeprefix("total") for name in names]
    arrays, _ = _checks.buffers(names, totals, set(names), Accepts(narrow=True))
    found, _ = _checks.buffers([labels[i] for i in present], [given[i] for i in present], (), Accepts(narrow=True))
    addends: list[Array | None] = [None] * len(arrays)
    for i, x in zip(present, found, strict=True):
        _checks.gradient_for(labels[i], x, names[i], arrays[i])
        addends[i] = x
    _checks.disjoint(
        [Named(name, x, True) for name, x in zip(names, arrays, strict=True)]
        + [Named(label, x, False) for label, x in zip(labels, addends, strict=True) if x is not None]
    )
    if _backend.native is not None and _backend.backend() == "native":
        _backend.native.accumulate(arrays, addends, factor)
        return
    results = []
    for x, grad in zip(views(arrays), addends, strict=True):
        if grad is not None:
            wide = _stages.numbers(x)
            addend = _stages.numbers(views([grad])[0]).astype(wide.dtype)
            results.append((x, _stages.narrow(_stages.accumulated(wide, addend, factor), _checks.dtype_name(x))))
    for x, result in results:
        x[...] = result


def _matching(label: str, like: Any, given: Any) -> list[Any]:
    """The arrays of ``given`` that belong to those of ``like``, in order; None where there is none."""
    if isinstance(like, Mapping):
        if given is None:
            return [x for key in like for x in _matching(label, like[key], None)]
        if not isinstance(given, Mapping) or given.keys() != like.keys():
            raise ValueError(f"{label} must have the keys of total, {list(like)}")
        return [x for key in like for x in _matching(f"{label}[{key!r}]", like[key], given[key])]
    if isinstance(like, (list, tuple)):
        if given is None:
            return [x for item in like for x in _matching(label, item, None)]
        if not isinstance(given, (list, tuple)) or len(given) != len(like):
            raise ValueError(f"{label} must be a sequence of {len(like)} items, like total")
        return [
            x
            for i, (item, other) in enumerate(zip(like, given, strict=True))
            for x in _matching(f"{label}[{i}]", item, other)
        ]
    return [] if like is None else [given]


def _collect(label: str, grads: Any, names: list[str], given: list[Any]) -> None:
    """Adds all arrays of a nested structure to a list, and their places in it to another."""
    if grads is None:
        return
    if isinstance(grads, Mapping):
        for key, item in grads.items():
            _collect(f"{label}[{key!r}]", item, names, given)
    elif isinstance(grads, (list, tuple)):
        for i, item in enumerate(grads):
            _collect(f"{label}[{i}]", item, names, given)
    else:
        names.append(label)
        given.append(grads)
