"""From a formula to a function: checks its arguments, and works in place. And what the formulas share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import numpy as np

from .. import _checks
from .._checks import Array
from ._reductions import sum_of_squares
from .real_power import Two, product_of, real_power

if TYPE_CHECKING:
    from .._checks import Floats

P = ParamSpec("P")
New = tuple[Any, ...]  # the new param, states (None for one that is not used), and scalars
FORMULAS: dict[str, Callable[..., New]] = {}  # of each rule, by its name


def names(formula: Callable[..., New]) -> tuple[list[str], list[str]]:
    """The names of a formula's positional arguments, and of those given by keyword."""
    code = formula.__code__
    known = list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    return known[: code.co_argcount], known[code.co_argcount :]


def written(formula: Callable[..., New]) -> list[str]:
    """The names of the values that a formula returns, in its order."""
    positional, keywords = names(formula)
    return [name for name in positional if name != "grad"] + [
        name for name in keywords if name in _checks.OPTIONAL_STATES or name in _checks.SCALARS
    ]


def update(rule: str, given: Mapping[str, Any], *, first: bool = False) -> dict[str, Array]:
    """The new param, states and scalars, by name, after one step of a rule; nothing is written.

    ``first``: it is the first step that uses the states.
    """
    formula = FORMULAS[rule]
    positional, keywords = names(formula)
    options = {name: given[name] for name in keywords if name in given}
    if first and options.get("form") == "torch":
        # The velocity becomes the gradient, without dampening: -0 + g is g, also for the sign of a zero.
        given, options["dampening"] = {**given, "velocity": np.full_like(given["velocity"], -0.0)}, 0.0
    with np.errstate(all="ignore"):
        new = formula(*(given[name] for name in positional), **options)
    return {name: x for name, x in zip(written(formula), new, strict=True) if x is not None}


def in_place(formula: Callable[P, New]) -> Callable[P, None]:
    """Makes a formula a function that checks its arguments, and writes the new values into them."""
    FORMULAS[formula.__name__] = formula
    positional, keywords = names(formula)

    @functools.wraps(formula)
    def function(*args: P.args, **options: P.kwargs) -> None:
        given = dict(zip(positional, args, strict=False))
        name = formula.__name__
        if len(args) > len(positional):
            raise TypeError(f"{name}() takes {len(positional)} positional arguments but {len(args)} were given")
        for option, value in options.items():
            if option in given:
                raise TypeError(f"{name}() got multiple values for argument {option!r}")
            if option not in positional and option not in keywords:
                raise TypeError(f"{name}() got an unexpected keyword argument {option!r}")
            given[option] = value
        given = {**(formula.__kwdefaults__ or {}), **given}
        if missing := [option for option in positional + keywords if option not in given]:
            raise TypeError(f"{name}() missing required arguments: {', '.join(missing)}")
        checked = _checks.arguments(name, {option: given[option] for option in positional + keywords}, len(positional))
        for option, value in update(name, checked).items():
            checked[option][...] = value

    return function


def arrays(*given: Floats) -> tuple[Array, ...]:
    """The arguments as arrays, for the type checker: the decorator has made arrays of them."""
    return given  # type: ignore[return-value]


def rates(p: Array, rate: float, lr: float, decay: float, decoupled: bool, lr_scale: Floats | None) -> tuple[Any, Any]:
    """The learning rate of each element, and its factor of decoupled weight decay."""
    T = p.dtype.type
    lr_times_decay = lr * decay if decoupled else 0.0
    if lr_scale is None:
        return T(rate), T(1.0 - lr_times_decay if decoupled else 1.0)
    (scale,) = arrays(lr_scale)
    return T(rate) * scale, T(1.0) - T(lr_times_decay) * scale


def gradient(p: Array, g: Array, maximize: bool, decay: float) -> Array:
    """The gradient after ``maximize`` and coupled weight decay."""
    T = p.dtype.type
    g = T(-1.0 if maximize else 1.0) * g
    return g + T(decay) * p if decay != 0 else g


def norm(x: Array) -> float:
    """The root of the sum of the squares of all elements."""
    return math.sqrt(sum_of_squares([x]))


def sign(x: Array) -> Array:
    """1 or -1; x itself where it is 0 or NaN."""
    T = x.dtype.type
    return np.where(x > 0, T(1.0), np.where(x < 0, T(-1.0), x))


def power(base: float, exponent: int) -> float:
    """A power by multiplications in a fixed order, since libraries' pow() differ between machines."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result = result * base
        base = base * base
        exponent >>= 1
    return result


def power_to_nearest(base: float, exponent: int) -> float:
    """A power of a number in [0, 1], rounded once: each product is kept with what its rounding left off."""
    result, square = Two(1.0, 0.0), Two(base, 0.0)
    while exponent:
        if exponent & 1:
            result = _product(result, square)
        square = _product(square, square)
        exponent >>= 1
    return result.high + result.low


def _product(a: Two, b: Two) -> Two:
    """The product, with what its rounding left off."""
    product = product_of(a.high, b.high)
    return Two(product.high, product.low + (a.high * b.low + a.low * b.high))


def power_of_096(x: float) -> float:
    """0.96**x for x >= 0, as e**y: y is halved until it is small; then the series is squared as many times."""
    y, total, halved = x * -0.040821994520255166, 1.0, 0
    if y < -745.0:
        return 0.0
    while y < -0.125:
        y, halved = y * 0.5, halved + 1
    for k in range(12, 0, -1):
        total = 1.0 + total * y / k
    for _ in range(halved):
        total = total * total
    return total


class Averaging(NamedTuple):
    """What both Schedule-Free rules compute for a step."""

    lr: float  # after the warm-up's factor
    weight_sum: float  # after this step
    lr_max: float  # after this step
    weight: float  # of the newest z in the average x
    step_share: float  # how much of the step of z the parameter makes, too


def averaging(
    lr: float, kept: float, step: int, warmup_steps: float, r: float, weight_lr_power: float, *scalars: Floats
) -> Averaging:
    """The averaging of Schedule-Free in one step; ``kept`` is the momentum, ``scalars`` weight_sum and lr_max."""
    weight_sum, lr_max = (float(x.item()) for x in arrays(*scalars))
    now = float(step)
    lr = lr * (now / warmup_steps) if now < warmup_steps else lr
    lr_max = lr if lr > lr_max else lr_max
    weight = _at_most_finite(_weight_power(now, r) * _weight_power(lr_max, weight_lr_power))
    weight_sum = _at_most_finite(weight_sum + weight)
    share = weight / weight_sum if weight_sum > 0.0 else 0.0
    return Averaging(lr, weight_sum, lr_max, share, 1.0 - kept * (1.0 - share))


def _weight_power(x: float, exponent: float) -> float:
    """``x**exponent`` for x >= 0; the usual exponents at little cost."""
    if exponent == 0.0:
        return 1.0
    if exponent == 1.0:
        return x
    if exponent == 2.0:
        return x * x
    return real_power(x, exponent) if x > 0.0 else 0.0


def _at_most_finite(x: float) -> float:
    largest = float(np.finfo(np.float64).max)
    return x if x <= largest else largest  # NaN, too: infinity * 0
