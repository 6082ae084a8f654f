"""Python threads on the same objects, at any moment: with the GIL, and without it, where nothing else protects them."""

from __future__ import annotations

import copy
import random
import sys
import sysconfig
import threading
import time

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE
from gdm.optimizer.array_update import ArrayUpdate
from support import at_once, python

THREADS = 4
BUSY = "already in the middle of a step"


@pytest.fixture(autouse=True)
def _switch_often():
    """With the GIL threads change places only where CPython lets them: let that be often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(work, count=THREADS):
    """work(0), work(1), ... at once, beginning together; raises what one of them raised."""
    start, errors = threading.Barrier(count), []

    def run(k):
        start.wait()
        try:
            work(k)
        except BaseException as error:
            errors.append(error)

    at_once(run, count)
    if errors:
        raise errors[0]


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="NOT TESTED: this Python has the GIL")
@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled modules")
def test_python_stays_without_the_gil():
    """All compiled modules say that they need no GIL; else CPython would warn, and switch it on."""
    code = """
    import sys, warnings
    warnings.simplefilter("error")
    import gdm.bench._limit, gdm.schedules._formulas
    for name in ("scipy", "sklearn"):
        try:
            getattr(gdm, name)
        except ImportError:
            pass
    print(sys._is_gil_enabled(), gdm.backend())
    """
    assert python(code, PYTHON_GIL="") == "False native"


@pytest.mark.parametrize(("n", "calls"), [(7, 20_000), (60_000, 300)])
@pytest.mark.parametrize("bound", [False, True])
def test_each_step_is_whole_or_refused(n, calls, bound):
    """No step is lost, and none is made twice: the parameter has moved once for each step that was not refused."""
    param, grad = np.zeros(n), np.full(n, -1.0)
    optimizer, done = gdm.SGD([param], lr=1.0, momentum=0.0), [0] * THREADS
    optimizer.bind([grad])

    def work(k):
        grads = None if bound else [grad]
        for _ in range(calls):
            try:
                optimizer.step(grads)
                done[k] += 1
            except RuntimeError as error:
                assert BUSY in str(error)  # noqa: PT017

    in_threads(work)
    assert optimizer.steps == sum(done)
    np.testing.assert_array_equal(param, sum(done))


def test_one_step_at_a_time_calls_the_schedule(backend):
    """The user's code in a step never meets that of another step of the same optimizer."""
    inside, together = [], []

    def schedule(step):
        inside.append(step)
        together.append(len(inside))
        inside.pop()
        return 0.5

    optimizer = gdm.SGD([np.zeros(3)], lr=schedule)

    def work(k):
        for _ in range(3000):
            try:
                optimizer.step([np.ones(3)])
            except RuntimeError as error:
                assert BUSY in str(error)  # noqa: PT017

    in_threads(work)
    assert max(together) == 1


def test_a_reader_never_sees_half_a_step():
    """All parameters have made as many steps, and the count never falls, also while a step writes it."""
    params = [np.zeros(n) for n in (30_000, 5, 30_000)]
    grads = [np.ones_like(x) for x in params]
    optimizer, stop = gdm.NAdam(params, lr=0.001), threading.Event()
    optimizer.bind(grads)

    def work(k):
        if k == 0:
            for _ in range(300):
                optimizer.step()
            stop.set()
            return
        last = 0
        while not stop.is_set():
            now = optimizer.param_steps
            assert len(set(now)) == 1
            assert last <= now[0] <= 300
            last = now[0]

    in_threads(work)
    assert optimizer.param_steps == [300] * 3


def test_a_deep_copy_is_of_one_moment():
    """Of no moment within a step: its parameters, state and counts belong together."""
    params, stop = [np.zeros(n) for n in (3, 40_000, 5, 20_000)], threading.Event()
    optimizer, copied = gdm.SGD(params, lr=1.0, average=0.0), [0] * THREADS
    optimizer.bind([np.full_like(x, -1.0) for x in params])

    def work(k):
        try:
            while sum(copied) < 60 and not stop.is_set():
                try:
                    if k == 0:
                        optimizer.step()
                        time.sleep(1e-4)
                        continue
                    other, its_params = copy.deepcopy((optimizer, params))
                except RuntimeError as error:
                    assert BUSY in str(error)  # noqa: PT017
                    continue
                for x, average in zip(its_params, other.averages, strict=True):
                    assert x[0] == x[-1] == average[0] == average[-1] == other.steps
                copied[k] += 1
        finally:
            stop.set()

    in_threads(work)
    for x in params:
        np.testing.assert_array_equal(x, optimizer.steps)


def _add_and_remove(optimizer, _):
    optimizer.add_group({"params": np.ones(5), "name": str(threading.get_ident())})
    optimizer.remove_group(str(threading.get_ident()))


def _swap(optimizer, _):
    with optimizer.swap_averages():
        pass


