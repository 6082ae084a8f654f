"""One update of many tensors, for those who keep the states themselves: offload engines, sharded optimizers.

Each function takes lists of tensors, one item for each parameter, and updates the parameters and states in place. It is
one call, which releases the GIL. A gradient that is None leaves its parameter out. For all functions:

- The tensors are float32 or float64, on the CPU, and fill their memory: they are contiguous, ``channels_last``, a slice
  of a flat buffer, or have another order of the axes. A parameter's gradient and states have its dtype, shape and order
  in memory. Tensors without elements are fine.
- ``steps`` is the number of this step, from 1: one int, or an int for each parameter. Or it has a tensor of one element
  for each parameter, which keeps the number of steps made before, as ``state["step"]`` of PyTorch's optimizers does; it
  is incremented.
- ``threads`` is how many threads may be used; None means ``torch.get_num_threads()``.
- Everything is checked first. After an error nothing has changed. A TypeError or ValueError names the tensor that is
  wrong, a :class:`gdm.OverlapError` the two that share memory.

The formulas are PyTorch's, as written out in :mod:`gdm.reference`, and the results have the same bits.

>>> import torch
>>> from gdm.torch import functional
>>> shard = torch.linspace(-1.0, 1.0, 5)
>>> exp_avg, exp_avg_sq = torch.zeros(5), torch.zeros(5)
>>> for step in range(1, 4):
...     functional.adamw([shard], [2 * shard], [exp_avg], [exp_avg_sq], step, lr=0.1)
>>> shard
tensor([-0.6989, -0.2037,  0.0000,  0.2037,  0.6989])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from .. import _backend, _checks, reference
from .._checks import Array, Options
from ..errors import OverlapError
from ..optimizer.state import scalar_names, state_names
from .tensors import FLOATS, connect, flat, is_count, is_native, is_number, same_layout

__all__ = ["adagrad", "adam", "adamw", "lion", "nadam", "rmsprop", "sgd", "signum"]

Tensors = Sequence[torch.Tensor]
Grads = Sequence["torch.Tensor | None"]
Steps = int | Sequence[int] | Sequence[torch.Tensor]

connect()


def sgd(
    params: Tensors,
    grads: Grads,
    momentum_buffers: Tensors | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
    threads: int | None = None,
) -> None:
    """Gradient descent, with momentum if it is not 0: ``torch.optim.SGD``. See :mod:`gdm.torch.functional`.

    ``momentum_buffers`` are needed with ``momentum``. With ``first`` they are set to the gradients, without dampening,
    as PyTorch does in a parameter's first step.
    """
    options: Options = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "decoupled_weight_decay": False}
    if not momentum:
        _update("sgd", params, grads, {}, options, threads)
        return
    options |= {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "form": "torch"}
    _update("momentum", params, grads, {"momentum_buffers": momentum_buffers}, options, threads, first=first)


def adagrad(
    params: Tensors,
    grads: Grads,
    state_sums: Tensors,
    steps: Steps,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
    threads: int | None = None,
) -> None:
    """``torch.optim.Adagrad``. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps, "maximize": maximize}
    _update("adagrad", params, grads, {"state_sums": state_sums}, options, threads, steps=steps)


def rmsprop(
    params: Tensors,
    grads: Grads,
    square_avgs: Tensors,
    grad_avgs: Tensors | None = None,
    momentum_buffers: Tensors | None = None,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    threads: int | None = None,
) -> None:
    """``torch.optim.RMSprop``. See :mod:`gdm.torch.functional`.

    ``grad_avgs`` are needed with ``centered``, ``momentum_buffers`` with ``momentum``.
    """
    options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    options |= {"centered": centered, "maximize": maximize}
    states = {"square_avgs": square_avgs, "grad_avgs": grad_avgs, "momentum_buffers": momentum_buffers}
    unused = {"grad_avgs"} if not centered else set()
    unused |= {"momentum_buffers"} if not momentum else set()
    _update("rmsprop", params, grads, states, options, threads, unused=unused)


