"""Who is compared: gdm, the memory's limit, and every other CPU step of the same rule.

Each peer is given the same parameters and gradients, steps as the method says, and is checked against the reference
before it is timed. A peer whose library is not installed, or has no such step, says so.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import gdm

from .._checks import Array
from .timing import Contestant

LR = 1e-3
MOMENTUM = 0.9
STEPS = 3  # that every peer takes to be checked


@dataclass(frozen=True)
class Method:
    """An update rule, and what the libraries call it."""

    name: str  # of gdm's class, and torch.optim's
    options: Mapping[str, Any]  # beside the learning rate, alike in gdm and torch
    states: int
    optax: tuple[str, Mapping[str, Any]]  # its function, and its options
    torch: tuple[str, ...] = ("loop", "foreach", "fused")  # the implementations that it has for the CPU

    @property
    def moved_bytes(self) -> int:
        """Of an element of a float32 step: the gradient read, the parameter and the states read and written."""
        return 4 * (2 * (1 + self.states) + 1)


SGD = Method("SGD", {"momentum": MOMENTUM}, 1, ("sgd", {"momentum": MOMENTUM}))
METHODS = (
    SGD,
    Method("AdamW", {"weight_decay": 0.01}, 2, ("adamw", {"weight_decay": 0.01})),
    Method("Adagrad", {}, 1, ("adagrad", {"initial_accumulator_value": 0.0, "eps": 1e-30})),
    Method("RMSprop", {}, 1, ("rmsprop", {"decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False}), ("loop", "foreach")),
    Method("Lion", {}, 1, ("lion", {"weight_decay": 0.0}), ()),
)


class Peer(ABC):
    """A way to step, on copies of the parameters given.

    Raises ImportError if what it needs is not installed.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False  # gives the reference's bits

    def __init__(self, params: Sequence[Array], grads: Sequence[Array], method: Method = SGD) -> None:
        self.params = [p.copy() for p in params]
        self.grads = [g.copy() for g in grads]
        self.method = method
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Makes ready to step."""

    @abstractmethod
    def contestant(self) -> Contestant:
        """One step of all parameters, to be timed."""

    def results(self) -> list[Array]:
        """The parameters as they are now."""
        return self.params

    def check(self, wanted: Sequence[Array]) -> None:
        """Takes three steps and compares with what the reference comes to. AssertionError if they differ."""
        self.contestant().timer().timeit(STEPS)
        for ours, theirs in zip(self.results(), wanted, strict=True):
            if self.exact:
                np.testing.assert_array_equal(ours, theirs, f"{self.name} differs from the reference")
            else:
                np.testing.assert_allclose(ours, theirs, 1e-5, 1e-7, err_msg=f"{self.name} differs from the reference")


class Gdm(Peer):
    name = "gdm"
    exact = True

    def prepare(self) -> None:
        self.optimizer = getattr(gdm, self.method.name)(self.params, lr=LR, **self.method.options)
        self.optimizer.bind(self.grads)

    def contestant(self) -> Contestant:
        return Contestant("step()", {"step": self.optimizer.step})


class GdmUnbound(Gdm):
    name = "gdm, step(grads)"

    def contestant(self) -> Contestant:
        return Contestant("step(grads)", {"step": self.optimizer.step, "grads": self.grads})


class GdmFunction(Peer):
    """gdm.momentum, once for each array."""

    name = "gdm.momentum"
    exact = True

    def prepare(self) -> None:
        self.velocity = [np.zeros_like(p) for p in self.params]

    def contestant(self) -> Contestant:
        call = f"momentum(p, v, g, lr={LR}, momentum={MOMENTUM})"
        arrays = {"p": self.params, "v": self.velocity, "g": self.grads}
        return for_each_array(call, arrays, momentum=gdm.momentum)


def for_each_array(call: str, arrays: Mapping[str, list[Array]], **names: Any) -> Contestant:
    """The call for each set of arrays, by their names; without a loop if there is one set only."""
    sets = list(zip(*arrays.values(), strict=True))
    if len(sets) == 1:
        return Contestant(call, {**dict(zip(arrays, sets[0], strict=True)), **names})
    return Contestant(f"for {', '.join(arrays)} in arrays: {call}", {"arrays": sets, **names})


class Limit(Peer):
    """The same bytes moved, nothing computed. Has variants: the fastest one counts."""

    name = "limit"

    def prepare(self) -> None:
        from ._limit import move_bytes

        self.move_bytes = move_bytes
        self.states = [[np.zeros_like(p) for p in self.params] for _ in range(self.method.states)]
        self.rows = [self.params, *self.states, self.grads]

    def contestant(self, variant: int = 0) -> Contestant:
        arrays = {f"x{k}": row for k, row in enumerate(self.rows)}
        return for_each_array(f"move({variant}, {', '.join(arrays)})", arrays, move=self.move_bytes)

    def variants(self) -> list[Contestant]:
        arrays = [row[0] for row in self.rows]
        found: list[Contestant] = []
        while self.move_bytes(len(found), *arrays):
            found.append(self.contestant(len(found)))
        return found

    def check(self, wanted: Sequence[Array]) -> None:
        """Every byte has moved: into each array what the next one held, up to the gradients."""
        for contestant in self.variants():
            for arrays in zip(*self.rows, strict=True):
                for k, x in enumerate(arrays[:-1]):
                    x[...] = arrays[-1] + (len(self.rows) - k)
            before = [[x.copy() for x in row] for row in self.rows]
            contestant.timer().timeit(1)
            for row, moved in zip(self.rows, before[1:], strict=False):
                for x, y in zip(row, moved, strict=True):
                    np.testing.assert_array_equal(x, y)


class NumPyNaive(Peer):
    """What one writes first."""

    name = "NumPy"

    def prepare(self) -> None:
        self.velocity = [np.zeros_like(p) for p in self.params]

    def contestant(self) -> Contestant:
        def step() -> None:
            for i, g in enumerate(self.grads):
                self.velocity[i] = MOMENTUM * self.velocity[i] + g
                self.params[i] -= LR * self.velocity[i]

        return Contestant("step()", {"step": step})


class NumPyOut(Peer):
    """The best NumPy can do: in place, with scratch memory made beforehand."""

    name = "NumPy out="

    def prepare(self) -> None:
        self.velocity = [np.zeros_like(p) for p in self.params]
        shared = np.empty(max(p.size for p in self.params), self.params[0].dtype)
        self.scratch = [shared[: p.size].reshape(p.shape) for p in self.params]

    def contestant(self) -> Contestant:
        buffers = list(zip(self.params, self.velocity, self.grads, self.scratch, strict=True))
        multiply, add, subtract = np.multiply, np.add, np.subtract

        def step() -> None:
            for p, v, g, scratch in buffers:
                multiply(v, MOMENTUM, out=v)
                add(v, g, out=v)
                multiply(v, LR, out=scratch)
                subtract(p, scratch, out=p)

        return Contestant("step()", {"step": step})


class Numba(Peer):
    """A compiled loop, called once for each array."""

    name = "Numba"

    def prepare(self) -> None:
        from numba import njit

        def momentum(p: Any, v: Any, g: Any, lr: Any, mu: Any) -> None:
            for i in range(p.size):
                v[i] = mu * v[i] + g[i]
                p[i] -= lr * v[i]

        self.kernel = njit(fastmath=False, error_model="numpy")(momentum)
        self.velocity = [np.zeros_like(p) for p in self.params]

    def contestant(self) -> Contestant:
        params, velocity, grads = ([x.ravel() for x in xs] for xs in (self.params, self.velocity, self.grads))
        names: dict[str, Any] = {"kernel": self.kernel, "lr": np.float32(LR), "mu": np.float32(MOMENTUM)}
        return for_each_array("kernel(p, v, g, lr, mu)", {"p": params, "v": velocity, "g": grads}, **names)


class Torch(Peer):
    """torch's optimizer, in one of its implementations."""

    options: ClassVar[dict[str, bool]]

    def prepare(self) -> None:
        import torch

        if self.name.split()[1].removeprefix("for-") not in self.method.torch:
            raise ImportError(f"torch has no such {self.method.name} for the CPU")

        self.tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in self.params]
        for tensor, g in zip(self.tensors, self.grads, strict=True):
            tensor.grad = torch.from_numpy(g)
        self.optimizer = getattr(torch.optim, self.method.name)(
            self.tensors, lr=LR, **self.method.options, **self.options
        )

    def contestant(self) -> Contestant:
        return Contestant("step()", {"step": self.optimizer.step})

    def results(self) -> list[Array]:
        return [tensor.detach().numpy() for tensor in self.tensors]


