"""gdm.thinc: thinc's optimizers on gdm's kernels, by themselves and in spaCy's training."""

from __future__ import annotations

import copy
import doctest
import importlib
import importlib.util
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gdm

thinc = pytest.importorskip("thinc.api", reason="NOT TESTED: gdm.thinc; there is no thinc here")

import gdm.thinc  # noqa: E402

ROOT = Path(__file__).parent.parent
METHODS = ("Adam", "RAdam", "SGD")
KEY = (0, "W")
CALLS_SCHEDULES = hasattr(thinc.Optimizer, "step")  # thinc 9; in thinc 8.3 hyperparameters are numbers


def run(code, *arguments):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pair(method, rate=0.01, **options):
    """thinc's optimizer and gdm's."""
    return getattr(thinc, method)(rate, **options), getattr(gdm.thinc, method)(rate, **options)


def arrays(shape=(5, 7), dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(dtype) for _ in range(2)]


def value(optimizer, name):
    """The present value of a hyperparameter."""
    x = getattr(optimizer, name)
    return x(optimizer.step, key=KEY, last_score=None) if CALLS_SCHEDULES else x


def assert_same_path(theirs, ours, steps=20, shape=(5, 7), **call):
    """Both optimizers take two parameters the same way."""
    keys = [(0, "W"), (1, "W")]
    weights = {key: arrays(shape, seed=i)[0] for i, key in enumerate(keys)}
    own = {key: x.copy() for key, x in weights.items()}
    for step, (i, key) in itertools.product(range(steps), enumerate(keys)):
        if i and step == 3:
            continue  # counts of updates belong to the key
        grad = arrays(shape, seed=100 + 2 * step + i)[0] * np.float32((0.01, 0.3)[step % 2])
        weights[key], _ = theirs(key, weights[key], grad.copy(), **call)
        result, cleared = ours(key, own[key], grad, **call)
        assert result is own[key]
        assert cleared is grad
        assert not grad.any()
        if i:
            theirs.step_schedules()
            ours.step_schedules()
    for key in keys:
        np.testing.assert_allclose(own[key], weights[key], rtol=1e-5, atol=3e-6)
        assert ours.nr_update[key] == theirs.nr_update[key]
        for name in ("mom1", "mom2", "averages"):
            expected = (getattr(theirs, name) or {}).get(key)
            found = (getattr(ours, name) or {}).get(key)
            assert (found is None) == (expected is None)
            if found is not None:
                np.testing.assert_allclose(found, expected.reshape(shape), rtol=1e-5, atol=3e-6)


# ---- thinc's own tests -----------------------------------------------------------------------------------------------

THINCS_TESTS = """
import sys
import os, pytest, thinc, thinc.api, thinc.optimizers, gdm.thinc

made, called = [], []
class Counted(gdm.thinc.Optimizer):
    __slots__ = ()
    def __init__(self, *args, **options):
        made.append(self)
        super().__init__(*args, **options)
    def __call__(self, *args, **options):
        called.append(self)
        return super().__call__(*args, **options)

if sys.argv[1] == "gdm":
    thinc.api.Optimizer = thinc.optimizers.Optimizer = gdm.thinc.factories.Optimizer = Counted
    for name in ("Adam", "RAdam", "SGD"):
        thinc.registry.optimizers.register(name + ".v1", func=getattr(gdm.thinc, name))

class Count:
    passed = 0
    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed

count = Count()
path = thinc.__path__[0] + "/tests/test_optimizers.py"
code = pytest.main([path, "-q", "-c", os.devnull, "-p", "no:cacheprovider"], plugins=[count])
print("passed", int(code), count.passed, len(made), len(called))
"""


def test_thincs_own_tests_of_optimizers_pass():
    with_thinc = run(THINCS_TESTS, "thinc").split()[-4:]
    code, passed, made, called = (int(x) for x in run(THINCS_TESTS, "gdm").split()[-4:])
    assert (code, passed) == (0, int(with_thinc[1]))
    assert passed > 10
    assert made >= 10
    assert called >= 3
    assert with_thinc[2:] == ["0", "0"]


