"""gdm.sklearn: scikit-learn's perceptrons on gdm's kernels."""

from __future__ import annotations

import copy
import doctest
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import gdm

nn = pytest.importorskip("sklearn.neural_network", reason="NOT TESTED: gdm.sklearn; there is no scikit-learn here")

from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402

import gdm.sklearn  # noqa: E402

NAMES = ("MLPClassifier", "MLPRegressor")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def problem(dtype=np.float64):
    random = np.random.default_rng(0)
    X = random.normal(size=(120, 7)).astype(dtype)
    return X, (X[:, 0] * X[:, 1] > 0).astype(int)


def pair(name, **options):
    options = {"hidden_layer_sizes": (11, 5), "max_iter": 12, "batch_size": 32, "random_state": 0, **options}
    return getattr(nn, name)(**options), getattr(gdm.sklearn, name)(**options)


def assert_same(theirs, ours, rtol=1e-9):
    for a, b in zip(theirs.coefs_ + theirs.intercepts_, ours.coefs_ + ours.intercepts_, strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol)
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=rtol)


SCIKIT_LEARNS_TESTS = """
import os, pytest, sklearn.neural_network as nn, gdm.sklearn
from gdm.sklearn.solvers import Solver

made = []
init = Solver.__init__
def counted(self, *args):
    made.append(self)
    init(self, *args)
Solver.__init__ = counted
nn.MLPClassifier, nn.MLPRegressor = gdm.sklearn.MLPClassifier, gdm.sklearn.MLPRegressor

class Count:
    passed = 0
    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed

count = Count()
path = nn.__path__[0] + "/tests/test_mlp.py"
# It compares a training in float32 with one in float64 after 150 epochs: what is left of that is chance.
chance = "--deselect=" + path + "::test_mlp_regressor_dtypes_casting"
code = pytest.main([path, chance, "-q", "-c", os.devnull, "-p", "no:cacheprovider"], plugins=[count])
print("passed", int(code), count.passed, len(made))
"""


def test_scikit_learns_own_tests_of_perceptrons_pass():
    done = subprocess.run([sys.executable, "-c", SCIKIT_LEARNS_TESTS], capture_output=True, text=True, timeout=300)
    code, passed, made = (int(x) for x in done.stdout.split()[-3:])
    assert code == 0, done.stdout
    assert passed > 45
    assert made > 50


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "options",
    [
        {"solver": "adam"},
        {"solver": "adam", "beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.01, "alpha": 0.1},
        {"solver": "sgd", "learning_rate_init": 0.1},
        {"solver": "sgd", "learning_rate_init": 0.1, "nesterovs_momentum": False},
        {"solver": "sgd", "learning_rate_init": 0.1, "momentum": 0},
        {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.5},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 1, "max_iter": 40},
        {"solver": "adam", "early_stopping": True, "n_iter_no_change": 2},
        {"solver": "lbfgs"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_results_are_scikit_learns(name, options, dtype):
    X, y = problem(dtype)
    theirs, ours = pair(name, **options)
    theirs.fit(X, y)
    ours.fit(X, y)
    if options["solver"] == "lbfgs":  # which is scikit-learn's
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    else:
        assert ours.coefs_[0].dtype == dtype
        assert_same(theirs, ours, 1e-9 if dtype == np.float64 else 2e-3)


@pytest.mark.parametrize("copied", [None, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_goes_on_after_copies(solver, copied):
    X, y = problem()
    theirs, ours = pair("MLPClassifier", solver=solver)
    for i in range(6):
        theirs.partial_fit(X, y, classes=[0, 1])
        ours.partial_fit(X, y, classes=[0, 1])
        if copied is not None and i == 2:
            ours = copied(ours)
    assert_same(theirs, ours)


def test_warm_start_begins_with_a_new_solver():
    X, y = problem()
    theirs, ours = pair("MLPRegressor", warm_start=True, max_iter=3)
    for _ in range(3):
        theirs.fit(X, y)
        ours.fit(X, y)
    assert_same(theirs, ours)


def test_a_clone_has_the_parameters_and_no_state():
    _, ours = pair("MLPClassifier", solver="sgd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours.fit(*problem())
    other = clone(ours)
    assert type(other) is gdm.sklearn.MLPClassifier
    assert other.get_params() == ours.get_params()
    assert not hasattr(other, "_optimizer")
    assert hasattr(ours, "_optimizer")


@pytest.mark.parametrize("name", NAMES)
def test_docstring_examples_run(name):
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(recurse=False).find(getattr(gdm.sklearn, name), name, module=False):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
