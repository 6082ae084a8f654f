"""Numbers that are worked out from all gradients: their norm, and how many elements are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from . import _backend, _checks, _foreign, reference
from ._arrays import are_plain

__all__ = ["count_nonfinite", "grad_norm"]

_SUM_OF_SQUARES, _LARGEST_MAGNITUDE, _NONFINITE_COUNT = range(3)  # GDM_SUM_OF_SQUARES, ...


def grad_norm(grads: Any, *, order: float = 2) -> float:
    """The norm of all gradients together, as if they were one long vector. They are only read.

    Parameters
    ----------
    grads : array, sequence or mapping of arrays, or nested ones
        float32 or float64, any shapes, contiguous (C or Fortran order) and aligned. NumPy arrays, tensors, or anything
        else in the CPU's memory with DLPack or the buffer protocol. A None is left out, so these may be the gradients
        that an optimizer's ``step`` takes.
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
    names: list[str] = []
    given: list[Any] = []
    _collect("grads", grads, names, given)
    arrays = _foreign.views(given)
    if not are_plain(arrays, False):
        arrays, _ = _checks.buffers(names, given, ())
    if _backend.native is not None and _backend.backend() == "native":
        result: float = _backend.native.reduce(reduction, arrays)
        return result
    functions = reference.sum_of_squares, reference.largest_magnitude, reference.count_nonfinite
    return functions[reduction](arrays)


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
