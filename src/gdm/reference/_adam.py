"""Adam: see :mod:`gdm.reference`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, gradient, in_place, power, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def adam(
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
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    max_exp_avg_sq: Floats | None = None,
    lr_scale: Floats | None = None,
) -> New:
    """Adam, in place; with ``decoupled_weight_decay`` AdamW, with ``amsgrad`` AMSGrad.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The average gradient m; overwritten. It starts from zeros.
    exp_avg_sq : array like ``param``
        The average v of the squared gradients; overwritten. It starts from zeros.
    step : int
        Which step this is, counted from 1: the averages start at zero, and are corrected for that.
    lr : float, default 0.001
        The learning rate η, finite and not negative.
    betas : (float, float), default (0.9, 0.999)
        The shares of ``exp_avg`` and ``exp_avg_sq`` that are kept from step to step, each in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator, where PyTorch adds it.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    amsgrad : bool, default False
        Divide by the largest ``exp_avg_sq`` so far.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone (AdamW).
    max_exp_avg_sq : array like ``param``, optional
        The largest ``exp_avg_sq`` so far; overwritten. Needed with ``amsgrad``, and only then.

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
        max_exp_avg_sq = max(max_exp_avg_sq, exp_avg_sq)                # if amsgrad; it stands for exp_avg_sq below
        inverse_sqrt_correction2 = 1 / sqrt(1 - beta2**step)             # in double precision
        param = param - lr / (1 - beta1**step) * (exp_avg / (sqrt(exp_avg_sq) * inverse_sqrt_correction2 + eps))

    Sources: D. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015; I. Loshchilov, F. Hutter, "Decoupled
    weight decay regularization", 2019; S. Reddi, S. Kale, S. Kumar, "On the convergence of Adam and beyond", 2018; the
    options as in ``torch.optim.Adam``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> gdm.adam(theta, m, v, np.array([0.5, -4.0]), step=1, lr=0.25)
    >>> theta.round(6)
    array([0.75, 2.25])
    """
    p, m, v, g = arrays(param, exp_avg, exp_avg_sq, grad)
    T, (beta1, beta2), x = p.dtype.type, betas, None
    g = gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    rate = lr / (1.0 - power(beta1, step))
    inverse_sqrt_correction2 = 1.0 / math.sqrt(1.0 - power(beta2, step))
    eta, decay_factor = rates(p, rate, lr, weight_decay, decoupled_weight_decay, lr_scale)
    m = T(beta1) * m + T(1.0 - beta1) * g
    v = T(beta2) * v + T(1.0 - beta2) * (g * g)
    largest = v
    if amsgrad and max_exp_avg_sq is not None:
        (x,) = arrays(max_exp_avg_sq)
        largest = x = np.where(x > v, x, v)
    return decay_factor * p - eta * (m / (np.sqrt(largest) * T(inverse_sqrt_correction2) + T(eps))), m, v, x
