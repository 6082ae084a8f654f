"""Trains the network on handwritten digits, with gdm and, for comparison, with NumPy."""

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
    """Images of handwritten digits: 64 pixels in [0, 1] to a row, and which digit each is."""

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
    """The function that steps this network with gdm, so many times in all."""
    optimizer = method.optimizer(network.params, method.rate(steps), **method.options)
    optimizer.bind(network.grads)
    step: Callable[[], None] = optimizer.step
    return step


def numpy_step(method: Method, network: Network, steps: int) -> Callable[[], None]:
    """The function that steps this network with NumPy in place, so many times in all."""
    return InPlaceNumPy(method, network.params, network.grads, steps).step


class Trainer:
    """A network in training, and how long each step of its optimizer took."""

    def __init__(self, digits: Digits, seed: int, epochs: int, method: Method, make_step: StepMaker) -> None:
        self._digits = digits
        self.network = Network(SIZES, np.random.default_rng(seed))
        self._step = make_step(method, self.network, epochs * (len(digits.train_labels) // BATCH))
        self.step_ns: list[int] = []

    def epoch(self, order: Array) -> None:
        """Once through the images in this order, in full batches."""
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            self.network.backward(self._digits.train_images[batch], self._digits.train_labels[batch])
            begin = perf_counter_ns()
            self._step()
            self.step_ns.append(perf_counter_ns() - begin)


@dataclass
class Run:
    """What came of a training."""

    method: Method
    losses: list[float] = field(default_factory=list)  # over the training images, before and after each epoch
    accuracies: list[float] = field(default_factory=list)  # over the test images, before and after each epoch
    params: list[Array] = field(default_factory=list)
    gdm_ns: list[int] = field(default_factory=list)  # what each step took
    numpy_ns: list[int] = field(default_factory=list)

    def record(self, network: Network, digits: Digits) -> None:
        """Adds how good the network is now."""
        self.losses.append(network.loss(digits.train_images, digits.train_labels))
        self.accuracies.append(network.accuracy(digits.test_images, digits.test_labels))


def train(method: Method, digits: Digits, *, seed: int, epochs: int) -> Run:
    """Trains twice, epoch by epoch in turn: with gdm, and with NumPy in place, which must end with the same weights.

    Each has a network of its own, so that both find the caches as a training leaves them.
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
    """The weights that the same training ends with when gdm runs on its NumPy reference."""
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
    """The order in which each epoch takes the training images."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(len(digits.train_labels)) for _ in range(epochs)]
