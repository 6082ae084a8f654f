"""The layout of parameters: one array, a sequence, a mapping, or groups of those; and the way back from a flat list."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from .._foreign import is_array

T = TypeVar("T")


class GroupLayout(NamedTuple):
    """How the arrays of one group were given."""

    name: str | None
    shape: int | list[Any] | None  # the length of a sequence, the keys of a mapping, or None for one array
    size: int  # how many arrays there are

    def labels(self) -> list[str]:
        """What each array adds to the label of its group: ``"[2]"``, ``"['w']"``, or nothing."""
        if self.shape is None:
            return [""]
        return [f"[{key!r}]" for key in (self.shape if isinstance(self.shape, list) else range(self.size))]


class Layout:
    """How the arrays of all groups were given. It is never changed: a change of groups makes a new one."""

    def __init__(self, groups: Sequence[GroupLayout], grouped: bool) -> None:
        self.groups = list(groups)
        self.grouped = grouped  # whether the user gave groups; else there is one
        self.names = [group.name for group in groups]
        self.group_of: list[int] = []  # the index of each array's group
        self._starts: list[int] = []  # the index of each group's first array
        for i, group in enumerate(groups):
            self._starts.append(len(self.group_of))
            self.group_of += [i] * group.size
        self.count = len(self.group_of)
        self._index_of_name = {name: i for i, name in enumerate(self.names) if name is not None}

    @staticmethod
    def of(params: Any) -> tuple[Layout, list[Any], list[dict[str, Any]]]:
        """The layout of what was given; its arrays, in order; and for each group the options beside them."""
        if not (_is_array(params) or isinstance(params, Mapping)):
            params = _items("params", params)
        grouped = isinstance(params, list) and any(isinstance(item, Mapping) for item in params)
        for i, item in enumerate(params if grouped else ()):
            if not _is_group(item):
                raise TypeError(f"params[{i}] must be a group, a mapping with the key 'params', {_found(item)}")
        layouts: list[GroupLayout] = []
        arrays: list[Any] = []
        options: list[dict[str, Any]] = []
        names: set[str] = set()
        for i, group in enumerate(params if grouped else [{"params": params}]):
            layout, more, given = _group_layout(i, group, grouped, names)
            layouts.append(layout)
            arrays += more
            options.append(given)
        return Layout(layouts, grouped), arrays, options

    def with_group(self, group: Any) -> tuple[Layout, list[Any], dict[str, Any]]:
        """The layout with one more group, that group's arrays, and its options."""
        if not _is_group(group):
            raise TypeError(f"group must be a mapping with the key 'params', {_found(group)}")
        layout, arrays, options = _group_layout(len(self.groups), group, True, set(self._index_of_name))
        return Layout([*self.groups, layout], True), arrays, options

    def without_group(self, index: int) -> Layout:
        """The layout without one of its groups."""
        return Layout(self.groups[:index] + self.groups[index + 1 :], True)

    @property
    def is_one_array(self) -> bool:
        """Whether the parameters are a single array."""
        return not self.grouped and bool(self.groups) and self.groups[0].shape is None

    @property
    def is_sequence(self) -> bool:
        """Whether the parameters are a plain sequence."""
        return not self.grouped and bool(self.groups) and isinstance(self.groups[0].shape, int)

    def labels(self) -> list[str]:
        """The place of each array in ``params``: ``"[2]"``, ``"['w']"``, ``"[1]['params'][0]"``."""
        return [
            (f"[{i}]['params']" if self.grouped else "") + label
            for i, group in enumerate(self.groups)
            for label in group.labels()
        ]

    def grad_labels(self) -> list[str]:
        """The place of each array in ``grads``, where a group is no mapping: ``"[1][0]"``."""
        return [
            (f"[{i}]" if self.grouped else "") + label
            for i, group in enumerate(self.groups)
            for label in group.labels()
        ]

    def label(self, what: str, i: int) -> str:
        """The label of one array in ``params`` or ``grads``, for a message."""
        return what + (self.labels() if what == "params" else self.grad_labels())[i]

    def members(self, index: int) -> range:
        """The indices of a group's arrays."""
        start = self._starts[index]
        return range(start, start + self.groups[index].size)

    def index_of(self, key: int | str) -> int:
        """The index of a group, from its index or name."""
        if isinstance(key, str):
            if key not in self._index_of_name:
                raise KeyError(f"there is no group {key!r}; there are {list(self._index_of_name)}")
            return self._index_of_name[key]
        index = operator.index(key)
        if not -len(self.groups) <= index < len(self.groups):
            raise IndexError(f"there is no group {index}; there are {len(self.groups)}")
        return index % len(self.groups)

    def flatten(self, what: str, given: Any) -> list[Any]:
        """The arrays of ``given``, which must have this layout, in order, in a list of its own. None in the place of a
        group: None for all of its arrays."""
        if not self.grouped:
            return _flatten(what, given, self.groups[0])
        flat: list[Any] = []
        groups = _flatten(what, given, GroupLayout(None, len(self.groups), len(self.groups)))
        for i, group in enumerate(groups):
            flat += [None] * self.groups[i].size if group is None else self.flatten_group(f"{what}[{i}]", i, group)
        return flat

    def flatten_group(self, what: str, index: int, given: Any) -> list[Any]:
        """The arrays of ``given``, which must have the layout of one group, in order."""
        return _flatten(what, given, self.groups[index])

    def unflatten(self, flat: Iterable[T]) -> Any:
        """The reverse of ``flatten``."""
        items = iter(flat)
        groups = [self.unflatten_group(i, [next(items) for _ in range(g.size)]) for i, g in enumerate(self.groups)]
        return groups if self.grouped else groups[0]

    def unflatten_group(self, index: int, flat: Sequence[T]) -> Any:
        """The reverse of ``flatten_group``."""
        shape = self.groups[index].shape
        if shape is None:
            return flat[0]
        return dict(zip(shape, flat, strict=True)) if isinstance(shape, list) else list(flat)


def _group_layout(
    index: int, group: Mapping[str, Any], grouped: bool, names: set[str]
) -> tuple[GroupLayout, list[Any], dict[str, Any]]:
    """The layout of one group, its arrays, and its options. Adds its name to those of the other groups."""
    name, given = group.get("name"), group["params"]
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"params[{index}]['name'] must be a string, not {type(name).__name__}")
        if name in names:
            raise ValueError(f"params[{index}]['name'] is {name!r}, which another group has")
        names.add(name)
    if _is_array(given):
        layout, arrays = GroupLayout(name, None, 1), [given]
    elif isinstance(given, Mapping):
        layout, arrays = GroupLayout(name, list(given), len(given)), list(given.values())
    else:
        arrays = _items(f"params[{index}]['params']" if grouped else "params", given)
        layout = GroupLayout(name, len(arrays), len(arrays))
    return layout, arrays, {key: value for key, value in group.items() if key not in ("params", "name")}


def _flatten(what: str, given: Any, layout: GroupLayout) -> list[Any]:
    shape = layout.shape
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
    if _is_array(given) or isinstance(given, (Mapping, str)):
        raise TypeError(f"{what} must be a sequence like params, not {type(given).__name__}")
    items = given.copy() if type(given) is list else _items(what, given)  # another thread may change the list
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


def _is_array(given: Any) -> bool:
    """Whether this is one array, and not a collection of them."""
    return not isinstance(given, (list, tuple, Mapping)) and is_array(given)


def _found(given: Any) -> str:
    return f"but it has only {list(given)}" if isinstance(given, Mapping) else f"not {type(given).__name__}"


def _is_group(given: Any) -> bool:
    return isinstance(given, Mapping) and "params" in given
