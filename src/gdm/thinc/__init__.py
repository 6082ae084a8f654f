"""gdm for thinc and spaCy: thinc's optimizers, with the same formulas, on gdm's kernels.

    @optimizers = "gdm.Adam.v1"                      in a config, in the place of "Adam.v1"; RAdam and SGD likewise
    gdm.thinc.Adam(0.001)                            in a program, in the place of thinc.api.Adam

thinc finds the names in the registry by itself. A config needs no import.
"""

try:
    import thinc.optimizers as _  # noqa: F401
except ImportError as error:
    raise ImportError("gdm.thinc needs thinc: pip install 'gdm-optim[thinc]'") from error

from .factories import SGD, Adam, RAdam
from .optimizer import Optimizer

__all__ = ["SGD", "Adam", "Optimizer", "RAdam"]
