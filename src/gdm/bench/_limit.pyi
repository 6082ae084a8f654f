from typing import Any

from numpy.typing import NDArray

def move_bytes(variant: int, *arrays: NDArray[Any]) -> bool: ...
