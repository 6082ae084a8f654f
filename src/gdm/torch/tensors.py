"""Tensors: which of them gdm can update in their memory, and how the compiled module reads them."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import struct
import sys
from typing import Any, Self

import numpy as np

from .. import _backend
from .._checks import Array, Domain

try:
    import torch
except ImportError as error:
    raise ImportError("gdm.torch needs PyTorch: pip install torch") from error
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(f"gdm.torch needs PyTorch 2.10 or later; this is {torch.__version__}")

# The dtypes of tensors that gdm can walk through, with their names in gdm._stages.
FLOATS = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
COUNTS = Domain(2.0**53, True, "a count of steps")  # a float64 holds each whole number up to this one

WORDS = 23  # of a C++ tensor that are looked at; it has at least as many
# Functions of libtorch's C interface. It stays the same from one version to the next.
FUNCTIONS = (
    "aoti_torch_get_data_ptr",
    "aoti_torch_get_dim",
    "aoti_torch_get_sizes",
    "aoti_torch_get_strides",
    "aoti_torch_get_dtype",
    "aoti_torch_get_device_type",
    "aoti_torch_dtype_float32",
    "aoti_torch_dtype_float64",
    "aoti_torch_dtype_bfloat16",
    "aoti_torch_dtype_float16",
    "aoti_torch_device_type_cpu",
    "torch_parallel_for",
    "torch_get_num_threads",
)


def connect(*, use_libtorch: bool = True) -> str:
    """Tells the compiled module how to read tensors: by libtorch's functions if they are found, else by DLPack.

    libtorch's functions take the address of a C++ tensor. A Python tensor holds one at a fixed offset, which is found
    by comparing with the tensor's ``_cdata``. Reading a tensor takes 17 ns then, and 41 ns by DLPack. Returns
    ``"libtorch"``, ``"dlpack"``, or ``"none"`` without the compiled module.
    """
    if _backend.native is None:
        return "none"
    addresses, offset = (_addresses(), _offset()) if use_libtorch else ({}, 0)
    if not offset:
        addresses = {}
    keys, grads, versions = (0, 0, 0), (0, 0, 0), (0, 0)
    if addresses and _is_forked():
        # PyTorch's threads may have stayed in the parent, and OpenMP would wait for them.
        addresses["torch_parallel_for"] = 0
    if addresses:
        keys, grads, versions = _keys(offset), _grads(offset), _versions(offset)
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    exchange = get_pointer(torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api")
    types = torch.Tensor, torch.nn.Parameter
    # Not torch.autograd.graph.increment_version, which calls this one: while Python code runs, other threads may run.
    increment = torch._C._increment_version
    _backend.native.set_tensor_library(addresses, offset, keys, grads, versions, exchange, types, increment)
    return "libtorch" if addresses else "dlpack"


def _addresses() -> dict[str, int]:
    """The addresses of libtorch's functions; none if one is missing."""
    name = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}.get(sys.platform, "libtorch_cpu.so")
    for path in (os.path.join(os.path.dirname(torch.__file__), "lib", name), name):
        try:
            library = ctypes.CDLL(path)
            return {f: ctypes.cast(getattr(library, f), ctypes.c_void_p).value or 0 for f in FUNCTIONS}
        except (OSError, AttributeError):
            continue
    return {}


