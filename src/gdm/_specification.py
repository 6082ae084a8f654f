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
    updates: int = 0  # steps of the optimizer that were not skipped
    skipped: int = 0  # steps that were, since a gradient was not finite
    grad_norm: float | None = None  # of the last step, if it was needed
    evaluating: bool = False  # the parameters are the averages of a Schedule-Free method

    def followed_by(self, other: Progress) -> Progress:
        """This progress and that of more groups and parameters."""
        return self._replace(
            group_steps=self.group_steps + other.group_steps,
            steps=self.steps + other.steps,
            scalars=self.scalars + other.scalars,
            begun=self.begun + other.begun,
        )


ROUNDINGS = ("nearest", "stochastic")  # as gdm_rounding in gdm.h
NONFINITE = ("propagate", "skip", "raise")  # as gdm_nonfinite


class Around(NamedTuple):
    """What steps do around the rule; ``gdm_step_args`` in gdm.h has the formulas."""

    max_grad_norm: float | None = None
    max_grad_value: float | None = None
    nonfinite: str = "propagate"
    average: float | None = None
    average_correction: bool = False
    clear_grads: bool = False
    rounding: str = "nearest"
    seed: int = 0


class Companions(NamedTuple):
    """Arrays that a parameter has beside its states."""

    scales: list[Array | None]  # of each state; None for one that is not int8
    low_bits: Array | None
    average: Array | None
    copy: Array | None


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
    companions: list[Companions]
    around: Around
    uint16: bool  # an array of uint16 holds the bits of bfloat16
    user_copies: list[Array | None]  # as user_arrays, for copies
    is_one_array: bool  # gradients come as a single array
    is_sequence: bool  # gradients come as a plain sequence
