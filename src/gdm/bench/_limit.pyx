# cython: language_level=3, boundscheck=False, wraparound=False, binding=True, autotestdict=False, freethreading_compatible=True
"""The memory's limit, which gdm is measured against: limit.h says what moves."""

cimport numpy as cnp

cnp.import_array()

cdef extern from "limit.h" nogil:
    bint gdm_limit(size_t variant, char **buffers, size_t count, size_t bytes)

cdef enum:
    MOST = 8  # arrays of an update
    USABLE = cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE


def move_bytes(size_t variant, *arrays):
    """Moves the bytes of an update of these arrays (param, states..., grad), and computes nothing.

    Returns whether there is such a variant. The arrays, of one size in bytes, hold nonsense afterwards.
    """
    cdef char *buffers[MOST]
    cdef size_t i, bytes, count = len(arrays)
    cdef cnp.ndarray x
    cdef bint done
    if not 2 <= count <= MOST:
        raise ValueError(f"expected 2 to {MOST} arrays, got {count}")
    bytes = arrays[0].nbytes
    for i in range(count):
        x = arrays[i]
        if not cnp.PyArray_CHKFLAGS(x, USABLE) or not cnp.PyArray_ISONESEGMENT(x) or <size_t>cnp.PyArray_NBYTES(x) != bytes:
            raise ValueError("arrays must be writable, contiguous, and of one size")
        buffers[i] = cnp.PyArray_BYTES(x)
    with nogil:
        done = gdm_limit(variant, buffers, count, bytes)
    return done
