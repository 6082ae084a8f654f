"""The implementations that are compared: gdm, the memory's limit, and the CPU steps of other libraries.

Each peer gets the same parameters and gradients and makes steps of the same method. Its result is compared with the
reference before it is timed. A peer raises ImportError if its library is not installed or does not have the method.
"""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import gdm

from .._checks import Array
from .._stages import narrow
from .timing import Contestant

LR = 1e-3
MOMENTUM = 0.9
STEPS = 3  # steps that every peer makes before its result is checked


@dataclass(frozen=True)
class Method:
    """An update rule, and its names in the libraries."""

    name: str  # of the class, in gdm and torch.optim
    options: Mapping[str, Any]  # except the learning rate; the same in gdm and torch
    states: int
    optax: tuple[str, Mapping[str, Any]] | None  # optax's function, and its options
    torch: tuple[str, ...] = ("loop", "foreach", "fused")  # torch's implementations for the CPU
    reads: int = 0  # how many arrays a pass before the update reads

    @property
    def moved_bytes(self) -> int:
        """Bytes for one float32 element: the gradient is read, the parameter and the states are read and written."""
        return 4 * (2 * (1 + self.states) + 1 + self.reads)


FOR_ALL = ("loop", "foreach")
SGD = Method("SGD", {"momentum": MOMENTUM}, 1, ("sgd", {"momentum": MOMENTUM}))
METHODS = (
    SGD,
    Method("AdamW", {"weight_decay": 0.01}, 2, ("adamw", {"weight_decay": 0.01})),
    Method("Adagrad", {}, 1, ("adagrad", {"initial_accumulator_value": 0.0, "eps": 1e-30})),
    Method("RMSprop", {}, 1, ("rmsprop", {"decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False}), FOR_ALL),
    Method("Lion", {}, 1, ("lion", {"weight_decay": 0.0}), ()),
    Method("NAdam", {}, 2, None, FOR_ALL),
    Method("RAdam", {}, 2, ("radam", {}), FOR_ALL),
    Method("Adamax", {}, 2, ("adamax", {}), FOR_ALL),
    Method("Adadelta", {}, 2, ("adadelta", {"rho": 0.9}), FOR_ALL),
    Method("Rprop", {}, 2, None, FOR_ALL),
    Method("ASGD", {}, 1, None, FOR_ALL),
    Method("AdEMAMix", {}, 3, ("contrib.ademamix", {}), ()),
    Method("LARS", {}, 1, ("lars", {}), (), reads=2),
    Method("LAMB", {}, 2, ("lamb", {}), (), reads=4),
)


class Peer(ABC):
    """An implementation of a step. It has its own copies of the parameters and gradients.

    Raises ImportError if its library is not installed.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False  # whether it must give the same bits as the reference

    def __init__(self, params: Sequence[Array], grads: Sequence[Array], method: Method = SGD) -> None:
        self.params = [p.copy() for p in params]
        self.grads = [g.copy() for g in grads]
        self.method = method
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Makes everything that a step needs."""

    @abstractmethod
    def contestant(self) -> Contestant:
        """One step of all parameters, to be timed."""

    def results(self) -> list[Array]:
        """The current parameters."""
        return self.params

    def check(self, wanted: Sequence[Array]) -> None:
        """Makes three steps and compares the result with the reference's. Raises AssertionError if they differ."""
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


class GdmStored(Gdm):
    """gdm with narrow storage, or more around the rule. Its reference has the same options."""

    around: ClassVar[dict[str, Any]]
    all_bfloat16: ClassVar[bool] = False  # parameters and gradients, too
    # In NumPy, to round many numbers stochastically takes minutes. An element does not depend on those after it.
    checked: ClassVar[int | None] = 1 << 18

    def prepare(self) -> None:
        if self.all_bfloat16:
            self.params, self.grads = ([narrow(x, "bfloat16") for x in xs] for xs in (self.params, self.grads))
        self.begin = [p.ravel()[: self.checked].copy() for p in self.params]
        self.optimizer = self.optimizer_of(self.params)
        self.optimizer.bind(self.grads)

    def optimizer_of(self, params: list[Array]) -> Any:
        return getattr(gdm, self.method.name)(params, lr=LR, **self.method.options, **self.around)

    def results(self) -> list[Array]:
        return [p.ravel()[: self.checked] for p in self.params]

    def check(self, wanted: Sequence[Array]) -> None:
        with _on_reference():
            reference = self.optimizer_of(self.begin)
            for _ in range(STEPS):
                reference.step([g.ravel()[: self.checked] for g in self.grads])
        super().check(self.begin)


class GdmBfloat16States(GdmStored):
    name = "gdm, bfloat16 states"
    around: ClassVar = {"state_dtype": "bfloat16"}


class GdmStochasticStates(GdmStored):
    name = "gdm, bf16 states, stochastic"
    around: ClassVar = {"state_dtype": "bfloat16", "rounding": "stochastic"}


class GdmInt8States(GdmStored):
    name = "gdm, int8 states"
    around: ClassVar = {"state_dtype": "int8"}


class GdmBfloat16(GdmStored):
    name = "gdm, all bfloat16"
    around: ClassVar = {"dtype": "bfloat16", "state_dtype": "bfloat16"}
    all_bfloat16 = True


class GdmStochastic(GdmStored):
    name = "gdm, all bf16, stochastic"
    around: ClassVar = {"dtype": "bfloat16", "state_dtype": "bfloat16", "rounding": "stochastic"}
    all_bfloat16 = True


CLIP, AVERAGE = 1.0, 0.999


class GdmAround(GdmStored):
    """The gradients are clipped by their norm, and the parameters are averaged."""

    name = "gdm, clip and average"
    around: ClassVar = {"max_grad_norm": CLIP, "average": AVERAGE}
    checked = None  # all elements: the norm depends on them


class GdmUnbound(Gdm):
    name = "gdm, step(grads)"

    def contestant(self) -> Contestant:
        return Contestant("step(grads)", {"step": self.optimizer.step, "grads": self.grads})


class GdmFunction(Peer):
    """gdm.momentum, called once for each array."""

    name = "gdm.momentum"
    exact = True

    def prepare(self) -> None:
        self.velocity = [np.zeros_like(p) for p in self.params]

    def contestant(self) -> Contestant:
        call = f"momentum(p, v, g, lr={LR}, momentum={MOMENTUM})"
        arrays = {"p": self.params, "v": self.velocity, "g": self.grads}
        return for_each_array(call, arrays, momentum=gdm.momentum)


def for_each_array(call: str, arrays: Mapping[str, list[Array]], **names: Any) -> Contestant:
    """A contestant that makes the call once for each set of arrays. If there is one set only, there is no loop."""
    sets = list(zip(*arrays.values(), strict=True))
    if len(sets) == 1:
        return Contestant(call, {**dict(zip(arrays, sets[0], strict=True)), **names})
    return Contestant(f"for {', '.join(arrays)} in arrays: {call}", {"arrays": sets, **names})


class Limit(Peer):
    """Moves the same bytes and computes nothing, in several variants. The fastest variant is the limit."""

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
        """Checks that every byte has moved: each array must have the former content of the next one."""
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
    """NumPy as most people write it first."""

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
    """The fastest way in NumPy: in place, with scratch memory that exists beforehand."""

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
    """torch's optimizer, with one of its implementations."""

    implementation: ClassVar[str]
    options: ClassVar[dict[str, bool]]

    def prepare(self) -> None:
        import torch

        if self.implementation not in self.method.torch:
            raise ImportError(f"torch does not have this {self.method.name} for the CPU")

        self.tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in self.params]
        for tensor, g in zip(self.tensors, self.grads, strict=True):
            tensor.grad = torch.from_numpy(g)
        known = {name: x for name, x in self.options.items() if name != "fused" or "fused" in self.method.torch}
        self.optimizer = getattr(torch.optim, self.method.name)(self.tensors, lr=LR, **self.method.options, **known)

    def contestant(self) -> Contestant:
        return Contestant("step()", {"step": self.optimizer.step})

    def results(self) -> list[Array]:
        return [tensor.detach().numpy() for tensor in self.tensors]


class TorchLoop(Torch):
    name = "torch for-loop"
    implementation = "loop"
    options: ClassVar = {"foreach": False, "fused": False}


class TorchForeach(Torch):
    name = "torch foreach"
    implementation = "foreach"
    options: ClassVar = {"foreach": True}


class TorchFused(Torch):
    name = "torch fused"
    implementation = "fused"
    options: ClassVar = {"fused": True}


class TorchAround(TorchFused):
    """The same as ``GdmAround``, as torch's own functions do it."""

    name = "torch, clip and average"

    def contestant(self) -> Contestant:
        import torch

        averages = [x.detach().clone() for x in self.tensors]
        clip, average = torch.nn.utils.clip_grad_norm_, torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE)

        def step() -> None:
            clip(self.tensors, CLIP)
            self.optimizer.step()
            average(averages, self.tensors, 1)

        return Contestant("step()", {"step": step})

    def check(self, wanted: Sequence[Array]) -> None:
        reference = GdmAround([x.copy() for x in self.params], self.grads, self.method)
        reference.contestant().timer().timeit(STEPS)
        super().check(reference.params)


class Optax(Peer):
    """optax's optimizer under jit. The old parameters and states are donated, so that JAX can reuse their memory."""

    name = "optax jit"

    def prepare(self) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        import optax

        if self.method.optax is None:
            raise ImportError(f"optax does not have this {self.method.name}")
        function, options = self.method.optax
        optimizer = operator.attrgetter(function)(optax)(LR, **options)

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
    """Float32 parameters and gradients of these shapes. They do not become subnormal after many steps.

    No gradient is near 0, because optax adds Adagrad's eps in another place, which makes a difference there.
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
    """The peers that are installed, ready and checked. ``missing`` is called with the name and reason of each other."""
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
    """The parameters after three steps of the reference."""
    wanted = [p.copy() for p in params]
    with _on_reference():
        optimizer = getattr(gdm, method.name)(wanted, lr=LR, **method.options)
        for _ in range(STEPS):
            optimizer.step(grads)
    return wanted


@contextmanager
def _on_reference() -> Iterator[None]:
    before = gdm.backend()
    gdm.set_backend("reference")
    try:
        yield
    finally:
        gdm.set_backend(before)
