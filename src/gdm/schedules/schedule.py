"""The class of all schedules, and how a function that returns pieces becomes one that returns a schedule."""

from __future__ import annotations

import functools
import inspect
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, ParamSpec

from .arguments import CHECKS, MAX_STEP, at_least_0
from .formulas import own_function
from .pieces import Pieces, in_default_mode

P = ParamSpec("P")

# The functions that make schedules, by name: @makes_schedule adds them.
KINDS: dict[str, Callable[..., Schedule]] = {}


def _no_arithmetic(self: Schedule, other: object) -> NoReturn:
    raise TypeError(
        f"a schedule is not a number: {self!r}. Make a new schedule, or set lr to a number; "
        "opt.groups[i].current_lr is the learning rate of the next step"
    )


@dataclass(frozen=True, slots=True, repr=False)
class Schedule:
    """A learning rate for each step. The functions of this module make schedules; call one with a step.

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
    _pieces: Pieces = field(compare=False)
    _starts: tuple[int, ...] = field(compare=False)  # of all pieces but the first, which starts at step 0
    _has_own_function: bool = field(compare=False)  # a function of the user's

    def __call__(self, step: int) -> float:
        """The learning rate after ``step`` steps, a whole number from 0 to 2**53."""
        if type(step) is not int or not 0 <= step <= MAX_STEP:
            step = at_least_0("step", step)
        start, formula, constants = self._pieces[bisect_right(self._starts, step)]
        if formula is own_function:  # it runs in the mode of its thread
            return formula(step - start, constants)
        return in_default_mode(formula, step - start, constants)

    def __repr__(self) -> str:
        parameters = inspect.signature(KINDS[self.kind]).parameters
        shown = [
            f"{name}={_text(value)}" if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY else _text(value)
            for name, value in self.arguments
            if value != parameters[name].default
        ]
        return f"{self.kind}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self.kind, dict(self.arguments))

    # ``opt.lr *= 0.5`` gets here where lr is a schedule. The error says what to do instead.
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _no_arithmetic
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = _no_arithmetic


def _text(value: object) -> str:
    return f"[{', '.join(map(repr, value))}]" if isinstance(value, tuple) else repr(value)


def _make(kind: str, arguments: dict[str, Any]) -> Schedule:
    """A schedule from its kind and arguments. Pickles contain this function's name."""
    return KINDS[kind](**arguments)


def makes_schedule(pieces_of: Callable[P, Pieces]) -> Callable[P, Schedule]:
    """Decorates a function from checked arguments to pieces: makes it check any arguments and return a schedule."""
    pieces_of.__annotations__["return"] = "Schedule"  # for help()
    signature, kind = inspect.signature(pieces_of), pieces_of.__name__
    make_pieces: Callable[..., Pieces] = pieces_of
    optional = {name for name, parameter in signature.parameters.items() if parameter.default is None}

    @functools.wraps(pieces_of)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{kind}() {error}") from None
        bound.apply_defaults()
        arguments = {
            name: None if value is None and name in optional else CHECKS[name](name, value)
            for name, value in bound.arguments.items()
        }
        pieces = make_pieces(**arguments)
        starts = tuple(start for start, _, _ in pieces[1:])
        has_own_function = any(formula is own_function for _, formula, _ in pieces)
        return Schedule(kind, tuple(arguments.items()), pieces, starts, has_own_function)

    KINDS[kind] = make
    return make
