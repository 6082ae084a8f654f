"""Optimizers: a rule, the parameters it is applied to, and the state it keeps for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import numpy as np

from . import _checks, reference
from ._backend import Stepper
from ._checks import Array, Named, Options
from .errors import CheckpointError

if TYPE_CHECKING:
    from ._checks import Floats

    Params = Floats | Iterable[Floats] | Mapping[str, Floats] | Iterable[Mapping[str, Any]]

T = TypeVar("T")

FORMAT = 1  # of state_dict


class Structure:
    """How arrays were given: one, a sequence, a mapping; or groups of those. Turns that into a list, and back."""

    def __init__(self, params: Any) -> None:
        self.arrays: list[Any] = []  # flat, in order
        self.group_of: list[int] = []
        self.labels: list[str] = []  # of each array: "[2]", "['w']", "[1]['params'][0]"
        if not (_is_one(params) or isinstance(params, Mapping)):
            params = _items("params", params)
        self.grouped = isinstance(params, list) and bool(params) and all(_is_group(g) for g in params)
        self.group_options: list[dict[str, Any]] = []
        self.shapes: list[Any] = []  # per group: None (one array), the keys of a mapping, or the length of a sequence
        for i, group in enumerate(params if self.grouped else [{"params": params}]):
            self.group_options.append({name: value for name, value in group.items() if name != "params"})
            self._add(group["params"], f"[{i}]['params']" if self.grouped else "", i)

    def _add(self, given: Any, label: str, group: int) -> None:
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
    items = given if isinstance(given, list) else _items(what, given)
    if len(items) != shape:
        raise ValueError(f"{what} must have as many items as params, {shape}, got {len(items)}")
    return items


def _items(what: str, given: Any) -> list[Any]:
    try:
        return list(given)
    except TypeError:
        raise TypeError(
            f"{what} must be an array, or a sequence or mapping of arrays, not {type(given).__name__}"
        ) from None


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
    return True


def _is_group(given: Any) -> bool:
    return isinstance(given, Mapping) and "params" in given


class Group:
    """A part of an optimizer's parameters with hyperparameters of its own, as attributes that are checked when set."""

    __slots__ = ("_index", "_optimizer", "_options")

    def __init__(self, optimizer: Optimizer, index: int, options: Options) -> None:
        object.__setattr__(self, "_optimizer", optimizer)
        object.__setattr__(self, "_index", index)
        object.__setattr__(self, "_options", options)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._options[name]
        except KeyError:
            raise AttributeError(f"a group has no hyperparameter {name!r}; it has {', '.join(self._options)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._optimizer._set_options({self._index: {name: value}})

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._options]

    def __repr__(self) -> str:
        return f"Group({', '.join(f'{name}={value!r}' for name, value in self._options.items())})"


