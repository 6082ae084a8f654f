"""Who is compared: gdm, the memory's limit, and every other CPU step of gradient descent with momentum.

Each peer is given the same parameters and gradients, steps with lr and momentum as below, and is checked against the
reference before it is timed. A peer whose library is not installed says so.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

import gdm

from .. import _backend
from .._checks import Array
from .timing import Contestant

LR = 1e-3
MOMENTUM = 0.9
STEPS = 3  # that every peer takes to be checked


class Peer(ABC):
    """A way to step, on copies of the parameters given.

    Raises ImportError if what it needs is not installed.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False  # gives the reference's bits

    def __init__(self, params: Sequence[Array], grads: Sequence[Array]) -> None:
        self.params = [p.copy() for p in params]
        self.grads = [g.copy() for g in grads]
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
        self.optimizer = gdm.SGD(self.params, lr=LR, momentum=MOMENTUM)
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
        return for_each_array(call, self.params, self.velocity, self.grads, momentum=gdm.momentum)


def for_each_array(
    call: str, params: list[Array], velocity: list[Array], grads: list[Array], **names: Any
) -> Contestant:
    """The call for each p, v, g; without a loop if there is one array only."""
    if len(params) == 1:
        return Contestant(call, {"p": params[0], "v": velocity[0], "g": grads[0], **names})
    arrays = list(zip(params, velocity, grads, strict=True))
    return Contestant(f"for p, v, g in arrays: {call}", {"arrays": arrays, **names})


class Limit(Peer):
    """The same bytes moved, nothing computed. Has variants: the fastest one counts."""

    name = "limit"

    def prepare(self) -> None:
        if _backend.native is None:
            raise ImportError("gdm's compiled module does not load")
        self.velocity = [np.zeros_like(p) for p in self.params]

    def contestant(self, variant: int = 0) -> Contestant:
        assert _backend.native is not None
        call = f"move({variant}, p, v, g)"
        return for_each_array(call, self.params, self.velocity, self.grads, move=_backend.native.move_bytes)

    def variants(self) -> list[Contestant]:
        assert _backend.native is not None
        arrays = self.params[0], self.velocity[0], self.grads[0]
        found: list[Contestant] = []
        while _backend.native.move_bytes(len(found), *arrays):
            found.append(self.contestant(len(found)))
        return found

    def check(self, wanted: Sequence[Array]) -> None:
        """Every byte has moved: the parameters hold the velocity, the velocity the gradients."""
        for contestant in self.variants():
            for p, v, g in zip(self.params, self.velocity, self.grads, strict=True):
                p[...], v[...] = 1, g + 1
            contestant.timer().timeit(1)
            for p, v, g in zip(self.params, self.velocity, self.grads, strict=True):
                np.testing.assert_array_equal(p, g + 1)
                np.testing.assert_array_equal(v, g)


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
        return for_each_array("kernel(p, v, g, lr, mu)", params, velocity, grads, **names)


class Torch(Peer):
    """torch.optim.SGD, in one of its implementations."""

    options: ClassVar[dict[str, bool]]

    def prepare(self) -> None:
        import torch

        self.tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in self.params]
        for tensor, g in zip(self.tensors, self.grads, strict=True):
            tensor.grad = torch.from_numpy(g)
        self.optimizer = torch.optim.SGD(self.tensors, lr=LR, momentum=MOMENTUM, **self.options)

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
    """optax.sgd under jit, with the old parameters and state given away (donated)."""

    name = "optax jit"

    def prepare(self) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        import optax

        optimizer = optax.sgd(LR, momentum=MOMENTUM)

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
    """Parameters and gradients of these shapes, float32: numbers that stay normal however many steps are taken."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    grads = [(rng.standard_normal(shape) * 1e-2).astype(np.float32) for shape in shapes]
    return params, grads


def enter(
    shapes: Sequence[tuple[int, ...]],
    peers: Sequence[type[Peer]] = PEERS,
    *,
    missing: Callable[[str, str], object] = lambda name, reason: None,
) -> dict[str, Peer]:
    """The peers that are here, ready and checked; ``missing`` is told of the others."""
    params, grads = make_params(shapes)
    entered: dict[str, Peer] = {}
    wanted = [p.copy() for p in params]
    velocity = [np.zeros_like(p) for p in params]
    for _ in range(STEPS):
        for p, v, g in zip(wanted, velocity, grads, strict=True):
            gdm.reference.momentum(p, v, g, lr=LR, momentum=MOMENTUM)
    for peer in peers:
        try:
            entered[peer.name] = peer(params, grads)
        except ImportError as reason:
            missing(peer.name, str(reason))
            continue
        entered[peer.name].check(wanted)
    return entered
