"""Lion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class Lion(Optimizer):
    """Lion: steps of one size, in the direction of the sign of an average gradient.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`.
    lr : float or callable, default 1e-4
        The learning rate η, or a schedule of it.
    betas : (float, float), default (0.9, 0.99)
        The shares of the old average in the step and in the new average, each in [0, 1).
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: each parameter is multiplied by
        ``1 - lr * weight_decay`` before its update.

    Attributes
    ----------
    exp_avg
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.lion`. Its authors advise a learning rate 3 to 10 times smaller,
    and a weight decay 3 to 10 times larger, than AdamW's.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.Lion(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([ 0.25, -0.25])
    """

    _rule = "lion"

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        maximize: bool = False,
        lr_scale: Any = 1.0,
        threads: int | None = None,
        **around: Unpack[AroundOptions],
    ) -> None:
        super().__init__(
            params, threads, lr_scale, around, lr=lr, betas=betas, weight_decay=weight_decay, maximize=maximize
        )