# ---- formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("averages", [False, True], ids=["plain", "averages"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("decay", [True, False], ids=["decay", "coupled"])
@pytest.mark.parametrize("L2", [0.0, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_the_formulas_are_thincs(method, L2, decay, clip, averages):
    options = {"L2": L2, "L2_is_weight_decay": decay, "grad_clip": clip, "use_averages": averages}
    for scale in (1.0, 0.3):
        assert_same_path(*pair(method, **options), lr_scale=scale)


@pytest.mark.parametrize("method", ["Adam", "RAdam"])
@pytest.mark.parametrize("options", [{"eps": 0.1}, {"beta1": 0.5, "beta2": 0.9}, {"beta2": 0.5}], ids=str)
def test_the_formulas_are_thincs_with_other_hyperparameters(method, options):
    assert_same_path(*pair(method, **options))


def test_a_large_parameter_goes_the_same_way():
    assert_same_path(*pair("Adam", L2=0.01), steps=6, shape=(300, 500))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "rates",
    [
        lambda: [0.0, 0.02, 0.01],
        lambda: (0.01 / (1 + i) for i in range(8)),
        lambda: thinc.warmup_linear(0.01, 3, 20),
        lambda: thinc.decaying(0.01, 0.1),
    ],
    ids=["list", "generator", "warmup_linear", "decaying"],
)
def test_schedules_are_thincs(method, rates):
    theirs = getattr(thinc, method)(rates(), L2=0.1, grad_clip=[0.0, 1.0])
    assert_same_path(theirs, getattr(gdm.thinc, method)(rates(), L2=0.1, grad_clip=[0.0, 1.0]))


def test_a_schedule_of_every_hyperparameter():
    def options():
        return {
            "L2": (0.1 / (1 + i) for i in range(50)),
            "beta1": [0.5, 0.6, 0.9],
            "beta2": [0.9, 0.95, 0.999],
            "eps": [1e-3, 1e-8],
            "grad_clip": [1.0, 0.0, 0.5],
        }

    theirs, ours = thinc.Adam(0.01, **options()), gdm.thinc.Adam(0.01, **options())
    assert_same_path(theirs, ours)
    assert all(value(ours, name) == value(theirs, name) for name in ("L2", "b1", "b2", "eps", "grad_clip"))


@pytest.mark.skipif(not CALLS_SCHEDULES, reason="thinc 8.3 has no schedules that read the score")
def test_a_schedule_that_reads_the_score():
    theirs, ours = (f(thinc.plateau(1, 0.5, thinc.constant(0.1))) for f in (thinc.SGD, gdm.thinc.SGD))
    for score in (0.5, 0.5, 0.5, 0.5):
        weights = [np.ones(3, np.float32) for _ in range(2)]
        theirs(KEY, weights[0], np.ones(3, np.float32))
        ours(KEY, weights[1], np.ones(3, np.float32))
        np.testing.assert_allclose(*weights, rtol=1e-6)
        theirs.last_score = ours.last_score = score
        theirs.step_schedules()
        ours.step_schedules()
    assert value(ours, "learn_rate") < 0.1


def test_a_hyperparameter_that_is_set_counts_from_then_on():
    optimizer = gdm.thinc.SGD(0.5, grad_clip=0.0, use_averages=False)
    weights = np.ones(2, np.float32)
    optimizer(KEY, weights, np.ones(2, np.float32))
    optimizer.learn_rate = (lambda step, key, last_score: 0.25) if CALLS_SCHEDULES else 0.25
    optimizer(KEY, weights, np.ones(2, np.float32))
    assert weights.tolist() == [0.25, 0.25]


@pytest.mark.parametrize("method", METHODS)
def test_float64_is_computed_in_float64(method):
    optimizer = getattr(gdm.thinc, method)(0.1)
    weights, grad = arrays(dtype=np.float64)
    narrow = getattr(gdm.thinc, method)(0.1)
    own, own_grad = weights.astype(np.float32), grad.astype(np.float32)
    optimizer(KEY, weights, grad)
    narrow(KEY, own, own_grad)
    assert weights.dtype == optimizer.averages[KEY].dtype == np.float64
    np.testing.assert_allclose(weights, own, rtol=1e-5, atol=1e-6)
    assert (weights != own).any()


def test_the_reference_gives_the_same_bits():
    found = []
    for backend in ("native", "reference"):
        gdm.set_backend(backend)
        try:
            results = []
            for method in METHODS:
                optimizer, (weights, grad) = getattr(gdm.thinc, method)(0.1, L2=0.1, grad_clip=0.5), arrays((50, 70))
                for _ in range(7):
                    optimizer(KEY, weights, grad * 1)
                results += [weights.tobytes(), optimizer.averages[KEY].tobytes()]
        finally:
            gdm.set_backend("native")
        found.append(results)
    assert found[0] == found[1]


# ---- states ----------------------------------------------------------------------------------------------------------


def test_states_of_thincs_optimizer_are_taken_over():
    theirs, ours = pair("Adam")
    weights, grad = arrays()
    weights, _ = theirs(KEY, weights, grad.copy())
    for name in ("mom1", "mom2", "averages", "nr_update"):
        setattr(ours, name, copy.deepcopy(getattr(theirs, name)))
    own = weights.copy()
    for _ in range(3):
        weights, _ = theirs(KEY, weights, grad.copy())
        ours(KEY, own, grad.copy())
    np.testing.assert_allclose(own, weights, rtol=1e-5, atol=1e-6)
    assert ours.nr_update[KEY] == 4


@pytest.mark.parametrize("state", [np.zeros(36, np.float32), np.zeros((7, 5), np.float32), np.zeros(35, np.float64)])
def test_a_state_of_another_shape_or_dtype_is_named(state):
    optimizer, (weights, grad) = gdm.thinc.Adam(0.1), arrays()
    optimizer.mom1[KEY] = state
    before = weights.copy()
    with pytest.raises((TypeError, ValueError), match=r"^mom1\[\(0, 'W'\)\]"):
        optimizer(KEY, weights, grad)
    np.testing.assert_array_equal(weights, before)


def test_without_thinc_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "thinc.optimizers", None)
    monkeypatch.delitem(sys.modules, "gdm.thinc")
    with pytest.raises(ImportError, match=r"gdm\.thinc needs thinc: pip install 'gdm-optim\[thinc\]'"):
        importlib.import_module("gdm.thinc")


