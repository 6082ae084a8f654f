"""Converts states of optimizers between gdm and PyTorch: each can continue from a state that the other saved.

This works for gdm's classes that ``torch.optim`` has, too: not for Lion, Signum, AdEMAMix, LARS, LAMB and
Schedule-Free. Their formulas are the same, and their steps are equal within rounding. (PyTorch rounds NAdam's product
of momenta and ASGD's ``eta`` and ``mu`` to the default dtype, usually float32; gdm keeps them in float64.) The
functions need PyTorch. The optimizers of ``gdm.torch`` need no conversion: they load PyTorch's states themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import optimizers
from ..errors import CheckpointError
from ..optimizer import Optimizer, adapter

if TYPE_CHECKING:
    from .._checks import Array, Options

__all__ = ["load_state_dict", "to_state_dict"]

# The options of a group of each class in torch.optim, in torch's order (a test compares them).
ADAM = "lr betas eps weight_decay amsgrad maximize foreach capturable differentiable fused decoupled_weight_decay"
GROUPS = {
    "SGD": "lr momentum dampening weight_decay nesterov maximize foreach differentiable fused",
    "Adagrad": "lr lr_decay eps weight_decay initial_accumulator_value foreach maximize differentiable fused",
    "RMSprop": "lr momentum alpha eps centered weight_decay capturable foreach maximize differentiable",
    "Adam": ADAM,
    "AdamW": ADAM,
    "NAdam": "lr betas eps weight_decay momentum_decay decoupled_weight_decay maximize "
    "foreach capturable differentiable",
    "RAdam": "lr betas eps weight_decay maximize foreach capturable decoupled_weight_decay differentiable",
    "Adamax": "lr betas eps weight_decay foreach maximize differentiable capturable",
    "Adadelta": "lr rho eps weight_decay maximize capturable foreach differentiable",
    "Rprop": "lr etas step_sizes foreach maximize differentiable capturable",
    "ASGD": "lr lambd alpha t0 weight_decay foreach maximize differentiable capturable",
    "Muon": "lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn",
}
UNCOUNTED = ("SGD", "Muon")  # the classes of which torch does not count the steps
# The classes whose states begin with the learning rate of the first step: torch must make them itself.
BEGIN_WITH_LR = ("Rprop", "ASGD")
STATES = {"velocity": "momentum_buffer", "state_sum": "sum"}  # the others have the same name in both
# Options that choose how torch computes and do not change the result, with their defaults.
SWITCHES = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
# What else may be in a group: names, and entries of torch's schedulers.
NOTES = ("params", "name", "param_names", "initial_lr", "min_lr", "max_lr", "base_momentum", "max_momentum", "swa_lr")
# Options that states from older versions of torch lack, and the values that such states mean.
ADDED = {"nesterov": False, "maximize": False, "amsgrad": False, "centered": False, "decoupled_weight_decay": False}
# The classes for which decoupled_weight_decay is fixed in torch.
DECOUPLED = {"SGD": False, "AdamW": True}


def to_state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's hyperparameters and state, for ``load_state_dict`` of the class of that name in ``torch.optim``.

    It does not contain the parameters themselves, as in torch; they are matched by their order.

    Parameters
    ----------
    optimizer : gdm.SGD, Adagrad, RMSprop, Adam, AdamW, NAdam, RAdam, Adamax, Adadelta, Rprop, ASGD or Muon
        The optimizer. A schedule is not saved: ``lr`` is the learning rate of the next step, a number.

    Returns
    -------
    dict
        ``state`` and ``param_groups``, as ``state_dict`` of torch's optimizer gives them. The tensors are copies.

    Raises
    ------
    ImportError
        If torch is missing.
    TypeError
        If ``optimizer`` is not one of these; ``torch.optim`` lacks Lion, Signum, AdEMAMix, LARS, LAMB
        and Schedule-Free.
    ValueError
        If a group has what torch's class does not: ``form="classic"`` (:meth:`gdm.SGD.to_form` converts a state),
        ``lr_scale`` other than 1, decoupled weight decay in SGD, or ``maximize`` and AdamW in Muon.

    Notes
    -----
    Before its first step SGD's ``momentum_buffer`` is None, as in torch, and the other states have their initial
    values. Rprop and ASGD have no states then. NAdam's ``mu_product`` and ASGD's ``eta`` and ``mu`` are float64, as in
    gdm; torch gives them the parameter's dtype.

    Examples
    --------
    >>> import numpy as np, torch, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.SGD(theta, lr=0.25, momentum=0.5)
    >>> opt.step(2 * theta)  # the gradient of theta ** 2
    >>> gdm.torch.to_state_dict(opt)["state"]
    {0: {'momentum_buffer': tensor([ 2., -2.], dtype=torch.float64)}}
    >>> theirs = torch.optim.SGD([torch.from_numpy(theta)])
    >>> theirs.load_state_dict(gdm.torch.to_state_dict(opt))
    >>> theirs.param_groups[0]["momentum"]
    0.5
    """
    torch, name = _torch(), _class_of(optimizer)
    _require_plain(optimizer)
    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    count = 0
    for i, group in enumerate(optimizer.state_dict()["groups"]):
        options = {**SWITCHES, **group["options"], "lr": optimizer.groups[i].current_lr}
        if foreign := _foreign(optimizer, name, i, options):
            raise ValueError(foreign)
        options["decoupled_weight_decay"] = DECOUPLED.get(name, options.get("decoupled_weight_decay"))
        noted = {} if group["name"] is None else {"name": group["name"]}
        numbers = list(range(count, count + len(group["params"])))
        count += len(numbers)
        groups.append({**{key: options[key] for key in GROUPS[name].split()}, **noted, "params": numbers})
        for number, entry in zip(numbers, group["params"], strict=True):
            if tensors := _tensors(torch, name, entry):
                state[number] = tensors
    return {"state": state, "param_groups": groups}


