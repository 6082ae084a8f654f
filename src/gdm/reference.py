"""The update rules in NumPy: the specification that the compiled kernels reproduce to the last bit.

The code is simple, not fast. Every operation is rounded once, to the dtype of the parameter. Hyperparameters and the
numbers derived from them are computed in double precision, then rounded once. The body of a function returns the new
values of the parameter and the states. The decorator makes it a function that checks its arguments and works in place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import numpy as np

from . import _checks
from ._checks import Array

if TYPE_CHECKING:
    from ._checks import Floats

__all__ = ["adagrad", "adam", "lion", "momentum", "nadam", "rmsprop", "sgd", "sign_sgd", "signum"]

P = ParamSpec("P")
New = tuple[Any, ...]  # the new param, states (None for one that is not used), and mu_product


# ---- from a formula to a function ----------------------------------------------------------------------------------


def names(formula: Callable[..., New]) -> tuple[list[str], list[str]]:
    """The names of a formula's positional arguments, and of those given by keyword."""
    code = formula.__code__
    known = list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    return known[: code.co_argcount], known[code.co_argcount :]


def written(formula: Callable[..., New]) -> list[str]:
    """The names of the values that a formula returns, in its order."""
    positional, keywords = names(formula)
    return [name for name in positional if name != "grad"] + [
        name for name in keywords if name in _checks.OPTIONAL_STATES or name in _checks.SCALARS
    ]


def update(rule: str, given: Mapping[str, Any], *, first: bool = False) -> dict[str, Array]:
    """The new param, states and mu_product, by name, after one step of a rule; nothing is written.

    ``first``: it is the first step that uses the states.
    """
    formula = globals()[rule].__wrapped__
    positional, keywords = names(formula)
    options = {name: given[name] for name in keywords if name in given}
    if first and options.get("form") == "torch":
        # The velocity becomes the gradient, without dampening: -0 + g is g, also for the sign of a zero.
        given, options["dampening"] = {**given, "velocity": np.full_like(given["velocity"], -0.0)}, 0.0
    with np.errstate(all="ignore"):
        new = formula(*(given[name] for name in positional), **options)
    return {name: x for name, x in zip(written(formula), new, strict=True) if x is not None}


def _in_place(formula: Callable[P, New]) -> Callable[P, None]:
    positional, keywords = names(formula)

    @functools.wraps(formula)
    def function(*args: P.args, **options: P.kwargs) -> None:
        given = dict(zip(positional, args, strict=False))
        name = formula.__name__
        if len(args) > len(positional):
            raise TypeError(f"{name}() takes {len(positional)} positional arguments but {len(args)} were given")
        for option, value in options.items():
            if option in given:
                raise TypeError(f"{name}() got multiple values for argument {option!r}")
            if option not in positional and option not in keywords:
                raise TypeError(f"{name}() got an unexpected keyword argument {option!r}")
            given[option] = value
        given = {**(formula.__kwdefaults__ or {}), **given}
        if missing := [option for option in positional + keywords if option not in given]:
            raise TypeError(f"{name}() missing required arguments: {', '.join(missing)}")
        checked = _checks.arguments({option: given[option] for option in positional + keywords}, len(positional))
        for option, value in update(name, checked).items():
            checked[option][...] = value

    return function


def _arrays(*given: Floats) -> tuple[Array, ...]:
    """The arguments as arrays, for the type checker: the decorator has made arrays of them."""
    return given  # type: ignore[return-value]


def _rates(p: Array, rate: float, lr: float, decay: float, decoupled: bool, lr_scale: Floats | None) -> tuple[Any, Any]:
    """The learning rate of each element, and its factor of decoupled weight decay."""
    T = p.dtype.type
    lr_times_decay = lr * decay if decoupled else 0.0
    if lr_scale is None:
        return T(rate), T(1.0 - lr_times_decay if decoupled else 1.0)
    (scale,) = _arrays(lr_scale)
    return T(rate) * scale, T(1.0) - T(lr_times_decay) * scale


def _gradient(p: Array, g: Array, maximize: bool, decay: float) -> Array:
    """The gradient after ``maximize`` and coupled weight decay."""
    T = p.dtype.type
    g = T(-1.0 if maximize else 1.0) * g
    return g + T(decay) * p if decay != 0 else g


def _sign(x: Array) -> Array:
    """1 or -1; x itself where it is 0 or NaN."""
    T = x.dtype.type
    return np.where(x > 0, T(1.0), np.where(x < 0, T(-1.0), x))


