"""Learning-rate schedules: the learning rate of each step.

    schedule = gdm.schedules.cosine(0.1, steps=10_000, warmup=500)
    schedule(0), schedule(500), schedule(10_000)     0.0, 0.1, 0.0

A schedule is a function of the number of steps made before: ``schedule(0)`` is the learning rate of the first step. It
has no memory: it may be asked for any step, in any order. It never changes; two schedules with the same arguments are
equal; it can be pickled, and :func:`to_dict` gives it as values that JSON can hold.

- A schedule with an argument ``steps`` reaches its last value at that step, and keeps it.
- With ``warmup=n`` the learning rate first rises in a straight line from 0, at step 0, to the first value of the
  schedule, at step n. From there the schedule runs as if step n were its step 0. ``steps`` includes the warm-up.
- Every learning rate of a schedule is finite and not negative: its arguments are checked when it is made.

:func:`warmup`, :func:`join` and :func:`plot` accept a user's own functions ``step -> lr``, too.
"""

from .curves import (
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    join,
    one_cycle,
    piecewise,
    polynomial,
    step,
    warmup,
)
from .plotting import plot
from .schedule import Schedule, _make
from .serialize import from_dict, to_dict

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "from_dict",
    "inverse_sqrt",
    "join",
    "one_cycle",
    "piecewise",
    "plot",
    "polynomial",
    "step",
    "to_dict",
    "warmup",
]

# Pickles name a function or class by its module. Which file of this package it is in may change.
for _public in (*(globals()[_name] for _name in __all__), _make):
    _public.__module__ = __name__
