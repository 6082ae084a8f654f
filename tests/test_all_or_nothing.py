"""Changes and steps that fail half way: everything is as before, or as after."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import gdm
from classes import three_arrays
from conftest import WITHOUT_CORE
from support import assert_same_bits

SHAPES = [{"a": (300,), "b": (2, 3)}, [(7,)], (5,)]


class Interrupt(BaseException):
    """What may come between any two lines, as KeyboardInterrupt does."""


def arrays(seed):
    rng = np.random.default_rng(seed)
    a, b, c = SHAPES
    return [
        {key: rng.random(shape) for key, shape in a.items()},
        [rng.random(x).astype("f4") for x in b],
        rng.random(c),
    ]


def make(cls, **options):
    """An optimizer with all that it can have, after a step; its parameters; its gradients."""
    params, grads = arrays(1), arrays(2)
    groups = [
        {"params": params[0], "lr_scale": {"a": np.full(300, 0.5), "b": 0.5}},
        {"params": params[1], "lr": lambda step: 0.1 / (step + 1)},
        {"params": params[2], "lr_scale": 2.0},
    ]
    optimizer = cls(groups, **options)
    optimizer.step(grads)
    return optimizer, params, grads


def everything(optimizer):
    """All that an optimizer is, as bytes and plain values."""

    def plain(x):
        if isinstance(x, np.ndarray):
            return x.dtype.str, x.shape, x.tobytes()
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        return [plain(value) for value in x] if isinstance(x, list) else x

    return plain(
        [optimizer._snapshot.user_arrays, optimizer.state_dict(), [group.current_lr for group in optimizer.groups]]
    )


def interrupted(action, at):
    """Runs it with an interrupt at the line of that number; returns whether it came to its end."""
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if "gdm" not in frame.f_globals.get("__name__", "").split("."):
            return None
        lines += event == "line"
        if event == "line" and lines == at:
            raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Interrupt:
        return False
    finally:
        sys.settrace(before)
    return True


CHANGES = {
    "lr": lambda optimizer, _: setattr(optimizer, "lr", 0.3),
    "all lr": lambda optimizer, _: setattr(optimizer, "lr", lambda step: 0.25),
    "weight_decay": lambda optimizer, _: setattr(optimizer, "weight_decay", 0.25),
    "lr_scale": lambda optimizer, _: setattr(optimizer.groups[0], "lr_scale", {"a": np.full(300, 0.25), "b": 0.125}),
    "states": lambda optimizer, _: setattr(
        optimizer, *(("momentum", 0.0) if isinstance(optimizer, gdm.SGD) else ("amsgrad", True))
    ),
    "add_group": lambda optimizer, _: optimizer.add_group({"params": [np.ones(4)], "lr_scale": [0.3]}),
    "remove_group": lambda optimizer, _: optimizer.remove_group(0),
    "load": lambda optimizer, saved: optimizer.load_state_dict(saved),
    "step": lambda optimizer, _: optimizer.step(arrays(3)),
}


@pytest.mark.skipif(WITHOUT_CORE, reason="what copies and locks in Python can be interrupted while it does")
@pytest.mark.parametrize("cls", [gdm.SGD, gdm.Adam])
@pytest.mark.parametrize("change", CHANGES)
def test_an_interrupt_changes_all_or_nothing(backend, change, cls):
    """Wherever one comes, the optimizer is as before or as after, and goes on like one that was never interrupted."""
    options = {"momentum": 0.5} if cls is gdm.SGD else {}
    other, _, grads = make(cls, **options)
    other.step(grads)
    saved, act = other.state_dict(), CHANGES[change]

    def one(changed):
        optimizer, _, grads = make(cls, **options)
        if changed:
            act(optimizer, saved)
        state = everything(optimizer)
        if changed and change == "add_group":
            grads = [*grads, [np.ones(4)]]
        if changed and change == "remove_group":
            grads = grads[1:]
        optimizer.step(grads)
        return state, grads, everything(optimizer)

    expected, at, done = [one(False), one(True)], 1, False
    while not done:
        optimizer, _, _ = make(cls, **options)
        done = interrupted(lambda o=optimizer: act(o, saved), at)
        state = everything(optimizer)
        after = [later for before, _, later in expected if before == state]
        assert after, f"half changed by an interrupt at line {at}"
        litter = [np.full(n, 9.0) for n in (300, 6, 7, 5)] * 5  # where freed memory may be
        optimizer.step(next(grads for before, grads, _ in expected if before == state))
        assert everything(optimizer) == after[0], f"an interrupt at line {at}"
        del litter
        at += 1
    assert state == expected[1][0]


@pytest.mark.parametrize("change", ["lr_scale", "add_group", "load"])
def test_a_schedule_that_raises_changes_nothing(backend, change):
    """One that gives no learning rate for the step that comes next, though it did for the first."""
    param, grad = np.ones(2000), np.ones(2000)
    optimizer = gdm.SGD(param, lr=lambda step: [0.5][step], lr_scale=np.full(2000, 2.0), momentum=0.5)
    saved = optimizer.state_dict()
    saved["groups"][0]["steps"] = 5
    optimizer.step(grad)
    changes = {
        "lr_scale": lambda: setattr(optimizer, "lr_scale", np.full(2000, 3.0)),
        "add_group": lambda: optimizer.add_group({"params": np.ones(3), "lr_scale": 1.0}),
        "load": lambda: optimizer.load_state_dict(saved),
    }
    with pytest.raises(IndexError):
        changes[change]()
    assert len(optimizer.groups) == 1
    assert optimizer.steps == 1
    litter = [np.full(2000, 7.0) for _ in range(50)]  # where factors that were freed would be
    optimizer.lr = 0.5
    optimizer.step(grad)
    np.testing.assert_array_equal(param, np.full(2000, 1 - 0.5 * 2 - 0.5 * 2 * 1.5))
    del litter


def test_a_failed_step_marks_nothing_as_started(monkeypatch):
    """The reference, with an error in its second parameter: a later first step is still a first one."""
    gdm.set_backend("reference")
    update, calls = gdm.reference.formula.update, []

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return update(*args, **options)

    params = three_arrays()
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9, dampening=0.5)
    before = [x.tobytes() for x in (*params, *optimizer.velocity)]
    with monkeypatch.context() as patch:
        patch.setattr(gdm.reference.formula, "update", failing)
        with pytest.raises(MemoryError):
            optimizer.step(three_arrays())
    assert [x.tobytes() for x in (*params, *optimizer.velocity)] == before
    assert not any(entry["begun"] for entry in optimizer.state_dict()["groups"][0]["params"])
    optimizer.step(three_arrays())
    for velocity, grad in zip(optimizer.velocity, three_arrays(), strict=True):
        assert_same_bits(velocity, grad)
