"""Operations on many arrays at once: in the compiled module where it loads, else in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._backend import native
from ._checks import Array, address


def _are_plain(arrays: list[Array]) -> bool:
    """Whether all are NumPy arrays of floats that an update may write to, so that no check would refuse one."""
    return False  # each is then checked by itself


def _views(arrays: list[Array]) -> list[Array]:
    """A view of each array, whose shape and dtype nobody else can change."""
    return [x.view() for x in arrays]


def _addresses(arrays: list[Array]) -> list[int]:
    """The address of each array's memory."""
    return [address(x) for x in arrays]


def _carve(memory: Array, starts: list[int], params: list[Array]) -> list[Array]:
    """Parts of one block of memory, which begin at these bytes: each with dtype, shape and order of its parameter."""
    return [
        memory[start : start + param.nbytes]
        .view(param.dtype)
        .reshape(param.shape, order="C" if param.flags.c_contiguous else "F")
        for start, param in zip(starts, params, strict=True)
    ]


if native is not None and not TYPE_CHECKING:
    are_plain, views, addresses, carve = native.are_plain, native.views, native.addresses, native.carve
else:
    are_plain, views, addresses, carve = _are_plain, _views, _addresses, _carve

__all__ = ["addresses", "are_plain", "carve", "views"]
