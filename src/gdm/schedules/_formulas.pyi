from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

def block(pieces: tuple[Any, ...], i: int, first_step: int, count: int) -> NDArray[np.float64]: ...
def at_step(formula: Callable[[int, Any], float], step: int, constants: tuple[Any, ...]) -> float: ...
