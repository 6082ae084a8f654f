"""The state of an optimizer: what it holds, going on from it, and states that are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import gdm
from classes import (
    CASES,
    CLASS_CASES,
    SGD_CASES,
    assert_same_training,
    cosine,
    every_class,
    four_arrays,
    gradients,
    three_arrays,
)
from support import assert_same_bits, needs_safetensors, python

FIXED = ("form", "initial_accumulator_value")  # these are given when an optimizer is made, and not loaded


@pytest.mark.parametrize(("way", "dtype"), [("file", np.float64), ("state_dict", np.float32)])
@pytest.mark.parametrize(("name", "options"), [*CLASS_CASES, *SGD_CASES[::3]])
def test_training_that_was_stopped_goes_on_to_the_bit(name, options, way, dtype, tmp_path, backend):
    """N steps straight are N/2, saved, loaded by an optimizer with other options, and N/2 more."""
    params, halfway = four_arrays(dtype), four_arrays(dtype)
    straight = getattr(gdm, name)(params, **options)
    for step in range(10):
        straight.step(gradients(step, dtype))
    first = getattr(gdm, name)(halfway, **options)
    for step in range(5):
        first.step(gradients(step, dtype))
    again = [x.copy() for x in halfway]
    second = getattr(gdm, name)(again, lr=0.5, **{key: options[key] for key in FIXED if key in options})
    if way == "file":
        first.save(tmp_path / "state")
        second.load(tmp_path / "state")
    else:
        saved = pickle.loads(pickle.dumps(first.state_dict()))
        first.step(gradients(11, dtype))  # what the old one does later must not matter
        second.load_state_dict(saved)
    assert second.lr == first.lr
    for step in range(5, 10):
        second.step(gradients(step, dtype))
    assert_same_training(second, straight, again, params)


@needs_safetensors
def test_training_goes_on_to_the_bit_in_another_process(tmp_path):
    """Every class; the parameters travel as a .npz file."""
    code = """
    import itertools
    from pathlib import Path
    import numpy as np
    import gdm
    from classes import CASES, four_arrays, gradients, states
    for name, options in [(name, {**options, "lr": 0.03}) for name, cases in CASES.items() for options in cases]:
        key = f"{name}{sorted(options.items())}"
        folder = Path(FOLDER)
        params = four_arrays()
        optimizer = getattr(gdm, name)(params, **options)
        if BEGIN:
            with np.load(folder / f"{abs(hash(key))}.npz") as file:
                for i, x in enumerate(params):
                    x[...] = file[str(i)]
            optimizer.load(folder / f"{abs(hash(key))}.safetensors")
        for step in range(BEGIN, END):
            optimizer.step(gradients(step))
        if END == 6:
            np.savez(folder / f"{abs(hash(key))}.npz", **{str(i): x for i, x in enumerate(params)})
            optimizer.save(folder / f"{abs(hash(key))}.safetensors")
        else:
            print(key, [x.tobytes() for x in params], {k: x.tobytes() for k, x in states(optimizer).items()})
    """

    def run(begin, end):
        here = code.replace("FOLDER", repr(str(tmp_path))).replace("BEGIN", str(begin)).replace("END", str(end))
        return python(here, PYTHONHASHSEED="0", PYTHONPATH=str(Path(__file__).parent))

    straight = run(0, 12)
    run(0, 6)
    assert run(6, 12) == straight
    assert len(straight.splitlines()) == sum(map(len, CASES.values()))


@every_class
def test_a_state_has_only_arrays_and_what_json_has(name):
    """Arrays in the dtype of the parameters, and besides only what JSON has."""
    optimizer = getattr(gdm, name)(four_arrays(np.float32), lr=cosine)
    optimizer.step(gradients(0, np.float32))

    def plain(x):
        if isinstance(x, np.ndarray):
            assert x.dtype == np.float32
            return None
        if isinstance(x, (list, tuple)):
            return [plain(y) for y in x]
        return {key: plain(y) for key, y in x.items()} if isinstance(x, dict) else x

    saved = optimizer.state_dict()
    assert saved["groups"][0]["steps"] == 1
    assert json.loads(json.dumps(plain(saved))) == plain(saved)


def test_a_state_knows_whether_a_velocity_has_begun(backend):
    """Whether a velocity has begun is part of the state."""
    param, grad = np.ones(2), np.array([0.5, 2.0])
    optimizer = gdm.SGD(param, lr=0.1, momentum=0.9, dampening=0.5)
    before = optimizer.state_dict()
    optimizer.step(grad)
    begun = optimizer.state_dict()
    optimizer.load_state_dict(before)
    optimizer.step(grad)
    np.testing.assert_array_equal(optimizer.velocity, grad)
    optimizer.load_state_dict(begun)
    optimizer.step(grad)
    np.testing.assert_allclose(optimizer.velocity, 0.9 * grad + 0.5 * grad)


def test_a_state_is_a_copy(backend):
    optimizer = gdm.SGD(np.ones(2), momentum=0.9)
    optimizer.step(np.ones(2))
    saved = optimizer.state_dict()
    saved["groups"][0]["params"][0]["state"]["velocity"][...] = 7
    np.testing.assert_array_equal(optimizer.velocity, 1)
    optimizer.load_state_dict(saved)
    saved["groups"][0]["params"][0]["state"]["velocity"][...] = 8
    np.testing.assert_array_equal(optimizer.velocity, 7)


def test_velocities_begin_anew_after_a_state_without_them(backend):
    """Loaded into an optimizer that has some: they begin anew."""
    params, grads = three_arrays(), three_arrays()
    plain = gdm.SGD(three_arrays(), lr=0.1, dampening=0.5)
    plain.step(grads)
    optimizer = gdm.SGD(params, lr=0.1, momentum=0.9, dampening=0.5)
    optimizer.step(grads)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.momentum == 0.0
    assert optimizer.velocity == [None, None, None]
    optimizer.momentum = 0.9
    optimizer.step(grads)
    for velocity, grad in zip(optimizer.velocity, grads, strict=True):
        assert_same_bits(velocity, grad)


def test_a_state_is_read_before_anything_is_written(backend):
    """Swapped between two parameters: all is read before anything is written."""
    optimizer = gdm.SGD([np.ones(3), np.ones(3)], lr=0.1, momentum=0.9)
    optimizer.step([np.full(3, 2.0), np.full(3, 5.0)])
    saved = optimizer.state_dict()
    for entry, velocity in zip(saved["groups"][0]["params"], reversed(optimizer.velocity), strict=True):
        entry["state"]["velocity"] = velocity
    optimizer.load_state_dict(saved)
    np.testing.assert_array_equal(optimizer.velocity, [[5.0] * 3, [2.0] * 3])


def test_functions_are_not_saved(backend):
    """A user's own schedule stays the optimizer's own."""
    optimizer = gdm.SGD(np.ones(2), lr=lambda t: 0.5)
    saved = optimizer.state_dict()
    assert saved["groups"][0]["options"]["lr"] is None
    mine = lambda t: 0.25  # noqa: E731
    other = gdm.SGD(np.ones(2), lr=mine)
    other.load_state_dict(saved)
    assert other.lr is mine
    with pytest.raises(gdm.CheckpointError, match="lr was a function, which was not saved"):
        gdm.SGD(np.ones(2), lr=0.1).load_state_dict(saved)


def test_schedules_factors_and_names_are_saved(tmp_path):
    optimizer = gdm.AdamW(
        [
            {"params": {"w": np.ones(3)}, "name": "body", "lr": gdm.schedules.join([cosine, cosine], [12])},
            {"params": [np.ones(2), np.ones(2)], "name": "head", "lr_scale": [0.5, np.array([1.0, 2.0])]},
        ]
    )
    optimizer.save(tmp_path / "state")
    other = gdm.AdamW(
        [{"params": {"w": np.ones(3)}, "name": "body"}, {"params": [np.ones(2), np.ones(2)], "name": "head"}], lr=0.5
    )
    other.load(tmp_path / "state")
    assert other.groups["body"].lr == optimizer.groups["body"].lr
    assert other.groups["head"].lr_scale[0] == 0.5
    np.testing.assert_array_equal(other.groups["head"].lr_scale[1], [1.0, 2.0])


def _edit(path, value):
    def edit(saved):
        place = saved
        for key in path[:-1]:
            place = place[key]
        if value is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return edit


LAST = ("groups", 0, "params", 2)


BAD_STATES = {
    "format": (_edit(["format"], 99), "has format 99; expected 4"),
    "class": (_edit(["optimizer"], "Adam"), "is of Adam; expected SGD"),
    "no groups": (_edit(["groups"], KeyError), "not one of gdm's"),
    "groups": (_edit(["groups"], []), "has 0 groups; expected 1"),
    "fewer": (_edit(LAST, KeyError), r"has \[2\] parameters in its groups; expected \[3\]"),
    "name": (_edit([*LAST, "name"], "[7]"), r"has a parameter '\[7\]' where '\[2\]' was expected"),
    "lr": (_edit(["groups", 0, "options", "lr"], -1.0), "group 0: lr must be finite and not negative"),
    "steps": (_edit(["groups", 0, "steps"], -1), "group 0: steps must be from 0 to 9223372036854775807, got -1"),
    "steps as a float": (_edit(["groups", 0, "steps"], 1.0), "group 0: steps must be a whole number"),
    "a scalar": (_edit([*LAST, "scalars"], {"mu_product": 1.0}), r"params\[2\]: it has the scalars \['mu_product'\]"),
    "a parameter's steps": (_edit([*LAST, "steps"], -1), r"params\[2\]: steps must be from 0 to 9223372036854775807"),
    "option": (_edit(["groups", 0, "options", "beta"], 1.0), "group 0 has options"),
    "form": (_edit(["groups", 0, "options", "form"], "classic"), "has form 'classic'; expected 'torch'"),
    "shape": (
        _edit([*LAST, "state", "velocity"], np.zeros(4, np.float32)),
        r"velocity of params\[2\] has dtype float32",
    ),
    "dtype": (_edit([*LAST, "state", "velocity"], np.zeros(33)), r"velocity of params\[2\] has dtype float64"),
    "state": (_edit([*LAST, "state", "speed"], np.zeros(33)), r"unknown states \['speed'\]"),
    "started": (_edit([*LAST, "begun"], "yes"), r"params\[2\]: begun must be True or False"),
    "missing": (_edit([*LAST, "state"], {}), r"lacks the states \['velocity'\] of params\[2\]"),
    "ragged": (_edit([*LAST, "state", "velocity"], [[1.0, 2.0], [3.0]]), "not one of gdm's"),
    "format as an array": (_edit(["format"], np.array([1, 1])), "has format array"),
    "format as text": (_edit(["format"], "1"), "has format '1'; expected 4"),
    "name as an array": (_edit([*LAST, "name"], np.array(["[2]", "[2]"])), "not one of gdm's"),
    "params": (_edit(["groups", 0, "params"], 3), "not one of gdm's"),
}


@pytest.mark.parametrize("what", BAD_STATES)
def test_a_bad_state_is_refused_as_a_whole(backend, what):
    """Nothing is loaded, not even what comes before the mistake."""
    edit, message = BAD_STATES[what]
    optimizer, other = gdm.SGD(three_arrays(), lr=0.1, momentum=0.9), gdm.SGD(three_arrays(), lr=0.2, momentum=0.8)
    optimizer.step(three_arrays())
    other.step(three_arrays()[::1])
    saved = other.state_dict()
    edit(saved)
    before = repr(optimizer.state_dict())
    with pytest.raises(gdm.CheckpointError, match=message):
        optimizer.load_state_dict(saved)
    assert repr(optimizer.state_dict()) == before


def test_a_checkpoint_that_does_not_fit_is_refused_as_a_whole(tmp_path, backend):
    """Nothing is loaded from one of another class, shape, dtype, group, name or form; the message says what."""
    path = tmp_path / "state"
    optimizer = gdm.Adam({"w": np.ones((2, 3))}, lr=0.1)
    optimizer.step({"w": np.ones((2, 3))})
    before = repr(optimizer.state_dict())
    for other, message in [
        (gdm.SGD({"w": np.ones((2, 3))}), "is of SGD; expected Adam"),
        (gdm.AdamW({"w": np.ones((2, 3))}), "is of AdamW; expected Adam"),
        (gdm.Adam({"w": np.ones((3, 2))}), r"exp_avg of params\['w'\] has dtype float64 and shape \(3, 2\)"),
        (gdm.Adam({"w": np.ones((2, 3), np.float32)}), r"has dtype float32"),
        (gdm.Adam({"v": np.ones((2, 3))}), r"parameter \"\['v'\]\" where"),
        (gdm.Adam({"w": np.ones((2, 3)), "b": np.ones(1)}), r"has \[2\] parameters"),
        (gdm.Adam([{"params": {"w": np.ones((2, 3))}, "name": "body"}]), "groups named"),
    ]:
        other.save(path)
        with pytest.raises(gdm.CheckpointError, match=message):
            optimizer.load(path)
        assert repr(optimizer.state_dict()) == before
    path.write_bytes(b"not one")
    with pytest.raises(gdm.CheckpointError):
        optimizer.load(path)
    with pytest.raises(FileNotFoundError):
        optimizer.load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "not one of gdm's"),
        ([], "not one of gdm's"),
        ({}, "not one of gdm's"),
        (3, "not one of gdm's"),
        ("state.safetensors", r"load\(\) reads files"),
        ({"state": {}, "param_groups": []}, r"gdm\.torch\.load_state_dict"),
    ],
    ids=["None", "a list", "empty", "a number", "a file's name", "torch's"],
)
def test_what_is_no_state_is_refused(backend, bad, message):
    """With a hint where one is known."""
    for optimizer in (gdm.SGD(three_arrays()), gdm.Adam(np.ones(2))):
        with pytest.raises(gdm.CheckpointError, match=message):
            optimizer.load_state_dict(bad)