class Hyperparameter(Generic[T]):
    """An attribute of an optimizer that stands for the same one of all its groups."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, optimizer: None, owner: type) -> Hyperparameter[T]: ...
    @overload
    def __get__(self, optimizer: Optimizer, owner: type) -> T: ...
    def __get__(self, optimizer: Optimizer | None, owner: type) -> Hyperparameter[T] | T:
        if optimizer is None:
            return self
        values = {group._options[self.name] for group in optimizer.groups}
        if len(values) != 1:
            raise ValueError(f"the groups differ in {self.name}; use opt.groups[i].{self.name}")
        value: T = values.pop()
        return value

    def __set__(self, optimizer: Optimizer, value: T) -> None:
        optimizer._set_options({i: {self.name: value} for i in range(len(optimizer.groups))})


class Optimizer(Stepper):
    """What all optimizers share: parameters, groups, state, and how both are saved. See the subclasses."""

    groups: tuple[Group, ...]
    _state_names: tuple[str, ...]  # all that a rule of this class may have, in the rule's order

    def __init__(self, params: Any, defaults: Options) -> None:
        structure = Structure(params)
        options = [self._checked(i, defaults, given) for i, given in enumerate(structure.group_options)]
        arrays = [
            _checks.buffer(f"params{label}", x, writable=True)
            for label, x in zip(structure.labels, structure.arrays, strict=True)
        ]
        _checks.disjoint(Named(f"params{label}", x, True) for label, x in zip(structure.labels, arrays, strict=True))
        self._structure = structure
        self._params = arrays
        self._state: list[dict[str, Array]] = [{} for _ in arrays]
        self._table(arrays, structure.group_of, len(options))
        self.groups = tuple(Group(self, i, o) for i, o in enumerate(options))
        self._apply({group._index: group._options for group in self.groups})

    # What a subclass says of itself.

    @staticmethod
    def _rule(options: Options) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """The rule for these options, the names of its states, and the names of the options it takes."""
        raise NotImplementedError

    # Hyperparameters.

    def _checked(self, index: int, base: Options, changes: Options) -> Options:
        for name in changes:
            if name not in base:
                raise ValueError(
                    f"params[{index}] has an option {name!r} that {type(self).__name__} does not know; "
                    f"it knows {', '.join(base)}"
                )
        return _checks.options({**base, **changes})

    def _set_options(self, changes: dict[int, Options]) -> None:
        """Changes hyperparameters of groups, all or none."""
        for name in {name for change in changes.values() for name in change}:
            if name == "form":
                raise AttributeError("form is fixed when the optimizer is made: the velocity means something else then")
            if name not in self.groups[0]._options:
                known = ", ".join(self.groups[0]._options)
                raise AttributeError(f"{type(self).__name__} has no hyperparameter {name!r}; it has {known}")
        self._enter()
        try:
            self._apply({i: self._checked(i, self.groups[i]._options, change) for i, change in changes.items()})
        finally:
            self._leave()

    def _apply(self, options: dict[int, Options]) -> None:
        for i, o in options.items():
            rule, states, taken = self._rule(o)
            if states:
                self._allocate([k for k, group in enumerate(self._structure.group_of) if group == i], states)
            self._configure(i, rule, {name: o[name] for name in taken})
            object.__setattr__(self.groups[i], "_options", o)

    # State.

    def _allocate(self, indices: list[int], names: tuple[str, ...]) -> None:
        """Gives these parameters the states they lack: zeros, in one piece of memory, each on cache lines of its own.

        Arrays that do not own their memory cannot be resized, so that the step need not check whether they were.
        """
        wanted = [(i, name) for i in indices for name in names if name not in self._state[i]]
        line = 64
        sizes = [-(-self._params[i].nbytes // line) * line for i, _ in wanted]
        slab = np.zeros(sum(sizes) + line, dtype=np.uint8)
        start = -_checks.address(slab) % line
        for (i, name), size in zip(wanted, sizes, strict=True):
            param = self._params[i]
            flat = slab[start : start + param.nbytes].view(param.dtype)
            self._state[i][name] = flat.reshape(param.shape, order="C" if param.flags.c_contiguous else "F")
            start += size
        for i in {i for i, _ in wanted}:
            self._states(i, [self._state[i][name] for name in names])

    # What the Stepper asks for.

    def _label(self, what: str, i: int) -> str:
        return what + self._structure.labels[i].replace("['params']", "")

    def _flatten(self, grads: Any) -> list[Any]:
        return self._structure.flatten("grads", grads)

    def _check_grads(self, grads: list[Any]) -> list[Array]:
        arrays = []
        for i, (param, grad) in enumerate(zip(self._params, grads, strict=True)):
            label = self._label("grads", i)
            array = _checks.buffer(label, grad, writable=False)
            _checks.like(label, array, self._label("params", i), param)
            arrays.append(array)
        written = [Named(self._label("params", i), param, True) for i, param in enumerate(self._params)]
        written += [
            Named(f"the {name} of {self._label('params', i)}", x, True)
            for i, state in enumerate(self._state)
            for name, x in state.items()
        ]
        _checks.disjoint(written + [Named(self._label("grads", i), x, False) for i, x in enumerate(arrays)])
        return arrays

    def _reference_step(self, grads: list[Array]) -> None:
        started = self._started
        results: list[tuple[Array, Array]] = []
        for i, (param, grad) in enumerate(zip(self._params, grads, strict=True)):
            options = self.groups[self._structure.group_of[i]]._options
            rule, names, taken = self._rule(options)
            states = [self._state[i][name] for name in names]
            given = {name: options[name] for name in taken}
            new = reference.update(rule, param, states, grad, given, first=not started[i])
            results += zip([param, *states], new, strict=True)
            started[i] = started[i] or bool(states)
        for array, value in results:
            array[...] = value
        self._started = started

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later :meth:`load_state_dict` needs to go on to the bit: copies, plain arrays and scalars.

        Returns
        -------
        dict
            ``format`` (int), ``optimizer`` (the class's name), and ``groups``: a list with, for each group, ``options``
            (the hyperparameters, ``form`` among them) and ``params`` (a list with, for each parameter, ``name``,
            ``started``, and the arrays of its ``state``).
        """
        groups: list[dict[str, Any]] = [{"options": dict(g._options), "params": []} for g in self.groups]
        for i, started in enumerate(self._started):
            state = {name: x.copy(order="K") for name, x in self._state[i].items()}
            entry = {"name": self._structure.labels[i], "started": started, "state": state}
            groups[self._structure.group_of[i]]["params"].append(entry)
        return {"format": FORMAT, "optimizer": type(self).__name__, "groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over hyperparameters and state that :meth:`state_dict` gave, of an optimizer for the same parameters.

        Raises
        ------
        gdm.CheckpointError
            If anything does not fit: another format, class or ``form``, other groups, names, shapes or dtypes. Nothing
            has been loaded then.
        """
        options, entries = self._read(state_dict)
        self._enter()
        try:
            for i, entry in enumerate(entries):
                self._allocate([i], tuple(name for name in self._state_names if name in entry["state"]))
            self._apply(dict(enumerate(options)))
            for i, entry in enumerate(entries):
                for name, x in self._state[i].items():
                    x[...] = entry["state"].get(name, 0)
            self._started = [entry["started"] for entry in entries]
        finally:
            self._leave()

    def _read(self, state_dict: Mapping[str, Any]) -> tuple[list[Options], list[dict[str, Any]]]:
        try:
            if state_dict["format"] != FORMAT:
                raise CheckpointError(f"state_dict has format {state_dict['format']!r}; expected {FORMAT}")
            if state_dict["optimizer"] != type(self).__name__:
                raise CheckpointError(f"state_dict is of {state_dict['optimizer']}; expected {type(self).__name__}")
            saved = list(state_dict["groups"])
            if len(saved) != len(self.groups):
                raise CheckpointError(f"state_dict has {len(saved)} groups; expected {len(self.groups)}")
            options = [self._read_options(i, group["options"]) for i, group in enumerate(saved)]
            entries = [(i, entry) for i, group in enumerate(saved) for entry in group["params"]]
            if [i for i, _ in entries] != self._structure.group_of:
                counts = [self._structure.group_of.count(i) for i in range(len(saved))]
                raise CheckpointError(
                    f"state_dict has {[len(g['params']) for g in saved]} parameters in its groups; expected {counts}"
                )
            return options, [self._read_entry(i, entry) for i, (_, entry) in enumerate(entries)]
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"state_dict is not one of gdm's: {type(error).__name__}: {error}") from error

    def _read_options(self, index: int, saved: Mapping[str, Any]) -> Options:
        own = self.groups[index]._options
        if saved.keys() != own.keys():
            raise CheckpointError(f"state_dict group {index} has options {list(saved)}; expected {list(own)}")
        if "form" in own and saved["form"] != own["form"]:
            raise CheckpointError(f"state_dict group {index} has form {saved['form']!r}; expected {own['form']!r}")
        try:
            return _checks.options({name: saved[name] for name in own})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"state_dict group {index}: {error}") from error

    def _read_entry(self, i: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        label, param = self._structure.labels[i], self._params[i]
        if entry["name"] != label:
            raise CheckpointError(f"state_dict has a parameter {entry['name']!r} where {label!r} was expected")
        state = {}
        for name, x in entry["state"].items():
            if name not in self._state_names:
                raise CheckpointError(f"state_dict has an unknown state {name!r} for params{label}")
            array = np.asarray(x)
            if array.dtype != param.dtype or array.shape != param.shape:
                raise CheckpointError(
                    f"the {name} of params{label} has dtype {array.dtype} and shape {array.shape}; "
                    f"expected {param.dtype} and {param.shape}"
                )
            state[name] = array.copy()
        return {"started": _checks.flag("started", entry["started"]), "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        """What copies and pickles hold: the parameters, options and state; not the gradients that are bound."""
        params = self._structure.unflatten(self._params)
        options = self.groups[0]._options
        if self._structure.grouped:
            params = [{"params": p, **g._options} for p, g in zip(params, self.groups, strict=True)]
            options = {}
        return _restore, (type(self), params, options, self.state_dict())

    def __repr__(self) -> str:
        elements = sum(param.size for param in self._params)
        groups = ", ".join(repr(group) for group in self.groups)
        return f"<{type(self).__name__} of {len(self._params)} arrays, {elements:,} elements: {groups}>"


def _restore(cls: type[Optimizer], params: Any, options: Options, state_dict: dict[str, Any]) -> Optimizer:
    optimizer: Optimizer = cls(params, **options)
    optimizer.load_state_dict(state_dict)
    return optimizer


class SGD(Optimizer):
    """Gradient descent, with momentum if asked for: heavy ball or Nesterov, in torch's form or the classic one.

    Parameters
    ----------
    params : array, sequence or mapping of arrays, or list of groups
        What to optimize: float32 or float64, any shapes, contiguous (C or Fortran order), aligned and writable; no two
        may share memory. They are updated in place and kept alive. A group is a mapping with the key ``"params"`` and
        hyperparameters of its own: ``[{"params": weights, "weight_decay": 1e-4}, {"params": biases}]``.
    lr : float, default 0.01
        The learning rate η, finite and not negative.
    momentum : float, default 0
        μ, in [0, 1): the share of the velocity that is kept from step to step. 0 is plain gradient descent, without a
        velocity.
    dampening : float, default 0
        τ, in [0, 1]: the gradient enters the velocity times ``1 - dampening``. Torch's form without Nesterov only.
    nesterov : bool, default False
        Step to where the velocity is about to lead. Needs ``momentum > 0``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    decoupled_weight_decay : bool, default False
        Multiply each parameter by ``1 - lr * weight_decay`` before its update, and leave the gradient alone (SGDW).
    maximize : bool, default False
        Walk up the gradient instead of down.
    form : {"torch", "classic"}, default "torch"
        Whether the learning rate scales the whole velocity when it is applied (PyTorch, optax, MLX), or each gradient
        when it enters (the textbook, Keras, scikit-learn). The same path as long as ``lr`` does not change.

    Attributes
    ----------
    lr, momentum, dampening, nesterov, weight_decay, decoupled_weight_decay, maximize
        The hyperparameters, checked when set. Setting one sets it in every group.
    form
        The form; it cannot be changed.
    groups : tuple of Group
        The groups, with the same attributes: ``opt.groups[1].lr = 0.001``.
    velocity
        The velocities, in the structure of ``params``; None for a parameter without momentum.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        For parameters or hyperparameters that are not as above; the message names them.

    Notes
    -----
    Each parameter is updated by the formulas of :func:`gdm.sgd` (``momentum=0``) or :func:`gdm.momentum`. In torch's
    form the first step of a parameter sets its velocity to its gradient, undampened, as ``torch.optim.SGD`` does; in
    the classic form the velocity starts from zero.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.SGD(theta, lr=0.25, momentum=0.5)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta
    array([-0.25,  0.25])
    """

    lr = Hyperparameter[float]()
    momentum = Hyperparameter[float]()
    dampening = Hyperparameter[float]()
    nesterov = Hyperparameter[bool]()
    weight_decay = Hyperparameter[float]()
    decoupled_weight_decay = Hyperparameter[bool]()
    maximize = Hyperparameter[bool]()
    form = Hyperparameter[str]()

    _state_names = ("velocity",)

    def __init__(
        self,
        params: Params,
        lr: float = 0.01,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        form: Literal["torch", "classic"] = "torch",
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "form": form,
            },
        )

    @staticmethod
    def _rule(options: Options) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        if options["momentum"] == 0:
            return "sgd", (), ("lr", "weight_decay", "maximize", "decoupled_weight_decay")
        return "momentum", ("velocity",), tuple(options)

    @property
    def velocity(self) -> Any:
        """The velocities: views, in the structure of ``params``; None for a parameter without momentum."""
        return self._structure.unflatten([s["velocity"][...] if "velocity" in s else None for s in self._state])
