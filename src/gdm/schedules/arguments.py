"""The checks of a schedule's arguments: what each must be, and the error message if it is not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .. import _checks
from .._checks import NOT_NEGATIVE, UP_TO_ONE, Domain

RateFunction = Callable[[int], float]  # a schedule, or a user's own function

MAX_STEP = 2**53  # a double holds every whole number up to here
MAX_RESTARTS = 1000


def real_number(domain: Domain, name: str, value: object) -> float:
    """The value as a float, if it is a real number in the domain."""
    return _checks.real(name, value, domain)


def whole_number(low: int, name: str, value: object) -> int:
    """The value as an int, if it is a whole number from ``low`` to 2**53."""
    number = _checks.whole(name, value)
    if not low <= number <= MAX_STEP:
        raise ValueError(f"{name} must be from {low} to 2**53, got {_checks._show(number)}")
    return number


def rate_function(name: str, value: object) -> RateFunction:
    """The value itself, if it can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a schedule or a function step -> lr, not {_checks._kind(value)}")
    return value


def each(check: Callable[[str, object], Any], name: str, values: object) -> tuple[Any, ...]:
    """A tuple of the sequence's values, each checked."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray)):
        raise TypeError(f"{name} must be a sequence, not {_checks._kind(values)}")
    return tuple(check(f"{name}[{i}]", value) for i, value in enumerate(values))


not_negative = functools.partial(real_number, NOT_NEGATIVE)
at_least_0 = functools.partial(whole_number, 0)
at_least_1 = functools.partial(whole_number, 1)


def increasing_steps(name: str, values: object) -> tuple[int, ...]:
    """A tuple of the sequence's whole numbers, if each is larger than the one before."""
    numbers = each(at_least_1, name, values)
    for i, (a, b) in enumerate(pairwise(numbers), 1):
        if a >= b:
            raise ValueError(f"{name} must increase, got {name}[{i}] = {b} after {a}")
    return numbers


# An argument's check depends only on its name: it means the same in every function that has it.
CHECKS: dict[str, Callable[[str, object], Any]] = {
    "lr": not_negative,
    "start": not_negative,
    "end": not_negative,
    "power": not_negative,
    "factor": functools.partial(real_number, UP_TO_ONE),
    "steps": at_least_1,
    "every": at_least_1,
    "stretch": at_least_1,
    "warmup": at_least_0,
    "restarts": at_least_0,
    "values": functools.partial(each, not_negative),
    "boundaries": increasing_steps,
    "schedule": rate_function,
    "schedules": functools.partial(each, rate_function),
}


def steps_after_warmup(steps: int, warmup: int) -> int:
    """How many of all steps remain after the warm-up: at least one."""
    if warmup >= steps:
        raise ValueError(f"warmup must be less than steps={steps}, got {warmup}")
    return steps - warmup


def check_one_more_than_boundaries(name: str, values: Sequence[Any], boundaries: Sequence[int]) -> None:
    """Raises an error unless there is one more value than boundaries."""
    if len(values) != len(boundaries) + 1:
        raise ValueError(f"{name} must be one more than boundaries, so {len(boundaries) + 1}, got {len(values)}")
