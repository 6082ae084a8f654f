"""The methods, as ``scipy.optimize.minimize`` calls them."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import numpy as np

from .. import SGD, Adam, ScheduleFreeSGD
from .averaged import AveragedWalk
from .box import Array, Box
from .objective import Objective
from .run import Rules, Run, reporter
from .walk import Method, Walk

USER = 5  # the frame of the caller of minimize, seen from where warnings are made


class Common(TypedDict, total=False):
    """The arguments that all methods have; the text is in the docstrings."""

    jac: Any
    hess: Any
    hessp: Any
    bounds: Any
    constraints: Any
    callback: Callable[..., Any] | None
    lr: Any
    maxiter: int
    gtol: float | None
    ftol: float
    tol: float | None
    disp: bool
    finite_diff: str
    finite_diff_rel_step: Any


COMMON = """
    Parameters
    ----------
    fun : callable
        The function to minimize: ``fun(x, *args)`` returns a number. x is an array of shape (n,), a copy.
    x0 : array_like of shape (n,)
        The initial point; it does not change. float32 remains float32, everything else becomes float64.
    args : tuple, optional
        Further arguments of ``fun`` and ``jac``.
    jac : callable or bool, optional
        ``jac(x, *args)`` returns the gradient, of shape (n,). True if ``fun`` returns the pair (value, gradient). By
        default the gradient comes from finite differences.
    bounds : sequence of pairs or scipy.optimize.Bounds, optional
        Each step is projected onto the bounds. The test of convergence then reads the projected gradient,
        ``x - clip(x - gradient, lower, upper)``.
    callback : callable, optional
        Called after each iteration, as ``callback(xk)``, or, if its only argument has the name
        ``intermediate_result``, with an OptimizeResult that has x, fun, jac, nit and lr. If it raises StopIteration,
        the run ends with status 99.
    hess, hessp, constraints
        For ``minimize``. Hessians are not used, and one that is given brings a warning. Constraints are refused.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x``, ``fun`` and ``jac`` belong to the best point at which an iteration began or ended: never worse than x0.
        ``lr`` is the last learning rate. ``status`` is 0 for success; 1: ``maxiter`` was reached; 2: with
        ``lr="auto"`` no step lowers the value any more; 3: a value or gradient was NaN or infinite; 99: the callback
        stopped the run. ``nit`` counts the steps that were kept. ``nfev`` includes the evaluations for finite
        differences, and with ``lr="auto"`` those of steps that were taken back.

    Other Parameters
    ----------------
    lr : float, callable or "auto", default "auto"
        The learning rate η, as :class:`{optimizer}` takes it: a number, or a schedule. The steps are then those of the
        plain method, and nothing keeps it from diverging; that is reported. "auto" finds a rate in each step, so that
        the value falls: see Notes.{own}
    maxiter : int, default 10000
        The largest number of iterations.
    gtol : float, default 1e-5
        Stop when no element of the (projected) gradient is larger.
    ftol : float, default 0
        Stop when the lowest value has fallen by no more than ``ftol * max(abs(fun), 1)`` in 10 iterations. 0: never.
    disp : bool, default False
        Print a line each second, and how the run ended.
    finite_diff : {{"2-point", "3-point", "cs"}}, default "2-point"
        How finite differences are computed. ``minimize`` passes a ``jac`` of this kind to its own methods only.
    finite_diff_rel_step : float or array_like, optional
        The relative step of finite differences; by default SciPy chooses it.
    tol : float, optional
        What ``minimize(tol=...)`` sets: the default of ``gtol``.

    Raises
    ------
    TypeError, ValueError
        If an argument, or what ``fun`` or ``jac`` returns, is not as described.
    ImportError
        Without SciPy.

    Warns
    -----
    RuntimeWarning
        If ``hess`` or ``hessp`` is given.
    scipy.optimize.OptimizeWarning
        For options that are not known, and for an ``x0`` outside the bounds, which is moved to the nearest point in
        them.
