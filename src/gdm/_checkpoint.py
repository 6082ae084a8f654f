"""Saves a tree of plain values and arrays to a file, and loads it: completely and bit for bit, or not at all.

A checkpoint is a safetensors file. Each array is a tensor. The tensor's name is the array's path in the tree, such as
``groups.0.state.velocity``. The metadata has one entry, ``gdm``: ``<version> <SHA-256 of the JSON> <JSON>``. The JSON
holds the rest of the tree, with null in place of each array, and the path, dtype, shape and SHA-256 of each tensor.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import operator
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from io import BufferedReader
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np

from ._checks import Array
from .errors import CheckpointError

StrPath = str | os.PathLike[str]

VERSION = "1"
DTYPES: dict[str, np.dtype[Any]] = {  # names and byte order of safetensors
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),  # the bits of bfloat16, and the low bits of split parameters
    "U8": np.dtype("u1"),
}
MAX_HEADER = 100_000_000  # bytes; safetensors refuses longer headers
CHUNK = 1 << 20  # bytes; each chunk is hashed right after it is read, while it is in the cache


def save(path: StrPath, tree: Any) -> None:
    """Writes the tree to the file. At every moment either the complete old file or the complete new file is there.

    When this function returns, the new file is on the disk. It has the permissions of the old file, or the usual
    permissions of a new file. If the path is a symbolic link, the file that it points to is replaced. The new file is
    first written in a directory ``<name>.<random>.gdm-tmp`` beside the old one. Only a process that is killed, or a
    file system that fails, leaves this directory behind. Nothing reads it, so it may be deleted when no process saves.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    tree : dict, list, tuple, str, bool, int, float, None or array
        What to save, nested to any depth. Keys are strings. Arrays have one of the dtypes above.

    Raises
    ------
    TypeError
        If the tree holds something else. The message says where.
    OSError
        If the file cannot be written, is read-only, or is not a regular file. The message names it. The old file is
        still there.
    ImportError
        If safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError("saving a checkpoint needs safetensors: pip install 'gdm-optim[checkpoint]'") from error

    arrays, metadata = _pack(tree)
    target = os.path.realpath(os.fsdecode(path))
    mode = _permissions(target)
    directory, name = os.path.split(target)
    with _says("the checkpoint could not be written", target):
        # A directory, because safetensors may first write a file with another name. An error would leave it behind.
        temporary = tempfile.mkdtemp(".gdm-tmp", f"{name[:40]}.", directory)
        try:
            new = os.path.join(temporary, "new")
            with _open(new, "xb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) if mode is None else mode
            try:
                save_file(arrays, new, metadata={"gdm": metadata})
            except SafetensorError as error:
                # safetensors has no errno of its own. Its message ends with the system's number: "... (os error 28)".
                # On Windows that is no errno, and OSError translates it if it is the fourth argument.
                found = re.search(r"\(os error (\d+)\)", str(error))
                number = int(found[1]) if found else errno.EIO
                text = os.strerror(number) if found and os.name == "posix" else str(error)
                raise OSError(number, text, None, number if found else None) from error
            with _open(new, "r+b") as file:
                _read_header(file)  # a new file that cannot be read must not replace an old file that can
                os.chmod(new, mode)
                os.fsync(file.fileno())
            os.replace(new, target)
        finally:
            with contextlib.suppress(OSError):  # ignore_errors is not for errors of close()
                shutil.rmtree(temporary, ignore_errors=True)
    # Some file systems cannot sync a directory. There a power failure may bring the complete old file back.
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(path: StrPath) -> Any:
    """The tree that is in the file, with lists in place of tuples.

    This does not need safetensors. Each array is read once, directly into its own memory.

    Raises
    ------
    gdm.CheckpointError
        If the file is damaged, or was not written by :func:`save` of this format version.
    OSError
        If the file cannot be read.
    """
    name = os.fsdecode(path)
    with _says("the checkpoint could not be read", name), _open(name, "rb") as file:
        try:
            content, tensors = _read_header(file)
            for name, tensor in tensors.items():
                keys = ["tree", *tensor["path"]]
                functools.reduce(operator.getitem, keys[:-1], content)[keys[-1]] = _read_tensor(file, name, tensor)
            return content["tree"]
        except (CheckpointError, OSError, MemoryError, SystemError):  # of NumPy's where memory runs out
            raise
        except Exception as error:  # a file that is no checkpoint can fail in many ways
            raise CheckpointError(
                f"{file.name} is damaged or no checkpoint: {type(error).__name__}: {error}"
            ) from error


@contextlib.contextmanager
def _says(what: str, path: str) -> Iterator[None]:
    """Lets an OSError say what could not be done, and with which file. That of a read() or fsync() names no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}", path) from error.__cause__ or error


def _open(path: str, mode: str) -> Any:
    try:
        return open(path, mode)
    except RuntimeError as error:  # Python says so when there is no memory for the lock of a file
        raise MemoryError(f"no memory to open {path}: {error}") from error


def _pack(tree: Any) -> tuple[dict[str, Array], str]:
    """The tensors by name, and the text of the metadata."""
    found: dict[tuple[str | int, ...], Array] = {}
    rest = _split_off_arrays(tree, (), found)
    codes = {dtype: code for code, dtype in DTYPES.items()}
    arrays, tensors = {}, {}
    for path, array in found.items():
        name = ".".join(quote(str(key), errors="surrogatepass").replace(".", "%2E") for key in path)
        name = name.replace("__metadata__", "%5F_metadata__")  # safetensors uses this name itself
        arrays[name] = array
        digest = _sha256([_bytes(array)])
        tensors[name] = {"path": path, "dtype": codes[array.dtype], "shape": array.shape, "sha256": digest}
    text = json.dumps({"tree": rest, "tensors": tensors}, separators=(",", ":"))
    return arrays, f"{VERSION} {_sha256([text.encode()])} {text}"


def _split_off_arrays(value: Any, path: tuple[str | int, ...], found: dict[tuple[str | int, ...], Array]) -> Any:
    """The value with None in place of each array. The arrays go to ``found``, in C order and little-endian."""
    label = "tree" + "".join(f"[{key!r}]" for key in path)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{label} has the key {key!r}; expected a str")
        return {key: _split_off_arrays(x, (*path, key), found) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split_off_arrays(x, (*path, i), found) for i, x in enumerate(value)]
    if type(value) is np.ndarray:
        dtype = value.dtype.newbyteorder("<")
        if dtype not in DTYPES.values():
            raise TypeError(f"{label} has dtype {value.dtype}; expected {', '.join(str(x) for x in DTYPES.values())}")
        found[path] = np.asarray(value, dtype, order="C")
        return None
    if value is not None and not isinstance(value, (str, bool, int, float)):
        raise TypeError(
            f"{label} must be a dict, list, tuple, str, bool, int, float, None or NumPy array, "
            f"not {type(value).__name__}"
        )
    return value


def _permissions(target: str) -> int | None:
    """The permissions of the file that will be replaced, or None if there is no such file.

    Raises OSError if it is not a regular file, or read-only.
    """
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "not a regular file", target)
    if not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, "the file is read-only", target)
    return stat.S_IMODE(mode)


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON, whose tree has None in place of arrays, and its descriptions of the tensors, in the file's order."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if not 2 <= length <= min(size - 8, MAX_HEADER):
        if first.startswith(b"PK\3\4"):
            raise CheckpointError(
                f"{file.name} is a zip archive, as torch.save writes, and no checkpoint of gdm's; for a state of "
                "PyTorch's use torch.load and gdm.torch.load_state_dict"
            )
        raise CheckpointError(
            f"{file.name} is cut off or no checkpoint: its header would have {length} bytes (at most {MAX_HEADER} are "
            f"allowed), and all of it has {size}"
        )
    header_text = file.read(length)
    # safetensors fills the header up with spaces. JSON allows other white space there, so a changed byte would pass.
    if not header_text.rstrip(b" ").endswith(b"}"):
        raise CheckpointError(f"{file.name} is damaged or no checkpoint: its header does not end with }} and spaces")
    header = json.loads(header_text.decode(), object_pairs_hook=_object_of)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {"gdm"}:
        raise CheckpointError(f"{file.name} is not a checkpoint of gdm's: its metadata must have one entry, 'gdm'")
    version, _, rest = metadata["gdm"].partition(" ")
    digest, _, text = rest.partition(" ")
    if version != VERSION:
        raise CheckpointError(f"{file.name} has format version {version!r}; this gdm reads {VERSION!r}")
    if _sha256([text.encode()]) != digest:
        raise CheckpointError(f"{file.name} is damaged: its metadata does not match its checksum")
    content = json.loads(text)
    tensors = content["tensors"]
    if header.keys() != tensors.keys():
        missing, unknown = sorted(tensors.keys() - header.keys()), sorted(header.keys() - tensors.keys())
        raise CheckpointError(f"{file.name} is damaged: tensors missing {missing}, unknown {unknown}")
    end = 0
    for name, found in header.items():
        dtype, shape = tensors[name]["dtype"], tensors[name]["shape"]
        # Checked before the product: 3000 * 3000 * "text" would be a very long text.
        if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
            raise CheckpointError(f"{file.name} is damaged: the shape of tensor {name!r} is {shape!r}")
        begin, end = end, end + DTYPES[dtype].itemsize * math.prod(shape)
        expected = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        if found != expected:
            raise CheckpointError(f"{file.name} is damaged: tensor {name!r} is {found}; expected {expected}")
    if size != 8 + length + end:
        raise CheckpointError(f"{file.name} is damaged: {size} bytes long; expected {8 + length + end}")
    return content, {name: tensors[name] for name in header}


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary. A key that is there twice is an error, where Python would use the last one."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"a JSON object has the key {twice!r} twice")
    return values


def _read_tensor(file: BufferedReader, name: str, tensor: dict[str, Any]) -> Array:
    """The tensor that begins at the file's current position."""
    array: Array = np.empty(tensor["shape"], DTYPES[tensor["dtype"]])
    memory = _bytes(array)
    chunks = (memory[start : start + CHUNK] for start in range(0, len(memory), CHUNK))
    read = (chunk[: file.readinto(chunk)] for chunk in chunks)  # fewer bytes if the file has been cut off meanwhile
    if _sha256(read) != tensor["sha256"]:
        raise CheckpointError(f"{file.name} is damaged: tensor {name!r} does not match its checksum")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _sha256(chunks: Iterable[bytes | memoryview]) -> str:
    """The SHA-256 of all chunks together, as hexadecimal digits."""
    try:
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        return digest.hexdigest()
    except ValueError as error:  # Python before 3.14 says so when OpenSSL has no memory; nothing else can fail here
        raise MemoryError(f"no memory for a checksum: {error}") from error


def _bytes(array: Array) -> memoryview:
    """The memory of an array in C order."""
    return array.reshape(-1).view(np.uint8).data
