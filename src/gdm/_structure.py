"""How arrays are given: one, a sequence, a mapping, or groups of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class Structure:
    """How arrays were given: one, a sequence, a mapping; or groups of those. Turns that into a list, and back."""

    def __init__(self, params: Any) -> None:
        self.arrays: list[Any] = []  # flat, in order
        self.group_of: list[int] = []
        self.labels: list[str] = []  # of each array in params: "[2]", "['w']", "[1]['params'][0]"
        self.grad_labels: list[str] = []  # and in grads, which have no mappings for groups: "[1][0]"
        if not (_is_one(params) or isinstance(params, Mapping)):
            params = _items("params", params)
        self.grouped = isinstance(params, list) and bool(params) and all(map(_is_group, params))
        self.group_options: list[dict[str, Any]] = []
        self.shapes: list[Any] = []  # per group: None (one array), the keys of a mapping, or the length of a sequence
        for i, group in enumerate(params if self.grouped else [{"params": params}]):
            self.group_options.append({name: value for name, value in group.items() if name != "params"})
            self._add(group["params"], i)

    def _add(self, given: Any, group: int) -> None:
        label = f"[{group}]['params']" if self.grouped else ""
        if _is_one(given):
            self.shapes.append(None)
            found = {"": given}
        elif isinstance(given, Mapping):
            self.shapes.append(list(given))
            found = {f"[{key!r}]": x for key, x in given.items()}
        else:
            items = _items(f"params{label}", given)
            self.shapes.append(len(items))
            found = {f"[{i}]": x for i, x in enumerate(items)}
        self.arrays.extend(found.values())
        self.labels.extend(label + key for key in found)
        self.grad_labels.extend((f"[{group}]" if self.grouped else "") + key for key in found)
        self.group_of.extend([group] * len(found))

    def flatten(self, what: str, given: Any) -> list[Any]:
        """The arrays of ``given``, which must have this structure, in order."""
        if not self.grouped:
            return _flatten(what, given, self.shapes[0])
        groups = _flatten(what, given, len(self.shapes))
        flat: list[Any] = []
        for i, (group, shape) in enumerate(zip(groups, self.shapes, strict=True)):
            flat += _flatten(f"{what}[{i}]", group, shape)
        return flat

    def unflatten(self, flat: Sequence[T]) -> Any:
        """The reverse of flatten."""
        rest = iter(flat)
        groups: list[Any] = []
        for shape in self.shapes:
            if shape is None:
                groups.append(next(rest))
            elif isinstance(shape, list):
                groups.append({key: next(rest) for key in shape})
            else:
                groups.append([next(rest) for _ in range(shape)])
        return groups if self.grouped else groups[0]


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
    try:
        memoryview(given)
    except TypeError:
        return False
    except (ValueError, BufferError):  # one that cannot be had, which is for _checks.buffer to say
        return True
    return True


def _is_group(given: Any) -> bool:
    return isinstance(given, Mapping) and "params" in given
