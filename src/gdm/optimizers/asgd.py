"""ASGD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class ASGD(Optimizer):
    """ASGD, averaged stochastic gradient descent: gradient descent, and the average of its path.

    Parameters
    ----------
    params, maximize, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`.
    lr : float or callable, default 0.01
        The learning rate η at the beginning, or a schedule of it. As in PyTorch, the learning rate of a step follows
        from the ``lr`` of the step before.
    lambd : float, default 1e-4
        How fast the learning rate falls, and the decay of the parameters in each step; finite and not negative.
    alpha : float, default 0.75
        The exponent with which the learning rate falls, finite and not negative.
    t0 : float, default 1e6
        The average begins after step ``t0 + 2``; finite and not negative.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    lr_scale : float, array or sequence, default 1
        As for :class:`gdm.SGD`. A number is a factor of ``lr``, an array of the learning rate that has fallen.

    Attributes
    ----------
    ax
        The averages: views, in the structure of ``params``; None for a parameter that has none. Equal to the
        parameter up to step ``t0 + 2``.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.asgd`. For an average of the path of any optimizer, which can
    begin at once and forgets the beginning, see ``average`` of :class:`gdm.SGD`.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.ASGD(theta, lr=0.25, t0=0)
    >>> for _ in range(4):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4), opt.ax.round(4)
    (array([ 0.0625, -0.0625]), array([ 0.1458, -0.1458]))
    """

    _rule = "asgd"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.01,
        *,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
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
            lambd=lambd,
            alpha=alpha,
            t0=t0,
            weight_decay=weight_decay,
            maximize=maximize,
        )