class TorchLoop(Torch):
    name = "torch for-loop"
    options: ClassVar = {"foreach": False, "fused": False}


class TorchForeach(Torch):
    name = "torch foreach"
    options: ClassVar = {"foreach": True}


class TorchFused(Torch):
    name = "torch fused"
    options: ClassVar = {"fused": True}


class Optax(Peer):
    """optax's optimizer under jit, with the old parameters and state given away (donated)."""

    name = "optax jit"

    def prepare(self) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        import optax

        function, options = self.method.optax
        optimizer = getattr(optax, function)(LR, **options)

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.update = jax.jit(update, donate_argnums=(0, 1))
        self.block = jax.block_until_ready
        self.jax_params = [jax.device_put(p.copy()) for p in self.params]
        self.jax_grads = [jax.device_put(g.copy()) for g in self.grads]
        self.state = jax.jit(optimizer.init)(self.jax_params)

    def contestant(self) -> Contestant:
        def step() -> None:
            self.jax_params, self.state = self.block(self.update(self.jax_params, self.state, self.jax_grads))

        return Contestant("step()", {"step": step})

    def results(self) -> list[Array]:
        return [np.asarray(p).copy() for p in self.jax_params]


PEERS: tuple[type[Peer], ...] = (
    Gdm,
    Limit,
    NumPyNaive,
    NumPyOut,
    Numba,
    TorchLoop,
    TorchForeach,
    TorchFused,
    Optax,
)


