"""What an optimizer consists of at one moment. A change makes a new snapshot, which replaces the old one at once."""

from __future__ import annotations

from typing import NamedTuple

from .._checks import Array, Options
from .._foreign import Source
from .layout import Layout


class GroupRecord:
    """One group for as long as it exists. Handles (:class:`gdm.optimizer.groups.Group`) mean this, not an index."""

    __slots__ = ("options",)

    def __init__(self, options: Options) -> None:
        self.options = options  # never changed in place: a change puts a new dict here


class Snapshot(NamedTuple):
    """The groups, parameters and states of an optimizer. Lists: one item for each parameter, in order."""

    layout: Layout
    records: list[GroupRecord]  # one for each group
    index_of: dict[GroupRecord, int]
    user_arrays: list[Array]  # what the user gave, or a view of it
    sources: list[Source | None]  # what the user gave, if it is no NumPy array and may come to mean other memory
    params: list[Array]  # views of the user's arrays that only we have
    states: list[dict[str, Array]]  # and what belongs to them: see arrays_for in state.py
    lr_factors: list[float]  # of the learning rate: a number for the whole parameter
    lr_scales: list[Array | None]  # and, or, one for each element
    user_copies: list[Array | None]  # where steps copy the parameters to: what the user gave
    copies: list[Array | None]  # and our views

    @property
    def options(self) -> list[Options]:
        """The hyperparameters of each group."""
        return [record.options for record in self.records]
