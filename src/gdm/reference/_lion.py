"""Lion: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formula import New, arrays, in_place, rates, sign

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def lion(
    param: Floats,
    exp_avg: Floats,
    grad: Floats,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Lion, in place: steps of one size, in the direction of the sign of an average gradient.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The average gradient m; overwritten. It starts from zeros.
    lr : float, default 1e-4
        The learning rate η, finite and not negative.
    betas : (float, float), default (0.9, 0.99)
        The shares of the old ``exp_avg`` in the step and in the new ``exp_avg``, each in [0, 1).
    weight_decay : float, default 0
        The weight decay λ, finite and not negative; always decoupled: ``param`` is multiplied by ``1 - lr *
        weight_decay``.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        x = beta1 * exp_avg + (1 - beta1) * g
        param = (1 - lr * weight_decay) * param - lr * sign(x)          # sign(x) is x where x is 0 or NaN
        exp_avg = beta2 * exp_avg + (1 - beta2) * g

    Source: X. Chen et al., "Symbolic discovery of optimization algorithms", 2023.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m = np.array([1.0, 2.0]), np.zeros(2)
    >>> gdm.lion(theta, m, np.array([0.5, -4.0]), lr=0.25)
    >>> theta
    array([0.75, 2.25])
    """
    p, m, g = arrays(param, exp_avg, grad)
    T, (beta1, beta2) = p.dtype.type, betas
    g = T(-1.0 if maximize else 1.0) * g
    eta, decay_factor = rates(p, lr, lr, weight_decay, True, lr_scale)
    x = T(beta1) * m + T(1.0 - beta1) * g
    return decay_factor * p - eta * sign(x), T(beta2) * m + T(1.0 - beta2) * g
