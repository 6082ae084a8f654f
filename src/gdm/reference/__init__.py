"""The update rules in NumPy: the specification that the compiled kernels reproduce to the last bit.

The code is simple, not fast. Every operation is rounded once, to the dtype of the parameter. Hyperparameters and the
numbers derived from them are computed in double precision, then rounded once. The body of a function returns the new
values of the parameter and the states. The decorator makes it a function that checks its arguments and works in place.
"""

from ._adadelta import adadelta
from ._adagrad import adagrad
from ._adam import adam
from ._adamax import adamax
from ._ademamix import ademamix
from ._asgd import asgd
from ._lamb import lamb
from ._lars import lars
from ._lion import lion
from ._momentum import momentum
from ._muon import muon
from ._nadam import nadam
from ._radam import radam
from ._reductions import count_nonfinite as count_nonfinite
from ._reductions import largest_magnitude as largest_magnitude
from ._reductions import sum_of_squares as sum_of_squares
from ._rmsprop import rmsprop
from ._rprop import rprop
from ._schedule_free_adamw import schedule_free_adamw
from ._schedule_free_sgd import schedule_free_sgd
from ._sgd import sgd
from ._sign_sgd import sign_sgd
from ._signum import signum
from .formula import names as names
from .formula import written as written

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "ademamix",
    "asgd",
    "lamb",
    "lars",
    "lion",
    "momentum",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "sign_sgd",
    "signum",
]
