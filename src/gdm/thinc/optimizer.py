"""thinc's optimizer with its updates on gdm's kernels.

The class keeps what thinc's class keeps, under the same names. Only the call is another one. It reads the norm of the
gradient, computes a few numbers in double precision, and then does everything else in one pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import thinc.optimizers

from .. import grad_norm
from ..optimizer import adapter

Array = np.ndarray[Any, np.dtype[Any]]
Options = dict[str, Any]
Key = tuple[int, str]

MAX_DECAY = 0.9999  # of the averages
# thinc 9 calls its hyperparameters with the step; in thinc 8.3 they are numbers, which step_schedules() replaces.
CALLS_SCHEDULES = hasattr(thinc.optimizers.Optimizer, "step")


class Bound(NamedTuple):
    """The arrays of one key, and the update by a rule of gdm that is bound to them."""

    rule: str
    weights: Array
    gradient: Array
    mom1: Array | None
    mom2: Array | None
    average: Array | None
    update: Callable[[Options, int, float, float], None]  # options, number of the step, scale, decay of the average


class Optimizer(thinc.optimizers.Optimizer):
    """thinc's ``Optimizer``: Adam, RAdam or gradient descent; with averages, L2, clipping of each gradient, schedules.

    It is a subclass, so that spaCy accepts it where it asks for an optimizer of thinc's. A call updates one parameter:
    ``weights, gradient = optimizer(key, weights, gradient, lr_scale=1.0)``.

    Parameters
    ----------
    learn_rate : float, list, generator or thinc.schedules.Schedule
        The learning rate; in gdm ``lr``. All hyperparameters may be schedules. ``optimizer.step_schedules()`` goes on
        to their next values.
    L2 : float or schedule, default 0
        The weight decay.
    beta1, beta2 : float or schedule, default 0.9 and 0.999
        The shares of the averages of gradients and of their squares that are kept from step to step. Adam if both are
        above 0; gradient descent if ``beta2`` is 0.
    eps : float or schedule, default 1e-8
        Added to the root of the average of squares, before its bias is corrected.
    grad_clip : float or schedule, default 1
        If the norm of a gradient is not smaller than that, the gradient is scaled to this norm. 0: no clipping.
    use_averages : bool, default True
        Keep moving averages of the weights in ``optimizer.averages``, for ``model.use_params(optimizer.averages)``.
    use_radam : bool, default False
        RAdam instead of Adam.
    L2_is_weight_decay : bool, default True
        Multiply the weights by ``1 - learn_rate * lr_scale * L2`` after the update. If False, ``L2 * weights`` is added
        to the gradient before it is clipped.

    Attributes
    ----------
    mom1, mom2, averages : dict
        The states and averages of each key: arrays of the shape and dtype of its weights. ``averages`` is None without
        averages.
    nr_update : dict
        How many updates each key has made.
    learn_rate, L2, b1, b2, eps, grad_clip, use_radam, L2_is_weight_decay
        The hyperparameters. They can be set.

    Raises
    ------
    ValueError
        For something that is no schedule.

    Notes
    -----
    The formulas are thinc's (``thinc/optimizers.py``), in its order: L2 that is no weight decay, clipping, the update,
    weight decay, averages, and the gradient set to 0. With ``n`` updates of this key so far, this one included::

        gradient = gradient + L2 * weights                             # if not L2_is_weight_decay
        gradient = gradient * min(1, grad_clip / norm(gradient))       # if grad_clip
        mom1 = beta1 * mom1 + (1 - beta1) * gradient
        mom2 = beta2 * mom2 + (1 - beta2) * gradient**2
        rate = learn_rate * lr_scale * sqrt(1 - beta2**n) / (1 - beta1**n)
        weights = weights - rate * mom1 / (sqrt(mom2) + eps)           # Adam
        weights = weights - learn_rate * lr_scale * gradient           # gradient descent
        weights = weights * (1 - learn_rate * lr_scale * L2)           # if L2_is_weight_decay
        decay = min(0.9999, (1 + n) / (10 + n))
        average = average - (1 - decay) * (average - weights)          # from 0

    RAdam counts one step more than there were (``t = n + 1``) and does not use ``lr_scale``, except for weight decay.
    With ``longest = 2 / (1 - beta2) - 1`` and ``length = longest - 2 * t * beta2**t / (1 - beta2**t)`` it computes::

        weights = weights - learn_rate / (1 - beta1**t) * mom1         # if length < 5, else
        rectification = sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
        rate = learn_rate * rectification * sqrt(1 - beta2**t) / (1 - beta1**t)
        weights = weights - rate * mom1 / (sqrt(mom2) + eps)

    Everything is computed in the dtype of the weights, float32 or float64.
    """

    __slots__ = ("_bound",)

    _bound: dict[Key, Bound]

    def __init__(self, learn_rate: Any, **options: Any) -> None:
        super().__init__(learn_rate, **options)
        self._bound = {}

    def __call__(self, key: Key, weights: Array, gradient: Array, *, lr_scale: float = 1.0) -> tuple[Array, Array]:
        """Updates the weights of a key in place, and sets the gradient to 0.

        Parameters
        ----------
        key : (int, str)
            Which parameter it is: the number of its node in the model, and its name.
        weights : array of float32 or float64, any shape
            The parameter; overwritten. Contiguous (C or Fortran order), aligned and writable.
        gradient : array like ``weights``
            The gradient; set to 0. If it is empty, nothing happens.
        lr_scale : float, default 1
            A factor of the learning rate.

        Returns
        -------
        (array, array)
            The same arrays.

        Raises
        ------
        TypeError
            For arrays that are not NumPy's (CuPy's, for example), or not of float32 or float64.
        ValueError
            If arrays do not fit each other, or a hyperparameter is outside its range.
        gdm.OverlapError
            If arrays share memory.
        NotImplementedError
            If ``beta2`` is above 0 and ``beta1`` is not, without RAdam: thinc has no formula for that.

        After an exception all arrays are as they were.
        """
        if len(gradient) < 1:
            return weights, gradient
        beta1, beta2, learn_rate, eps, L2, limit = self.b1, self.b2, self.learn_rate, self.eps, self.L2, self.grad_clip
        if CALLS_SCHEDULES:
            beta1, beta2, learn_rate, eps, L2, limit = self._called(key, beta1, beta2, learn_rate, eps, L2, limit)
        rule = "radam" if self.use_radam else "adam" if beta1 > 0.0 and beta2 > 0.0 else "sgd"
        if beta2 > 0.0 and rule == "sgd":
            raise NotImplementedError("beta2 must be 0 where beta1 is 0: thinc has no formula for squares alone")
        bound = self._bound.get(key)
        if bound is None or not self._is_current(bound, rule, key, weights, gradient):
            bound = self._bind(rule, key, weights, gradient)
        step = self.nr_update.get(key, 0) + 1
        average_decay = min((1.0 + step) / (10.0 + step), MAX_DECAY)
        rate = learn_rate * lr_scale
        coupled, decay = (0.0, rate * L2) if self.L2_is_weight_decay else (L2, 0.0)
        try:
            scale = _clipping(weights, gradient, coupled, limit) if limit else 1.0
            options = _sgd(learn_rate if rule == "radam" else rate, scale * coupled, decay)
            if rule != "sgd":
                options |= {"betas": (beta1, beta2), "eps": eps}
            if rule == "adam":
                # thinc adds eps before the bias of the root is corrected, gdm after that.
                correction = 1.0 - beta2**step
                options |= {"eps": eps / math.sqrt(correction) if correction > 0 else eps, "amsgrad": False}
            bound.update(options, step + (rule == "radam"), scale, average_decay)  # thinc's RAdam counts from 2
        except (TypeError, ValueError) as error:
            error.add_note(
                f"in the update of {key!r}, where lr follows from learn_rate and lr_scale, betas are beta1 and beta2, "
                "and weight_decay follows from L2"
            )
            raise
        self.nr_update[key] = step
        return weights, gradient

    def _called(self, key: Key, *schedules: Any) -> list[float]:
        """The values that schedules of thinc 9 have now."""
        score = self.last_score
        return [x(self.step, key=key, last_score=score) if callable(x) else x for x in schedules]

    def _is_current(self, bound: Bound, rule: str, key: Key, weights: Array, gradient: Array) -> bool:
        """Whether these are the arrays of the call and of the dictionaries, which belong to the user, too."""
        # PyTorch's tensors come as new views each time.
        if bound.weights is not weights and not adapter.are_views_of_the_same(bound.weights, weights):
            return False
        if bound.gradient is not gradient and not adapter.are_views_of_the_same(bound.gradient, gradient):
            return False
        if rule != bound.rule:
            return False
        if rule != "sgd" and (self.mom1.get(key) is not bound.mom1 or self.mom2.get(key) is not bound.mom2):
            return False
        if self.averages is None:
            return bound.average is None
        return bound.average is not None and self.averages.get(key) is bound.average

    def _bind(self, rule: str, key: Key, weights: Array, gradient: Array) -> Bound:
        """Checks the arrays of a key, makes those that it lacks, and binds an update to them."""
        given = {"weights": weights, "gradient": gradient}
        for name, x in given.items():
            if not isinstance(x, np.ndarray):
                kind = f"{type(x).__module__}.{type(x).__qualname__}"
                raise TypeError(
                    f"{name} must be a NumPy array, got {kind}: gdm updates arrays in the CPU's memory. "
                    "Train on the CPU, or take thinc's own optimizer"
                )
        adapter.require_alike(given)
        kept = {"mom1": self.mom1, "mom2": self.mom2} if rule != "sgd" else {}
        if self.averages is not None:
            kept["averages"] = self.averages
        found = {name: _in_shape_of(weights, arrays[key]) for name, arrays in kept.items() if key in arrays}
        missing = [name for name in kept if name not in found]
        found |= zip(missing, adapter.new_states(weights, len(missing)), strict=True)
        labelled = {f"{name}[{key!r}]": found[name] for name in kept}  # in the order of kept
        update = adapter.ArrayUpdate(rule, {**given, **labelled}, has_average="averages" in kept, clears=True)
        for name, arrays in kept.items():
            arrays[key] = found[name]
        bound = Bound(rule, weights, gradient, found.get("mom1"), found.get("mom2"), found.get("averages"), update.step)
        self._bound[key] = bound
        return bound

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        # Copies and pickles leave out the weights and gradients, which belong to the model.
        state: Any = object.__getstate__(self)
        return None, {**state[1], "_bound": {}}


def _in_shape_of(weights: Array, state: Any) -> Any:
    """A state in the shape of the weights. Those of thinc's optimizer have one axis."""
    is_flat = isinstance(state, np.ndarray) and state.ndim == 1 and state.size == weights.size
    return state.reshape(weights.shape) if is_flat and weights.flags.c_contiguous else state


def _clipping(weights: Array, gradient: Array, coupled: float, limit: float) -> float:
    """The factor of the gradient, with its L2, that keeps its norm below the limit."""
    if limit < 0:
        raise ValueError(f"grad_clip must not be negative, got {limit!r}")
    norm = grad_norm(gradient + coupled * weights if coupled else gradient)
    return float(limit / norm) if norm >= limit else 1.0


def _sgd(rate: float, coupled: float, decay: float) -> Options:
    """gdm's options of gradient descent.

    ``coupled`` is the part of L2 in the gradient. ``decay`` is what thinc multiplies with after the update:
    ``(p - rate * x) * (1 - decay)``. gdm computes ``(1 - lr * weight_decay) * p - lr * x``, which can be made the same.
    """
    if not decay < 1:
        raise ValueError(f"learn_rate * lr_scale * L2 must be below 1, got {decay!r}")
    lr = rate * (1.0 - decay)
    return {
        "lr": float(lr),
        "weight_decay": float(decay / lr if decay else coupled),
        "maximize": False,
        "decoupled_weight_decay": decay != 0,
    }
