# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=True, autotestdict=False, auto_pickle=False, freethreading_compatible=True
"""The formulas of ``formulas.py``, compiled: the same operations in the same order, for many steps in a row.

Python's ``math.sin``, ``math.sqrt`` and ``**`` call the C library's functions, as is done here. So both give the same
bits. NumPy's functions are other code, and may differ in the last bit.
"""

cimport numpy as cnp
from libc.math cimport pow, sin, sqrt
from libc.stdint cimport int64_t

from .formulas import HALF_PI as _HALF_PI

cdef extern from "fp_mode.h":
    ctypedef struct fp_mode:
        pass
    fp_mode set_default_fp_mode() nogil
    void restore_fp_mode(fp_mode found) nogil

cnp.import_array()

cdef enum:
    MAX_CONSTANTS = 4  # of a formula

cdef double half_pi = _HALF_PI

# A formula writes the learning rates of ``count`` steps. ``step`` is the first, counted from the start of the piece.
ctypedef void (*Formula)(double *out, int64_t step, Py_ssize_t count, const double *constants) noexcept nogil


cdef void constant(double *out, int64_t step, Py_ssize_t count, const double *constants) noexcept nogil:
    cdef double value = constants[0]
    cdef Py_ssize_t i
    for i in range(count):
        out[i] = value


cdef void line(double *out, int64_t step, Py_ssize_t count, const double *constants) noexcept nogil:
    cdef double first = constants[0], change = constants[1], steps = constants[2]
    cdef Py_ssize_t i
    for i in range(count):
        out[i] = first + change * ((step + i) / steps)


cdef void half_cosine(double *out, int64_t step, Py_ssize_t count, const double *constants) noexcept nogil:
    cdef double first = constants[0], change = constants[1], steps = constants[2]
    cdef Py_ssize_t i
    for i in range(count):
        out[i] = sin(half_pi * ((step + i) / steps))
    # In a loop of its own: 18 ns for both, and 22 in one loop.
    for i in range(count):
        out[i] = first + change * pow(out[i], 2.0)


cdef void power(double *out, int64_t step, Py_ssize_t count, const double *constants) noexcept nogil:
    cdef double first = constants[0], change = constants[1], steps = constants[2], exponent = constants[3]
    cdef Py_ssize_t i
    for i in range(count):
        out[i] = first + change * (1.0 - pow(1.0 - (step + i) / steps, exponent))


cdef void stairs(double *out, int64_t step, Py_ssize_t count, const double *constants) noexcept nogil:
    cdef double first = constants[0], factor = constants[1]
    cdef int64_t every = <int64_t>constants[2]
    cdef Py_ssize_t i
    for i in range(count):
        out[i] = first * pow(factor, (step + i) // every)


cdef void exponential(double *out, int64_t step, Py_ssize_t count, const double *constants) noexcept nogil:
    cdef double first = constants[0], factor = constants[1], every = constants[2]
    cdef Py_ssize_t i
    for i in range(count):
        out[i] = first * pow(factor, (step + i) / every)


cdef void inverse_sqrt(double *out, int64_t step, Py_ssize_t count, const double *constants) noexcept nogil:
    cdef double first = constants[0], origin = constants[1]
    cdef Py_ssize_t i
    for i in range(count):
        out[i] = first * sqrt(origin / (origin + (step + i)))


cdef Formula formula_named(str name) except NULL:
    if name == "constant":
        return constant
    if name == "line":
        return line
    if name == "half_cosine":
        return half_cosine
    if name == "power":
        return power
    if name == "stairs":
        return stairs
    if name == "exponential":
        return exponential
    if name == "inverse_sqrt":
        return inverse_sqrt
    raise ValueError(f"no formula is named {name!r}")


def block(tuple pieces, Py_ssize_t i, int64_t first_step, cnp.npy_intp count):
    """The learning rates of ``count`` steps from ``first_step`` on, where piece i of all pieces holds."""
    cdef cnp.ndarray rates = cnp.PyArray_EMPTY(1, &count, cnp.NPY_FLOAT64, 0)
    cdef double *out = <double *>cnp.PyArray_DATA(rates)
    cdef int64_t step = first_step, end = first_step + count, start, piece_end
    cdef double[MAX_CONSTANTS] constants
    cdef Formula formula
    cdef Py_ssize_t k
    cdef tuple piece, given
    cdef fp_mode found
    while step < end:
        piece = pieces[i]
        i += 1
        start, formula, given = piece[0], formula_named(piece[1].__name__), piece[2]
        for k in range(min(len(given), MAX_CONSTANTS)):
            constants[k] = given[k]
        piece_end = min(end, <int64_t>pieces[i][0]) if i < len(pieces) else end
        found = set_default_fp_mode()
        formula(out + (step - first_step), step - start, piece_end - step, constants)
        restore_fp_mode(found)
        step = piece_end
    return rates


def in_default_mode(function, x, y):
    """``function(x, y)`` in the default floating-point mode: a formula of ``formulas.py``, or an operator."""
    cdef fp_mode found = set_default_fp_mode()
    try:
        return function(x, y)
    finally:
        restore_fp_mode(found)
