"""The text that the demo prints."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

import gdm

from .._checks import Array
from .methods import CHECKED, MOMENTUM
from .training import BATCH, SIZES, TEST_IMAGES, Digits, Run

TARGET = 0.95

Row = tuple[str, str, str, str, str, str, str]


def heading(digits: Digits, seed: int, epochs: int) -> str:
    """The data, the network, and the settings."""
    network = "-".join(map(str, SIZES))
    backend = f"{gdm.backend()} backend, {gdm.isa()}" if gdm.backend() == "native" else "reference backend"
    return f"""\
gdm {gdm.__version__}, {backend}
Data: UCI handwritten digits, {len(digits.train_labels)} images to train on, {len(digits.test_labels)} to test.
Network: {network}, ReLU, softmax cross-entropy, float32.
Batches of {BATCH}, {epochs} epochs, seed {seed}; momentum {MOMENTUM}. The adaptive methods have gdm's
defaults, except for RMSprop's lr.
"""


def table(runs: Sequence[Run]) -> str:
    """A line for each method: how fast it learned, and how long its steps took."""
    head = [("", "", "epochs to", "final test", "gdm", "NumPy", "")]
    head += [("", "", "95 % test", "accuracy", "step", "step", "NumPy")]
    head += [("method", "lr", "accuracy", "(%)", "(us)", "(us)", "/ gdm")]
    lines = ["{:<29}{:>7}{:>10}{:>11}{:>7}{:>8}{:>8}".format(*row).rstrip() for row in [*head, *map(_row, runs)]]
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[: len(head)], rule, *lines[len(head) :], "", _footnote(runs[0])])


def _row(run: Run) -> Row:
    ours, theirs = median(run.gdm_ns) / 1000, median(run.numpy_ns) / 1000
    reached = next((str(epoch) for epoch, x in enumerate(run.accuracies) if x >= TARGET), "not yet")
    accuracy = f"{100 * run.accuracies[-1]:.1f}"
    lr = f"{run.method.lr:g}"
    return run.method.name, lr, reached, accuracy, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.1f}"


def _footnote(run: Run) -> str:
    parameters, arrays, steps = sum(p.size for p in run.params), len(run.params), len(run.gdm_ns)
    farther = f"{1 / (1 - MOMENTUM):.0f}"
    return f"""\
Step: {parameters:,} parameters in {arrays} arrays; the median of {steps:,} steps, in microseconds.
NumPy: a second training, which updates each array in place, with out= and scratch
memory that exists beforehand. It ended with the same weights.
lr: with warm-up and cosine, the highest value. With momentum {MOMENTUM}, a constant gradient
moves a parameter {farther} times as far at the same lr. The lr of an adaptive method has
another meaning.
Accuracy: one seed and {TEST_IMAGES} images, so a difference of one point says little.
"""


def different_bits(a: Sequence[Array], b: Sequence[Array]) -> int:
    """The number of elements of these float32 arrays that differ in at least one bit."""
    return sum(int(np.count_nonzero(x.view(np.uint32) != y.view(np.uint32))) for x, y in zip(a, b, strict=True))


def verdict(different: Sequence[int], total: int) -> str:
    """The result of the check against the reference, for each method that was checked."""
    lines = ["The same training on the NumPy reference:"]
    for method, count in zip(CHECKED, different, strict=True):
        result = "identical to the last bit" if count == 0 else f"NOT identical: {count:,} differ"
        lines.append(f"  {method.name}: the {total:,} weights are {result}.")
    if gdm.backend() != "native":
        lines.append("This proves nothing, because the first training ran on the reference too.")
    return "\n".join(lines)
