"""Numbers that are worked out from all gradients: their norm, and how many elements are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import _backend, _checks, reference

if TYPE_CHECKING:
    from ._checks import Array

__all__ = ["count_nonfinite", "grad_norm"]

_SUM_OF_SQUARES, _LARGEST_MAGNITUDE, _NONFINITE_COUNT = range(3)  # GDM_SUM_OF_SQUARES, ...


def grad_norm(grads: Any, *, order: float = 2) -> float:
    """The norm of all gradients together, as if they were one long vector. They are only read.

    Parameters
    ----------
    grads : array, sequence or mapping of arrays, or nested ones
        float32 or float64, any shapes, contiguous (C or Fortran order) and aligned. A None is left out, so these may be
        the gradients that an optimizer's ``step`` takes.
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
    arrays: list[Array] = []
    _collect("grads", grads, arrays)
    if _backend.native is not None and _backend.backend() == "native":
        result: float = _backend.native.reduce(reduction, arrays)
        return result
    functions = reference.sum_of_squares, reference.largest_magnitude, reference.count_nonfinite
    return functions[reduction](arrays)


def _collect(label: str, grads: Any, arrays: list[Array]) -> None:
    """Adds all arrays of a nested structure to a list, each checked."""
    if grads is None:
        return
    if isinstance(grads, Mapping):
        for key, item in grads.items():
            _collect(f"{label}[{key!r}]", item, arrays)
    elif isinstance(grads, (list, tuple)):
        for i, item in enumerate(grads):
            _collect(f"{label}[{i}]", item, arrays)
    else:
        arrays.append(_checks.buffer(label, grads, writable=False))
