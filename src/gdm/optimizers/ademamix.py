"""AdEMAMix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class AdEMAMix(Optimizer):
    """AdEMAMix: Adam with a second, slow average of the gradients, which remembers thousands of steps.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`.
    lr : float or callable, default 0.001
        The learning rate η, or a schedule of it.
    betas : (float, float, float), default (0.9, 0.999, 0.9999)
        The shares of the fast average of the gradients, of the average of their squares, and of the slow average that
        are kept from step to step, each in [0, 1).
    alpha : float, default 5
        The weight of the slow average, finite and not negative.
    t_alpha : float, default 0
        Before this step of a parameter, ``alpha`` grows linearly from 0. 0: it is constant.
    t_beta3 : float, default 0
        Before this step of a parameter, ``betas[2]`` grows from ``betas[0]`` on, its half-life linearly. 0: it is
        constant.
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: each parameter is multiplied by
        ``1 - lr * weight_decay`` before its update.

    Attributes
    ----------
    exp_avg, exp_avg_slow, exp_avg_sq
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.ademamix`. Without the two schedules, training can diverge at
    the beginning; the paper sets ``t_alpha`` and ``t_beta3`` to the number of all steps.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.AdEMAMix(theta, lr=0.25, t_alpha=100, t_beta3=100)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([ 0.2674, -0.2674])
    """

    _rule = "ademamix"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.001,
        *,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: float = 0.0,
        t_beta3: float = 0.0,
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
            alpha=alpha,
            t_alpha=t_alpha,
            t_beta3=t_beta3,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
        )