def load_state_dict(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Loads the hyperparameters and state that ``state_dict`` of an optimizer in ``torch.optim`` gave.

    The tensors are copied, from any device. Parameters are matched by their order, as in torch.

    Parameters
    ----------
    optimizer : gdm.SGD, Adagrad, RMSprop, Adam, AdamW, NAdam, RAdam, Adamax, Adadelta, Rprop, ASGD or Muon
        The optimizer, for parameters of the same shapes and dtypes, in the same groups. Its ``lr`` becomes the number
        that torch has, also if it was a schedule. ``foreach``, ``fused``, ``capturable`` and ``differentiable`` are
        ignored, and so is what torch's schedulers add to a group (``initial_lr`` and similar).
    state_dict : mapping
        What ``state_dict`` of an optimizer of the class of that name in ``torch.optim`` gave.

    Raises
    ------
    ImportError
        If torch is missing.
    TypeError
        If ``optimizer`` is not one of these; ``torch.optim`` lacks Lion, Signum, AdEMAMix, LARS, LAMB
        and Schedule-Free.
    gdm.CheckpointError
        If anything does not fit: another class, other groups, shapes or dtypes, options that are unknown, missing or
        outside gdm's ranges; or an optimizer with an option that torch's class does not have, as for
        :func:`to_state_dict`. Then nothing has been loaded.

    Notes
    -----
    Each parameter continues from its own count of steps; ``optimizer.steps`` becomes the largest of them.
    ``torch.optim.SGD`` and ``torch.optim.Muon`` do not count their steps: no count changes.

    Examples
    --------
    >>> import numpy as np, torch, gdm
    >>> theta = torch.tensor([1.0, -1.0])
    >>> theirs = torch.optim.Adam([theta], lr=0.25)
    >>> theta.grad = 2 * theta  # the gradient of theta ** 2
    >>> theirs.step()
    >>> opt = gdm.Adam(theta.numpy())
    >>> gdm.torch.load_state_dict(opt, theirs.state_dict())
    >>> opt.lr, opt.steps
    (0.25, 1)
    >>> opt.exp_avg
    array([ 0.2, -0.2], dtype=float32)
    """
    torch, name = _torch(), _class_of(optimizer)
    _require_plain(optimizer)
    own = dict(adapter.live_state_dict(optimizer))
    try:
        own["groups"] = groups = _groups(torch, name, optimizer, own["groups"], state_dict)
        if name not in UNCOUNTED:
            own["updates"] = max((group["steps"] for group in groups), default=own["updates"])
    except (CheckpointError, MemoryError, SystemError):  # NumPy may raise a SystemError where memory runs out
        raise
    except Exception as error:  # reading something that is not a state may raise anything
        raise CheckpointError(f"state_dict is not one of torch.optim's: {type(error).__name__}: {error}") from error
    optimizer.load_state_dict(own)


def _require_plain(optimizer: Any) -> None:
    if not adapter.is_plain(optimizer):
        raise ValueError(
            "only the state of an optimizer of float32 and float64 parameters can be converted, and only without "
            "state_dtype, split_masters and average"
        )


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("gdm.torch needs PyTorch: pip install torch") from error
    return torch


def _class_of(optimizer: object) -> str:
    """The name of the optimizer's class in gdm and in torch."""
    names = {getattr(optimizers, name): name for name in GROUPS}
    for base in type(optimizer).__mro__:
        if base in names:
            return names[base]
    if isinstance(optimizer, _torch().optim.Optimizer):
        name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}".replace(
            "gdm.torch.optimizers", "gdm.torch"
        )
        raise TypeError(
            f"optimizer is a {name}, which has load_state_dict and state_dict of its own, for torch's states; this "
            "function converts for gdm's optimizers of arrays, such as gdm.AdamW"
        )
    known = ", ".join(f"gdm.{x}" for x in GROUPS)
    if isinstance(optimizer, Optimizer):
        raise TypeError(f"torch.optim has no {type(optimizer).__name__}; expected one of {known}")
    raise TypeError(f"optimizer must be one of {known}; not {type(optimizer).__name__}")


