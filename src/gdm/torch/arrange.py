"""Arranges a step: which parameters of an optimizer gdm updates, with which tensors, and the states they lack."""

from __future__ import annotations

import numbers
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .. import _checks
from .._checks import FLOAT32_OVERFLOW, Options, unbounded
from ..errors import OverlapError
from ..optimizer.options import option_names
from ..optimizer.state import WORK, block, places, scalar_names, states_for
from .copies import require
from .tensors import (
    first_shared,
    is_count,
    is_in_memory,
    is_native,
    is_number,
    like,
    local_of,
    part_like,
    same_layout,
    zeros_like,
)

if TYPE_CHECKING:
    from .native_step import NativeStep

KEYS = {"velocity": "momentum_buffer", "state_sum": "sum"}  # states that have another name in PyTorch
# Scalars that are kept in float64, whatever torch's default dtype is: sums of many steps.
WIDE = ("weight_sum", "lr_max")
# From so many bytes on, the states of a parameter have a block of memory of their own, which is freed with them.
OWN_BLOCK = 1 << 20


class Described(NamedTuple):
    """How gdm updates the parameters of a group."""

    rule: str
    options: Options
    live: bool  # some options are tensors, arrays, lists, or others whose values may change


class Slot(NamedTuple):
    """One parameter. Without ``local`` PyTorch updates it; without ``states`` it has had no gradient yet."""

    group: int
    param: Any
    local: Any = None  # the tensor that has its memory
    states: tuple[Any, ...] | None = None  # in the rule's order; None for one that is not in use
    counter: Any = None  # the tensor that keeps the count of steps
    scalars: tuple[Any, ...] = ()  # the tensors that keep the rule's scalars
    begun: bool = False  # the states have been through a step
    versioned: tuple[Any, ...] = ()  # the tensors whose versions a step increments
    copy: Any = None  # the tensor that gets a copy of the parameter


def describe(rule: str, group: Options, fixed: Options) -> Described | None:
    """How gdm updates a group of PyTorch's with this rule; None if the options are outside of gdm's ranges.

    ``fixed`` are options that the class of the optimizer sets.
    """
    if group.get("capturable") or group.get("differentiable"):
        return None
    given = {**group, **fixed}
    names = [name for name in option_names(rule) if name not in _NO_OPTIONS]
    try:
        checked = _checks.options(rule, {name: _plain(given[name]) for name in names})
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None
    if any(value >= FLOAT32_OVERFLOW for _, value in unbounded(checked)):
        return None
    return Described(rule, checked, any(may_change(given[name]) for name in names))


_NO_OPTIONS = ("step", "prepare", *_checks.OPTIONAL_STATES, *_checks.SCALARS)


def may_change(value: Any) -> bool:
    """Whether a value, or an item of it, can change in place."""
    if isinstance(value, tuple):
        return any(may_change(x) for x in value)
    return not isinstance(value, (numbers.Number, np.generic, str, NoneType))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_plain(x) for x in value)
    return value.item() if isinstance(value, torch.Tensor) else value


class Draft(NamedTuple):
    """A parameter that gdm updates, before it has all its states."""

    group: int
    param: Any
    local: Any
    keys: tuple[str | None, ...]  # of its states, in the rule's order
    numbers: tuple[str, ...]  # the keys of its count and its scalars
    tensors: dict[str, Any]  # by key, as the optimizer's state has them
    new: dict[str, Any]  # those that the state must still get
    copy: Any = None

    def slot(self) -> Slot:
        """The slot, when there are all tensors."""
        tensors = {**self.tensors, **self.new}
        states = (None if key is None else part_like(self.param, self.local, tensors[key]) for key in self.keys)
        scalars = tuple([tensors[key] for key in self.numbers if key != "step"])
        versioned = (self.param,) if self.local is self.param else (self.param, self.local)
        return Slot(
            self.group,
            self.param,
            self.local,
            tuple(states),
            tensors["step"] if "step" in self.numbers else None,
            scalars,
            all(key is None or key in WORK or key in self.tensors for key in self.keys),
            versioned,
            self.copy,
        )


