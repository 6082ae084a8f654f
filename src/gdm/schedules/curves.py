"""The schedules: each function returns the pieces of its curve, and the decorator makes a schedule of them.

They are sorted by increasing complexity.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import truediv

from .. import _checks
from . import formulas
from .arguments import (
    MAX_RESTARTS,
    RateFunction,
    at_least_1,
    check_one_more_than_boundaries,
    steps_after_warmup,
)
from .pieces import Pieces, concatenate, everywhere, in_default_mode, transition, with_warmup
from .schedule import Schedule, makes_schedule


@makes_schedule
def constant(lr: float, *, warmup: int = 0) -> Pieces:
    """The same learning rate for every step.

    Parameters
    ----------
    lr : float
        The learning rate, finite and not negative.
    warmup : int, default 0
        The number of steps in which the learning rate first rises from 0 to ``lr``, in a straight line.

    Returns
    -------
    Schedule
        ``lr`` at every step after the warm-up.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.constant(0.5, warmup=2)
    >>> [schedule(t) for t in range(4)]
    [0.0, 0.25, 0.5, 0.5]
    """
    return with_warmup(warmup, everywhere(formulas.constant, lr))


@makes_schedule
def piecewise(values: Sequence[float], boundaries: Sequence[int]) -> Pieces:
    """A learning rate that is constant from one boundary to the next.

    Parameters
    ----------
    values : sequence of float
        The learning rates, each finite and not negative; one more than the boundaries.
    boundaries : sequence of int
        The steps at which the next value starts to hold, increasing; the first is at least 1.

    Returns
    -------
    Schedule
        ``values[i]`` at step t, where i is the number of boundaries up to and including t.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

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
    check_one_more_than_boundaries("values", values, boundaries)
    return concatenate([everywhere(formulas.constant, value) for value in values], boundaries)


@makes_schedule
def step(lr: float, *, every: int, factor: float = 0.1, warmup: int = 0) -> Pieces:
    """A learning rate that is multiplied by a factor every so many steps.

    Parameters
    ----------
    lr : float
        The first learning rate, finite and not negative.
    every : int
        The number of steps from one drop to the next, at least 1.
    factor : float, default 0.1
        The factor of each drop, in [0, 1].
    warmup : int, default 0
        The number of steps in which the learning rate first rises from 0 to ``lr``, in a straight line; t counts from
        their end.

    Returns
    -------
    Schedule
        ``lr * factor ** (t // every)`` at step t.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

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
    return with_warmup(warmup, everywhere(formulas.stairs, lr, factor, every))


@makes_schedule
def exponential(lr: float, *, factor: float, every: int = 1, warmup: int = 0) -> Pieces:
    """A learning rate that is multiplied by the same factor at each step.

    Parameters
    ----------
    lr : float
        The first learning rate, finite and not negative.
    factor : float
        The factor that ``every`` steps together multiply the learning rate by, in [0, 1].
    every : int, default 1
        The number of steps that make up one factor, at least 1.
    warmup : int, default 0
        The number of steps in which the learning rate first rises from 0 to ``lr``, in a straight line; t counts from
        their end.

    Returns
    -------
    Schedule
        ``lr * factor ** (t / every)`` at step t.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    Notes
    -----
    ``torch.optim.lr_scheduler.ExponentialLR``; with ``every``, ``optax.exponential_decay``. In Senior, Heigold,
    Ranzato & Yang, "An empirical study of learning rates in deep neural networks for speech recognition" (ICASSP 2013),
    ``factor`` is 0.1.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.exponential(1.0, factor=0.25, every=2)
    >>> [schedule(t) for t in range(4)]
    [1.0, 0.5, 0.25, 0.125]
    """
    return with_warmup(warmup, everywhere(formulas.exponential, lr, factor, every))


@makes_schedule
def inverse_sqrt(lr: float, *, warmup: int) -> Pieces:
    """A learning rate that rises in a straight line, then falls as one over the square root of the step.

    Parameters
    ----------
    lr : float
        The highest learning rate, finite and not negative.
    warmup : int
        The step with the highest learning rate, at least 1. At step 4 · ``warmup`` the learning rate is half of it.

    Returns
    -------
    Schedule
        ``lr * min(t / warmup, sqrt(warmup / t))`` at step t; here t counts from step 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

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
    at_least_1("warmup", warmup)
    return with_warmup(warmup, everywhere(formulas.inverse_sqrt, lr, warmup))


