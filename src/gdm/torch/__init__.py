"""gdm for PyTorch: its optimizers, faster on a CPU and with the same results; and states to and from ``torch.optim``.

    gdm.torch.AdamW(model.parameters(), lr=1e-3)     in the place of torch.optim.AdamW; SGD ... RMSprop, Lion likewise
    gdm.torch.functional.adamw(params, grads, ...)   one update, for those who keep the states themselves
    gdm.torch.to_state_dict(opt)                     the state of an optimizer of gdm's, for PyTorch's; and the reverse

PyTorch is imported when one of these is used first.
"""

from typing import TYPE_CHECKING, Any

from .state_dict import load_state_dict, to_state_dict

if TYPE_CHECKING:
    from . import functional as functional
    from .muon import Muon, newton_schulz
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
        NAdam,
        RAdam,
        RMSprop,
        Rprop,
        ScheduleFreeAdamW,
        ScheduleFreeSGD,
        Signum,
    )

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
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Signum",
    "functional",
    "load_state_dict",
    "newton_schulz",
    "to_state_dict",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("functional", "optimizers"):
        return import_module(f".{name}", __name__)
    if name in ("Muon", "newton_schulz"):
        return getattr(import_module(".muon", __name__), name)
    if name in __all__:
        return getattr(import_module(".optimizers", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
