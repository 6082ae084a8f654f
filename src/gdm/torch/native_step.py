"""The step on gdm's kernels that all optimizers share, and what they leave to PyTorch's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch.optim import optimizer as torchs

from .. import _backend, _checks
from .._checks import Options
from .._specification import Around
from ..errors import OverlapError
from ..optimizer.around import changed
from ..optimizer.state import WORK, scalar_names, state_names
from .arrange import KEYS, WIDE, Arrangement, Described, describe, label
from .by_reference import Random, updated
from .copies import Copies, copies_of
from .tensors import connect, flat, inverse, is_in_memory, is_native, local_of, share_memory, usable_grad

ATTEMPTS = 16  # so often a step is arranged anew if other threads set gradients meanwhile
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UPDATES = "rounding_updates"  # with stochastic rounding, a group has the number of steps made under this key
SCALING = ("grad_scale", "found_inf")  # the attributes that a GradScaler sets for a step

connect()


class NativeStep(torch.optim.Optimizer):
    """The step on gdm's kernels, for subclasses of an optimizer in ``torch.optim``, which comes next in their bases.

    ``_engine`` holds what the last step worked on. The next step compares it with the optimizer, which anyone may have
    changed in between, and makes a new one if they differ. Parameters that gdm cannot update are left to PyTorch.
    """

    _rule: ClassVar[str]
    _counts: ClassVar[bool] = True  # whether the state has a "step"
    _has_modes: ClassVar[bool] = False  # whether there is a mode in which it makes no step: see modes.py
    _fixed: ClassVar[Options] = {}  # options of the rule that the class sets
    # GradScaler then calls step() itself, and says in two attributes what the scale is and whether a gradient is not
    # finite.
    _step_supports_amp_scaling = True
    _torchs: ClassVar[type[torch.optim.Optimizer]]  # the class whose step updates what gdm cannot
    _watched_too: ClassVar[tuple[str, ...]] = ()  # those that are not arguments of PyTorch's class
    _watched: ClassVar[tuple[str, ...]]  # the options of a group that a step depends on
    param_groups: list[dict[str, Any]]
    _engine: Any = None
    _arrangement: Arrangement | None = None  # during the step that is made from it
    _left_states: bool = False  # PyTorch made other states than those of the arrangement
    _threads: int | None = None
    _state_dtype: Any = None
    _rounding: str = "nearest"
    _seed: int = 0
    _copies: Copies = {}  # noqa: RUF012  (never changed in place)
    _lock: Any  # lets one step run at a time; a copy of the optimizer has its own

    def __new__(cls, *args: Any, **options: Any) -> Self:
        self: Self = super().__new__(cls)
        self._lock = _backend.OptimizerCore()
        return self

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if NativeStep not in cls.__bases__:  # a subclass of the user's
            if "__init__" in cls.__dict__:
                cls.__signature__ = inspect.signature(cls.__init__.__get__(cls))
            return
        cls._torchs = cls.__mro__[cls.__mro__.index(NativeStep) + 1]
        parameters = list(inspect.signature(cls._torchs.__init__).parameters.values())
        own = {**inspect.signature(NativeStep.__init__).parameters, **inspect.signature(cls.__init__).parameters}
        keywords = [x for x in own.values() if x.kind is inspect.Parameter.KEYWORD_ONLY]
        cls.__signature__ = inspect.Signature([*parameters[1:], *keywords])
        names = [x.name for x in parameters[2:] if x.name not in ("lr", "foreach", "fused")]
        cls._watched = ("lr", *dict.fromkeys([*names, "decoupled_weight_decay", *cls._watched_too]))

    def __init__(
        self,
        *args: Any,
        threads: int | None = None,
        state_dtype: Any = None,
        rounding: str = "nearest",
        seed: int = 0,
        copies: Any = None,
        **options: Any,
    ) -> None:
        self.threads = threads
        self._state_dtype = _state_dtype(state_dtype)
        around = changed(Around(), {"rounding": rounding, "seed": seed})
        self._rounding, self._seed = around.rounding, around.seed
        super().__init__(*args, **options)
        if self._rounding == "stochastic":
            for group in (self.defaults, *self.param_groups):
                group[UPDATES] = 0
        if self._state_dtype is not None:
            for param, state in self.state.items():  # torch's Adagrad has made states
                for key in self._keys_of_states(param) & state.keys():
                    begin = self._initial(key, self.defaults)
                    state[key] = torch.full_like(state[key], begin, dtype=self._state_dtype)
        self.copies = copies

    @property
    def threads(self) -> int | None:
        """How many threads a step may use; None for as many as ``torch.get_num_threads()`` says."""
        return self._threads

    @threads.setter
    def threads(self, n: int | None) -> None:
        self._threads = None if n is None else _checks.thread_count("threads", n)

    @property
    def state_dtype(self) -> Any:
        """The dtype of new states; None for that of each parameter."""
        return self._state_dtype

    @property
    def rounding(self) -> str:
        """How a number is rounded to bfloat16 or float16: ``"nearest"`` or ``"stochastic"``."""
        return self._rounding

    @property
    def seed(self) -> int:
        """The seed of the random bits for stochastic rounding."""
        return self._seed

    @property
    def updates(self) -> int:
        """How many steps have been made with stochastic rounding. The random bits of the next one depend on it."""
        return max((group.get(UPDATES, 0) for group in self.param_groups), default=0)

    def _count_update(self) -> None:
        updates = self.updates + 1
        for group in self.param_groups:
            group[UPDATES] = updates

    @property
    def copies(self) -> Copies:
        """The tensors into which each step writes the new parameters, by parameter.

        Set it to a list in the order of all parameters, a dict by parameter, or None. Parameters that are added later
        have none.
        """
        return dict(self._copies)

    @copies.setter
    def copies(self, copies: Any) -> None:
        params = [param for group in self.param_groups for param in group["params"]]
        labels = [label(group, g, k) for g, group in enumerate(self.param_groups) for k in range(len(group["params"]))]
        self._copies = copies_of(copies, params, labels)
        self._engine = None

    def __getstate__(self) -> dict[str, Any]:
        own = {"_threads": self._threads, "_state_dtype": self._state_dtype, "_rounding": self._rounding}
        own |= {"_seed": self._seed, "_copies": self._copies}
        return {**super().__getstate__(), **own}

    # ---- loading ----

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; see :meth:`torch.optim.Optimizer.load_state_dict`. The states get the dtype ``state_dtype``;
        or, as in torch, that of their parameter."""
        given: list[Any] = []  # as torch loads it, when all hooks have changed it

        def take(_: Any, loaded: dict[str, Any]) -> None:
            for group in loaded["param_groups"]:
                _checks.whole(UPDATES, group.get(UPDATES, 0), 0, 2**64 - 1)
            given.append(loaded)

        first = self.register_load_state_dict_pre_hook(take)
        last = self.register_load_state_dict_post_hook(lambda _: self._take_loaded(given[-1]), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            first.remove()
            last.remove()

    def _take_loaded(self, state_dict: dict[str, Any]) -> None:
        """Takes over the states in their dtype, after torch has loaded them in the parameters' dtypes."""
        wide = set(WIDE) & set(scalar_names(self._rule))
        if self._state_dtype is None and not wide:
            return
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for number, param in zip(numbers, params, strict=True):
            state = state_dict["state"].get(number)
            present = state.keys() if isinstance(state, dict) else set()
            dtypes = dict.fromkeys(wide & present, torch.float64)
            if self._state_dtype is not None:
                dtypes |= dict.fromkeys(self._keys_of_states(param) & present, self._state_dtype)
            for key, dtype in dtypes.items():
                if isinstance(state[key], torch.Tensor):  # torch has rounded it to the parameter's dtype
                    device = torch.device("cpu") if key in wide else param.device
                    self.state[param][key] = state[key].detach().clone().to(device=device, dtype=dtype)

    def _keys_of_states(self, param: Any) -> set[str]:
        """The keys of the states that gdm gives a parameter; none if PyTorch updates it."""
        local = local_of(param)
        if local is None or not is_native(local):
            return set()
        return {KEYS.get(name, name) for rule in self._rules() for name in state_names(rule)} - set(WORK)

    def __setstate__(self, state: dict[str, Any]) -> None:  # load_state_dict calls it, too
        super().__setstate__(state)
        self._engine = None  # it would keep the states that have been replaced

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; see :meth:`torch.optim.Optimizer.add_param_group`.

        Raises
        ------
        ValueError
            Also for a parameter on the device ``meta``, which has no memory.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for k, param in enumerate(group["params"]):
            if param.is_meta:
                self.param_groups.pop()
                name = label(group, self._next_place(), k)
                raise ValueError(
                    f"{name} is on the device 'meta', where it has no memory; make the optimizer when the model has "
                    "its memory (after Module.to_empty)"
                )

    def _next_place(self) -> int:
        """The index that the next group to be added will have, for messages."""
        return len(self.param_groups)

    # ---- the step ----

    def step(self, *args: Any, **options: Any) -> Any:
        """Updates every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients once more, before the update.

        Returns
        -------
        What ``closure`` returned, or None.

        Raises
        ------
        gdm.OverlapError
            If two parameters share memory.
        RuntimeError
            If another thread is in the middle of a step, or what PyTorch's optimizer raises for parameters and
            gradients that gdm leaves to it.
        """
        if (
            torch.compiler.is_dynamo_compiling()
        ):  # true where a function that calls this one is compiled, and only there
            return _step_uncompiled(self, *args, **options)
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torchs._global_optimizer_pre_hooks
            or torchs._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ) and type(self).step is NativeStep.step:  # else PyTorch has wrapped the subclass's own step, and calls them
            return _step_with_hooks(self, *args, **options)
        return self._step(*args, **options)

    # PyTorch's base class would put its own wrapper for hooks around the step, which takes 7 us.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if self._has_modes:
            self._require_train_mode()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        attributes = self.__dict__
        divisor = None
        if "found_inf" in attributes or "grad_scale" in attributes:
            found, divisor = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
            if found is not None and float(found):
                return loss
        scale = 1.0 if divisor is None else inverse("grad_scale", divisor)
        engine = self._engine
        if engine is None or not engine.step(self, self._threads or 0, scale):
            self._lock._exclusively(self._step_anew, scale)
        if divisor is not None:
            self._divide_grads(float(divisor))
        return loss

    def _step_anew(self, scale: float) -> None:
        """Makes a step, and what the next ones need."""
        self._engine = None  # it would keep states that have been replaced
        for group in self.param_groups:
            if not isinstance(group["params"], list):
                group["params"] = list(group["params"])
        with torch.no_grad():
            for _ in range(ATTEMPTS):
                if self._step_as_arranged(Arrangement(self), scale):
                    return
        raise RuntimeError("the optimizer changed during its step")

    def _step_as_arranged(self, arrangement: Arrangement, scale: float) -> bool:
        """Makes a step; False, and has changed nothing, if the arrangement no longer fits.

        Another thread may set the first gradient of a parameter after the arrangement was made.
        """
        if _backend.native is None or _backend.backend() == "reference":
            self._arrangement = arrangement
            try:
                step_by_reference(self, arrangement, scale)
            finally:
                self._arrangement = None
            if self._rounding == "stochastic":
                self._count_update()
            return True
        engine, self._arrangement, self._left_states = None, arrangement, False
        try:
            arrangement.begin()
            random = self._rounding == "stochastic"
            engine = _backend.native.TensorEngine(
                self, arrangement.groups, arrangement.slots, self._watched, random, self._seed
            )
            fits = engine.step(self, self._threads or 0, scale, locked=True)
        except BaseException:
            if engine is None or not engine.has_run:
                arrangement.undo()
            raise
        finally:
            self._arrangement = None
        if not fits:
            arrangement.undo()
            return False
        self._engine = None if self._left_states else engine
        return True

    def _divide_grads(self, divisor: float) -> None:
        """Divides the gradients by the scale of a GradScaler, as torch's fused optimizers leave them."""
        params = [param for group in self.param_groups for param in group["params"]]
        grads = {id(grad): grad for grad in (param.grad for param in params) if grad is not None}
        with torch.no_grad():
            for grad in grads.values():
                local = local_of(grad)
                (grad if local is None else local).div_(divisor)

    # ---- what the engine asks for ----

    def _describe(self, group: Options) -> Described | None:
        """How gdm updates a group; None if PyTorch must."""
        return describe(self._rule, group, self._fixed)

    def _rules(self) -> tuple[str, ...]:
        """The rules that groups may have."""
        return (self._rule,)

    def _counts_steps(self, rule: str) -> bool:
        """Whether the state of a parameter with this rule has a "step"."""
        return self._counts

    def _finish_preparation(self, group: int, param: Any, states: Any) -> None:
        """Turns what the preparation of a parameter's step wrote into what the step reads: changes the last state."""
        raise NotImplementedError

    def _initial(self, key: str, group: Options) -> float:
        """What a state of a parameter in this group begins with."""
        scalar = _checks.SCALARS.get(key)
        return 0.0 if scalar is None else scalar.initial

    def _require_train_mode(self) -> None:
        """Raises an error where steps may not be made."""

    def _name_of(self, index: int) -> str:
        """The name of a parameter in messages."""
        for g, group in enumerate(self.param_groups):
            if index < len(group["params"]):
                return label(group, g, index)
            index -= len(group["params"])
        return "a parameter"

    _local_of = staticmethod(local_of)
    _usable_grad = staticmethod(usable_grad)

    def _step_by_torch(self, indices: list[int]) -> None:
        """Lets PyTorch's own code update the parameters with these indices, those on the CPU with its for-loop.

        In their first step PyTorch must make their states itself: SGD's velocity begins with the gradient. It may
        refuse gradients that are sparse, Adagrad only together with weight decay. It gets these first, so that it has
        written nothing else then.
        """
        chosen, whole, i = set(indices), self.param_groups, 0
        groups: list[Options] = []
        sparse: list[Options] = []
        for group in whole:
            kept = [param for k, param in enumerate(group["params"], i) if k in chosen]
            i += len(group["params"])
            on_cpu = [param for param in kept if param.device.type == "cpu"]
            elsewhere = [param for param in kept if param.device.type != "cpu"]
            for its, are_sparse in ((groups, False), (sparse, True)):
                if some := [param for param in on_cpu if _has_sparse_grad(param) is are_sparse]:
                    its.append({**group, "params": some, "foreach": False, "fused": False})
            if elsewhere:
                groups.append({**group, "params": elsewhere})
        sparse.sort(key=lambda group: not group.get("weight_decay"))
        counts = [self.state[x].get("step") for group in sparse for x in group["params"] if x in self.state]
        counted = [(x, x.clone()) for x in counts if isinstance(x, torch.Tensor)]  # Adagrad counts before it refuses
        groups = sparse + groups
        step = self._torchs.step
        if getattr(step, "hooked", False):
            step = inspect.unwrap(step, stop=lambda f: not getattr(f, "hooked", False))
        params = [param for group in groups for param in group["params"]]
        if self._arrangement is not None and self._arrangement.undo(params):
            self._left_states = True
        self._require_grads_beside_copies(params)
        without_state = [param for param in params if param not in self.state]
        scaling = {name: self.__dict__.pop(name) for name in SCALING if name in self.__dict__}
        divisor: Any = scaling.get("grad_scale")
        grads = [] if divisor is None else [(param, param.grad) for param in params if param.grad is not None]
        self.param_groups = groups
        try:
            with torch.no_grad():
                for param, grad in grads:
                    param.grad = grad / float(divisor)
            step(self)
            with torch.no_grad():
                for param in params:
                    if param in self._copies and param.grad is not None:
                        self._copies[param].copy_(param)
        except BaseException:
            for param in without_state:
                self.state.pop(param, None)
            for count, before in counted:
                count.copy_(before)
            raise
        finally:
            self.param_groups = whole
            for param, grad in grads:
                param.grad = grad
            for name, value in scaling.items():
                setattr(self, name, value)

    def _require_grads_beside_copies(self, params: list[Any]) -> None:
        """A gradient may share memory with a parameter, which PyTorch then updates; but not with a copy."""
        copies = [copy for copy in map(local_of, self._copies.values()) if is_in_memory(copy)]
        for param in params if copies else []:
            grad = None if param.grad is None else local_of(param.grad)
            if grad is not None and is_in_memory(grad) and any(share_memory(grad, copy) for copy in copies):
                raise OverlapError("a gradient and one of copies share memory; a copy needs memory of its own")


