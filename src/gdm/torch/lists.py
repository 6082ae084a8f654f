"""Lists of tensors, one item for each parameter: their checks, and one update of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import torch

from .. import _backend, _checks
from .._checks import Options
from ..errors import OverlapError
from ..optimizer.state import scalar_names, state_names
from .by_reference import updated
from .tensors import FLOATS, fits, flat, inverse, is_count, is_native, is_number, same_layout

UNCOUNTED = object()  # the steps of a rule that does not count them


class Lists(NamedTuple):
    """What a caller gave that has an item for each parameter."""

    params: Any
    grads: Any
    states: dict[str, Any]  # in the rule's order
    copies: Any = None
    steps: Any = UNCOUNTED
    scalars: dict[str, Any] = {}  # noqa: RUF012  (never changed)


def update_lists(
    rule: str,
    given: Lists,
    options: Options,
    grad_scale: Any,
    threads: int | None,
    *,
    first: bool = False,
    unused: dict[str, str] | None = None,
) -> None:
    """``unused`` has the names of states that these options do not use, each with the option that would."""
    threads = 0 if threads is None else _checks.thread_count("threads", threads)
    scale = 1.0 if grad_scale is None else inverse("grad_scale", grad_scale)
    checked = _checks.options(rule, options)
    for name, value in _checks.unbounded(checked):
        if value >= _checks.FLOAT32_OVERFLOW:
            raise ValueError(f"{name} must be finite in float32, got {value!r}")
    lists = _lists(given, unused or {})
    used = [lists.get(name) for name, _ in zip(given.states, state_names(rule), strict=False)]
    scalars = [lists[name] for name in given.scalars]
    if _backend.native is None or _backend.backend() == "reference":
        _require(lists, given)
        _by_reference(rule, checked, lists, used, scalars, first, scale)
        return
    params, grads, steps, copies = (lists.get(name) for name in ("params", "grads", "steps", "copies"))
    wrong = _backend.native.update_tensors(
        rule, checked, params, grads, used, steps, scalars, copies, not first, threads, scale
    )
    if wrong >= 0:
        _explain(lists, given)


def _lists(given: Lists, unused: dict[str, str]) -> dict[str, list[Any]]:
    """The lists by name, with as many items as there are parameters."""
    lists = {"params": _list("params", given.params), "grads": _list("grads", given.grads)}
    for name, tensors in {**given.states, **given.scalars}.items():
        if name in unused:
            if tensors is not None and _list(name, tensors):
                raise ValueError(f"{name} are not used without {unused[name]}; expected None")
        elif tensors is None:
            raise ValueError(f"{name} are needed with these options, got None")
        else:
            lists[name] = _list(name, tensors)
    if given.copies is not None:
        lists["copies"] = _list("copies", given.copies)
    count = len(lists["params"])
    if given.steps is not UNCOUNTED:
        steps = given.steps
        if isinstance(steps, torch.Tensor):
            raise TypeError("steps must be a whole number, or a list of numbers or tensors, not a tensor")
        if isinstance(steps, (str, bytes)) or not isinstance(steps, Iterable):
            steps = [_checks.whole("steps", steps, 1, 2**63 - 1)] * count
        lists["steps"] = list(steps)
    for name, items in lists.items():
        if len(items) != count:
            raise ValueError(f"{name} must have as many items as params, {count}, got {len(items)}")
    for i, n in enumerate(lists.get("steps", ())):
        if not isinstance(n, torch.Tensor):
            lists["steps"][i] = _checks.whole(f"steps[{i}]", n, 1, 2**63 - 1)
    return lists


def _list(name: str, tensors: Any) -> list[Any]:
    """A list of what a caller gave as tensors."""
    if isinstance(tensors, (str, bytes, Mapping, torch.Tensor)) or not isinstance(tensors, Iterable):
        raise TypeError(f"{name} must be a list of tensors, not {type(tensors).__name__}")
    return list(tensors)


def _require(lists: dict[str, list[Any]], given: Lists) -> None:
    """Raises an error that names what is wrong, if anything is."""
    spans = []
    for i, (param, grad) in enumerate(zip(lists["params"], lists["grads"], strict=True)):
        if grad is None:
            continue
        _require_native(f"params[{i}]", param)
        beside = [name for name in ("grads", *given.states, "copies") if name in lists]
        beside = [name for name in beside if name != "copies" or lists[name][i] is not None]
        for name in beside:
            _require_native(f"{name}[{i}]", lists[name][i])
            _require_like(f"{name}[{i}]", lists[name][i], f"params[{i}]", param, any_dtype=name == "copies")
        for name in ("steps", *given.scalars):
            if name in lists:
                _require_number(name, i, lists[name][i])
        for name in ("params", *beside):
            x = lists[name][i]
            spans += [(x.data_ptr(), x.data_ptr() + x.nbytes, f"{name}[{i}]", name != "grads")] if x.nbytes else []
    spans.sort()
    last = None
    for span in spans:
        if last is not None and span[0] < last[1] and (span[3] or last[3]):
            raise OverlapError(f"{last[2]} and {span[2]} share memory; an update in place needs separate tensors")
        if last is None or span[1] > last[1]:
            last = span


def _explain(lists: dict[str, list[Any]], given: Lists) -> NoReturn:
    _require(lists, given)
    raise RuntimeError("gdm: these tensors were refused, for a reason that is not known")


def _require_number(name: str, i: int, x: Any) -> None:
    """Requires that this tensor keeps a count of steps, or a scalar of the rule."""
    if name == "steps" and isinstance(x, int):
        return
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}[{i}] must be a tensor of one element, not {type(x).__name__}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}[{i}] has dtype {x.dtype}; expected float32 or float64")
    if not (is_count(x) if name == "steps" else is_number(x, _checks.SCALARS[name.removesuffix("s")].domain)):
        raise ValueError(f"{name}[{i}] must be a float tensor of one element that holds a valid number, got {x}")


def _require_native(name: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        raise TypeError(f"{name} is a {type(x).__name__}; expected a plain tensor")
    if x.device.type != "cpu":
        raise TypeError(f"{name} is on the device {x.device}; expected the CPU")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {x.dtype}; expected float32, float64, bfloat16 or float16")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {x.layout}; expected a dense tensor")
    if not is_native(x):
        raise ValueError(f"{name} does not fill its memory (shape {tuple(x.shape)}, strides {x.stride()})")


def _require_like(name: str, x: Any, first: str, param: Any, *, any_dtype: bool) -> None:
    if not any_dtype and not fits(x, param):
        raise ValueError(f"{name} has dtype {x.dtype}, but {first} has {param.dtype}, which is updated in float32")
    if x.shape != param.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, but {first} has {tuple(param.shape)}")
    if not same_layout(x, param):
        raise ValueError(f"{name} lies in memory in another order than {first}: strides {x.stride()}, {param.stride()}")


def _by_reference(
    rule: str,
    options: Options,
    lists: dict[str, list[Any]],
    states: list[Any],
    scalars: list[list[Any]],
    first: bool,
    scale: float,
) -> None:
    made, changed, prepare = [], [], options.get("prepare", False)
    for i, (param, grad) in enumerate(zip(lists["params"], lists["grads"], strict=True)):
        if grad is None:
            continue
        step = lists["steps"][i] if "steps" in lists else 1
        number = step if isinstance(step, int) else int(step.item()) + 1
        copy = lists["copies"][i] if "copies" in lists and not prepare else None
        new = updated(
            rule,
            options,
            param,
            grad,
            [None if x is None else x[i] for x in states],
            step=number,
            scalars={name: x[i].item() for name, x in zip(scalar_names(rule), scalars, strict=True)},
            first=first,
            scale=scale,
            copy=copy,
        )
        kept = [x[i] for x in scalars]
        made.append((new, kept, None if isinstance(step, int) else step, number))
        changed += [x for x in (states[-1][i] if prepare else param, copy) if x is not None]
    torch.autograd.graph.increment_version(changed)
    for new, kept, step, number in made:
        new.write()
        for scalar, value in zip(kept, new.scalars, strict=True):
            flat(scalar)[...] = value
        if step is not None:
            flat(step)[...] = number
