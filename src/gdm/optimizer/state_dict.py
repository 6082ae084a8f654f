"""The state of an optimizer as plain values and arrays: how it is made, and how it is read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _checks
from .._checks import Array, Options
from .._specification import Around, Progress
from ..errors import CheckpointError
from .around import changed
from .options import FIXED, check, check_lr_scale, copied, loaded_rate, saved_rate
from .snapshot import Snapshot
from .state import WORK, arrays_for, possible_arrays, scalar_names

if TYPE_CHECKING:
    from .base import Optimizer

FORMAT = 4
MAX_STEPS = 2**63 - 1
MODES = ("train", "eval")  # of Schedule-Free methods


def make(optimizer: Optimizer, snapshot: Snapshot, progress: Progress, *, copy: bool) -> dict[str, Any]:
    """What ``Optimizer.state_dict`` returns; without copies it holds only until something changes."""
    layout = snapshot.layout
    groups: list[dict[str, Any]] = []
    for name, options, steps in zip(layout.names, snapshot.options, progress.group_steps, strict=True):
        scale = options["lr_scale"]
        plain = {**options, "lr": saved_rate(options["lr"]), "lr_scale": copied(scale) if copy else scale}
        groups.append({"name": name, "options": plain, "steps": steps, "params": []})
    scalars = [scalar_names(optimizer._rule_of(options)) for options in snapshot.options]
    for i, (label, group) in enumerate(zip(layout.labels(), layout.group_of, strict=True)):
        state = {name: x for name, x in snapshot.states[i].items() if name not in WORK}
        groups[group]["params"].append(
            {
                "name": label,
                "steps": progress.steps[i],
                "begun": progress.begun[i],
                "scalars": dict(zip(scalars[group], progress.scalars[i], strict=True)),
                "state": {name: x.copy() for name, x in state.items()} if copy else state,
            }
        )
    mode = {"mode": MODES[progress.evaluating]} if optimizer._has_modes else {}
    return {
        "format": FORMAT,
        "optimizer": type(optimizer).__name__,
        "around": optimizer._around._asdict(),
        "updates": progress.updates,
        "skipped": progress.skipped,
        **mode,
        "groups": groups,
    }


class Loaded(NamedTuple):
    """What was read, checked, and is apart from what it was read from."""

    options: list[Options]  # of each group
    around: Around
    lr_factors: list[float]  # of each parameter, and so on
    lr_scales: list[Array | None]
    states: list[dict[str, Array]]
    progress: Progress


def read(optimizer: Optimizer, snapshot: Snapshot, state_dict: Mapping[str, Any]) -> Loaded:
    """Reads what :func:`make` made. Whatever is wrong with it is a ``CheckpointError``; nothing is changed."""
    try:
        return _read(optimizer, snapshot, state_dict)
    except (CheckpointError, MemoryError, SystemError):  # NumPy may raise a SystemError where memory runs out
        raise
    except Exception as error:
        if isinstance(state_dict, (str, bytes, PathLike)):
            raise CheckpointError("state_dict is a path; load() reads files") from None
        if isinstance(state_dict, Mapping) and "param_groups" in state_dict:
            raise CheckpointError("state_dict is torch's; gdm.torch.load_state_dict reads those") from None
        # Reading something else than a state may raise anything.
        raise CheckpointError(f"state_dict is not one of gdm's: {type(error).__name__}: {error}") from error


def _read(optimizer: Optimizer, snapshot: Snapshot, state_dict: Mapping[str, Any]) -> Loaded:
    layout, class_name = snapshot.layout, type(optimizer).__name__
    if type(state_dict["format"]) is not int or state_dict["format"] != FORMAT:
        raise CheckpointError(f"state_dict has format {state_dict['format']!r}; expected {FORMAT}")
    if state_dict["optimizer"] != class_name:
        raise CheckpointError(f"state_dict is of {state_dict['optimizer']}; expected {class_name}")
    saved = list(state_dict["groups"])
    names = [group["name"] for group in saved]
    if len(saved) != len(layout.names):
        raise CheckpointError(f"state_dict has {len(saved)} groups; expected {len(layout.names)}")
    if names != layout.names:
        raise CheckpointError(f"state_dict has groups named {names}; expected {layout.names}")
    entries = [entry for group in saved for entry in group["params"]]
    found, expected = [len(group["params"]) for group in saved], [group.size for group in layout.groups]
    if found != expected:
        raise CheckpointError(f"state_dict has {found} parameters in its groups; expected {expected}")

    groups = [_read_group(optimizer, snapshot, i, group) for i, group in enumerate(saved)]
    rules = [optimizer._rule_of(options) for options, _, _ in groups]
    around = _read_around(optimizer, state_dict["around"])
    known = set(optimizer._all_states())
    scalars = [scalar_names(rule) for rule in rules]
    read: list[tuple[int, bool, tuple[float, ...], dict[str, Array]]] = []
    for label, i, param, entry in zip(layout.labels(), layout.group_of, snapshot.params, entries, strict=True):
        if entry["name"] != label:
            raise CheckpointError(f"state_dict has a parameter {entry['name']!r} where {label!r} was expected")
        average = around.average is not None
        needed = arrays_for(rules[i], groups[i][0], param, optimizer._storage, average)
        possible = {**possible_arrays(known, param, optimizer._storage, average), **needed}
        saved_names = [name for name in needed if name not in WORK]
        read.append(_read_entry(label, entry, possible, saved_names, scalars[i]))

    factors = [x for _, _, of_group in groups for x in of_group]
    updates, skipped = (_read_count(name, state_dict[name]) for name in ("updates", "skipped"))
    return Loaded(
        [options for options, _, _ in groups],
        around,
        [x if isinstance(x, float) else 1.0 for x in factors],
        [None if isinstance(x, float) else x for x in factors],
        [state for _, _, _, state in read],
        Progress(
            [steps for _, steps, _ in groups],
            [x[0] for x in read],
            [x[2] for x in read],
            [x[1] for x in read],
            updates,
            skipped,
            evaluating=_read_mode(state_dict) if optimizer._has_modes else False,
        ),
    )


def _read_mode(state_dict: Mapping[str, Any]) -> bool:
    if state_dict["mode"] not in MODES:
        raise CheckpointError(f"state_dict has the mode {state_dict['mode']!r}; expected one of {list(MODES)}")
    return bool(state_dict["mode"] == "eval")


def _read_count(name: str, value: object) -> int:
    try:
        return _checks.whole(name, value, 0, MAX_STEPS)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state_dict: {error}") from error


def _read_around(optimizer: Optimizer, saved: Mapping[str, Any]) -> Around:
    """What is done around the rule: as the optimizer's own, with the values that were saved."""
    own = optimizer._around
    if saved.keys() != set(own._fields):
        raise CheckpointError(f"state_dict has around {list(saved)}; expected {list(own._fields)}")
    try:
        around = changed(own, dict(saved))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state_dict: {error}") from error
    if (around.average is None) != (own.average is None):
        has, expected = ("no averages", "some") if around.average is None else ("averages", "none")
        raise CheckpointError(f"state_dict has {has}; expected {expected}")
    return around


