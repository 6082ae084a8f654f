"""Arrays of other libraries, seen as NumPy arrays that share their memory: tensors, DLPack, the buffer protocol.

No library is imported: an array is recognised by what it offers. A tensor is what has PyTorch's methods; its
``numpy()`` is used instead of its DLPack, since NumPy 2.0 takes all that comes by DLPack for read-only, and since
PyTorch does not resize memory that has been given to NumPy.

Whoever exports a buffer or DLPack keeps that memory as long as the export exists. PyTorch does not: ``share_memory_()``
moves a tensor and frees its old memory. And an array may come to mean other memory, as after ``tensor.data = other``.
So an optimizer keeps a :class:`Source`, which looks again before each step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import StaleBufferError

Array = np.ndarray[Any, np.dtype[Any]]
Places = list[int | None]  # where tensors were when they were viewed; None for all that is no tensor

# What other libraries raise where memory cannot be had.
ERRORS = (TypeError, ValueError, BufferError, RuntimeError, AttributeError)
# DLDeviceType of dlpack.h: those whose memory the CPU can reach, and the names of some others.
REACHABLE = (1, 3, 11, 13)  # kDLCPU, kDLCUDAHost, kDLROCMHost, kDLCUDAManaged
DEVICES = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 14: "oneapi", 15: "webgpu"}
_GONE: Array = np.empty(0, np.uint8)


def is_tensor(x: Any) -> bool:
    """Whether it is one of PyTorch's, by a method that no other library has."""
    return hasattr(type(x), "resolve_neg")


def needs_view(x: Any) -> bool:
    """Whether it is an array that NumPy does not take by itself: of another device, or one that requires a gradient."""
    return not isinstance(x, np.ndarray) and (is_tensor(x) or hasattr(type(x), "__dlpack__"))


def is_array(x: Any) -> bool:
    """Whether it is an array of any library, and not a collection of arrays."""
    if isinstance(x, np.ndarray) or needs_view(x):
        return True
    try:
        memoryview(x)
    except TypeError:
        return False
    except (ValueError, BufferError):  # a buffer that cannot be had: view() says why
        return True
    return True


def view(name: str, x: Any) -> tuple[Array, int | None]:
    """A NumPy array that shares the memory of ``x``, and for a tensor where that memory is, since it may move.

    Of any dtype and layout. The name is for the message of the ``TypeError`` or ``ValueError`` where there is none.
    """
    if is_tensor(x):
        try:
            plain = x.detach() if x.requires_grad else x
            array: Array = _bits(plain) if str(x.dtype) == "torch.bfloat16" else plain.numpy()
            place: int = x.data_ptr()
            # A wrapper of another tensor has no memory of its own, and may give that of the other one.
            if (plain is x or place == plain.data_ptr()) and (place or not array.size):
                return array, place
            raise RuntimeError("it has no memory of its own")
        except ERRORS as error:
            raise _refusal(name, x, error) from error
    try:
        return np.asarray(memoryview(x)), None
    except ERRORS:
        if not hasattr(type(x), "__dlpack__"):
            kinds = "a NumPy array (or a tensor, or another buffer)"
            raise TypeError(f"{name} must be {kinds} of float32 or float64, not {type(x).__name__}") from None
    return _from_dlpack(name, x), None


def _bits(tensor: Any) -> Array:
    """The bits of a tensor of bfloat16, which NumPy does not have."""
    array: Array = tensor.view(sys.modules["torch"].int16).numpy()
    return array.view(np.uint16)


def views(items: list[Any]) -> list[Any]:
    """The items, with views in place of those that are no NumPy arrays. If any cannot be viewed, the items themselves:
    looking at each by itself will tell which, and why."""
    result = list(items)
    places: Places = [None] * len(items)
    try:
        for i, x in enumerate(items):
            if x is not None and not isinstance(x, np.ndarray):
                result[i], places[i] = view("", x)
        require_unmoved([""] * len(items), items, places)
    except ERRORS:
        return items
    return result


