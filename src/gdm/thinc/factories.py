"""The functions that a config calls as ``gdm.Adam.v1``, ``gdm.RAdam.v1`` and ``gdm.SGD.v1``: see pyproject.toml.

Arguments, their order and their defaults are thinc's.
"""

# Annotations are evaluated here: thinc's configs read them, and cannot read them as strings.
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import thinc.optimizers
from thinc.types import Generator

from .optimizer import Optimizer

# A number, or its values from step to step. thinc 9 has a class for schedules, thinc 8.3 has generators.
if TYPE_CHECKING:
    Rate: TypeAlias = Any
else:
    Rate = Union[float, list[float], Generator, getattr(thinc.optimizers, "Schedule", Generator)]  # noqa: UP007
DEFAULTS = thinc.optimizers.ADAM_DEFAULTS


def Adam(
    learn_rate: Rate = DEFAULTS["learn_rate"],
    *,
    L2: Rate = DEFAULTS["L2"],
    beta1: Rate = DEFAULTS["beta1"],
    beta2: Rate = DEFAULTS["beta2"],
    eps: Rate = DEFAULTS["eps"],
    grad_clip: Rate = DEFAULTS["grad_clip"],
    L2_is_weight_decay: bool = True,
    use_averages: bool = True,
) -> Any:
    """thinc's Adam, in a config ``@optimizers = "gdm.Adam.v1"``.

    Parameters
    ----------
    learn_rate, L2, beta1, beta2, eps, grad_clip, L2_is_weight_decay, use_averages
        As for :class:`gdm.thinc.Optimizer`.

    Returns
    -------
    gdm.thinc.Optimizer
        The optimizer.

    Examples
    --------
    >>> import numpy as np, gdm.thinc
    >>> optimizer = gdm.thinc.Adam(0.25, grad_clip=0.0)
    >>> weights, gradient = np.array([1.0, 2.0]), np.array([0.5, -4.0])
    >>> weights, gradient = optimizer((0, "W"), weights, gradient)
    >>> weights.round(6), gradient
    (array([0.75, 2.25]), array([0., 0.]))
    """
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
    )


def RAdam(
    learn_rate: Rate = DEFAULTS["learn_rate"],
    *,
    beta1: Rate = DEFAULTS["beta1"],
    beta2: Rate = DEFAULTS["beta2"],
    eps: Rate = DEFAULTS["eps"],
    L2: Rate = DEFAULTS["L2"],
    L2_is_weight_decay: bool = True,
    grad_clip: Rate = DEFAULTS["grad_clip"],
    use_averages: bool = True,
) -> Any:
    """thinc's RAdam, in a config ``@optimizers = "gdm.RAdam.v1"``.

    Parameters
    ----------
    learn_rate, beta1, beta2, eps, L2, L2_is_weight_decay, grad_clip, use_averages
        As for :class:`gdm.thinc.Optimizer`.

    Returns
    -------
    gdm.thinc.Optimizer
        The optimizer.

    Examples
    --------
    >>> import numpy as np, gdm.thinc
    >>> optimizer = gdm.thinc.RAdam(0.25, beta1=0.0, grad_clip=0.0)
    >>> weights, gradient = np.array([1.0, 2.0]), np.array([0.5, -4.0])
    >>> optimizer((0, "W"), weights, gradient)[0]  # as long as it is not rectified, a step along the average gradient
    array([0.875, 3.   ])
    """
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
        use_radam=True,
    )


def SGD(
    learn_rate: Rate,
    *,
    L2: Rate = DEFAULTS["L2"],
    grad_clip: Rate = DEFAULTS["grad_clip"],
    L2_is_weight_decay: bool = True,
    use_averages: bool = True,
) -> Any:
    """thinc's gradient descent, in a config ``@optimizers = "gdm.SGD.v1"``. It has no momentum.

    Parameters
    ----------
    learn_rate, L2, grad_clip, L2_is_weight_decay, use_averages
        As for :class:`gdm.thinc.Optimizer`.

    Returns
    -------
    gdm.thinc.Optimizer
        The optimizer.

    Examples
    --------
    >>> import numpy as np, gdm.thinc
    >>> optimizer = gdm.thinc.SGD(0.5, grad_clip=0.0)
    >>> optimizer((0, "W"), np.array([1.0, 2.0]), np.array([0.5, -0.5]))[0]
    array([0.75, 2.25])
    """
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=0.0,
        beta2=0.0,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
    )