def _power(base: float, exponent: int) -> float:
    """A power by multiplications in a fixed order, since libraries' pow() differ between machines."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result = result * base
        base = base * base
        exponent >>= 1
    return result


def _power_of_096(x: float) -> float:
    """0.96**x for x >= 0, as e**y: y is halved until it is small; then the series is squared as many times."""
    y, total, halved = x * -0.040821994520255166, 1.0, 0
    if y < -745.0:
        return 0.0
    while y < -0.125:
        y, halved = y * 0.5, halved + 1
    for k in range(12, 0, -1):
        total = 1.0 + total * y / k
    for _ in range(halved):
        total = total * total
    return total


# ---- the rules, in order of increasing complexity ------------------------------------------------------------------


@_in_place
def sgd(
    param: Floats,
    grad: Floats,
    *,
    lr: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Gradient descent, in place: ``param`` becomes ``param - lr * grad``.

    Parameters
    ----------
    param : array of float32 or float64, any shape
        The parameter θ; overwritten. Contiguous (C or Fortran order), aligned and writable. A NumPy array, a tensor, or
        anything else in the CPU's memory with DLPack or the buffer protocol.
    grad : array like ``param``
        The gradient g at ``param``; only read, and may be read-only.
    lr : float
        The learning rate η, finite and not negative. No unit of its own: that of ``param`` over that of ``grad``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    maximize : bool, default False
        Walk up the gradient instead of down.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone.
    lr_scale : array like ``param``, optional
        A factor of the learning rate for each element; only read.

    Raises
    ------
    TypeError
        If an argument is no such array, is on another device, has another dtype or is byte-swapped; or if an option has
        the wrong type.
    ValueError
        If shapes, dtypes or memory orders differ; a buffer is not contiguous, misaligned, or read-only; or an option
        is outside its range.
    gdm.OverlapError
        If ``param`` and ``grad`` share memory.

    After an exception ``param`` is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                 # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param      # if decoupled_weight_decay
        param = param - lr * g

    Source: A. Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", 1847; the options as
    in ``torch.optim.SGD``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, 2.0])
    >>> gdm.sgd(theta, np.array([0.5, -0.5]), lr=0.5)
    >>> theta
    array([0.75, 2.25])
    """
    p, g = _arrays(param, grad)
    g = _gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = _rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    return (decay_factor * p - eta * g,)


