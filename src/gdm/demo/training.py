"""Trains the network on handwritten digits, with gdm and with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import NamedTuple

import numpy as np

import gdm

from .._checks import Array
from .methods import InPlaceNumPy, Method
from .network import Network
from .progress import Progress

SIZES = (64, 256, 128, 10)
BATCH = 32
TEST_IMAGES = 450


class Digits(NamedTuple):
    """Images of handwritten digits, one per row, with 64 pixels in [0, 1]; and the digit that each image shows."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def load_digits(seed: int) -> Digits:
    """The UCI handwritten digits that come with scikit-learn, split at random."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(images[train], labels[train], images[test], labels[test])


StepMaker = Callable[[Method, Network, int], Callable[[], None]]


def gdm_step(method: Method, network: Network, steps: int) -> Callable[[], None]:
    """A function that makes one step of this network with gdm. The training has ``steps`` steps."""
    optimizer = method.optimizer(network.params, method.rate(steps), **method.options)
    optimizer.bind(network.grads)
    step: Callable[[], None] = optimizer.step
    return step


def numpy_step(method: Method, network: Network, steps: int) -> Callable[[], None]:
    """A function that makes one step of this network with NumPy, in place. The training has ``steps`` steps."""
    return InPlaceNumPy(method, network.params, network.grads, steps).step


class Trainer:
    """A network that is being trained, and the time that each step of its optimizer took."""

    def __init__(self, digits: Digits, seed: int, epochs: int, method: Method, make_step: StepMaker) -> None:
        self._digits = digits
        self.network = Network(SIZES, np.random.default_rng(seed))
        self._step = make_step(method, self.network, epochs * (len(digits.train_labels) // BATCH))
        self.step_ns: list[int] = []

    def epoch(self, order: Array) -> None:
        """Goes once through the images in this order, in full batches."""
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            self.network.backward(self._digits.train_images[batch], self._digits.train_labels[batch])
            begin = perf_counter_ns()
            self._step()
            self.step_ns.append(perf_counter_ns() - begin)


@dataclass
class Run:
    """The results of a training."""

    method: Method
    losses: list[float] = field(default_factory=list)  # of the training images: before the first epoch, after each one
    accuracies: list[float] = field(default_factory=list)  # of the test images, at the same times
    params: list[Array] = field(default_factory=list)
    gdm_ns: list[int] = field(default_factory=list)  # the time of each step
    numpy_ns: list[int] = field(default_factory=list)

    def record(self, network: Network, digits: Digits) -> None:
        """Adds the network's current loss and accuracy."""
        self.losses.append(network.loss(digits.train_images, digits.train_labels))
        self.accuracies.append(network.accuracy(digits.test_images, digits.test_labels))


def train(method: Method, digits: Digits, *, seed: int, epochs: int) -> Run:
    """Trains one network with gdm and another one with NumPy, which must end with the same weights.

    The two trainings take turns after each epoch. Because each has its own network, both steps meet the caches in the
    state in which a training leaves them.
    """
    ours, theirs = (Trainer(digits, seed, epochs, method, maker) for maker in (gdm_step, numpy_step))
    run = Run(method)
    run.record(ours.network, digits)
    with Progress(method.name, epochs) as progress:
        for epoch, order in enumerate(orders(digits, seed, epochs), start=1):
            for trainer in (ours, theirs) if epoch % 2 else (theirs, ours):
                trainer.epoch(order)
            run.record(ours.network, digits)
            progress.update(epoch)
    for a, b in zip(ours.network.params, theirs.network.params, strict=True):
        np.testing.assert_array_equal(a, b, f"{method.name}: gdm and NumPy ended with different weights")
    run.params, run.gdm_ns, run.numpy_ns = ours.network.params, ours.step_ns, theirs.step_ns
    return run


def train_on_reference(method: Method, digits: Digits, *, seed: int, epochs: int) -> list[Array]:
    """The final weights of the same training when gdm runs on its NumPy reference."""
    before = gdm.backend()
    gdm.set_backend("reference")
    try:
        trainer = Trainer(digits, seed, epochs, method, gdm_step)
        with Progress(f"{method.name}, reference", epochs) as progress:
            for epoch, order in enumerate(orders(digits, seed, epochs), start=1):
                trainer.epoch(order)
                progress.update(epoch)
    finally:
        gdm.set_backend(before)
    return trainer.network.params


def orders(digits: Digits, seed: int, epochs: int) -> list[Array]:
    """The order of the training images in each epoch."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(len(digits.train_labels)) for _ in range(epochs)]
