"""Schedule-Free SGD and AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..optimizer import Optimizer
from ..optimizer.numpy_step import Writes, numpy_swap

if TYPE_CHECKING:
    from .._checks import Options
    from .._specification import Progress
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class _ScheduleFree(Optimizer):
    """The two modes of both classes."""

    _has_modes = True

    def __init__(
        self, params: Params, threads: int | None, lr_scale: Any, around: AroundOptions, **defaults: Any
    ) -> None:
        if around.get("state_dtype") == "int8":
            raise ValueError(
                "state_dtype must not be 'int8' with Schedule-Free: z is no average of gradients but a point like the "
                "parameters, and one of 255 codes cannot hold its small steps; expected 'bfloat16' or wider"
            )
        super().__init__(params, threads, lr_scale, around, **defaults)

    def _share(self, options: Options) -> float:
        """How much of the average is in the points at which gradients are computed."""
        raise NotImplementedError

    @property
    def training(self) -> bool:
        """Whether the optimizer is in train mode, in which it can make steps."""
        return not self._progress().evaluating

    def eval(self) -> None:
        """Puts the averages in the place of the parameters, for evaluation or to save them: the result of a training.

        It is one pass over the parameters; copies are rewritten, too. Parameters that have made no step stay what they
        are. Until :meth:`train`, ``step`` raises ``RuntimeError``; all else works in both modes. In eval mode it does
        nothing.

        Raises
        ------
        gdm.StaleBufferError
            If a parameter or a copy has moved, been resized, or changed in another way. Nothing has changed then.
        RuntimeError
            If another thread is in the middle of a step.
        """
        self._swap(True)

    def train(self) -> None:
        """Puts the points at which gradients are computed in the place of the averages, to go on after :meth:`eval`.

        In train mode, in which an optimizer begins, it does nothing. An average is not kept, but computed from the
        parameter: after ``eval`` and ``train`` the last bits of a parameter may have changed.

        Raises
        ------
        gdm.StaleBufferError, RuntimeError
            As :meth:`eval`.
        """
        self._swap(False)

    def _numpy_swap(self, evaluate: bool, progress: Progress) -> Writes:
        """The other mode's parameters, by the rules in NumPy."""
        snapshot = self._snapshot
        return numpy_swap(snapshot, [self._share(options) for options in snapshot.options], progress, evaluate)


class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-Free gradient descent: an average of the iterates takes the place of a falling learning rate.

    The parameters have two meanings. In train mode they are the points at which gradients are computed, between the
    iterates ``z`` and their average. In eval mode they are the average, which is the result of the training. A new
    optimizer is in train mode: call :meth:`eval` before the parameters are evaluated or saved, and :meth:`train` before
    the training goes on.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`; ``state_dtype`` must not be ``"int8"``.
    lr : float or callable, default 1.0
        The learning rate η, or a schedule of it, which is not needed.
    momentum : float, default 0.9
        How much of the average is in the points at which gradients are computed, in (0, 1). Change it in eval mode: in
        train mode that would change what the average is.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    warmup_steps : float, default 0
        The learning rate rises linearly over so many steps.
    r : float, default 0
        The weights of the average grow as ``step**r``: more than 0 forgets early iterates faster.
    weight_lr_power : float, default 2
        The weights of the average are proportional to this power of the largest learning rate so far. 0: all iterates
        weigh the same, also those of the warm-up.

    Attributes
    ----------
    z
        The iterates: views, in the structure of ``params``. They become copies of the parameters in the first step.
    training : bool
        Whether the optimizer is in train mode.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.schedule_free_sgd`. The mode is a part of the saved state.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.ScheduleFreeSGD(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> opt.eval()
    >>> theta.round(4)
    array([ 0.2729, -0.2729])
    """

    _rule = "schedule_free_sgd"

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
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
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            maximize=maximize,
        )

    def _share(self, options: Options) -> float:
        return float(options["momentum"])


class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-Free AdamW: :class:`gdm.ScheduleFreeSGD` with the steps of AdamW without its average.

    Parameters
    ----------
    params, maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`; ``state_dtype`` must not be ``"int8"``.
    lr : float or callable, default 0.0025
        The learning rate η, or a schedule of it, which is not needed.
    betas : (float, float), default (0.9, 0.999)
        How much of the average is in the points at which gradients are computed, in (0, 1), which should be changed in
        eval mode only; and the share of the average of squared gradients that is kept from step to step, in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``lr * weight_decay * param`` is a part of each step.
    warmup_steps, r, weight_lr_power
        As for :class:`gdm.ScheduleFreeSGD`.

    Attributes
    ----------
    z, exp_avg_sq
        The iterates and the averages of squared gradients: views, in the structure of ``params``.
    training, lr, ..., groups, steps
        As of :class:`gdm.ScheduleFreeSGD`.

    Notes
    -----
    The formula and its source are those of :func:`gdm.schedule_free_adamw`.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.ScheduleFreeAdamW(theta, lr=0.25)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> opt.eval()
    >>> theta.round(4)
    array([ 0.5433, -0.5433])
    """

    _rule = "schedule_free_adamw"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.0025,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
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
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            maximize=maximize,
        )

    def _share(self, options: Options) -> float:
        return float(options["betas"][0])