def require_unmoved(names: Sequence[str], given: Sequence[Any], places: Places) -> None:
    """Requires that tensors are where they were when they were viewed: other people's code may have run meanwhile."""
    for i, place in enumerate(places):
        if place is not None and given[i].data_ptr() != place:
            raise StaleBufferError(f"{names[i]} has moved while the arrays were being checked")


class Source:
    """An array of another library that an optimizer keeps, and the view of it that was checked."""

    __slots__ = ("_mark", "array", "given")

    def __init__(self, name: str, given: Any, array: Array, place: int | None) -> None:
        self.given, self.array = given, array
        self._mark = None if place is None else _mark(given)
        if self._mark is not None and self._mark[:2] != (place, array.shape):
            raise StaleBufferError(f"{name} has moved while the arrays were being checked")

    @staticmethod
    def of(name: str, given: Any, array: Array, place: int | None) -> Source | None:
        """The source of a view; None if it means the same memory as long as it exists.

        So do NumPy's own arrays, which an engine checks itself, and buffers. Of these ctypes alone moves what it has
        exported.
        """
        is_fixed = isinstance(given, np.ndarray) or isinstance(array.base, memoryview)
        return None if is_fixed and type(type(given)).__module__ != "_ctypes" else Source(name, given, array, place)

    def current(self) -> Array:
        """The view if the array still means its memory; else a view of what it means now, or an empty array."""
        try:
            if self._mark is None or self._mark != _mark(self.given):
                return view("", self.given)[0]
        except ERRORS:
            return _GONE
        return self.array


def look_again(arrays: list[Any], sources: list[Source | None]) -> None:
    """Puts what each source means now into a list of arrays, so that the checks of the arrays find what has changed."""
    for i, source in enumerate(sources):
        if source is not None:
            arrays[i] = source.current()


def _mark(tensor: Any) -> tuple[Any, ...]:
    """What must stay the same of a tensor; its place and its shape come first."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_neg()


def _refusal(name: str, x: Any, error: Exception) -> Exception:
    """What is wrong with a tensor whose memory cannot be had: an error to raise."""
    try:
        if x.device.type != "cpu":
            return TypeError(f"{name} is on the device {str(x.device)!r}; expected the CPU")
        if hasattr(x, "to_local"):
            return TypeError(f"{name} must be a plain tensor, not {type(x).__name__}; pass its .to_local()")
        if str(x.layout) != "torch.strided":
            return TypeError(f"{name} has the layout {x.layout}; expected a dense tensor")
        if not _is_float(x.dtype):
            return TypeError(f"{name} has dtype {x.dtype}; expected float32, float64, float16 or bfloat16")
        if x.is_neg():
            return ValueError(
                f"{name} has its negative bit set: its memory holds the negatives of its elements; call its "
                ".resolve_neg(), which makes a copy, before anything else uses it"
            )
    except ERRORS:  # a tensor of an unusual kind
        pass
    reason = str(error).strip().partition(". ")[0]
    return TypeError(f"{name} must be a plain tensor, not {type(x).__name__}: {reason}")


def _from_dlpack(name: str, x: Any) -> Array:
    try:
        device, index = x.__dlpack_device__()
        if device in REACHABLE:
            try:
                return np.from_dlpack(x, copy=False)
            except TypeError:  # NumPy 2.0, or a producer from before there was this argument: no copies there
                return np.from_dlpack(x)
    except ERRORS as error:
        dtype = getattr(x, "dtype", None)
        if dtype is not None and (not _is_float(dtype) or str(dtype) == "bfloat16"):
            raise TypeError(
                f"{name} has dtype {dtype}; expected float32, float64 or float16, which NumPy can read by DLPack"
            ) from None
        raise TypeError(f"{name} cannot be read by DLPack: {type(error).__name__}: {error}") from error
    where = DEVICES.get(int(device), f"DLPack type {int(device)}")
    raise TypeError(f"{name} is on the device '{where}:{index}'; expected the CPU")


def _is_float(dtype: Any) -> bool:
    return str(dtype).rpartition(".")[2] in ("float32", "float64", "float16", "bfloat16")
