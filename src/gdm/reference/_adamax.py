"""Adamax: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, gradient, in_place, power, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def adamax(
    param: Floats,
    exp_avg: Floats,
    exp_inf: Floats,
    grad: Floats,
    *,
    step: int,
    lr: float = 0.002,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Adamax, in place: the average gradient over the largest magnitude of the gradients so far, which decays.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The average gradient m; overwritten. It starts from zeros.
    exp_inf : array like ``param``
        The largest magnitude u of the gradients so far; overwritten. It starts from zeros.
    step : int
        Which step this is, counted from 1: ``exp_avg`` starts at zero, and is corrected for that.
    lr : float, default 0.002
        The learning rate η, finite and not negative.
    betas : (float, float), default (0.9, 0.999)
        The shares of ``exp_avg`` and ``exp_inf`` that are kept from step to step, each in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the magnitude of the gradient, where PyTorch adds it.
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
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_inf = max(beta2 * exp_inf, abs(g) + eps)    # NaN if one of them is NaN
        param = param - lr / (1 - beta1**step) * (exp_avg / exp_inf)

    Source: D. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015, section 7.1; the options as in
    ``torch.optim.Adamax``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m, u = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> gdm.adamax(theta, m, u, np.array([0.5, -4.0]), step=1, lr=0.25)
    >>> theta.round(6)
    array([0.75, 2.25])
    """
    p, m, u, g = arrays(param, exp_avg, exp_inf, grad)
    T, (beta1, beta2) = p.dtype.type, betas
    g = gradient(p, g, maximize, weight_decay)
    eta, decay_factor = rates(p, lr / (1.0 - power(beta1, step)), lr, weight_decay, False, lr_scale)
    m = T(beta1) * m + T(1.0 - beta1) * g
    norm, size = T(beta2) * u, np.abs(g) + T(eps)
    u = np.where((norm < size) | np.isnan(size), size, norm)
    return decay_factor * p - eta * (m / u), m, u
