"""Muon: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formula import New, arrays, gradient, in_place, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def muon(
    param: Floats,
    velocity: Floats,
    update: Floats,
    grad: Floats,
    *,
    lr: float,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    nesterov: bool = True,
    maximize: bool = False,
    prepare: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """The two passes of Muon over memory, in place; what is between them is yours. :class:`gdm.Muon` does all of it.

    An update takes two calls, with the same ``velocity`` and ``grad``. The first one, with ``prepare=True``, writes the
    matrix that is to be orthogonalized into ``update``, and changes nothing else. Replace it by its orthogonalization
    (:func:`gdm.newton_schulz`, for example), times a factor for its shape if you like. Then the second call changes
    ``param`` and ``velocity``.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`. The function reads no shape: it works on the elements.
    velocity : array like ``param``
        The velocity v, an average of the gradients; overwritten. It starts from zeros.
    update : array like ``param``
        With ``prepare`` it is overwritten; else what is subtracted from ``param``, times ``lr``.
    lr : float
        The learning rate η, finite and not negative.
    momentum : float, default 0.95
        The share of ``velocity`` that is kept from step to step, in [0, 1).
    weight_decay : float, default 0.1
        The weight decay λ, finite and not negative: ``param`` is multiplied by ``1 - lr * weight_decay`` first.
    nesterov : bool, default True
        Prepare a mean of the velocity and the gradient, and not the velocity itself.
    prepare : bool, default False
        Which of the two passes this is.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        v = momentum * velocity + (1 - momentum) * g

        # prepare=True
        update = v
        update = momentum * v + (1 - momentum) * g   # instead, if nesterov

        # prepare=False
        velocity = v
        param = (1 - lr * weight_decay) * param
        param = param - lr * update

    Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the averages and the
    names are those of ``torch.optim.Muon``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, v, update = np.eye(2), np.zeros((2, 2)), np.zeros((2, 2))
    >>> grad = np.array([[3.0, 0.0], [0.0, 0.5]])
    >>> gdm.muon(theta, v, update, grad, lr=0.25, weight_decay=0.0, prepare=True)
    >>> left, _, right = np.linalg.svd(update)
    >>> update[...] = left @ right  # all singular values are 1
    >>> gdm.muon(theta, v, update, grad, lr=0.25, weight_decay=0.0)
    >>> theta
    array([[0.75, 0.  ],
           [0.  , 0.75]])
    """
    p, v, u, g = arrays(param, velocity, update, grad)
    T = p.dtype.type
    mu, rest = T(momentum), T(1.0 - momentum)
    g = gradient(p, g, maximize, 0.0)
    new = mu * v + rest * g
    if prepare:
        return p, v, mu * new + rest * g if nesterov else new
    eta, decay_factor = rates(p, lr, lr, weight_decay, True, lr_scale)
    return decay_factor * p - eta * u, new, u
