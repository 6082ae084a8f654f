"""Momentum and Nesterov's momentum: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .formula import New, arrays, gradient, in_place, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def momentum(
    param: Floats,
    velocity: Floats,
    grad: Floats,
    *,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
    form: Literal["torch", "classic"] = "torch",
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Gradient descent with momentum, heavy ball or Nesterov, in place.

    The function keeps nothing between calls: give it the velocity each time, zeros at first.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    velocity : array like ``param``
        The velocity v; overwritten.
    lr : float
        The learning rate η, finite and not negative. No unit of its own: that of ``param`` over that of ``grad``.
    momentum : float, default 0.9
        μ, in [0, 1): the share of the velocity that is kept from step to step.
    dampening : float, default 0
        τ, in [0, 1]: the gradient enters the velocity times ``1 - dampening``; ``dampening=momentum`` makes the
        velocity an exponential moving average. Only with ``form="torch"`` and without ``nesterov``.
    nesterov : bool, default False
        Nesterov's momentum: look ahead along the velocity. Needs ``momentum > 0``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    form : {"torch", "classic"}, default "torch"
        Whether the learning rate scales the whole velocity when it is applied (PyTorch, optax, MLX) or each gradient
        when it enters the velocity (the textbook, Keras, scikit-learn). Both give the same path if ``lr`` is constant.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone (SGDW).

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param         # if decoupled_weight_decay

        # form="torch"
        velocity = momentum * velocity + (1 - dampening) * g
        param = param - lr * velocity
        param = param - lr * (g + momentum * velocity)  # instead, if nesterov

        # form="classic"
        velocity = momentum * velocity - lr * g
        param = param + velocity
        param = param + (momentum * velocity - lr * g)  # instead, if nesterov

    Sources: B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Y. Nesterov, "A method
    of solving a convex programming problem with convergence rate O(1/k²)", 1983; I. Sutskever et al., "On the
    importance of initialization and momentum in deep learning", 2013; decoupled decay: I. Loshchilov and F. Hutter,
    "Decoupled weight decay regularization", 2019.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, v = np.array([1.0, 2.0]), np.zeros(2)
    >>> for _ in range(2):
    ...     gdm.momentum(theta, v, np.array([0.5, -0.5]), lr=0.5, momentum=0.5)
    >>> theta
    array([0.375, 2.625])
    >>> v
    array([ 0.75, -0.75])
    """
    p, v, g = arrays(param, velocity, grad)
    T = p.dtype.type
    mu = T(momentum)
    g = gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    p = decay_factor * p
    if form == "classic":
        v = mu * v - eta * g
        p = p + (mu * v - eta * g) if nesterov else p + v
    else:
        v = mu * v + T(1.0 - dampening) * g
        p = p - eta * (g + mu * v) if nesterov else p - eta * v
    return p, v
