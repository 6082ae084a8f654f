"""A whole step by the rules and the stages in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from .. import _checks, _stages, reference
from .._checks import Array, Options
from .._specification import Around, Progress
from ..errors import NonFiniteError
from .around import computed_in
from .snapshot import Snapshot
from .state import SQUARES, WORK, scalar_names, scale_of, states_for

STATE = 3  # the number of the first state
Writes = list[tuple[Array, Array]]  # what is to be written into which array


class NonFiniteGradients(NonFiniteError):
    """A gradient is not finite, though it must be."""


def numpy_step(
    snapshot: Snapshot,
    around: Around,
    rules: list[str],
    options: list[Options],
    grads: list[Array | None],
    progress: Progress,
    scale: float,
    prepared: Callable[[int, Array], Array],
) -> tuple[Writes, Progress]:
    """One step by the reference. Nothing is written: it returns what is to be written where, and the new progress.

    ``rules`` and ``options`` are those of each group; a gradient that is None leaves its parameter out. ``prepared``
    turns what the preparation of a parameter's step gave into what the step reads.
    """
    wide = [None if grad is None else numbers(grad) for grad in grads]
    clears = [(grad, np.zeros_like(grad)) for grad in grads if grad is not None] if around.clear_grads else []
    given = [grad for grad in wide if grad is not None]
    norm, factor = None, scale
    if around.max_grad_norm is not None:
        norm = math.sqrt(reference.sum_of_squares(given)) * abs(scale)
        clip = around.max_grad_norm / (norm + 1e-6)
        factor = factor if clip >= 1 else factor * clip
    if (
        around.nonfinite != "propagate"
        and not (norm is not None and math.isfinite(norm))
        and reference.count_nonfinite(given)
    ):
        if around.nonfinite == "raise":
            raise NonFiniteGradients
        return clears, progress._replace(skipped=progress.skipped + 1, grad_norm=norm)
    writes: Writes = []
    steps, scalars, begun = list(progress.steps), list(progress.scalars), list(progress.begun)
    for i, (grad, group) in enumerate(zip(wide, snapshot.layout.group_of, strict=True)):
        if grad is None:
            continue
        param, arrays, rule = snapshot.params[i], snapshot.states[i], rules[group]
        grad = grad.astype(computed_in(param))
        if factor != 1:
            grad = _stages.scaled(grad, factor)
        if around.max_grad_value is not None:
            grad = _stages.limited(grad, around.max_grad_value)
        names = [*scalar_names(rule)]
        lr_scale = snapshot.lr_scales[i]
        values: dict[str, Any] = {**options[group], "step": steps[i] + 1, "grad": grad}
        values["lr"] = options[group]["lr"] * snapshot.lr_factors[i]
        values["lr_scale"] = None if lr_scale is None else _flat(lr_scale)
        values |= {name: np.array(x) for name, x in zip(names, scalars[i], strict=True)}
        roles = roles_of(states_for(rule, options[group]))
        values |= {name: load(param, arrays, name) for name in roles}
        if work := roles.keys() & WORK:
            made = reference.formula.update(rule, {**values, "prepare": True})
            for name in work:
                matrix = in_shape_of(param, made[name])
                values[name] = _flat(_checks.in_order_of(matrix, prepared(i, matrix)))
        new = reference.formula.update(rule, values, first=not begun[i])
        new = {name: x for name, x in new.items() if name not in work}
        scalars[i] = tuple(float(new.pop(name)) for name in names)
        begun[i] = begun[i] or len(new) > 1
        for name, x in new.items():
            draws = partial(_stages.draws, around.seed, progress.updates, i, roles[name], 0, x.size)
            writes += store(param, arrays, name, x, draws, around.rounding == "stochastic")
        if "average" in arrays:
            weight = _stages.average_weight(around.average or 0.0, progress.updates + 1, around.average_correction)
            average = _stages.averaged(_flat(arrays["average"]), new["param"], weight)
            writes.append((arrays["average"], in_shape_of(arrays["average"], average)))
        copy = snapshot.copies[i]
        if copy is not None:
            writes.append((copy, in_shape_of(copy, _stages.narrow(new["param"], _checks.dtype_name(copy)))))
        steps[i] += 1
    group_steps = [n + 1 for n in progress.group_steps]
    return writes + clears, Progress(group_steps, steps, scalars, begun, progress.updates + 1, progress.skipped, norm)


def numpy_swap(snapshot: Snapshot, shares: list[float], progress: Progress, evaluate: bool) -> Writes:
    """The averages of a Schedule-Free method in the place of the parameters, or the reverse. Nothing is written.

    ``shares`` are those of the average in the points at which gradients are computed, one for each group.
    """
    writes: Writes = []
    for i, (param, arrays, group) in enumerate(
        zip(snapshot.params, snapshot.states, snapshot.layout.group_of, strict=True)
    ):
        if not progress.steps[i]:
            continue
        new, stored = swap_writes(param, arrays, shares[group], evaluate)
        writes += stored
        copy = snapshot.copies[i]
        if copy is not None:
            writes.append((copy, in_shape_of(copy, _stages.narrow(new, _checks.dtype_name(copy)))))
    return writes


def swap_writes(param: Array, arrays: dict[str, Array], share: float, evaluate: bool) -> tuple[Array, Writes]:
    """One of these parameters in the compute dtype, and what writes it."""
    new = _stages.swapped(load(param, arrays, "param"), load(param, arrays, "z"), share, evaluate)
    return new, store(param, arrays, "param", new, partial(np.zeros, new.size, np.uint32), False)


# ---- what an array holds, in the compute dtype: flat arrays in the order of memory -----------------------------------


def roles_of(states: Iterable[str | None]) -> dict[str, int]:
    """The numbers of the parameter and of the states in use, on which random bits depend: as in csrc/core.h."""
    return {"param": 0} | {name: STATE + k for k, name in enumerate(states) if name is not None}


def load(param: Array, arrays: dict[str, Array], name: str) -> Array:
    """The numbers of a parameter (``"param"``) or of one of its states."""
    compute = computed_in(param)
    stored = param if name == "param" else arrays[name]
    if name == "param" and "low_bits" in arrays:
        return _stages.join(_flat(param), _flat(arrays["low_bits"]))
    if stored.itemsize == 1:
        scales = arrays[scale_of(name)]
        return _stages.dequantize(_flat(stored), scales, square=name in SQUARES, compute=compute)
    return _stages.widen(_flat(stored), _checks.dtype_name(stored), compute)


def store(
    param: Array,
    arrays: dict[str, Array],
    name: str,
    x: Array,
    draws: Callable[[], Array],
    stochastic: bool,
) -> Writes:
    """What must be written so that a parameter or a state holds these numbers."""
    stored = param if name == "param" else arrays[name]
    if name == "param" and "low_bits" in arrays:
        high, low = _stages.split(x)
        return [(param, in_shape_of(param, high)), (arrays["low_bits"], in_shape_of(param, low))]
    if stored.itemsize == 1:
        codes, scales = _stages.quantize(x, draws(), square=name in SQUARES)
        return [(stored, in_shape_of(stored, codes)), (arrays[scale_of(name)], scales)]
    dtype = _checks.dtype_name(stored)
    random = stochastic and stored.itemsize == 2
    return [(stored, in_shape_of(stored, _stages.narrow(x, dtype, draws() if random else None)))]


def numbers(x: Array) -> Array:
    """The numbers of an array of floats, in float64 if it has those, else in float32."""
    return _stages.numbers(_flat(x))


def numbers_like(x: Array, other: Array) -> Array:
    """The numbers of an array of floats in the dtype, shape and order of ``x``: the nearest ones."""
    return in_shape_of(x, _stages.narrow(numbers(other), _checks.dtype_name(x)))


def _flat(x: Array) -> Array:
    """The elements in the order of memory, bfloat16 as uint16."""
    flat: Array = np.ndarray.view(x, np.ndarray).ravel(order="K")
    return flat if x.dtype.num < 256 else flat.view(np.uint16)


def in_shape_of(x: Array, flat: Array) -> Array:
    """Elements in the order of memory, in the shape of an array."""
    return flat.reshape(x.shape, order="C" if x.flags.c_contiguous else "F")
