"""Adadelta: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, gradient, in_place, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def adadelta(
    param: Floats,
    square_avg: Floats,
    acc_delta: Floats,
    grad: Floats,
    *,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Adadelta, in place: steps as long as those before, relative to the gradients.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    square_avg : array like ``param``
        The average of the squared gradients; overwritten. It starts from zeros.
    acc_delta : array like ``param``
        The average of the squared steps, before they are multiplied by ``lr``; overwritten. It starts from zeros.
    lr : float, default 1
        The learning rate η, finite and not negative; in the paper it is always 1.
    rho : float, default 0.9
        ρ, in [0, 1]: the share of the averages that is kept from step to step.
    eps : float, default 1e-6
        ε, finite and not negative: added to both averages, under the roots. It also sets how long the first steps are.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless weight_decay is 0
        square_avg = rho * square_avg + (1 - rho) * (g * g)
        delta = sqrt((acc_delta + eps) / (square_avg + eps)) * g
        acc_delta = rho * acc_delta + (1 - rho) * (delta * delta)
        param = param - lr * delta

    Source: M. Zeiler, "ADADELTA: an adaptive learning rate method", 2012 (arXiv:1212.5701); the options as in
    ``torch.optim.Adadelta``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, s, d = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> gdm.adadelta(theta, s, d, np.array([0.5, -4.0]), rho=0.75, eps=0.0625)
    >>> theta.round(3)
    array([0.646, 2.496])
    """
    p, s, d, g = arrays(param, square_avg, acc_delta, grad)
    T = p.dtype.type
    g = gradient(p, g, maximize, weight_decay)
    eta, decay_factor = rates(p, lr, lr, weight_decay, False, lr_scale)
    s = T(rho) * s + T(1.0 - rho) * (g * g)
    delta = np.sqrt((d + T(eps)) / (s + T(eps))) * g
    d = T(rho) * d + T(1.0 - rho) * (delta * delta)
    return decay_factor * p - eta * delta, s, d
