# Reductions: one number from many arrays.

cdef extern from *:
    """
    #include <math.h>
    #include "fp_mode.h"
    /* In the default mode. What is volatile is read and written between the changes of the mode. */
    static double gdm_square_root(double x) {
        const fp_mode found = set_default_fp_mode();
        volatile double value = x, root;
        root = sqrt(value);
        restore_fp_mode(found);
        return root;
    }
    """
    double gdm_square_root(double x) nogil


def square_root(double x):
    """The square root, rounded to nearest whatever the rounding mode of the thread."""
    return gdm_square_root(x)


def reduce(int reduction, list arrays):
    """The reduction of this number (csrc/reduce.c) over these arrays, which have been checked."""
    cdef size_t i, count = <size_t>len(arrays), elements = 0
    cdef double result = 0
    cdef int status
    cdef PyObject *x
    cdef buffer *buffers = <buffer *>PyMem_Malloc((count + 1) * sizeof(buffer))
    cdef size_t *lengths = <size_t *>PyMem_Malloc((count + 1) * sizeof(size_t))
    try:
        if buffers == NULL or lengths == NULL:
            raise MemoryError
        for i in range(count):
            x = items_of(<PyObject *>arrays)[i]
            if not is_floating(x, READABLE, True):
                raise RuntimeError("the arrays of a reduction have not been checked")
            buffers[i] = buffer_of(x)
            lengths[i] = length(x)
            elements += lengths[i]
        if elements < GIL_THRESHOLD:
            status = gdm_reduce(<reduction_t>reduction, buffers, lengths, count, &result)
        else:
            with nogil:
                status = gdm_reduce(<reduction_t>reduction, buffers, lengths, count, &result)
        if status != OK:
            refuse(status)
        return result
    finally:
        PyMem_Free(buffers)
        PyMem_Free(lengths)


def accumulate(list totals, list grads, double scale):
    """Adds each gradient to its total. The arrays have been checked; None in the place of a gradient adds nothing."""
    cdef size_t i, k = 0, count = <size_t>len(totals), elements = 0
    cdef int status
    cdef PyObject *total
    cdef PyObject *grad
    cdef buffer *buffers = <buffer *>PyMem_Malloc((2 * count + 1) * sizeof(buffer))
    cdef size_t *lengths = <size_t *>PyMem_Malloc((count + 1) * sizeof(size_t))
    try:
        if buffers == NULL or lengths == NULL:
            raise MemoryError
        for i in range(count):
            total, grad = items_of(<PyObject *>totals)[i], items_of(<PyObject *>grads)[i]
            if grad == <PyObject *>None:
                continue
            if not (is_floating(total, WRITABLE, True) and is_floating(grad, READABLE, True)
                    and is_gradient_for(grad, total)):
                raise RuntimeError("the arrays of a sum have not been checked")
            buffers[k], buffers[count + k] = buffer_of(total), buffer_of(grad)
            lengths[k] = length(total)
            elements += lengths[k]
            k += 1
        if elements < GIL_THRESHOLD:
            status = gdm_accumulate_unchecked(buffers, buffers + count, lengths, k, scale)
        else:
            with nogil:
                status = gdm_accumulate_unchecked(buffers, buffers + count, lengths, k, scale)
        if status != OK:
            refuse(status)
    finally:
        PyMem_Free(buffers)
        PyMem_Free(lengths)