def test_dictionaries_of_states_belong_to_the_user():
    optimizer, (weights, grad) = gdm.thinc.Adam(0.1), arrays()
    optimizer(KEY, weights, grad)
    optimizer.averages = {}
    optimizer.mom1[KEY] = np.ones_like(weights)
    grad[...] = 1
    optimizer(KEY, weights, grad)
    np.testing.assert_allclose(optimizer.averages[KEY], weights * (1 - 3 / 12), rtol=1e-6)
    assert optimizer.mom1[KEY].max() > 0.9
    optimizer.averages = None
    optimizer(KEY, weights, grad)
    assert optimizer.averages is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_go_on_alike_and_hold_no_weights(copied):
    optimizer, (weights, grad) = gdm.thinc.RAdam(0.1), arrays()
    optimizer(KEY, weights, grad)
    other, own = copied(optimizer), weights.copy()
    assert not other._bound
    assert optimizer._bound
    for x, w in ((optimizer, weights), (other, own)):
        x(KEY, w, np.full_like(w, 0.5))
    assert own.tobytes() == weights.tobytes()
    assert optimizer.averages[KEY].tobytes() == other.averages[KEY].tobytes()


def test_new_arrays_of_a_key_go_on_with_its_states():
    optimizer, (weights, grad) = gdm.thinc.Adam(0.1), arrays()
    same, own = gdm.thinc.Adam(0.1), weights.copy()
    for _ in range(3):
        optimizer(KEY, weights, grad * 1)
        own = own.copy()
        same(KEY, own, grad * 1)
    assert own.tobytes() == weights.tobytes()


def test_new_views_of_the_same_memory_are_not_bound_anew():
    optimizer, (weights, grad) = gdm.thinc.Adam(0.1), arrays()
    same, own = gdm.thinc.Adam(0.1), weights.copy()
    for _ in range(3):
        optimizer(KEY, weights, grad.copy())
        own_grad = grad.copy()
        result, cleared = same(KEY, own.view(), own_grad.view())
        assert np.shares_memory(result, own)
        assert not cleared.any()
    assert own.tobytes() == weights.tobytes()
    bound, buffer = same._bound[KEY], same._bound[KEY].gradient
    for _ in range(3):
        buffer[...] = 1
        same(KEY, own.view(), buffer.view())
        assert same._bound[KEY] is bound
    with pytest.raises(ValueError, match="read-only"):
        same(KEY, read_only(own), buffer.view())


