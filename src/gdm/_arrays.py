"""Operations on many arrays at once: in the compiled module where it loads, else in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._backend import native
from ._checks import Array, address


def _are_plain(arrays: list[Any], writable: bool) -> bool:
    """Whether all are NumPy arrays of floats that may be read, or also written, so that no check would refuse one."""
    return False  # each is then checked by itself


def _views(arrays: list[Array]) -> list[Array]:
    """A plain view of each array, bfloat16 as uint16. Nobody else can change its shape and dtype."""
    return [np.ndarray.view(x, np.ndarray) if x.dtype.num < 256 else np.ndarray.view(x, np.uint16) for x in arrays]


def _memory_extents(arrays: list[Array]) -> list[tuple[int, int]]:
    """The address of each array's memory, and its size in bytes."""
    return [(address(x), x.nbytes) for x in arrays]


def _carve(memory: Array, starts: list[int], likes: list[Array], dtypes: list[np.dtype[Any]]) -> list[Array]:
    """Parts of a block of memory, which begin at these bytes: each has the shape and order of an array, and a dtype."""
    return [
        memory[start : start + like.size * dtype.itemsize]
        .view(dtype)
        .reshape(like.shape, order="C" if like.flags.c_contiguous else "F")
        for start, like, dtype in zip(starts, likes, dtypes, strict=True)
    ]


if native is not None and not TYPE_CHECKING:
    are_plain, views = native.are_plain, native.views
    memory_extents, carve = native.memory_extents, native.carve
else:
    are_plain, views, memory_extents, carve = _are_plain, _views, _memory_extents, _carve

__all__ = ["are_plain", "carve", "memory_extents", "views"]
