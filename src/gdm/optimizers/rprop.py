"""Rprop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class Rprop(Optimizer):
    """Rprop: each element has a step size, which grows while its gradient keeps its sign.

    It compares the signs of successive gradients, so these must be of the same function: use full batches.

    Parameters
    ----------
    params, maximize, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`.
    lr : float or callable, default 0.01
        The step size of a parameter's first step, or a schedule of it. Later steps do not use it.
    etas : (float, float), default (0.5, 1.2)
        What a step size is multiplied by where the sign of the gradient has changed, in (0, 1), and where it has not, a
        finite number above 1.
    step_sizes : (float, float), default (1e-6, 50)
        The smallest and the largest step size, finite and not negative.
    lr_scale : float, array or sequence, default 1
        Factors of ``lr``, as for :class:`gdm.SGD`: they, too, only matter in the first step.

    Attributes
    ----------
    prev, step_size
        The states: views, in the structure of ``params``; None for a parameter that has none. The first step fills
        them in.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.rprop`.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.Rprop(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([ 0.09, -0.09])
    """

    _rule = "rprop"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.01,
        *,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        maximize: bool = False,
        lr_scale: Any = 1.0,
        threads: int | None = None,
        **around: Unpack[AroundOptions],
    ) -> None:
        super().__init__(params, threads, lr_scale, around, lr=lr, etas=etas, step_sizes=step_sizes, maximize=maximize)
