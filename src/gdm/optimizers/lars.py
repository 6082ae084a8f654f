"""LARS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class LARS(Optimizer):
    """LARS: momentum with a learning rate for each parameter, for large batches.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`. Each array is one parameter with a trust ratio of its own, such as the weights of a
        layer.
    lr : float or callable, default 1.0
        The learning rate η, or a schedule of it.
    momentum : float, default 0.9
        μ, in [0, 1): the share of the velocity that is kept from step to step.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    trust_coefficient : float, default 0.001
        The factor of the trust ratio, finite and not negative: about how large a gradient's part of the velocity is,
        with ``lr=1``, as a share of the parameter's norm.
    adapt : bool, default True
        False: the trust ratio is 1. Usual for a group of biases and of the parameters of normalisations, which then
        needs a smaller ``lr``.

    Attributes
    ----------
    velocity
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.lars`. A step reads the parameters and gradients once more than
    momentum does, for their norms.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.LARS(theta, lr=1.0, trust_coefficient=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([-0.1181,  0.1181])
    """

    _rule = "lars"

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
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
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            adapt=adapt,
            maximize=maximize,
        )
