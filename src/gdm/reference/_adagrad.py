"""Adagrad: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, gradient, in_place, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def adagrad(
    param: Floats,
    state_sum: Floats,
    grad: Floats,
    *,
    step: int,
    lr: float = 0.01,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Adagrad, in place: each element's learning rate falls with the sum of its squared gradients.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    state_sum : array like ``param``
        The sum of the squared gradients; overwritten. It starts from zeros, or from a small number.
    step : int
        The number of this step, from 1. It only has an effect with ``lr_decay``.
    lr : float, default 0.01
        The learning rate η, finite and not negative.
    lr_decay : float, default 0
        The learning rate is divided by ``1 + (step - 1) * lr_decay``; finite and not negative.
    eps : float, default 1e-10
        ε, finite and not negative: added to the root in the denominator, where PyTorch adds it.
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
        state_sum = state_sum + g * g
        param = param - lr / (1 + (step - 1) * lr_decay) * (g / (sqrt(state_sum) + eps))

    Source: J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", 2011; the options as in ``torch.optim.Adagrad``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, s = np.array([1.0, 2.0]), np.zeros(2)
    >>> gdm.adagrad(theta, s, np.array([0.5, -4.0]), step=1, lr=0.25)
    >>> theta.round(6)
    array([0.75, 2.25])
    """
    p, s, g = arrays(param, state_sum, grad)
    g = gradient(p, g, maximize, weight_decay)
    eta, decay_factor = rates(p, lr / (1.0 + float(step - 1) * lr_decay), lr, weight_decay, False, lr_scale)
    s = s + g * g
    return decay_factor * p - eta * (g / (np.sqrt(s) + p.dtype.type(eps))), s
