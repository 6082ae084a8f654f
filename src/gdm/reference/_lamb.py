"""LAMB: see :mod:`gdm.reference`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, gradient, in_place, norm, power, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def lamb(
    param: Floats,
    exp_avg: Floats,
    exp_avg_sq: Floats,
    grad: Floats,
    *,
    step: int,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    adapt: bool = True,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """LAMB, in place: Adam whose learning rate depends on the norms of the parameter and of its step.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`. ``param`` is a whole parameter, such as the weights of a layer.
    exp_avg, exp_avg_sq : arrays like ``param``
        The averages of the gradients and of their squares, m and v; overwritten. They start from zeros.
    step : int
        The number of this step, from 1.
    lr : float, default 0.001
        The learning rate η, finite and not negative: how large a step is, as a share of the parameter's norm.
    betas : (float, float), default (0.9, 0.999)
        The shares of the averages that are kept from step to step, each in [0, 1).
    eps : float, default 1e-6
        ε, finite and not negative: added to the root in the denominator.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the step.
    adapt : bool, default True
        False: the trust ratio is 1, which is Adam with decoupled weight decay. It is usual for biases and for the
        parameters of normalisations.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        inverse_correction1 = 1 / (1 - beta1**step)                      # as all scalars, in double precision
        inverse_sqrt_correction2 = 1 / sqrt(1 - beta2**step)
        u = (exp_avg * inverse_correction1) / (sqrt(exp_avg_sq) * inverse_sqrt_correction2 + eps)
        u = u + weight_decay * param                                     # unless weight_decay is 0
        trust = |param| / |u|                                            # 1 if a norm is 0, or without adapt
        param = param - lr * trust * u

    ``|x|`` is the norm of the whole array: the root of :func:`gdm.reference.sum_of_squares`, in double precision.

    Source: Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020; defaults as
    in ``optax.lamb``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m, v = np.array([3.0, 4.0]), np.zeros(2), np.zeros(2)
    >>> gdm.lamb(theta, m, v, np.array([0.5, -40.0]), step=1, lr=0.25)
    >>> theta.round(3)
    array([2.116, 4.884])
    """
    p, m, v, g = arrays(param, exp_avg, exp_avg_sq, grad)
    T, (beta1, beta2), trust = p.dtype.type, betas, 1.0
    inverse_correction1 = 1.0 / (1.0 - power(beta1, step))
    inverse_sqrt_correction2 = 1.0 / math.sqrt(1.0 - power(beta2, step))
    g = gradient(p, g, maximize, 0.0)
    m = T(beta1) * m + T(1.0 - beta1) * g
    v = T(beta2) * v + T(1.0 - beta2) * (g * g)
    u = (m * T(inverse_correction1)) / (np.sqrt(v) * T(inverse_sqrt_correction2) + T(eps))
    u = gradient(p, u, False, weight_decay)
    if adapt:
        param_norm, step_norm = norm(p), norm(u)
        if param_norm > 0 and step_norm > 0:
            trust = param_norm / step_norm
    eta, _ = rates(p, lr * trust, lr, 0.0, False, lr_scale)
    return p - eta * u, m, v