@_in_place
def momentum(
    param: Floats,
    velocity: Floats,
    grad: Floats,
    *,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
    form: Literal["torch", "classic"] = "torch",
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Gradient descent with momentum, heavy ball or Nesterov, in place.

    The function keeps nothing between calls: give it the velocity each time, zeros at first.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    velocity : array like ``param``
        The velocity v; overwritten.
    lr : float
        The learning rate η, finite and not negative. No unit of its own: that of ``param`` over that of ``grad``.
    momentum : float, default 0.9
        μ, in [0, 1): the share of the velocity that is kept from step to step.
    dampening : float, default 0
        τ, in [0, 1]: the gradient enters the velocity times ``1 - dampening``; ``dampening=momentum`` makes the
        velocity an exponential moving average. Only with ``form="torch"`` and without ``nesterov``.
    nesterov : bool, default False
        Nesterov's momentum: look ahead along the velocity. Needs ``momentum > 0``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    form : {"torch", "classic"}, default "torch"
        Whether the learning rate scales the whole velocity when it is applied (PyTorch, optax, MLX) or each gradient
        when it enters the velocity (the textbook, Keras, scikit-learn). Both give the same path if ``lr`` is constant.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone (SGDW).

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param         # if decoupled_weight_decay

        # form="torch"
        velocity = momentum * velocity + (1 - dampening) * g
        param = param - lr * velocity
        param = param - lr * (g + momentum * velocity)  # instead, if nesterov

        # form="classic"
        velocity = momentum * velocity - lr * g
        param = param + velocity
        param = param + (momentum * velocity - lr * g)  # instead, if nesterov

    Sources: B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Y. Nesterov, "A method
    of solving a convex programming problem with convergence rate O(1/k²)", 1983; I. Sutskever et al., "On the
    importance of initialization and momentum in deep learning", 2013; decoupled decay: I. Loshchilov and F. Hutter,
    "Decoupled weight decay regularization", 2019.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, v = np.array([1.0, 2.0]), np.zeros(2)
    >>> for _ in range(2):
    ...     gdm.momentum(theta, v, np.array([0.5, -0.5]), lr=0.5, momentum=0.5)
    >>> theta
    array([0.375, 2.625])
    >>> v
    array([ 0.75, -0.75])
    """
    p, v, g = _arrays(param, velocity, grad)
    T = p.dtype.type
    mu = T(momentum)
    g = _gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = _rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    p = decay_factor * p
    if form == "classic":
        v = mu * v - eta * g
        p = p + (mu * v - eta * g) if nesterov else p + v
    else:
        v = mu * v + T(1.0 - dampening) * g
        p = p - eta * (g + mu * v) if nesterov else p - eta * v
    return p, v


@_in_place
def adagrad(
    param: Floats,
    state_sum: Floats,
    grad: Floats,
    *,
    step: int,
    lr: float = 0.01,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Adagrad, in place: each element's learning rate falls with the sum of its squared gradients.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    state_sum : array like ``param``
        The sum of the squared gradients; overwritten. It starts from zeros, or from a small number.
    step : int
        The number of this step, from 1. It only has an effect with ``lr_decay``.
    lr : float, default 0.01
        The learning rate η, finite and not negative.
    lr_decay : float, default 0
        The learning rate is divided by ``1 + (step - 1) * lr_decay``; finite and not negative.
    eps : float, default 1e-10
        ε, finite and not negative: added to the root in the denominator, where PyTorch adds it.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless weight_decay is 0
        state_sum = state_sum + g * g
        param = param - lr / (1 + (step - 1) * lr_decay) * (g / (sqrt(state_sum) + eps))

    Source: J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", 2011; the options as in ``torch.optim.Adagrad``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, s = np.array([1.0, 2.0]), np.zeros(2)
    >>> gdm.adagrad(theta, s, np.array([0.5, -4.0]), step=1, lr=0.25)
    >>> theta.round(6)
    array([0.75, 2.25])
    """
    p, s, g = _arrays(param, state_sum, grad)
    g = _gradient(p, g, maximize, weight_decay)
    eta, decay_factor = _rates(p, lr / (1.0 + float(step - 1) * lr_decay), lr, weight_decay, False, lr_scale)
    s = s + g * g
    return decay_factor * p - eta * (g / (np.sqrt(s) + p.dtype.type(eps))), s


@_in_place
def rmsprop(
    param: Floats,
    square_avg: Floats,
    grad: Floats,
    *,
    lr: float = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    grad_avg: Floats | None = None,
    momentum_buffer: Floats | None = None,
    lr_scale: Floats | None = None,
) -> New:
    """RMSprop, in place: the gradient over the root of an average of its squares; optionally centered or with momentum.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    square_avg : array like ``param``
        The average of the squared gradients; overwritten. It starts from zeros.
    lr : float, default 0.01
        The learning rate η, finite and not negative.
    alpha : float, default 0.99
        The share of the averages that is kept from step to step, in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator, where PyTorch adds it.
    momentum : float, default 0
        μ, in [0, 1): the share of ``momentum_buffer`` that is kept from step to step.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    centered : bool, default False
        Subtract the square of the average gradient from the average square.
    grad_avg : array like ``param``, optional
        The average gradient; overwritten. Needed with ``centered``, and only then.
    momentum_buffer : array like ``param``, optional
        The velocity; overwritten. Needed with ``momentum > 0``, and only then.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless weight_decay is 0
        square_avg = alpha * square_avg + (1 - alpha) * (g * g)
        grad_avg = alpha * grad_avg + (1 - alpha) * g                   # if centered
        d = sqrt(square_avg - grad_avg * grad_avg if centered else square_avg) + eps
        param = param - lr * (g / d)

        momentum_buffer = momentum * momentum_buffer + g / d            # instead, if momentum > 0
        param = param - lr * momentum_buffer

    Sources: G. Hinton, "Neural networks for machine learning", lecture 6e, 2012; centered: A. Graves, "Generating
    sequences with recurrent neural networks", 2013; the options as in ``torch.optim.RMSprop``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, s = np.array([1.0, 2.0]), np.zeros(2)
    >>> gdm.rmsprop(theta, s, np.array([0.5, -4.0]), lr=0.25, alpha=0.75)
    >>> theta.round(6)
    array([0.5, 2.5])
    """
    p, s, g = _arrays(param, square_avg, grad)
    T = p.dtype.type
    a = b = None
    g = _gradient(p, g, maximize, weight_decay)
    eta, decay_factor = _rates(p, lr, lr, weight_decay, False, lr_scale)
    s = T(alpha) * s + T(1.0 - alpha) * (g * g)
    variance = s
    if centered and grad_avg is not None:
        (a,) = _arrays(grad_avg)
        a = T(alpha) * a + T(1.0 - alpha) * g
        variance = s - a * a
    step = g / (np.sqrt(variance) + T(eps))
    if momentum != 0 and momentum_buffer is not None:
        (b,) = _arrays(momentum_buffer)
        step = b = T(momentum) * b + step
    return decay_factor * p - eta * step, s, a, b


@_in_place
def adam(
    param: Floats,
    exp_avg: Floats,
    exp_avg_sq: Floats,
    grad: Floats,
    *,
    step: int,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    max_exp_avg_sq: Floats | None = None,
    lr_scale: Floats | None = None,
) -> New:
    """Adam, in place; with ``decoupled_weight_decay`` AdamW, with ``amsgrad`` AMSGrad.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The average gradient m; overwritten. It starts from zeros.
    exp_avg_sq : array like ``param``
        The average v of the squared gradients; overwritten. It starts from zeros.
    step : int
        Which step this is, counted from 1: the averages start at zero, and are corrected for that.
    lr : float, default 0.001
        The learning rate η, finite and not negative.
    betas : (float, float), default (0.9, 0.999)
        The shares of ``exp_avg`` and ``exp_avg_sq`` that are kept from step to step, each in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator, where PyTorch adds it.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    amsgrad : bool, default False
        Divide by the largest ``exp_avg_sq`` so far.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone (AdamW).
    max_exp_avg_sq : array like ``param``, optional
        The largest ``exp_avg_sq`` so far; overwritten. Needed with ``amsgrad``, and only then.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless weight_decay is 0, or decoupled
        param = (1 - lr * weight_decay) * param         # if decoupled_weight_decay
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        max_exp_avg_sq = max(max_exp_avg_sq, exp_avg_sq)                # if amsgrad; it stands for exp_avg_sq below
        inverse_sqrt_correction2 = 1 / sqrt(1 - beta2**step)             # in double precision
        param = param - lr / (1 - beta1**step) * (exp_avg / (sqrt(exp_avg_sq) * inverse_sqrt_correction2 + eps))

    Sources: D. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015; I. Loshchilov, F. Hutter, "Decoupled
    weight decay regularization", 2019; S. Reddi, S. Kale, S. Kumar, "On the convergence of Adam and beyond", 2018; the
    options as in ``torch.optim.Adam``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> gdm.adam(theta, m, v, np.array([0.5, -4.0]), step=1, lr=0.25)
    >>> theta.round(6)
    array([0.75, 2.25])
    """
    p, m, v, g = _arrays(param, exp_avg, exp_avg_sq, grad)
    T, (beta1, beta2), x = p.dtype.type, betas, None
    g = _gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    rate = lr / (1.0 - _power(beta1, step))
    inverse_sqrt_correction2 = 1.0 / math.sqrt(1.0 - _power(beta2, step))
    eta, decay_factor = _rates(p, rate, lr, weight_decay, decoupled_weight_decay, lr_scale)
    m = T(beta1) * m + T(1.0 - beta1) * g
    v = T(beta2) * v + T(1.0 - beta2) * (g * g)
    largest = v
    if amsgrad and max_exp_avg_sq is not None:
        (x,) = _arrays(max_exp_avg_sq)
        largest = x = np.where(x > v, x, v)
    return decay_factor * p - eta * (m / (np.sqrt(largest) * T(inverse_sqrt_correction2) + T(eps))), m, v, x


@_in_place
def nadam(
    param: Floats,
    exp_avg: Floats,
    exp_avg_sq: Floats,
    grad: Floats,
    *,
    step: int,
    mu_product: Floats,
    lr: float = 0.002,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 0.004,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """NAdam, in place: Adam with Nesterov's momentum.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The average gradient m; overwritten. It starts from zeros.
    exp_avg_sq : array like ``param``
        The average v of the squared gradients; overwritten. It starts from zeros.
    step : int
        Which step this is, counted from 1: the averages start at zero, and are corrected for that.
    mu_product : array of one float64
        The product of the momenta of all steps before this one, 1 at first; overwritten with the product after it.
    lr : float, default 0.002
        The learning rate η, finite and not negative.
    betas : (float, float), default (0.9, 0.999)
        The shares of ``exp_avg`` and ``exp_avg_sq`` that are kept from step to step, each in [0, 1).
    eps : float, default 1e-8
        ε, finite and not negative: added to the root in the denominator, where PyTorch adds it.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    momentum_decay : float, default 0.004
        How fast the momentum warms up to ``betas[0]``, finite and not negative.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless weight_decay is 0, or decoupled
        param = (1 - lr * weight_decay) * param         # if decoupled_weight_decay
        mu, next = (beta1 * (1 - 0.96**(t * momentum_decay) / 2) for t in (step, step + 1))
        mu_product = mu_product * mu
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        ahead = (1 - mu) / (1 - mu_product) * g + next / (1 - mu_product * next) * exp_avg
        inverse_sqrt_correction2 = 1 / sqrt(1 - beta2**step)             # as all scalars, in double precision
        param = param - lr * (ahead / (sqrt(exp_avg_sq) * inverse_sqrt_correction2 + eps))

    Source: T. Dozat, "Incorporating Nesterov momentum into Adam", 2016; the options as in ``torch.optim.NAdam``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m, v, product = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2), np.ones(1)
    >>> gdm.nadam(theta, m, v, np.array([0.5, -4.0]), step=1, mu_product=product, lr=0.25)
    >>> theta.round(3), product.round(3)
    (array([0.736, 2.264]), array([0.45]))
    """
    p, m, v, g, product = _arrays(param, exp_avg, exp_avg_sq, grad, mu_product)
    T, (beta1, beta2) = p.dtype.type, betas
    mu = beta1 * (1.0 - 0.5 * _power_of_096(float(step) * momentum_decay))
    following = beta1 * (1.0 - 0.5 * _power_of_096((float(step) + 1.0) * momentum_decay))
    new_product = float(product.item()) * mu
    grad_factor, avg_factor = (1.0 - mu) / (1.0 - new_product), following / (1.0 - new_product * following)
    inverse_sqrt_correction2 = 1.0 / math.sqrt(1.0 - _power(beta2, step))
    g = _gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = _rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    m = T(beta1) * m + T(1.0 - beta1) * g
    v = T(beta2) * v + T(1.0 - beta2) * (g * g)
    ahead = T(grad_factor) * g + T(avg_factor) * m
    return decay_factor * p - eta * (ahead / (np.sqrt(v) * T(inverse_sqrt_correction2) + T(eps))), m, v, new_product


@_in_place
def lion(
    param: Floats,
    exp_avg: Floats,
    grad: Floats,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Lion, in place: steps of one size, in the direction of the sign of an average gradient.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The average gradient m; overwritten. It starts from zeros.
    lr : float, default 1e-4
        The learning rate η, finite and not negative.
    betas : (float, float), default (0.9, 0.99)
        The shares of the old ``exp_avg`` in the step and in the new ``exp_avg``, each in [0, 1).
    weight_decay : float, default 0
        The weight decay λ, finite and not negative; always decoupled: ``param`` is multiplied by ``1 - lr *
        weight_decay``.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        x = beta1 * exp_avg + (1 - beta1) * g
        param = (1 - lr * weight_decay) * param - lr * sign(x)          # sign(x) is x where x is 0 or NaN
        exp_avg = beta2 * exp_avg + (1 - beta2) * g

    Source: X. Chen et al., "Symbolic discovery of optimization algorithms", 2023.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m = np.array([1.0, 2.0]), np.zeros(2)
    >>> gdm.lion(theta, m, np.array([0.5, -4.0]), lr=0.25)
    >>> theta
    array([0.75, 2.25])
    """
    p, m, g = _arrays(param, exp_avg, grad)
    T, (beta1, beta2) = p.dtype.type, betas
    g = T(-1.0 if maximize else 1.0) * g
    eta, decay_factor = _rates(p, lr, lr, weight_decay, True, lr_scale)
    x = T(beta1) * m + T(1.0 - beta1) * g
    return decay_factor * p - eta * _sign(x), T(beta2) * m + T(1.0 - beta2) * g


@_in_place
def sign_sgd(
    param: Floats,
    grad: Floats,
    *,
    lr: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """signSGD, in place: every element moves by ``lr``, against the sign of its gradient.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    lr : float
        The learning rate η, finite and not negative: how far each element moves, in the unit of ``param``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception ``param`` is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                 # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param      # if decoupled_weight_decay
        param = param - lr * sign(g)                 # sign(x) is x where x is 0 or NaN

    Source: J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: compressed optimisation for
    non-convex problems", 2018.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, 2.0])
    >>> gdm.sign_sgd(theta, np.array([0.5, -4.0]), lr=0.25)
    >>> theta
    array([0.75, 2.25])
    """
    p, g = _arrays(param, grad)
    g = _gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = _rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    return (decay_factor * p - eta * _sign(g),)


@_in_place
def signum(
    param: Floats,
    exp_avg: Floats,
    grad: Floats,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    lr_scale: Floats | None = None,
) -> New:
    """Signum, in place: signSGD with momentum, which steps against the sign of an average gradient.

    Parameters
    ----------
    param, grad, maximize, lr_scale
        As for :func:`gdm.sgd`.
    exp_avg : array like ``param``
        The average gradient m; overwritten. It starts from zeros.
    lr : float
        The learning rate η, finite and not negative: how far each element moves, in the unit of ``param``.
    momentum : float, default 0.9
        The share of ``exp_avg`` that is kept from step to step, in [0, 1). With 0 it is :func:`gdm.sign_sgd`.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        As by :func:`gdm.sgd`. After an exception every array is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                 # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param      # if decoupled_weight_decay
        exp_avg = momentum * exp_avg + (1 - momentum) * g
        param = param - lr * sign(exp_avg)           # sign(x) is x where x is 0 or NaN

    Source: J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: compressed optimisation for
    non-convex problems", 2018, algorithm 2; the names as in MXNet's Signum, except ``wd``, the coupled weight decay,
    and ``wd_lh``, the decoupled one.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, m = np.array([1.0, 2.0]), np.zeros(2)
    >>> for grad in ([0.5, -4.0], [-0.25, 40.0]):
    ...     gdm.signum(theta, m, np.array(grad), lr=0.25, momentum=0.75)
    >>> theta
    array([0.5, 2. ])
    >>> m
    array([0.03125, 9.25   ])
    """
    p, m, g = _arrays(param, exp_avg, grad)
    T = p.dtype.type
    g = _gradient(p, g, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    eta, decay_factor = _rates(p, lr, lr, weight_decay, decoupled_weight_decay, lr_scale)
    m = T(momentum) * m + T(1.0 - momentum) * g
    return decay_factor * p - eta * _sign(m), m


# ---- reductions: one number from many arrays -----------------------------------------------------------------------

BLOCK, LANES = 4096, 32


def sum_of_squares(arrays: Sequence[Array]) -> float:
    """The sum of the squares of all elements, in float64, in a fixed order that does not depend on threads."""
    return _reduced(arrays, lambda x: x.astype(np.float64) * x.astype(np.float64), np.add)


def largest_magnitude(arrays: Sequence[Array]) -> float:
    """The largest absolute value of all elements; NaN if any is NaN; 0 if there are none."""
    return _reduced(arrays, lambda x: np.abs(x).astype(np.float64), np.maximum)


def count_nonfinite(arrays: Sequence[Array]) -> int:
    """How many elements are NaN or infinite."""
    return int(_reduced(arrays, lambda x: (~np.isfinite(x)).astype(np.float64), np.add))


def _reduced(arrays: Sequence[Array], map_elements: Callable[[Array], Array], combine: np.ufunc) -> float:
    """Cuts each array into blocks, and each block into lanes; combines lanes, blocks and arrays in fixed trees."""
    results = []
    with np.errstate(all="ignore"):
        for x in arrays:
            if x.size:
                values = map_elements(x.ravel(order="K"))
                padded = np.zeros(-(-x.size // BLOCK) * BLOCK)
                padded[: x.size] = values
                results.append(_tree([_lanes(block, combine) for block in padded.reshape(-1, BLOCK)], combine))
        return float(_tree(results, combine)) if results else 0.0


def _lanes(block: Array, combine: np.ufunc) -> Any:
    """One block: element i goes to lane i % 32; then the upper half of the lanes to the lower half; and so on."""
    lanes = np.zeros(LANES)
    for row in block.reshape(-1, LANES):
        lanes = combine(lanes, row)
    while lanes.size > 1:
        half = lanes.size // 2
        lanes = combine(lanes[:half], lanes[half:])
    return lanes[0]


def _tree(results: Sequence[Any], combine: np.ufunc) -> Any:
    """Combines a list in a tree: the length of the left part is the largest power of two below that of the list."""
    if len(results) == 1:
        return results[0]
    left = 1 << ((len(results) - 1).bit_length() - 1)
    return combine(_tree(results[:left], combine), _tree(results[left:], combine))
