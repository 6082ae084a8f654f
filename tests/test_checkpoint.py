"""Checkpoint files: every tree comes back to the bit, and what no file can hold is refused."""

from __future__ import annotations

import os
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gdm
from checkpoint_files import assert_alone, assert_same, tree
from gdm._checkpoint import load, save
from support import NO_SAFETENSORS

safetensors = pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
load_file = pytest.importorskip("safetensors.numpy").load_file


def test_a_tree_comes_back(saved):
    assert_same(load(saved), tree())
    assert_same(load(str(saved)), tree())
    assert_alone(saved)


def test_the_state_of_an_optimizer_comes_back(path):
    params = [np.ones(3, np.float32), np.ones((2, 2), order="F")]
    opt = gdm.SGD(params, lr=0.1, momentum=0.9)
    opt.step([np.full(3, 0.5, np.float32), np.full((2, 2), 0.5, order="F")])
    save(path, opt.state_dict())
    assert_same(load(path), opt.state_dict())


ARRAYS = st.builds(
    lambda dtype, shape, bits, order: np.asarray(
        np.resize(np.frombuffer(bits, np.uint8), np.prod((*shape, dtype.itemsize), dtype=int))
        .view(dtype)
        .reshape(shape),
        order=order,
    ),
    st.sampled_from([np.dtype(name) for name in ("float32", "float64", "int64", "uint8")]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    st.binary(min_size=1, max_size=64),
    st.sampled_from("CF"),
)


KEYS = st.text(max_size=8) | st.sampled_from(
    ["", ".", "a.b", "a", "b", "%2E", "a%2Eb", "__metadata__", "%5F_metadata__"]
)


TREES = st.recursive(
    ARRAYS | st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=4) | st.tuples(x, x) | st.dictionaries(KEYS, x, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(tree=TREES)
def test_any_tree_comes_back(folder, tree):
    save(folder / "tree", tree)
    assert_same(load(folder / "tree"), tree)
    assert_alone(folder / "tree")
    load_file(folder / "tree")


@settings(max_examples=100, deadline=None)
@given(keys=st.lists(st.lists(KEYS | st.text("._%_metadata", max_size=12), min_size=1, max_size=3), max_size=6))
def test_no_two_tensors_share_a_name(folder, keys):
    tree = {}
    for k, path in enumerate(keys):
        *parents, last = path
        place = tree
        for key in parents:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                break
        else:
            place[last] = np.array(float(k))
    save(folder / "tree", tree)
    assert_same(load(folder / "tree"), tree)


def test_other_tools_read_the_tensors(saved):
    tensors = load_file(saved)
    states = [param["state"] for param in tree()["groups"][0]["params"]]
    expected = {f"groups.0.params.{i}.state.{name}": x for i, state in enumerate(states) for name, x in state.items()}
    assert_same(dict(sorted(tensors.items())), dict(sorted(expected.items())))
    with safetensors.safe_open(saved, "np") as file:
        assert list(file.metadata()) == ["gdm"]


def test_the_same_tree_makes_the_same_bytes(saved):
    data = saved.read_bytes()
    save(saved, tree())
    assert saved.read_bytes() == data


def test_arrays_of_another_byte_order_come_back_in_this_machines(path):
    save(path, {"x": np.arange(3.0).astype(">f8")})
    assert_same(load(path), {"x": np.arange(3.0)})


def test_views_and_arrays_that_share_memory_come_back(path):
    x = np.arange(12.0).reshape(3, 4)
    x.flags.writeable = False
    save(path, [x, x, x[::2, ::-1], x.T, np.broadcast_to(x[0], (2, 4))])
    assert_same(load(path), [x, x, x[::2, ::-1].copy(), x.T.copy(), np.stack([x[0], x[0]])])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": [0, {1, 2}]}, r"tree\['a'\]\[1\] must be .* not set"),
        ({"a": {1: 2}}, r"tree\['a'\] has the key 1; expected a str"),
        (np.float32(1), "tree must be .* not float32"),
        (b"abc", "tree must be .* not bytes"),
        ([np.zeros(2, complex)], r"tree\[0\] has dtype complex128; expected float32, float64"),
        ([np.zeros(2, object)], r"tree\[0\] has dtype object"),
        ([np.ma.zeros(2)], r"tree\[0\] must be .* not MaskedArray"),
    ],
)
def test_what_cannot_be_saved_is_refused(saved, bad, message):
    before = saved.read_bytes()
    with pytest.raises(TypeError, match=message):
        save(saved, bad)
    assert saved.read_bytes() == before
    assert_alone(saved)


def test_loading_needs_no_safetensors(saved, monkeypatch):
    monkeypatch.setitem(os.sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'gdm-optim[checkpoint]'")):
        save(saved, {})
    assert_same(load(saved), tree())  # this needs none


def test_loading_takes_the_memory_of_the_arrays_and_saving_none(path):
    """Loading takes the memory of the arrays, saving none."""
    x, spare = np.ones(4_000_000), 3 << 20
    tracemalloc.start()
    try:
        if hasattr(safetensors, "TensorSpec"):  # older ones make a copy
            save(path, {"x": x})
            assert tracemalloc.get_traced_memory()[1] < spare
        else:
            save(path, {"x": x})
        tracemalloc.reset_peak()
        base = tracemalloc.get_traced_memory()[0]
        load(path)
        assert tracemalloc.get_traced_memory()[1] - base < x.nbytes + spare
    finally:
        tracemalloc.stop()


def test_a_path_is_text_or_a_path():
    with pytest.raises(TypeError, match="PathLike"):
        save(3, {})
    with pytest.raises(TypeError, match="PathLike"):
        load(3)
