"""Checkpoint files: every tree comes back to the bit, every damage is found, and a save is whole or never was."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

import gdm
from gdm import _checkpoint
from gdm._checkpoint import load, save
from support import at_once, python

KILLS = int(os.environ.get("GDM_KILLS", "60"))
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


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.safetensors"


@pytest.fixture
def saved(path):
    save(path, tree())
    return path


def assert_alone(path):
    """Nothing has been left beside the file."""
    assert os.listdir(path.parent) == [path.name]


def refused(path, data, match=None):
    """The file of these bytes is refused, by name."""
    path.write_bytes(data)
    with pytest.raises(gdm.CheckpointError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)


def parts(data):
    """The header and the payload of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, payload):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + payload


def sealed(content, version="1"):
    """The metadata for this JSON, its checksum in order."""
    text = content if isinstance(content, str) else json.dumps(content)
    return {"gdm": f"{version} {hashlib.sha256(text.encode()).hexdigest()} {text}"}


# ---- round trips ----


def test_round_trip(saved):
    assert_same(load(saved), tree())
    assert_same(load(str(saved)), tree())
    assert_alone(saved)


def test_state_of_an_optimizer(path):
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trees")


@settings(max_examples=200, deadline=None)
@given(tree=TREES)
def test_any_tree(folder, tree):
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


def test_byte_order(path):
    save(path, {"x": np.arange(3.0).astype(">f8")})
    assert_same(load(path), {"x": np.arange(3.0)})


def test_views_and_shared_memory(path):
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
        ([np.zeros(2, complex)], r"tree\[0\] has dtype complex128; expected float32, float64, int64 or uint8"),
        ([np.zeros(2, object)], r"tree\[0\] has dtype object"),
        ([np.ma.zeros(2)], r"tree\[0\] must be .* not MaskedArray"),
    ],
)
def test_what_cannot_be_saved(saved, bad, message):
    before = saved.read_bytes()
    with pytest.raises(TypeError, match=message):
        save(saved, bad)
    assert saved.read_bytes() == before
    assert_alone(saved)


def test_without_safetensors(saved, monkeypatch):
    monkeypatch.setitem(os.sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'gdm-optim[checkpoint]'")):
        save(saved, {})
    assert_same(load(saved), tree())  # this needs none


def test_memory(path):
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


# ---- damage ----


def test_cut_off(saved):
    data = saved.read_bytes()
    for length in range(len(data)):
        refused(saved, data[:length])


def test_every_flip(saved):
    """Each byte of the file, the header's length, the header and the tensors: one bit of it, in turn, and all."""
    data = saved.read_bytes()
    for i, byte in enumerate(data):
        for flip in (1 << i % 8, 0xFF):
            refused(saved, data[:i] + bytes([byte ^ flip]) + data[i + 1 :])


def test_every_other_value_of_every_byte(path):
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
def test_a_key_that_is_there_twice(path, name):
    """JSON readers take the last one. Other readers might take the first, and see another tensor."""
    save(path, {"a": np.arange(2.0)})
    header, payload = parts(path.read_bytes())
    text = json.dumps(header)
    assert text.count(f'"{name}": ') == 1
    refused(path, joined(text.replace(f'"{name}": ', f'"{name}": 1, "{name}": '), payload), f"the key '{name}' twice")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_damage(folder, data):
    save(folder / "tree", tree())
    good = (folder / "tree").read_bytes()
    begin = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(begin, min(len(good), begin + 64)))
    bad = good[:begin] + data.draw(st.binary(max_size=64)) + good[end:]
    if bad != good:
        refused(folder / "tree", bad)


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**8, 10**8 + 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
def test_length_of_the_header(saved, length):
    data = length.to_bytes(8, "little") + saved.read_bytes()[8:]
    tracemalloc.start()
    try:
        refused(saved, data, f"of {len(data)} bytes, {length} are its header")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_length_of_the_header_of_a_large_file(path):
    with path.open("wb") as file:
        file.write((10**9).to_bytes(8, "little"))
        file.truncate(2 * 10**9)  # without a block on the disk
    with pytest.raises(gdm.CheckpointError, match="1000000000 are its header"):
        load(path)


