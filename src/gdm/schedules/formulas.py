"""The formulas of the curves, each for one step; ``_formulas.pyx`` has the same, compiled.

A formula's arguments are the step, counted from where its piece of the schedule begins, and its constants, as one
tuple. The compiled formulas must give the same bits: an operation is changed in both files. A test compares them.
"""

from math import pi, sin, sqrt

from .arguments import RateFunction, not_negative

HALF_PI = 0.5 * pi


def constant(step: int, constants: tuple[float]) -> float:
    """The same value at every step."""
    return constants[0]


def line(step: int, constants: tuple[float, float, int]) -> float:
    """A straight line."""
    first, change, steps = constants
    return first + change * (step / steps)


def half_cosine(step: int, constants: tuple[float, float, int]) -> float:
    """Half a cosine wave: sin² (πx / 2) is (1 - cos πx) / 2 without its cancellation."""
    first, change, steps = constants
    return first + change * sin(HALF_PI * (step / steps)) ** 2


def power(step: int, constants: tuple[float, float, int, float]) -> float:
    """A power of the share of the steps that remains."""
    first, change, steps, exponent = constants
    rate: float = first + change * (1.0 - (1.0 - step / steps) ** exponent)
    return rate


def stairs(step: int, constants: tuple[float, float, int]) -> float:
    """A multiplication by a factor at every so many steps."""
    first, factor, every = constants
    return first * factor ** (step // every)


def exponential(step: int, constants: tuple[float, float, int]) -> float:
    """An exponential, which ``every`` steps multiply by the factor."""
    first, factor, every = constants
    rate: float = first * factor ** (step / every)
    return rate


def inverse_sqrt(step: int, constants: tuple[float, int]) -> float:
    """An inverse square root, of a step that is counted from ``origin`` steps earlier."""
    first, origin = constants
    return first * sqrt(origin / (origin + step))


def own_function(step: int, constants: tuple[str, RateFunction]) -> float:
    """What a user's own function returns, checked. It is not compiled."""
    name, function = constants
    return not_negative(f"{name}({step})", function(step))
