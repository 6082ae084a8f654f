"""One parameter's update on the rules and the stages in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _stages, reference
from .._checks import Array, Options
from ..optimizer.state import state_names
from .tensors import FLOATS, flat

STATE = 3  # the role of the first state, as in csrc/core.h; the parameter has role 0


class Random(NamedTuple):
    """What the random bits of a parameter's update depend on."""

    seed: int
    update: int
    entry: int


class Updated(NamedTuple):
    """What an update writes."""

    writes: list[tuple[Array, Array]]  # memory, and what it is to hold
    scalars: list[float]

    def write(self) -> None:
        for target, value in self.writes:
            target[...] = value


def updated(
    rule: str,
    options: Options,
    param: Any,
    grad: Any,
    states: Sequence[Any],
    *,
    step: int,
    scalars: dict[str, float],
    first: bool,
    scale: float = 1.0,
    random: Random | None = None,
    copy: Any = None,
) -> Updated:
    """Computes one update, and writes nothing. With ``random`` narrow numbers are rounded stochastically."""
    compute = np.float64 if FLOATS[param.dtype] == "float64" else np.float32
    stored = {"param": (0, param)}
    stored |= {name: (STATE + k, x) for k, (name, x) in enumerate(zip(state_names(rule), states, strict=True))}
    stored = {name: (role, x) for name, (role, x) in stored.items() if x is not None}
    wide = {name: _stages.widen(flat(x), FLOATS[x.dtype], compute) for name, (_, x) in stored.items()}
    wide["grad"] = _stages.widen(flat(grad), FLOATS[grad.dtype], compute)
    if scale != 1.0:
        wide["grad"] = _stages.scaled(wide["grad"], scale)
    numbers = {name: np.array(value) for name, value in scalars.items()}
    new = reference.update(rule, {**options, "step": step, "lr_scale": None, **wide, **numbers}, first=first)
    after = [float(new.pop(name)) for name in numbers]
    writes = []
    for name, value in new.items():
        role, x = stored[name]
        bits = None
        if random is not None and x.element_size() < 4:
            bits = _stages.draws(*random, role, 0, x.numel())
        writes.append((flat(x), _stages.narrow(value, FLOATS[x.dtype], bits)))
    if copy is not None:
        writes.append((flat(copy), _stages.narrow(new["param"], FLOATS[copy.dtype])))
    return Updated(writes, after)
