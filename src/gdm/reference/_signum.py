"""Signum: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formula import New, arrays, gradient, in_place, rates, sign

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def signum(
    param: Floats,
    exp_avg: Floats,
    grad: Floats,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Signum, in place: signSGD with momentum, which steps against the sign of an average gradient.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The average gradient m; overwritten. It starts from zeros.
    lr : float
        The learning rate η, finite and not negative: how far each element moves, in the unit of ``param``.
    momentum : float, default 0.9
        The share of ``exp_avg`` that is kept from step to step, in [0, 1). With 0 it is :func:`gdm.sign_sgd`.
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
        g = g + weight_decay * param                 # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param      # if decoupled_weight_decay
        exp_avg = momentum * exp_avg + (1 - momentum) * g
        param = param - lr * sign(exp_avg)           # sign(x) is x where x is 0 or NaN

    Source: J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: compressed optimisation for
    non-convex problems", 2018, algorithm 2; the names as in MXNet's Signum, except ``wd``, the coupled weight decay,
    and ``wd_lh``, the decoupled one.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m = np.array([1.0, 2.0]), np.zeros(2)
    >>> for grad in ([0.5, -4.0], [-0.25, 40.0]):
    ...     gdm.signum(theta, m, np.array(grad), lr=0.25, momentum=0.75)
    >>> theta
    array([0.5, 2. ])
    >>> m
    array([0.03125, 9.25   ])
    """
    p, m, g = arrays(param, exp_avg, grad)
    T = p.dtype.type
    g = gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    m = T(momentum) * m + T(1.0 - momentum) * g
    return decay_factor * p - eta * sign(m), m
