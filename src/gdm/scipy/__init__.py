"""gdm for SciPy: its optimizers as methods of ``scipy.optimize.minimize``, which find their learning rates.

    minimize(fun, x0, jac=jac, method=gdm.scipy.momentum)     gradient_descent, nesterov, adam, schedule_free

SciPy is imported when a method is called.
"""

from .methods import adam, gradient_descent, momentum, nesterov, schedule_free

__all__ = ["adam", "gradient_descent", "momentum", "nesterov", "schedule_free"]


def __dir__() -> list[str]:
    return __all__
