"""Optimizers: a rule, the parameters it is applied to, and the state it keeps for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import numpy as np

from . import _checks, reference
from ._backend import Stepper
from ._checks import Array, Named, Options
from ._structure import Structure
from .errors import CheckpointError

if TYPE_CHECKING:
    from ._checks import Floats

    Params = Floats | Iterable[Floats] | Mapping[str, Floats] | Iterable[Mapping[str, Any]]

T = TypeVar("T")

FORMAT = 1  # of state_dict


class Group:
    """A part of an optimizer's parameters with hyperparameters of its own, as attributes that are checked when set."""

    __slots__ = ("_index", "_optimizer")

    def __init__(self, optimizer: Optimizer, index: int) -> None:
        object.__setattr__(self, "_optimizer", optimizer)
        object.__setattr__(self, "_index", index)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        options = self._optimizer._options[self._index]
        if name not in options:
            raise AttributeError(f"a group has no hyperparameter {name!r}; it has {', '.join(options)}")
        return options[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._optimizer._set_options({self._index: {name: value}})

    def __reduce__(self) -> tuple[Any, ...]:
        return Group, (self._optimizer, self._index)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._optimizer._options[self._index]]

    def __repr__(self) -> str:
        options = self._optimizer._options[self._index]
        return f"Group({', '.join(f'{name}={value!r}' for name, value in options.items())})"


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
        values = {options[self.name] for options in optimizer._options}
        if len(values) != 1:
            raise ValueError(f"the groups differ in {self.name}; use opt.groups[i].{self.name}")
        value: T = values.pop()
        return value

    def __set__(self, optimizer: Optimizer, value: T) -> None:
        optimizer._set_options({i: {self.name: value} for i in range(len(optimizer._options))})


