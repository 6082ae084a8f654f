"""LARS: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formula import New, arrays, gradient, in_place, norm, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def lars(
    param: Floats,
    velocity: Floats,
    grad: Floats,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    adapt: bool = True,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """LARS, in place: momentum whose learning rate depends on the norms of the parameter and its gradient.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`. ``param`` is a whole parameter, such as the weights of a layer.
    velocity : array like ``param``
        The velocity v; overwritten. It starts from zeros.
    lr : float
        The learning rate η, finite and not negative.
    momentum : float, default 0.9
        μ, in [0, 1): the share of the velocity that is kept from step to step.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    trust_coefficient : float, default 0.001
        The factor of the trust ratio, finite and not negative: about how large a step is, with ``lr=1``, as a share of
        the parameter's norm.
    adapt : bool, default True
        False: the trust ratio is 1, which is momentum in the classic form. It is usual for biases and for the
        parameters of normalisations.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        trust = trust_coefficient * |param| / (|g| + weight_decay * |param|)      # 1 if a norm is 0, or without adapt
        g = g + weight_decay * param                                              # unless weight_decay is 0
        velocity = momentum * velocity + lr * trust * g
        param = param - velocity

    ``|x|`` is the norm of the whole array: the root of :func:`gdm.reference.sum_of_squares`, in double precision.

    Source: Y. You, I. Gitman, B. Ginsburg, "Large batch training of convolutional networks", 2017.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, v = np.array([3.0, 4.0]), np.zeros(2)
    >>> gdm.lars(theta, v, np.array([0.0, -10.0]), lr=1.0, trust_coefficient=0.25)
    >>> theta
    array([3.  , 5.25])
    """
    p, v, g = arrays(param, velocity, grad)
    T, trust = p.dtype.type, 1.0
    g = gradient(p, g, maximize, 0.0)
    if adapt:
        param_norm, grad_norm = norm(p), norm(g)
        if param_norm > 0 and grad_norm > 0:
            trust = trust_coefficient * param_norm / (grad_norm + weight_decay * param_norm)
    eta, _ = rates(p, lr * trust, lr, 0.0, False, lr_scale)
    v = T(momentum) * v + eta * gradient(p, g, False, weight_decay)
    return p - v, v
