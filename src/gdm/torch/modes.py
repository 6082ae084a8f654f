"""The two modes of Schedule-Free optimizers: the points at which gradients are computed, and their average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch

from .. import _backend, _checks, _stages
from ..errors import OverlapError
from .arrange import dtype_of_number, label
from .by_reference import swapped
from .copies import require
from .tensors import first_shared, is_count, is_in_memory, is_native, local_of, part_like, same_layout

if TYPE_CHECKING:
    from .native_step import NativeStep as _Base
else:
    _Base = object

# What schedulefree does not have in a group.
OWN = {"maximize": False, "differentiable": False, "fused": None}
# What schedulefree keeps in a group, and gdm for each parameter.
IN_GROUP = {"k": "step", "weight_sum": "weight_sum", "lr_max": "lr_max"}


class Swap(NamedTuple):
    """One parameter that changes."""

    name: str  # in messages
    param: Any
    local: Any  # the tensor that has its memory; None if PyTorch must change it
    z: Any
    step: Any  # the tensor that keeps the count of steps
    share: float  # of the average in the point at which gradients are computed
    copy: Any


class Modes(_Base):
    """``train`` and ``eval`` for an optimizer of ``gdm.torch``, whose groups have a key ``"train_mode"``."""

    _has_modes = True

    if TYPE_CHECKING:  # of methods.py

        def _share(self, group: dict[str, Any]) -> float: ...

    def eval(self) -> None:
        """Puts the averages in the place of the parameters, for evaluation or to save them: the result of a training.

        It is one pass over the parameters; copies are rewritten, too. Parameters that have made no step stay what they
        are. Until :meth:`train`, ``step`` raises ``RuntimeError``; all else works in both modes. Groups that are in
        eval mode stay what they are.

        Raises
        ------
        gdm.OverlapError
            If two parameters share memory. Nothing has changed then.
        RuntimeError
            If another thread is in the middle of a step.
        """
        self._lock._exclusively(self._swap, True)

    def train(self) -> None:
        """Puts the points at which gradients are computed in the place of the averages, to go on after :meth:`eval`.

        A new optimizer is in train mode, in which this does nothing. After ``eval`` and ``train`` the last bits of a
        parameter may have changed.
        """
        self._lock._exclusively(self._swap, False)

    def _require_train_mode(self) -> None:
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError(_checks.EVALUATING)

    def _swap(self, evaluate: bool) -> None:
        chosen = [g for g, group in enumerate(self.param_groups) if bool(group["train_mode"]) is evaluate]
        groups = [self.param_groups[g] for g in chosen]
        with torch.no_grad():
            if _backend.backend() == "native" and self._swap_plain(groups, evaluate):
                return
            swaps = [x for g, group in zip(chosen, groups, strict=True) for x in self._swaps(g, group)]
            ours, theirs = [x for x in swaps if x.local is not None], [x for x in swaps if x.local is None]
            new = [torch.lerp(x.param, x.z.to(x.param), _stages.swap_weight(x.share, evaluate)) for x in theirs]
            _require_apart(swaps)
            if _backend.backend() == "reference":
                _swap_by_reference(ours, groups, evaluate)
            elif (wrong := self._swap_natively(ours, groups, evaluate)) >= 0:
                _explain(ours, wrong)
            if outer := [x.param for x in ours if x.local is not x.param]:
                torch.autograd.graph.increment_version(outer)
            for x, value in zip(theirs, new, strict=True):
                x.param.copy_(value)
                if x.copy is not None:
                    x.copy.copy_(value)

    def _swap_plain(self, groups: list[dict[str, Any]], evaluate: bool) -> bool:
        """Swaps in one call, if all parameters are what kernels can walk through. False, and has changed nothing, if
        not all are, or if anything is wrong."""
        swaps = []
        for group in groups:
            share = self._share(group)
            for param in group["params"]:
                state = self.state.get(param)
                if state and "z" in state:
                    swaps.append(Swap("", param, param, state["z"], state.get("step"), share, self._copies.get(param)))
        return self._swap_natively(swaps, groups, evaluate) < 0

    def _swap_natively(self, swaps: list[Swap], groups: list[dict[str, Any]], evaluate: bool) -> int:
        """Swaps by gdm's kernels; -1, or which one is wrong."""
        assert _backend.native is not None
        wrong: int = _backend.native.swap_tensors(
            [x.local for x in swaps],
            [x.z for x in swaps],
            [x.step for x in swaps],
            [x.share for x in swaps],
            [x.copy for x in swaps],
            groups,
            evaluate,
            self._threads or 0,
        )
        return wrong

    def _swaps(self, g: int, group: dict[str, Any]) -> list[Swap]:
        """The parameters of a group that have made a step."""
        found, share = [], self._share(group)
        for k, param in enumerate(group["params"]):
            state = self.state.get(param, {})
            z, step = state.get("z"), state.get("step")
            if not isinstance(z, torch.Tensor) or not step:
                continue
            copy = self._copies.get(param)
            name = label(group, g, k)
            own_copy = None if copy is None else require("copies", copy, "its parameter", param)
            local = local_of(param)
            part = None if local is None or not is_native(local) else part_like(param, local, z)
            if part is None or not same_layout(part, local) or not is_count(step):
                found.append(Swap(name, param, None, z, step, share, copy))
            else:
                found.append(Swap(name, param, local, part, step, share, own_copy))
        return found

    # ---- groups and their states ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, which is in the mode of the others."""
        if isinstance(param_group, dict) and self.param_groups:
            param_group.setdefault("train_mode", self.param_groups[0]["train_mode"])
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, also one of ``schedulefree``'s optimizer; with it the mode.

        The parameters are not a part of it: those that you load must be those of that mode.
        """
        super().load_state_dict(_from_schedulefree(state_dict))


def _swap_by_reference(swaps: list[Swap], groups: list[dict[str, Any]], evaluate: bool) -> None:
    """Swaps on the rules in NumPy, which compute everything first."""
    made = [swapped(x.local, x.z, x.share, evaluate, x.copy) for x in swaps]
    torch.autograd.graph.increment_version([y for x in swaps for y in (x.local, x.copy) if y is not None])
    for each in made:
        each.write()
    for group in groups:
        group["train_mode"] = not evaluate


def _from_schedulefree(state_dict: Any) -> Any:
    """A state with the numbers that schedulefree keeps for a group in each of its parameters; others as they are."""
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, list) or not all(isinstance(x, dict) and IN_GROUP.keys() <= x.keys() for x in groups):
        return state_dict
    state, converted = dict(state_dict["state"]), []
    for group in groups:
        numbers = {
            key: torch.tensor(max(float(group[old]), 0.0), dtype=dtype_of_number(key, group))
            for old, key in IN_GROUP.items()
        }
        for number in group["params"]:
            if number in state:
                state[number] = {**{key: x.clone() for key, x in numbers.items()}, **state[number]}
        kept = {key: x for key, x in group.items() if key not in (*IN_GROUP, "scheduled_lr")}
        converted.append({**OWN, **kept})
    return {**state_dict, "state": state, "param_groups": converted}


def _require_apart(swaps: list[Swap]) -> None:
    """Requires that no two of the tensors that are written share memory, or with a z."""
    tensors = [(x.name, y) for x in swaps for y in (x.param if x.local is None else x.local, x.z, x.copy)]
    present = [(name, local_of(y)) for name, y in tensors if y is not None]
    known = [(name, y) for name, y in present if y is not None and is_in_memory(y)]
    shared = first_shared([y for _, y in known])
    if shared is not None:
        first, second = (known[i][0] for i in shared)
        raise OverlapError(f"{first} and {second} share memory; an update in place needs separate tensors")


def _explain(swaps: list[Swap], wrong: int) -> NoReturn:
    name = swaps[wrong].name if wrong < len(swaps) else "a parameter"
    raise RuntimeError(f"{name} changed while the averages were being put in its place; nothing has been written")
