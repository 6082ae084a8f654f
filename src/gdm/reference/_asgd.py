"""ASGD: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, gradient, in_place, rates
from .real_power import real_power

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def asgd(
    param: Floats,
    ax: Floats,
    grad: Floats,
    *,
    step: int,
    eta: Floats,
    mu: Floats,
    lr: float = 0.01,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """ASGD, averaged stochastic gradient descent, in place: gradient descent, and the average of its path.

    Parameters
    ----------
    param, grad, maximize
        As for :func:`gdm.sgd`.
    ax : array like ``param``
        The average of the parameter; overwritten. It is equal to the parameter up to step ``t0 + 2``.
    step : int
        Which step this is, counted from 1.
    eta : array of one float64
        The learning rate of this step, 0 at first, which means ``lr``; overwritten with that of the next step.
    mu : array of one float64
        The weight of this step in ``ax``, 1 at first; overwritten with that of the next step.
    lr : float, default 0.01
        The learning rate η at the beginning, finite and not negative.
    lambd : float, default 1e-4
        How fast the learning rate falls, and the decay of the parameter in each step; finite and not negative.
    alpha : float, default 0.75
        The exponent with which the learning rate falls, finite and not negative.
    t0 : float, default 1e6
        The average begins after step ``t0 + 2``; finite and not negative.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    lr_scale : array like ``param``, optional
        Factors of ``eta``, not negative; only read.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless weight_decay is 0
        param = (1 - lambd * eta) * param - eta * g     # in step 1 eta is lr if it is 0
        ax = param if mu == 1 else ax + mu * (param - ax)
        eta = lr / (1 + lambd * lr * step)**alpha       # for the next step; in double precision
        mu = 1 / max(1, step - t0)

    The power is computed in a fixed order, with a relative error below 1e-14 (``gdm/reference/real_power.py``).

    Source: B. Polyak, A. Juditsky, "Acceleration of stochastic approximation by averaging", 1992; L. Bottou,
    "Stochastic gradient descent tricks", 2012; the options as in ``torch.optim.ASGD``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, average, eta, mu = np.array([1.0, 2.0]), np.zeros(2), np.zeros(1), np.ones(1)
    >>> for step in (1, 2, 3):
    ...     gdm.asgd(theta, average, np.array([0.5, -4.0]), step=step, eta=eta, mu=mu, lr=0.25, t0=0, lambd=0)
    >>> theta, average
    (array([0.625, 5.   ]), array([0.6875, 4.5   ]))
    """
    p, average, g, e, m = arrays(param, ax, grad, eta, mu)
    T, now, weight, t = p.dtype.type, float(e.item()), float(m.item()), float(step)
    if step == 1 and now == 0:
        now = lr
    g = gradient(p, g, maximize, weight_decay)
    rate, decay_factor = rates(p, now, now, lambd, True, lr_scale)
    p = decay_factor * p - rate * g
    average = p if T(weight) == 1 else average + T(weight) * (p - average)
    following = lr / real_power(1.0 + lambd * lr * t, alpha)
    return p, np.array(average), following, 1.0 / max(1.0, t - t0)
