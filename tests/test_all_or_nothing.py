"""Changes of an optimizer that fail half way: schedules that raise or meddle, interrupts, numbers too large."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import sys
import threading

import numpy as np
import pytest

import gdm
from conftest import WITHOUT_CORE

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
def test_interrupts(backend, change, cls):
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


def test_a_schedule_that_raises_is_not_taken(backend):
    optimizer = gdm.SGD(np.ones(2), lr=0.5)
    optimizer.step(np.ones(2))
    with pytest.raises(IndexError):
        optimizer.lr = lambda step: [0.5][step]
    assert optimizer.lr == 0.5


def test_a_schedule_cannot_change_the_gradients_under_a_step(backend):
    """It is asked before they are looked at."""
    params, grads = [np.ones(3), np.ones(3)], []

    def meddling(step):
        grads[1:] = ["none"]
        return 0.5

    optimizer = gdm.SGD(params, lr=meddling)
    grads[:] = [np.ones(3), np.ones(3)]
    with pytest.raises(TypeError, match=r"grads\[1\]"):
        optimizer.step(grads)
    optimizer.lr = lambda step: grads.clear() or 0.5
    with pytest.raises(ValueError, match="grads must have as many items as params"):
        optimizer.step(grads)
    np.testing.assert_array_equal(params, np.ones((2, 3)))


def test_a_schedule_is_asked_once_for_each_step(backend):
    asked = []
    params = [np.zeros(2), np.zeros(2)]
    optimizer = gdm.SGD(params, lr=lambda step: asked.append(step) or float(len(asked)))
    asked.clear()
    optimizer.step([np.ones(2), np.ones(2)])
    assert asked == [0]
    np.testing.assert_array_equal(params, -np.ones((2, 2)))


def test_a_schedule_that_raises_an_error_of_its_own(backend):
    """Some cannot be made from a message alone."""

    def schedule(step):
        raise json.JSONDecodeError("no number", "", 0)

    with pytest.raises(ValueError, match="group 0: no number"):
        gdm.SGD([{"params": np.ones(2)}], lr=schedule)


def test_a_learning_rate_too_large_with_its_factor(backend):
    param = np.ones(2)
    with pytest.raises(ValueError, match="lr \\* lr_scale must be finite"):
        gdm.SGD(param, lr=1e300, lr_scale=1e300)
    optimizer = gdm.SGD(param, lr=1.0, lr_scale=1e300)
    for name, value in (("lr", 1e300), ("lr", lambda step: 1e300)):
        with pytest.raises(ValueError, match="lr \\* lr_scale must be finite"):
            setattr(optimizer, name, value)
        assert optimizer.lr == 1.0
    optimizer.lr = lambda step: 1e300 * step
    optimizer.step(np.zeros(2))
    with pytest.raises(ValueError, match="lr \\* lr_scale must be finite"):
        optimizer.step(np.ones(2))
    np.testing.assert_array_equal(param, np.ones(2))
    assert optimizer.steps == 1


def test_factors_are_the_optimizers_own(backend, tmp_path):
    """What is saved is what is in use, whatever became of what was given, and in the order of params."""
    factors, given = np.array([1, 2, 3], dtype=np.int32), np.full(3, 0.5)
    optimizer = gdm.SGD(np.ones(3), lr_scale=factors)
    factors[:] = 9
    optimizer.lr_scale[:] = 9
    optimizer.groups[0].lr_scale[:] = 9
    np.testing.assert_array_equal(optimizer.lr_scale, [1, 2, 3])
    optimizer.save(tmp_path / "state")
    optimizer.load(tmp_path / "state")
    assert optimizer.lr_scale.dtype == np.float64
    several = {"a": np.ones(3), "b": np.ones(3)}
    optimizer = gdm.SGD(several, lr=1.0, momentum=0.5, lr_scale={"b": 2, "a": given})
    given[:] = 9
    optimizer.step({"a": np.ones(3), "b": np.ones(3)})
    saved = gdm.SGD.to_form(optimizer.state_dict(), "classic")
    a, b = (entry["state"]["velocity"] for entry in saved["groups"][0]["params"])
    assert (a.tolist(), b.tolist()) == ([-0.5] * 3, [-2.0] * 3)
    saved = gdm.SGD.to_form(gdm.SGD(np.ones(3), lr_scale=[1, 2, 3]).state_dict(), "classic")
    for number in (np.float32(0.5), np.int64(2)):
        optimizer = gdm.SGD(np.ones(3), lr_scale=number)
        assert type(optimizer.lr_scale) is float
        optimizer.save(tmp_path / "state")
    assert gdm.SGD([np.ones(1)], lr_scale=iter([0.5])).lr_scale == [0.5]


@pytest.mark.parametrize("order", "CF")
def test_factors_lie_as_their_parameter_does(backend, order):
    """Whatever the order of the array they came in, and whatever becomes of that."""
    given = np.arange(6.0).reshape(2, 3)
    param, grad = np.zeros((2, 3), order=order), np.zeros((2, 3), order=order)
    grad[...] = [[1, 2, 4], [8, 16, 32]]
    for factors in (given.copy("C"), given.copy("F")):
        grouped = gdm.SGD([{"params": param, "lr_scale": factors}], lr=1.0)
        later = gdm.SGD(param, lr=1.0)
        later.lr_scale = factors
        factors[:] = 9
        for optimizer, grads in ((grouped, [grad]), (later, grad)):
            param[:] = 0
            optimizer.step(grads)
            np.testing.assert_array_equal(param, -given * grad)


def test_a_state_that_changes_the_optimizer_it_is_loaded_into(backend):
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


def test_no_step_while_a_state_is_being_saved(backend, tmp_path, monkeypatch):
    """The file would hold neither the state before nor the one after."""
    from gdm import _checkpoint

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


def test_a_group_that_has_been_removed(backend):
    optimizer = gdm.SGD([{"params": np.ones(3)}, {"params": np.ones(2)}])
    group = optimizer.groups[1]
    optimizer.remove_group(1)
    for action in (lambda: group.lr, lambda: group.steps, lambda: setattr(group, "lr", 0.5), lambda: group.name):
        with pytest.raises(RuntimeError, match="this group has been removed"):
            action()
    assert repr(group) == "Group(removed)"


def test_a_change_of_groups_forgets_what_was_bound(backend):
    optimizer = gdm.SGD([{"params": np.ones(3)}, {"params": np.ones(2)}])
    for change in (lambda: optimizer.add_group({"params": np.ones(1)}), lambda: optimizer.remove_group(0)):
        optimizer.bind([np.ones(x.size) for x in optimizer._snapshot.user_arrays])
        change()
        with pytest.raises(RuntimeError, match="no gradients"):
            optimizer.step()


def test_the_number_of_threads_stays(backend):
    """Through changes of the table, and in copies."""
    optimizer = gdm.SGD(np.ones(3), threads=2)
    optimizer.momentum = 0.5
    optimizer.add_group({"params": np.ones(2)})
    optimizer.remove_group(0)
    assert optimizer.threads == 2
    assert copy.deepcopy(optimizer).threads == 2
    assert pickle.loads(pickle.dumps(optimizer)).threads == 2


def test_what_is_left_after_a_group_is_removed(backend):
    """A group that has not been stepped yet has its first step before it, whatever those before it had."""
    optimizer = gdm.SGD([{"params": np.ones(3)}], momentum=0.5, dampening=0.5)
    optimizer.step([np.ones(3)])
    optimizer.add_group({"params": np.ones(2)})
    optimizer.remove_group(0)
    optimizer.step([np.ones(2)])
    np.testing.assert_array_equal(optimizer.velocity, [[1.0, 1.0]])
    assert optimizer.steps == 1


def test_a_group_without_parameters_counts(backend):
    empty, other = gdm.NAdam([]), gdm.NAdam([np.ones(2)])
    for _ in range(3):
        empty.step([])
        other.step([np.ones(2)])
    assert empty.steps == other.steps == 3


@pytest.mark.skipif(WITHOUT_CORE, reason="of the compiled module")
def test_what_is_not_initialised():
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
