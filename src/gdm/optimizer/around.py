"""What an optimizer does beside its rule, in the same pass over memory: narrow storage, clipping, averages, copies."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from .. import _checks
from .._checks import Array, Domain
from .._specification import NONFINITE, ROUNDINGS, Around

POSITIVE = Domain(math.inf, False, "finite and above 0")
STATE_DTYPES = ("float64", "float32", "bfloat16", "float16", "int8")
CHANGEABLE = Around._fields  # the attributes of an optimizer that may be set


class AroundOptions(TypedDict, total=False):
    """The keyword arguments that all optimizers share, beside those of their rule. See :class:`gdm.SGD`."""

    dtype: Literal["bfloat16"] | None
    state_dtype: Literal["float64", "float32", "bfloat16", "float16", "int8"] | None
    rounding: Literal["nearest", "stochastic"]
    seed: int
    split_masters: bool
    max_grad_norm: float | None
    max_grad_value: float | None
    nonfinite: Literal["propagate", "skip", "raise"]
    average: float | None
    average_correction: bool
    copies: Any
    clear_grads: bool


STORAGE = ("dtype", "state_dtype", "split_masters")  # those that may only be read
AROUND_NAMES = tuple(AroundOptions.__annotations__)


class Storage(NamedTuple):
    """How parameters and states are stored. It is fixed when the optimizer is made."""

    uint16: bool = False  # arrays of uint16 hold the bits of bfloat16
    state_dtype: str | None = None  # None: the dtype in which the parameter is computed
    split_masters: bool = False  # bfloat16 parameters have 16 more bits


def read(given: AroundOptions) -> tuple[Storage, Around, Any]:
    """The checked storage, what is done around the rule, and the copies, unchecked."""
    dtype, state_dtype = given.get("dtype"), given.get("state_dtype")
    if dtype not in (None, "bfloat16"):
        raise ValueError(f"dtype must be 'bfloat16' (what arrays of uint16 hold) or None, got {dtype!r}")
    if state_dtype is not None and state_dtype not in STATE_DTYPES:
        raise ValueError(
            f"state_dtype must be one of {', '.join(map(repr, STATE_DTYPES))} or None, got {state_dtype!r}"
        )
    storage = Storage(dtype is not None, state_dtype, _checks.flag("split_masters", given.get("split_masters", False)))
    return storage, changed(Around(), {x: given[x] for x in CHANGEABLE if x in given}), given.get("copies")  # type: ignore[literal-required]


def changed(before: Around, changes: dict[str, Any]) -> Around:
    """What is done around the rule after some changes, each checked."""
    return before._replace(**{name: _CHECKS[name](name, value) for name, value in changes.items()})


def _limit(name: str, value: object) -> float | None:
    if value is None:
        return None
    number = _checks.real(name, value, POSITIVE)
    if number == 0:
        raise ValueError(f"{name} must be finite and above 0 or None, got {value!r}")
    return number


def _one_of(words: tuple[str, ...]) -> Any:
    def check(name: str, value: object) -> str:
        if not (isinstance(value, str) and value in words):
            raise ValueError(f"{name} must be {', '.join(map(repr, words[:-1]))} or {words[-1]!r}, got {value!r}")
        return value

    return check


_CHECKS = {
    "max_grad_norm": _limit,
    "max_grad_value": _limit,
    "nonfinite": _one_of(NONFINITE),
    "average": lambda name, value: None if value is None else _checks.real(name, value, _checks.BELOW_ONE),
    "average_correction": _checks.flag,
    "clear_grads": _checks.flag,
    "rounding": _one_of(ROUNDINGS),
    "seed": lambda name, value: _checks.whole(name, value, 0, 2**64 - 1),
}


# ---- how a parameter and its states are stored -----------------------------------------------------------------------


def computed_in(param: Array) -> np.dtype[Any]:
    """The dtype in which a parameter's rule computes."""
    return np.dtype(np.float64 if param.dtype == np.float64 else np.float32)


def stored_as(storage: Storage, param: Array) -> str:
    """The name of the dtype of a parameter's states."""
    return computed_in(param).name if storage.state_dtype is None else storage.state_dtype