def _is_forked() -> bool:
    """Whether this process began with a fork, and no program has been loaded since. Later forks are noticed by gdm."""
    try:
        with open("/proc/self/stat", "rb") as file:
            flags = int(file.read().rpartition(b")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    return bool(flags & 0x40)  # Linux's PF_FORKNOEXEC


def _offset() -> int:
    """Where a Python tensor holds its C++ tensor, which is one pointer; 0 if it is not found."""
    word = ctypes.sizeof(ctypes.c_void_p)
    examples = [torch.empty(3, device="cpu"), torch.nn.Parameter(torch.empty(0, device="cpu"))]
    for offset in range(object.__basicsize__, object.__basicsize__ + 3 * word, word):
        if all(ctypes.c_void_p.from_address(id(x) + offset).value == x._cdata for x in examples):
            return offset
    return 0


def _words(x: Any, offset: int) -> list[int]:
    """The first words of a tensor's C++ tensor."""
    tensor = ctypes.c_void_p.from_address(id(x) + offset).value or 0
    return list((ctypes.c_uint64 * WORDS).from_address(tensor))


def _keys(offset: int) -> tuple[int, int, int]:
    """The word of a C++ tensor that says which kind it is; the bit in it that says that the elements are negated when
    they are read; and the word of plain tensors.

    They are found by comparing plain tensors, which all have the same kind, with negated ones. If that is not clear,
    all are 0: gdm then asks in Python.
    """
    shapes = [(), (1,), (3,), (2, 0), (2, 3), (4, 3, 2), (1, 2, 3, 4), (2, 1, 2, 1, 2, 3)]
    plain = [torch.empty(shape, dtype=dtype, device="cpu") for shape in shapes for dtype in FLOATS]
    plain += [torch.nn.Parameter(x.detach()) for x in plain] + [x[..., 0] for x in plain if x.numel() and x.ndim]
    negated = [torch._neg_view(x.detach()) for x in plain]
    telling, same, words = [(1 << 64) - 1] * WORDS, [True] * WORDS, _words(plain[0], offset)
    for x in (*plain, *negated):
        for i, word in enumerate(_words(x, offset)):
            telling[i] &= word if x.is_neg() else ~word
            same[i] &= x.is_neg() or word == words[i]
    candidates = [(i, word) for i, word in enumerate(telling) if word and same[i]]
    if len(candidates) != 1 or candidates[0][1].bit_count() != 1:
        return 0, 0, 0
    [(i, bit)] = candidates
    return i, bit, words[i]


def _grads(offset: int) -> tuple[int, int, int]:
    """The word of a C++ tensor that points to what autograd knows; the word of that which is the gradient; and what it
    is without a gradient. 0, 0, 0 if that is not clear, or if memory cannot be read without the risk of a crash.

    A step then need not ask each parameter for its gradient in Python, which takes 50 ns, and 200 ns where PyTorch must
    first make a Python object.
    """
    params = _examples()
    with_grads, without = [_words(x, offset) for x in params], []
    try:
        with _Memory() as memory:
            for x in params:
                x.grad = torch.ones_like(x)
            found = [
                (i, k)
                for i in range(2, WORDS)
                for k in range(WORDS)
                if all(
                    (meta := memory.words(words[i])) is not None and meta[k] == x.grad._cdata
                    for x, words in zip(params, with_grads, strict=True)
                )
            ]
            if len(found) != 1:
                return 0, 0, 0
            [(i, k)] = found
            for x, words in zip(params, with_grads, strict=True):
                x.grad = None
                without.append((memory.words(words[i]) or [0] * WORDS)[k])
    except OSError:
        return 0, 0, 0
    no_meta = all(_words(torch.zeros(3, device="cpu"), offset)[i] == 0 for _ in range(3))
    return (i, k, without[0]) if no_meta and without[0] and len(set(without)) == 1 else (0, 0, 0)


def _versions(offset: int) -> tuple[int, int]:
    """The word of a C++ tensor that points to the counter of its versions; and the byte of that counter where the count
    begins, which has 32 bits. 0, 0 if that is not clear, or if memory cannot be read without the risk of a crash.

    A tensor and what ``detach`` gives have the same counter; what ``data`` gives has the same elements, but another
    counter.
    A step then need not ask PyTorch to count, which takes 45 ns for each tensor.
    """
    tensors = [x.detach() for x in _examples()]
    same, others = [x.detach() for x in tensors], [x.data for x in tensors]
    words = [[_words(x, offset) for x in group] for group in (tensors, same, others)]
    pointers = [i for i in range(2, WORDS) if all(x[i] == y[i] != z[i] for x, y, z in zip(*words, strict=True))]
    places = {(i, k) for i in pointers for k in range(8, 48, 4)}
    try:
        with _Memory() as memory:
            for times in (0, 1, 70, 1000):
                for x, its_words in zip(tensors, words[0], strict=True):
                    torch._C._increment_version([x] * times)
                    for i in pointers:
                        counter = memory.bytes(its_words[i], 48)
                        places -= {
                            (j, k)
                            for j, k in places
                            if j == i and (not counter or struct.unpack_from("I", counter, k)[0] != x._version)
                        }
    except OSError:
        return 0, 0
    return next(iter(places)) if len(places) == 1 else (0, 0)


def _examples() -> list[Any]:
    """Tensors of several kinds that require gradients."""
    flat = torch.zeros(20, dtype=torch.float64, device="cpu")
    tensors = [torch.zeros(3, device="cpu"), torch.zeros(2, 3, dtype=torch.float64, device="cpu"), flat[3:9]]
    others = [torch.zeros((), device="cpu"), flat[12:]]
    return [torch.nn.Parameter(x) for x in tensors] + [x.requires_grad_() for x in others]


class _Memory:
    """Reads this process's memory where it may not be readable. OSError where the system does not offer that."""

    def __enter__(self) -> Self:
        self._file = open("/proc/self/mem", "rb", buffering=0)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def bytes(self, address: int, count: int) -> bytes | None:
        """So many bytes; None if they cannot be read."""
        try:
            found = os.pread(self._file.fileno(), count, address)
        except (OSError, OverflowError):
            return None
        return found if len(found) == count else None

    def words(self, address: int) -> list[int] | None:
        """WORDS words; None if they cannot be read."""
        found = self.bytes(address, 8 * WORDS)
        return None if found is None else list(struct.unpack(f"{WORDS}Q", found))


# ---- which tensors ----


@functools.cache
def _is_plain_class(cls: Any) -> bool:
    """Whether the tensors of a class are what they say: the class does not change what operations do."""
    if cls in (torch.Tensor, torch.nn.Parameter):
        return True
    function = getattr(cls.__torch_function__, "__func__", cls.__torch_function__)
    defaults = (torch.Tensor.__torch_function__.__func__, torch.nn.Parameter.__torch_function__)
    return bool(cls.__torch_dispatch__ is torch.Tensor.__torch_dispatch__ and function in defaults)


def _distributed_class() -> Any:
    """The class of distributed tensors, if it has been imported."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_plain(x: Any) -> bool:
    """Whether a tensor is what it says, and not distributed."""
    cls: Any = type(x)
    return _is_plain_class(cls)


def local_of(x: Any) -> Any:
    """The tensor that has the memory: ``x`` itself, or the local part of a distributed tensor; None for others."""
    cls: Any = type(x)
    if _is_plain_class(cls):
        return x
    if cls is _distributed_class():
        cls = type(x._local_tensor)
        return x._local_tensor if _is_plain_class(cls) else None
    return None


def is_native(x: Any) -> bool:
    """Whether gdm can walk through the memory of a plain tensor."""
    if x.device.type != "cpu" or x.layout is not torch.strided or x.dtype not in FLOATS:
        return False
    if not x.is_contiguous() and not _is_dense(x):
        return False
    address, size = x.data_ptr(), x.element_size()
    return bool(not x.is_neg() and address % size == 0 and (address or not x.numel()))


def _is_dense(x: Any) -> bool:
    """Whether the elements fill a piece of memory, each once."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != expected:
            return not x.numel()
        expected *= size
    return True


def same_layout(x: Any, y: Any) -> bool:
    """Whether two tensors have the same shape, and their elements lie in memory in the same order."""
    if x.shape != y.shape:
        return False
    return all(a == b or n == 1 for a, b, n in zip(x.stride(), y.stride(), x.shape, strict=True)) or not x.numel()


def fits(x: Any, local: Any) -> bool:
    """Whether gdm can update a parameter with a gradient or a state of this dtype, each stored in its own."""
    return x.dtype in FLOATS and (x.dtype is not torch.float64 or local.dtype is torch.float64)


def like(param: Any, local: Any, x: Any) -> Any:
    """``x``, which is like the local part, as a tensor of the kind of the parameter."""
    if local is param:
        return x
    return type(param).from_local(
        x, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )


def part_like(param: Any, local: Any, x: Any) -> Any:
    """The memory of a state, if it is a tensor of the kind of its parameter, with the local part's shape and a dtype
    that fits."""
    if local is not param and not same_parts(param, x):
        return None
    part = local_of(x) if isinstance(x, torch.Tensor) else None
    if part is None or (local is param) != (part is x) or not fits(part, local) or part.shape != local.shape:
        return None
    return part if is_native(part) else None


def is_number(x: Any, domain: Domain) -> bool:
    """Whether this tensor keeps a number of the domain, and a step can change it."""
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or not is_native(x) or x.element_size() < 4:
        return False
    return x.numel() == 1 and x.item() in domain


def is_count(x: Any) -> bool:
    """Whether this tensor keeps a count of steps."""
    return is_number(x, COUNTS) and float(x.item()).is_integer()


def inverse(name: str, divisor: Any) -> float:
    """1 divided by a number, or by a tensor of one element."""
    try:
        number = float(divisor)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number or a tensor of one element, not {type(divisor).__name__}") from None
    result = 1.0 / number if number else math.inf
    if not math.isfinite(number) or not math.isfinite(result):
        raise ValueError(f"{name} must be finite and not 0, got {number!r}")
    return result


def zeros_like(local: Any, dtype: Any, memory: Array, start: int) -> Any:
    """A tensor like another one, of this dtype, in a block of memory that is filled with zeros."""
    if not local.numel():
        return torch.zeros_like(local, dtype=dtype)
    x = torch.frombuffer(memory, dtype=dtype, count=local.numel(), offset=start)
    return x.view(local.shape) if local.is_contiguous() else x.as_strided(local.shape, local.stride())


def usable_grad(param: Any, local: Any, grad: Any) -> Any:
    """The gradient as a tensor that lies in memory as ``local`` does: itself or a copy. None if PyTorch must make the
    step."""
    if local is not param and not same_parts(param, grad):
        return None
    own = local_of(grad)
    if own is None or own.layout is not torch.strided or own.device.type != "cpu":
        return None
    if not fits(own, local) or own.shape != local.shape:
        return None
    if is_native(own) and same_layout(own, local):
        return own
    with torch.no_grad():
        return torch.empty_like(local, dtype=own.dtype).copy_(own)


def same_parts(param: Any, grad: Any) -> bool:
    """Whether a distributed gradient is divided as its parameter is."""
    if type(grad) is not type(param) or any(placement.is_partial() for placement in grad.placements):
        return False
    return bool(grad.placements == param.placements and grad.device_mesh == param.device_mesh)


def is_in_memory(x: Any) -> bool:
    """Whether this is a strided tensor on the CPU that has elements."""
    return bool(x.layout is torch.strided and x.device.type == "cpu" and x.numel())


def extent(x: Any) -> tuple[int, int]:
    """Where the memory of a strided tensor begins and ends; it may have gaps."""
    last = sum(stride * (size - 1) for stride, size in zip(x.stride(), x.shape, strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def share_memory(x: Any, y: Any) -> bool:
    """Whether two strided tensors on the CPU share memory; False if that is too hard to find out."""
    try:
        return np.shares_memory(_elements(x), _elements(y), max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return False


def first_shared(tensors: list[Any]) -> tuple[int, int] | None:
    """The indices of two of these tensors that share memory; None if no two do."""
    spans = sorted((*extent(x), i) for i, x in enumerate(tensors))
    open_: list[tuple[int, int, int]] = []  # those that may reach into the next
    for span in spans:
        open_ = [before for before in open_ if before[1] > span[0]]
        for _, _, i in open_:
            if share_memory(tensors[i], tensors[span[2]]):
                return min(i, span[2]), max(i, span[2])
        open_.append(span)
    return None


def _elements(x: Any) -> Array:
    """An array that lies where the elements of a tensor lie, for a tensor of any dtype."""
    x = x.detach().resolve_neg().resolve_conj() if x.is_neg() or x.is_conj() else x.detach()
    unsigned = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(x.element_size())
    return np.asarray((x if unsigned is None else x.view(unsigned)).numpy())


def flat(x: Any) -> Array:
    """The memory of a native tensor as an array of one axis; of a bfloat16 tensor, its bits as uint16."""
    x = x.detach().as_strided((x.numel(),), (1,))
    return np.asarray((x.view(torch.uint16) if x.dtype is torch.bfloat16 else x).numpy())
