"""The demo's two pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import Array
from .landscapes import ADAM_LR, LANDSCAPES, MOMENTUM, Landscape, descend, descend_with_adam
from .methods import ADAM, CLASSIC, COSINE, DESCENT, LION, NESTEROV, RMSPROP, TORCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .training import Run

DPI = 110
LEVELS = 12
HEIGHT_TO_WIDTH = 0.75  # of a landscape's panel

# Colour-blind people can distinguish Okabe and Ito's colours. One blue is lighter and one is darker than theirs, so
# that they also differ without colour. Line styles and markers differ too.
BLACK, SKY, NAVY, VERMILION, GREEN = "#000000", "#A6D8F5", "#003A63", "#D55E00", "#009E73"

# The two forms of momentum give the same curve while lr is constant. Dashes on a broad line show both.
BROAD = {"color": SKY, "linestyle": "-", "linewidth": 8.0}
CURVES: dict[str, dict[str, Any]] = {
    DESCENT.name: {"color": BLACK, "linestyle": "-", "linewidth": 1.5, "marker": "o"},
    TORCH.name: BROAD,
    CLASSIC.name: {"color": NAVY, "linestyle": "--", "linewidth": 1.5},
    NESTEROV.name: {"color": VERMILION, "linestyle": "-.", "linewidth": 1.2, "marker": "^", "markerfacecolor": "w"},
    COSINE.name: {"color": BLACK, "linestyle": "-", "linewidth": 1.5, "marker": "s", "markerfacecolor": "w"},
    RMSPROP.name: {"color": GREEN, "linestyle": ":", "linewidth": 1.8, "marker": "D"},
    ADAM.name: {"color": NAVY, "linestyle": "--", "linewidth": 1.5, "marker": "v"},
    LION.name: {"color": VERMILION, "linestyle": "-.", "linewidth": 1.2, "marker": "^", "markerfacecolor": "w"},
}
ROWS = ((DESCENT, TORCH, CLASSIC, NESTEROV), (TORCH, COSINE, RMSPROP, ADAM, LION))  # TORCH in both, to compare


def draw_digits(path: Path, runs: Sequence[Run]) -> None:
    """Draws training loss and test accuracy against the epoch: the momentum family above, the others below."""
    by_name = {run.method.name: run for run in runs}
    with _style():
        figure = _figure(10.0, 9.2)
        for part, methods in zip(figure.subfigures(len(ROWS), 1, squeeze=False).flat, ROWS, strict=True):
            loss, accuracy = axes = part.subplots(1, 2)
            for run in (by_name[method.name] for method in methods):
                _curve(loss, run, run.losses)
                _curve(accuracy, run, [100 * x for x in run.accuracies])
            loss.set(title="Training loss", ylabel="cross-entropy (nats)", yscale="log")
            accuracy.set(title="Test accuracy", ylabel="correct (%)", ylim=(80, 100))
            accuracy.set_yticks(range(80, 101, 5))
            for panel in axes:
                panel.set(xlabel="epoch", xlim=(0, len(runs[0].losses) - 1))
                panel.grid(color="0.9")
            columns = (len(methods) + 1) // 2
            part.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=columns, handlelength=4)
        figure.savefig(path)


def _curve(axes: Axes, run: Run, values: Sequence[float]) -> None:
    name, lr = run.method.name, run.method.lr
    label = f"{name} (dashes: the same path)" if name == CLASSIC.name else f"{name}, lr {lr:g}"
    axes.plot(values, label=label, markersize=6, markevery=max(1, len(values) // 8), **CURVES[name])


def draw_landscapes(path: Path) -> None:
    """Draws the paths of gradient descent, momentum and Adam through each landscape."""
    with _style():
        figure = _figure(12.0, 4.2)
        panels = figure.subplots(1, 3)
        for axes, landscape in zip(panels, LANDSCAPES, strict=True):
            _contours(axes, landscape)
            axes.plot(*landscape.start, "ks", markersize=9, zorder=3, label="start")
            axes.plot(*landscape.minimum, "k*", markersize=22, markerfacecolor="w", label="deepest point")
            _path(axes, descend(landscape, 0.0), "gradient descent", color=VERMILION, linestyle="-", marker="o")
            _path(axes, descend(landscape, MOMENTUM), f"momentum {MOMENTUM}", color=NAVY, linestyle="--", marker="^")
            _path(axes, descend_with_adam(landscape), f"Adam, lr {ADAM_LR}", color=GREEN, linestyle=":", marker="D")
            axes.set_title(f"{landscape.title}\n{landscape.steps} steps each, lr {landscape.lr:g}", fontsize=11)
            axes.set(xlabel=r"parameter $\theta_1$" + _set_scales(axes, landscape), ylabel=r"parameter $\theta_2$")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, columnspacing=1.2)
        figure.savefig(path)


def _set_scales(axes: Axes, landscape: Landscape) -> str:
    """Gives all panels one shape, and returns what the x axis's label says of the scale of the y axis."""
    (x_from, x_to), (y_from, y_to) = landscape.window
    axes.set(box_aspect=HEIGHT_TO_WIDTH, xlim=(x_from, x_to), ylim=(y_from, y_to))
    stretch = HEIGHT_TO_WIDTH * (x_to - x_from) / (y_to - y_from)
    return "" if math.isclose(stretch, 1.0) else rf" ($\theta_2$ is drawn {stretch:g} times as large)"


def _contours(axes: Axes, landscape: Landscape) -> None:
    x, y = np.meshgrid(*(np.linspace(*window, 200) for window in landscape.window))
    height = landscape.height(x, y)
    # The contours are closer together near the minima, so that these are visible.
    levels = height.min() + np.ptp(height) * np.linspace(0, 1, LEVELS + 1) ** landscape.spread
    axes.contourf(x, y, height, levels, colors=[str(grey) for grey in np.linspace(0.84, 1.0, LEVELS)])
    axes.contour(x, y, height, levels, colors="0.7", linestyles="-", linewidths=0.6)


def _path(axes: Axes, points: Array, label: str, **look: Any) -> None:
    axes.plot(points[:, 0], points[:, 1], label=label, markersize=3.5, linewidth=1.2, **look)
    end = {**look, "linestyle": "none"}
    axes.plot(*points[-1], label="where it ends", markersize=9, markeredgecolor="k", **end)


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot, which would keep global state and might open a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _style() -> Any:
    """Uses Matplotlib's default settings while the pictures are drawn, and not the user's."""
    from matplotlib import style

    return style.context("default", after_reset=True)
