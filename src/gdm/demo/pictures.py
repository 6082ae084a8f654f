"""The demo's two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import Array
from .landscapes import LANDSCAPES, MOMENTUM, Landscape, descend
from .methods import CLASSIC, DESCENT, NESTEROV, TORCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .training import Run

DPI = 110
LEVELS = 12

# The blues and vermilion of Okabe and Ito, which colour-blind people can tell apart, with the blues lightened and
# darkened so that they differ in grey too. So do line styles and markers.
BLACK, SKY, NAVY, VERMILION = "#000000", "#A6D8F5", "#003A63", "#D55E00"

# The two forms of momentum coincide while lr is constant: dashes on a broad line show both.
CURVES: dict[str, dict[str, Any]] = {
    DESCENT.name: {"color": BLACK, "linestyle": "-", "linewidth": 1.5, "marker": "o"},
    TORCH.name: {"color": SKY, "linestyle": "-", "linewidth": 8.0},
    CLASSIC.name: {"color": NAVY, "linestyle": "--", "linewidth": 1.5},
    NESTEROV.name: {"color": VERMILION, "linestyle": "-.", "linewidth": 1.2, "marker": "^", "markerfacecolor": "w"},
}


def draw_digits(path: Path, runs: Sequence[Run]) -> None:
    """Draws training loss and test accuracy against the epoch."""
    with _style():
        figure = _figure(10.0, 4.6)
        loss, accuracy = figure.subplots(1, 2)
        for run in runs:
            _curve(loss, run, run.losses)
            _curve(accuracy, run, [100 * x for x in run.accuracies])
        loss.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
        accuracy.set(title="Test accuracy", xlabel="epoch", ylabel="correct (%)", ylim=(80, 100))
        accuracy.set_yticks(range(80, 101, 5))
        for axes in (loss, accuracy):
            axes.set_xlim(0, len(runs[0].losses) - 1)
            axes.grid(color="0.9")
        figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=4)
        figure.savefig(path)


def _curve(axes: Axes, run: Run, values: Sequence[float]) -> None:
    name = run.method.name
    label = f"{name} (dashes: the same path)" if name == CLASSIC.name else name
    axes.plot(values, label=label, markersize=6, markevery=max(1, len(values) // 8), **CURVES[name])


def draw_landscapes(path: Path) -> None:
    """Draws the paths of gradient descent and momentum through each landscape."""
    with _style():
        figure = _figure(12.0, 4.4)
        panels = figure.subplots(1, 3)
        for axes, landscape in zip(panels, LANDSCAPES, strict=True):
            _contours(axes, landscape)
            axes.plot(*landscape.start, "ks", markersize=9, zorder=3, label="start")
            axes.plot(*landscape.minimum, "k*", markersize=22, markerfacecolor="w", label="deepest point")
            _path(axes, descend(landscape, 0.0), "gradient descent", color=VERMILION, linestyle="-", marker="o")
            _path(axes, descend(landscape, MOMENTUM), f"momentum {MOMENTUM}", color=NAVY, linestyle="--", marker="^")
            axes.set_title(f"{landscape.title}\n{landscape.steps} steps each, lr {landscape.lr:g}", fontsize=11)
            axes.set(xlabel=r"parameter $\theta_1$", ylabel=r"parameter $\theta_2$")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
        figure.savefig(path)


def _contours(axes: Axes, landscape: Landscape) -> None:
    x, y = np.meshgrid(*(np.linspace(*window, 200) for window in landscape.window))
    height = landscape.height(x, y)
    # Closer together the lower, so that the bottoms show.
    levels = height.min() + np.ptp(height) * np.linspace(0, 1, LEVELS + 1) ** landscape.spread
    axes.contourf(x, y, height, levels, colors=[str(grey) for grey in np.linspace(0.84, 1.0, LEVELS)])
    axes.contour(x, y, height, levels, colors="0.7", linestyles="-", linewidths=0.6)


def _path(axes: Axes, points: Array, label: str, **look: Any) -> None:
    axes.plot(points[:, 0], points[:, 1], label=label, markersize=3.5, linewidth=1.2, **look)
    end = {**look, "linestyle": "none"}
    axes.plot(*points[-1], label="where it ends", markersize=9, markeredgecolor="k", **end)


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, not one of pyplot's: nothing global, and no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _style() -> Any:
    """Matplotlib's own settings for as long as the pictures are drawn, whatever the user has set."""
    from matplotlib import style

    return style.context("default", after_reset=True)
