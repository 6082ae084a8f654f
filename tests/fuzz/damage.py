"""Damages trees of plain values and arrays at random places, as an input says."""

from __future__ import annotations

import copy
import math
from typing import Any

import atheris
import numpy as np

NUMBERS = [0, 1, -1, 2, 7, 127, 128, 255, 2**31, 2**53 + 1, 2**60, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400]
FLOATS = [0.0, -0.0, 0.5, 1.0, 1e-8, 1e300, -1.0, 5e-324, 1e39, math.nan, math.inf, -math.inf]
TEXTS = [
    "",
    "lr",
    "constant",
    "cosine",
    "step",
    "torch",
    "classic",
    "eval",
    "train",
    "F32",
    "F64",
    "I8",
    "1",
    "\x00",
    "ß",
    "\ud800",
]
DTYPES = ["<f4", ">f4", "<f8", "<f2", "i1", "u1", "<u2", "<i8", "?", "<c8", "O", "U3", "M8[s]", "V2"]


def plain_value(data: atheris.FuzzedDataProvider, depth: int = 0) -> Any:
    """A value that JSON can hold."""
    kind = data.ConsumeIntInRange(0, 7 if depth < 3 else 5)
    if kind == 0:
        return data.PickValueInList(NUMBERS)
    if kind == 1:
        return data.PickValueInList(FLOATS)
    if kind == 2:
        return data.PickValueInList(TEXTS)
    if kind == 3:
        return data.PickValueInList([None, True, False])
    if kind == 4:
        return data.ConsumeRegularFloat()
    if kind == 5:
        return data.ConsumeUnicode(6)
    count = data.ConsumeIntInRange(0, 4)
    if kind == 6:
        return [plain_value(data, depth + 1) for _ in range(count)]
    return {data.PickValueInList(TEXTS): plain_value(data, depth + 1) for _ in range(count)}


def any_value(data: atheris.FuzzedDataProvider) -> Any:
    """The same, or something that JSON cannot hold."""
    kind = data.ConsumeIntInRange(0, 15)
    if kind == 0:
        shape = [data.ConsumeIntInRange(0, 6) for _ in range(data.ConsumeIntInRange(0, 3))]
        return np.zeros(shape, data.PickValueInList(DTYPES))
    if kind == 1:
        return data.PickValueInList(
            [np.float32(0.5), np.int64(3), np.bool_(True), 1j, b"x", (1, 2), {1}, object(), int]
        )
    return plain_value(data)


def places_of(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree, itself included."""
    found = [path]
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += places_of(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            found += places_of(value, (*path, i))
    return found


def _value_at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _near(value: Any, data: atheris.FuzzedDataProvider) -> Any:
    """A value that differs a little from this one, and is of its type where that is possible."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + data.ConsumeIntInRange(-3, 3)
    if isinstance(value, float):
        return value * data.PickValueInList([-1.0, 0.5, 2.0, 1e30])
    if isinstance(value, str):
        return value[: data.ConsumeIntInRange(0, 8)] + data.ConsumeUnicode(3)
    if isinstance(value, list):
        return value[::-1] if data.ConsumeBool() else value + value[:1]
    if isinstance(value, dict):
        return dict(reversed(value.items()))
    if isinstance(value, np.ndarray):
        return (
            value.reshape(-1)[: data.ConsumeIntInRange(0, 9)]
            if data.ConsumeBool()
            else value.astype(data.PickValueInList(["<f2", "<f4", "<f8", ">f4", "i1"]))
        )
    return value


def damaged(tree: Any, data: atheris.FuzzedDataProvider, value_of: Any) -> Any:
    """A copy of the tree with one to four places replaced, left out, added, or exchanged. ``value_of`` makes values."""
    tree = copy.deepcopy(tree)
    for _ in range(data.ConsumeIntInRange(1, 4)):
        places = places_of(tree)
        path = places[data.ConsumeIntInRange(0, len(places) - 1)]
        how = data.ConsumeIntInRange(0, 5)
        if not path:
            if how == 0:
                return value_of(data)
            continue
        parent, key = _value_at(tree, path[:-1]), path[-1]
        if how == 0:
            del parent[key]
        elif how == 1 and isinstance(parent, dict):
            parent[data.PickValueInList(TEXTS)] = value_of(data)
        elif how == 2:
            other = places[data.ConsumeIntInRange(0, len(places) - 1)]
            parent[key] = copy.deepcopy(_value_at(tree, other))
        elif how == 3:
            parent[key] = value_of(data)
        else:
            parent[key] = _near(parent[key], data)
    return tree
