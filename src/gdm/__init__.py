"""gdm: gradient descent with momentum, in place, over contiguous float buffers.

    gdm.sgd(param, grad, lr=0.1)                     one update
    gdm.momentum(param, velocity, grad, lr=0.1)      the same with momentum
    gdm.SGD(params, lr=0.1, momentum=0.9)            an optimizer: .step(grads); Adagrad ... AdEMAMix too
    gdm.schedules.cosine(0.1, steps=1000)            a learning rate for each step
    gdm.scipy.momentum                               a method of scipy.optimize.minimize; gdm.scipy.adam likewise
    gdm.torch.to_state_dict(opt)                     what an optimizer has saved, for PyTorch's; and the reverse
    gdm.thinc.Adam(0.001)                            thinc's optimizers on gdm's kernels
    gdm.sklearn.MLPClassifier()                      scikit-learn's perceptrons on gdm's kernels

The formulas are written out in :mod:`gdm.reference`, in NumPy; the compiled kernels give the same bits.
"""

from typing import TYPE_CHECKING, Any

from . import reference
from ._backend import (
    adadelta,
    adagrad,
    adam,
    adamax,
    ademamix,
    asgd,
    available_isas,
    backend,
    c_functions,
    get_num_threads,
    isa,
    lamb,
    lars,
    lion,
    momentum,
    muon,
    nadam,
    radam,
    rmsprop,
    rprop,
    schedule_free_adamw,
    schedule_free_sgd,
    set_backend,
    set_isa,
    set_num_threads,
    sgd,
    sign_sgd,
    signum,
    threads,
)
from ._embedding import get_cmake_dir, get_include
from .errors import CheckpointError, NonFiniteError, OverlapError, StaleBufferError
from .optimizers import (
    ASGD,
    LAMB,
    LARS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdEMAMix,
    Lion,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Signum,
)
from .orthogonal import newton_schulz
from .reductions import accumulate, count_nonfinite, grad_norm

if TYPE_CHECKING:
    from . import schedules
    from . import scipy as scipy
    from . import sklearn as sklearn
    from . import thinc as thinc
    from . import torch as torch

__version__ = "0.1.0"

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CheckpointError",
    "Lion",
    "Muon",
    "NAdam",
    "NonFiniteError",
    "OverlapError",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Signum",
    "StaleBufferError",
    "accumulate",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "ademamix",
    "asgd",
    "available_isas",
    "backend",
    "c_functions",
    "count_nonfinite",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "grad_norm",
    "isa",
    "lamb",
    "lars",
    "lion",
    "momentum",
    "muon",
    "nadam",
    "newton_schulz",
    "radam",
    "reference",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "schedules",
    "set_backend",
    "set_isa",
    "set_num_threads",
    "sgd",
    "sign_sgd",
    "signum",
    "threads",
]


def __getattr__(name: str) -> Any:
    # On use: what schedules needs takes longer to import than all the rest. The others are not in __all__, since ``from
    # gdm import *`` must not put them in the place of the libraries.
    if name in ("schedules", "scipy", "sklearn", "thinc", "torch"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "scipy", "sklearn", "thinc", "torch", "__version__"]


def _register_threads() -> None:
    # Now, since nothing would tell us of its import later. It costs some 5 ms, where it is installed.
    from contextlib import suppress

    with suppress(ImportError):
        from . import _threadpoolctl  # noqa: F401


_register_threads()
