"""Adadelta."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class Adadelta(Optimizer):
    """Adadelta: steps as long as those before, relative to the gradients; it needs no learning rate.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`.
    lr : float or callable, default 1
        The learning rate η, or a schedule of it; in the paper it is always 1.
    rho : float, default 0.9
        The share of the averages that is kept from step to step, in [0, 1].
    eps : float, default 1e-6
        ε, finite and not negative: added to both averages, under the roots. It also sets how long the first steps are.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.

    Attributes
    ----------
    square_avg, acc_delta
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.adadelta`.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.Adadelta(theta, eps=0.01)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([ 0.249, -0.249])
    """

    _rule = "adadelta"

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        *,
        rho: float = 0.9,
        eps: float = 1e-6,
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
            rho=rho,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
        )