class Arrangement:
    """What a step works on. Making one changes nothing; ``begin`` puts new states into the optimizer."""

    def __init__(self, optimizer: NativeStep) -> None:
        self._optimizer = optimizer
        self.groups = [optimizer._describe(group) for group in optimizer.param_groups]
        drafts = [
            self._draft(g, described, param)
            for g, (group, described) in enumerate(zip(optimizer.param_groups, self.groups, strict=True))
            for param in group["params"]
        ]
        self._drafts = [x for x in drafts if isinstance(x, Draft)]
        self._make_states()
        self.slots = [x.slot() if isinstance(x, Draft) else x for x in drafts]
        self._require_disjoint()
        self._before: list[tuple[Any, Options | None]] = []

    def _draft(self, g: int, described: Described | None, param: Any) -> Draft | Slot:
        local = None if described is None else local_of(param)
        optimizer = self._optimizer
        if described is None or local is None or not is_native(local) or param.is_inference():
            return Slot(g, param)
        if local is not param and (described.options.get("adapt") or described.rule == "muon"):
            return Slot(g, param)  # a trust ratio needs the norm of the whole parameter, and Muon the matrix
        keys = tuple(None if x is None else KEYS.get(x, x) for x in states_for(described.rule, described.options))
        numbers = (("step",) if optimizer._counts_steps(described.rule) else ()) + scalar_names(described.rule)
        state = optimizer.state.get(param, {})
        if not isinstance(state, dict):
            return Slot(g, param)
        kept = [key for key in (*keys, *numbers) if key is not None and key not in WORK]
        found = {key: state[key] for key in kept if state.get(key) is not None}
        copy = optimizer._copies.get(param)
        if copy is not None:
            copy = require("copies", copy, "its parameter", param)
        draft = Draft(g, param, local, keys, numbers, found, {}, copy)
        for key, x in found.items():
            if key in numbers:
                if isinstance(x, torch.Tensor) and x.dtype in (torch.bfloat16, torch.float16):
                    draft.new[key] = x = x.float()  # load_state_dict has rounded it to the parameter's dtype
                if not (is_count(x) if key == "step" else is_number(x, _checks.SCALARS[key].domain)):
                    return Slot(g, param)
                continue
            part = part_like(param, local, x)
            if part is None:
                return Slot(g, param)
            if not same_layout(part, local):
                with torch.no_grad():
                    draft.new[key] = like(param, local, torch.empty_like(local, dtype=part.dtype).copy_(part))
        if len(found) < len(kept) and param.grad is None:
            return Slot(g, param, local)
        return draft

    def _make_states(self) -> None:
        """Makes the states that are lacking."""
        lacking = [
            (draft, [key for key in draft.keys if key is not None and key not in draft.tensors])
            for draft in self._drafts
        ]
        small: list[tuple[Draft, str]] = []
        for draft, keys in lacking:
            if sum(draft.local.numel() * self._state_dtype(draft, key).itemsize for key in keys) >= OWN_BLOCK:
                self._allocate([(draft, key) for key in keys])
            else:
                small += [(draft, key) for key in keys]
        self._allocate(small)
        for draft, keys in lacking:
            group = self._optimizer.param_groups[draft.group]
            for key in (*keys, *(x for x in draft.numbers if x not in draft.tensors)):
                value = self._optimizer._initial(key, group)
                if key in draft.numbers:
                    dtype = dtype_of_number(key, group)
                    draft.new[key] = torch.tensor(value, dtype=dtype, device="cpu")  # whatever the default device is
                elif value:
                    part_like(draft.param, draft.local, draft.new[key]).fill_(value)

    def _state_dtype(self, draft: Draft, key: str) -> Any:
        """The dtype of a new state."""
        if key in WORK:
            return torch.float64 if draft.local.dtype == torch.float64 else torch.float32
        return self._optimizer.state_dtype or draft.local.dtype

    def _allocate(self, wanted: list[tuple[Draft, str]]) -> None:
        """Makes states of zeros, in one block of memory."""
        if not wanted:
            return
        dtypes = [self._state_dtype(draft, key) for draft, key in wanted]
        addresses = [draft.local.data_ptr() for draft, _ in wanted]
        addresses = [address - address % dtype.itemsize for address, dtype in zip(addresses, dtypes, strict=True)]
        sizes = [draft.local.numel() * dtype.itemsize for (draft, _), dtype in zip(wanted, dtypes, strict=True)]
        first = {id(draft): i for i, (draft, _) in reversed(list(enumerate(wanted)))}
        starts, end, alignment = places(addresses, [first[id(draft)] for draft, _ in wanted], sizes)
        memory, offset = block(end, alignment)
        for (draft, key), start, dtype in zip(wanted, starts, dtypes, strict=True):
            local = draft.local
            draft.new[key] = like(draft.param, local, zeros_like(local, dtype, memory, offset + start))

    def _require_disjoint(self) -> None:
        """Requires that no two of the tensors that are written share memory."""
        tensors, owners = [], []
        for i, slot in enumerate(self.slots):
            own = [local_of(slot.param)] if slot.local is None else [slot.local, *(slot.states or ()), slot.copy]
            present = [x for x in own if x is not None and is_in_memory(x)]
            tensors += present
            owners += [(i, x is slot.copy) for x in present]
        shared = first_shared(tensors)
        if shared is None:
            return
        (i, copy), (k, other_copy) = owners[shared[0]], owners[shared[1]]
        first, second = (
            f"the copy of {self._label(n)}" if is_copy else self._label(n)
            for n, is_copy in ((i, copy), (k, other_copy))
        )
        if i == k and not (copy or other_copy):
            second = "its states"
        raise OverlapError(f"{first} and {second} share memory; an update in place needs separate tensors")

    def _label(self, i: int) -> str:
        """The place of a parameter in the optimizer, and its name if it has one."""
        g = self.slots[i].group
        k = i - sum(slot.group < g for slot in self.slots)
        return label(self._optimizer.param_groups[g], g, k)

    # ---- states ----

    def begin(self) -> None:
        """Puts the new states into the optimizer."""
        state = self._optimizer.state
        for draft in self._drafts:
            if draft.new.keys() - WORK:
                self._before.append((draft.param, dict(state[draft.param]) if draft.param in state else None))
                ordered = (*draft.numbers, *draft.keys)  # as PyTorch does
                state[draft.param].update(
                    {key: draft.new[key] for key in ordered if key in draft.new and key not in WORK}
                )

    def undo(self, params: list[Any] | None = None) -> bool:
        """Takes them out again, those of these parameters or all. Returns whether there were any."""
        state, chosen = self._optimizer.state, None if params is None else {id(param) for param in params}
        undone = [x for x in self._before if chosen is None or id(x[0]) in chosen]
        # PyTorch may make others instead, which stay.
        self._before = [x for x in self._before if chosen is not None and id(x[0]) not in chosen]
        for param, before in undone:
            if before is None:
                state.pop(param, None)
            else:
                state[param].clear()
                state[param].update(before)
        return bool(undone)


def dtype_of_number(key: str, group: Options) -> Any:
    """The dtype in which a count of steps or a scalar is kept, as PyTorch keeps it."""
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    return torch.float64 if wide or key in WIDE else torch.float32


def label(group: Options, g: int, k: int) -> str:
    """The name of a parameter in messages: its place in the optimizer, and its own name if it has one."""
    names = group.get("param_names")
    return f"param_groups[{g}]['params'][{k}]" + (f" ({names[k]!r})" if names and k < len(names) else "")