"""

NOTES = """
    With ``lr="auto"`` a step is kept if it lowers the value by a part of what the slope promises (Armijo's condition);
    otherwise it is taken back, and tried with a smaller rate. The next rate is the one for which the slope along the
    step would have become 0, if it changes linearly. Where momentum points uphill, it is cleared. See docs/scipy.md.
"""


def _documented(optimizer: str, own: str = "") -> Callable[[Any], Any]:
    """Puts what all methods share between the first paragraph of a docstring and the rest."""

    def complete(method: Any) -> Any:
        # Python 3.13 removes the indentation of docstrings; older versions do not.
        first, rest = inspect.cleandoc(method.__doc__).split("\nNotes\n-----\n")
        common = inspect.cleandoc(COMMON.format(optimizer=optimizer, own=own))
        method.__doc__ = f"{first.rstrip()}\n\n{common}\n\nNotes\n-----\n{inspect.cleandoc(NOTES)}\n{rest}"
        return method

    return complete


MOMENTUM = """
    momentum : float, default 0.9
        μ, in [0, 1): the share of the velocity that is kept from step to step; 0 is gradient descent."""


@_documented("gdm.SGD")
def gradient_descent(fun: Callable[..., Any], x0: Any, args: Any = (), **options: Unpack[Common]) -> Any:
    """Gradient descent, for ``scipy.optimize.minimize(method=gdm.scipy.gradient_descent)``.

    Notes
    -----
    The updates are those of :class:`gdm.SGD`. With ``lr="auto"`` the rate is Barzilai and Borwein's (IMA J. Numer.
    Anal. 8, 1988), and the value must fall below the largest of the last 10 (Raydan, SIAM J. Optim. 7, 1997).

    Examples
    --------
    >>> import gdm
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=gdm.scipy.gradient_descent)
    >>> result.success, result.x.round(3)
    (True, array([1., 1.]))
    """
    return _minimize(Method("gradient_descent", SGD, False, 10, (1e-3, 1e3)), fun, x0, args, options)


@_documented("gdm.SGD", MOMENTUM)
def momentum(
    fun: Callable[..., Any], x0: Any, args: Any = (), *, momentum: float = 0.9, **options: Unpack[Common]
) -> Any:
    """Gradient descent with momentum (heavy ball), for ``scipy.optimize.minimize(method=gdm.scipy.momentum)``.

    Notes
    -----
    The updates are those of :class:`gdm.SGD`.

    Examples
    --------
    >>> import gdm
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=gdm.scipy.momentum, options={"gtol": 1e-8})
    >>> result.success, result.x.round(3)
    (True, array([1., 1.]))
    """

    def make(x: Array, lr: Any) -> SGD:
        return SGD(x, lr=lr, momentum=momentum)

    return _minimize(Method("momentum", make, False), fun, x0, args, options)


@_documented("gdm.SGD", MOMENTUM.replace("; 0 is gradient descent", "").replace("[0, 1)", "(0, 1)"))
def nesterov(
    fun: Callable[..., Any], x0: Any, args: Any = (), *, momentum: float = 0.9, **options: Unpack[Common]
) -> Any:
    """Gradient descent with Nesterov's momentum, for ``scipy.optimize.minimize(method=gdm.scipy.nesterov)``.

    Notes
    -----
    The updates are those of :class:`gdm.SGD` with ``nesterov=True``; the points are those at which it looks ahead.

    Examples
    --------
    >>> import gdm
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=gdm.scipy.nesterov)
    >>> result.success, result.x.round(3)
    (True, array([1., 1.]))
    """

    def make(x: Array, lr: Any) -> SGD:
        return SGD(x, lr=lr, momentum=momentum, nesterov=True)

    return _minimize(Method("nesterov", make, False), fun, x0, args, options)


ADAM = """
    betas : pair of float, default (0.9, 0.999)
        β₁ and β₂, in [0, 1): the decays of the averages of gradients and of their squares.
    eps : float, default 1e-8
        ε, what is added to the denominator."""


@_documented("gdm.Adam", ADAM)
def adam(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    **options: Unpack[Common],
) -> Any:
    """Adam, for ``scipy.optimize.minimize(method=gdm.scipy.adam)``.

    Notes
    -----
    The updates are those of :class:`gdm.Adam`. Both averages are cleared where their step points uphill.

    Examples
    --------
    >>> import gdm
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=gdm.scipy.adam)
    >>> result.success, result.x.round(3)
    (True, array([1., 1.]))
    """

    def make(x: Array, lr: Any) -> Adam:
        return Adam(x, lr=lr, betas=betas, eps=eps)

    return _minimize(Method("adam", make, True), fun, x0, args, options)


AVERAGED = """
    momentum : float, default 0.9
        How much of the average is in the points at which gradients are computed, in (0, 1).
    warmup_steps : float, default 0
        The learning rate rises linearly over so many iterations."""


@_documented("gdm.ScheduleFreeSGD", AVERAGED)
def schedule_free(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    momentum: float = 0.9,
    warmup_steps: float = 0.0,
    **options: Unpack[Common],
) -> Any:
    """Schedule-Free gradient descent, for ``scipy.optimize.minimize(method=gdm.scipy.schedule_free)``.

    Notes
    -----
    The updates are those of :class:`gdm.ScheduleFreeSGD`. The points of the run are the averages; an iteration also
    evaluates ``fun`` where the gradient is computed. Bounds are refused. This method does not search along its steps:
    with ``lr="auto"`` it restarts from the best point, with twice the rate after a cycle of iterations that lowered
    the value, and with a quarter of it after one that did not.

    Examples
    --------
    >>> import gdm
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=gdm.scipy.schedule_free, options={"gtol": 1e-3})
    >>> result.success, result.x.round(2)
    (True, array([1., 1.]))
    """
    if options.get("bounds") is not None:
        raise ValueError("bounds: schedule_free cannot handle them, since its iterates cannot be projected")

    def make(x: Array, lr: Any) -> ScheduleFreeSGD:
        return ScheduleFreeSGD(x, lr=lr, momentum=momentum, warmup_steps=warmup_steps)

    return _minimize(Method("schedule_free", make, False), fun, x0, args, options, AveragedWalk)


def _minimize(
    method: Method,
    fun: Callable[..., Any],
    x0: Any,
    args: Any,
    options: Common,
    make_walk: type[Walk] = Walk,
) -> Any:
    _require_scipy()
    _warn(method.name, options)
    x = _initial(x0)
    box = Box(options.get("bounds"), x)
    _move_into(box, x)
    lr, rules, report = options.get("lr", "auto"), _rules(options), reporter(options.get("callback"))
    if isinstance(lr, str) and lr != "auto":
        raise ValueError(f"lr must be a number, a schedule or 'auto', got {lr!r}")
    method.optimizer(x.copy(), 0.0 if lr == "auto" else lr)  # checks the hyperparameters before fun is called
    objective = Objective(
        fun,
        options.get("jac"),
        args,
        box,
        options.get("finite_diff", "2-point"),
        options.get("finite_diff_rel_step"),
    )
    walk = make_walk(method, x, objective, box)
    run = Run(method.name, walk.first, rules, report, bool(options.get("disp", False)))
    rate = walk.searching(run) if isinstance(lr, str) else walk.plain(run, lr)
    return run.result(objective.nfev, objective.njev, rate)


def _require_scipy() -> None:
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise ImportError(f"gdm.scipy needs SciPy: pip install 'gdm-optim[scipy]' ({error})") from error


def _warn(name: str, options: Common) -> None:
    """Warns of what is ignored, and refuses constraints."""
    from scipy.optimize import OptimizeWarning

    constraints = options.get("constraints")
    if constraints is not None and np.size(constraints):
        raise ValueError(f"constraints: {name} cannot handle them; it has bounds")
    for given, text in (("hess", "Hessian information"), ("hessp", "Hessian-vector product information")):
        if options.get(given) is not None:
            warnings.warn(f"Method {name} does not use {text} ({given}).", RuntimeWarning, stacklevel=USER)
    unknown = ", ".join(key for key in options if key not in Common.__annotations__)
    if unknown:
        warnings.warn(f"Unknown solver options: {unknown}", OptimizeWarning, stacklevel=USER)


def _initial(x0: Any) -> Array:
    x = np.atleast_1d(np.asarray(x0))
    if x.ndim != 1:
        raise ValueError(f"x0 must have one dimension, got shape {x.shape}")
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x0 must have real numbers, got dtype {x.dtype}")
    return np.array(x, np.float32 if x.dtype == np.float32 else np.float64)


def _move_into(box: Box, x: Array) -> None:
    from scipy.optimize import OptimizeWarning

    before = x.copy()
    box.project(x)
    if not np.array_equal(x, before, equal_nan=True):
        warnings.warn(
            "x0 is outside the bounds; it is moved to the nearest point in them", OptimizeWarning, stacklevel=USER
        )


def _rules(options: Common) -> Rules:
    gtol, tol = options.get("gtol"), options.get("tol")
    maxiter = options.get("maxiter", 10_000)
    try:
        maxiter = operator.index(maxiter)
    except TypeError:
        raise TypeError(f"maxiter must be an integer, not {type(maxiter).__name__}") from None
    if maxiter < 0:
        raise ValueError(f"maxiter must not be negative, got {maxiter}")
    return Rules(
        maxiter,
        _tolerance("gtol", gtol) if gtol is not None else 1e-5 if tol is None else _tolerance("tol", tol),
        _tolerance("ftol", options.get("ftol", 0.0)),
    )


def _tolerance(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, not {type(value).__name__} ({value!r})") from None
    if not number >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return number