def _read_group(
    optimizer: Optimizer, snapshot: Snapshot, index: int, saved: Mapping[str, Any]
) -> tuple[Options, int, list[float | Array]]:
    """A group's hyperparameters, its steps, and the factors of its parameters' learning rates."""
    own, given = snapshot.records[index].options, dict(saved["options"])
    if given.keys() != own.keys():
        raise CheckpointError(f"state_dict group {index} has options {list(given)}; expected {list(own)}")
    for name in FIXED:
        if name in own and given[name] != own[name]:
            raise CheckpointError(f"state_dict group {index} has {name} {given[name]!r}; expected {own[name]!r}")
    try:
        given["lr"] = loaded_rate(given["lr"], own["lr"])
        scale = given.pop("lr_scale")
        options = check(type(optimizer).__name__, optimizer._rule, snapshot.layout, index, given, {})
        scale, factors = check_lr_scale(snapshot.layout, index, scale, snapshot.params)
        steps = _checks.whole("steps", saved["steps"], 0, MAX_STEPS)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state_dict group {index}: {error}") from error
    return {**options, "lr_scale": scale}, steps, factors


def _read_entry(
    label: str,
    entry: Mapping[str, Any],
    expected: Mapping[str, tuple[np.dtype[Any], Array]],
    needed: list[str],
    scalars: tuple[str, ...],
) -> tuple[int, bool, tuple[float, ...], dict[str, Array]]:
    """A parameter's steps, whether its states have begun, its scalars, and copies of its states.

    ``expected`` has the dtype of each array that there may be, and an array of its shape.
    """
    saved = entry["state"]
    if not expected.keys() >= saved.keys():
        raise CheckpointError(f"state_dict has unknown states {sorted(saved.keys() - expected)} for params{label}")
    for name in needed:
        if name not in saved:
            missing = sorted(set(needed) - saved.keys())
            raise CheckpointError(f"state_dict lacks the states {missing} of params{label}")
    state = {}
    for name, x in saved.items():
        copy = state[name] = np.array(x)
        dtype, like = expected[name]
        if copy.dtype != dtype or copy.shape != like.shape:
            raise CheckpointError(
                f"the {name} of params{label} has dtype {copy.dtype} and shape {copy.shape}; "
                f"expected {dtype} and {like.shape}"
            )
    steps, begun, found = entry["steps"], entry["begun"], entry["scalars"]
    try:
        if type(steps) is not int or not 0 <= steps <= MAX_STEPS:
            steps = _checks.whole("steps", steps, 0, MAX_STEPS)
        if type(begun) is not bool:
            begun = _checks.flag("begun", begun)
        if tuple(found) != scalars:
            raise ValueError(f"it has the scalars {list(found)}; expected {list(scalars)}")
        numbers = tuple([_checks.real(name, found[name], _checks.SCALARS[name].domain) for name in scalars])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state_dict of params{label}: {error}") from error
    return steps, begun, numbers, state
