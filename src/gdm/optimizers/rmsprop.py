"""RMSprop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class RMSprop(Optimizer):
    """RMSprop: the gradient over the root of an average of its squares; optionally centered or with momentum.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`.
    lr : float or callable, default 0.01
        The learning rate η, or a schedule of it.
    alpha : float, default 0.99
        The share of the averages that is kept from step to step, in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator.
    momentum : float, default 0
        μ, in [0, 1): the share of the velocity that is kept from step to step.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    centered : bool, default False
        Subtract the square of the average gradient from the average square.

    Attributes
    ----------
    square_avg, grad_avg, momentum_buffer
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its sources are those of :func:`gdm.rmsprop`. With ``centered``, if a gradient stays the same for
    very long, the difference under the root is 0 except for rounding errors. If it is negative, the result is NaN, as
    in PyTorch.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.RMSprop(theta, lr=0.01)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([ 0.78, -0.78])
    """

    _rule = "rmsprop"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.01,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        centered: bool = False,
        maximize: bool = False,
        lr_scale: Any = 1.0,
        threads: int | None = None,
        **around: Unpack[AroundOptions],
    ) -> None:
        super().__init__(
            params,
            threads,
            lr_scale,
            around,
            lr=lr,
            alpha=alpha,
            eps=eps,
            momentum=momentum,
            weight_decay=weight_decay,
            centered=centered,
            maximize=maximize,
        )