class Optimizer(Stepper):
    """What all optimizers share: parameters, groups, state, and how both are saved. See the subclasses."""

    _state_names: tuple[str, ...]  # all that a rule of this class may have, in the rule's order

    def __init__(self, params: Any, defaults: Options, threads: int | None) -> None:
        if hasattr(self, "_structure"):
            raise RuntimeError("an optimizer cannot be initialised twice")
        structure = Structure(params)
        self._structure = structure
        options = [self._checked(i, defaults, given) for i, given in enumerate(structure.group_options)]
        labels = [f"params{label}" for label in structure.labels]
        arrays = [_checks.buffer(label, x, writable=True) for label, x in zip(labels, structure.arrays, strict=True)]
        _checks.disjoint(Named(label, x, True) for label, x in zip(labels, arrays, strict=True))
        # Views of our own, whose shape and dtype nobody else can change; the user's arrays, to see whether they move.
        self._params = [x.view() for x in arrays]
        given = [x if isinstance(x, np.ndarray) else y for x, y in zip(structure.arrays, arrays, strict=True)]
        structure.arrays = []
        self._state: list[dict[str, Array]] = [{} for _ in arrays]
        self._options = options
        one = not structure.grouped and structure.shapes[0] is None
        flat = not structure.grouped and isinstance(structure.shapes[0], int)
        self._table(given, self._params, structure.group_of, len(options), one, flat)
        self.threads = threads
        self._apply(dict(enumerate(options)))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups, whose hyperparameters can be read and set: ``opt.groups[1].lr = 0.001``."""
        return tuple(Group(self, i) for i in range(len(self._options)))

    @property
    def threads(self) -> int | None:
        """How many threads a step of this optimizer may use; None for as many as :func:`gdm.get_num_threads` says."""
        return self._threads

    @threads.setter
    def threads(self, n: int | None) -> None:
        self._threads = None if n is None else _checks.thread_count("threads", n)

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
        try:
            return _checks.options({**base, **changes})
        except (TypeError, ValueError) as error:
            raise type(error)(f"group {index}: {error}" if self._structure.grouped else str(error)) from None

    def _set_options(self, changes: dict[int, Options]) -> None:
        """Changes hyperparameters of groups, all or none."""
        for name in {name for change in changes.values() for name in change}:
            if name == "form":
                raise AttributeError("form is fixed when the optimizer is made: the velocity means something else then")
            if name not in self._options[0]:
                known = ", ".join(self._options[0])
                raise AttributeError(f"{type(self).__name__} has no hyperparameter {name!r}; it has {known}")
        self._enter()
        try:
            self._apply({i: self._checked(i, self._options[i], change) for i, change in changes.items()})
        finally:
            self._leave()

    def _apply(self, options: dict[int, Options]) -> None:
        for i, o in options.items():
            rule, states, taken = self._rule(o)
            if states:
                self._allocate([k for k, group in enumerate(self._structure.group_of) if group == i], states)
            self._configure(i, rule, {name: o[name] for name in taken})
            self._options[i] = o

    # State.

    def _allocate(self, indices: list[int], names: tuple[str, ...]) -> None:
        """Gives these parameters the states they lack: zeros, in one piece of memory, each on cache lines of its own.

        A state lies in its lines as its parameter does, so that the kernels meet both at the beginning of a line.
        Arrays that do not own their memory cannot be resized, so that the step need not check whether they were.
        """
        wanted = [(i, name) for i in indices for name in names if name not in self._state[i]]
        if not wanted:
            return
        line = 64
        places = [_checks.address(self._params[i]) % line for i, _ in wanted]
        sizes = [
            -(-(place + self._params[i].nbytes) // line) * line for (i, _), place in zip(wanted, places, strict=True)
        ]
        slab = np.zeros(sum(sizes) + line, dtype=np.uint8)
        start = -_checks.address(slab) % line
        for (i, name), place, size in zip(wanted, places, sizes, strict=True):
            param = self._params[i]
            flat = slab[start + place : start + place + param.nbytes].view(param.dtype)
            self._state[i][name] = flat.reshape(param.shape, order="C" if param.flags.c_contiguous else "F")
            start += size
        for i in {i for i, _ in wanted}:
            self._states(i, [self._state[i][name] for name in names])
        self._arrange()

    # What the Stepper asks for.

    def _label(self, what: str, i: int) -> str:
        return what + (self._structure.labels if what == "params" else self._structure.grad_labels)[i]

    def _flatten(self, grads: Any) -> list[Any]:
        return self._structure.flatten("grads", grads)

    def _check_grads(self, grads: list[Any]) -> list[Array]:
        """The gradients as arrays, each requirement checked. Other people's code runs in the first line only."""
        labels = [self._label("grads", i) for i in range(len(self._params))]
        arrays = [_checks.buffer(label, grad, writable=False) for label, grad in zip(labels, grads, strict=True)]
        for i, (label, array) in enumerate(zip(labels, arrays, strict=True)):
            _checks.like(label, array, self._label("params", i), self._params[i])
        written = [Named(self._label("params", i), param, True) for i, param in enumerate(self._params)]
        written += [
            Named(f"the {name} of {self._label('params', i)}", x, True)
            for i, state in enumerate(self._state)
            for name, x in state.items()
        ]
        _checks.disjoint(written + [Named(label, x, False) for label, x in zip(labels, arrays, strict=True)])
        return [g if isinstance(g, np.ndarray) else array for g, array in zip(grads, arrays, strict=True)]

    def _reference_step(self, grads: list[Array]) -> None:
        started = list(self._started)
        results: list[tuple[Array, Array]] = []
        for i, (param, grad) in enumerate(zip(self._params, grads, strict=True)):
            options = self._options[self._structure.group_of[i]]
            rule, names, taken = self._rule(options)
            states = [self._state[i][name] for name in names]
            given = {name: options[name] for name in taken}
            # The gradient's memory in the parameter's layout: a bound array may have been given another shape since.
            layout: Literal["C", "F"] = "C" if param.flags.c_contiguous else "F"
            plain = np.ndarray.view(grad, np.ndarray).ravel(order="K").reshape(param.shape, order=layout)
            new = reference.update(rule, param, states, plain, given, first=not started[i])
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
        groups: list[dict[str, Any]] = [{"options": dict(options), "params": []} for options in self._options]
        self._enter()
        try:
            for i, started in enumerate(self._started):
                state = {name: x.copy() for name, x in self._state[i].items()}
                entry = {"name": self._structure.labels[i], "started": started, "state": state}
                groups[self._structure.group_of[i]]["params"].append(entry)
        finally:
            self._leave()
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
            for names in {tuple(entry["state"]) for entry in entries}:
                self._allocate([i for i, entry in enumerate(entries) if tuple(entry["state"]) == names], names)
            self._apply(dict(enumerate(options)))
            for i, entry in enumerate(entries):
                for name, x in self._state[i].items():
                    x[...] = entry["state"].get(name, 0)
            self._started = [entry["started"] for entry in entries]
        finally:
            self._leave()

    def _read(self, state_dict: Mapping[str, Any]) -> tuple[list[Options], list[dict[str, Any]]]:
        try:
            return self._read_groups(state_dict)
        except CheckpointError:
            raise
        except Exception as error:  # whatever reading something else than a state may come to
            raise CheckpointError(f"state_dict is not one of gdm's: {type(error).__name__}: {error}") from error

    def _read_groups(self, state_dict: Mapping[str, Any]) -> tuple[list[Options], list[dict[str, Any]]]:
        if type(state_dict["format"]) is not int or state_dict["format"] != FORMAT:
            raise CheckpointError(f"state_dict has format {state_dict['format']!r}; expected {FORMAT}")
        if state_dict["optimizer"] != type(self).__name__:
            raise CheckpointError(f"state_dict is of {state_dict['optimizer']}; expected {type(self).__name__}")
        saved = list(state_dict["groups"])
        if len(saved) != len(self._options):
            raise CheckpointError(f"state_dict has {len(saved)} groups; expected {len(self._options)}")
        options = [self._read_options(i, group["options"]) for i, group in enumerate(saved)]
        entries = [(i, entry) for i, group in enumerate(saved) for entry in group["params"]]
        if [i for i, _ in entries] != self._structure.group_of:
            counts = [self._structure.group_of.count(i) for i in range(len(saved))]
            raise CheckpointError(
                f"state_dict has {[len(g['params']) for g in saved]} parameters in its groups; expected {counts}"
            )
        return options, [self._read_entry(i, options[group], entry) for i, (group, entry) in enumerate(entries)]

    def _read_options(self, index: int, saved: Mapping[str, Any]) -> Options:
        own = self._options[index]
        if saved.keys() != own.keys():
            raise CheckpointError(f"state_dict group {index} has options {list(saved)}; expected {list(own)}")
        if "form" in own and saved["form"] != own["form"]:
            raise CheckpointError(f"state_dict group {index} has form {saved['form']!r}; expected {own['form']!r}")
        try:
            return _checks.options({name: saved[name] for name in own})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"state_dict group {index}: {error}") from error

    def _read_entry(self, i: int, options: Options, entry: Mapping[str, Any]) -> dict[str, Any]:
        label, param = self._structure.labels[i], self._params[i]
        if entry["name"] != label:
            raise CheckpointError(f"state_dict has a parameter {entry['name']!r} where {label!r} was expected")
        started, saved = _checks.flag("started", entry["started"]), dict(entry["state"])
        if unknown := saved.keys() - set(self._state_names):
            raise CheckpointError(f"state_dict has unknown states {sorted(unknown)} for params{label}")
        if started and (missing := set(self._rule(options)[1]) - saved.keys()):
            raise CheckpointError(f"state_dict lacks the states {sorted(missing)} of params{label}")
        state = {name: np.array(saved[name]) for name in self._state_names if name in saved}
        for name, x in state.items():
            if x.dtype != param.dtype or x.shape != param.shape:
                raise CheckpointError(
                    f"the {name} of params{label} has dtype {x.dtype} and shape {x.shape}; "
                    f"expected {param.dtype} and {param.shape}"
                )
        return {"started": started, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        """What copies and pickles hold: the parameters, options and state; not the gradients that are bound."""
        params = self._structure.unflatten(self._given)
        options = self._options[0]
        if self._structure.grouped:
            params = [{"params": p, **o} for p, o in zip(params, self._options, strict=True)]
            options = {}
        return _restore, (type(self), params, {**options, "threads": self.threads}, self.state_dict())

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
    threads : int, optional
        How many threads a step may use, from 1 to 256; by default as many as :func:`gdm.get_num_threads` says. The
        result does not depend on it.

    Attributes
    ----------
    lr, momentum, dampening, nesterov, weight_decay, decoupled_weight_decay, maximize
        The hyperparameters, checked when set. Setting one sets it in every group.
    form
        The form; it cannot be changed.
    threads
        How many threads a step may use, or None; not part of the saved state.
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
        threads: int | None = None,
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
            threads,
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
