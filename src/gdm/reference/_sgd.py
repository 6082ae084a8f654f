"""Gradient descent: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formula import New, arrays, gradient, in_place, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def sgd(
    param: Floats,
    grad: Floats,
    *,
    lr: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Gradient descent, in place: ``param`` becomes ``param - lr * grad``.

    Parameters
    ----------
    param : array of float32 or float64, any shape
        The parameter θ; overwritten. Contiguous (C or Fortran order), aligned and writable. A NumPy array, a tensor, or
        anything else in the CPU's memory with DLPack or the buffer protocol.
    grad : array like ``param``
        The gradient g at ``param``; only read, and may be read-only.
    lr : float
        The learning rate η, finite and not negative. No unit of its own: that of ``param`` over that of ``grad``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    maximize : bool, default False
        Walk up the gradient instead of down.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone.
    lr_scale : array like ``param``, optional
        A factor of the learning rate for each element; only read.

    Raises
    ------
    TypeError
        If an argument is no such array, is on another device, has another dtype or is byte-swapped; or if an option has
        the wrong type.
    ValueError
        If shapes, dtypes or memory orders differ; a buffer is not contiguous, misaligned, or read-only; or an option
        is outside its range.
    gdm.OverlapError
        If ``param`` and ``grad`` share memory.

    After an exception ``param`` is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                 # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param      # if decoupled_weight_decay
        param = param - lr * g

    Source: A. Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", 1847; the options as
    in ``torch.optim.SGD``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, 2.0])
    >>> gdm.sgd(theta, np.array([0.5, -0.5]), lr=0.5)
    >>> theta
    array([0.75, 2.25])
    """
    p, g = arrays(param, grad)
    g = gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    return (decay_factor * p - eta * g,)
