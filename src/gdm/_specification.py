"""What an engine is made from, and how far it is: the interface between the optimizers and both of their engines.

An engine (the compiled one in ``_core``, the NumPy one in ``_numpy_engine``) updates the arrays of one specification.
It never changes which arrays those are: other parameters, groups or states need another engine.
"""

from __future__ import annotations

from typing import NamedTuple

from ._checks import Array, Options
from ._foreign import Source


class Progress(NamedTuple):
    """How far the groups and the parameters are. Lists: one item for each group, or for each parameter."""

    group_steps: list[int]  # how many steps the optimizer has made since it has the group; schedules count these
    steps: list[int]  # how many steps the parameter has made, without those that left it out
    scalars: list[tuple[float, ...]]  # its rule's scalars, in the order of the table of rules
    begun: list[bool]  # whether its states have been through a step

    def followed_by(self, other: Progress) -> Progress:
        """This progress and that of more groups and parameters."""
        return Progress(
            self.group_steps + other.group_steps,
            self.steps + other.steps,
            self.scalars + other.scalars,
            self.begun + other.begun,
        )


class Specification(NamedTuple):
    """All that an engine is made from. Lists: one item for each parameter, except for those of groups."""

    user_arrays: list[Array]  # what the user gave, or a view of it; it may change
    sources: list[Source | None]  # what the user gave, if it is no NumPy array and may come to mean other memory
    params: list[Array]  # our views of the user's arrays, which do not change
    states: list[list[Array | None]]  # in the rule's order; None for a state that the options do not need
    lr_scales: list[Array | None]  # a factor of the learning rate for each element
    lr_factors: list[float]  # a factor of the learning rate for the whole parameter
    group_of: list[int]
    rules: list[str]  # of each group
    options: list[Options]  # of each group: the hyperparameters, among them the options of its rule
    lrs: list[float]  # of each group: the learning rate of the next step
    progress: Progress
    is_one_array: bool  # gradients come as a single array
    is_sequence: bool  # gradients come as a plain sequence
