"""Learning-rate schedules: which learning rate each step is to have.

    schedule = gdm.schedules.cosine(0.1, steps=10_000, warmup=500)
    schedule(0), schedule(500), schedule(10_000)     0.0, 0.1, 0.0

A schedule is a function of the number of steps taken before: ``schedule(0)`` is the learning rate of the first step.
It has no memory, so that it can be asked for any step, and in any order. It is never changed; two made alike are
equal; it can be pickled, and :func:`to_dict` gives it as values that JSON can hold.

- A schedule that takes ``steps`` arrives at its last value at that step, and stays there.
- With ``warmup=n`` the learning rate first rises in a straight line from 0, at step 0, to the value the schedule begins
  with, at step n. From there the schedule runs as if step n were its step 0. ``steps`` counts the warm-up too.
- What a schedule gives is finite and not negative: its arguments are checked when it is made.

:func:`warmup`, :func:`join` and :func:`plot` take functions ``step -> lr`` of the user's own, too.
"""

from __future__ import annotations

import functools
import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from . import _checks
from ._checks import NOT_NEGATIVE, UP_TO_ONE, Domain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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

Rate = Callable[[int], float]
P = ParamSpec("P")

MAX_STEP = 2**53  # up to here a double holds every whole number
MAX_RESTARTS = 1000
POINTS = 10_000  # of a curve in a picture


@dataclass(frozen=True, slots=True, repr=False)
class Schedule:
    """A learning rate for each step, made by a function of this module and called like one: ``schedule(step)``.

    Attributes
    ----------
    kind : str
        The name of the function that made it.
    arguments : tuple of pairs
        Name and value of each of that function's arguments.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.cosine(0.1, steps=10_000, warmup=500)
    >>> schedule
    cosine(0.1, steps=10000, warmup=500)
    >>> schedule(250)
    0.05
    """

    kind: str
    arguments: tuple[tuple[str, Any], ...]
    _rate: Rate = field(compare=False)

    def __call__(self, step: int) -> float:
        """The learning rate of the step before which ``step`` others were taken: a whole number from 0 to 2**53."""
        if type(step) is not int or not 0 <= step <= MAX_STEP:
            step = _whole(0, "step", step)
        return self._rate(step)

    def __repr__(self) -> str:
        parameters = inspect.signature(_KINDS[self.kind]).parameters
        shown = [
            f"{name}={_text(value)}" if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY else _text(value)
            for name, value in self.arguments
            if value != parameters[name].default
        ]
        return f"{self.kind}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self.kind, dict(self.arguments))


_KINDS: dict[str, Callable[..., Schedule]] = {}


def _make(kind: str, arguments: dict[str, Any]) -> Schedule:
    return _KINDS[kind](**arguments)


def _schedule(formula: Callable[P, Rate]) -> Callable[P, Schedule]:
    """Of a function from checked arguments to a formula, the public one: from any arguments to a schedule."""
    formula.__annotations__["return"] = "Schedule"  # as help() is to show it
    signature, kind = inspect.signature(formula), formula.__name__
    build: Callable[..., Rate] = formula
    optional = {name for name, parameter in signature.parameters.items() if parameter.default is None}

    @functools.wraps(formula)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{kind}() {error}") from None
        bound.apply_defaults()
        arguments = {
            name: None if value is None and name in optional else _ARGUMENTS[name](name, value)
            for name, value in bound.arguments.items()
        }
        return Schedule(kind, tuple(arguments.items()), build(**arguments))

    _KINDS[kind] = make
    return make


# The arguments.


def _real(domain: Domain, name: str, value: object) -> float:
    return _checks.real(name, value, domain)


def _whole(low: int, name: str, value: object) -> int:
    number = _checks.whole(name, value)
    if not low <= number <= MAX_STEP:
        raise ValueError(f"{name} must be from {low} to 2**53, got {_checks._show(number)}")
    return number


def _function(name: str, value: object) -> Rate:
    if not callable(value):
        raise TypeError(f"{name} must be a schedule or a function step -> lr, not {_checks._kind(value)}")
    return value


