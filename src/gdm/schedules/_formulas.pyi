from typing import Any

import numpy as np
from numpy.typing import NDArray

def block(pieces: tuple[Any, ...], i: int, first_step: int, count: int) -> NDArray[np.float64]: ...
