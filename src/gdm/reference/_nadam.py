"""NAdam: see :mod:`gdm.reference`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, gradient, in_place, power, power_of_096, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def nadam(
    param: Floats,
    exp_avg: Floats,
    exp_avg_sq: Floats,
    grad: Floats,
    *,
    step: int,
    mu_product: Floats,
    lr: float = 0.002,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 0.004,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """NAdam, in place: Adam with Nesterov's momentum.

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
    mu_product : array of one float64
        The product of the momenta of all steps before this one, 1 at first; overwritten with the product after it.
    lr : float, default 0.002
        The learning rate η, finite and not negative.
    betas : (float, float), default (0.9, 0.999)
        The shares of ``exp_avg`` and ``exp_avg_sq`` that are kept from step to step, each in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator, where PyTorch adds it.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    momentum_decay : float, default 0.004
        How fast the momentum warms up to ``betas[0]``, finite and not negative.
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
        mu, next = (beta1 * (1 - 0.96**(t * momentum_decay) / 2) for t in (step, step + 1))
        mu_product = mu_product * mu
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        ahead = (1 - mu) / (1 - mu_product) * g + next / (1 - mu_product * next) * exp_avg
        inverse_sqrt_correction2 = 1 / sqrt(1 - beta2**step)             # as all scalars, in double precision
        param = param - lr * (ahead / (sqrt(exp_avg_sq) * inverse_sqrt_correction2 + eps))

    Source: T. Dozat, "Incorporating Nesterov momentum into Adam", 2016; the options as in ``torch.optim.NAdam``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m, v, product = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2), np.ones(1)
    >>> gdm.nadam(theta, m, v, np.array([0.5, -4.0]), step=1, mu_product=product, lr=0.25)
    >>> theta.round(3), product.round(3)
    (array([0.736, 2.264]), array([0.45]))
    """
    p, m, v, g, product = arrays(param, exp_avg, exp_avg_sq, grad, mu_product)
    T, (beta1, beta2) = p.dtype.type, betas
    mu = beta1 * (1.0 - 0.5 * power_of_096(float(step) * momentum_decay))
    following = beta1 * (1.0 - 0.5 * power_of_096((float(step) + 1.0) * momentum_decay))
    new_product = float(product.item()) * mu
    grad_factor, avg_factor = (1.0 - mu) / (1.0 - new_product), following / (1.0 - new_product * following)
    inverse_sqrt_correction2 = 1.0 / math.sqrt(1.0 - power(beta2, step))
    g = gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    m = T(beta1) * m + T(1.0 - beta1) * g
    v = T(beta2) * v + T(1.0 - beta2) * (g * g)
    ahead = T(grad_factor) * g + T(avg_factor) * m
    return decay_factor * p - eta * (ahead / (np.sqrt(v) * T(inverse_sqrt_correction2) + T(eps))), m, v, new_product
