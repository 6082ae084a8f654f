"""Checkpoint files for tests: what they hold, and how to take one apart and put it together."""

from __future__ import annotations

import hashlib
import json
import os
import struct

import numpy as np
import pytest

import gdm
from gdm._checkpoint import load, save

NAN = np.array([0x7FC00001, 0xFF812345, 0x7F800001], np.uint32).view(np.float32)  # quiet, negative, signalling


def tree(scale=1.0):
    """Like an optimizer's state, and every type besides."""
    velocity = {"velocity": np.arange(6, dtype=np.float32).reshape(2, 3) * scale}
    exotic = {
        "0-d": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "nan": NAN,
        "bytes": np.arange(5, dtype=np.uint8),
        "counts": np.array([-(2**63), 2**63 - 1]),
    }
    return {
        "format": 1,
        "optimizer": "SGD",
        "groups": [
            {
                "options": {"lr": 0.1 * scale, "nesterov": True, "form": "torch", "decay": None},
                "step": 12,
                "params": [
                    {"name": "[0]", "started": True, "state": velocity},
                    {"name": "größe", "started": False, "state": {}},
                    {"name": "exotic", "started": True, "state": exotic},
                ],
            }
        ],
    }


def assert_same(a, b):
    """The same types, order and bits; a tuple has become a list."""
    assert type(a) is (list if type(b) is tuple else type(b))
    if isinstance(b, dict):
        assert list(a) == list(b)
        for key in b:
            assert_same(a[key], b[key])
    elif isinstance(b, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(b, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        assert a.flags.writeable
        assert a.flags.aligned
    elif isinstance(b, float):
        assert struct.pack("d", a) == struct.pack("d", b) or (a != a and b != b)
    else:
        assert a == b


def assert_alone(path):
    """Nothing has been left beside the file."""
    assert os.listdir(path.parent) == [path.name]


def assert_saves_through(link, target):
    """Saving to a symbolic link replaces the file that it leads to, and the link stays."""
    for scale in (1.0, 2.0):  # leading nowhere, and to a file
        save(link, tree(scale))
        assert link.is_symlink()
        assert not target.is_symlink()
        assert_same(load(link), tree(scale))
        assert_alone(target)


def refused(path, data, match=None):
    """The file of these bytes is refused, by name."""
    path.write_bytes(data)
    with pytest.raises(gdm.CheckpointError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)


def header_and_payload(data):
    """The header and the payload of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def file_of(header, payload):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + payload


def metadata_of(content, version="1"):
    """The metadata for this JSON, its checksum in order."""
    text = content if isinstance(content, str) else json.dumps(content)
    return {"gdm": f"{version} {hashlib.sha256(text.encode()).hexdigest()} {text}"}
