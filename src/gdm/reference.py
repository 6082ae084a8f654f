"""The update rules in NumPy: the specification that the compiled kernels reproduce to the last bit.

Written to be read, not to be fast. Every operation is rounded once, to the dtype of the parameter; hyperparameters and
what is derived from them are worked out in double precision and rounded once. The functions work in place and check
their arguments as the compiled ones do; the rules behind them (names with an underscore) return new arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import _checks
from ._checks import Array

if TYPE_CHECKING:
    from ._checks import Floats

__all__ = ["momentum", "sgd"]


def _sgd(
    p: Array, g: Array, *, lr: float, weight_decay: float, maximize: bool, decoupled_weight_decay: bool
) -> tuple[Array]:
    T = p.dtype.type
    g = T(-1.0 if maximize else 1.0) * g
    if weight_decay != 0 and not decoupled_weight_decay:
        g = g + T(weight_decay) * p
    p = T(1.0 - lr * weight_decay if decoupled_weight_decay else 1.0) * p
    return (p - T(lr) * g,)


def _momentum(
    p: Array,
    v: Array,
    g: Array,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    form: str,
    decoupled_weight_decay: bool,
    first: bool = False,
) -> tuple[Array, Array]:
    T = p.dtype.type
    eta, mu = T(lr), T(momentum)
    g = T(-1.0 if maximize else 1.0) * g
    if weight_decay != 0 and not decoupled_weight_decay:
        g = g + T(weight_decay) * p
    p = T(1.0 - lr * weight_decay if decoupled_weight_decay else 1.0) * p
    if form == "classic":
        v = mu * v - eta * g
        p = p + (mu * v - eta * g) if nesterov else p + v
    else:
        v = g if first else mu * v + T(1.0 - dampening) * g
        p = p - eta * (g + mu * v) if nesterov else p - eta * v
    return p, v


def update(rule: str, p: Array, states: list[Array], g: Array, options: dict[str, Any], *, first: bool) -> list[Array]:
    """The parameter and the states after one step of the rule ``"sgd"`` or ``"momentum"``; nothing is written."""
    with np.errstate(all="ignore"):
        if rule == "sgd":
            new: tuple[Array, ...] = _sgd(p, g, **options)
        else:
            new = _momentum(p, states[0], g, first=first, **options)
    return list(new)


def sgd(
    param: Floats,
    grad: Floats,
    *,
    lr: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> None:
    """Gradient descent in place, in NumPy. Arguments, errors and result are those of :func:`gdm.sgd`."""
    (p, g), options = _checks.call(
        {"param": param, "grad": grad},
        {
            "lr": lr,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        },
    )
    (p[...],) = update("sgd", p, [], g, options, first=False)


def momentum(
    param: Floats,
    velocity: Floats,
    grad: Floats,
    *,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
    form: Literal["torch", "classic"] = "torch",
    decoupled_weight_decay: bool = False,
) -> None:
    """Momentum in place, in NumPy. Arguments, errors and result are those of :func:`gdm.momentum`."""
    (p, v, g), options = _checks.call(
        {"param": param, "velocity": velocity, "grad": grad},
        {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "form": form,
            "decoupled_weight_decay": decoupled_weight_decay,
        },
    )
    p[...], v[...] = update("momentum", p, [v], g, options, first=False)
