"""Draws the pictures of the documentation that the demo and the benchmarks do not draw: ``python docs/images.py``.

It needs matplotlib and scikit-learn: ``pip install 'gdm-optim[demo]'``.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

import gdm
from gdm import schedules
from gdm.demo.network import Network
from gdm.demo.training import BATCH, load_digits, orders

DPI = 110
BLACK, SKY, NAVY, VERMILION, GREEN = "#000000", "#A6D8F5", "#003A63", "#D55E00", "#009E73"

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


class Storage(NamedTuple):
    """How parameters and states are stored: whether parameters are bfloat16, and the options of the optimizer."""

    narrow: bool
    options: dict[str, Any]


BF16: dict[str, Any] = {"dtype": "bfloat16", "state_dtype": "bfloat16"}
RANDOM: dict[str, Any] = {**BF16, "rounding": "stochastic"}
SPLIT: dict[str, Any] = {"dtype": "bfloat16", "split_masters": True}
STORAGES = {
    "float32": Storage(False, {}),
    "all bfloat16, nearest": Storage(True, BF16),
    "all bfloat16, stochastic": Storage(True, RANDOM),
    "split masters": Storage(True, SPLIT),
    "int8 states": Storage(False, {"state_dtype": "int8"}),
}
METHODS: dict[str, Callable[..., Any]] = {
    "AdamW, lr 0.001": lambda params, **options: gdm.AdamW(params, 0.001, **options),
    "momentum 0.9, lr 0.01": lambda params, **options: gdm.SGD(params, 0.01, momentum=0.9, **options),
    "Lion, lr 0.0001": lambda params, **options: gdm.Lion(params, 0.0001, **options),
}
# The line of float32 is broad, since most others lie on it.
LINES: dict[str, dict[str, Any]] = {
    "float32": {"color": SKY, "linewidth": 7.0},
    "all bfloat16, nearest": {"color": VERMILION, "linewidth": 1.8, "marker": "^"},
    "all bfloat16, stochastic": {"color": NAVY, "linestyle": "--", "linewidth": 1.4, "marker": "o"},
    "split masters": {"color": BLACK, "linestyle": "-.", "linewidth": 1.4, "marker": "s", "markerfacecolor": "w"},
    "int8 states": {"color": GREEN, "linestyle": ":", "linewidth": 2.0, "marker": "D"},
}

# All storages of the table in docs/precision.md: whether parameters are bfloat16, and the options.
SIZES = {
    "float32": Storage(False, {}),
    "bfloat16 states": Storage(False, {"state_dtype": "bfloat16"}),
    "int8 states": Storage(False, {"state_dtype": "int8"}),
    "split masters": Storage(True, SPLIT),
    "split masters, bfloat16 states": Storage(True, {**SPLIT, "state_dtype": "bfloat16"}),
    "split masters, int8 states": Storage(True, {**SPLIT, "state_dtype": "int8"}),
    "all bfloat16": Storage(True, RANDOM),
    "bfloat16, int8 states": Storage(True, {**RANDOM, "state_dtype": "int8"}),
}


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


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 numbers, as an array of uint16."""
    result = np.empty(x.shape, np.uint16)
    gdm.SGD(x.copy(), copies=result, dtype="bfloat16")  # copies begin with the parameters
    return result


def train(method: str, storage: Storage, seed: int, epochs: int) -> tuple[list[float], float]:
    """Trains a network on handwritten digits. The loss of the training images before the first epoch and after each
    one; and in the end, how many percent of the test images are classified correctly."""
    digits, network = load_digits(seed), Network((64, 64, 10), np.random.default_rng(seed))
    stored = [to_bfloat16(x) for x in network.params] if storage.narrow else network.params
    opt = METHODS[method](stored, **storage.options, seed=seed)
    opt.bind(network.grads)

    def widen() -> None:
        """The network computes in float32, with the numbers that are stored."""
        for wide, x in zip(network.params, stored, strict=True):
            if wide is not x:
                wide[...] = (x.astype(np.uint32) << 16).view(np.float32)

    widen()
    losses = [network.loss(digits.train_images, digits.train_labels)]
    with threadpool_limits(1):
        for order in orders(digits, seed, epochs):
            for start in range(0, len(order) - BATCH + 1, BATCH):
                batch = order[start : start + BATCH]
                network.backward(digits.train_images[batch], digits.train_labels[batch])
                opt.step()
                widen()
            losses.append(network.loss(digits.train_images, digits.train_labels))
    return losses, 100 * network.accuracy(digits.test_images, digits.test_labels)


