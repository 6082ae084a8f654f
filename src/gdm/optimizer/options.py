"""The hyperparameters of groups: their checks, the learning rates of schedules, and factors of the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from .. import _checks, _foreign, reference
from .._checks import Array, Options
from .around import computed_in
from .layout import Layout

Rate = float | Callable[[int], float]  # a learning rate, or a schedule of it

FIXED = ("form", "method")  # hyperparameters that say what a state means
NUMBERS = (int, float, np.number)


@cache
def option_names(rule: str) -> tuple[str, ...]:
    """The names of the options that the function of a rule takes."""
    names = reference.names(getattr(reference, rule).__wrapped__)[1]
    return tuple(name for name in names if name != "lr_scale")


def rule_options(rule: str, options: Options, lr: float) -> Options:
    """The options that the function of a rule takes, with this learning rate."""
    return {**{name: options[name] for name in option_names(rule) if name in options}, "lr": lr}


# ---- checks --------------------------------------------------------------------------------------------------------


def check(class_name: str, rule: str, layout: Layout, index: int, base: Options, changes: Mapping[str, Any]) -> Options:
    """The hyperparameters of a group after some changes: each checked, and together. ``lr_scale`` is not among them.

    ``rule`` is that of the class. Some classes also have a simpler one, for which these options mean the same.
    """
    for name in changes:
        if name not in base:
            raise ValueError(
                f"params[{index}] has an option {name!r} that {class_name} does not know; "
                f"it knows {', '.join([*base, 'lr_scale'])}"
            )
    merged = {**base, **changes}
    schedule = merged["lr"] if callable(merged["lr"]) else None
    try:
        checked = _checks.options(rule, {**merged, "lr": 0.0} if schedule is not None else merged)
        if schedule is not None:
            checked["lr"] = schedule
            rate_at(schedule, 0)
        return checked
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError  # a schedule may raise a subclass of its own
        raise kind(f"group {index}: {error}" if layout.grouped else str(error)) from None


def check_range(layout: Layout, index: int, options: Options, lr: float, factors: Iterable[Any], dtype: Any) -> None:
    """Requires that the hyperparameters of a group are finite in the dtype that its rule computes in.

    ``lr`` is the learning rate of the next step, ``factors`` are those of the group's parameters.
    """
    where = f"group {index}: " if layout.grouped else ""
    for name, value in _checks.unbounded({**options, "lr": lr}):
        _checks.finite_in(f"{where}{name}", value, dtype)
    for factor in {x for x in factors if isinstance(x, float)} - {1.0}:
        _checks.finite_in(f"{where}lr * lr_scale", lr * factor, dtype)


# ---- learning rates ------------------------------------------------------------------------------------------------


def rate_at(schedule: Callable[[int], Any], step: int) -> float:
    """The learning rate that a schedule gives for a step."""
    return _checks.real(f"lr({step})", schedule(step), _checks.NOT_NEGATIVE)


def saved_rate(lr: Any) -> Any:
    """A learning rate as a state holds it: a number, the values of a built-in schedule, or None for a function."""
    if not callable(lr):
        return lr
    from .. import schedules

    try:
        return schedules.to_dict(lr)
    except TypeError:
        return None


def loaded_rate(saved: Any, own: Any) -> Any:
    """The learning rate that was saved; or the optimizer's own where it was a function, which is not saved."""
    if isinstance(saved, Mapping):
        from .. import schedules

        return schedules.from_dict(saved)
    if saved is None and not callable(own):
        raise ValueError("lr was a function, which was not saved; make this optimizer with that function as its lr")
    return own if saved is None else saved


# ---- factors of the learning rate ----------------------------------------------------------------------------------


def check_lr_scale(layout: Layout, index: int, scale: Any, params: list[Array]) -> tuple[Any, list[float | Array]]:
    """The ``lr_scale`` of a group: in the layout of the group, and as a list with a factor for each parameter.

    Factors are numbers, or arrays like the parameters. All are our own, so that nobody else can change them.
    """
    where = f"group {index}: lr_scale" if layout.grouped else "lr_scale"
    if isinstance(scale, NUMBERS):
        number = _checks.real(where, scale, _checks.NOT_NEGATIVE)
        return number, [number] * layout.groups[index].size
    items = layout.flatten_group(where, index, scale)
    factors = [
        _checks.real(f"{where}[{k}]", x, _checks.NOT_NEGATIVE)
        if isinstance(x, NUMBERS)
        else _factor_array(f"{where}[{k}]", x, params[i])
        for k, (i, x) in enumerate(zip(layout.members(index), items, strict=True))
    ]
    return layout.unflatten_group(index, factors), factors


def _factor_array(name: str, x: Any, param: Array) -> Array:
    """A copy of an array of factors, broadcast to the parameter's shape, in its order in memory.

    It has the dtype of the arithmetic, also if the parameter is narrower.
    """
    x = _foreign.view(name, x)[0] if _foreign.needs_view(x) else x
    try:
        given = np.asarray(x, dtype=computed_in(param))
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or an array, not {type(x).__name__}") from None
    copy = np.empty_like(param, dtype=given.dtype)
    try:
        if given.ndim > param.ndim:
            raise ValueError
        copy[...] = given
    except ValueError:
        raise ValueError(
            f"{name} has shape {given.shape}, which does not broadcast to its parameter's {param.shape}"
        ) from None
    if not (np.isfinite(given) & (given >= 0)).all():
        raise ValueError(f"{name} must be finite and not negative in each element")
    return copy


def own_lr_scale(scale: Any) -> Any:
    """The user's ``lr_scale`` in containers of our own, which can be read more than once."""
    if isinstance(scale, NUMBERS):
        return scale
    if isinstance(scale, np.ndarray):
        return scale.copy(order="K")
    if _foreign.needs_view(scale):
        try:
            return _foreign.view("lr_scale", scale)[0].copy(order="K")
        except (TypeError, ValueError):  # said later, with its place
            return scale
    if isinstance(scale, Mapping):
        return {key: own_lr_scale(x) for key, x in scale.items()}
    return [own_lr_scale(x) for x in scale] if isinstance(scale, (list, tuple, Iterator)) else scale


def copied(option: Any) -> Any:
    """The value of a hyperparameter for the user: factors of the learning rate are copied, so that ours stay."""
    if isinstance(option, dict):
        return {key: copied(x) for key, x in option.items()}
    if isinstance(option, np.ndarray):
        return option.copy(order="K")
    return [copied(x) for x in option] if isinstance(option, list) else option


def expanded_lr_scale(scale: Any, count: int) -> list[Any]:
    """The factors of an ``lr_scale`` in a state, one for each of so many parameters."""
    if isinstance(scale, Mapping):
        return list(scale.values())
    return list(scale) if isinstance(scale, (list, tuple)) else [scale] * count


def same(a: Any, b: Any) -> bool:
    """Whether two values of a hyperparameter are equal; arrays are not compared."""
    try:
        return a is b or bool(a == b)
    except ValueError:
        return False