@pytest.mark.parametrize("more", [b"\0", b" ", b"more", bytes(100_000)])
def test_bytes_at_the_end(saved, more):
    data = saved.read_bytes()
    refused(saved, data + more, f"{len(data) + len(more)} bytes long; expected {len(data)}")


def test_missing_and_unknown_tensors(saved):
    header, payload = parts(saved.read_bytes())
    name = list(header)[-1]
    without = {key: value for key, value in header.items() if key != name}
    refused(saved, joined(without, payload), re.escape(f"tensors missing ['{name}'], unknown []"))
    another = {**header, "z": {"dtype": "U8", "shape": [0], "data_offsets": [len(payload), len(payload)]}}
    refused(saved, joined(another, payload), re.escape("tensors missing [], unknown ['z']"))
    refused(saved, joined({**without, "z": header[name]}, payload), "missing .* unknown")


@pytest.mark.parametrize(
    "change", [{"dtype": "F64"}, {"dtype": "I32"}, {"shape": [6]}, {"shape": []}, {"data_offsets": [0, 0]}, {"more": 1}]
)
def test_changed_tensors(saved, change):
    header, payload = parts(saved.read_bytes())
    name = "groups.0.params.0.state.velocity"
    refused(saved, joined({**header, name: {**header[name], **change}}, payload), f"tensor '{name}' is .*; expected")


def test_a_file_that_gets_shorter_while_it_is_read(path, monkeypatch):
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


def test_swapped_tensors(saved):
    """Two tensors of the same dtype and shape, each in the place of the other."""
    save(saved, {"a": np.zeros(4), "b": np.ones(4)})
    header, payload = parts(saved.read_bytes())
    refused(saved, joined(header, payload[32:] + payload[:32]), "tensor 'a' does not match its checksum")
    header["a"], header["b"] = header["b"], header["a"]
    refused(saved, joined(header, payload), "tensor 'a' is")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"gdm": "x", "format": "pt"}])
def test_file_of_another_program(path, metadata):
    save_file({"x": np.zeros(3)}, path, metadata=metadata)
    refused(path, path.read_bytes(), "is not a checkpoint of gdm's: its metadata must have one entry, 'gdm'")


@pytest.mark.parametrize("version", ["0", "2", "1.5", "10", "", "x"])
def test_other_format_version(saved, version):
    header, payload = parts(saved.read_bytes())
    header["__metadata__"]["gdm"] = version + header["__metadata__"]["gdm"].removeprefix("1")
    refused(saved, joined(header, payload), re.escape(f"has format version {version!r}; this gdm reads '1'"))


METADATA = [None, 1, "x", [], {"gdm": None}, {"gdm": 1}, {"gdm": "\ud800"}]
METADATA += [sealed(x) for x in (None, 1, [], {}, "[" * 100_000, "{", {"tensors": []}, {"tensors": {}})]


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{}", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"NaN"]
    + [json.dumps({"__metadata__": metadata}).encode() for metadata in METADATA],
    ids=lambda text: repr(text[-30:]),
)
def test_header_of_anything(path, text):
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
def test_consistent_nonsense(folder, data):
    """A file whose checksums are in order, but not what they are of: it is loaded or refused, nothing else."""
    path = folder / "tree"
    save(path, {"a": [np.arange(3.0)], "b": np.ones(2, np.float32)})
    header, payload = parts(path.read_bytes())
    content = json.loads(header["__metadata__"]["gdm"].split(" ", 2)[2])
    name = data.draw(st.sampled_from([*content["tensors"]]))
    tensor = content["tensors"][name]
    key = data.draw(st.sampled_from([*tensor]))
    tensor[key] = data.draw(JSON)
    if key in header[name]:
        header[name][key] = tensor[key]
    if data.draw(st.booleans()):
        content["tree"] = data.draw(JSON)
    path.write_bytes(joined({**header, "__metadata__": sealed(content)}, payload))
    with contextlib.suppress(gdm.CheckpointError):
        load(path)