def _has_sparse_grad(param: Any) -> bool:
    return param.grad is not None and param.grad.layout is not torch.strided


NativeStep._step.__qualname__ = NativeStep.step.__qualname__  # for the messages about wrong arguments
NativeStep.step.__signature__ = inspect.signature(NativeStep._step)  # type: ignore[attr-defined]
_step_with_hooks = torch.optim.Optimizer.profile_hook_step(NativeStep._step)
_step_uncompiled = torch.compiler.disable(NativeStep.step, reason="a step of gdm.torch runs in gdm's compiled module")


def step_by_reference(optimizer: NativeStep, arrangement: Arrangement, scale: float) -> None:
    """A step on the rules in NumPy: it computes everything first."""
    made, left = [], []
    optimizer._require_grads_beside_copies([slot.param for slot in arrangement.slots])
    for i, slot in enumerate(arrangement.slots):
        if slot.param.grad is None:
            continue
        grad = None
        if slot.states is not None:
            grad = optimizer._usable_grad(slot.param, slot.local, slot.param.grad)
        if grad is None:
            left.append(i)
            continue
        rule, options, _ = arrangement.groups[slot.group] or Described("", {}, False)
        finish = partial(optimizer._finish_preparation, slot.group, slot.param, slot.states)
        step = 1 if slot.counter is None else int(slot.counter.item()) + 1
        new = updated(
            rule,
            options,
            slot.local,
            grad,
            slot.states or (),
            step=step,
            scalars={name: x.item() for name, x in zip(scalar_names(rule), slot.scalars, strict=True)},
            first=not slot.begun,
            scale=scale,
            random=Random(optimizer.seed, optimizer.updates, i) if optimizer.rounding == "stochastic" else None,
            copy=slot.copy,
            finish=finish,
        )
        made.append((slot, step, new))
    arrangement.begin()
    try:
        if left:
            optimizer._step_by_torch(left)
    except BaseException:
        arrangement.undo()
        raise
    for slot, step, new in made:
        new.write()
        if slot.counter is not None:
            flat(slot.counter)[...] = step  # PyTorch's fill_ refuses inference tensors, when others have been written
        for scalar, value in zip(slot.scalars, new.scalars, strict=True):
            flat(scalar)[...] = value
        changed = slot.versioned if slot.copy is None else (*slot.versioned, slot.copy)
        if changed:
            torch.autograd.graph.increment_version(changed)


def _state_dtype(given: Any) -> Any:
    """The dtype of states as torch has it; None stays None."""
    dtype = STATE_DTYPES.get(given, given) if isinstance(given, str) else given
    if dtype is not None and dtype not in STATE_DTYPES.values():
        known = ", ".join(repr(name) for name in STATE_DTYPES)
        raise ValueError(f"state_dtype must be None or one of {known}, got {given!r}")
    return dtype
