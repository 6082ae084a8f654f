"""AdEMAMix: see :mod:`gdm.reference`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, in_place, power, rates
from .real_power import Two, exp_of, log_of

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def ademamix(
    param: Floats,
    exp_avg: Floats,
    exp_avg_slow: Floats,
    exp_avg_sq: Floats,
    grad: Floats,
    *,
    step: int,
    lr: float = 0.001,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 5.0,
    t_alpha: float = 0.0,
    t_beta3: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """AdEMAMix, in place: Adam with a second, slow average of the gradients.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The fast average m of the gradients; overwritten. It starts from zeros.
    exp_avg_slow : array like ``param``
        The slow average of the gradients; overwritten. It starts from zeros.
    exp_avg_sq : array like ``param``
        The average v of the squared gradients; overwritten. It starts from zeros.
    step : int
        Which step this is, counted from 1: ``exp_avg`` and ``exp_avg_sq`` start at zero, and are corrected for that.
    lr : float, default 0.001
        The learning rate η, finite and not negative.
    betas : (float, float, float), default (0.9, 0.999, 0.9999)
        The shares of ``exp_avg``, ``exp_avg_sq`` and ``exp_avg_slow`` that are kept from step to step, each in [0, 1).
    alpha : float, default 5
        The weight of ``exp_avg_slow``, finite and not negative.
    t_alpha : float, default 0
        Before this step, ``alpha`` grows linearly from 0. 0: it is constant.
    t_beta3 : float, default 0
        Before this step, ``betas[2]`` grows from ``betas[0]`` on, its half-life linearly. 0: it is constant.
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator.
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
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_slow = beta3 * exp_avg_slow + (1 - beta3) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        correction1 = 1 - beta1**step                                    # as all scalars, in double precision
        inverse_sqrt_correction2 = 1 / sqrt(1 - beta2**step)
        mix = exp_avg + alpha * correction1 * exp_avg_slow
        param = (1 - lr * weight_decay) * param
        param = param - lr / correction1 * (mix / (sqrt(exp_avg_sq) * inverse_sqrt_correction2 + eps))

    Before step ``t_alpha``, ``alpha * (step / t_alpha)`` stands for ``alpha``. Before step ``t_beta3``, with ``x = step
    / t_beta3``, ``min(beta3, exp(1 / ((1 - x) / log(beta1) + x / log(beta3))))`` stands for ``beta3``.

    Source: M. Pagliardini, P. Ablin, D. Grangier, "The AdEMAMix optimizer: better, faster, older", 2024; the names of
    the schedules' options as in bitsandbytes. The paper warms up both for all steps of a training.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m, slow, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> gdm.ademamix(theta, m, slow, v, np.array([0.5, -4.0]), step=1, lr=0.25)
    >>> theta.round(6)
    array([0.749875, 2.250125])
    """
    p, m, slow, v, g = arrays(param, exp_avg, exp_avg_slow, exp_avg_sq, grad)
    T, (beta1, beta2, _), t = p.dtype.type, betas, float(step)
    beta3 = _beta3(t, betas, t_beta3)
    weight = alpha * (t / t_alpha) if t < t_alpha else alpha
    correction1 = 1.0 - power(beta1, step)
    inverse_sqrt_correction2 = 1.0 / math.sqrt(1.0 - power(beta2, step))
    g = T(-1.0 if maximize else 1.0) * g
    eta, decay_factor = rates(p, lr / correction1, lr, weight_decay, True, lr_scale)
    m = T(beta1) * m + T(1.0 - beta1) * g
    slow = T(beta3) * slow + T(1.0 - beta3) * g
    v = T(beta2) * v + T(1.0 - beta2) * (g * g)
    mix = m + T(weight * correction1) * slow
    return decay_factor * p - eta * (mix / (np.sqrt(v) * T(inverse_sqrt_correction2) + T(eps))), m, slow, v


def _beta3(step: float, betas: tuple[float, float, float], t_beta3: float) -> float:
    """The share of the slow average that is kept in this step."""
    beta1, _, beta3 = betas
    if beta3 == 0 or not step < t_beta3:
        return beta3
    x = step / t_beta3
    inverse = (1.0 - x) * _inverse_log(beta1) + x * _inverse_log(beta3)
    beta = exp_of(Two(1.0 / inverse, 0.0))
    return min(beta, beta3)


def _inverse_log(beta: float) -> float:
    """1 / log(beta) for beta in [0, 1)."""
    return 0.0 if beta == 0 else 1.0 / log_of(beta).high
