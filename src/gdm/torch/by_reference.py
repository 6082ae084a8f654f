"""One parameter's update on the rules and the stages in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import _stages, reference
from .._checks import Options
from ..optimizer.numpy_step import Writes, load, numbers, roles_of, store, swap_writes
from ..optimizer.state import WORK, state_names
from .tensors import FLOATS, flat


class Random(NamedTuple):
    """What the random bits of a parameter's update depend on."""

    seed: int
    update: int
    entry: int


class Updated(NamedTuple):
    """What an update writes."""

    writes: Writes
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
    finish: Callable[[], None] | None = None,
) -> Updated:
    """Computes one update, and writes nothing but what only a step reads. With ``random`` narrow numbers are rounded
    stochastically. ``finish`` is called after the preparation of a step, if the rule needs one."""
    memory, names = flat(param), state_names(rule)
    arrays = {name: flat(x) for name, x in zip(names, states, strict=True) if x is not None}
    roles = roles_of(name if name in arrays else None for name in names)
    wide = {name: load(memory, arrays, name) for name in roles}
    wide["grad"] = numbers(flat(grad)).astype(wide["param"].dtype)
    if scale != 1.0:
        wide["grad"] = _stages.scaled(wide["grad"], scale)
    kept = {name: np.array(value) for name, value in scalars.items()}
    given = {**options, "step": step, "lr_scale": None, **wide, **kept}
    work = () if finish is None else roles.keys() & WORK
    if finish is not None and work:
        prepared = reference.formula.update(rule, {**given, "prepare": True})
        for name in work:
            arrays[name][...] = prepared[name]
        finish()
        given |= {name: load(memory, arrays, name) for name in work}
    new = reference.formula.update(rule, given, first=first)
    after = [float(new.pop(name)) for name in kept]
    writes: Writes = []
    for name, value in new.items():
        if name in work:
            continue
        draws = partial(_stages.draws, *(random or Random(0, 0, 0)), roles[name], 0, value.size)
        writes += store(memory, arrays, name, value, draws, random is not None)
    if copy is not None:
        writes.append((flat(copy), _stages.narrow(new["param"], FLOATS[copy.dtype])))
    return Updated(writes, after)


def swapped(param: Any, z: Any, share: float, evaluate: bool, copy: Any) -> Updated:
    """Computes the average of a Schedule-Free method from its parameter, or the reverse, and writes nothing."""
    new, writes = swap_writes(flat(param), {"z": flat(z)}, share, evaluate)
    if copy is not None:
        writes.append((flat(copy), _stages.narrow(new, FLOATS[copy.dtype])))
    return Updated(writes, [])
