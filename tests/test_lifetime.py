"""How an optimizer begins and ends."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import gdm
from classes import three_arrays
from conftest import WITHOUT_CORE
from support import python

INITIALISED_TWICE = """
    import numpy as np, gdm
    param = np.zeros(1_000_000)
    optimizer = gdm.SGD([param], lr=1.0, momentum=0.5)
    optimizer.bind([np.ones(1_000_000)])
    optimizer.step()
    try:
        optimizer.__init__([np.zeros(3)], momentum=0.1)
    except RuntimeError as error:
        print(error)
    optimizer.step()
    print(np.all(param == -2.5), optimizer.momentum, optimizer.velocity[0][0])
"""


def test_an_optimizer_cannot_be_initialised_twice(backend):
    """Refused, and the optimizer goes on as it was."""
    told, state = python(INITIALISED_TWICE, GDM_BACKEND=backend).splitlines()
    assert told == "an optimizer cannot be initialised twice"
    assert state == "True 0.5 1.5"


@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module")
def test_an_optimizer_that_is_not_initialised_says_so():
    """It has no plan that could be asked, and says so."""
    optimizer = gdm.SGD.__new__(gdm.SGD)
    for action in (
        lambda: optimizer.threads,
        lambda: setattr(optimizer, "threads", 2),
        lambda: optimizer._progress(),
        lambda: optimizer.step(np.ones(2)),
        lambda: optimizer.bind(np.ones(2)),
    ):
        with pytest.raises(RuntimeError, match="has not been initialised"):
            action()


def test_an_optimizer_is_freed_without_the_garbage_collector(backend):
    """No cycles: the arrays of a model do not wait for the garbage collector."""
    gc.disable()
    try:
        optimizer = gdm.SGD([{"params": three_arrays()}], lr=0.1, momentum=0.9)
        optimizer.bind([three_arrays()])
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.groups[0].lr == optimizer.lr
        gone = weakref.ref(optimizer)
        del optimizer
        assert gone() is None
    finally:
        gc.enable()
