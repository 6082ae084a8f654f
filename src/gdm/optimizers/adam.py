"""Adam and AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer

if TYPE_CHECKING:
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class Adam(Optimizer):
    """Adam: an average of the gradients over the root of an average of their squares.

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
    amsgrad : bool, default False
        Divide by the largest average of squares so far.
    decoupled_weight_decay : bool, default False
        Multiply each parameter by ``1 - lr * weight_decay`` before its update, and leave the gradient alone:
        :class:`AdamW`.

    Attributes
    ----------
    exp_avg, exp_avg_sq, max_exp_avg_sq
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its sources are those of :func:`gdm.adam`.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.Adam(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([ 0.2685, -0.2685])
    """

    _rule = "adam"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
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
            amsgrad=amsgrad,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay.

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
    weight_decay : float, default 0.01
        The weight decay λ, finite and not negative: each parameter is multiplied by
        ``1 - lr * weight_decay`` before its update.
    amsgrad : bool, default False
        Divide by the largest average of squares so far.

    Attributes
    ----------
    exp_avg, exp_avg_sq, max_exp_avg_sq
        The states: views, in the structure of ``params``; None for a parameter that has none.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula is that of :func:`gdm.adam` with ``decoupled_weight_decay``. Source: I. Loshchilov, F. Hutter,
    "Decoupled weight decay regularization", 2019.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.AdamW(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta.round(4)
    array([ 0.2632, -0.2632])
    """

    _rule = "adam"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        maximize: bool = False,
        lr_scale: Any = 1.0,
        threads: int | None = None,
        **around: Unpack[AroundOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            decoupled_weight_decay=True,
            maximize=maximize,
            lr_scale=lr_scale,
            threads=threads,
            **around,
        )
