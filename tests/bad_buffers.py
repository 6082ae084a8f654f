"""Arguments that cannot be updated in place, or read: what they are, and what is raised."""

from __future__ import annotations

import numpy as np

N = 8


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def misaligned(x):
    return np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(x.dtype)


def released(x):
    view = memoryview(x)
    view.release()
    return view


# How to make a bad argument of a good one of N elements, and what is raised.
BAD_BUFFERS = {
    "a list": (lambda x: x.tolist(), TypeError, "must be a NumPy array .* not list"),
    "text": (lambda x: "abc", TypeError, "must be a NumPy array .* not str"),
    "bytes": (lambda x: bytes(N), TypeError, "has dtype uint8; expected float"),
    "integers": (lambda x: x.astype(np.int32), TypeError, "has dtype int32"),
    "uint16": (lambda x: x.astype(np.uint16), TypeError, "has dtype uint16; expected float"),
    "complex": (lambda x: x.astype(np.complex64), TypeError, "has dtype complex64"),
    "objects": (lambda x: x.astype(object), TypeError, "has dtype object"),
    "long double": (lambda x: x.astype(np.longdouble), TypeError, f"has dtype {np.dtype(np.longdouble)}"),
    "byte-swapped": (lambda x: x.astype(x.dtype.newbyteorder()), TypeError, "is byte-swapped"),
    "every other element": (lambda x: np.repeat(x, 2)[::2], ValueError, "is not contiguous"),
    "backwards": (lambda x: x[::-1], ValueError, "is not contiguous"),
    "a column": (lambda x: np.stack([x, x], axis=1)[:, 0], ValueError, "is not contiguous"),
    "broadcast": (lambda x: np.broadcast_to(x.dtype.type(1), x.shape), ValueError, "is not contiguous"),
    "misaligned": (misaligned, ValueError, "is misaligned"),
    "masked": (np.ma.MaskedArray, TypeError, "is a masked array"),
    "released": (released, TypeError, "must be a NumPy array .* not memoryview"),
}


# The functions take only float32 and float64.
NARROW = {
    "half precision": (lambda x: x.astype(np.float16), TypeError, "has dtype float16; expected float32 or float64"),
}

READ_ONLY = {"read-only": (read_only, ValueError, "is read-only")}

# The same for an argument that must be like param.
NOT_LIKE = {
    "another dtype": (lambda x: x.astype(np.float64), ValueError, "has dtype float64, but {param} has float32"),
    "shorter": (lambda x: x[:-1].copy(), ValueError, r"has shape \(7,\), but {param} has \(8,\)"),
    "longer": (lambda x: np.append(x, x[:1]), ValueError, r"has shape \(9,\), but {param} has \(8,\)"),
    "another shape": (lambda x: x.reshape(2, 4).copy(), ValueError, r"has shape \(2, 4\), but {param} has \(8,\)"),
}
