"""Copies: tensors into which a step writes the new parameters, in the same pass over memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import OverlapError
from .tensors import FLOATS, first_shared, is_in_memory, is_native, is_plain, local_of, same_layout, same_parts

Copies = dict[Any, Any]  # from parameter to copy


def copies_of(copies: Any, params: list[Any], labels: list[str]) -> Copies:
    """Checks what a user gave as ``copies``: one for each parameter, in order, or by parameter. None is none.

    ``labels`` are the names of the parameters in messages.
    """
    if copies is None:
        return {}
    by_place = {id(param): i for i, param in enumerate(params)}
    pairs: list[tuple[str, int, Any]] = []
    if isinstance(copies, Mapping):
        for param, copy in copies.items():
            if id(param) not in by_place:
                raise ValueError("copies has a key that is not a parameter of this optimizer")
            pairs.append((f"copies[{labels[by_place[id(param)]]}]", by_place[id(param)], copy))
    elif isinstance(copies, (list, tuple)):
        if len(copies) != len(params):
            raise ValueError(f"copies must have an item for each of the {len(params)} parameters, got {len(copies)}")
        pairs = [(f"copies[{i}]", i, copy) for i, copy in enumerate(copies)]
    else:
        raise TypeError(f"copies must be a list of tensors or a dict, not {type(copies).__name__}")
    pairs = [pair for pair in pairs if pair[2] is not None]
    for name, i, copy in pairs:
        require(name, copy, labels[i], params[i])
    names = [*(name for name, _, _ in pairs), *labels]
    tensors = [local_of(x) for x in (*(copy for _, _, copy in pairs), *params)]
    known = [(name, x) for name, x in zip(names, tensors, strict=True) if x is not None and is_in_memory(x)]
    shared = first_shared([x for _, x in known])
    if shared and any(known[k][0].startswith("copies[") for k in shared):
        raise OverlapError(
            f"{known[shared[0]][0]} and {known[shared[1]][0]} share memory; a copy needs memory of its own"
        )
    return {params[i]: copy for _, i, copy in pairs}


def require(name: str, copy: Any, label: str, param: Any) -> Any:
    """The tensor that has the memory of a copy. An error if it cannot be one of this parameter."""
    if not isinstance(copy, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(copy).__name__}")
    local, own = local_of(param), local_of(copy)
    if own is None or (own is not copy and not (type(param) is type(copy) and same_parts(param, copy))):
        raise TypeError(
            f"{name} is a {type(copy).__name__}; expected a plain tensor, or one that is divided as {label}"
        )
    if own.device.type != "cpu":
        raise TypeError(f"{name} is on the device {own.device}; expected the CPU")
    if own.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {own.dtype}; expected {' or '.join(FLOATS.values())}")
    if own.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {own.layout}; expected a dense tensor")
    if own.is_inference():
        raise ValueError(f"{name} was made in inference mode, so that it cannot be changed outside of it")
    like = param if local is None else local
    if own.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(own.shape)}, but {label} has {tuple(like.shape)}")
    if not is_native(own):
        raise ValueError(f"{name} does not fill its memory (shape {tuple(own.shape)}, strides {own.stride()})")
    if is_plain(like) and is_native(like) and not same_layout(own, like):
        raise ValueError(
            f"{name} lies in memory in another order than {label}: strides {own.stride()}, {like.stride()}"
        )
    return own