CALLS = {
    "step": lambda o, g: o.step([g] + [None] * (len(o.groups) - 1)),
    "bind": lambda o, g: o.bind([g] + [None] * (len(o.groups) - 1)),
    "bound step": lambda o, g: o.step(),
    "lr": lambda o, g: setattr(o, "lr", 0.5),
    "schedule": lambda o, g: setattr(o.groups[0], "lr", gdm.schedules.cosine(0.5, steps=1000)),
    "momentum": lambda o, g: setattr(o, "momentum", 0.0),
    "other states": lambda o, g: setattr(o, "momentum", 0.5),
    "clipping": lambda o, g: setattr(o, "max_grad_norm", 1.0),
    "threads": lambda o, g: setattr(o, "threads", 2),
    "groups": _add_and_remove,
    "averages": _swap,
    "state_dict": lambda o, g: o.state_dict(),
    "load": lambda o, g: o.load_state_dict(o.state_dict()),
    "copy": lambda o, g: copy.deepcopy(o),
    "repr": lambda o, g: repr(o),
    "read": lambda o, g: (o.steps, o.param_steps, o.last_grad_norm, o.threads, o.averages, o.nbytes, o.momentum),
    "current_lr": lambda o, g: o.groups[0].current_lr,
}
# What the calls may say of each other: that there is a step, another number of groups, no gradient, groups that differ.
REFUSALS = (RuntimeError, ValueError, KeyError, IndexError, AttributeError)


@pytest.mark.parametrize("n", [3, 40_000])
def test_any_calls_on_one_optimizer_at_once(backend, n):
    """Each call does what it says, or raises one of gdm's errors, and the optimizer stays usable."""
    optimizer = gdm.SGD([{"params": [np.ones(n)]}], lr=0.5, momentum=0.5, average=0.9, max_grad_norm=1.0)
    grad = [np.ones(n)]
    optimizer.bind([grad])
    done = [0] * THREADS

    def work(k):
        rng = random.Random(k)
        for _ in range(60 if backend == "reference" else 250):
            call = rng.choice(list(CALLS.values()))
            try:
                call(optimizer, grad)
                done[k] += 1
            except REFUSALS as error:
                assert str(error)  # noqa: PT017

    in_threads(work)
    while len(optimizer.groups) > 1:
        optimizer.remove_group(1)
    assert sum(done) > 0
    for call in CALLS.values():
        call(optimizer, grad)
    before = optimizer.steps
    optimizer.step([grad])
    assert optimizer.steps == before + 1


def test_the_callers_list_may_change_meanwhile():
    """Another thread clears and fills the list of gradients that a step reads."""
    params = [np.zeros(5) for _ in range(3)]
    optimizer, grads, stop = gdm.SGD(params, lr=1.0), [], threading.Event()

    def work(k):
        if k == 0:
            while not stop.is_set():
                grads.clear()
                grads.extend([np.full(5, -1.0) for _ in params])
            return
        done = 0
        try:
            for _ in range(3000):
                try:
                    optimizer.step(grads)
                    done += 1
                except ValueError as error:
                    assert "as many items as params" in str(error)  # noqa: PT017
        finally:
            stop.set()
        for param in params:
            np.testing.assert_array_equal(param, done)

    in_threads(work, 2)


def _train(k, steps=200):
    rng = np.random.default_rng(k)
    params = [rng.standard_normal(n).astype(np.float32) for n in (3, 64, 1000)]
    grads = [rng.standard_normal(x.size).astype(np.float32) for x in params]
    lr = gdm.schedules.cosine(0.1, steps=steps, warmup=5)
    make = [gdm.SGD, gdm.AdamW, gdm.NAdam, gdm.Lion][k % 4]
    optimizer = make(params, lr=lr, max_grad_norm=1.0 if k % 2 else None)
    optimizer.bind(grads)
    for step in range(steps):
        optimizer.step(*[grads] * (step % 2))
        gdm.momentum(params[0], grads[0], grads[0].copy(), lr=0.1)
    return [x.tobytes() for x in (*params, *grads)]


def test_other_optimizers_at_once_give_the_same_bits():
    """Optimizers and functions in threads, each with its own arrays, do not meet."""
    results = {}
    in_threads(lambda k: results.update({k: _train(k)}), 8)
    for k, result in results.items():
        assert result == _train(k), k


@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module")
def test_each_update_of_an_array_is_whole_or_refused():
    """ArrayUpdate, which adapters use, has a lock of its own."""
    param, grad, done = np.zeros(7), np.full(7, -1.0), [0] * THREADS
    update = ArrayUpdate("sgd", {"param": param, "grad": grad})
    options = {"lr": 1.0, "weight_decay": 0.0, "decoupled_weight_decay": False, "maximize": False}

    def work(k):
        for _ in range(20_000):
            try:
                update.step(options, 1, 1.0, 0.0)
                done[k] += 1
            except RuntimeError as error:
                assert "another thread" in str(error)  # noqa: PT017

    in_threads(work)
    np.testing.assert_array_equal(param, sum(done))


@pytest.mark.skipif(WITHOUT_CORE, reason="there is one backend only")
def test_the_backend_that_is_named_is_the_one_that_runs(monkeypatch):
    """However threads set it."""
    formula, called = gdm.reference.formula.update, []

    def update(*args, **given):
        called.append(True)
        return formula(*args, **given)

    def work(k):
        for _ in range(2000):
            gdm.set_backend("native" if k % 2 else "reference")

    monkeypatch.setattr(gdm.reference.formula, "update", update)
    optimizer = gdm.SGD([np.zeros(1)], lr=1.0)
    for _ in range(5):
        in_threads(work)
        called.clear()
        optimizer.step([np.ones(1)])
        assert bool(called) == (gdm.backend() == "reference")
