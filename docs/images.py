"""Draws the pictures of the documentation that the demo and the benchmarks do not draw: ``python docs/images.py``.

It needs matplotlib: ``pip install 'gdm-optim[demo]'``.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

import gdm
from gdm import schedules

DPI = 110
NAVY, VERMILION = "#003A63", "#D55E00"

# To show how the two forms differ: J = 0.05 * theta**2, starting at theta = 1, momentum 0.9. lr changes after step 6.
CHANGE, STEPS = 6, 60
CHANGES = {"lr falls to a tenth": (1.0, 0.1), "lr rises tenfold": (0.1, 1.0)}

SCHEDULES = [
    schedules.constant(0.1, warmup=20),
    schedules.piecewise([0.1, 0.05, 0.01], [40, 70]),
    schedules.step(0.1, every=25, factor=0.5),
    schedules.exponential(0.1, factor=0.5, every=25),
    schedules.inverse_sqrt(0.1, warmup=20),
    schedules.polynomial(0.1, steps=100),
    schedules.polynomial(0.1, steps=100, warmup=20, power=2.0),
    schedules.cosine(0.1, steps=100, warmup=20, end=0.01),
    schedules.cosine(0.1, steps=100, restarts=2, stretch=2),
    schedules.one_cycle(0.1, steps=100),
    schedules.warmup(schedules.step(0.1, every=20, factor=0.5), 20, start=0.02),
    schedules.join([schedules.constant(0.1), schedules.polynomial(0.1, steps=50)], [50]),
]


def path(form: str, values: tuple[float, float]) -> np.ndarray:
    """The values of theta: at the start, and after each step."""
    theta = np.ones(1)
    opt = gdm.SGD(theta, schedules.piecewise(values, [CHANGE]), momentum=0.9, form=form)
    points = [1.0]
    for _ in range(STEPS):
        opt.step(0.1 * theta)
        points.append(theta[0])
    return np.array(points)


def draw_forms(file: Path) -> None:
    """The paths of both forms of momentum when lr changes."""
    figure = Figure(figsize=(10.0, 3.8), dpi=DPI, layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 2, sharey=True), CHANGES.items(), strict=True):
        axes.axhline(0.0, color="0.6", linewidth=0.8)
        axes.axvline(CHANGE, color="0.6", linestyle=":", linewidth=1.5)
        axes.plot(path("torch", values), color=NAVY, marker="o", markersize=3, label='form="torch"')
        axes.plot(path("classic", values), color=VERMILION, linestyle="--", marker="^", markersize=3, label='"classic"')
        axes.set(title=f"{title}: {values[0]} to {values[1]} after step {CHANGE}", xlabel="step", xlim=(0, STEPS))
        axes.grid(color="0.9")
    figure.axes[0].set_ylabel(r"$\theta$; the minimum is at 0")
    figure.axes[0].legend(loc="upper right")
    figure.savefig(file)


def draw_schedules(file: Path) -> None:
    """Every schedule, drawn by gdm.schedules.plot."""
    figure = Figure(figsize=(12.0, 7.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(3, 4, sharex=True, sharey=True)
    for axes, schedule in zip(panels.flat, SCHEDULES, strict=True):
        schedules.plot(schedule, 120, ax=axes)
        axes.get_legend().remove()
        axes.set_title("\n".join(textwrap.wrap(repr(schedule), 42)), fontsize=8.5, family="monospace")
        axes.label_outer()
    figure.savefig(file)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"
    with style.context("default", after_reset=True):
        draw_forms(folder / "forms.png")
        draw_schedules(folder / "schedules.png")
