"""gdm: gradient descent with momentum, in place, over contiguous float buffers.

    gdm.sgd(param, grad, lr=0.1)                     one update
    gdm.momentum(param, velocity, grad, lr=0.1)      the same with momentum
    gdm.SGD(params, lr=0.1, momentum=0.9)            an optimizer: .step(grads)

The formulas are written out in :mod:`gdm.reference`, in NumPy; the compiled kernels give the same bits.
"""

from . import reference
from ._backend import (
    available_isas,
    backend,
    get_num_threads,
    isa,
    momentum,
    set_backend,
    set_isa,
    set_num_threads,
    sgd,
    threads,
)
from .errors import CheckpointError, OverlapError, StaleBufferError
from .optimizers import SGD

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "CheckpointError",
    "OverlapError",
    "StaleBufferError",
    "available_isas",
    "backend",
    "get_include",
    "get_num_threads",
    "isa",
    "momentum",
    "reference",
    "set_backend",
    "set_isa",
    "set_num_threads",
    "sgd",
    "threads",
]


def get_include() -> str:
    """The folder to add to a C compiler's include path, for ``#include <gdm/gdm.h>``."""
    from importlib.resources import files

    return str(files("gdm") / "include")


def _register_threads() -> None:
    # Now, since nothing would tell us of its import later. It costs some 5 ms, where it is installed.
    from contextlib import suppress

    with suppress(ImportError):
        from . import _threadpoolctl  # noqa: F401


_register_threads()
