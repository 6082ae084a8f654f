"""One number from many arrays: norms, the largest magnitude, the number of those that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._checks import Array

BLOCK, LANES = 4096, 32


def sum_of_squares(arrays: Sequence[Array]) -> float:
    """The sum of the squares of all elements, in float64, in a fixed order that does not depend on threads."""
    return _reduced(arrays, lambda x: x.astype(np.float64) * x.astype(np.float64), np.add)


def largest_magnitude(arrays: Sequence[Array]) -> float:
    """The largest absolute value of all elements; NaN if any is NaN; 0 if there are none."""
    return _reduced(arrays, lambda x: np.abs(x).astype(np.float64), np.maximum)


def count_nonfinite(arrays: Sequence[Array]) -> int:
    """How many elements are NaN or infinite."""
    return int(_reduced(arrays, lambda x: (~np.isfinite(x)).astype(np.float64), np.add))


def _reduced(arrays: Sequence[Array], map_elements: Callable[[Array], Array], combine: np.ufunc) -> float:
    """Cuts each array into blocks, and each block into lanes; combines lanes, blocks and arrays in fixed trees."""
    results = []
    with np.errstate(all="ignore"):
        for x in arrays:
            if x.size:
                values = map_elements(x.ravel(order="K"))
                padded = np.zeros(-(-x.size // BLOCK) * BLOCK)
                padded[: x.size] = values
                results.append(_tree([_lanes(block, combine) for block in padded.reshape(-1, BLOCK)], combine))
        return float(_tree(results, combine)) if results else 0.0


def _lanes(block: Array, combine: np.ufunc) -> Any:
    """One block: element i goes to lane i % 32; then the upper half of the lanes to the lower half; and so on."""
    lanes = np.zeros(LANES)
    for row in block.reshape(-1, LANES):
        lanes = combine(lanes, row)
    while lanes.size > 1:
        half = lanes.size // 2
        lanes = combine(lanes[:half], lanes[half:])
    return lanes[0]


def _tree(results: Sequence[Any], combine: np.ufunc) -> Any:
    """Combines a list in a tree: the length of the left part is the largest power of two below that of the list."""
    if len(results) == 1:
        return results[0]
    left = 1 << ((len(results) - 1).bit_length() - 1)
    return combine(_tree(results[:left], combine), _tree(results[left:], combine))