def draw_precision(file: Path, epochs: int = 40) -> None:
    """The training loss with each storage."""
    figure = Figure(figsize=(12.0, 4.6), dpi=DPI, layout="constrained")
    for axes, method in zip(figure.subplots(1, 3, sharey=True), METHODS, strict=True):
        for i, (name, storage) in enumerate(STORAGES.items()):
            losses, _ = train(method, storage, 0, epochs)
            axes.plot(losses, label=name, markersize=5.5, markevery=(2 * i, 10), **LINES[name])
        axes.set(title=method, xlabel="epoch (42 steps)", xlim=(0, epochs), yscale="log")
        axes.grid(color="0.9")
    ticks = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05)
    figure.axes[0].set_yticks(ticks, labels=[f"{x:g}" for x in ticks])
    figure.axes[0].set_yticks([], minor=True)
    figure.axes[0].set_ylabel("training loss (nats)")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(STORAGES), handlelength=4)
    figure.savefig(file)


def bytes_of(make: Callable[..., Any], storage: Storage) -> dict[str, float]:
    """The bytes for each parameter, as a class allocates them: of the parameter, its low bits, and its states."""
    params = np.zeros(12_800, np.uint16 if storage.narrow else np.float32)
    opt = make(params, **storage.options)
    found: dict[str, float] = {"parameter": params.itemsize, "low bits": 0.0}
    for name, x in opt._snapshot.states[0].items():
        key = "low bits" if name == "low_bits" else name.removesuffix("_scale")
        found[key] = found.get(key, 0.0) + x.nbytes / params.size
    return found


PARTS = {
    "parameter": (NAVY, "parameter"),
    "low bits": (SKY, "low bits of the parameter"),
    "velocity": (GREEN, "velocity"),
    "exp_avg": (GREEN, "velocity, exp_avg"),
    "exp_avg_sq": (VERMILION, "exp_avg_sq"),
}


def draw_bytes(file: Path) -> None:
    """The bytes for each parameter with each storage."""
    figure = Figure(figsize=(10.0, 3.9), dpi=DPI, layout="constrained")
    names = list(SIZES)[::-1]
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (title, method) in zip(
        panels, {"AdamW": "AdamW, lr 0.001", "momentum": "momentum 0.9, lr 0.01"}.items(), strict=True
    ):
        found = [bytes_of(METHODS[method], SIZES[name]) for name in names]
        left = np.zeros(len(names))
        for part, (color, label) in PARTS.items():
            widths = np.array([x.get(part, 0.0) for x in found])
            if widths.any():
                axes.barh(names, widths, left=left, color=color, edgecolor="w", label=label)
                left = left + widths
        for i, total in enumerate(left):
            axes.text(total + 0.15, i, f"{total:.2f}".rstrip("0").rstrip("."), va="center")
        axes.set(title=title, xlabel="bytes for each parameter", xlim=(0, 13.4))
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="0.9")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(file)


def muon(params: list[np.ndarray], lr: float = 0.001) -> gdm.Muon:
    """Muon for the matrices, AdamW with its default for the rest."""
    matrices, others = grouped(params)
    return gdm.Muon([{"params": matrices}, {"params": others, "method": "adamw"}], lr=lr)


