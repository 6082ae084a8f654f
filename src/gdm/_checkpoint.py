"""Checkpoint files: a tree of plain values and arrays, saved whole or not at all, and loaded to the bit or not at all.

A checkpoint is a safetensors file. Each array is a tensor, named by its path in the tree: ``groups.0.state.velocity``.
The only entry of the metadata, ``gdm``, is ``<version> <SHA-256 of the JSON> <JSON>``. The JSON holds the rest of the
tree, with null in the place of each array, and for each tensor its path, dtype, shape and SHA-256.
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
import stat
import tempfile
from io import BufferedReader
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np

from ._checks import Array
from .errors import CheckpointError

StrPath = str | os.PathLike[str]

VERSION = "1"
DTYPES: dict[str, np.dtype[Any]] = {  # as they lie in the file
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
MAX_HEADER = 100_000_000  # bytes; safetensors reads no longer one
CHUNK = 1 << 20  # bytes, hashed while they are in the cache


def save(path: StrPath, tree: Any) -> None:
    """Puts the tree into the file at once: whatever happens meanwhile, there is the old file or the new one.

    When it returns, the file is on the disk. It has the permissions of the file that it replaces, or those of any new
    file. A symbolic link stays one: the file it leads to is replaced. While it is written, the new file lies beside the
    old one in a directory ``<name>.<random>.gdm-tmp``, which only a killed process leaves behind.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    tree : dict, list, tuple, str, bool, int, float, None or array
        What to save, nested as need be. Keys are strings; arrays are of float32, float64, int64 or uint8.

    Raises
    ------
    TypeError
        If something else is in the tree; the message says where.
    OSError
        If the file cannot be written, or may not be: something else than a file is there, or it is read-only.
    ImportError
        If there is no safetensors.
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
    # A directory, since safetensors itself may write to a file of another name first, and leave that one behind.
    with tempfile.TemporaryDirectory(".gdm-tmp", f"{name[:40]}.", directory, ignore_cleanup_errors=True) as own:
        new = os.path.join(own, "new")
        with open(new, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) if mode is None else mode
        try:
            save_file(arrays, new, metadata={"gdm": metadata})
        except SafetensorError as error:
            raise OSError(f"{target} could not be written: {error}") from error
        with open(new, "r+b") as file:
            _read_header(file)  # what would not be read must not replace what can be
            os.chmod(new, mode)
            os.fsync(file.fileno())
        os.replace(new, target)
    # Where a directory cannot be synced, a power failure may bring the old file back: whole, too.
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(path: StrPath) -> Any:
    """The tree in the file, tuples as lists. It needs no safetensors, and reads each array once, into its own memory.

    Raises
    ------
    gdm.CheckpointError
        If the file is damaged in any way, or is not one that :func:`save` of this version wrote.
    OSError
        If it cannot be read: it is not there, may not be read, or is a directory.
    """
    with open(os.fsdecode(path), "rb") as file:
        try:
            content, tensors = _read_header(file)
            for name, tensor in tensors.items():
                keys = ["tree", *tensor["path"]]
                functools.reduce(operator.getitem, keys[:-1], content)[keys[-1]] = _read_tensor(file, name, tensor)
            return content["tree"]
        except (CheckpointError, OSError, MemoryError):
            raise
        except Exception as error:  # whatever reading something else than a checkpoint may come to
            raise CheckpointError(
                f"{file.name} is damaged or no checkpoint: {type(error).__name__}: {error}"
            ) from error


def _pack(tree: Any) -> tuple[dict[str, Array], str]:
    """The tensors by name, and the metadata."""
    found: dict[tuple[str | int, ...], Array] = {}
    rest = _take_arrays(tree, (), found)
    codes = {dtype: code for code, dtype in DTYPES.items()}
    arrays, tensors = {}, {}
    for path, array in found.items():
        name = ".".join(quote(str(key), errors="surrogatepass").replace(".", "%2E") for key in path)
        name = name.replace("__metadata__", "%5F_metadata__")  # the name that is taken
        arrays[name] = array
        digest = hashlib.sha256(_bytes(array)).hexdigest()
        tensors[name] = {"path": path, "dtype": codes[array.dtype], "shape": array.shape, "sha256": digest}
    text = json.dumps({"tree": rest, "tensors": tensors}, separators=(",", ":"))
    return arrays, f"{VERSION} {hashlib.sha256(text.encode()).hexdigest()} {text}"


