"""Schedule-Free gradient descent: see :mod:`gdm.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formula import New, arrays, averaging, gradient, in_place, rates

if TYPE_CHECKING:
    from .._checks import Floats


@in_place
def schedule_free_sgd(
    param: Floats,
    z: Floats,
    grad: Floats,
    *,
    step: int,
    weight_sum: Floats,
    lr_max: Floats,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Schedule-Free gradient descent, in place: an average of the iterates takes the place of a falling learning rate.

    ``param`` is the point y at which the gradient is computed, between ``z`` and the average x of all ``z``. The result
    of a training is x, which is not kept: ``x = param + (1 - 1 / momentum) * (z - param)``.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    z : array like ``param``
        The iterate that makes the steps of gradient descent; overwritten. In step 1 it is not read: it starts as
        ``param``.
    step : int
        Which step this is, counted from 1.
    weight_sum : array of one float64
        The sum of the weights of all steps before this one, 0 at first; overwritten with the sum after it.
    lr_max : array of one float64
        The largest learning rate of all steps before this one, 0 at first; overwritten.
    lr : float, default 1.0
        The learning rate η, finite and not negative. It may change from step to step.
    momentum : float, default 0.9
        How much of the average is in y, in (0, 1).
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    warmup_steps : float, default 0
        The learning rate rises linearly over so many steps, finite and not negative.
    r : float, default 0
        The weights of the average grow as ``step**r``, finite and not negative.
    weight_lr_power : float, default 2
        The weights of the average are proportional to this power of ``lr_max``, finite and not negative.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                        # unless weight_decay is 0
        rate = lr * (step / warmup_steps) if step < warmup_steps else lr     # from here on in double precision
        lr_max = max(lr_max, rate)
        weight = step**r * lr_max**weight_lr_power
        weight_sum = weight_sum + weight
        c = weight / weight_sum if weight_sum else 0
        step_share = 1 - momentum * (1 - c)                 # up to here
        z = param                                           # if step == 1
        d = rate * g
        param = (param + c * (z - param)) - step_share * d
        z = z - d

    Source: A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled, A. Cutkosky, "The road less scheduled", 2024; the
    names and defaults as in ``schedulefree.SGDScheduleFree``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, z, weight_sum, lr_max = np.array([1.0, 2.0]), np.zeros(2), np.zeros(1), np.zeros(1)
    >>> for step in (1, 2):
    ...     grad = 2 * theta  # of theta ** 2
    ...     gdm.schedule_free_sgd(theta, z, grad, step=step, weight_sum=weight_sum, lr_max=lr_max, lr=0.25)
    >>> theta, z
    (array([0.3625, 0.725 ]), array([0.25, 0.5 ]))
    >>> theta + (1 - 1 / 0.9) * (z - theta)  # the average: of 0.5 and 0.25, and of 1 and 0.5
    array([0.375, 0.75 ])
    """
    p, before, g = arrays(param, z, grad)
    T, before = p.dtype.type, p if step == 1 else before
    now = averaging(lr, momentum, step, warmup_steps, r, weight_lr_power, weight_sum, lr_max)
    eta, _ = rates(p, now.lr, lr, weight_decay, False, lr_scale)
    d = eta * gradient(p, g, maximize, weight_decay)
    p = (p + T(now.weight) * (before - p)) - T(now.step_share) * d
    return p, before - d, now.weight_sum, now.lr_max
