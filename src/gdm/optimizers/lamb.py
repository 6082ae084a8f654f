"""LAMB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class LAMB(Optimizer):
    """LAMB: Adam with a learning rate for each parameter, for large batches.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`. Each array is one parameter with a trust ratio of its own, such as the weights of a
        layer.
    lr : float or callable, default 0.001
        The learning rate η, or a schedule of it: how large a step is, as a share of the parameter's norm.
    betas : (float, float), default (0.9, 0.999)
        The shares of the averages of gradients and of their squares that are kept from step to step, each in [0, 1).
    eps : float, default 1e-6
        ε, finite and not negative: added to the root in the denominator.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the step before its norm is
        taken.
    adapt : bool, default True
        False: the trust ratio is 1. Usual for a group of biases and of the parameters of normalisations.

    Attributes
    ----------
    exp_avg, exp_avg_sq
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.lamb`. A step reads everything once more than Adam does, for the
    norms. As in PyTorch's Adam, the averages are corrected; some LAMBs do not do that.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.LAMB(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([ 0.4219, -0.4219])
    """

    _rule = "lamb"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adapt: bool = True,
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
            adapt=adapt,
            maximize=maximize,
        )
