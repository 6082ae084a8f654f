"""Rprop: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .formula import New, arrays, in_place, rates, sign

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def rprop(
    param: Floats,
    prev: Floats,
    step_size: Floats,
    grad: Floats,
    *,
    step: int,
    lr: float = 0.01,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Rprop, in place: each element has a step size, which grows while its gradient keeps its sign.

    It compares the signs of successive gradients, so these must be of the same function: use full batches.

    Parameters
    ----------
    param, grad, maximize
        As for :func:`gdm.sgd`.
    prev : array like ``param``
        The gradient of the step before, 0 where its sign had changed; overwritten. The first step does not read it.
    step_size : array like ``param``
        How far each element goes; overwritten. The first step does not read it.
    step : int
        Which step this is, counted from 1.
    lr : float, default 0.01
        The step size of the first step, finite and not negative. Later steps do not use it.
    etas : (float, float), default (0.5, 1.2)
        What a step size is multiplied by where the sign of the gradient has changed, in (0, 1), and where it has not, a
        finite number above 1.
    step_sizes : (float, float), default (1e-6, 50)
        The smallest and the largest step size, finite and not negative.
    lr_scale : array like ``param``, optional
        Factors of ``lr``, not negative; only read.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        x = g * prev                                    # 0 in step 1
        step_size = step_size * (etas[1] if x > 0 else etas[0] if x < 0 else 1)         # in step 1 lr
        step_size = min(max(step_size, step_sizes[0]), step_sizes[1])
        g = 0 if x < 0 else g
        param = param - sign(g) * step_size             # sign(g) is g where g is 0 or NaN
        prev = g

    Source: M. Riedmiller, H. Braun, "A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm", 1993; the variant and the options as in ``torch.optim.Rprop``. There the sign of NaN is 0, so that the
    parameter does not show a gradient that is NaN.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, prev, size = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> for step in (1, 2):
    ...     gdm.rprop(theta, prev, size, np.array([0.5, 1.5 - step]), step=step, lr=0.25)
    >>> theta, size
    (array([0.45, 1.75]), array([0.3  , 0.125]))
    """
    p, before, size, g = arrays(param, prev, step_size, grad)
    T, (shrink, grow), (smallest, largest) = p.dtype.type, etas, step_sizes
    g = T(-1.0 if maximize else 1.0) * g
    if step == 1:
        size = np.broadcast_to(rates(p, lr, lr, 0.0, False, lr_scale)[0], p.shape)
    else:
        x = g * before
        size = size * np.where(x > 0, T(grow), np.where(x < 0, T(shrink), T(1.0)))
        g = np.where(x < 0, T(0.0), g)
    size = np.where(size < T(smallest), T(smallest), size)
    size = np.where(size > T(largest), T(largest), size)
    return p - sign(g) * size, g, size
