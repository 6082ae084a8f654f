"""Python threads that call gdm at the same time."""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
import time

import numpy as np
import pytest

import gdm
from gdm import _checkpoint
from support import LARGE, at_once, python


def test_of_two_threads_that_step_one_is_refused():
    """One of them steps, the other is told; nothing is lost."""
    param = np.zeros(4_000_000, np.float32)
    optimizer = gdm.SGD(param, lr=1.0)
    optimizer.bind(np.full_like(param, -1.0))
    done, refused, start, end = [], [], threading.Barrier(2), time.monotonic() + 60
    switch = sys.getswitchinterval()

    def work():
        start.wait()
        while not refused and time.monotonic() < end:  # on a busy machine one thread may long be alone
            try:
                optimizer.step()
                done.append(1)
            except RuntimeError as error:
                assert "already in the middle of a step" in str(error)  # noqa: PT017
                refused.append(1)

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert refused
    np.testing.assert_array_equal(param, len(done))


def _untorn_state(optimizer):
    velocity = optimizer.state_dict()["groups"][0]["params"][0]["state"]["velocity"]
    assert np.all(velocity == velocity[0])


WHILE_STEPPING = {
    "state_dict": _untorn_state,
    "lr": lambda o: setattr(o, "lr", 0.5),
    "lr of a group": lambda o: setattr(o.groups[0], "lr", 0.5),
    "bind": lambda o: o.bind([np.ones_like(o._snapshot.params[0])]),
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("what", WHILE_STEPPING)
def test_a_call_in_the_middle_of_a_step_is_refused(backend, what):
    """Another thread is told, or comes between two steps; it neither sees nor makes half a step."""
    optimizer = gdm.SGD([np.zeros(1_000_000, np.float32)], lr=1.0, momentum=0.999)
    optimizer.bind([np.ones(1_000_000, np.float32)])
    stop, refused = threading.Event(), 0

    def work():
        while not stop.is_set():
            try:
                optimizer.step()
            except RuntimeError as error:
                assert "already in the middle of a step" in str(error)  # noqa: PT017

    thread = threading.Thread(target=work)
    thread.start()
    try:
        end = time.monotonic() + 60  # a change is over so soon that most come between two steps
        while time.monotonic() < end:
            try:
                WHILE_STEPPING[what](optimizer)
            except RuntimeError as error:
                assert "already in the middle of a step" in str(error)  # noqa: PT017
                refused += 1
            if refused == 3:
                break
    finally:
        stop.set()
        thread.join()
    assert refused == 3


def test_native_step_outlives_the_callers_list():
    """Cleared by another thread while the interpreter is released: the gradients live until the step is done."""
    code = """
    import sys, threading
    import numpy as np, gdm
    sys.setswitchinterval(1)
    n, done = 5_000_000, 0  # more than malloc would keep
    param = np.zeros(n)
    optimizer = gdm.SGD([param], lr=1.0)
    for _ in range(5):
        grads, go = [np.full(n, -1.0)], threading.Event()
        other = threading.Thread(target=lambda: go.wait() and grads.clear())
        other.start()
        go.set()
        try:
            optimizer.step(grads)
            done += 1
        except ValueError:  # cleared too early
            pass
        other.join()
        assert not grads
    print(done > 0 and np.all(param == done))
    """
    assert python(code) == "True"


def test_no_step_while_a_state_is_being_saved(backend, tmp_path, monkeypatch):
    """The file would hold neither the state before nor the one after."""

    optimizer, refused, pack = gdm.SGD(np.ones(3), momentum=0.5), [], _checkpoint._pack

    def meanwhile(tree):
        def step():
            with contextlib.suppress(RuntimeError):
                optimizer.step(np.ones(3))
                return
            refused.append(True)

        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        return pack(tree)

    monkeypatch.setattr(_checkpoint, "_pack", meanwhile)
    optimizer.save(tmp_path / "state")
    assert refused == [True]
    optimizer.step(np.ones(3))


def test_functions_in_many_threads_do_not_meet():
    """Functions have no state of their own: threads with arrays of their own do not meet."""
    n, steps = 40_000, 20  # large enough for the interpreter to be released
    results = {}

    def work(k):
        param, velocity, grad = (np.full(n, x, np.float32) for x in (1.0, 0.0, 0.1 * k))
        for _ in range(steps):
            gdm.momentum(param, velocity, grad, lr=0.1)
        results[k] = param

    at_once(work, 4)
    for k, param in results.items():
        work(k)
        np.testing.assert_array_equal(param, results[k])


def test_optimizers_in_many_threads_do_not_meet():
    """Python threads that step at the same time: one has the pool, the others work alone."""
    gdm.set_num_threads(4)
    results = {}

    def work(k):
        param = np.full(LARGE, float(k), np.float32)
        optimizer = gdm.SGD(param, lr=0.1, momentum=0.9)
        optimizer.bind(np.full(LARGE, 0.5, np.float32))
        for _ in range(20):
            optimizer.step()
        results[k] = param

    at_once(work, 3)
    for k, param in results.items():
        work(k)
        np.testing.assert_array_equal(param, results[k])