def adam(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Steps,
    max_exp_avg_sqs: Tensors | None = None,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    threads: int | None = None,
) -> None:
    """``torch.optim.Adam``. See :mod:`gdm.torch.functional`. ``max_exp_avg_sqs`` are needed with ``amsgrad``."""
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
    options |= {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "max_exp_avg_sqs": max_exp_avg_sqs}
    unused = {"max_exp_avg_sqs"} if not amsgrad else set()
    _update("adam", params, grads, states, options, threads, steps=steps, unused=unused)


def adamw(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Steps,
    max_exp_avg_sqs: Tensors | None = None,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    threads: int | None = None,
) -> None:
    """``torch.optim.AdamW``. See :mod:`gdm.torch.functional`. ``max_exp_avg_sqs`` are needed with ``amsgrad``."""
    adam(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        max_exp_avg_sqs,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=True,
        threads=threads,
    )


def nadam(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    mu_products: Tensors,
    steps: Steps,
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    threads: int | None = None,
) -> None:
    """``torch.optim.NAdam``. See :mod:`gdm.torch.functional`.

    ``mu_products`` are tensors of one element, which begin with 1 and are updated, too.
    """
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay}
    options |= {"decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize}
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    _update("nadam", params, grads, states, options, threads, steps=steps, scalars={"mu_products": mu_products})


def lion(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
    threads: int | None = None,
) -> None:
    """Lion, as :class:`gdm.Lion`. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
    _update("lion", params, grads, {"exp_avgs": exp_avgs}, options, threads)


def signum(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    threads: int | None = None,
) -> None:
    """Signum, as :class:`gdm.Signum`. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
    options |= {"decoupled_weight_decay": decoupled_weight_decay}
    _update("signum", params, grads, {"exp_avgs": exp_avgs}, options, threads)


# ---- the update ----


def _update(
    rule: str,
    params: Tensors,
    grads: Grads,
    states: Mapping[str, Tensors | None],
    options: Options,
    threads: int | None,
    *,
    steps: Steps | None = None,
    scalars: dict[str, Tensors] | None = None,
    first: bool = False,
    unused: set[str] | None = None,
) -> None:
    threads = 0 if threads is None else _checks.thread_count("threads", threads)
    checked = _checks.options(options)
    for name, value in checked.items():
        if _checks.REALS.get(name) is _checks.NOT_NEGATIVE and value >= _checks.FLOAT32_OVERFLOW:
            raise ValueError(f"{name} must be finite in float32, got {value!r}")
    lists: dict[str, list[Any]] = {"params": list(params), "grads": list(grads)}
    for name, tensors in {**states, **(scalars or {})}.items():
        if name in (unused or ()):
            continue  # these options do not need it
        if tensors is None:
            raise ValueError(f"{name} are needed with these options, got None")
        lists[name] = list(tensors)
    count = len(lists["params"])
    if steps is not None:
        lists["steps"] = [steps] * count if isinstance(steps, int) else list(steps)
    for name, items in lists.items():
        if len(items) != count:
            raise ValueError(f"{name} must have as many items as params, {count}, got {len(items)}")
    if steps is not None:
        for i, n in enumerate(lists["steps"]):
            if not isinstance(n, torch.Tensor):
                lists["steps"][i] = _checks.whole(f"steps[{i}]" if lists["steps"] else "steps", n, 1, 2**63 - 1)
    in_order = [lists.get(name) for name in states]
    kept = next((lists[name] for name in scalars), None) if scalars else None
    if _backend.native is None or _backend.backend() == "reference":
        _require(lists, states, scalars)
        _by_reference(rule, checked, lists, in_order, kept, first)
        return
    wrong = _backend.native.update_tensors(
        rule, checked, lists["params"], lists["grads"], in_order, lists.get("steps"), kept, not first, threads
    )
    if wrong >= 0:
        _explain(lists, states, scalars)


def _require(lists: dict[str, list[Any]], states: Any, scalars: Any) -> None:
    """Raises an error that names what is wrong, if anything is."""
    spans = []
    for i, (param, grad) in enumerate(zip(lists["params"], lists["grads"], strict=True)):
        if grad is None:
            continue
        _require_native(f"params[{i}]", param)
        for name in ("grads", *states):
            if name in lists:
                _require_native(f"{name}[{i}]", lists[name][i])
                _require_like(f"{name}[{i}]", lists[name][i], f"params[{i}]", param)
        for name in ("steps", *(scalars or ())):
            x = lists[name][i] if name in lists else 1
            if name == "steps" and isinstance(x, int):
                continue
            if not (is_count(x) if name == "steps" else is_number(x, _checks.SCALARS[name.removesuffix("s")].domain)):
                raise ValueError(
                    f"{name}[{i}] must be a float tensor of one element that holds a valid number, got {x}"
                )
        for name in ("params", "grads", *states):
            if name in lists:
                x = lists[name][i]
                spans += [(x.data_ptr(), x.data_ptr() + x.nbytes, f"{name}[{i}]", name != "grads")] if x.nbytes else []
    spans.sort()
    last = None
    for span in spans:
        if last is not None and span[0] < last[1] and (span[3] or last[3]):
            raise OverlapError(f"{last[2]} and {span[2]} share memory; an update in place needs separate tensors")
        if last is None or span[1] > last[1]:
            last = span


def _explain(lists: dict[str, list[Any]], states: Any, scalars: Any) -> NoReturn:
    _require(lists, states, scalars)
    raise RuntimeError("gdm: these tensors were refused, for a reason that is not known")


def _require_native(name: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        raise TypeError(f"{name} is a {type(x).__name__}; expected a plain tensor")
    if x.device.type != "cpu":
        raise TypeError(f"{name} is on the device {x.device}; expected the CPU")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {x.dtype}; expected float32 or float64")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {x.layout}; expected a dense tensor")
    if not is_native(x):
        raise ValueError(f"{name} does not fill its memory (shape {tuple(x.shape)}, strides {x.stride()})")


def _require_like(name: str, x: Any, first: str, param: Any) -> None:
    if x.dtype != param.dtype:
        raise ValueError(f"{name} has dtype {x.dtype}, but {first} has {param.dtype}")
    if x.shape != param.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, but {first} has {tuple(param.shape)}")
    if not same_layout(x, param):
        raise ValueError(f"{name} lies in memory in another order than {first}: strides {x.stride()}, {param.stride()}")


def _by_reference(
    rule: str, options: Options, lists: dict[str, list[Any]], states: list[Any], scalars: list[Any] | None, first: bool
) -> None:
    writes: list[tuple[Array, Any]] = []
    for i, (param, grad) in enumerate(zip(lists["params"], lists["grads"], strict=True)):
        if grad is None:
            continue
        kept = {name: flat(x[i]) for name, x in zip(state_names(rule), states, strict=True) if x is not None}
        buffers = {"param": flat(param), "grad": flat(grad), **kept}
        own = {name: np.array(scalars[i].item()) for name in scalar_names(rule)} if scalars else {}
        step = lists["steps"][i] if "steps" in lists else 1
        number = step if isinstance(step, int) else int(step.item()) + 1
        new = reference.update(rule, {**options, "step": number, "lr_scale": None, **buffers, **own}, first=first)
        if scalars:
            writes += [(flat(scalars[i]), new.pop(name)) for name in own]
        writes += [] if isinstance(step, int) else [(flat(step), number)]
        writes += [(buffers[name], x) for name, x in new.items()]
    changed = [param for param, grad in zip(lists["params"], lists["grads"], strict=True) if grad is not None]
    torch.autograd.graph.increment_version(changed)
    for target, value in writes:
        target[...] = value