@pytest.mark.parametrize("shape", [[3000, 3000, "long"], [3000, [0], 3000], [-2, -3], [True, 6], [6.0], {"6": 6}, "6"])
def test_a_shape_that_is_no_shape(path, shape):
    """The product of numbers and a text or a list would be a very long one."""
    save(path, {"a": np.arange(6.0)})
    header, payload = parts(path.read_bytes())
    content = json.loads(header["__metadata__"]["gdm"].split(" ", 2)[2])
    content["tensors"]["a"]["shape"] = header["a"]["shape"] = shape
    tracemalloc.start()
    try:
        refused(path, joined({**header, "__metadata__": sealed(content)}, payload), "shape of tensor 'a' is")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_not_a_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


# ---- saving is all or nothing ----


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), MemoryError()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["safetensors.numpy.save_file", "os.chmod", "os.fsync", "os.replace"])
def test_failure(saved, monkeypatch, where, error):
    def fail(*args, **kwargs):
        raise error

    before = saved.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(type(error)):
            save(saved, tree(2.0))
    assert saved.read_bytes() == before
    assert_alone(saved)


def test_what_was_not_written_well_replaces_nothing(saved, monkeypatch):
    before = saved.read_bytes()

    def half(tensors, filename, metadata):
        save_file(tensors, filename, metadata)
        os.truncate(filename, os.path.getsize(filename) - 1)

    monkeypatch.setattr("safetensors.numpy.save_file", half)
    with pytest.raises(gdm.CheckpointError, match="bytes long; expected"):
        save(saved, tree(2.0))
    assert saved.read_bytes() == before
    assert_alone(saved)


def test_order_of_syncs(saved, monkeypatch):
    """The file is on the disk before it takes the old one's place, and its name before save returns."""
    events = []

    def fsync(handle, fsync=os.fsync):
        events.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else os.fstat(handle).st_ino)
        fsync(handle)

    def replace(old, new, replace=os.replace):
        events.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save(saved, tree(2.0))
    assert events == [saved.stat().st_ino, "replace", "directory"]


def test_directory_that_cannot_be_synced(saved, monkeypatch):
    def fsync(handle, fsync=os.fsync):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    save(saved, tree(2.0))
    assert_same(load(saved), tree(2.0))


def test_full_disk(saved):
    """A limit on the size of files, at any place of the file: the old one stays, and nothing beside it."""
    before = saved.read_bytes()
    python(
        f"""
        import errno, os, resource
        import numpy as np
        from gdm._checkpoint import load, save

        path, new = {str(saved)!r}, {{"x": np.arange(200_000.0)}}
        save(path + ".whole", new)
        size = os.path.getsize(path + ".whole")
        os.unlink(path + ".whole")
        for limit in [0, 1, 8, 100, 1000, 4096, 10_000, size // 2, size - 1]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                save(path, new)
            except OSError as error:
                assert "could not be written" in str(error) and path in str(error), error
                assert (error.errno, error.filename) == (errno.EFBIG, path), error
            else:
                raise AssertionError(limit)
            assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
        """
    )
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    ("message", "number"),
    [("I/O error: No space left on device (os error 28)", errno.ENOSPC), ("something new", errno.EIO)],
)
def test_an_error_of_safetensors_is_an_oserror_with_a_number(saved, monkeypatch, message, number):
    def fail(*args, **kwargs):
        raise safetensors.SafetensorError(message)

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="could not be written") as caught:
        save(saved, tree(2.0))
    assert (caught.value.errno, caught.value.filename) == (number, str(saved))
    assert message in str(caught.value.__cause__)


