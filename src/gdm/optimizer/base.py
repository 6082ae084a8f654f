"""The base class of all optimizers: its public methods, and how changes are made."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import _checks, reference
from .._arrays import are_plain, views
from .._backend import Engine, OptimizerCore
from .._checks import Accepts, Array, Named, Options
from .._foreign import Source, is_tensor
from .._specification import Around, Companions, Progress, Specification
from ..errors import CheckpointError, NonFiniteError
from . import options as hyperparameters
from . import state_dict as saved_state
from .around import AROUND_NAMES, CHANGEABLE, STORAGE, Storage, changed, computed_in, read
from .groups import Group, Groups
from .layout import Layout
from .numpy_step import NonFiniteGradients, Writes, in_shape_of, load, numbers, numbers_like, numpy_step, store
from .options import FIXED, NUMBERS, rate_at, rule_options
from .snapshot import GroupRecord, Snapshot
from .state import WORK, Wanted, allocate, arrays_for, scalar_names, scale_of, state_names, states_for

if TYPE_CHECKING:
    from .._checks import Floats
    from .around import AroundOptions

    Params = Floats | Iterable[Floats] | Mapping[str, Floats] | Iterable[Mapping[str, Any]]
    Rate = float | Callable[[int], float]  # a learning rate, or a schedule of it


NO_AVERAGES = "there are no averages; make the optimizer with average=0.999, for example"


class Optimizer(OptimizerCore):
    """What all optimizers share: parameters, groups, states, and how they are saved. See the subclasses.

    The base class holds an engine and the snapshot that it was made from, and makes a step. A method whose name ends in
    ``_locked`` is called by ``_exclusively``, so that no step and no other change runs meanwhile. It first prepares
    everything that can fail. It ends with one call that puts the change in place as a whole.
    """

    _snapshot: Snapshot
    _rule: str  # the name of its rule; the reference's function of that name declares options, states and scalars
    # States that do not begin with 0, and the hyperparameter that says what they begin with.
    _initial: ClassVar[Mapping[str, str]] = {}
    _has_modes: ClassVar[bool] = False  # the parameters are not always what a training results in: see schedule_free.py
    _storage: Storage
    _around: Around

    def __init__(self, params: Any, threads: int | None, lr_scale: Any, around: AroundOptions, **defaults: Any) -> None:
        if self._snapshot is not None:
            raise RuntimeError("an optimizer cannot be initialised twice")
        for name in around:
            if name not in AROUND_NAMES:
                raise TypeError(f"{type(self).__name__} has no argument {name!r}; it has {_arguments_of(type(self))}")
        threads = None if threads is None else _checks.thread_count("threads", threads)
        self._storage, self._around, copies = read(around)
        layout, arrays, given = Layout.of(params)
        scale = hyperparameters.own_lr_scale(lr_scale)
        if layout.grouped and not isinstance(scale, NUMBERS):
            raise TypeError("lr_scale must be a number where there are groups; give others in the groups")
        self._defaults: Options = {**defaults, "lr_scale": scale}
        empty = Snapshot(Layout([], layout.grouped), [], {}, [], [], [], [], [], [], [], [])
        self._exclusively(self._add_groups_locked, empty, Progress([], [], [], []), layout, arrays, given, copies)
        self._threads = threads

    # ---- groups ----

    @property
    def groups(self) -> Groups:
        """The groups, whose hyperparameters can be read and set: ``opt.groups[1].lr``, ``opt.groups["head"].lr``."""
        return Groups(self)

    @property
    def steps(self) -> int:
        """How many steps have been made; with groups that were added later, those of the oldest group."""
        return max(self._progress().group_steps, default=0)

    @property
    def param_steps(self) -> Any:
        """How many steps each parameter has made, in the structure of ``params``: without those that left it out."""
        return self._snapshot.layout.unflatten(self._progress().steps)

    @property
    def threads(self) -> int | None:
        """How many threads a step of this optimizer may use; None for as many as :func:`gdm.get_num_threads` says."""
        return self._threads

    @threads.setter
    def threads(self, n: int | None) -> None:
        self._threads = None if n is None else _checks.thread_count("threads", n)

    def add_group(self, group: Mapping[str, Any]) -> Group:
        """Adds parameters with hyperparameters of their own, which start from step 0.

        From then on gradients come as a list with one item for each group. Bound gradients are forgotten.

        Parameters
        ----------
        group : mapping
            ``"params"``, as given to the class; hyperparameters; if you like, a ``"name"``, and ``"copies"`` in the
            structure of its parameters.

        Returns
        -------
        Group
            The new group.

        Raises
        ------
        TypeError, ValueError, gdm.OverlapError
            As the class does. Nothing has changed then.
        """
        return Group(self, self._exclusively(self._add_group_locked, group))

    def _add_group_locked(self, group: Mapping[str, Any]) -> GroupRecord:
        before = self._snapshot
        layout, arrays, given = before.layout.with_group(group)
        copies = given.pop("copies", None)
        of_all = None if copies is None else [*[None] * len(before.records), copies]
        after = self._add_groups_locked(before, self._progress(), layout, arrays, [given], of_all)
        return after.records[-1]

    def _add_groups_locked(
        self, before: Snapshot, progress: Progress, layout: Layout, arrays: list[Any], given: list[Options], copies: Any
    ) -> Snapshot:
        """Adds groups with their arrays, and copies of these, to those of a snapshot; the layout is that of all."""
        first, old = len(before.records), len(before.params)
        default = self._defaults["lr_scale"]
        if first and not isinstance(default, NUMBERS):
            default = 1.0  # an lr_scale given for the first parameters says nothing of new ones
        class_name, options, scales = type(self).__name__, [], []
        for i, group in enumerate(given, first):
            known = {name: value for name, value in self._defaults_for(group).items() if name != "lr_scale"}
            scales.append(group.get("lr_scale", default))
            changes = {name: value for name, value in group.items() if name != "lr_scale"}
            options.append(hyperparameters.check(class_name, self._rule, layout, i, known, changes))
        user_arrays, sources = self._checked_params(layout, old, arrays)
        new = views(user_arrays)
        params = before.params + new
        user_copies, its_copies = self._checked_copies(layout, old, copies, params)
        self._require_disjoint_params(layout, params, before, its_copies)

        lr_factors, lr_scales = list(before.lr_factors), list(before.lr_scales)
        for i, (group, scale) in enumerate(zip(options, scales, strict=True), first):
            group["lr_scale"], factors = hyperparameters.check_lr_scale(layout, i, scale, params)
            self._check_range(layout, params, i, group, 0, factors)
            self._check_shapes(layout, params, i, group)
            lr_factors += [x if isinstance(x, float) else 1.0 for x in factors]
            lr_scales += [None if isinstance(x, float) else x for x in factors]

        records = before.records + [GroupRecord(group) for group in options]
        after = Snapshot(
            layout,
            records,
            {record: i for i, record in enumerate(records)},
            before.user_arrays + user_arrays,
            before.sources + sources,
            params,
            self._with_states(layout, params, before.states + [{} for _ in new], before.options + options),
            lr_factors,
            lr_scales,
            before.user_copies + user_copies,
            before.copies + its_copies,
        )
        initial = [self._initial_scalars(group) for group in options]
        scalars = [initial[g - first] for g in layout.group_of[old:]]
        begin = Progress([0] * len(options), [0] * len(new), scalars, [False] * len(new))
        writes: Writes = []  # begin with the parameters
        for param, copy in zip(new, its_copies, strict=True):
            if copy is not None:
                writes.append((copy, numbers_like(copy, param)))
        self._replace(after, after.options, progress.followed_by(begin), writes)
        return after

    def _checked_copies(
        self, layout: Layout, first: int, given: Any, params: list[Array]
    ) -> tuple[list[Array | None], list[Array | None]]:
        """The copies of new parameters, from index ``first`` on: the user's arrays, and our views."""
        count = len(params) - first
        if given is None:
            return [None] * count, [None] * count
        items = layout.flatten("copies", given)[first:]
        labels = [f"copies{label}" for label in layout.grad_labels()[first:]]
        present = [k for k, x in enumerate(items) if x is not None]
        names = [labels[k] for k in present]
        found, _ = _checks.buffers(names, [items[k] for k in present], set(names), self._accepts)
        user: list[Array | None] = [None] * count
        ours: list[Array | None] = [None] * count
        for k, array in zip(present, found, strict=True):
            _checks.has_shape_of(labels[k], array, f"params{layout.labels()[first + k]}", params[first + k])
            user[k] = items[k] if isinstance(items[k], np.ndarray) else array
        for k, view in zip(present, views([x for x in user if x is not None]), strict=True):
            ours[k] = view
        return user, ours

    @property
    def _accepts(self) -> Accepts:
        """The dtypes of parameters, gradients and copies."""
        return Accepts(True, self._storage.uint16)

    def remove_group(self, key: int | str) -> None:
        """Forgets a group, by its index or name, with its state. Bound gradients are forgotten, too."""
        self._exclusively(self._remove_group_locked, key)

    def _remove_group_locked(self, key: int | str) -> None:
        before, progress = self._snapshot, self._progress()
        index = before.layout.index_of(key)
        gone = before.layout.members(index)

        def others(items: list[Any]) -> list[Any]:
            return items[: gone.start] + items[gone.stop :]

        records = before.records[:index] + before.records[index + 1 :]
        after = Snapshot(
            before.layout.without_group(index),
            records,
            {record: i for i, record in enumerate(records)},
            others(before.user_arrays),
            others(before.sources),
            others(before.params),
            others(before.states),
            others(before.lr_factors),
            others(before.lr_scales),
            others(before.user_copies),
            others(before.copies),
        )
        rest = progress._replace(
            group_steps=progress.group_steps[:index] + progress.group_steps[index + 1 :],
            steps=others(progress.steps),
            scalars=others(progress.scalars),
            begun=others(progress.begun),
        )
        self._replace(after, after.options, rest, [])

    def _index_of(self, record: GroupRecord) -> int:
        index = self._snapshot.index_of.get(record)
        if index is None:
            raise RuntimeError("this group has been removed from its optimizer")
        return index

    # ---- hyperparameters ----

    def _rule_of(self, options: Options) -> str:
        """The rule for these options."""
        return self._rule

    def _all_states(self) -> tuple[str, ...]:
        """The names of all states that an optimizer of this class may have, in the rule's order."""
        return state_names(self._rule)

    def _all_options(self) -> Iterable[str]:
        """The names of all hyperparameters that a group of this class may have."""
        return self._defaults

    def _defaults_for(self, group: Options) -> Options:
        """The hyperparameters that a group has, with the values of those that it was not given."""
        return self._defaults

    def _check_shapes(self, layout: Layout, params: list[Array], index: int, options: Options) -> None:
        """Requires of a group's parameters what only some classes require."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "averages":  # its property has raised
            raise AttributeError(NO_AVERAGES)
        snapshot = self._snapshot
        if name in CHANGEABLE:
            return getattr(self._around, name)
        if name in STORAGE:
            return ("bfloat16" if self._storage.uint16 else None) if name == "dtype" else getattr(self._storage, name)
        if name in self._all_states():
            return snapshot.layout.unflatten(self._readable(snapshot, name))
        if name not in self._all_options():
            known = ", ".join([*self._all_options(), *self._all_states(), "groups", "steps", "param_steps", "threads"])
            hint = self._torch_hint() if name == "zero_grad" else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; it has {known}{hint}")
        if not snapshot.records:
            raise ValueError(f"there are no groups, and so no {name}")
        values = [record.options[name] for record in snapshot.records if name in record.options]
        if not values:
            raise ValueError(f"no group has {name}")
        first, *others = values
        if not all(hyperparameters.same(other, first) for other in others):
            raise ValueError(f"the groups differ in {name}; use opt.groups[i].{name}")
        return hyperparameters.copied(first)

    def _set_for_all_groups(self, name: str, value: Any) -> None:
        if name in CHANGEABLE:
            self._exclusively(self._set_around_locked, name, value)
        else:
            records = self._snapshot.records
            self._set_options([x for x in records if name in x.options] or records, {name: value})

    def _set_around_locked(self, name: str, value: Any) -> None:
        around = changed(self._around, {name: value})
        if name == "average" and (value is None) != (self._around.average is None):
            raise AttributeError("whether there is an average is fixed when the optimizer is made; its decay is not")
        self._set_around(around)
        self._around = around

    def _torch_hint(self) -> str:
        """For messages: where to go on if autograd computes the gradients."""
        given = [source.given for source in self._snapshot.sources if source is not None]
        if not any(is_tensor(x) and x.requires_grad for x in given):
            return ""
        return f". To step the .grad of PyTorch's tensors, use gdm.torch.{type(self).__name__}"

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._all_options(), *self._all_states(), *CHANGEABLE, *STORAGE]

    # ---- around the rule ----

    @property
    def averages(self) -> Any:
        """The moving averages of the parameters, in the structure of ``params``: views of float32, or float64."""
        if self._around.average is None:
            raise AttributeError(NO_AVERAGES)
        return self._snapshot.layout.unflatten([state["average"][...] for state in self._snapshot.states])

    @property
    def copies(self) -> Any:
        """The arrays that steps copy the parameters to, in the structure of ``params``; None where there is none."""
        return self._snapshot.layout.unflatten(self._snapshot.user_copies)

    @property
    def last_grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, scaled, before clipping; None without max_grad_norm."""
        return self._progress().grad_norm

    @property
    def skipped_steps(self) -> int:
        """How many steps have been skipped, since a gradient was not finite: with ``nonfinite="skip"``."""
        return self._progress().skipped

    @property
    def nbytes(self) -> int:
        """The bytes of all states and averages. Parameters, gradients and copies are the user's."""
        return sum(x.nbytes for state in self._snapshot.states for x in state.values())

    @contextmanager
    def swap_averages(self) -> Iterator[None]:
        """Puts the averages in the place of the parameters, for evaluation: ``with opt.swap_averages(): ...``.

        At the end the parameters are what they were, to the bit, also after an exception. Meanwhile steps and changes
        raise ``RuntimeError``. Parameters that are narrower than their average get the nearest numbers.
        """
        if self._around.average is None:
            raise AttributeError(NO_AVERAGES)
        self._hold()
        try:
            snapshot = self._snapshot
            before = [x.copy(order="K") for x in snapshot.params]
            averages = [
                numbers_like(x, state["average"]) for x, state in zip(snapshot.params, snapshot.states, strict=True)
            ]
            try:
                for param, average in zip(snapshot.params, averages, strict=True):
                    param[...] = average
                yield
            finally:
                for param, old in zip(snapshot.params, before, strict=True):
                    param[...] = old
        finally:
            self._release()

    def _readable(self, snapshot: Snapshot, name: str) -> list[Array | None]:
        """A state of each parameter, as the user reads it: a view, or a copy in the compute dtype where NumPy has no
        such dtype."""
        result: list[Array | None] = []
        for param, arrays in zip(snapshot.params, snapshot.states, strict=True):
            if name not in arrays:
                result.append(None)
            elif arrays[name].dtype.kind == "f":
                result.append(arrays[name][...])
            else:
                result.append(in_shape_of(param, load(param, arrays, name)))
        return result

    def _set_options(self, records: list[GroupRecord], changes: Options) -> None:
        """Changes hyperparameters of groups, all or none."""
        if not records:
            raise ValueError("there are no groups whose hyperparameters could be set")
        for name in changes:
            if name in STORAGE:
                raise AttributeError(f"{name} is fixed when the optimizer is made")
            if name in FIXED and name in self._all_options():
                raise AttributeError(f"{name} is fixed when the optimizer is made: it says what the state means")
            if name in self._initial.values():
                raise AttributeError(f"{name} is what a state begins with: give it when the optimizer is made")
            if name not in self._all_options():
                known = ", ".join(self._all_options())
                raise AttributeError(f"{type(self).__name__} has no hyperparameter {name!r}; it has {known}")
        self._exclusively(self._set_options_locked, records, changes)

    def _set_options_locked(self, records: list[GroupRecord], changes: Options) -> None:
        snapshot = self._snapshot
        layout, class_name = snapshot.layout, type(self).__name__
        given = {name: value for name, value in changes.items() if name != "lr_scale"}
        factors = {}  # of the learning rates, for each changed group
        options = {}
        same_states = "lr_scale" not in changes
        for record in records:
            i = self._index_of(record)
            members, scale = layout.members(i), record.options["lr_scale"]
            factors[i] = [self._lr_scale_of(snapshot, k) for k in members]
            if "lr_scale" in changes:
                scale, factors[i] = hyperparameters.check_lr_scale(layout, i, changes["lr_scale"], snapshot.params)
            base = {name: value for name, value in record.options.items() if name != "lr_scale"}
            options[i] = hyperparameters.check(class_name, self._rule, layout, i, base, given)
            self._check_range(layout, snapshot.params, i, options[i], self._group_steps(i), factors[i])
            options[i]["lr_scale"] = scale
            same_states = same_states and self._states_for(options[i]) == self._states_for(record.options)
        if same_states:
            self._configure(
                [
                    (i, snapshot.records[i], changed, self._lr_of(changed, self._group_steps(i)))
                    for i, changed in options.items()
                ]
            )
            return
        everything = [options.get(i, record.options) for i, record in enumerate(snapshot.records)]
        lr_factors, lr_scales = list(snapshot.lr_factors), list(snapshot.lr_scales)
        for i, of_group in factors.items():
            for k, x in zip(layout.members(i), of_group, strict=True):
                lr_factors[k], lr_scales[k] = (x, None) if isinstance(x, float) else (1.0, x)
        states = self._with_states(layout, snapshot.params, snapshot.states, everything)
        after = snapshot._replace(states=states, lr_factors=lr_factors, lr_scales=lr_scales)
        self._replace(after, everything, self._progress(), [])

    def _lr_scale_of(self, snapshot: Snapshot, i: int) -> float | Array:
        scale = snapshot.lr_scales[i]
        return snapshot.lr_factors[i] if scale is None else scale

    def _check_range(
        self, layout: Layout, params: list[Array], index: int, options: Options, steps: int, factors: Iterable[Any]
    ) -> None:
        """Requires that a group's hyperparameters are finite in the narrowest dtype of its parameters."""
        narrow = any(params[i].dtype != np.float64 for i in layout.members(index))
        lr = self._lr_of(options, steps)
        hyperparameters.check_range(layout, index, options, lr, factors, np.float32 if narrow else np.float64)

    # ---- learning rates ----

    def _rate(self, index: int) -> float:
        """The learning rate of a group's next step."""
        return self._lr_of(self._snapshot.records[index].options, self._group_steps(index))

    def _scheduled_rates(self, index: int, schedule: Callable[[int], float], step: int, count: int) -> Array:
        """The learning rates of a group's next steps: of so many if the schedule is a built-in one, else of one."""
        rates = None
        if count > 1 and type(schedule).__module__.startswith("gdm.schedules"):
            from ..schedules._blocks import rates as block_of

            rates = block_of(schedule, step, count)
        if rates is None or not len(rates):  # none behind the last step of a schedule, which then says so
            rates = np.array([rate_at(schedule, step)])
        return rates

    def _check_rate(self, index: int, rate: float) -> None:
        """Requires that a learning rate from a schedule is finite in the dtype that the group's rule computes in."""
        snapshot = self._snapshot
        factors = [snapshot.lr_factors[i] for i in snapshot.layout.members(index)]
        self._check_range(snapshot.layout, snapshot.params, index, {"lr": rate}, 0, factors)

    # ---- parameters, states, and the engine made from them ----

    def _checked_params(self, layout: Layout, first: int, given: list[Any]) -> tuple[list[Array], list[Source | None]]:
        """New parameters, from index ``first`` on: as NumPy arrays, and for those that are none what they come from."""
        if are_plain(given, True):
            return given, [None] * len(given)
        labels = [f"params{label}" for label in layout.labels()[first:]]
        return _kept(labels, given, set(labels), self._accepts)

    def _require_disjoint_params(
        self, layout: Layout, params: list[Array], before: Snapshot, copies: list[Array | None]
    ) -> None:
        written = [x for state in before.states for x in state.values()]
        written += [x for x in before.copies + copies if x is not None]
        if self._any_overlap(params + written):
            labels, grad_labels = layout.labels(), layout.grad_labels()
            named = [Named(f"params{label}", x, True) for label, x in zip(labels, params, strict=True)]
            named += self._named_states(before)
            named += [
                Named(f"copies{label}", x, True)
                for label, x in zip(grad_labels, before.copies + copies, strict=True)
                if x is not None
            ]
            _checks.disjoint(named)

    def _states_for(self, options: Options) -> list[str | None]:
        return states_for(self._rule_of(options), options)

    def _initial_scalars(self, options: Options) -> tuple[float, ...]:
        return tuple(_checks.SCALARS[name].initial for name in scalar_names(self._rule_of(options)))

    def _with_states(
        self,
        layout: Layout,
        params: list[Array],
        states: list[dict[str, Array]],
        options: list[Options],
        more: list[dict[str, Array]] | None = None,
    ) -> list[dict[str, Array]]:
        """The states and what belongs to them, with those that parameters lack for these options; ``more`` has further
        ones for each."""
        average = self._around.average is not None
        wanted: list[Wanted] = []
        names: list[str] = []
        for i, (g, param, state) in enumerate(zip(layout.group_of, params, states, strict=True)):
            needed = arrays_for(self._rule_of(options[g]), options[g], param, self._storage, average)
            if more is not None:
                needed |= {name: (x.dtype, x) for name, x in more[i].items() if name not in needed}
            for name, (dtype, like) in needed.items():
                if name not in state:
                    wanted.append(Wanted(i, like, dtype))
                    names.append(name)
        if not wanted:
            return states
        result = [dict(state) for state in states]
        for want, name, array in zip(wanted, names, allocate(params, wanted), strict=True):
            result[want.param][name] = array
        for want, name in zip(wanted, names, strict=True):
            param, arrays = params[want.param], result[want.param]
            if name == "average":
                arrays[name][...] = numbers_like(arrays[name], param)
            elif name in self._initial:
                group = options[layout.group_of[want.param]]
                filled = np.full(param.size, group[self._initial[name]], computed_in(param))
                draws = partial(np.zeros, param.size, np.uint32)
                for target, value in store(param, arrays, name, filled, draws, False):
                    target[...] = value
        return result

    def _lr_of(self, options: Options, steps: int) -> float:
        """The learning rate of a group's step after so many."""
        lr = options["lr"]
        return rate_at(lr, steps) if callable(lr) else lr

    def _replace(
        self,
        snapshot: Snapshot,
        options: list[Options],
        progress: Progress,
        writes: Writes,
        around: Around | None = None,
    ) -> None:
        """Puts a snapshot in place of the present one, with an engine of its own; all or nothing.

        ``options`` are those of each group from then on, ``writes`` says what is copied into which state, ``around``
        what is done around the rule from then on.
        """
        names = [self._states_for(group) for group in options]
        specification = Specification(
            snapshot.user_arrays,
            snapshot.sources,
            snapshot.params,
            [
                [None if name is None else state[name] for name in names[group]]
                for state, group in zip(snapshot.states, snapshot.layout.group_of, strict=True)
            ],
            snapshot.lr_scales,
            snapshot.lr_factors,
            snapshot.layout.group_of,
            [self._rule_of(group) for group in options],
            options,
            [self._lr_of(group, steps) for group, steps in zip(options, progress.group_steps, strict=True)],
            progress,
            [
                Companions(
                    [None if name is None else state.get(scale_of(name)) for name in names[group]],
                    state.get("low_bits"),
                    state.get("average"),
                    copy,
                )
                for state, group, copy in zip(snapshot.states, snapshot.layout.group_of, snapshot.copies, strict=True)
            ],
            self._around if around is None else around,
            self._storage.uint16,
            snapshot.user_copies,
            snapshot.layout.is_one_array,
            snapshot.layout.is_sequence,
        )
        engine = Engine(specification)
        self._put_in_place(engine, snapshot, list(zip(snapshot.records, options, strict=True)), writes)
        if around is not None:
            self._around = around

    # ---- gradients: what the engine asks for ----

    def _label(self, what: str, i: int) -> str:
        return self._snapshot.layout.label(what, i)

    def _flatten(self, grads: Any) -> list[Any]:
        return self._snapshot.layout.flatten("grads", grads)

    def _named_states(self, snapshot: Snapshot) -> list[Named]:
        return [
            Named(f"the {name} of params{label}", x, True)
            for label, state in zip(snapshot.layout.labels(), snapshot.states, strict=True)
            for name, x in state.items()
        ]

    def _check_grads(self, grads: list[Any]) -> tuple[list[Array | None], list[Source | None]]:
        """The gradients as NumPy arrays, each requirement checked; and for those that are none what they come from.

        Other people's code runs at the beginning only.
        """
        snapshot = self._snapshot
        labels = [f"grads{label}" for label in snapshot.layout.grad_labels()]
        params = [f"params{label}" for label in snapshot.layout.labels()]
        given = [i for i, grad in enumerate(grads) if grad is not None or snapshot.layout.is_one_array]
        arrays: list[Array | None] = [None] * len(grads)
        sources: list[Source | None] = [None] * len(grads)
        names = [labels[i] for i in given]
        kept = _kept(names, [grads[i] for i in given], set(names) if self._around.clear_grads else (), self._accepts)
        for i, array, source in zip(given, *kept, strict=True):
            arrays[i], sources[i] = array, source
        named = [Named(label, x, True) for label, x in zip(params, snapshot.params, strict=True)]
        named += self._named_states(snapshot)
        for label, grad, name, param in zip(labels, arrays, params, snapshot.params, strict=True):
            if grad is not None:
                _checks.gradient_for(label, grad, name, param)
                named.append(Named(label, grad, self._around.clear_grads))
        _checks.disjoint(named)
        return arrays, sources

    def _numpy_step(
        self, grads: list[Array | None], lrs: list[float], progress: Progress, scale: float
    ) -> tuple[Writes, Progress]:
        """A whole step on the NumPy rules: what is to be written where, and how far all are then."""
        snapshot = self._snapshot
        options = snapshot.options
        rules = [self._rule_of(group) for group in options]
        given = [rule_options(rule, group, lr) for rule, group, lr in zip(rules, options, lrs, strict=True)]
        try:
            return numpy_step(snapshot, self._around, rules, given, grads, progress, scale, self._prepared)
        except NonFiniteGradients:
            self._refuse_nonfinite(grads)
            raise

    def _prepared(self, i: int, work: Array) -> Array:
        """What a parameter's step reads, from what its preparation wrote: an array like that. This may run other
        people's code. Only classes with a rule whose steps need a preparation have it."""
        raise NotImplementedError

    def _finish_preparation(self, grads: list[Array | None]) -> None:
        """The same for all parameters that have a gradient, in place, in the compiled engine's step."""
        for i, (grad, arrays) in enumerate(zip(grads, self._snapshot.states, strict=True)):
            for name in arrays.keys() & WORK if grad is not None else ():
                arrays[name][...] = self._prepared(i, arrays[name][...])

    def _refuse_nonfinite(self, grads: list[Array | None]) -> None:
        """Raises the error that names the first gradient that is not finite."""
        for i, grad in enumerate(grads):
            if grad is not None:
                count = reference.count_nonfinite([numbers(grad)])
                if count:
                    raise NonFiniteError(
                        f"{self._label('grads', i)} has NaN or infinite elements: {count} of {grad.size}"
                    )
        raise NonFiniteError("a gradient is NaN or infinite")

    # ---- saving ----

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later :meth:`load_state_dict` needs to go on to the bit: copies, plain arrays and scalars.

        Returns
        -------
        dict
            ``format`` (int), ``optimizer`` (the class's name), and ``groups``: a list with, for each group, its
            ``name``, ``options`` (the hyperparameters; for a schedule what :func:`gdm.schedules.to_dict` gives; None
            for a function of the user's own, which is not saved), ``steps``, and ``params``: a list with, for each
            parameter, its ``name``, its own ``steps``, ``begun`` (whether its states have been through a step), the
            ``scalars`` of its rule (NAdam's ``mu_product``), and the arrays of its ``state``.
        """
        state: dict[str, Any] = self._exclusively(self._state_dict_locked, True)
        return state

    def _state_dict_locked(self, copy: bool) -> dict[str, Any]:
        return saved_state.make(self, self._snapshot, self._progress(), copy=copy)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over hyperparameters and state that :meth:`state_dict` gave, of an optimizer for the same parameters.

        A learning rate that was a function of the user's own stays what it is here.

        Raises
        ------
        gdm.CheckpointError
            If anything does not fit: another format, class or ``form``, other groups, names, shapes or dtypes. Nothing
            has been loaded then.
        MemoryError
            If memory runs out. Nothing has been loaded then, either.
        """
        self._exclusively(self._load_locked, state_dict)

    def _load_locked(self, state_dict: Mapping[str, Any]) -> None:
        before = self._snapshot
        loaded = saved_state.read(self, before, state_dict)
        for i, (options, steps) in enumerate(zip(loaded.options, loaded.progress.group_steps, strict=True)):
            factors = [loaded.lr_factors[k] for k in before.layout.members(i)]
            try:
                self._check_range(before.layout, before.params, i, options, steps, factors)
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"state_dict group {i}: {error}") from error
        kept = [  # a state that was not saved begins anew when it is needed
            old if old.keys() <= {*new, *WORK} else {name: x for name, x in old.items() if name in (*new, *WORK)}
            for old, new in zip(before.states, loaded.states, strict=True)
        ]
        states = self._with_states(before.layout, before.params, kept, loaded.options, loaded.states)
        after = before._replace(states=states, lr_factors=loaded.lr_factors, lr_scales=loaded.lr_scales)
        writes = [
            (state[name], _checks.in_order_of(state[name], x))
            for state, new in zip(states, loaded.states, strict=True)
            for name, x in new.items()
        ]
        self._replace(after, loaded.options, loaded.progress, writes, loaded.around)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes what :meth:`state_dict` gives to a safetensors file, which is there whole or not at all.

        The new file is written beside the old one, and replaces it when it has reached the disk: whatever happens
        meanwhile, the file is the old one or the new one. Needs the package safetensors:
        ``pip install 'gdm-optim[checkpoint]'``.

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
        self._exclusively(self._save_locked, path)  # no step, which would change what is being written

    def _save_locked(self, path: str | PathLike[str]) -> None:
        from .. import _checkpoint

        _checkpoint.save(path, self._state_dict_locked(False))

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
        from .. import _checkpoint

        self.load_state_dict(_checkpoint.load(path))

    def __reduce__(self) -> tuple[Any, ...]:
        """What copies and pickles hold: the parameters, options and state; not the gradients that are bound.

        What is pickled holds the parameters themselves, so let no other thread make a step until the pickle is done.
        """
        reduced: tuple[Any, ...] = self._exclusively(self._reduce_locked, True)
        return reduced

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """An optimizer with parameters of its own. Another thread makes no step meanwhile."""
        from copy import deepcopy

        cls = type(self)
        if (cls.__reduce__, cls.__reduce_ex__) != (Optimizer.__reduce__, Optimizer.__reduce_ex__):
            return deepcopy(_Reduced(self.__reduce_ex__(4)), memo)  # a user's subclass says itself what copies hold
        return self._exclusively(lambda: deepcopy(_Reduced(self._reduce_locked(False)), memo))

    def _reduce_locked(self, copy: bool) -> tuple[Any, ...]:
        snapshot = self._snapshot
        layout, options = snapshot.layout, dict(self._defaults)
        users = [
            x if source is None or not is_tensor(source.given) else source.given
            for x, source in zip(snapshot.user_arrays, snapshot.sources, strict=True)
        ]
        params = layout.unflatten(users) if layout.groups else []
        if layout.grouped:
            named = [{} if name is None else {"name": name} for name in layout.names]
            params = [{"params": p, **o, **n} for p, o, n in zip(params, snapshot.options, named, strict=True)]
            if not isinstance(options["lr_scale"], NUMBERS):
                options["lr_scale"] = 1.0  # each group has its own
        elif snapshot.records:
            options |= snapshot.records[0].options
        options["threads"] = self.threads
        options |= self._around._asdict() | self._storage._asdict()
        options["dtype"] = "bfloat16" if options.pop("uint16") else None
        if any(x is not None for x in snapshot.copies):
            options["copies"] = layout.unflatten(snapshot.user_copies)
        return _restore, (type(self), params, options, self._defaults, self._state_dict_locked(copy))

    def __repr__(self) -> str:
        elements = sum(param.size for param in self._snapshot.params)
        groups = ", ".join(repr(group) for group in self.groups)
        return f"<{type(self).__name__} of {len(self._snapshot.params)} arrays, {elements:,} elements: {groups}>"


def _arguments_of(cls: type[Optimizer]) -> str:
    """The names of all arguments of a class, for a message."""
    from inspect import signature

    return ", ".join([*(name for name in signature(cls).parameters if name != "around"), *AROUND_NAMES])


def _kept(
    names: list[str], given: list[Any], writable: Container[str], accepts: Accepts
) -> tuple[list[Array], list[Source | None]]:
    """Arrays that an optimizer keeps, each checked: the user's if they are NumPy's, else views and their sources."""
    arrays, places = _checks.buffers(names, given, writable, accepts)
    sources = [Source.of(*x) for x in zip(names, given, arrays, places, strict=True)]
    return [x if isinstance(x, np.ndarray) else array for x, array in zip(given, arrays, strict=True)], sources


class _Reduced:
    """What ``__reduce__`` has returned, for ``copy.deepcopy``, which makes the optimizer of it."""

    def __init__(self, reduced: Any) -> None:
        self.reduced = reduced

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.reduced


def _restore(
    cls: type[Optimizer], params: Any, options: Options, defaults: Options, state_dict: dict[str, Any]
) -> Optimizer:
    optimizer = cls.__new__(cls)
    around: Any = {name: options.pop(name) for name in AROUND_NAMES if name in options}
    Optimizer.__init__(optimizer, params, around=around, **options)  # a subclass of the user's may take other arguments
    optimizer._defaults = defaults  # of groups that are added later
    if not state_dict["groups"]:  # all groups were removed; the empty list above made one, of no parameters
        optimizer.remove_group(0)
    optimizer.load_state_dict(state_dict)
    return optimizer