def make_params(shapes: Sequence[tuple[int, ...]]) -> tuple[list[Array], list[Array]]:
    """Parameters and gradients of these shapes, float32: numbers that stay normal however many steps are taken.

    No gradient is near 0, where it would matter that optax adds Adagrad's eps elsewhere.
    """
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    drawn = [rng.standard_normal(shape) for shape in shapes]
    grads = [((x + np.copysign(0.1, x)) * 1e-2).astype(np.float32) for x in drawn]
    return params, grads


def enter(
    shapes: Sequence[tuple[int, ...]],
    peers: Sequence[type[Peer]] = PEERS,
    method: Method = SGD,
    *,
    missing: Callable[[str, str], object] = lambda name, reason: None,
) -> dict[str, Peer]:
    """The peers that are here, ready and checked; ``missing`` is told of the others."""
    params, grads = make_params(shapes)
    entered: dict[str, Peer] = {}
    wanted = _reference(params, grads, method)
    for peer in peers:
        try:
            entered[peer.name] = peer(params, grads, method)
        except ImportError as reason:
            missing(peer.name, str(reason))
            continue
        entered[peer.name].check(wanted)
    return entered


def _reference(params: Sequence[Array], grads: Sequence[Array], method: Method) -> list[Array]:
    """What the reference comes to."""
    wanted = [p.copy() for p in params]
    before = gdm.backend()
    gdm.set_backend("reference")
    try:
        optimizer = getattr(gdm, method.name)(wanted, lr=LR, **method.options)
        for _ in range(STEPS):
            optimizer.step(grads)
    finally:
        gdm.set_backend(before)
    return wanted
