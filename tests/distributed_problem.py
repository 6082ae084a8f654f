"""A problem whose gradients are the same bits for any number of processes, and its training in one process.

The batch of a step is six samples; each of one, two, three or six ranks takes its share. The gradient of a sample is
6·k/64, with an integer |k| <= 40. In float32 and float64 all that is done with such gradients is exact, in any order:

- A sum of such numbers is such a number. It has few bits, so nothing is rounded.
- A mean divides by 2, 3 or 6, or multiplies by the rounded 1/2, 1/3 or 1/6. The rounded 1/3 is 1/3 times 1 + 2**-25
  in float32, and 1/3 times 1 - 2**-54 in float64. So 3·k times it differs from k by at most half a unit in the last
  place, and is rounded to k. The rounded 1/6 is half of it.

So the mean over ranks of their means is the mean of the batch, bit for bit. The gradients depend on the parameters: if
a step rounds something differently, the next gradients may differ too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import lr_scheduler

import gdm

SAMPLES, FEATURES = 6, 64
STEPS = 20
# Six large parameters of about the same size, which two or three ranks can share evenly, and small ones: when these are
# cut into as many parts as there are ranks, some ranks have nothing of them.
SHAPES = [
    [(40, 25), (125, 8), (1,), (4,)],
    [(50, 20), (250, 4), (2, 8)],
    [(30, 33), (90, 11), (7,), (3, 2)],
]


class Block(nn.Module):
    """Some parameters. Its output is the sum, over samples, of the products of the parameters with their gradients."""

    def __init__(self, shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for i, shape in enumerate(shapes):
            self.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)))

    def forward(self, samples: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        for param in self.parameters():
            total = total + (param * self.gradients(param.detach(), samples)).sum()
        return total

    @staticmethod
    def gradients(param: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """One gradient for each sample: 6·k/64."""
        feature = torch.arange(param.numel()).reshape(param.shape) % FEATURES
        return 6 * ((8 * param).round().clamp(-32, 32) + samples[:, feature]) / 64


class Model(nn.Module):
    """Blocks, of which the last is used by those samples only whose first feature is positive."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(shapes, seed + i, dtype) for i, shapes in enumerate(SHAPES))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        total = samples.new_zeros(())
        for block in self.blocks[:-1]:
            total = block(samples, total)
        using = samples[samples[:, 0] > 0]
        if len(using):
            total = self.blocks[-1](using, total)
        return total / len(samples)


