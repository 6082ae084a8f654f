"""Adamax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class Adamax(Optimizer):
    """Adamax: the average gradient over the largest magnitude of the gradients so far, which decays.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`.
    lr : float or callable, default 0.002
        The learning rate η, or a schedule of it.
    betas : (float, float), default (0.9, 0.999)
        The shares of the average gradient and of the largest magnitude that are kept from step to step, each in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the magnitude of the gradient.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.

    Attributes
    ----------
    exp_avg, exp_inf
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.adamax`.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.Adamax(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([ 0.3462, -0.3462])
    """

    _rule = "adamax"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.002,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
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
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
        )
