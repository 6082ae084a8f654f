"""What adapters to other libraries may use of an optimizer beside its public methods, and all that they may use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _checks
from .._checks import Array, Options
from .._checks import in_order_of as in_order_of
from .array_update import ArrayUpdate as ArrayUpdate
from .array_update import alike
from .state import WORK, Wanted, allocate

if TYPE_CHECKING:
    from .base import Optimizer


class Parameter(NamedTuple):
    """One parameter of an optimizer."""

    label: str  # its place in ``params``: "[2]", "['w']", "[1]['params'][0]"
    group: int  # the index of its group
    array: Array  # a view of its memory
    lr_scale: float | Array  # what its learning rate is multiplied by


def parameters(optimizer: Optimizer) -> list[Parameter]:
    """All parameters, in order."""
    snapshot = optimizer._snapshot
    scales = [
        factor if scale is None else scale
        for factor, scale in zip(snapshot.lr_factors, snapshot.lr_scales, strict=True)
    ]
    layout = snapshot.layout
    return [Parameter(*x) for x in zip(layout.labels(), layout.group_of, snapshot.params, scales, strict=True)]


def state_names(optimizer: Optimizer) -> tuple[str, ...]:
    """The names of all states that an optimizer of this class may have."""
    return optimizer._all_states()


def is_plain(optimizer: Optimizer) -> bool:
    """Whether all parameters are float32 or float64, all states like their parameters, and there is nothing else."""
    snapshot, names = optimizer._snapshot, (*optimizer._all_states(), *WORK)
    return all(
        param.dtype in _checks.FLOATS and all(name in names and x.dtype == param.dtype for name, x in state.items())
        for param, state in zip(snapshot.params, snapshot.states, strict=True)
    )


def initial_state(optimizer: Optimizer, param: Array, options: Options) -> dict[str, Array]:
    """The states that a parameter begins with under these hyperparameters."""
    starts = {name: options[option] for name, option in optimizer._initial.items()}
    names = [name for name in optimizer._states_for(options) if name is not None and name not in WORK]
    return {name: np.full(param.shape, starts.get(name, 0), param.dtype) for name in names}


def initial_scalars(optimizer: Optimizer, options: Options) -> dict[str, float]:
    """The scalars that a parameter begins with under these hyperparameters."""
    from .state import scalar_names

    names = scalar_names(optimizer._rule_of(options))
    return dict(zip(names, optimizer._initial_scalars(options), strict=True))


def live_state_dict(optimizer: Optimizer) -> Mapping[str, Any]:
    """What ``state_dict`` returns, without copies: it holds only until something changes."""
    state: Mapping[str, Any] = optimizer._exclusively(optimizer._state_dict_locked, False)
    return state


def new_states(param: Array, count: int) -> list[Array]:
    """So many arrays of zeros like a parameter, placed so that updates of all of them are fast."""
    return allocate([param], [Wanted(0, param, param.dtype)] * count)


def require_alike(arrays: Mapping[str, Any]) -> None:
    """Requires that all arrays can be updated, are like the first one, and share no memory. Their names are for the
    message."""
    alike(arrays, True)


def are_views_of_the_same(x: Array, y: Any) -> bool:
    """Whether both are NumPy arrays that show the same memory in the same way."""
    return (
        isinstance(y, np.ndarray)
        and x.dtype == y.dtype
        and x.shape == y.shape
        and x.strides == y.strides
        and x.flags.writeable == y.flags.writeable
        and _checks.address(x) == _checks.address(y)
    )
