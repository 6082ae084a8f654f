"""How arrays are given: one, a sequence, a mapping, or groups of those."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Part(NamedTuple):
    """How the arrays of one group were given."""

    name: str | None
    shape: Any  # None (one array), the keys of a mapping, or the length of a sequence
    keys: list[str]  # what is added to the group's label for each array: "[2]", "['w']"


class Structure:
    """How arrays were given: one, a sequence, a mapping; or groups of those. Turns that into a list, and back."""

    def __init__(self, parts: list[Part], grouped: bool) -> None:
        self.parts = parts
        self.grouped = grouped
        self.names = [part.name for part in parts]
        self.shapes = [part.shape for part in parts]
        self.group_of: list[int] = []  # of each array, in order
        self.labels: list[str] = []  # of each array in params: "[2]", "['w']", "[1]['params'][0]"
        self.grad_labels: list[str] = []  # and in grads, which have no mappings for groups: "[1][0]"
        for i, part in enumerate(parts):
            self.group_of += [i] * len(part.keys)
            self.labels += [(f"[{i}]['params']" if grouped else "") + key for key in part.keys]
            self.grad_labels += [(f"[{i}]" if grouped else "") + key for key in part.keys]

    @staticmethod
    def of(params: Any) -> tuple[Structure, list[Any], list[dict[str, Any]]]:
        """The structure of what was given; its arrays, in order; and for each group the options beside them."""
        if not (_is_one(params) or isinstance(params, Mapping)):
            params = _items("params", params)
        grouped = isinstance(params, list) and any(isinstance(item, Mapping) for item in params)
        for i, item in enumerate(params if grouped else ()):
            if not _is_group(item):
                raise TypeError(f"params[{i}] must be a group, a mapping with the key 'params', {_not(item)}")
        structure, arrays, options = Structure([], grouped), [], []
        for group in params if grouped else [{"params": params}]:
            structure, more, given = structure._and(group, grouped)
            arrays += more
            options.append(given)
        return structure, arrays, options

    def with_group(self, group: Any) -> tuple[Structure, list[Any], dict[str, Any]]:
        """The structure with one more group, that group's arrays, and its options."""
        if not _is_group(group):
            raise TypeError(f"group must be a mapping with the key 'params', {_not(group)}")
        return self._and(group, True)

    def without_group(self, index: int) -> Structure:
        """The structure without one of its groups."""
        return Structure(self.parts[:index] + self.parts[index + 1 :], True)

    def _and(self, group: Mapping[str, Any], grouped: bool) -> tuple[Structure, list[Any], dict[str, Any]]:
        index, name, given = len(self.parts), group.get("name"), group["params"]
        if name is not None and not isinstance(name, str):
            raise TypeError(f"params[{index}]['name'] must be a string, not {type(name).__name__}")
        if name is not None and name in self.names:
            raise ValueError(f"params[{index}]['name'] is {name!r}, which is another group's")
        if _is_one(given):
            part, arrays = Part(name, None, [""]), [given]
        elif isinstance(given, Mapping):
            part, arrays = Part(name, list(given), [f"[{key!r}]" for key in given]), list(given.values())
        else:
            arrays = _items(f"params[{index}]['params']" if grouped else "params", given)
            part = Part(name, len(arrays), [f"[{i}]" for i in range(len(arrays))])
        options = {key: value for key, value in group.items() if key not in ("params", "name")}
        return Structure([*self.parts, part], grouped), arrays, options

    def index_of(self, key: int | str) -> int:
        """The index of a group, from that or its name."""
        if isinstance(key, str):
            if key not in self.names:
                raise KeyError(
                    f"there is no group {key!r}; there are {[name for name in self.names if name is not None]}"
                )
            return self.names.index(key)
        index = operator.index(key)
        if not -len(self.parts) <= index < len(self.parts):
            raise IndexError(f"there is no group {index}; there are {len(self.parts)}")
        return index % len(self.parts)

    def flatten(self, what: str, given: Any) -> list[Any]:
        """The arrays of ``given``, which must have this structure, in order."""
        if not self.grouped:
            return _flatten(what, given, self.shapes[0])
        groups = _flatten(what, given, len(self.shapes))
        flat: list[Any] = []
        for i, group in enumerate(groups):
            flat += self.flatten_group(f"{what}[{i}]", i, group)
        return flat

    def flatten_group(self, what: str, index: int, given: Any) -> list[Any]:
        """The arrays of ``given``, which must have the structure of one group, in order."""
        return _flatten(what, given, self.shapes[index])

    def unflatten(self, flat: Iterable[T]) -> Any:
        """The reverse of flatten."""
        rest = iter(flat)
        groups = [self.unflatten_group(i, [next(rest) for _ in part.keys]) for i, part in enumerate(self.parts)]
        return groups if self.grouped else groups[0]

    def unflatten_group(self, index: int, flat: Sequence[T]) -> Any:
        """The reverse of flatten_group."""
        shape = self.shapes[index]
        if shape is None:
            return flat[0]
        return dict(zip(shape, flat, strict=True)) if isinstance(shape, list) else list(flat)


def _flatten(what: str, given: Any, shape: Any) -> list[Any]:
    if shape is None:
        return [given]
    if isinstance(shape, list):
        if not isinstance(given, Mapping):
            raise TypeError(f"{what} must be a mapping like params, not {type(given).__name__}")
        if given.keys() != set(shape):
            missing = [key for key in shape if key not in given]
            extra = [key for key in given if key not in shape]
            raise ValueError(f"{what} must have the keys of params; missing: {missing}, not in params: {extra}")
        return [given[key] for key in shape]
    if _is_one(given) or isinstance(given, (Mapping, str)):
        raise TypeError(f"{what} must be a sequence like params, not {type(given).__name__}")
    items = given if type(given) is list else _items(what, given)
    if len(items) != shape:
        raise ValueError(f"{what} must have as many items as params, {shape}, got {len(items)}")
    return items


def _items(what: str, given: Any) -> list[Any]:
    try:
        iterator = iter(given)
    except TypeError:
        raise TypeError(
            f"{what} must be an array, or a sequence or mapping of arrays, not {type(given).__name__}"
        ) from None
    return list(iterator)


def _is_one(given: Any) -> bool:
    """One buffer, and not a collection of them."""
    if isinstance(given, np.ndarray):
        return True
    if isinstance(given, (list, tuple, Mapping)):
        return False
    if hasattr(given, "detach"):  # a tensor, which is not a sequence of its numbers: for _checks.buffer to refuse
        return True
    try:
        memoryview(given)
    except TypeError:
        return False
    except (ValueError, BufferError):  # one that cannot be had, which is for _checks.buffer to say
        return True
    return True


def _not(given: Any) -> str:
    return f"which this one has not: {list(given)}" if isinstance(given, Mapping) else f"not {type(given).__name__}"


def _is_group(given: Any) -> bool:
    return isinstance(given, Mapping) and "params" in given