def test_it_is_an_optimizer_of_thincs_and_locked_like_it():
    optimizer = gdm.thinc.Adam()
    assert isinstance(optimizer, thinc.Optimizer)
    with pytest.raises(AttributeError):
        optimizer.learning_rate = 0.1


# ---- bad arguments ---------------------------------------------------------------------------------------------------


class OnAnotherDevice:
    """Looks like an array of CuPy."""

    __module__ = "cupy"

    def __len__(self):
        return 3


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


W, G = arrays()
BAD = {
    "cupy": (OnAnotherDevice(), G, {}, TypeError, "weights must be a NumPy array, got cupy.OnAnotherDevice"),
    "gradient of cupy": (W, OnAnotherDevice(), {}, TypeError, "gradient must be a NumPy array"),
    "integers": (W.astype(int), G, {}, TypeError, "weights"),
    "another shape": (W, G[:, :3].copy(), {}, ValueError, "gradient"),
    "another dtype": (W, G.astype(np.float64), {}, ValueError, "gradient has dtype float64"),
    "not contiguous": (W[:, ::2], G[:, ::2], {}, ValueError, "weights"),
    "read-only weights": (read_only(W), G, {}, ValueError, "weights"),
    "read-only gradient": (W, read_only(G), {}, ValueError, "gradient"),
    "the same memory": (W, W, {}, gdm.OverlapError, "share memory"),
    "learn_rate": (W, G, {"learn_rate": -0.1}, ValueError, "lr must be"),
    "a huge learn_rate": (W, G, {"learn_rate": 1e39}, ValueError, "lr must be"),
    "L2": (W, G, {"L2": -0.1}, ValueError, "weight_decay must be"),
    "L2 times learn_rate": (W, G, {"L2": 10.0}, ValueError, "learn_rate \\* lr_scale \\* L2 must be below 1"),
    "grad_clip": (W, G, {"grad_clip": -1.0}, ValueError, "grad_clip must not be negative"),
    "beta2": (W, G, {"beta2": 1.0}, ValueError, "beta"),
    "beta1 alone": (W, G, {"beta1": 0.0}, NotImplementedError, "beta2 must be 0 where beta1 is 0"),
}


@pytest.mark.parametrize(
    ("case", "radam"),
    # thinc has a formula for RAdam without beta1.
    [x for x in itertools.product(BAD, (False, True)) if x != ("beta1 alone", True)],
)
def test_bad_arguments_are_named_and_change_nothing(case, radam):
    weights, gradient, options, error, words = BAD[case]
    options = {"learn_rate": 0.1, **options}
    optimizer = gdm.thinc.Optimizer(use_radam=radam, **options)
    before = [bytes(x) for x in (weights, gradient) if isinstance(x, np.ndarray)]
    with pytest.raises(error, match=words) as caught:
        optimizer(KEY, weights, gradient)
    assert [bytes(x) for x in (weights, gradient) if isinstance(x, np.ndarray)] == before
    assert not optimizer.nr_update.get(KEY)
    assert not any(x.any() for x in optimizer.mom1.values())
    if words in ("lr must be", "weight_decay must be", "betas"):
        assert "learn_rate" in caught.value.__notes__[0]
        assert "(0, 'W')" in caught.value.__notes__[0]


def test_averages_in_the_place_of_the_weights_are_refused():
    optimizer, (weights, grad) = gdm.thinc.SGD(0.1), arrays()
    optimizer(KEY, weights, grad.copy())
    before = optimizer.averages[KEY].copy()
    with pytest.raises(gdm.OverlapError, match="averages"):
        optimizer(KEY, optimizer.averages[KEY], grad)
    assert optimizer.averages[KEY].tobytes() == before.tobytes()
    assert grad.any()


def test_an_empty_gradient_does_nothing():
    optimizer = gdm.thinc.Adam()
    weights, gradient = np.ones((1, 2)), np.zeros(0)
    result = optimizer(KEY, weights, gradient)
    assert result[0] is weights
    assert result[1] is gradient
    assert not optimizer.nr_update
    assert weights.all()


def test_gradients_that_are_not_finite_go_through_as_numbers_do():
    optimizer, (weights, grad) = gdm.thinc.Adam(0.1), arrays()
    grad[0, 0] = np.nan
    optimizer(KEY, weights, grad)
    assert np.isnan(weights[0, 0])
    assert not np.isnan(weights[1:]).any()
    assert not grad.any()