def _foreign(optimizer: Optimizer, name: str, i: int, options: Options) -> str | None:
    """An error message about an option of a group that torch's class does not have; None if there is none."""
    if not all(np.all(x.lr_scale == 1) for x in adapter.parameters(optimizer) if x.group == i):
        return f"group {i} has an lr_scale, which torch.optim.{name} does not have; expected 1"
    if options.get("form") == "classic":
        return (
            f"group {i} has form='classic', which torch.optim.SGD does not have; expected form='torch', to which "
            "gdm.SGD.to_form converts what state_dict gives"
        )
    if name == "Muon" and (options["method"] == "adamw" or options["maximize"]):
        what = "maximize" if options["maximize"] else "method='adamw'"
        return f"group {i} has {what}, which torch.optim.Muon does not have"
    decoupled = options.get("decoupled_weight_decay")
    if options.get("weight_decay", 0) != 0 and decoupled is not DECOUPLED.get(name, decoupled):
        return (
            f"group {i} has decoupled_weight_decay={decoupled} and weight_decay={options['weight_decay']!r}, which "
            f"torch.optim.{name} does not have; expected decoupled_weight_decay={DECOUPLED[name]}"
        )
    return None


def _tensors(torch: Any, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter as torch's class has it."""
    states = {STATES.get(key, key): torch.from_numpy(x) for key, x in entry["state"].items()}
    if name == "Muon":
        return states
    if name == "SGD":
        return states if entry["begun"] else dict.fromkeys(states)
    if name in BEGIN_WITH_LR and not entry["steps"]:
        return {}
    # torch counts in the default dtype; but float32 cannot count beyond 2**24.
    wide = entry["steps"] >= 2**24 or torch.get_default_dtype() == torch.float64
    counts = {"step": torch.tensor(float(entry["steps"]), dtype=torch.float64 if wide else torch.float32)}
    scalars = {key: torch.tensor(x, dtype=torch.float64) for key, x in entry["scalars"].items()}
    return {**counts, **scalars, **states}


def _groups(
    torch: Any, name: str, optimizer: Optimizer, own: list[dict[str, Any]], state_dict: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The groups of torch's state, converted for gdm; ``own`` are the groups of the optimizer's present state."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        found = list(state_dict) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise CheckpointError(f"state_dict must be a mapping with the keys 'state' and 'param_groups', got {found}")
    state, given = dict(state_dict["state"]), list(state_dict["param_groups"])
    if len(given) != len(own):
        raise CheckpointError(f"state_dict has {len(given)} groups; expected {len(own)}")
    sizes, expected = [len(group["params"]) for group in given], [len(group["params"]) for group in own]
    if sizes != expected:
        raise CheckpointError(f"state_dict has {sizes} parameters in its groups; expected {expected}")
    numbers = [number for group in given for number in group["params"]]
    if len(set(numbers)) != len(numbers) or state.keys() - set(numbers):
        raise CheckpointError(f"state_dict has states of {list(state)}; expected some of {numbers}, each once")
    params, groups, first = adapter.parameters(optimizer), [], 0
    for i, (theirs, ours) in enumerate(zip(given, own, strict=True)):
        options = _options(torch, name, i, theirs, ours)
        if foreign := _foreign(optimizer, name, i, options):
            raise CheckpointError(foreign)
        entries = [
            _entry(torch, name, optimizer, params[first + k], options, dict(state.get(number) or {}))
            for k, number in enumerate(theirs["params"])
        ]
        for k, entry in enumerate(entries):
            if name in UNCOUNTED:
                entry["steps"] = ours["params"][k]["steps"]
        first += len(entries)
        steps = (
            ours["steps"] if name in UNCOUNTED else max((entry["steps"] for entry in entries), default=ours["steps"])
        )
        groups.append({**ours, "options": options, "steps": steps, "params": entries})
    return groups


def _options(torch: Any, name: str, i: int, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Options:
    """A group's options: those of torch, and those that only gdm's class has."""
    where = f"state_dict has in param_groups[{i}]"
    known = [key for key in GROUPS[name].split() if key not in SWITCHES]
    if unknown := [key for key in theirs if key not in (*known, *SWITCHES, *NOTES)]:
        raise CheckpointError(f"{where} the options {unknown}, which torch.optim.{name} does not have")
    # Adam had amsgrad before decoupled_weight_decay: with the second and without the first, the state is RAdam's.
    added = ADDED.keys() - ({"amsgrad"} if "decoupled_weight_decay" in theirs else set())
    if missing := [key for key in known if key not in theirs and key not in added]:
        raise CheckpointError(f"{where} no options {missing}, which torch.optim.{name} has")
    if None not in (theirs.get("name"), ours["name"]) and theirs["name"] != ours["name"]:
        raise CheckpointError(f"{where} the name {theirs['name']!r}; expected {ours['name']!r}")
    options = {key: _plain(torch, theirs.get(key, ADDED.get(key))) for key in known}
    if name in DECOUPLED:
        found = options.pop("decoupled_weight_decay", None)
        if "decoupled_weight_decay" in theirs and found is not DECOUPLED[name]:
            raise CheckpointError(f"{where} decoupled_weight_decay={found}; expected {DECOUPLED[name]}, as in {name}")
    return {**ours["options"], **options}


def _plain(torch: Any, x: Any) -> Any:
    """The value of a hyperparameter, which may be a tensor of one element in torch."""
    if isinstance(x, (tuple, list)):
        return tuple(_plain(torch, item) for item in x)
    return x.item() if isinstance(x, torch.Tensor) else x


def _entry(
    torch: Any, name: str, optimizer: Optimizer, parameter: adapter.Parameter, options: Options, given: Options
) -> dict[str, Any]:
    """The entry of one parameter in gdm's state."""
    label, param = parameter.label, parameter.array
    scalars = adapter.initial_scalars(optimizer, options)
    counts = (() if name in UNCOUNTED else ("step",)) + tuple(scalars)
    theirs = {STATES.get(key, key): key for key in adapter.state_names(optimizer)}
    if unknown := [key for key in given if key not in (*counts, *theirs)]:
        raise CheckpointError(
            f"state_dict has the states {unknown} of params{label}; torch.optim.{name} has {[*counts, *theirs]}"
        )
    present = {key: x for key, x in given.items() if key in theirs and x is not None}
    state = {theirs[key]: _array(torch, f"the {key} of params{label}", x, param) for key, x in present.items()}
    if not (present if name in UNCOUNTED else given):  # no step so far
        state = adapter.initial_state(optimizer, param, options)
    elif name not in UNCOUNTED:
        scalars = {key: float(_plain(torch, given[key])) for key in scalars}
    steps = 0 if name in UNCOUNTED else _steps(torch, given)
    begun = bool(present) if name in UNCOUNTED else steps > 0
    return {"name": label, "steps": steps, "begun": begun, "scalars": scalars, "state": state}


def _array(torch: Any, what: str, x: Any, param: Array) -> Array:
    if not isinstance(x, torch.Tensor):
        raise CheckpointError(f"state_dict has as {what} a {type(x).__name__}; expected a tensor")
    dtype, shape = str(x.dtype).removeprefix("torch."), tuple(x.shape)
    if dtype != param.dtype.name or shape != param.shape:
        raise CheckpointError(
            f"state_dict has as {what} a tensor of dtype {dtype} and shape {shape}; "
            f"expected {param.dtype} and {param.shape}"
        )
    array: Array = x.detach().cpu().numpy()
    return array


def _steps(torch: Any, given: Mapping[str, Any]) -> int:
    """How many steps a parameter has made, as torch counted them."""
    steps = float(_plain(torch, given["step"])) if given else 0.0
    if not (steps >= 0 and steps.is_integer()):
        raise CheckpointError(f"state_dict has a step of {steps!r}; expected a whole number that is not negative")
    return int(steps)
