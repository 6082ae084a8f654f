"""Signum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from .._checks import Options
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class Signum(Optimizer):
    """Signum: steps of one size, against the sign of an average gradient; without momentum, signSGD.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`.
    lr : float or callable, default 0.01
        The learning rate η, or a schedule of it: how far each element moves in a step.
    momentum : float, default 0.9
        The share of the average that is kept from step to step, in [0, 1). 0 is signSGD, without an average.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    decoupled_weight_decay : bool, default False
        Multiply each parameter by ``1 - lr * weight_decay`` before its update, and leave the gradient alone.

    Attributes
    ----------
    exp_avg
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formulas and their source are those of :func:`gdm.sign_sgd` (``momentum=0``) and :func:`gdm.signum`. The average
    starts from zeros, as in the paper. Names and defaults are those of MXNet's Signum, except ``wd``, the coupled
    weight decay, and ``wd_lh``, the decoupled one. In optax ``momentum`` is ``beta``; PyTorch and Keras have no Signum.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.Signum(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta
    array([ 0.25, -0.25])
    """

    _rule = "signum"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.01,
        *,
        momentum: float = 0.9,
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
            momentum=momentum,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )

    def _rule_of(self, options: Options) -> str:
        return "signum" if options["momentum"] else "sign_sgd"
