"""Schedules as dictionaries of plain values, which JSON can hold, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .. import _checks
from .arguments import RateFunction
from .schedule import KINDS, Schedule, _make


def to_dict(schedule: RateFunction) -> dict[str, Any]:
    """The schedule as a dictionary of values that JSON can hold: its kind, and all its arguments.

    Parameters
    ----------
    schedule : Schedule
        A schedule made by :mod:`gdm.schedules`; so must be the schedules it consists of.

    Returns
    -------
    dict
        ``{"kind": name of the function, argument: value, ...}``. An argument that is a schedule is such a dictionary,
        too. :func:`from_dict` makes an equal schedule of it.

    Raises
    ------
    TypeError
        For a user's own function, which plain values cannot describe.

    Examples
    --------
    >>> import gdm
    >>> gdm.schedules.to_dict(gdm.schedules.step(0.5, every=30))
    {'kind': 'step', 'lr': 0.5, 'every': 30, 'factor': 0.1, 'warmup': 0}
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"only schedules made by gdm.schedules can be given as plain values, not {_checks._show(schedule)}; "
            f"express it by them (piecewise and join go far), or pass it again where the dictionary is read"
        )
    return {"kind": schedule.kind, **{name: _plain(value) for name, value in schedule.arguments}}


def from_dict(d: Mapping[str, Any]) -> Schedule:
    """The schedule that :func:`gdm.schedules.to_dict` gave as this dictionary.

    Parameters
    ----------
    d : mapping
        What :func:`to_dict` gave, whether or not it has been through JSON.

    Returns
    -------
    Schedule
        A schedule equal to the first.

    Raises
    ------
    ValueError
        For any other dictionary, or no dictionary; the message says what is wrong.

    Examples
    --------
    >>> import gdm
    >>> gdm.schedules.from_dict({"kind": "step", "lr": 0.5, "every": 30, "factor": 0.1, "warmup": 0})
    step(0.5, every=30)
    """
    if not isinstance(d, Mapping):
        raise ValueError(f"a schedule must be a dictionary here, not {_checks._kind(d)}")
    arguments = dict(d)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"a schedule's kind must be one of {', '.join(KINDS)}, got {_checks._show(kind)}")
    expected = inspect.signature(KINDS[kind]).parameters
    if arguments.keys() != expected.keys():
        found = _checks._show(list(arguments))
        raise ValueError(f"a schedule of kind {kind!r} must have the keys {list(expected)}, got {found}")
    try:
        return _make(kind, {name: _argument(name, value) for name, value in arguments.items()})
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{kind}: {error}") from None


def _plain(value: Any) -> Any:
    """An argument of a schedule as a value that JSON can hold."""
    if isinstance(value, tuple):
        return [_plain(x) for x in value]
    return value if value is None or isinstance(value, (int, float)) else to_dict(value)


def _argument(name: str, value: Any) -> Any:
    """The argument of a schedule that :func:`_plain` gave as this value."""
    if isinstance(value, (list, tuple)):
        return [_argument(f"{name}[{i}]", x) for i, x in enumerate(value)]
    if isinstance(value, Mapping):
        try:
            return from_dict(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if isinstance(value, bool) or not (value is None or isinstance(value, (int, float, str))):
        raise ValueError(f"{name} must be a number, a list or a dictionary, not {_checks._kind(value)}")
    return value
