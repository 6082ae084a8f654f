"""Calls functions on arrays of any kind: NumPy arrays of all dtypes and strides, other buffers, DLPack by hand.

The compiled function and the reference must do the same: raise the same error, with the same text, and change nothing;
or write the same bits.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["gdm"]):
    import gdm

SIZE, MARGIN = 256, 64  # bytes that arrays may have, and those around them
DTYPES = ["<f4", "<f4", "<f8", ">f4", "<f2", "<i4", "<u1", "?", "<c8", "V4", "M8[s]", "f4,f4"]


# ---- DLPack: the structs of dlpack.h, version 0 ----------------------------------------------------------------------


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Exporter:
    """An array of another library: it has DLPack, and nothing else. It lives as long as its capsules are in use."""

    def __init__(self, tensor: Tensor, device: tuple[int, int], *keep: Any) -> None:
        self._tensor, self._device, self._keep = tensor, device, keep

    def __dlpack__(self, **_keywords: Any) -> Any:
        return new_capsule(ctypes.addressof(self._tensor), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def exporter(view: np.ndarray, data: atheris.FuzzedDataProvider) -> Any:
    """What NumPy would export, but for odd values in places."""
    shape = (ctypes.c_int64 * max(1, view.ndim))(*view.shape)
    steps = [stride // max(1, view.itemsize) for stride in view.strides]
    strides = (ctypes.c_int64 * max(1, view.ndim))(*steps)
    code = {"f": 2, "i": 0, "u": 1, "c": 5, "b": 6}.get(view.dtype.kind, 3)
    tensor = Tensor(view.ctypes.data, 1, 0, view.ndim, code, 8 * view.itemsize, 1, shape, strides, 0, None, None)
    odd = data.ConsumeIntInRange(0, 15)
    device = (1, 0)
    if odd == 0:
        tensor.strides = None  # in C order
    elif odd == 1:
        tensor.lanes = data.PickValueInList([0, 2, 4])
    elif odd == 2:
        tensor.bits = data.PickValueInList([0, 1, 7, 16, 24, 128])
    elif odd == 3:
        tensor.code = data.ConsumeIntInRange(0, 20)
    elif odd == 4:
        tensor.byte_offset, tensor.data = 8, view.ctypes.data - 8
    elif odd == 5:
        device = (data.ConsumeIntInRange(-1, 20), data.ConsumeIntInRange(-1, 3))
    elif odd == 6:
        tensor.device_type = data.ConsumeIntInRange(0, 20)
    elif odd == 7:
        tensor.ndim = 0
    return Exporter(tensor, device, view, shape, strides)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def array_of(memory: np.ndarray, data: atheris.FuzzedDataProvider, plain: int) -> Any:
    """An array in this memory: of four elements and float32 unless the input says something else."""
    how = data.ConsumeIntInRange(0, 31)
    dtype, shape, offset, strides = np.dtype("<f4"), (4,), 16 * plain, None
    if how & 1:
        dtype = np.dtype(data.PickValueInList(DTYPES))
    if how & 2:
        shape = tuple(data.ConsumeIntInRange(0, 3) for _ in range(data.ConsumeIntInRange(0, 3)))
    if how & 4:
        offset = data.ConsumeIntInRange(0, 96)
    if how & 8:
        strides = tuple(data.ConsumeIntInRange(-8, 8) * data.PickValueInList([1, 4, 8]) for _ in shape)
        offset += sum(-stride * (n - 1) for stride, n in zip(strides, shape, strict=True) if stride < 0 and n)
    try:
        view = np.ndarray(shape, dtype, memory, offset + MARGIN, strides)
    except (ValueError, TypeError):  # beyond the memory
        view = np.ndarray((4,), "<f4", memory, MARGIN + 16 * plain)
    if not how & 16:
        return view
    kind = data.ConsumeIntInRange(0, 6)
    if kind == 0:
        view.flags.writeable = False
    elif kind == 1:
        try:
            return memoryview(view)
        except (ValueError, TypeError, NotImplementedError):  # a dtype that buffers cannot have
            return view
    elif kind == 2:
        return exporter(view, data)
    elif kind == 3:
        return data.PickValueInList([None, 1.0, "x", b"bytes", [1.0, 2.0], bytearray(16), object(), np.float32(1)])
    elif kind == 4:
        return view.view(np.matrix) if view.ndim == 2 else view.view(np.ma.MaskedArray)
    elif kind == 5 and view.flags.c_contiguous and view.dtype == np.float32 and view.size:
        return (ctypes.c_float * view.size).from_address(view.ctypes.data)
    return view


def attempt(function: Callable[..., None], text: bytes, memory: np.ndarray) -> tuple[type | None, str]:
    """Calls a function as the input says; the type and the text of its error."""
    data = atheris.FuzzedDataProvider(text)
    options = {"lr": 0.5, "momentum": data.PickValueInList([0.5, 0.0, 2.0, "x"])}
    if data.ConsumeBool():
        options["lr_scale"] = array_of(memory, data, 3)
    arrays = [array_of(memory, data, i) for i in range(3)]
    if function.__name__ == "sgd":
        del arrays[1], options["momentum"]
    before = memory.copy()
    try:
        function(*arrays, **options)
    except (TypeError, ValueError) as error:
        if not np.array_equal(memory, before):
            raise RuntimeError("a call that fails has changed something") from error
        return type(error), str(error)
    if not np.array_equal(memory[:MARGIN], before[:MARGIN]) or not np.array_equal(memory[-MARGIN:], before[-MARGIN:]):
        raise RuntimeError("a call has written beyond the arrays")
    return None, ""


def memory_with_numbers() -> np.ndarray:
    """Bytes of positive floats, at the start of a cache line."""
    room = np.zeros(SIZE + 2 * MARGIN + 64, np.uint8)
    start = -room.ctypes.data % 64
    memory = room[start : start + SIZE + 2 * MARGIN]
    memory.view(np.float32)[...] = np.arange(1, memory.size // 4 + 1)
    return memory


def test_one_input(text: bytes) -> None:
    name = "sgd" if text[:1] > b"\x7f" else "momentum"
    mine, theirs = memory_with_numbers(), memory_with_numbers()
    native = attempt(getattr(gdm, name), text[1:], mine)
    reference = attempt(getattr(gdm.reference, name), text[1:], theirs)
    if native != reference:
        raise RuntimeError(f"{native} by the compiled function; {reference} by the reference")
    if not np.array_equal(mine, theirs):
        raise RuntimeError("the compiled function and the reference write different bits")


# libFuzzer runs itself by its first argument when it merges.
atheris.Setup([f"{sys.executable} {__file__}", *sys.argv[1:]], test_one_input)
atheris.Fuzz()
