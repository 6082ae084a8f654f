"""What all optimizers share: parameters, groups, hyperparameters, state, and how they are saved."""

from __future__ import annotations

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
        self._parts: list[
            dict[float, int]
        ] = []  # per group: factor of the learning rate -> index of the group in the plan
        self._params: list[Array] = []
        self._users: list[Array] = []
        self._state: list[dict[str, Array]] = []
        self._scales: list[float | Array] = []
        self._defaults: Options = {**defaults, "lr_scale": lr_scale}
        self._take(*Structure.of(params))
        self.threads = threads

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
        shown = []
        for i, (o, scale) in enumerate(zip(options, scales, strict=True), first):
            as_shown, new_factors = self._checked_scale(structure, i, scale, params)
            shown.append({**o, "lr_scale": as_shown})
            factors += new_factors
        self._structure, self._params, self._users, self._scales = structure, params, users, factors
        self._state += [{} for _ in new]
        self._options += shown
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
        return first

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
            raise type(error)(f"group {index}: {error}" if structure.grouped else str(error)) from None

    def _checked_scale(
        self, structure: Structure, index: int, scale: Any, params: list[Array]
    ) -> tuple[Any, list[float | Array]]:
        """The factors of the learning rate of a group's parameters, as they are shown, and one for each of them.

        Numbers, or arrays like the parameters, which are copies that nobody can change.
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
        self._enter()
        try:
            options, scales = dict(enumerate(self._options)), list(self._scales)
            for i, change in changes.items():
                scale = change.get("lr_scale", options[i]["lr_scale"])
                base = {name: value for name, value in options[i].items() if name != "lr_scale"}
                given = {name: value for name, value in change.items() if name != "lr_scale"}
                if "lr_scale" in change:
                    scale, checked = self._checked_scale(self._structure, i, scale, self._params)
                    factors = iter(checked)
                    scales = [
                        next(factors) if group == i else x
                        for group, x in zip(self._structure.group_of, scales, strict=True)
                    ]
                options[i] = {**self._checked(self._structure, i, base, given), "lr_scale": scale}
            self._apply(list(options.values()), scales)
        finally:
            self._leave()

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
        self._scheduled = any(callable(o["lr"]) for o in options)
        for i, group in enumerate(options):
            rule, rate = self._rule_of(group), self._rate(i)
            for factor, part in self._parts[i].items():
                self._configure(part, rule, self._given_to(rule, group, rate * factor))

    def _rate(self, i: int) -> float:
        """The learning rate of a group's next step."""
        lr = self._options[i]["lr"]
        return rate_at(lr, self._group_progress(i)[0]) if callable(lr) else lr

    def _set_rates(self) -> None:
        for i, options in enumerate(self._options):
            if callable(options["lr"]):
                rate = self._rate(i)
                for factor, part in self._parts[i].items():
                    self._set_rate(part, rate * factor)

    # The plan behind it. A group whose parameters have learning rates of their own is several groups there.

    def _rebuild(self) -> None:
        """Makes the table anew: after a change of what there is to be stepped."""
        began = [*self._started, *[False] * len(self._params)][: len(self._params)] if self._parts else []
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
            for factor in [1.0, *sorted(own - {1.0})]:  # 1 even without parameters: it keeps the count of steps
                parts[i][factor] = len(groups)
                lr = options["lr"]
                rate = rate_at(lr, progress[i][0]) if callable(lr) else lr
                groups.append((rule, self._given_to(rule, options, rate * factor)))
        shapes, group_of = self._structure.shapes, self._structure.group_of
        one = not self._structure.grouped and shapes[0] is None
        flat = not self._structure.grouped and isinstance(shapes[0], int)
        states = [
            [None if name is None else state[name] for name in self._states_for(self._options[group])]
            for state, group in zip(self._state, group_of, strict=True)
        ]
        place = [parts[g][x if isinstance(x, float) else 1.0] for x, g in zip(self._scales, group_of, strict=True)]
        scales = [None if isinstance(x, float) else x for x in self._scales]
        self._table(self._users, self._params, states, scales, place, groups, one, flat)
        self._parts = parts
        self._started = began or [False] * len(self._params)
        self._progress = [progress[i] for i, part in enumerate(parts) for _ in part]
        self._scheduled = any(callable(o["lr"]) for o in self._options)

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
        self._enter()
        try:
            structure, arrays, given = self._structure.with_group(group)
            self._take(structure, arrays, [given], len(self._options))
        finally:
            self._leave()
        return Group(self, len(self._options) - 1)

    def remove_group(self, key: int | str) -> None:
        """Forgets a group, by its index or name, with its state; what was bound is forgotten."""
        index = self._structure.index_of(key)
        self._enter()
        try:
            kept = [i for i, group in enumerate(self._structure.group_of) if group != index]
            began, progress = self._started, [self._group_progress(i) for i in range(len(self._options))]
            self._structure = self._structure.without_group(index)
            for name in ("_params", "_users", "_state", "_scales"):
                setattr(self, name, [getattr(self, name)[i] for i in kept])
            for per_group in (self._options, progress, self._parts):
                del per_group[index]
            self._rebuild()
            self._started = [began[i] for i in kept]
            self._progress = [progress[i] for i, part in enumerate(self._parts) for _ in part]
        finally:
            self._leave()

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
        products = [product for _, product in progress]
        results: list[tuple[Array, Array]] = []
        for i, (param, grad) in enumerate(zip(self._params, grads, strict=True)):
            group, scale = self._structure.group_of[i], self._scales[i]
            options = self._options[group]
            rule = self._rule_of(options)
            steps, product = progress[group]
            given = self._given_to(rule, options, self._rate(group) * (scale if isinstance(scale, float) else 1.0))
            given |= {"step": steps + 1, "mu_product": np.array(product)}
            if not isinstance(scale, float):
                given["lr_scale"] = scale
            # The gradient's memory in the parameter's layout: a bound array may have been given another shape since.
            layout: Literal["C", "F"] = "C" if param.flags.c_contiguous else "F"
            plain = np.ndarray.view(grad, np.ndarray).ravel(order="K").reshape(param.shape, order=layout)
            buffers = {"param": param, "grad": plain, **self._state[i]}
            new = reference.update(rule, {**given, **buffers}, first=not started[i])
            products[group] = float(new.pop("mu_product", np.float64(products[group])))
            results += [(buffers[name], x) for name, x in new.items()]
            started[i] = started[i] or len(new) > 1
        for array, value in results:
            array[...] = value
        self._started = started
        self._progress = [
            (steps + 1, product)
            for (steps, _), product, parts in zip(progress, products, self._parts, strict=True)
            for _ in parts
        ]

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
        return self._saved(copy=True)

    def _saved(self, *, copy: bool) -> dict[str, Any]:
        self._enter()
        try:
            groups: list[dict[str, Any]] = []
            for i, options in enumerate(self._options):
                steps, product = self._group_progress(i)
                plain = {
                    **options,
                    "lr": _plain_rate(options["lr"]),
                    "lr_scale": _plain_scale(options["lr_scale"], copy),
                }
                name = self._structure.names[i]
                groups.append({"name": name, "options": plain, "steps": steps, "mu_product": product, "params": []})
            for i, started in enumerate(self._started):
                state = {name: x.copy() if copy else x for name, x in self._state[i].items()}
                entry = {"name": self._structure.labels[i], "started": started, "state": state}
                groups[self._structure.group_of[i]]["params"].append(entry)
        finally:
            self._leave()
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
        groups, entries = self._read(state_dict)
        self._enter()
        try:
            for i, entry in enumerate(entries):
                self._state[i] = {name: self._state[i][name] for name in self._state[i] if name in entry["state"]}
            self._options = [options for options, _, _, _ in groups]
            self._scales = [x for _, _, _, scales in groups for x in scales]
            self._allocate([entry["state"] for entry in entries])
            self._rebuild()
            for i, entry in enumerate(entries):
                for name, x in self._state[i].items():
                    if name in entry["state"]:
                        x[...] = entry["state"][name]
            self._started = [entry["started"] for entry in entries]
            self._progress = [
                (steps, product)
                for (_, steps, product, _), parts in zip(groups, self._parts, strict=True)
                for _ in parts
            ]
        finally:
            self._leave()

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
                raise CheckpointError(
                    "state_dict is torch's; gdm.torch.load_state_dict reads those"
                ) from None  # whatever reading something else than a state may come to
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
    copy.flags.writeable = False
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


def _plain_scale(scale: Any, copy: bool) -> Any:
    if isinstance(scale, Mapping):
        return {key: _plain_scale(x, copy) for key, x in scale.items()}
    if isinstance(scale, np.ndarray):
        return scale.copy() if copy else scale
    return [_plain_scale(x, copy) for x in scale] if isinstance(scale, (list, tuple)) else scale


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
