"""The lock of an optimizer: one step or change at a time, and it is released however a call ends."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE
from support import python


class Alarm(BaseException):
    """What an interrupt raises."""


CALLS = {
    "lr": lambda o, _: setattr(o, "lr", 0.1),
    "lr of a group": lambda o, _: setattr(o.groups[0], "lr", 0.1),
    "weight_decay": lambda o, _: setattr(o, "weight_decay", 0.1),
    "step": lambda o, g: o.step(g),
    "bind": lambda o, g: o.bind(g),
    "state_dict": lambda o, _: o.state_dict(),
    "load": lambda o, _: o.load_state_dict(o.state_dict()),
    "groups": lambda o, _: (o.add_group({"params": np.ones(2)}), o.remove_group(1)),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # alarms ring in finalizers, too
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_never_leaves_it_locked(backend, call):
    """Alarms come at any moment, also while the lock is taken or released."""
    optimizer = gdm.SGD([{"params": [np.ones(300), np.ones(7)]}], lr=0.5, momentum=0.5)
    grads = [[np.ones(300), np.ones(7)]]
    alarms, rng = 0, random.Random(1)

    def ring(*_):
        raise Alarm

    def act():  # a function of its own: CPython 3.13.0 may handle an alarm outside of the try around a loop
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, 140e-6))
        for _ in range(50):
            CALLS[call](optimizer, grads)
            while len(optimizer.groups) > 1:
                optimizer.remove_group(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        time.sleep(0)  # an alarm that rang before is handled here

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for _ in range(1500):
            try:
                act()
            except Alarm:
                alarms += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert alarms > 200
    while len(optimizer.groups) > 1:
        optimizer.remove_group(1)
    optimizer.step(grads)
    optimizer.lr = 0.25
    assert optimizer.lr == 0.25


@pytest.mark.parametrize("failure", [MemoryError, KeyError, Alarm])
def test_a_failing_call_releases_it(backend, failure):
    optimizer = gdm.SGD([np.ones(3)], lr=0.5)

    def schedule(step):
        if step > 0:
            raise failure
        return 0.5

    optimizer.lr = schedule
    optimizer.step([np.ones(3)])
    kept = []  # the traceback, and with it the frames of the failed call
    for call in (lambda: optimizer.step([np.ones(3)]), lambda: optimizer.add_group({"params": [3]})):
        with pytest.raises((failure, TypeError)) as caught:
            call()
        kept.append(caught)
    optimizer.lr = 0.25
    optimizer.step([np.ones(3)])
    assert optimizer.steps == 2


def test_a_child_of_a_fork_is_not_locked(backend):
    """It is not in the step that another thread of its parent was in."""
    if not hasattr(os, "fork"):
        pytest.skip("NOT TESTED: there is no fork here")
    inside, go_on = threading.Event(), threading.Event()

    def schedule(step):
        if step == 1:
            inside.set()
            go_on.wait(60)
        return 0.5

    params = [np.ones(3)]
    optimizer = gdm.SGD(params, lr=schedule)
    optimizer.step([np.ones(3)])
    thread = threading.Thread(target=lambda: optimizer.step([np.ones(3)]))
    thread.start()
    assert inside.wait(60)
    with pytest.raises(RuntimeError, match="already in the middle of a step"):
        optimizer.step([np.ones(3)])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            go_on.set()
            optimizer.step([np.ones(3)])
            status = 0 if params[0][0] == 0.0 else 2
        finally:
            os._exit(status)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(params[0], 0.0)


@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module")
def test_the_caller_keeps_its_list_while_the_reference_runs():
    """The reference runs Python code, so another thread may change the caller's list of gradients meanwhile."""
    code = """
    import threading
    import numpy as np, gdm
    gdm.set_backend("reference")
    params = [np.zeros(3), np.zeros(3)]
    grads = [np.ones(3), np.ones(3)]
    update = gdm.reference.formula.update
    def meddling(*args, **options):
        grads.clear()
        return update(*args, **options)
    gdm.reference.formula.update = meddling
    optimizer = gdm.SGD(params, lr=1.0)
    optimizer.step(grads)
    print(grads, *(x[0] for x in params))
    """
    assert python(code) == "[] -1.0 -1.0"
