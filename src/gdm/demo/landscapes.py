"""Three functions of two parameters, each of which shows a reason to use momentum, and gdm's paths to their minima."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import gdm

from .._checks import Array

MOMENTUM = 0.8
ADAM_LR = 0.3  # in every landscape, because the length of Adam's steps does not depend on the slope

Point = tuple[float, float]


class Landscape(NamedTuple):
    """A function of two parameters, and how to minimise it."""

    title: str
    height: Callable[[Array, Array], Array]
    slope: Callable[[float, float], Point]
    start: Point
    minimum: Point
    lr: float
    steps: int
    window: tuple[Point, Point]  # the range of each parameter that is drawn
    spread: float  # of the contours: 1 is even; with a greater number they are closer together near the minimum


def descend(landscape: Landscape, momentum: float) -> Array:
    """The path that ``gdm.SGD`` takes: a point per row, the start first."""
    return _path(landscape, lambda theta: gdm.SGD(theta, landscape.lr, momentum=momentum))


def descend_with_adam(landscape: Landscape) -> Array:
    """The path that ``gdm.Adam`` takes: a point per row, the start first."""
    return _path(landscape, lambda theta: gdm.Adam(theta, ADAM_LR))


def _path(landscape: Landscape, make: Callable[[Array], gdm.SGD | gdm.Adam]) -> Array:
    theta = np.array(landscape.start)
    grad = np.empty(2)
    optimizer = make(theta)
    optimizer.bind(grad)
    path = [theta.copy()]
    for _ in range(landscape.steps):
        grad[:] = landscape.slope(*theta)
        optimizer.step()
        path.append(theta.copy())
    return np.array(path)


CONDITION = 100.0


def _ravine(x: Array, y: Array) -> Array:
    return (x**2 + CONDITION * y**2) / 2


def _ravine_slope(x: float, y: float) -> Point:
    return x, CONDITION * y


RAVINE = Landscape(
    title=f"Ravine, condition number {CONDITION:.0f}",
    height=_ravine,
    slope=_ravine_slope,
    start=(-9.0, 1.3),
    minimum=(0.0, 0.0),
    lr=1.9 / CONDITION,  # gradient descent diverges from 2 / CONDITION on
    steps=50,
    window=((-10.5, 3.5), (-1.75, 1.75)),
    spread=1.5,
)


# A slope leads down to a plateau, which is almost level. Far away on the plateau there is a pit.
TILT = 0.02
PIT = 4.0


def _plateau(x: Array, y: Array) -> Array:
    pit: Array = 2 * np.exp(-((x - PIT) ** 2 + y**2) / 2)
    return -np.tanh(x + PIT) - TILT * x + 0.05 * y**2 - pit


def _plateau_slope(x: float, y: float) -> Point:
    pit = 2 * np.exp(-((x - PIT) ** 2 + y**2) / 2)
    return -1 / np.cosh(x + PIT) ** 2 - TILT + pit * (x - PIT), 0.1 * y + pit * y


PLATEAU = Landscape(
    title="Plateau between a slope and a pit",
    height=_plateau,
    slope=_plateau_slope,
    start=(-5.5, 1.5),
    minimum=(PIT + TILT / 2, 0.0),  # to first order in TILT
    lr=0.2,
    steps=80,
    window=((-6.4, 6.4), (-4.8, 4.8)),
    spread=1.0,
)


# Two wells along x. The term BIAS * x makes the right one deeper.
BIAS = 0.375


def _wells(x: Array, y: Array) -> Array:
    height: Array = x**4 / 4 - x**2 - BIAS * x + y**2 / 2
    return height


def _wells_slope(x: float, y: float) -> Point:
    return x**3 - 2 * x - BIAS, y


WELLS = Landscape(
    title="Shallow minimum before a deep one",
    height=_wells,
    slope=_wells_slope,
    start=(-2.2, 1.4),
    minimum=(1.5, 0.0),
    lr=0.1,
    steps=60,
    window=((-2.6, 2.6), (-1.95, 1.95)),
    spread=3.0,
)

LANDSCAPES = (RAVINE, PLATEAU, WELLS)
