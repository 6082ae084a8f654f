"""A multi-layer perceptron in NumPy, with ReLU between the layers, and softmax and cross-entropy at the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

from .._checks import Array


class Network:
    """A network whose backpropagation always writes to the same gradient arrays, as ``optimizer.bind`` needs it.

    Parameters
    ----------
    sizes : sequence of int
        The number of inputs, of units in each hidden layer, and of classes.
    rng : numpy.random.Generator
        Draws the initial weights: normal, with variance 2 / inputs of the layer (K. He et al., 2015). Biases are 0.
    dtype : float32 or float64
        The dtype of the parameters. It is also that of all arithmetic if the images have it.

    Attributes
    ----------
    params, grads : list of array
        The weights of all layers, then the biases of all layers; and the gradient of the loss for each of them.
    """

    def __init__(self, sizes: Sequence[int], rng: np.random.Generator, dtype: DTypeLike = np.float32) -> None:
        self._weights: list[Array] = [
            (rng.standard_normal((inputs, units)) * np.sqrt(2 / inputs)).astype(dtype)
            for inputs, units in pairwise(sizes)
        ]
        self._biases: list[Array] = [np.zeros(units, dtype) for units in sizes[1:]]
        self._weight_grads = [np.zeros_like(w) for w in self._weights]
        self._bias_grads = [np.zeros_like(b) for b in self._biases]
        self.params = self._weights + self._biases
        self.grads = self._weight_grads + self._bias_grads

    def backward(self, images: Array, labels: Array) -> None:
        """Sets ``grads`` to the gradients of the mean loss of these images (one per row)."""
        layers = self._forward(images)
        delta = np.exp(_log_softmax(layers[-1]))
        delta[np.arange(len(labels)), labels] -= 1
        delta /= len(labels)
        for i in reversed(range(len(self._weights))):
            np.matmul(layers[i].T, delta, out=self._weight_grads[i])
            np.sum(delta, axis=0, out=self._bias_grads[i])
            if i > 0:
                delta = (delta @ self._weights[i].T) * (layers[i] > 0)

    def loss(self, images: Array, labels: Array) -> float:
        """The mean cross-entropy of these images, in nats."""
        log_probabilities = _log_softmax(self._forward(images)[-1])
        return -float(np.mean(log_probabilities[np.arange(len(labels)), labels]))

    def accuracy(self, images: Array, labels: Array) -> float:
        """The fraction of these images that is classified correctly."""
        return float(np.mean(np.argmax(self._forward(images)[-1], axis=1) == labels))

    def _forward(self, images: Array) -> list[Array]:
        """The input of each layer, and at the end the output of the network."""
        layers = [images]
        for weights, biases in zip(self._weights[:-1], self._biases[:-1], strict=True):
            layers.append(np.maximum(layers[-1] @ weights + biases, 0))
        layers.append(layers[-1] @ self._weights[-1] + self._biases[-1])
        return layers


def _log_softmax(logits: Array) -> Array:
    # The maximum is subtracted, so that no exponential overflows.
    shifted: Array = logits - np.max(logits, axis=1, keepdims=True)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
    return result
