"""scikit-learn's multi-layer perceptrons on gdm's solvers.

All of scikit-learn that is not public and is used here is one attribute of its perceptrons, ``_optimizer``, and what
they call on it, which is the same in scikit-learn 1.5 to 1.9. ``fit`` assigns an optimizer to it, and a solver of gdm's
takes its place.
"""

from __future__ import annotations

from typing import Any

import sklearn.neural_network

from . import solvers


class _OnGdm:
    """What both classes add to scikit-learn's."""

    @property
    def _optimizer(self) -> solvers.Solver:
        try:
            solver: solvers.Solver = self.__dict__["_solver"]
        except KeyError:
            raise AttributeError("_optimizer") from None  # scikit-learn asks whether there is one
        return solver

    @_optimizer.setter
    def _optimizer(self, made: Any) -> None:
        given: Any = self
        if given.solver == "sgd":
            self.__dict__["_solver"] = solvers.SGD(made, given.momentum, given.nesterovs_momentum)
        else:
            self.__dict__["_solver"] = solvers.Adam(made, (given.beta_1, given.beta_2), given.epsilon)


class MLPClassifier(_OnGdm, sklearn.neural_network.MLPClassifier):
    """scikit-learn's ``MLPClassifier`` on gdm's kernels: the same parameters, attributes and results within rounding.

    ``solver="adam"`` (the default) runs :func:`gdm.adam`, ``solver="sgd"`` :func:`gdm.momentum` in the classic form.
    ``"lbfgs"`` is scikit-learn's. See ``sklearn.neural_network.MLPClassifier`` for all else.

    Examples
    --------
    >>> import numpy as np, gdm.sklearn
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> model = gdm.sklearn.MLPClassifier((8,), learning_rate_init=0.05, random_state=0).fit(X, y)
    >>> model.predict(X)
    array([0, 0, 1, 1])
    """


class MLPRegressor(_OnGdm, sklearn.neural_network.MLPRegressor):
    """scikit-learn's ``MLPRegressor`` on gdm's kernels: the same parameters, attributes and results within rounding.

    ``solver="adam"`` (the default) runs :func:`gdm.adam`, ``solver="sgd"`` :func:`gdm.momentum` in the classic form.
    ``"lbfgs"`` is scikit-learn's. See ``sklearn.neural_network.MLPRegressor`` for all else.

    Examples
    --------
    >>> import numpy as np, gdm.sklearn
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> model = gdm.sklearn.MLPRegressor(learning_rate_init=0.01, max_iter=400, tol=1e-6, random_state=0)
    >>> bool(model.fit(X, X[:, 0] ** 2).score(X, X[:, 0] ** 2) > 0.95)
    True
    """
