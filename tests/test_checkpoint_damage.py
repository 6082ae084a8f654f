"""Damaged and foreign checkpoint files: each is refused, by name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdm
from checkpoint_files import assert_same, file_of, header_and_payload, metadata_of, refused, tree
from gdm import _checkpoint
from gdm._checkpoint import load, save
from support import NO_SAFETENSORS

save_file = pytest.importorskip("safetensors.numpy", reason=NO_SAFETENSORS).save_file


def test_a_file_cut_off_anywhere_is_refused(saved):
    data = saved.read_bytes()
    for length in range(len(data)):
        refused(saved, data[:length])


def test_a_flipped_bit_anywhere_is_found(saved):
    """Each byte of the file, the header's length, the header and the tensors: one bit of it, in turn, and all."""
    data = saved.read_bytes()
    for i, byte in enumerate(data):
        for flip in (1 << i % 8, 0xFF):
            refused(saved, data[:i] + bytes([byte ^ flip]) + data[i + 1 :])


def test_any_other_byte_anywhere_is_found(path):
    """Also where JSON allows several ways to write the same thing, such as the padding behind the header."""
    tree = {"a": np.arange(2, dtype=np.float32), "b": [1, "more", None]}
    save(path, tree)
    data = path.read_bytes()
    assert b"}}  " in data
    with path.open("r+b") as file:
        for i, byte in enumerate(data):
            for other in set(range(256)) - {byte}:
                os.pwrite(file.fileno(), bytes([other]), i)
                with pytest.raises(gdm.CheckpointError):
                    load(path)
            os.pwrite(file.fileno(), bytes([byte]), i)
    assert_same(load(path), tree)


@pytest.mark.parametrize("name", ["__metadata__", "a", "shape"])
def test_a_key_that_is_there_twice_is_refused(path, name):
    """JSON readers take the last one. Other readers might take the first, and see another tensor."""
    save(path, {"a": np.arange(2.0)})
    header, payload = header_and_payload(path.read_bytes())
    text = json.dumps(header)
    assert text.count(f'"{name}": ') == 1
    refused(path, file_of(text.replace(f'"{name}": ', f'"{name}": 1, "{name}": '), payload), f"the key '{name}' twice")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_damage_is_found(folder, data):
    save(folder / "tree", tree())
    good = (folder / "tree").read_bytes()
    begin = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(begin, min(len(good), begin + 64)))
    bad = good[:begin] + data.draw(st.binary(max_size=64)) + good[end:]
    if bad != good:
        refused(folder / "tree", bad)


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**8, 10**8 + 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_wrong_length_of_the_header_takes_no_memory(saved, length):
    data = length.to_bytes(8, "little") + saved.read_bytes()[8:]
    tracemalloc.start()
    try:
        refused(saved, data, f"its header would have {length} bytes .* all of it has {len(data)}")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_header_may_end_with_the_file_and_not_later(path):
    save(path, {"a": 1})
    data = path.read_bytes()
    length = len(data) - 8
    assert data[:8] == length.to_bytes(8, "little")
    assert load(path) == {"a": 1}
    says = f"header would have {length + 1} bytes .* all of it has {len(data)}"
    refused(path, (length + 1).to_bytes(8, "little") + data[8:], says)


def test_a_header_longer_than_allowed_is_refused_in_a_large_file(path):
    with path.open("wb") as file:
        file.write((10**9).to_bytes(8, "little"))
        file.truncate(2 * 10**9)  # without a block on the disk
    with pytest.raises(gdm.CheckpointError, match="its header would have 1000000000 bytes"):
        load(path)


def test_a_file_of_torchs_is_recognised(path):
    with zipfile.ZipFile(path, "w") as archive:  # as torch.save makes it
        archive.writestr("archive/data.pkl", bytes(100))
    with pytest.raises(gdm.CheckpointError, match=r"is a zip archive.*use torch\.load and gdm\.torch\.load_state_dict"):
        load(path)


@pytest.mark.parametrize("more", [b"\0", b" ", b"more", bytes(100_000)])
def test_bytes_after_the_end_are_refused(saved, more):
    data = saved.read_bytes()
    refused(saved, data + more, f"{len(data) + len(more)} bytes long; expected {len(data)}")


def test_missing_and_unknown_tensors_are_named(saved):
    header, payload = header_and_payload(saved.read_bytes())
    name = list(header)[-1]
    without = {key: value for key, value in header.items() if key != name}
    refused(saved, file_of(without, payload), re.escape(f"tensors missing ['{name}'], unknown []"))
    another = {**header, "z": {"dtype": "U8", "shape": [0], "data_offsets": [len(payload), len(payload)]}}
    refused(saved, file_of(another, payload), re.escape("tensors missing [], unknown ['z']"))
    refused(saved, file_of({**without, "z": header[name]}, payload), "missing .* unknown")


