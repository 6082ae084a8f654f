from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_X = TypeVar("_X")
_Y = TypeVar("_Y")

def block(pieces: tuple[Any, ...], i: int, first_step: int, count: int) -> NDArray[np.float64]: ...
def in_default_mode(function: Callable[[_X, _Y], float], x: _X, y: _Y) -> float: ...