# Which samples use the last block, for each step: all; none in every fourth step; in some steps only those of rank 0.
USES: dict[str, Callable[[int], int]] = {
    "always": lambda step: SAMPLES,
    "not in some steps": lambda step: 0 if step % 4 == 1 else SAMPLES,
    "not on some ranks": lambda step: [SAMPLES, 0, SAMPLES // 3, SAMPLES][step % 4],
}


def batch(step: int, uses: str, dtype: torch.dtype, rank: int, world: int) -> torch.Tensor:
    """This rank's share of the samples of a step."""
    generator = torch.Generator().manual_seed(step)
    samples = torch.randint(-8, 9, (SAMPLES, FEATURES), generator=generator).to(dtype)
    samples[:, 0] = torch.arange(SAMPLES) < USES[uses](step)
    return samples[rank * SAMPLES // world : (rank + 1) * SAMPLES // world]


class Spec(NamedTuple):
    """An optimizer that can be sent to other processes."""

    name: str
    options: dict[str, Any]
    library: str = "gdm"

    def cls(self) -> type[torch.optim.Optimizer]:
        return getattr({"gdm": gdm.torch, "torch": torch.optim}[self.library], self.name)

    def arguments(self) -> dict[str, Any]:
        return self.options | ({"threads": 1} if self.library == "gdm" else {})

    def make(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        return self.cls()(params, **self.arguments())


SPECS = {
    "SGD": Spec("SGD", {"lr": 0.05}),
    "SGD-momentum": Spec("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam": Spec("Adam", {"lr": 0.02, "weight_decay": 0.01}),
    "AdamW": Spec("AdamW", {"lr": 0.02, "weight_decay": 0.1}),
    "AdamW-amsgrad": Spec("AdamW", {"lr": 0.02, "amsgrad": True, "maximize": True}),
    "NAdam": Spec("NAdam", {"lr": 0.02}),
    "Adagrad": Spec("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.1}),
    "RMSprop": Spec("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
}


# Schedules that change an option in each step: the learning rate, and the first one momentum or betas too.
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], Any]] = {
    "one-cycle": lambda optimizer, steps: lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps),
    "cosine": lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
}

# A value is clipped without rounding. A norm is rounded, in an order that depends on the ranks.
CLIPS: dict[str, Callable[[nn.Module], Any]] = {
    "value": lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.5),
    "norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1.0),
}


class Course(NamedTuple):
    """How a training goes, beside its model and optimizer."""

    steps: range = range(STEPS)
    uses: str = "always"
    dtype: torch.dtype = torch.float32
    clip: str | None = None
    schedule: str | None = None
    set_to_none: bool = True


@dataclass
class Result:
    """What a training ended with, and the gradients of its steps, as whole arrays by the parameters' names."""

    params: dict[str, np.ndarray]
    grads: list[dict[str, np.ndarray | None]]
    extra: dict[str, Any] = field(default_factory=dict)


def whole(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor, or of all parts of a distributed one (every rank must call this)."""
    tensor = tensor.detach()
    return array(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)


def array(tensor: torch.Tensor) -> np.ndarray:
    """A copy; NumPy has no bfloat16, so of narrow numbers as float32."""
    return (tensor.float() if tensor.element_size() == 2 else tensor).numpy().copy()


def part(tensor: torch.Tensor | None) -> np.ndarray | None:
    """A copy of what lies on this rank."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    return array(tensor.to_local() if isinstance(tensor, DTensor) else tensor)


def assembled(parts: list[dict[str, np.ndarray | None]]) -> list[dict[str, np.ndarray | None]]:
    """Whole arrays from the parts of all ranks: one exchange, where ``whole`` has one for each tensor."""
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, parts)
    return [
        {name: None if x is None else np.concatenate([rank[i][name] for rank in ranks]) for name, x in here.items()}
        for i, here in enumerate(parts)
    ]


def names(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by the names that they have in the model that was not wrapped."""
    return {name.removeprefix("module."): param for name, param in model.named_parameters()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, course: Course, rank: int = 0, world: int = 1) -> Result:
    grads = []
    schedule = SCHEDULES[course.schedule](optimizer, len(course.steps)) if course.schedule else None
    for step in course.steps:
        optimizer.zero_grad(set_to_none=course.set_to_none)
        model(batch(step, course.uses, course.dtype, rank, world)).backward()
        if course.clip:
            CLIPS[course.clip](model)
        grads.append({name: part(param.grad) for name, param in names(model).items()})
        optimizer.step()
        if schedule:
            schedule.step()
    params = {name: part(param) for name, param in names(model).items()}
    if any(isinstance(param, DTensor) for param in model.parameters()):
        params, *grads = assembled([params, *grads])
    return Result(params, grads)


def alone(spec: Spec, course: Course, saved: dict[str, Any] | None = None) -> Result:
    """The training in this process, by itself; from a saved state, if there is one."""
    model = Model(dtype=course.dtype)
    optimizer = spec.make(model.parameters())
    if saved:
        load(model, optimizer, saved)
    result = train(model, optimizer, course)
    result.extra["state"] = state_arrays(model, optimizer)
    return result


def alone_with_group(spec: Spec, before: Course, after: Course, group: dict[str, Any]) -> Result:
    """The last block is added, as a group with options of its own, after some steps."""
    model = Model(dtype=before.dtype)
    *blocks, last = model.blocks
    optimizer = spec.make([param for block in blocks for param in block.parameters()])
    train(model, optimizer, before)
    optimizer.add_param_group({"params": list(last.parameters()), **group})
    result = train(model, optimizer, after)
    result.extra["state"] = state_arrays(model, optimizer)
    return result


def load(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """The state of an optimizer has names where load_state_dict() wants numbers."""
    model.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in saved["params"].items()})
    numbers = {name: i for i, name in enumerate(names(model))}
    state = {
        numbers[name]: {key: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x for key, x in entry.items()}
        for name, entry in saved["optimizer"]["state"].items()
    }
    groups = [
        {**group, "params": [numbers[name] for name in group["params"]]} for group in saved["optimizer"]["param_groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def replay(spec: Spec, grads: list[dict[str, np.ndarray | None]], dtype: torch.dtype | None = None) -> Result:
    """The training in this process with given gradients, which need not be the problem's; of this dtype."""
    dtype = dtype or next(torch.from_numpy(x).dtype for x in grads[0].values() if x is not None)
    model = Model(dtype=dtype)
    optimizer = spec.make(model.parameters())
    for step in grads:
        for name, param in names(model).items():
            grad = step[name]
            param.grad = None if grad is None else torch.from_numpy(grad.copy()).to(dtype)
        optimizer.step()
    result = Result({name: whole(param) for name, param in names(model).items()}, grads)
    result.extra["state"] = state_arrays(model, optimizer)
    return result


def state_arrays(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, np.ndarray]]:
    """The optimizer's states as whole arrays, by the parameters' names."""
    return {
        name: {key: whole(value) for key, value in optimizer.state[param].items() if isinstance(value, torch.Tensor)}
        for name, param in names(model).items()
        if param in optimizer.state
    }
