"""RAdam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class RAdam(Optimizer):
    """RAdam: Adam whose first steps do not divide by the root, and whose next ones are shorter.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`.
    lr : float or callable, default 0.001
        The learning rate η, or a schedule of it.
    betas : (float, float), default (0.9, 0.999)
        The shares of the averages of gradients and of their squares that are kept from step to step, each in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    decoupled_weight_decay : bool, default False
        Multiply each parameter by ``1 - lr * weight_decay`` before its update, and leave the gradient alone.

    Attributes
    ----------
    exp_avg, exp_avg_sq
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.radam`. With the default ``betas``, the first five steps do not
    divide by the root: their length depends on the scale of the gradients, as with :class:`gdm.SGD`.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.RAdam(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([-0.1252,  0.1252])
    """

    _rule = "radam"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
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
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )
