"""signSGD: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formula import New, arrays, gradient, in_place, rates, sign

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def sign_sgd(
    param: Floats,
    grad: Floats,
    *,
    lr: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """signSGD, in place: every element moves by ``lr``, against the sign of its gradient.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    lr : float
        The learning rate η, finite and not negative: how far each element moves, in the unit of ``param``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception ``param`` is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                 # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param      # if decoupled_weight_decay
        param = param - lr * sign(g)                 # sign(x) is x where x is 0 or NaN

    Source: J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: compressed optimisation for
    non-convex problems", 2018.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, 2.0])
    >>> gdm.sign_sgd(theta, np.array([0.5, -4.0]), lr=0.25)
    >>> theta
    array([0.75, 2.25])
    """
    p, g = arrays(param, grad)
    g = gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    return (decay_factor * p - eta * sign(g),)