def _each(check: Callable[[str, object], Any], name: str, values: object) -> tuple[Any, ...]:
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray)):
        raise TypeError(f"{name} must be a sequence, not {_checks._kind(values)}")
    return tuple(check(f"{name}[{i}]", value) for i, value in enumerate(values))


def _increasing(name: str, values: object) -> tuple[int, ...]:
    numbers = _each(functools.partial(_whole, 1), name, values)
    for i, (a, b) in enumerate(pairwise(numbers), 1):
        if a >= b:
            raise ValueError(f"{name} must increase, got {name}[{i}] = {b} after {a}")
    return numbers


_not_negative = functools.partial(_real, NOT_NEGATIVE)
_from_0, _from_1 = functools.partial(_whole, 0), functools.partial(_whole, 1)

_ARGUMENTS: dict[str, Callable[[str, object], Any]] = {
    "lr": _not_negative,
    "start": _not_negative,
    "end": _not_negative,
    "power": _not_negative,
    "factor": functools.partial(_real, UP_TO_ONE),
    "steps": _from_1,
    "every": _from_1,
    "stretch": _from_1,
    "warmup": _from_0,
    "restarts": _from_0,
    "values": functools.partial(_each, _not_negative),
    "boundaries": _increasing,
    "schedule": _function,
    "schedules": functools.partial(_each, _function),
}


def _rest(steps: int, warmup: int) -> int:
    """How many steps a warm-up leaves of all."""
    if warmup >= steps:
        raise ValueError(f"warmup must be less than steps={steps}, got {warmup}")
    return steps - warmup


def _one_more(name: str, values: Sequence[Any], boundaries: Sequence[int]) -> None:
    if len(values) != len(boundaries) + 1:
        raise ValueError(f"{name} must be one more than boundaries, so {len(boundaries) + 1}, got {len(values)}")


def _checked(name: str, schedule: Rate) -> Rate:
    """The formula of a schedule; for a user's function, one that checks what it gives."""
    if isinstance(schedule, Schedule):
        return schedule._rate
    return lambda step: _not_negative(f"{name}({step})", schedule(step))


def _text(value: object) -> str:
    return f"[{', '.join(map(repr, value))}]" if isinstance(value, tuple) else repr(value)


# What the formulas are made of.


def _line(x: float) -> float:
    return x


def _half_cosine(x: float) -> float:
    return math.sin(0.5 * math.pi * x) ** 2  # (1 - cos πx) / 2, without its cancellation


def _way(first: float, last: float, steps: int, shape: Callable[[float], float] = _line) -> Rate:
    """From the first value, at step 0, to the last, at ``steps`` and after; the shape rises from 0 to 1."""
    change = last - first
    return lambda step: first + change * shape(step / steps) if step < steps else last


def _chain(rates: Sequence[Rate], boundaries: Sequence[int]) -> Rate:
    """One after the other; each counts its own steps."""
    starts = (0, *boundaries)

    def rate(step: int) -> float:
        i = bisect_right(boundaries, step)
        return rates[i](step - starts[i])

    return rate


def _warmed(steps: int, rate: Rate, start: float = 0.0) -> Rate:
    return _chain([_way(start, rate(0), steps), rate], [steps]) if steps else rate


# The schedules, in order of increasing complexity.


@_schedule
def constant(lr: float, *, warmup: int = 0) -> Rate:
    """The same learning rate for every step.

    Parameters
    ----------
    lr : float
        The learning rate, finite and not negative.
    warmup : int, default 0
        Rise to ``lr`` in a straight line from 0 over so many steps first.

    Returns
    -------
    Schedule
        ``lr``.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above; the message names them.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.constant(0.5, warmup=2)
    >>> [schedule(t) for t in range(4)]
    [0.0, 0.25, 0.5, 0.5]
    """
    return _warmed(warmup, lambda step: lr)


