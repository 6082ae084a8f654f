"""Schedule-Free AdamW: see :mod:`gdm.reference`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, averaging, gradient, in_place, power, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def schedule_free_adamw(
    param: Floats,
    z: Floats,
    exp_avg_sq: Floats,
    grad: Floats,
    *,
    step: int,
    weight_sum: Floats,
    lr_max: Floats,
    lr: float = 0.0025,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Schedule-Free AdamW, in place: :func:`gdm.schedule_free_sgd` with the steps of AdamW without its average.

    The result of a training is the average x, ``x = param + (1 - 1 / betas[0]) * (z - param)``.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    z, step, weight_sum, lr_max, warmup_steps, r, weight_lr_power
        As for :func:`gdm.schedule_free_sgd`.
    exp_avg_sq : array like ``param``
        The average v of the squared gradients; overwritten. It starts from zeros.
    lr : float, default 0.0025
        The learning rate η, finite and not negative. It may change from step to step.
    betas : (float, float), default (0.9, 0.999)
        How much of the average is in the point at which gradients are computed, in (0, 1); and the share of
        ``exp_avg_sq`` that is kept from step to step, in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``lr * weight_decay * param`` is a part of each step.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once; ``rate``, ``c`` and the new ``weight_sum`` and
    ``lr_max`` as in :func:`gdm.schedule_free_sgd`::

        g = -grad if maximize else grad
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        inverse_sqrt_correction2 = 1 / sqrt(1 - beta2**step)            # in double precision
        direction = g / (sqrt(exp_avg_sq) * inverse_sqrt_correction2 + eps)
        direction = direction + weight_decay * param                    # unless weight_decay is 0
        step_share = 1 - beta1 * (1 - c)                                # in double precision
        z = param                                                       # if step == 1
        d = rate * direction
        param = (param + c * (z - param)) - step_share * d
        z = z - d

    Source: A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled, A. Cutkosky, "The road less scheduled", 2024; the
    names and defaults as in ``schedulefree.AdamWScheduleFree``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, z, v, weight_sum, lr_max = np.array([1.0, 2.0]), *np.zeros((2, 2)), np.zeros(1), np.zeros(1)
    >>> gdm.schedule_free_adamw(theta, z, v, 2 * theta, step=1, weight_sum=weight_sum, lr_max=lr_max, lr=0.25)
    >>> theta.round(6), z.round(6)
    (array([0.75, 1.75]), array([0.75, 1.75]))
    """
    p, before, v, g = arrays(param, z, exp_avg_sq, grad)
    T, (beta1, beta2), before = p.dtype.type, betas, p if step == 1 else before
    now = averaging(lr, beta1, step, warmup_steps, r, weight_lr_power, weight_sum, lr_max)
    inverse_sqrt_correction2 = 1.0 / math.sqrt(1.0 - power(beta2, step))
    eta, _ = rates(p, now.lr, lr, weight_decay, False, lr_scale)
    g = gradient(p, g, maximize, 0.0)
    v = T(beta2) * v + T(1.0 - beta2) * (g * g)
    direction = g / (np.sqrt(v) * T(inverse_sqrt_correction2) + T(eps))
    if weight_decay != 0:
        direction = direction + T(weight_decay) * p
    d = eta * direction
    p = (p + T(now.weight) * (before - p)) - T(now.step_share) * d
    return p, before - d, v, now.weight_sum, now.lr_max