# ---- configs and spaCy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_config_finds_it_without_an_import(method):
    code = f"""
import sys
from thinc.api import Config, registry
config = Config().from_str('''
[optimizer]
@optimizers = "gdm.{method}.v1"
L2 = 0.5
grad_clip = 2

[optimizer.learn_rate]
@schedules = "warmup_linear.v1"
initial_rate = 0.1
warmup_steps = 10
total_steps = 100
''')
assert "gdm" not in sys.modules
optimizer = registry.resolve(config)["optimizer"]
print(type(optimizer).__module__, optimizer.use_radam, registry.has("optimizers", "gdm.{method}.v1"))
optimizer.step_schedules()
import gdm, numpy
weights = numpy.ones(3, "f")
optimizer((0, "W"), weights, numpy.ones(3, "f"))
assert (weights < 1).all()
"""
    assert run(code).split() == ["gdm.thinc.optimizer", str(method == "RAdam"), "True"]


@pytest.mark.parametrize("name", gdm.thinc.__all__)
def test_docstring_examples_run(name):
    runner = doctest.DocTestRunner()
    tests = doctest.DocTestFinder(recurse=False).find(getattr(gdm.thinc, name), name, module=False)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert name == "Optimizer" or tests[0].examples


@pytest.fixture(scope="module")
def training():
    """The benchmark's training of a text classifier."""
    pytest.importorskip("spacy", reason="NOT TESTED: gdm.thinc in spaCy; there is no spaCy here")
    spec = importlib.util.spec_from_file_location("compare_thinc", ROOT / "bench" / "compare_thinc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("setting", ["config", "program"])
@pytest.mark.parametrize("method", METHODS)
def test_a_text_classifier_gets_the_same_losses_and_scores(training, method, setting):
    rate = 0.5 if method == "SGD" else 0.001
    runs = [training.train(x, epochs=2, count=96) for x in pair(method, rate, **training.SETTINGS[setting])]
    np.testing.assert_allclose(runs[1].losses, runs[0].losses, rtol=1e-4 if method == "SGD" else 1e-5)
    assert abs(runs[0].score - runs[1].score) < 1e-3
    assert runs[0].calls == runs[1].calls > 100


def test_the_optimizer_takes_less_time_than_thincs(training):
    """Less than half of it on a quiet machine: docs/thinc.md. Here others may use the same memory."""
    makers = {"thinc": thinc.Adam, "gdm": gdm.thinc.Adam}
    makers = {name: (lambda f=f: f(0.001, **training.SETTINGS["config"])) for name, f in makers.items()}
    with gdm.threads(1):
        found = training.compare(makers, rounds=3, epochs=1)
    assert min(x.seconds for x in found["gdm"]) < 0.7 * min(x.seconds for x in found["thinc"])


CONFIG = """
[nlp]
lang = "en"
pipeline = ["textcat"]

[components]

[components.textcat]
factory = "textcat"

[training]

[training.optimizer]
@optimizers = "{name}"
use_averages = true

[training.optimizer.learn_rate]
@schedules = "warmup_linear.v1"
warmup_steps = 2
total_steps = 100
initial_rate = 0.002
"""


def test_one_line_of_a_config_is_the_whole_change(training):
    import spacy
    from spacy.training import Example

    losses, scores = [], []
    for name in ("Adam.v1", "gdm.Adam.v1"):
        thinc.fix_random_seed(0)
        config = thinc.Config().from_str(CONFIG.format(name=name))
        nlp = spacy.util.load_model_from_config(config, auto_fill=True)
        examples = [Example.from_dict(nlp.make_doc(text), given) for text, given in training.texts(64, 1)]
        optimizer = nlp.initialize(lambda: examples)  # noqa: B023
        assert isinstance(optimizer, gdm.thinc.Optimizer) == name.startswith("gdm")
        its = {}
        for _ in range(3):
            nlp.update(examples, sgd=optimizer, losses=its)
            optimizer.step_schedules()
        with nlp.use_params(optimizer.averages):
            scores.append(nlp.evaluate(examples)["cats_macro_auc"])
            saved = nlp.to_bytes()
        # What was saved goes on with a new optimizer.
        again = spacy.util.load_model_from_config(config, auto_fill=True).from_bytes(saved)
        optimizer = again.resume_training()
        again.update(examples, sgd=optimizer, losses=its)
        losses.append(its["textcat"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