@_schedule
def piecewise(values: Sequence[float], boundaries: Sequence[int]) -> Rate:
    """A constant learning rate between one boundary and the next.

    Parameters
    ----------
    values : sequence of float
        The learning rates, each finite and not negative; one more than the boundaries.
    boundaries : sequence of int
        The steps at which the next value begins to hold, increasing, from 1.

    Returns
    -------
    Schedule
        ``values[i]``, where i is how many boundaries are at or before step t.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above; the message names them.

    Notes
    -----
    ``torch.optim.lr_scheduler.MultiStepLR``, with the values themselves in place of a factor. The example is from He,
    Zhang, Ren & Sun, "Deep residual learning for image recognition" (CVPR 2016), section 4.2.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.piecewise([0.1, 0.01, 0.001], [32_000, 48_000])
    >>> [schedule(t) for t in (0, 31_999, 32_000, 64_000)]
    [0.1, 0.1, 0.01, 0.001]
    """
    _one_more("values", values, boundaries)
    return lambda step: values[bisect_right(boundaries, step)]


@_schedule
def step(lr: float, *, every: int, factor: float = 0.1, warmup: int = 0) -> Rate:
    """A learning rate that drops by a factor every so many steps.

    Parameters
    ----------
    lr : float
        The learning rate to begin with, finite and not negative.
    every : int
        How many steps to stay at a value, at least 1.
    factor : float, default 0.1
        What the learning rate is multiplied by then, in [0, 1].
    warmup : int, default 0
        Rise to ``lr`` in a straight line from 0 over so many steps first; t counts from their end.

    Returns
    -------
    Schedule
        ``lr * factor ** (t // every)`` at step t.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above; the message names them.

    Notes
    -----
    ``torch.optim.lr_scheduler.StepLR``.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.step(1.0, every=2, factor=0.5)
    >>> [schedule(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return _warmed(warmup, lambda step: lr * factor ** (step // every))


@_schedule
def exponential(lr: float, *, factor: float, every: int = 1, warmup: int = 0) -> Rate:
    """A learning rate that shrinks by the same share at each step.

    Parameters
    ----------
    lr : float
        The learning rate to begin with, finite and not negative.
    factor : float
        What the learning rate is multiplied by in the course of ``every`` steps, in [0, 1].
    every : int, default 1
        How many steps that takes, at least 1.
    warmup : int, default 0
        Rise to ``lr`` in a straight line from 0 over so many steps first; t counts from their end.

    Returns
    -------
    Schedule
        ``lr * factor ** (t / every)`` at step t.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above; the message names them.

    Notes
    -----
    ``torch.optim.lr_scheduler.ExponentialLR``, and ``optax.exponential_decay`` for ``every``. In Senior, Heigold,
    Ranzato & Yang, "An empirical study of learning rates in deep neural networks for speech recognition" (ICASSP 2013),
    ``factor`` is 0.1.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.exponential(1.0, factor=0.25, every=2)
    >>> [schedule(t) for t in range(4)]
    [1.0, 0.5, 0.25, 0.125]
    """
    return _warmed(warmup, lambda step: lr * factor ** (step / every))


@_schedule
def inverse_sqrt(lr: float, *, warmup: int) -> Rate:
    """A learning rate that rises in a straight line, then falls with the square root of the step.

    Parameters
    ----------
    lr : float
        The highest learning rate, finite and not negative.
    warmup : int
        The step that has it, at least 1. It also says how fast the learning rate falls: to half by step 4 · ``warmup``.

    Returns
    -------
    Schedule
        ``lr * min(t / warmup, sqrt(warmup / t))`` at step t; here t counts from the beginning.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above; the message names them.

    Notes
    -----
    Vaswani et al., "Attention is all you need" (NeurIPS 2017), equation 3, which counts the first step as 1, and whose
    highest learning rate is ``1 / sqrt(d_model * warmup)``.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.inverse_sqrt(1.0, warmup=4)
    >>> [schedule(t) for t in (0, 2, 4, 16, 64)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    _from_1("warmup", warmup)
    return _warmed(warmup, lambda step: lr * math.sqrt(warmup / (warmup + step)))


@_schedule
def polynomial(lr: float, *, steps: int, warmup: int = 0, end: float = 0.0, power: float = 1.0) -> Rate:
    """A learning rate that falls to its end in a straight line, or as a power of what is left of it.

    Parameters
    ----------
    lr : float
        The learning rate to begin with, finite and not negative.
    steps : int
        How many steps it takes, warm-up included, at least 1.
    warmup : int, default 0
        Rise to ``lr`` in a straight line from 0 over so many steps first, less than ``steps``; t counts from their end.
    end : float, default 0
        The learning rate at the end and after, finite and not negative.
    power : float, default 1
        The exponent, finite and not negative. 1 is a straight line; the larger, the sooner the learning rate falls.

    Returns
    -------
    Schedule
        ``end + (lr - end) * (1 - t / T) ** power`` at step t < T = ``steps - warmup``, then ``end``.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above; the message names them.

    Notes
    -----
    ``torch.optim.lr_scheduler.PolynomialLR``, ``optax.polynomial_schedule``. With ``power=0.9`` the "poly" policy of
    Chen et al., "DeepLab" (arXiv:1606.00915), section 4.1.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.polynomial(1.0, steps=4, power=2)
    >>> [schedule(t) for t in range(6)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    return _warmed(warmup, _way(lr, end, _rest(steps, warmup), lambda x: 1.0 - (1.0 - x) ** power))


@_schedule
def cosine(lr: float, *, steps: int, warmup: int = 0, end: float = 0.0, restarts: int = 0, stretch: int = 1) -> Rate:
    """A learning rate that falls along half a cosine wave; with restarts, several times.

    Parameters
    ----------
    lr : float
        The learning rate to begin with, finite and not negative.
    steps : int
        How many steps it takes, warm-up and all cycles included, at least 1.
    warmup : int, default 0
        Rise to ``lr`` in a straight line from 0 over so many steps first, less than ``steps``. The cycles divide the
        rest.
    end : float, default 0
        The learning rate that each cycle falls to, and that holds after the last, finite and not negative.
    restarts : int, default 0
        How often the learning rate jumps back to ``lr`` and a new cycle begins, at most 1000. A cycle stops one step
        short of ``end``, where the next begins; the last one reaches it.
    stretch : int, default 1
        How many times as long as the one before each cycle is, at least 1. Where the cycles do not come out in whole
        steps, the steps at which they begin are rounded down.

    Returns
    -------
    Schedule
        ``end + (lr - end) * (1 + cos(pi * t / T)) / 2`` at step t of a cycle of T steps.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above, or if the first cycle would be shorter than a step; the message names them.

    Notes
    -----
    Loshchilov & Hutter, "SGDR: Stochastic gradient descent with warm restarts" (ICLR 2017), equation 5; their T_0 is
    the length of the first cycle and their T_mult is ``stretch``. Without restarts,
    ``torch.optim.lr_scheduler.CosineAnnealingLR`` as far as ``steps``, and ``optax.warmup_cosine_decay_schedule``. With
    them, ``CosineAnnealingWarmRestarts``: T_0 = 10 and T_mult = 2 for three cycles, of 10, 20 and 40 steps, is
    ``steps=70, restarts=2, stretch=2``.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.cosine(1.0, steps=6, restarts=1, stretch=2)
    >>> [round(schedule(t), 3) for t in range(8)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    rest = _rest(steps, warmup)
    if restarts > MAX_RESTARTS:
        raise ValueError(f"restarts must be at most {MAX_RESTARTS}, got {restarts}")
    begins = [0]  # in lengths of the first cycle; after the last restart, the length of all
    for i in range(restarts + 1):
        begins.append(begins[-1] + stretch**i)
    if begins[-1] > rest:
        needed = f"at least {_checks._show(begins[-1])} steps after the warm-up, got {rest}"
        raise ValueError(f"restarts={restarts} with stretch={stretch} need {needed}")
    cuts = [rest * begin // begins[-1] for begin in begins]
    return _warmed(warmup, _chain([_way(lr, end, b - a, _half_cosine) for a, b in pairwise(cuts)], cuts[1:-1]))


@_schedule
def one_cycle(
    lr: float, *, steps: int, warmup: int | None = None, start: float | None = None, end: float | None = None
) -> Rate:
    """A learning rate that rises to its highest, then falls far below where it began, each along half a cosine wave.

    Parameters
    ----------
    lr : float
        The highest learning rate, finite and not negative.
    steps : int
        How many steps it takes, at least 1.
    warmup : int, optional
        The step that has the highest learning rate, less than ``steps``; by default three tenths of ``steps``, rounded
        down.
    start : float, optional
        The learning rate to begin with, finite and not negative; by default ``lr / 25``.
    end : float, optional
        The learning rate at the end and after, finite and not negative; by default ``start / 10_000``.

    Returns
    -------
    Schedule
        ``start + (lr - start) * (1 - cos(pi * t / warmup)) / 2`` at step t < ``warmup``, then
        ``end + (lr - end) * (1 + cos(pi * (t - warmup) / (steps - warmup))) / 2``, then ``end``.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above; the message names them.

    Notes
    -----
    The policy of Smith, "A disciplined approach to neural network hyper-parameters: part 1" (arXiv:1803.09820), with
    cosines where he draws straight lines: ``optax.cosine_onecycle_schedule``. ``torch.optim.lr_scheduler.OneCycleLR``
    has the same defaults, but reaches its highest and its last value one step sooner. Smith and torch lower the
    momentum meanwhile; a schedule leaves it alone.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.one_cycle(1.0, steps=10, warmup=4, end=0.0)
    >>> [round(schedule(t), 2) for t in (0, 2, 4, 7, 10)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    warmup = 3 * steps // 10 if warmup is None else warmup
    start = lr / 25.0 if start is None else start
    end = start / 10_000.0 if end is None else end
    fall = _way(lr, end, _rest(steps, warmup), _half_cosine)
    return _chain([_way(start, lr, warmup, _half_cosine), fall], [warmup])


@_schedule
def warmup(schedule: Rate, steps: int, start: float = 0.0) -> Rate:
    """A schedule after a straight rise to the value it begins with.

    Parameters
    ----------
    schedule : Schedule or callable
        What follows the warm-up. It sees steps counted from the warm-up's end.
    steps : int
        How long the warm-up is, at least 1.
    start : float, default 0
        The learning rate of the first step, finite and not negative. With 0 that step moves nothing.

    Returns
    -------
    Schedule
        ``start + (schedule(0) - start) * t / steps`` at step t < ``steps``, then ``schedule(t - steps)``.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above, or, when it is called, a function that gives something else than a learning
        rate; the message names them.

    Notes
    -----
    The "gradual warmup" of Goyal et al., "Accurate, large minibatch SGD" (arXiv:1706.02677), section 2.2.
    ``torch.optim.lr_scheduler.LinearLR``, and after it the schedule by ``SequentialLR``.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.warmup(gdm.schedules.step(1.0, every=2), 4, start=0.5)
    >>> [schedule(t) for t in range(7)]
    [0.5, 0.625, 0.75, 0.875, 1.0, 1.0, 0.1]
    """
    return _warmed(steps, _checked("schedule", schedule), start)


@_schedule
def join(schedules: Sequence[Rate], boundaries: Sequence[int]) -> Rate:
    """Schedules one after the other.

    Parameters
    ----------
    schedules : sequence of Schedule or callable
        The schedules; one more than the boundaries. Each sees steps counted from its own beginning.
    boundaries : sequence of int
        The steps at which the next one begins, increasing, from 1.

    Returns
    -------
    Schedule
        ``schedules[i](t - boundaries[i - 1])``, where i is how many boundaries are at or before step t, and
        ``schedules[0](t)`` before all.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above, or, when it is called, a function that gives something else than a learning
        rate; the message names them.

    Notes
    -----
    ``optax.join_schedules``; ``torch.optim.lr_scheduler.SequentialLR``. Where one ends and the next begins the learning
    rate may jump.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.join([gdm.schedules.constant(0.5), gdm.schedules.polynomial(0.5, steps=2)], [3])
    >>> [schedule(t) for t in range(6)]
    [0.5, 0.5, 0.5, 0.5, 0.25, 0.0]
    """
    _one_more("schedules", schedules, boundaries)
    return _chain([_checked(f"schedules[{i}]", schedule) for i, schedule in enumerate(schedules)], boundaries)


# Schedules as plain values.


def to_dict(schedule: Rate) -> dict[str, Any]:
    """The schedule as a dictionary of values that JSON can hold: its kind, and all its arguments.

    Parameters
    ----------
    schedule : Schedule
        A schedule made by this module, as must be those it is made of.

    Returns
    -------
    dict
        ``{"kind": name of the function, argument: value, ...}``, with schedules in it as such dictionaries too.
        :func:`from_dict` makes an equal schedule of it.

    Raises
    ------
    TypeError
        For a function of the user's own, which no plain values stand for.

    Examples
    --------
    >>> import gdm
    >>> gdm.schedules.to_dict(gdm.schedules.step(0.5, every=30))
    {'kind': 'step', 'lr': 0.5, 'every': 30, 'factor': 0.1, 'warmup': 0}
    """
    return {"kind": _own(schedule).kind, **{name: _encode(value) for name, value in _own(schedule).arguments}}


def from_dict(d: Mapping[str, Any]) -> Schedule:
    """The schedule that :func:`to_dict` gave as this dictionary.

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
        For anything else; the message says what is wrong with it.

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
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"a schedule's kind must be one of {', '.join(_KINDS)}, got {_checks._show(kind)}")
    expected = inspect.signature(_KINDS[kind]).parameters
    if arguments.keys() != expected.keys():
        found = _checks._show(list(arguments))
        raise ValueError(f"a schedule of kind {kind!r} must have the keys {list(expected)}, got {found}")
    try:
        return _make(kind, {name: _decode(name, value) for name, value in arguments.items()})
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{kind}: {error}") from None


def _own(schedule: object) -> Schedule:
    if isinstance(schedule, Schedule):
        return schedule
    raise TypeError(
        f"only schedules made by gdm.schedules can be given as plain values, not {_checks._show(schedule)}; express it "
        f"by them (piecewise and join go far), or pass it again where the dictionary is read"
    )


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encode(x) for x in value]
    return value if value is None or isinstance(value, (int, float)) else to_dict(value)


def _decode(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_decode(f"{name}[{i}]", x) for i, x in enumerate(value)]
    if isinstance(value, Mapping):
        try:
            return from_dict(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if isinstance(value, bool) or not (value is None or isinstance(value, (int, float, str))):
        raise ValueError(f"{name} must be a number, a list or a dictionary, not {_checks._kind(value)}")
    return value


# Schedules as a picture.


def plot(schedules: Rate | Iterable[Rate] | Mapping[str, Rate], steps: int, ax: Axes | None = None) -> Axes:
    """Draws learning rates against the step. Needs matplotlib: ``pip install 'gdm[demo]'``.

    Parameters
    ----------
    schedules : Schedule or callable, sequence of them, or mapping of label to one
        What to draw. Without labels, each is labelled as it is written.
    steps : int
        How many steps to draw, at least 1. Of more than 10,000 so many are picked, evenly.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure of pyplot's.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    TypeError, ValueError
        For arguments that are not as above; the message names them.

    Examples
    --------
    >>> import gdm
    >>> ax = gdm.schedules.plot(gdm.schedules.cosine(0.1, steps=100, warmup=10), 120)  # doctest: +SKIP
    >>> ax.figure.savefig("schedule.png")  # doctest: +SKIP
    """
    steps = _from_1("steps", steps)
    curves = _labelled(schedules)
    place: dict[str, Any] = {}
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(f"plot needs matplotlib: pip install 'gdm[demo]' ({error})") from error
        ax = pyplot.subplots(layout="constrained")[1]
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "frameon": False}  # where no curve is
    last = max(1, min(steps, POINTS) - 1)
    at = [i * (steps - 1) // last for i in range(min(steps, POINTS))]
    for (label, schedule), style in zip(curves, cycle(["-", "--", "-.", ":"]), strict=False):
        # A learning rate holds for a step, and then another does.
        ax.plot(at, [schedule(t) for t in at], style, label=label, drawstyle="steps-post")
    ax.set(xlabel="step", ylabel="learning rate")
    ax.set_ylim(bottom=0.0)
    ax.grid(color="0.9")
    ax.legend(fontsize="small", **place)
    return ax


def _labelled(schedules: object) -> list[tuple[str, Rate]]:
    if isinstance(schedules, Mapping):
        return [(str(label), _function(f"schedules[{label!r}]", schedule)) for label, schedule in schedules.items()]
    several = (schedules,) if callable(schedules) else _each(_function, "schedules", schedules)
    return [(_label(schedule), schedule) for schedule in several]


def _label(schedule: Rate) -> str:
    return repr(schedule) if isinstance(schedule, Schedule) else getattr(schedule, "__name__", repr(schedule))
