"""Newton and Schulz's iteration, with which Muon makes a matrix orthogonal, or nearly so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import _checks
from ._checks import Array

__all__ = ["newton_schulz"]

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # K. Jordan's
STEPS = 5
EPS = 1e-7


def newton_schulz(
    matrix: Any,
    *,
    ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
    ns_steps: int = STEPS,
    eps: float = EPS,
) -> Array:
    """A matrix with the singular vectors of the given one, and singular values near 1: some 0.7 to 1.2 by default.

    Parameters
    ----------
    matrix : array of floats, shape (rows, columns)
        It is only read.
    ns_coefficients : (float, float, float), default (3.4445, -4.775, 2.0315)
        a, b and c of the polynomial ``a x + b x³ + c x⁵``, which is applied to each singular value in each step.
    ns_steps : int, default 5
        How many steps, from 0 to 99.
    eps : float, default 1e-7
        A matrix whose norm is below this is divided by ``eps`` and not by its norm, so its update is smaller.

    Returns
    -------
    array of float32, shape (rows, columns)
        The new matrix. Singular values that are below some 0.001 of the norm stay below the range.

    Raises
    ------
    TypeError, ValueError
        For what is no matrix of real floats, or for other options.

    Notes
    -----
    The iteration, where the narrower side has the rows (else of the transposed matrix)::

        x = matrix / max(norm, eps)        # the root of the sum of the squares, which is added in float64
        for each step:
            s = x @ x.T
            x = (a I + b s + c s @ s) @ x

    The products are in float32, by the library that NumPy uses. Their results depend on it, on the machine and on its
    number of threads, so they are not part of the promise that gdm's results are the same everywhere.

    Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, with their coefficients;
    the iteration in this form: J. Bernstein and L. Newhouse, "Old optimizer, new norm: an anthology", 2024.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> matrix = np.array([[3.0, 1.0, 0.0], [0.0, 0.2, 5.0]])
    >>> values = np.linalg.svd(gdm.newton_schulz(matrix), compute_uv=False)
    >>> bool((values > 0.68).all() and (values < 1.21).all())
    True
    """
    x = np.asarray(matrix)
    if x.ndim != 2:
        raise ValueError(f"matrix must have two axes, got shape {x.shape}")
    if x.dtype.kind != "f":
        raise TypeError(f"matrix must be of real floats, got dtype {x.dtype}")
    given = {"ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "eps": eps}
    checked = _checks.options("muon", given)
    for k, coefficient in enumerate(checked["ns_coefficients"]):
        _checks.finite_in(f"ns_coefficients[{k}]", coefficient, np.dtype(np.float32))
    with np.errstate(all="ignore"):  # what is not finite propagates
        return _iterate(x, checked["ns_coefficients"], checked["ns_steps"], checked["eps"])


def _iterate(matrix: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
    a, b, c = coefficients
    divisor = max(math.sqrt(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64)), eps)
    x = np.empty(matrix.shape, np.float32)
    if divisor == 0 or not x.size:
        return np.zeros_like(x)
    is_tall = matrix.shape[0] > matrix.shape[1]
    if is_tall:
        matrix, x = matrix.T, np.empty(matrix.shape[::-1], np.float32)
    np.divide(matrix, divisor, out=x, dtype=np.float64, casting="same_kind")
    rows = len(x)
    gram, powers, new = np.empty((rows, rows), np.float32), np.empty((rows, rows), np.float32), np.empty_like(x)
    for _ in range(steps):
        np.matmul(x, x.T, out=gram)
        np.matmul(gram, gram.T, out=powers)  # with the transposed matrix NumPy knows that the product is symmetric
        powers *= np.float32(c)
        gram *= np.float32(b)
        powers += gram
        powers.flat[:: rows + 1] += np.float32(a)
        np.matmul(powers, x, out=new)
        x, new = new, x
    return x.T if is_tall else x
