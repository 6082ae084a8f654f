"""What all optimizers share: parameters, groups, hyperparameters, state, and how they are saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from . import _checks, reference
from ._backend import Stepper
from ._checks import Array, Named, Options
from ._structure import Structure
from .errors import CheckpointError

if TYPE_CHECKING:
    from ._checks import Floats

    Params = Floats | Iterable[Floats] | Mapping[str, Floats] | Iterable[Mapping[str, Any]]
    Rate = float | Callable[[int], float]  # a learning rate, or a schedule of it

FORMAT = 2  # of state_dict
FIXED = ("form",)  # hyperparameters that the state depends on
_NUMBERS = (int, float, np.number)
# What an optimizer consists of: replaced by new objects, never changed, so that they can be put back.
PARTS = ("_structure", "_options", "_parts", "_params", "_users", "_state", "_scales")


class Group:
    """A part of an optimizer's parameters with hyperparameters of its own, as attributes that are checked when set."""

    __slots__ = ("_index", "_optimizer")

    def __init__(self, optimizer: Optimizer, index: int) -> None:
        object.__setattr__(self, "_optimizer", optimizer)
        object.__setattr__(self, "_index", index)

    @property
    def name(self) -> str | None:
        """What the group was called where it was made: the key ``"name"``."""
        name: str | None = self._optimizer._structure.names[self._index]
        return name

    @property
    def steps(self) -> int:
        """How many steps the group has made."""
        steps: int = self._optimizer._group_progress(self._index)[0]
        return steps

    @property
    def current_lr(self) -> float:
        """The learning rate of the next step: ``lr`` itself, or what the schedule says."""
        rate: float = self._optimizer._rate(self._index)
        return rate

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        options = self._optimizer._options[self._optimizer._structure.index_of(self._index)]
        if name not in options:
            raise AttributeError(f"a group has no hyperparameter {name!r}; it has {', '.join(options)}")
        return _copied(options[name])

    def __setattr__(self, name: str, value: Any) -> None:
        self._optimizer._set_options({self._index: {name: value}})

    def __reduce__(self) -> tuple[Any, ...]:
        return Group, (self._optimizer, self._index)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._optimizer._options[self._index]]

    def __repr__(self) -> str:
        options = self._optimizer._options[self._index]
        named = [f"name={self.name!r}"] if self.name is not None else []
        return f"Group({', '.join(named + [f'{name}={value!r}' for name, value in options.items()])})"