def test_kills(path):
    """A process that saves two states in turn is killed at any moment: there is always one of them, whole."""
    print(
        python(
            f"""
            import os, random, re, shutil, signal, time
            import numpy as np
            import safetensors.numpy
            from gdm._checkpoint import load, save

            path = {str(path)!r}
            folder, name = os.path.split(path)
            states = [{{"k": k, "x": np.full(50_000, float(k)), "y": [np.full(7, k, np.int64)]}} for k in range(2)]
            save(path, states[0])
            seen, interrupted = [0, 0], 0
            for _ in range({KILLS}):
                child = os.fork()
                if child == 0:
                    while True:
                        save(path, states[1])
                        save(path, states[0])
                time.sleep(random.uniform(0.002, 0.08))
                os.kill(child, signal.SIGKILL)
                assert os.waitpid(child, 0)[1] == signal.SIGKILL  # and not an error of its own
                found = load(path)
                state = states[found["k"]]
                assert found.keys() == state.keys() and len(found["y"]) == 1
                assert found["x"].tobytes() == state["x"].tobytes() and found["x"].dtype == state["x"].dtype
                assert found["y"][0].tobytes() == state["y"][0].tobytes()
                seen[found["k"]] += 1
                left = [other for other in os.listdir(folder) if other != name]
                interrupted += bool(left)
                for other in left:
                    assert re.fullmatch(re.escape(name) + r"[.]\\w{{8}}[.]gdm-tmp", other), other
                    shutil.rmtree(os.path.join(folder, other))
            assert all(seen) and interrupted, (seen, interrupted)
            print({KILLS}, "kills,", interrupted, "in the middle of a save; each state found", seen, "times")
            """,
            timeout=300 + KILLS,
        )
    )


def test_threads_saving_at_once(path):
    at_once(lambda k: [save(path, tree(float(k))) for _ in range(10)], 4)
    assert any(load(path)["groups"][0]["options"]["lr"] == 0.1 * k for k in range(4))
    assert_alone(path)


# ---- what kind of file ----


def test_permissions(path):
    done = python(
        f"""
        import os
        from gdm._checkpoint import save

        path = {str(path)!r}
        def mode():
            return oct(os.stat(path).st_mode & 0o7777)

        os.umask(0o027)
        save(path, {{}})
        print(mode())
        for kept in (0o600, 0o664, 0o777):
            os.chmod(path, kept)
            save(path, {{}})
            print(mode())
        """
    )
    assert done.split() == ["0o640", "0o600", "0o664", "0o777"]


def test_symbolic_link(tmp_path):
    """The file that it leads to is replaced, where it is."""
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "state", tmp_path / "link"
    link.symlink_to("there/state")
    for scale in (1.0, 2.0):  # leading nowhere, and to a file
        save(link, tree(scale))
        assert link.is_symlink()
        assert not target.is_symlink()
        assert_same(load(target), tree(scale))
        assert_alone(target)
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        save(loop, {})
    assert loop.is_symlink()


def test_only_files_are_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError, match="not a regular file"):
        save(tmp_path / "folder", {})
    with pytest.raises(OSError, match="not a regular file"):
        save(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "nothing" / "state", {})
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_read_only_file(saved, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do anything
    with pytest.raises(PermissionError, match="read-only"):
        save(saved, {})
    assert_same(load(saved), tree())


@pytest.mark.parametrize(
    "name", ["x" * 255, "größe ü", os.fsdecode(b"\xff\xfe"), "new\nline", "\N{GRINNING FACE}" * 60]
)
def test_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save(name, tree())
    assert_same(load(name), tree())
    assert_alone(tmp_path / name)


def test_wrong_path():
    with pytest.raises(TypeError, match="PathLike"):
        save(3, {})
    with pytest.raises(TypeError, match="PathLike"):
        load(3)