def _take_arrays(value: Any, path: tuple[str | int, ...], found: dict[tuple[str | int, ...], Array]) -> Any:
    """The value with None in the place of each array, which goes to ``found``: as files hold it, in C order."""
    label = "tree" + "".join(f"[{key!r}]" for key in path)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{label} has the key {key!r}; expected a str")
        return {key: _take_arrays(x, (*path, key), found) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_arrays(x, (*path, i), found) for i, x in enumerate(value)]
    if type(value) is np.ndarray:
        dtype = value.dtype.newbyteorder("<")
        if dtype not in DTYPES.values():
            raise TypeError(f"{label} has dtype {value.dtype}; expected float32, float64, int64 or uint8")
        found[path] = np.asarray(value, dtype, order="C")
        return None
    if value is not None and not isinstance(value, (str, bool, int, float)):
        raise TypeError(
            f"{label} must be a dict, list, tuple, str, bool, int, float, None or NumPy array, "
            f"not {type(value).__name__}"
        )
    return value


def _permissions(target: str) -> int | None:
    """Those of the file that is to be replaced, if there is one; it must be a file, and may not be read-only."""
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
    """The JSON, its tree still without arrays, and what it says of the tensors, in the order in which they lie."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MAX_HEADER):
        raise CheckpointError(
            f"{file.name} is cut off or no checkpoint: of {size} bytes, {length} are its header (at most {MAX_HEADER})"
        )
    header = json.loads(file.read(length).decode())
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {"gdm"}:
        raise CheckpointError(f"{file.name} is not a checkpoint of gdm's: its metadata must have one entry, 'gdm'")
    version, _, rest = metadata["gdm"].partition(" ")
    digest, _, text = rest.partition(" ")
    if version != VERSION:
        raise CheckpointError(f"{file.name} has format version {version!r}; this gdm reads {VERSION!r}")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise CheckpointError(f"{file.name} is damaged: its metadata does not match its checksum")
    content = json.loads(text)
    tensors = content["tensors"]
    if header.keys() != tensors.keys():
        missing, unknown = sorted(tensors.keys() - header.keys()), sorted(header.keys() - tensors.keys())
        raise CheckpointError(f"{file.name} is damaged: tensors missing {missing}, unknown {unknown}")
    end = 0
    for name, found in header.items():
        dtype, shape = tensors[name]["dtype"], tensors[name]["shape"]
        begin, end = end, end + DTYPES[dtype].itemsize * math.prod(shape)
        expected = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        if found != expected:
            raise CheckpointError(f"{file.name} is damaged: tensor {name!r} is {found}; expected {expected}")
    if size != 8 + length + end:
        raise CheckpointError(f"{file.name} is damaged: {size} bytes long; expected {8 + length + end}")
    return content, {name: tensors[name] for name in header}


def _read_tensor(file: BufferedReader, name: str, tensor: dict[str, Any]) -> Array:
    """The tensor that begins where the file is."""
    array: Array = np.empty(tensor["shape"], DTYPES[tensor["dtype"]])
    memory, digest = _bytes(array), hashlib.sha256()
    for start in range(0, len(memory), CHUNK):
        part = memory[start : start + CHUNK]
        digest.update(part[: file.readinto(part)])
    if digest.hexdigest() != tensor["sha256"]:
        raise CheckpointError(f"{file.name} is damaged: tensor {name!r} does not match its checksum")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _bytes(array: Array) -> memoryview:
    """The memory of an array in C order."""
    return array.reshape(-1).view(np.uint8).data