class Groups:
    """The groups of an optimizer, by index or by name."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def __len__(self) -> int:
        return len(self._optimizer._options)

    def __iter__(self) -> Iterator[Group]:
        return (Group(self._optimizer, i) for i in range(len(self)))

    def __getitem__(self, key: int | str) -> Group:
        return Group(self._optimizer, self._optimizer._structure.index_of(key))

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self))}]"


class Optimizer(Stepper):
    """What all optimizers share: parameters, groups, state, and how both are saved. See the subclasses."""

    _rule: str  # the name of its rule; what it takes and keeps, that rule's function in gdm.reference says
    _initial: ClassVar[Mapping[str, str]] = {}  # the hyperparameter that a state begins with, where that is not 0

    def __init__(self, params: Any, threads: int | None, lr_scale: Any, **defaults: Any) -> None:
        if "_structure" in self.__dict__:
            raise RuntimeError("an optimizer cannot be initialised twice")
        self._options: list[Options] = []
        # For each group, from each factor of its learning rate to the index of a group in the plan.
        self._parts: list[dict[float, int]] = []
        self._params: list[Array] = []
        self._users: list[Array] = []
        self._state: list[dict[str, Array]] = []
        self._scales: list[float | Array] = []
        self._current: list[float] = []  # with a schedule, the groups' learning rates of the step that is being made
        self._defaults: Options = {**defaults, "lr_scale": _own_scale(lr_scale)}
        self._take(*Structure.of(params))
        self.threads = threads

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """A change that is made by one thread alone, and whole or not at all.

        Anything may go wrong on the way: a schedule or a buffer of the user's may raise, memory run short, an
        interrupt come. Until the plan is changed, which is the last thing to be done, everything can be put back.
        """
        self._enter()
        try:
            before, version = {name: self.__dict__[name] for name in PARTS}, self._version
            try:
                yield
            except BaseException:
                if self._version == version:
                    self.__dict__.update(before)
                raise
        finally:
            self._leave()

    def _take(self, structure: Structure, arrays: list[Any], given: list[Options], first: int = 0) -> None:
        """Takes in groups, from index ``first`` on, with their arrays, all or nothing."""
        known = {name: value for name, value in self._defaults.items() if name != "lr_scale"}
        default = self._defaults["lr_scale"]
        if structure.grouped and not isinstance(default, _NUMBERS):
            if "_structure" not in self.__dict__:
                raise TypeError("lr_scale must be a number where there are groups; give others in the groups")
            default = 1.0  # what was given for the parameters there were says nothing of new ones
        options, scales = [], []
        for i, group in enumerate(given, first):
            scale = group.get("lr_scale", default)
            changes = {name: value for name, value in group.items() if name != "lr_scale"}
            options.append(self._checked(structure, i, known, changes))
            scales.append(scale)
        labels = [f"params{label}" for label in structure.labels]
        new = [
            _checks.buffer(label, x, writable=True)
            for label, x in zip(labels[len(self._params) :], arrays, strict=True)
        ]
        # Views of our own, whose shape and dtype nobody else can change; the user's arrays, to see whether they move.
        params = [*self._params, *(x.view() for x in new)]
        users = [*self._users, *(x if isinstance(x, np.ndarray) else y for x, y in zip(arrays, new, strict=True))]
        _checks.disjoint([*(Named(label, x, True) for label, x in zip(labels, params, strict=True)), *self._owned()])
        factors = list(self._scales)
        for i, (group, scale) in enumerate(zip(options, scales, strict=True), first):
            group["lr_scale"], more = self._checked_scale(structure, i, scale, params)
            factors += more
        self._structure, self._params, self._users, self._scales = structure, params, users, factors
        self._state = [*self._state, *({} for _ in new)]
        self._options = [*self._options, *options]
        self._rebuild()

    @property
    def groups(self) -> Groups:
        """The groups, whose hyperparameters can be read and set: ``opt.groups[1].lr``, ``opt.groups["head"].lr``."""
        return Groups(self)

    @property
    def steps(self) -> int:
        """How many steps have been made; by the group that has made most, if groups have been added since."""
        return max((steps for steps, _ in map(self._group_progress, range(len(self._options)))), default=0)

    @property
    def threads(self) -> int | None:
        """How many threads a step of this optimizer may use; None for as many as :func:`gdm.get_num_threads` says."""
        return self._threads

    @threads.setter
    def threads(self, n: int | None) -> None:
        self._threads = None if n is None else _checks.thread_count("threads", n)

    # What a rule takes and keeps, of which its function in the reference tells.

    def _rule_of(self, options: Options) -> str:
        """The rule for these options."""
        return self._rule

    def _all_states(self) -> list[str]:
        """The names of all states that a rule of this class may have, in the rule's order."""
        return _states_of(self._rule)

    def _states_for(self, options: Options) -> list[str | None]:
        """The names of the states of these options' rule, in order; None in place of one that they do not need."""
        switch = _checks.OPTIONAL_STATES
        names = _states_of(self._rule_of(options))
        return [name if name not in switch or options[switch[name]] else None for name in names]

    def _given_to(self, rule: str, options: Options, rate: float) -> Options:
        """The options that a rule's function takes, with this learning rate."""
        taken = reference.names(getattr(reference, rule).__wrapped__)[1]
        return {**{name: options[name] for name in taken if name in options and name != "lr_scale"}, "lr": rate}

    # Hyperparameters.

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._all_states():
            return self._structure.unflatten([s[name][...] if name in s else None for s in self._state])
        if name not in self._defaults:
            known = ", ".join([*self._defaults, *self._all_states(), "groups", "steps", "threads"])
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; it has {known}")
        if not self._options:
            raise ValueError(f"there are no groups, and so no {name}")
        first, *others = [options[name] for options in self._options]
        if any(other is not first and not _same(other, first) for other in others):
            raise ValueError(f"the groups differ in {name}; use opt.groups[i].{name}")
        return _copied(first)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            self._set_options({i: {name: value} for i in range(len(self._options))})

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._defaults, *self._all_states()]

    def _checked(self, structure: Structure, index: int, base: Options, changes: Options) -> Options:
        for name in changes:
            if name not in base:
                raise ValueError(
                    f"params[{index}] has an option {name!r} that {type(self).__name__} does not know; "
                    f"it knows {', '.join([*base, 'lr_scale'])}"
                )
        merged = {**base, **changes}
        schedule = merged["lr"] if callable(merged["lr"]) else None
        try:
            checked = _checks.options({**merged, "lr": 0.0} if schedule is not None else merged)
            if schedule is not None:
                checked["lr"] = schedule
                rate_at(schedule, 0)
            return checked
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError  # a schedule may raise one of its own
            raise kind(f"group {index}: {error}" if structure.grouped else str(error)) from None

    def _checked_scale(
        self, structure: Structure, index: int, scale: Any, params: list[Array]
    ) -> tuple[Any, list[float | Array]]:
        """The factors of the learning rate of a group: in its structure, and one for each parameter.

        They are numbers, and arrays like the parameters; all are our own, and nobody can change them.
        """
        where = f"group {index}: lr_scale" if structure.grouped else "lr_scale"
        members = [i for i, group in enumerate(structure.group_of) if group == index]
        if isinstance(scale, _NUMBERS):
            number = _checks.real(where, scale, _checks.NOT_NEGATIVE)
            return number, [number] * len(members)
        items = structure.flatten_group(where, index, scale)
        factors = [
            _checks.real(f"{where}[{k}]", x, _checks.NOT_NEGATIVE)
            if isinstance(x, _NUMBERS)
            else _factors(f"{where}[{k}]", x, params[i])
            for k, (i, x) in enumerate(zip(members, items, strict=True))
        ]
        return structure.unflatten_group(index, factors), factors

    def _set_options(self, changes: dict[int, Options]) -> None:
        """Changes hyperparameters of groups, all or none."""
        if not changes:
            raise ValueError("there are no groups whose hyperparameters could be set")
        for name in {name for change in changes.values() for name in change}:
            if name in FIXED and name in self._defaults:
                raise AttributeError(f"{name} is fixed when the optimizer is made: the state means something else then")
            if name in self._initial.values():
                raise AttributeError(f"{name} is what a state begins with; it matters when the optimizer is made")
            if name not in self._defaults:
                known = ", ".join(self._defaults)
                raise AttributeError(f"{type(self).__name__} has no hyperparameter {name!r}; it has {known}")
        for i in changes:
            self._structure.index_of(i)
        with self._changing():
            options, scales = list(self._options), list(self._scales)
            for i, change in changes.items():
                base = {name: value for name, value in options[i].items() if name != "lr_scale"}
                given = {name: value for name, value in change.items() if name != "lr_scale"}
                scale = options[i]["lr_scale"]
                if "lr_scale" in change:
                    scale, factors = self._checked_scale(self._structure, i, change["lr_scale"], self._params)
                    rest = iter(factors)
                    scales = [
                        next(rest) if group == i else x
                        for group, x in zip(self._structure.group_of, scales, strict=True)
                    ]
                options[i] = {**self._checked(self._structure, i, base, given), "lr_scale": scale}
            self._apply(options, scales)

    def _apply(self, options: list[Options], scales: list[float | Array]) -> None:
        """Takes over options that have been checked, for every group."""
        kept = all(x is y for x, y in zip(self._scales, scales, strict=True))
        same_states = all(
            self._states_for(new) == self._states_for(old) for new, old in zip(options, self._options, strict=True)
        )
        self._options, self._scales = options, scales
        if not (kept and same_states):
            self._rebuild()
            return
        changes = []
        for i, group in enumerate(options):
            rule, rate = self._rule_of(group), self._rate(i)
            for factor, part in self._parts[i].items():
                changes.append((part, rule, self._given_to(rule, group, _scaled(rate, factor))))
        self._configure(changes, self._has_schedule())

    def _has_schedule(self) -> bool:
        return any(callable(options["lr"]) for options in self._options)

    def _rate(self, i: int) -> float:
        """The learning rate of a group's next step."""
        lr = self._options[i]["lr"]
        return rate_at(lr, self._group_progress(i)[0]) if callable(lr) else lr

    def _set_rates(self) -> None:
        """Asks the schedules, each once, for the learning rates of this step."""
        self._current = [self._rate(i) for i in range(len(self._options))]
        for options, parts, rate in zip(self._options, self._parts, self._current, strict=True):
            if callable(options["lr"]):
                for factor, part in parts.items():
                    self._set_rate(part, _scaled(rate, factor))

    # The plan behind it. A group whose parameters have learning rates of their own is several groups there.

    def _rebuild(
        self,
        began: list[bool] | None = None,
        progress: list[tuple[int, float]] | None = None,
        writes: list[tuple[Array, Array]] | None = None,
    ) -> None:
        """Makes the table anew: after a change of what there is to be stepped.

        ``began`` says which parameters' states have been through a step, ``progress`` how far each group is; without
        them all that were there go on, and what has been added starts. ``writes``: what is to be copied into states.
        """
        if began is None:
            began = list(self._started) if self._parts else []
            began += [False] * (len(self._params) - len(began))
        if progress is None:
            progress = [self._group_progress(i) for i in range(len(self._options))]
        self._allocate()
        parts: list[dict[float, int]] = []
        groups: list[tuple[str, Options]] = []
        for i, options in enumerate(self._options):
            rule = self._rule_of(options)
            own = {
                x
                for x, g in zip(self._scales, self._structure.group_of, strict=True)
                if g == i and isinstance(x, float)
            }
            parts.append({})
            lr = options["lr"]
            rate = rate_at(lr, progress[i][0]) if callable(lr) else lr
            for factor in [1.0, *sorted(own - {1.0})]:  # 1 even without parameters: it keeps the count of steps
                parts[i][factor] = len(groups)
                groups.append((rule, self._given_to(rule, options, _scaled(rate, factor))))
        shapes, group_of = self._structure.shapes, self._structure.group_of
        one = not self._structure.grouped and shapes[0] is None
        flat = not self._structure.grouped and isinstance(shapes[0], int)
        states = [
            [None if name is None else state[name] for name in self._states_for(self._options[group])]
            for state, group in zip(self._state, group_of, strict=True)
        ]
        place = [parts[g][x if isinstance(x, float) else 1.0] for x, g in zip(self._scales, group_of, strict=True)]
        scales = [None if isinstance(x, float) else x for x in self._scales]
        self._parts = parts
        of_parts = [progress[i] for i, part in enumerate(parts) for _ in part]
        self._table(
            self._users,
            self._params,
            states,
            scales,
            place,
            groups,
            one,
            flat,
            began,
            of_parts,
            self._has_schedule(),
            writes or [],
        )

    def _group_progress(self, i: int) -> tuple[int, float]:
        """The steps that a group has made, and its product of momenta."""
        return self._progress_of(self._parts[i][1.0]) if i < len(self._parts) else (0, 1.0)

    def add_group(self, group: Mapping[str, Any]) -> Group:
        """Adds parameters with hyperparameters of their own, which start from step 0.

        From then on gradients come as a list, with one item for each group; what was bound is forgotten.

        Parameters
        ----------
        group : mapping
            ``"params"``, as given to the class; hyperparameters; and a ``"name"``, if it is to have one.

        Raises
        ------
        TypeError, ValueError, gdm.OverlapError
            As the class does. Nothing has changed then.
        """
        with self._changing():
            structure, arrays, given = self._structure.with_group(group)
            self._take(structure, arrays, [given], len(self._options))
        return Group(self, len(self._options) - 1)

    def remove_group(self, key: int | str) -> None:
        """Forgets a group, by its index or name, with its state; what was bound is forgotten."""
        with self._changing():
            index = self._structure.index_of(key)
            kept = [i for i, group in enumerate(self._structure.group_of) if group != index]
            others = [i for i in range(len(self._options)) if i != index]
            started = self._started
            began, progress = [started[i] for i in kept], [self._group_progress(i) for i in others]
            self._structure = self._structure.without_group(index)
            self._params, self._users = [self._params[i] for i in kept], [self._users[i] for i in kept]
            self._state, self._scales = [self._state[i] for i in kept], [self._scales[i] for i in kept]
            self._options = [self._options[i] for i in others]
            self._rebuild(began, progress)

    # State.

    def _owned(self) -> list[Named]:
        """The states, as steps write to them."""
        return [
            Named(f"the {name} of {self._label('params', i)}", x, True)
            for i, state in enumerate(self._state)
            for name, x in state.items()
        ]

    def _allocate(self, saved: list[Iterable[str]] | None = None) -> None:
        """Gives all parameters the states they lack, in one piece of memory, each on cache lines of its own.

        Those are the states of their rule, and for each parameter the ``saved`` ones: an option that is off now may be
        switched on again.

        A state lies in its lines as its parameter does, so that the kernels meet both at the beginning of a line.
        Arrays that do not own their memory cannot be resized, so that the step need not check whether they were.
        """
        wanted = [
            (i, name)
            for i, group in enumerate(self._structure.group_of)
            for name in dict.fromkeys([*self._states_for(self._options[group]), *(saved[i] if saved else ())])
            if name is not None and name not in self._state[i]
        ]
        if not wanted:
            return
        self._state = [dict(state) for state in self._state]
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
            if name in self._initial:
                flat[...] = self._options[self._structure.group_of[i]][self._initial[name]]
            self._state[i][name] = flat.reshape(param.shape, order="C" if param.flags.c_contiguous else "F")
            start += size

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
        written += self._owned()
        _checks.disjoint(written + [Named(label, x, False) for label, x in zip(labels, arrays, strict=True)])
        return [g if isinstance(g, np.ndarray) else array for g, array in zip(grads, arrays, strict=True)]

    def _reference_step(self, grads: list[Array]) -> None:
        started = list(self._started)
        progress = [self._group_progress(i) for i in range(len(self._options))]
        rates = self._current if self._has_schedule() else [options["lr"] for options in self._options]
        products = [product for _, product in progress]
        results: list[tuple[Array, Array]] = []

        def update(group: int, rate: float, buffers: dict[str, Array], first: bool) -> dict[str, Array]:
            options, (steps, product) = self._options[group], progress[group]
            rule = self._rule_of(options)
            given = self._given_to(rule, options, rate) | {"step": steps + 1, "mu_product": np.array(product)}
            new = reference.update(rule, {**given, **buffers}, first=first)
            products[group] = float(new.pop("mu_product", np.float64(product)))
            return new

        for group in set(range(len(progress))).difference(self._structure.group_of):  # without parameters: they count
            names = self._all_states()
            update(group, rates[group], {name: np.empty(0) for name in ["param", "grad", *names]}, False)
        for i, (param, grad) in enumerate(zip(self._params, grads, strict=True)):
            group, scale = self._structure.group_of[i], self._scales[i]
            # The gradient's memory in the parameter's layout: a bound array may have been given another shape since.
            layout: Literal["C", "F"] = "C" if param.flags.c_contiguous else "F"
            plain = np.ndarray.view(grad, np.ndarray).ravel(order="K").reshape(param.shape, order=layout)
            buffers = {"param": param, "grad": plain, **self._state[i]}
            if isinstance(scale, float):
                new = update(group, rates[group] * scale, buffers, not started[i])
            else:
                new = update(group, rates[group], {**buffers, "lr_scale": scale}, not started[i])
            results += [(buffers[name], x) for name, x in new.items()]
            started[i] = started[i] or len(new) > 1
        counted = [
            (steps + 1, product)
            for (steps, _), product, parts in zip(progress, products, self._parts, strict=True)
            for _ in parts
        ]
        self._stepped(results, started, counted)

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later :meth:`load_state_dict` needs to go on to the bit: copies, plain arrays and scalars.

        Returns
        -------
        dict
            ``format`` (int), ``optimizer`` (the class's name), and ``groups``: a list with, for each group, its
            ``name``, ``options`` (the hyperparameters; for a schedule what :func:`gdm.schedules.to_dict` gives; None
            for a function of the user's own, which is not saved), ``steps``, ``mu_product`` (NAdam's), and ``params``:
            a list with, for each parameter, ``name``, ``started``, and the arrays of its ``state``.
        """
        with self._changing():
            return self._saved(copy=True)

    def _saved(self, *, copy: bool) -> dict[str, Any]:
        """The same; without copies it holds only as long as nobody changes anything."""
        groups: list[dict[str, Any]] = []
        for i, options in enumerate(self._options):
            steps, product = self._group_progress(i)
            scale = options["lr_scale"]
            plain = {**options, "lr": _plain_rate(options["lr"]), "lr_scale": _copied(scale) if copy else scale}
            name = self._structure.names[i]
            groups.append({"name": name, "options": plain, "steps": steps, "mu_product": product, "params": []})
        for i, started in enumerate(self._started):
            state = {name: x.copy() if copy else x for name, x in self._state[i].items()}
            entry = {"name": self._structure.labels[i], "started": started, "state": state}
            groups[self._structure.group_of[i]]["params"].append(entry)
        return {"format": FORMAT, "optimizer": type(self).__name__, "groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over hyperparameters and state that :meth:`state_dict` gave, of an optimizer for the same parameters.

        A learning rate that was a function of the user's own stays what it is here.

        Raises
        ------
        gdm.CheckpointError
            If anything does not fit: another format, class or ``form``, other groups, names, shapes or dtypes. Nothing
            has been loaded then.
        """
        with self._changing():
            groups, entries = self._read(state_dict)
            self._state = [
                {name: x for name, x in state.items() if name in entry["state"]}
                for state, entry in zip(self._state, entries, strict=True)
            ]
            self._options = [options for options, _, _, _ in groups]
            self._scales = [x for _, _, _, scales in groups for x in scales]
            self._allocate([entry["state"] for entry in entries])
            self._rebuild(
                [entry["started"] for entry in entries],
                [(steps, product) for _, steps, product, _ in groups],
                [
                    (state[name], x)
                    for state, entry in zip(self._state, entries, strict=True)
                    for name, x in entry["state"].items()
                ],
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Writes what :meth:`state_dict` gives to a safetensors file, which is there whole or not at all.

        It is written beside the place, and moved there when it has reached the disk: whatever happens meanwhile, the
        file is the old one or the new one. Needs the package safetensors: ``pip install 'gdm[checkpoint]'``.

        Parameters
        ----------
        path : str or path
            The file; one that is there is replaced.

        Raises
        ------
        ImportError
            If safetensors is missing.
        OSError
            If the file cannot be written. The old one is as it was.
        """
        from . import _checkpoint

        with self._changing():  # no step, which would change what is being written
            _checkpoint.save(path, self._saved(copy=False))

    def load(self, path: str | PathLike[str]) -> None:
        """Reads a file that :meth:`save` wrote, of an optimizer for the same parameters, and goes on from there.

        Parameters
        ----------
        path : str or path
            The file.

        Raises
        ------
        gdm.CheckpointError
            If it is damaged, no such file, or does not fit this optimizer. Nothing has been loaded then.
        OSError
            If it cannot be read.
        """
        from . import _checkpoint

        self.load_state_dict(_checkpoint.load(path))

    def _read(self, state_dict: Mapping[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
        try:
            return self._read_groups(state_dict)
        except CheckpointError:
            raise
        except Exception as error:
            if isinstance(state_dict, (str, bytes, PathLike)):
                raise CheckpointError("state_dict is a path; load() reads files") from None
            if isinstance(state_dict, Mapping) and "param_groups" in state_dict:
                raise CheckpointError("state_dict is torch's; gdm.torch.load_state_dict reads those") from None
            # Whatever reading something else than a state may come to.
            raise CheckpointError(f"state_dict is not one of gdm's: {type(error).__name__}: {error}") from error

    def _read_groups(self, state_dict: Mapping[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
        if type(state_dict["format"]) is not int or state_dict["format"] != FORMAT:
            raise CheckpointError(f"state_dict has format {state_dict['format']!r}; expected {FORMAT}")
        if state_dict["optimizer"] != type(self).__name__:
            raise CheckpointError(f"state_dict is of {state_dict['optimizer']}; expected {type(self).__name__}")
        saved = list(state_dict["groups"])
        names, expected = [group["name"] for group in saved], self._structure.names
        if len(saved) != len(expected):
            raise CheckpointError(f"state_dict has {len(saved)} groups; expected {len(expected)}")
        if names != expected:
            raise CheckpointError(f"state_dict has groups named {names}; expected {expected}")
        entries = [(i, entry) for i, group in enumerate(saved) for entry in group["params"]]
        if [i for i, _ in entries] != self._structure.group_of:
            counts = [self._structure.group_of.count(i) for i in range(len(saved))]
            raise CheckpointError(
                f"state_dict has {[len(g['params']) for g in saved]} parameters in its groups; expected {counts}"
            )
        groups = [self._read_group(i, group) for i, group in enumerate(saved)]
        return groups, [self._read_entry(i, groups[group][0], entry) for i, (group, entry) in enumerate(entries)]

    def _read_group(self, index: int, saved: Mapping[str, Any]) -> tuple[Options, int, float, list[float | Array]]:
        own, given = self._options[index], dict(saved["options"])
        if given.keys() != own.keys():
            raise CheckpointError(f"state_dict group {index} has options {list(given)}; expected {list(own)}")
        for name in FIXED:
            if name in own and given[name] != own[name]:
                raise CheckpointError(f"state_dict group {index} has {name} {given[name]!r}; expected {own[name]!r}")
        try:
            given["lr"] = rate_from(given["lr"], own["lr"])
            scale = given.pop("lr_scale")
            options = self._checked(self._structure, index, given, {})
            scale, scales = self._checked_scale(self._structure, index, scale, self._params)
            steps = _checks.whole("steps", saved["steps"], 0, 2**63 - 1)
            product = _checks.real("mu_product", saved["mu_product"], _checks.UP_TO_ONE)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"state_dict group {index}: {error}") from error
        return {**options, "lr_scale": scale}, steps, product, scales

    def _read_entry(self, i: int, options: Options, entry: Mapping[str, Any]) -> dict[str, Any]:
        label, param = self._structure.labels[i], self._params[i]
        if entry["name"] != label:
            raise CheckpointError(f"state_dict has a parameter {entry['name']!r} where {label!r} was expected")
        started, saved = _checks.flag("started", entry["started"]), dict(entry["state"])
        if unknown := saved.keys() - set(self._all_states()):
            raise CheckpointError(f"state_dict has unknown states {sorted(unknown)} for params{label}")
        if missing := {name for name in self._states_for(options) if name is not None} - saved.keys():
            raise CheckpointError(f"state_dict lacks the states {sorted(missing)} of params{label}")
        state = {name: np.array(saved[name]) for name in self._all_states() if name in saved}
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
        if self._structure.grouped:
            named = [{} if name is None else {"name": name} for name in self._structure.names]
            params = [{"params": p, **o, **n} for p, o, n in zip(params, self._options, named, strict=True)]
        options = {**self._defaults, **(self._options[0] if not self._structure.grouped else {})}
        return _restore, (type(self), params, {**options, "threads": self.threads}, self.state_dict())

    def __repr__(self) -> str:
        elements = sum(param.size for param in self._params)
        groups = ", ".join(repr(group) for group in self.groups)
        return f"<{type(self).__name__} of {len(self._params)} arrays, {elements:,} elements: {groups}>"


def _states_of(rule: str) -> list[str]:
    """The names of all states a rule may have, in its order."""
    formula = getattr(reference, rule).__wrapped__
    return [name for name in reference.written(formula) if name not in ("param", "mu_product")]


def rate_at(schedule: Callable[[int], Any], step: int) -> float:
    return _checks.real(f"lr({step})", schedule(step), _checks.NOT_NEGATIVE)


def _factors(name: str, x: Any, param: Array) -> Array:
    """A copy of an array of factors of the learning rate, as its parameter lies in memory."""
    try:
        given = np.asarray(x, dtype=param.dtype)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or an array, not {type(x).__name__}") from None
    if given.shape != param.shape:
        raise ValueError(f"{name} has shape {given.shape}, but its parameter has {param.shape}")
    if not (np.isfinite(given) & (given >= 0)).all():
        raise ValueError(f"{name} must be finite and not negative in each element")
    copy = np.empty_like(param)
    copy[...] = given
    return copy


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays
        return False


def _plain_rate(lr: Any) -> Any:
    from . import schedules

    if not callable(lr):
        return lr
    try:
        return schedules.to_dict(lr)
    except TypeError:
        return None


def rate_from(saved: Any, own: Any) -> Any:
    """The learning rate that was saved; or one's own where it was a function that could not be."""
    from . import schedules

    if isinstance(saved, Mapping):
        return schedules.from_dict(saved)
    if saved is None and not callable(own):
        raise ValueError("lr was a function, which was not saved; make this optimizer with that function as its lr")
    return own if saved is None else saved


def _copied(option: Any) -> Any:
    """A hyperparameter's value; a copy of factors of the learning rate, which nobody is to change unseen."""
    if isinstance(option, dict):
        return {key: _copied(x) for key, x in option.items()}
    if isinstance(option, np.ndarray):
        return option.copy(order="K")
    return [_copied(x) for x in option] if isinstance(option, list) else option


def _own_scale(scale: Any) -> Any:
    """The user's ``lr_scale`` in containers of our own, which can be gone through more than once."""
    if isinstance(scale, _NUMBERS):
        return scale
    if isinstance(scale, np.ndarray):
        return scale.copy(order="K")
    if isinstance(scale, Mapping):
        return {key: _own_scale(x) for key, x in scale.items()}
    return [_own_scale(x) for x in scale] if isinstance(scale, (list, tuple, Iterator)) else scale


def _scaled(rate: float, factor: float) -> float:
    """The learning rate of a parameter with this factor of its group's."""
    return rate if factor == 1.0 else _checks.real("lr * lr_scale", rate * factor, _checks.NOT_NEGATIVE)


def _restore(cls: type[Optimizer], params: Any, options: Options, state_dict: dict[str, Any]) -> Optimizer:
    optimizer = cls.__new__(cls)
    Optimizer.__init__(optimizer, params, **options)  # a class of its own may take other arguments
    if not state_dict["groups"]:  # all removed; an empty list made one, of no parameters
        optimizer.remove_group(0)
    optimizer.load_state_dict(state_dict)
    return optimizer


def expanded_scale(scale: Any, count: int) -> list[Any]:
    """The factors of ``lr_scale`` in a state, one for each of so many parameters."""
    if isinstance(scale, Mapping):
        return list(scale.values())
    return list(scale) if isinstance(scale, (list, tuple)) else [scale] * count
