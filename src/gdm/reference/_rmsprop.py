"""RMSprop: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, gradient, in_place, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def rmsprop(
    param: Floats,
    square_avg: Floats,
    grad: Floats,
    *,
    lr: float = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    grad_avg: Floats | None = None,
    momentum_buffer: Floats | None = None,
    lr_scale: Floats | None = None,
) -> New:
    """RMSprop, in place: the gradient over the root of an average of its squares; optionally centered or with momentum.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    square_avg : array like ``param``
        The average of the squared gradients; overwritten. It starts from zeros.
    lr : float, default 0.01
        The learning rate η, finite and not negative.
    alpha : float, default 0.99
        The share of the averages that is kept from step to step, in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator, where PyTorch adds it.
    momentum : float, default 0
        μ, in [0, 1): the share of ``momentum_buffer`` that is kept from step to step.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    centered : bool, default False
        Subtract the square of the average gradient from the average square.
    grad_avg : array like ``param``, optional
        The average gradient; overwritten. Needed with ``centered``, and only then.
    momentum_buffer : array like ``param``, optional
        The velocity; overwritten. Needed with ``momentum > 0``, and only then.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless weight_decay is 0
        square_avg = alpha * square_avg + (1 - alpha) * (g * g)
        grad_avg = alpha * grad_avg + (1 - alpha) * g                   # if centered
        d = sqrt(square_avg - grad_avg * grad_avg if centered else square_avg) + eps
        param = param - lr * (g / d)

        momentum_buffer = momentum * momentum_buffer + g / d            # instead, if momentum > 0
        param = param - lr * momentum_buffer

    Sources: G. Hinton, "Neural networks for machine learning", lecture 6e, 2012; centered: A. Graves, "Generating
    sequences with recurrent neural networks", 2013; the options as in ``torch.optim.RMSprop``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, s = np.array([1.0, 2.0]), np.zeros(2)
    >>> gdm.rmsprop(theta, s, np.array([0.5, -4.0]), lr=0.25, alpha=0.75)
    >>> theta.round(6)
    array([0.5, 2.5])
    """
    p, s, g = arrays(param, square_avg, grad)
    T = p.dtype.type
    a = b = None
    g = gradient(p, g, maximize, weight_decay)
    eta, decay_factor = rates(p, lr, lr, weight_decay, False, lr_scale)
    s = T(alpha) * s + T(1.0 - alpha) * (g * g)
    variance = s
    if centered and grad_avg is not None:
        (a,) = arrays(grad_avg)
        a = T(alpha) * a + T(1.0 - alpha) * g
        variance = s - a * a
    step = g / (np.sqrt(variance) + T(eps))
    if momentum != 0 and momentum_buffer is not None:
        (b,) = arrays(momentum_buffer)
        step = b = T(momentum) * b + step
    return decay_factor * p - eta * step, s, a, b