@makes_schedule
def polynomial(lr: float, *, steps: int, warmup: int = 0, end: float = 0.0, power: float = 1.0) -> Pieces:
    """A learning rate that falls in a straight line, or with a power of the share of the steps that remains.

    Parameters
    ----------
    lr : float
        The first learning rate, finite and not negative.
    steps : int
        The number of steps to the last value, warm-up included, at least 1.
    warmup : int, default 0
        The number of steps in which the learning rate first rises from 0 to ``lr``, in a straight line. Less than
        ``steps``; t counts from their end.
    end : float, default 0
        The learning rate from step ``steps`` on, finite and not negative.
    power : float, default 1
        The exponent, finite and not negative. With 1 the learning rate falls in a straight line; with a larger one it
        falls earlier.

    Returns
    -------
    Schedule
        ``end + (lr - end) * (1 - t / T) ** power`` at step t < T = ``steps - warmup``, then ``end``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

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
    fall = transition(formulas.power, lr, end, steps_after_warmup(steps, warmup), power)
    return with_warmup(warmup, fall)


@makes_schedule
def cosine(lr: float, *, steps: int, warmup: int = 0, end: float = 0.0, restarts: int = 0, stretch: int = 1) -> Pieces:
    """A learning rate that falls along half a cosine wave, once or, with restarts, several times.

    Parameters
    ----------
    lr : float
        The first learning rate, finite and not negative.
    steps : int
        The number of steps to the last value, warm-up and all cycles included, at least 1.
    warmup : int, default 0
        The number of steps in which the learning rate first rises from 0 to ``lr``, in a straight line. Less than
        ``steps``; the cycles share the steps after them.
    end : float, default 0
        The learning rate that each cycle falls to, and that holds after the last cycle. Finite and not negative.
    restarts : int, default 0
        How many times the learning rate jumps back to ``lr`` and a new cycle begins, at most 1000. At the step where a
        cycle would reach ``end``, the next begins; only the last cycle reaches ``end``.
    stretch : int, default 1
        The length of each cycle, divided by the length of the one before it; at least 1. Where a cycle would not begin
        at a whole step, that step is rounded down.

    Returns
    -------
    Schedule
        ``end + (lr - end) * (1 + cos(pi * t / T)) / 2`` at step t of a cycle of T steps.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or the first cycle is shorter than one step; the message names it.

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
    steps_left = steps_after_warmup(steps, warmup)
    if restarts > MAX_RESTARTS:
        raise ValueError(f"restarts must be at most {MAX_RESTARTS}, got {restarts}")
    # Where the cycles begin, and where the last one ends, in lengths of the first cycle.
    marks = [0]
    for i in range(restarts + 1):
        marks.append(marks[-1] + stretch**i)
    if marks[-1] > steps_left:
        needed = f"at least {_checks._show(marks[-1])} steps after the warm-up, got {steps_left}"
        raise ValueError(f"restarts={restarts} with stretch={stretch} need {needed}")
    begins = [steps_left * mark // marks[-1] for mark in marks]
    cycles = [transition(formulas.half_cosine, lr, end, b - a) for a, b in pairwise(begins)]
    return with_warmup(warmup, concatenate(cycles, begins[1:-1]))


@makes_schedule
def one_cycle(
    lr: float, *, steps: int, warmup: int | None = None, start: float | None = None, end: float | None = None
) -> Pieces:
    """A learning rate that rises to its highest value, then falls far below its first, each along half a cosine wave.

    Parameters
    ----------
    lr : float
        The highest learning rate, finite and not negative.
    steps : int
        The number of steps to the last value, at least 1.
    warmup : int, optional
        The step with the highest learning rate, less than ``steps``; by default three tenths of ``steps``, rounded
        down.
    start : float, optional
        The first learning rate, finite and not negative; by default ``lr / 25``.
    end : float, optional
        The learning rate from step ``steps`` on, finite and not negative; by default ``start / 10_000``.

    Returns
    -------
    Schedule
        ``start + (lr - start) * (1 - cos(pi * t / warmup)) / 2`` at step t < ``warmup``, then
        ``end + (lr - end) * (1 + cos(pi * (t - warmup) / (steps - warmup))) / 2``, then ``end``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    Notes
    -----
    From Smith, "A disciplined approach to neural network hyper-parameters: part 1" (arXiv:1803.09820), with
    cosines in place of straight lines: ``optax.cosine_onecycle_schedule``. ``torch.optim.lr_scheduler.OneCycleLR``
    has the same defaults, but reaches its highest and its last value one step earlier. Smith and torch also lower the
    momentum during the rise; a schedule does not change it.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.one_cycle(1.0, steps=10, warmup=4, end=0.0)
    >>> [round(schedule(t), 2) for t in (0, 2, 4, 7, 10)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    warmup = 3 * steps // 10 if warmup is None else warmup
    start = in_default_mode(truediv, lr, 25.0) if start is None else start
    end = in_default_mode(truediv, start, 10_000.0) if end is None else end
    rise = transition(formulas.half_cosine, start, lr, warmup)
    fall = transition(formulas.half_cosine, lr, end, steps_after_warmup(steps, warmup))
    return concatenate([rise, fall], [warmup])


@makes_schedule
def warmup(schedule: RateFunction, steps: int, start: float = 0.0) -> Pieces:
    """A schedule with a straight line before it, which leads to its first value.

    Parameters
    ----------
    schedule : Schedule or callable
        The schedule after the warm-up. Its steps are counted from the end of the warm-up.
    steps : int
        The number of steps of the warm-up, at least 1.
    start : float, default 0
        The learning rate of the first step, finite and not negative. With 0 the first step changes no parameter.

    Returns
    -------
    Schedule
        ``start + (schedule(0) - start) * t / steps`` at step t < ``steps``, then ``schedule(t - steps)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; or, when the schedule is called, if a function returns something else than
        a learning rate. The message names it.

    Notes
    -----
    The "gradual warmup" of Goyal et al., "Accurate, large minibatch SGD" (arXiv:1706.02677), section 2.2.
    ``torch.optim.lr_scheduler.LinearLR`` and the schedule, joined by ``SequentialLR``.

    Examples
    --------
    >>> import gdm
    >>> schedule = gdm.schedules.warmup(gdm.schedules.step(1.0, every=2), 4, start=0.5)
    >>> [schedule(t) for t in range(7)]
    [0.5, 0.625, 0.75, 0.875, 1.0, 1.0, 0.1]
    """
    return with_warmup(steps, _pieces_of("schedule", schedule), start)


@makes_schedule
def join(schedules: Sequence[RateFunction], boundaries: Sequence[int]) -> Pieces:
    """Schedules one after the other.

    Parameters
    ----------
    schedules : sequence of Schedule or callable
        The schedules; one more than the boundaries. The steps of each are counted from where it begins.
    boundaries : sequence of int
        The steps at which the next one begins, increasing; the first is at least 1.

    Returns
    -------
    Schedule
        ``schedules[i](t - boundaries[i - 1])`` at step t, where i is the number of boundaries up to and including t;
        ``schedules[0](t)`` before the first boundary.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; or, when the schedule is called, if a function returns something else than
        a learning rate. The message names it.

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
    check_one_more_than_boundaries("schedules", schedules, boundaries)
    parts = [_pieces_of(f"schedules[{i}]", schedule) for i, schedule in enumerate(schedules)]
    return concatenate(parts, boundaries)


def _pieces_of(name: str, schedule: RateFunction) -> Pieces:
    if isinstance(schedule, Schedule):
        return schedule._pieces
    return everywhere(formulas.own_function, name, schedule)
