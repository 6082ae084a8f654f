"""The groups of an optimizer, as the user sees them: by index or name, with hyperparameters as attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .options import copied

if TYPE_CHECKING:
    from .base import Optimizer
    from .snapshot import GroupRecord


class Group:
    """A part of an optimizer's parameters with hyperparameters of its own, as attributes that are checked when set.

    It keeps meaning the same group when others are added or removed. After it has been removed itself, it raises
    ``RuntimeError``.
    """

    __slots__ = ("_optimizer", "_record")
    _optimizer: Optimizer
    _record: GroupRecord

    def __init__(self, optimizer: Optimizer, record: GroupRecord) -> None:
        object.__setattr__(self, "_optimizer", optimizer)
        object.__setattr__(self, "_record", record)

    @property
    def name(self) -> str | None:
        """The name that the group was given: the key ``"name"``."""
        return self._optimizer._snapshot.layout.names[self._optimizer._index_of(self._record)]

    @property
    def steps(self) -> int:
        """How many steps the optimizer has made since it has this group. Schedules count these."""
        return self._optimizer._group_steps(self._optimizer._index_of(self._record))

    @property
    def current_lr(self) -> float:
        """The learning rate of the next step: ``lr`` itself, or what the schedule gives."""
        return self._optimizer._rate(self._optimizer._index_of(self._record))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._optimizer._index_of(self._record)
        options = self._record.options
        if name not in options:
            raise AttributeError(f"a group has no hyperparameter {name!r}; it has {', '.join(options)}")
        return copied(options[name])

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "lr" or not self._optimizer._try_set_lr(self._record, value):
            self._optimizer._index_of(self._record)
            self._optimizer._set_options([self._record], {name: value})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Group) and self._record is other._record

    def __hash__(self) -> int:
        return hash(self._record)

    def __reduce__(self) -> tuple[Any, ...]:
        return _group_of, (self._optimizer, self._optimizer._index_of(self._record))

    def __copy__(self) -> Group:
        return Group(self._optimizer, self._record)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._record.options]

    def __repr__(self) -> str:
        if self._record not in self._optimizer._snapshot.index_of:
            return "Group(removed)"
        options = [f"{name}={value!r}" for name, value in self._record.options.items()]
        return f"Group({', '.join([f'name={self.name!r}', *options] if self.name is not None else options)})"


class Groups:
    """The groups of an optimizer, by index or by name."""

    __slots__ = ("_optimizer",)

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def __len__(self) -> int:
        return len(self._optimizer._snapshot.records)

    def __iter__(self) -> Iterator[Group]:
        return iter([Group(self._optimizer, record) for record in self._optimizer._snapshot.records])

    def __getitem__(self, key: int | str) -> Group:
        snapshot = self._optimizer._snapshot
        return Group(self._optimizer, snapshot.records[snapshot.layout.index_of(key)])

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self))}]"


def _group_of(optimizer: Optimizer, index: int) -> Group:
    return optimizer.groups[index]