@pytest.mark.parametrize(
    "change", [{"dtype": "F64"}, {"dtype": "I32"}, {"shape": [6]}, {"shape": []}, {"data_offsets": [0, 0]}, {"more": 1}]
)
def test_changed_descriptions_of_tensors_are_refused(saved, change):
    header, payload = header_and_payload(saved.read_bytes())
    name = "groups.0.params.0.state.velocity"
    refused(saved, file_of({**header, name: {**header[name], **change}}, payload), f"tensor '{name}' is .*; expected")


def test_a_file_that_gets_shorter_while_it_is_read_is_refused(path, monkeypatch):
    """What could not be read is not taken from memory, even if the right bytes happen to be there."""
    zeros = np.zeros(3 * _checkpoint.CHUNK, np.uint8)
    save(path, {"x": zeros})
    read_header = _checkpoint._read_header

    def read_header_and_cut(file):
        found = read_header(file)
        os.truncate(path, path.stat().st_size - zeros.size // 2)
        return found

    monkeypatch.setattr(_checkpoint, "_read_header", read_header_and_cut)
    monkeypatch.setattr(np, "empty", np.zeros)
    with pytest.raises(gdm.CheckpointError, match="tensor 'x' does not match its checksum"):
        load(path)


def test_too_little_memory_is_no_damage(saved, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(MemoryError):
        load(saved)


def test_swapped_tensors_are_found(saved):
    """Two tensors of the same dtype and shape, each in the place of the other."""
    save(saved, {"a": np.zeros(4), "b": np.ones(4)})
    header, payload = header_and_payload(saved.read_bytes())
    refused(saved, file_of(header, payload[32:] + payload[:32]), "tensor 'a' does not match its checksum")
    header["a"], header["b"] = header["b"], header["a"]
    refused(saved, file_of(header, payload), "tensor 'a' is")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"gdm": "x", "format": "pt"}])
def test_a_file_of_another_program_is_refused(path, metadata):
    save_file({"x": np.zeros(3)}, path, metadata=metadata)
    refused(path, path.read_bytes(), "is not a checkpoint of gdm's: its metadata must have one entry, 'gdm'")


@pytest.mark.parametrize("version", ["0", "2", "1.5", "10", "", "x"])
def test_another_format_version_is_refused(saved, version):
    header, payload = header_and_payload(saved.read_bytes())
    header["__metadata__"]["gdm"] = version + header["__metadata__"]["gdm"].removeprefix("1")
    refused(saved, file_of(header, payload), re.escape(f"has format version {version!r}; this gdm reads '1'"))


METADATA = [None, 1, "x", [], {"gdm": None}, {"gdm": 1}, {"gdm": "\ud800"}]
METADATA += [metadata_of(x) for x in (None, 1, [], {}, "[" * 100_000, "{", {"tensors": []}, {"tensors": {}})]


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{}", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"NaN"]
    + [json.dumps({"__metadata__": metadata}).encode() for metadata in METADATA],
    ids=lambda text: repr(text[-30:]),
)
def test_a_header_of_anything_else_is_refused(path, text):
    refused(path, len(text).to_bytes(8, "little") + text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from([*_checkpoint.DTYPES]),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_nonsense_with_right_checksums_is_loaded_or_refused(folder, data):
    """A file whose checksums are in order, but not what they are of: it is loaded or refused, nothing else."""
    path = folder / "tree"
    save(path, {"a": [np.arange(3.0)], "b": np.ones(2, np.float32)})
    header, payload = header_and_payload(path.read_bytes())
    content = json.loads(header["__metadata__"]["gdm"].split(" ", 2)[2])
    name = data.draw(st.sampled_from([*content["tensors"]]))
    tensor = content["tensors"][name]
    key = data.draw(st.sampled_from([*tensor]))
    tensor[key] = data.draw(JSON)
    if key in header[name]:
        header[name][key] = tensor[key]
    if data.draw(st.booleans()):
        content["tree"] = data.draw(JSON)
    path.write_bytes(file_of({**header, "__metadata__": metadata_of(content)}, payload))
    with contextlib.suppress(gdm.CheckpointError):
        load(path)


@pytest.mark.parametrize("shape", [[3000, 3000, "long"], [3000, [0], 3000], [-2, -3], [True, 6], [6.0], {"6": 6}, "6"])
def test_a_shape_that_is_no_shape_takes_no_memory(path, shape):
    """The product of numbers and a text or a list would be a very long one."""
    save(path, {"a": np.arange(6.0)})
    header, payload = header_and_payload(path.read_bytes())
    content = json.loads(header["__metadata__"]["gdm"].split(" ", 2)[2])
    content["tensors"]["a"]["shape"] = header["a"]["shape"] = shape
    tracemalloc.start()
    try:
        refused(path, file_of({**header, "__metadata__": metadata_of(content)}, payload), "shape of tensor 'a' is")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_is_no_file_cannot_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
