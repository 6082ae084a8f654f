"""Code of the user's that runs while gdm looks at an argument, and changes what it should not."""

from __future__ import annotations

import re
from textwrap import dedent

import numpy as np
import pytest

import gdm
from support import HOOKS, every_hook, python

MOVES = {
    "params": ("params['a'].resize(1, refcheck=False)", "StaleBufferError params['a'] has moved, been resized, or"),
    "grads": ("grads['a'].resize(1, refcheck=False)", "ValueError grads['a'] has shape (1,), but params['a'] has"),
}


IN_A_MAPPING = """
    class Grads(dict):
        def __getitem__(self, key):
            if key == "b":
                act()
            return dict.__getitem__(self, key)
"""


SETUP = """
    params, grads = ({key: np.zeros(N) for key in "ab"} for _ in range(2))
    optimizer = gdm.SGD(params, lr=1.0, momentum=0.5)
    optimizer.bind(grads)
"""


@pytest.mark.parametrize("call", ["step", "bind"])
@pytest.mark.parametrize("what", MOVES)
def test_a_mapping_that_moves_arrays_is_found_out(backend, what, call):
    act, message = MOVES[what]
    code = f"""
    def act():
        {act}
    attempt(optimizer.{call}, Grads({{key: grads[key] for key in "ab"}}))
    print(*(x[0] for x in params.values()))
    """
    refused, values = python("".join(map(dedent, (HOOKS, IN_A_MAPPING, SETUP, code))), GDM_BACKEND=backend).splitlines()
    assert refused.startswith(message)
    assert values == "0.0 0.0"


@every_hook
@pytest.mark.parametrize("call", ["step", "bind"])
@pytest.mark.parametrize("what", MOVES)
def test_a_gradient_that_moves_arrays_is_found_out(backend, what, call, how):
    act, message = MOVES[what]
    code = f"""
    def act():
        {act}
    attempt(optimizer.{call}, {{"a": grads["a"], "b": hook({how!r})}})
    print(*(x[0] for x in params.values()))
    """
    refused, values = python("".join(map(dedent, (HOOKS, SETUP, code))), GDM_BACKEND=backend).splitlines()
    assert refused.startswith(message)
    assert values == "0.0 0.0"


@every_hook
@pytest.mark.parametrize("call", ["step", "bind"])
def test_that_an_array_has_changed_is_said_before_what_its_memory_is_now(backend, call, how):
    """Where it was there may be a gradient now, which is then not at fault."""
    code = f"""
    def act():
        params["a"].flags.writeable = False
    attempt(optimizer.{call}, {{"a": params["a"][...], "b": hook({how!r})}})
    """
    refused = python("".join(map(dedent, (HOOKS, SETUP, code))), GDM_BACKEND=backend)
    assert refused.startswith("StaleBufferError params['a'] has moved, been resized, or")


@every_hook
@pytest.mark.parametrize("place", [0, 1])
def test_a_gradient_that_shortens_the_list_of_gradients_does_no_harm(backend, place, how):
    code = f"""
    params = [np.zeros(N) for _ in range(2)]
    grads = [np.ones(N) for _ in range(2)]
    grads[{place}] = hook({how!r})
    act = grads.clear
    optimizer = gdm.SGD(params, lr=1.0)
    attempt(optimizer.step, grads)
    print(*(np.all(x == x[0]) and x[0] in (0, -1) for x in params))
    """
    *refused, whole = python(dedent(HOOKS) + dedent(code), GDM_BACKEND=backend).splitlines()
    assert all(line.startswith(("ValueError", "StaleBufferError")) for line in refused)
    assert whole == "True True"


@every_hook
@pytest.mark.parametrize("name", ["param", "velocity"])
def test_an_argument_of_a_function_that_moves_another_is_found_out(backend, how, name):
    """A gradient that moves another argument while it is looked at: an error, and no crash."""
    code = f"""
    param, velocity = np.zeros(N), np.zeros(N)
    def act():
        {name}.resize(1, refcheck=False)
    attempt(gdm.momentum, param, velocity, hook({how!r}), lr=0.1)
    print(param[0], velocity[0])
    """
    refused, values = python(dedent(HOOKS) + dedent(code), GDM_BACKEND=backend).splitlines()
    assert re.fullmatch(r"ValueError (velocity|grad) has shape \(.*\), but param has \(.*\)", refused)
    assert values == "0.0 0.0"


def test_a_state_cannot_change_the_optimizer_it_is_loaded_into(backend):
    optimizer = gdm.SGD([{"params": np.ones(3)}], momentum=0.5)

    class State(dict):
        def __getitem__(self, key):
            if key == "optimizer":
                optimizer.add_group({"params": np.ones(2)})
            return super().__getitem__(key)

    with pytest.raises(gdm.CheckpointError, match="already in the middle"):
        optimizer.load_state_dict(State(optimizer.state_dict()))
    assert len(optimizer.groups) == 1
    optimizer.step([np.ones(3)])
