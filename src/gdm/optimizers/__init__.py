"""The optimizers: each is a rule, its hyperparameters and their defaults."""

from .adagrad import Adagrad
from .adam import Adam, AdamW
from .lion import Lion
from .nadam import NAdam
from .rmsprop import RMSprop
from .sgd import SGD
from .signum import Signum

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "NAdam", "RMSprop", "Signum"]
