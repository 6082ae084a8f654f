"""Muon, and AdamW for what is no matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from .._checks import Array, Options
from ..errors import NonFiniteError
from ..optimizer import Optimizer
from ..optimizer.layout import Layout
from ..optimizer.state import WORK, state_names
from ..orthogonal import COEFFICIENTS, EPS, STEPS, newton_schulz

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate

Orthogonalize = Callable[[Array], Any]


class Muon(Optimizer):
    """Muon for matrices: momentum whose update is made orthogonal. With AdamW for the other parameters.

    Parameters
    ----------
    params : array, sequence or mapping of arrays, or list of groups
        As for :class:`gdm.SGD`, but each parameter has two axes. A group with ``"method": "adamw"`` holds parameters
        that AdamW updates, of any shape.
    lr : float or callable, default 0.001
        The learning rate η, or a schedule of it.
    momentum : float, default 0.95
        The share of the velocity that is kept from step to step, in [0, 1).
    weight_decay : float, default 0.1
        The weight decay λ, finite and not negative: each parameter is multiplied by ``1 - lr * weight_decay`` before
        its update.
    nesterov : bool, default True
        Orthogonalize a mean of the velocity and the gradient, and not the velocity itself.
    ns_coefficients : (float, float, float), default (3.4445, -4.775, 2.0315)
    ns_steps : int, default 5
    eps : float, default 1e-7
        As for :func:`gdm.newton_schulz`, which orthogonalizes. With ``orthogonalize`` they are not used.
    adjust_lr_fn : {"original", "match_rms_adamw"}, optional
        What the orthogonal matrix, of shape (rows, columns), is multiplied by. "original", which is also the default:
        the root of ``max(1, rows / columns)``, as K. Jordan does. "match_rms_adamw": 0.2 times the root of
        ``max(rows, columns)``, with which elements change about as much as AdamW changes them, so that AdamW's
        learning rate and weight decay fit.
    orthogonalize : callable, optional
        A function that is used instead of :func:`gdm.newton_schulz`. It is given a matrix in the dtype in which the
        parameter is computed, which it may change, and returns one of this shape. It is not saved with the state.
    maximize, lr_scale, threads, dtype, state_dtype, ...
        As for :class:`gdm.SGD`. Threads for the matrix products are set in the library that NumPy uses.

    Attributes
    ----------
    velocity, exp_avg, exp_avg_sq, max_exp_avg_sq
        The states: views, in the structure of ``params``; None for a parameter that has none. The last three are
        AdamW's.
    orthogonalize
        The function, or None; it may be set.
    lr, ..., groups, steps
        As of :class:`gdm.SGD`. What is set for all groups is set in those that have it.

    Raises
    ------
    gdm.NonFiniteError
        From a step, if the orthogonalized matrix is not finite, though what was orthogonalized is.

    Notes
    -----
    The formula is that of :func:`gdm.muon`. The hyperparameters of a group with ``"method": "adamw"`` are those of
    :class:`gdm.AdamW`, with its defaults: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``amsgrad``. Only ``maximize``
    is taken over from the class. Use AdamW for vectors, and for the embedding and the last layer of a network.

    After an exception, also one that ``orthogonalize`` raises, nothing has changed. It must not change gradients or
    parameters. The matrix products are those of NumPy's library, or of ``orthogonalize``: their results are not the
    same on every machine. All else is, to the bit.

    Besides the velocity each matrix has an array of its size for what is orthogonalized, in the dtype in which it is
    computed. It is used again in every step, is part of ``nbytes``, and is not saved.

    Sources: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; "match_rms_adamw" and
    the weight decay: J. Liu et al., "Muon is scalable for LLM training", 2025. Names and defaults are those of
    ``torch.optim.Muon``, which has no ``maximize`` and no AdamW.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> weights, bias = np.eye(2), np.zeros(2)
    >>> opt = gdm.Muon([{"params": weights}, {"params": bias, "method": "adamw", "lr": 0.01}], lr=0.02)
    >>> opt.step([np.ones((2, 2)), np.ones(2)])
    >>> bias.round(4)
    array([-0.01, -0.01])
    """

    _rule = "muon"
    _adamw: ClassVar[Options] = {
        "lr": 0.001,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "amsgrad": False,
        "decoupled_weight_decay": True,
    }
    _orthogonalize: Orthogonalize | None = None

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.001,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        ns_steps: int = STEPS,
        eps: float = EPS,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        orthogonalize: Orthogonalize | None = None,
        maximize: bool = False,
        lr_scale: Any = 1.0,
        threads: int | None = None,
        **around: Unpack[AroundOptions],
    ) -> None:
        self.orthogonalize = orthogonalize
        super().__init__(
            params,
            threads,
            lr_scale,
            around,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            ns_steps=ns_steps,
            eps=eps,
            adjust_lr_fn=adjust_lr_fn,
            maximize=maximize,
            method="muon",
        )

    @property
    def orthogonalize(self) -> Orthogonalize | None:
        """The function that orthogonalizes; None for :func:`gdm.newton_schulz`."""
        return self._orthogonalize

    @orthogonalize.setter
    def orthogonalize(self, function: Orthogonalize | None) -> None:
        if function is not None and not callable(function):
            raise TypeError(f"orthogonalize must be a function or None, not {type(function).__name__}")
        self._orthogonalize = function

    # ---- two methods ----

    def _rule_of(self, options: Options) -> str:
        return "adam" if options["method"] == "adamw" else "muon"

    def _all_states(self) -> tuple[str, ...]:
        return (*(name for name in state_names("muon") if name not in WORK), *state_names("adam"))

    def _all_options(self) -> Iterable[str]:
        return {**self._defaults, **self._adamw}

    def _defaults_for(self, group: Options) -> Options:
        if group.get("method") != "adamw":
            return self._defaults
        return {**self._adamw, "maximize": self._defaults["maximize"], "method": "adamw"}

    def _check_shapes(self, layout: Layout, params: list[Array], index: int, options: Options) -> None:
        if options["method"] == "adamw":
            return
        for i in layout.members(index):
            if params[i].ndim != 2:
                raise ValueError(
                    f"{layout.label('params', i)} has shape {params[i].shape}, but Muon updates matrices only; give "
                    "other parameters in a group with 'method': 'adamw'"
                )

    # ---- between the two passes of a step ----

    def _prepared(self, i: int, work: Array) -> Array:
        """The update of a parameter: what its preparation gave, orthogonalized, times the factor for its shape."""
        snapshot = self._snapshot
        options = snapshot.records[snapshot.layout.group_of[i]].options
        was_finite = bool(np.isfinite(work).all())
        if self._orthogonalize is None:
            names = ("ns_coefficients", "ns_steps", "eps")
            result: Any = newton_schulz(work, **{name: options[name] for name in names})
        else:
            result = np.asarray(self._orthogonalize(work))
        label = snapshot.layout.label("params", i)
        if result.dtype.kind != "f":
            raise TypeError(f"orthogonalize returned dtype {result.dtype} for {label}; expected floats")
        if result.shape != work.shape:
            raise ValueError(f"orthogonalize returned shape {result.shape} for {label}; expected {work.shape}")
        factor = work.dtype.type(shape_factor(options["adjust_lr_fn"], work.shape))
        with np.errstate(all="ignore"):
            update: Array = factor * result.astype(work.dtype, copy=False)
        if was_finite and not np.isfinite(update).all():
            raise NonFiniteError(f"orthogonalize returned what is NaN or infinite for {label}")
        return update

    def _reduce_locked(self, copy: bool) -> tuple[Any, ...]:
        return (*super()._reduce_locked(copy), {"_orthogonalize": self._orthogonalize})


def shape_factor(adjust_lr_fn: str | None, shape: tuple[int, ...]) -> float:
    """What an orthogonal matrix of this shape is multiplied by."""
    rows, columns = shape
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns)) if columns else 1.0
