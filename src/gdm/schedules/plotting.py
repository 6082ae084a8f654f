"""Schedules as a picture: learning rate against step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

from .arguments import RateFunction, at_least_1, each, rate_function
from .schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 10_000  # of a curve


def plot(
    schedules: RateFunction | Iterable[RateFunction] | Mapping[str, RateFunction], steps: int, ax: Axes | None = None
) -> Axes:
    """Draws learning rates against the step. Needs matplotlib: ``pip install 'gdm-optim[demo]'``.

    Parameters
    ----------
    schedules : Schedule or callable, sequence of them, or mapping of label to one
        What to draw. Without labels, the label is the schedule's repr or the function's name.
    steps : int
        How many steps to draw, at least 1. If they are more than 10,000, that many are drawn, evenly spaced.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure made by pyplot.

    Returns
    -------
    matplotlib.axes.Axes
        The axes that were drawn in.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    TypeError, ValueError
        If an argument is not as described; the message names it.

    Examples
    --------
    >>> import gdm
    >>> ax = gdm.schedules.plot(gdm.schedules.cosine(0.1, steps=100, warmup=10), 120)  # doctest: +SKIP
    >>> ax.figure.savefig("schedule.png")  # doctest: +SKIP
    """
    steps = at_least_1("steps", steps)
    curves = _labelled(schedules)
    legend: dict[str, Any] = {}
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(f"plot needs matplotlib: pip install 'gdm-optim[demo]' ({error})") from error
        ax = pyplot.subplots(layout="constrained")[1]
        legend = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "frameon": False}  # above the curves
    last = max(1, min(steps, MAX_POINTS) - 1)
    at = [i * (steps - 1) // last for i in range(min(steps, MAX_POINTS))]
    for (label, schedule), style in zip(curves, cycle(["-", "--", "-.", ":"]), strict=False):
        # The learning rate changes only from one step to the next.
        ax.plot(at, [schedule(t) for t in at], style, label=label, drawstyle="steps-post")
    ax.set(xlabel="step", ylabel="learning rate")
    ax.set_ylim(bottom=0.0)
    ax.grid(color="0.9")
    ax.legend(fontsize="small", **legend)
    return ax


def _labelled(schedules: object) -> list[tuple[str, RateFunction]]:
    if isinstance(schedules, Mapping):
        return [(str(label), rate_function(f"schedules[{label!r}]", schedule)) for label, schedule in schedules.items()]
    several = (schedules,) if callable(schedules) else each(rate_function, "schedules", schedules)
    return [(_label(schedule), schedule) for schedule in several]


def _label(schedule: RateFunction) -> str:
    return repr(schedule) if isinstance(schedule, Schedule) else getattr(schedule, "__name__", repr(schedule))