# How each optimizer is made, from parameters and a learning rate.
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": gdm.SGD,
    "SGD, momentum 0.9": lambda params, lr=0.01: gdm.SGD(params, lr, momentum=0.9),
    "SGD, Nesterov 0.9": lambda params, lr=0.01: gdm.SGD(params, lr, momentum=0.9, nesterov=True),
    "ASGD": gdm.ASGD,
    "LARS": gdm.LARS,
    "Signum": gdm.Signum,
    "Lion": gdm.Lion,
    "Adagrad": gdm.Adagrad,
    "RMSprop": gdm.RMSprop,
    "Adadelta": gdm.Adadelta,
    "Adam": gdm.Adam,
    "AdamW": gdm.AdamW,
    "Adamax": gdm.Adamax,
    "NAdam": gdm.NAdam,
    "RAdam": gdm.RAdam,
    "AdEMAMix": gdm.AdEMAMix,
    "LAMB": gdm.LAMB,
    "ScheduleFreeSGD": gdm.ScheduleFreeSGD,
    "ScheduleFreeAdamW": gdm.ScheduleFreeAdamW,
    "Muon, AdamW for biases": muon,
    "Rprop (whole batches)": gdm.Rprop,
}
RATES = [a * 10.0**b for b in range(-5, 2) for a in (1, 3)]


def grouped(arrays: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The matrices, and the others."""
    return [[x for x in arrays if (x.ndim == 2) is whether] for whether in (True, False)]


def accuracy(method: str, lr: float | None, epochs: int, seeds: Sequence[int]) -> float:
    """How many percent of the test images are classified correctly after some epochs; the mean over seeds.

    With ``lr=None`` the optimizer has its default. A network whose numbers are not finite guesses: 10 percent.
    """
    found = []
    for seed in seeds:
        digits, network = load_digits(seed), Network((64, 64, 10), np.random.default_rng(seed))
        opt = OPTIMIZERS[method](network.params, **({} if lr is None else {"lr": lr}))
        opt.bind(grouped(network.grads) if method.startswith("Muon") else network.grads)
        size = len(digits.train_images) if "whole" in method else BATCH
        with threadpool_limits(1), np.errstate(all="ignore"):
            for order in orders(digits, seed, epochs):
                for start in range(0, len(order) - size + 1, size):
                    batch = order[start : start + size]
                    network.backward(digits.train_images[batch], digits.train_labels[batch])
                    opt.step()
            if hasattr(opt, "eval"):
                opt.eval()
            finite = all(np.isfinite(x).all() for x in network.params)
            found.append(100 * network.accuracy(digits.test_images, digits.test_labels) if finite else 10.0)
    return float(np.mean(found))


def draw_methods(
    file: Path, epochs: int = 10, rates: Sequence[float] = RATES, seeds: Sequence[int] = (0, 1, 2)
) -> None:
    """Every optimizer with its default learning rate, and with the one of some that is best for the first seed."""
    figure = Figure(figsize=(10.0, 7.0), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    lowest = 100.0
    for i, method in enumerate(OPTIMIZERS):
        default = accuracy(method, None, epochs, seeds)
        _, lr = max((accuracy(method, lr, epochs, seeds[:1]), -lr) for lr in rates)
        tuned = accuracy(method, -lr, epochs, seeds)
        axes.plot([default, tuned], [i, i], color="0.7", zorder=1)
        axes.scatter(default, i, s=45, facecolor="w", edgecolor=VERMILION, zorder=2, label=None if i else "default lr")
        axes.scatter(tuned, i, s=45, color=NAVY, zorder=3, label=None if i else "best lr of those tried")
        lowest = min(lowest, default, tuned)
        axes.text(100.5, i, f"lr {-lr:g}: {tuned:.1f} %", va="center", fontsize=9)
    axes.set_yticks(range(len(OPTIMIZERS)), list(OPTIMIZERS))
    axes.invert_yaxis()
    axes.set(xlabel=f"test images classified correctly after {epochs} epochs (%)", xlim=(lowest - 3, 100))
    axes.grid(color="0.92")
    axes.legend(loc="lower left")
    figure.savefig(file)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"
    with style.context("default", after_reset=True):
        draw_forms(folder / "forms.png")
        draw_schedules(folder / "schedules.png")
        draw_precision(folder / "precision.png")
        draw_bytes(folder / "bytes.png")
        draw_methods(folder / "methods.png")
