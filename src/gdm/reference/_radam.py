"""RAdam: see :mod:`gdm.reference`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, gradient, in_place, power, power_to_nearest, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def radam(
    param: Floats,
    exp_avg: Floats,
    exp_avg_sq: Floats,
    grad: Floats,
    *,
    step: int,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """RAdam, in place: Adam whose first steps do not divide by the root, and whose next ones are shorter.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The average gradient m; overwritten. It starts from zeros.
    exp_avg_sq : array like ``param``
        The average v of the squared gradients; overwritten. It starts from zeros.
    step : int
        Which step this is, counted from 1: the averages start at zero, and are corrected for that. It also says how
        much the root can be relied on.
    lr : float, default 0.001
        The learning rate η, finite and not negative.
    betas : (float, float), default (0.9, 0.999)
        The shares of ``exp_avg`` and ``exp_avg_sq`` that are kept from step to step, each in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator, where PyTorch adds it.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless weight_decay is 0, or decoupled
        param = (1 - lr * weight_decay) * param         # if decoupled_weight_decay
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)

        rho_inf = 2 / (1 - beta2) - 1                   # all scalars in double precision
        rho = rho_inf - 2 * step * beta2**step / (1 - beta2**step)
        rate = lr / (1 - beta1**step)
        param = param - rate * exp_avg                                  # if rho <= 5

        r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        rate = rate * (r * sqrt(1 - beta2**step))
        param = param - rate * (exp_avg / (sqrt(exp_avg_sq) + eps))     # instead, if rho > 5

    Source: L. Liu et al., "On the variance of the adaptive learning rate and beyond", 2020; the options as in
    ``torch.optim.RAdam``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> gdm.radam(theta, m, v, np.array([0.5, -4.0]), step=1, lr=0.25)
    >>> theta.round(6)
    array([0.875, 3.   ])
    """
    p, m, v, g = arrays(param, exp_avg, exp_avg_sq, grad)
    T, (beta1, beta2) = p.dtype.type, betas
    power2 = power_to_nearest(beta2, step)
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * float(step) * power2 / (1.0 - power2)
    rate = lr / (1.0 - power(beta1, step))
    if rho > 5.0:
        r = math.sqrt((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho))
        rate = rate * (r * math.sqrt(1.0 - power2))
    g = gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = rates(p, rate, lr, weight_decay, decoupled_weight_decay, lr_scale)
    m = T(beta1) * m + T(1.0 - beta1) * g
    v = T(beta2) * v + T(1.0 - beta2) * (g * g)
    direction = m / (np.sqrt(v) + T(eps)) if rho > 5.0 else m
    return decay_factor * p - eta * direction, m, v
