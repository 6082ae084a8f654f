# Arrays: whether they are in order, and operations on many of them.

cdef inline bint is_usable(PyObject *x, int flags) noexcept nogil:
    """Whether it is a NumPy array of native floats with these flags. _checks handles subclasses."""
    cdef PyArrayObject *array = <PyArrayObject *>x
    cdef int kind
    if not PyArray_CheckExact(x) or PyArray_FLAGS(array) & flags != flags:
        return False
    kind = PyArray_TYPE(array)
    return (kind == cnp.NPY_FLOAT or kind == cnp.NPY_DOUBLE) and PyArray_ISNOTSWAPPED(array)


cdef inline bint is_like(PyObject *x, PyObject *param) noexcept nogil:
    """Whether it has the parameter's dtype, shape, and memory order."""
    cdef PyArrayObject *a = <PyArrayObject *>x
    cdef PyArrayObject *b = <PyArrayObject *>param
    cdef int i, ndim = PyArray_NDIM(b)
    if not (PyArray_FLAGS(a) & PyArray_FLAGS(b) & CONTIGUOUS):
        return False
    if PyArray_TYPE(a) != PyArray_TYPE(b) or PyArray_NDIM(a) != ndim:
        return False
    for i in range(ndim):
        if PyArray_DIMS(a)[i] != PyArray_DIMS(b)[i]:
            return False
    return True


cdef inline size_t length(PyObject *x) noexcept nogil:
    cdef size_t n = 1
    cdef int i
    for i in range(PyArray_NDIM(<PyArrayObject *>x)):
        n *= <size_t>PyArray_DIMS(<PyArrayObject *>x)[i]
    return n


cdef inline int dtype_of(PyObject *x) noexcept nogil:
    return F32 if PyArray_TYPE(<PyArrayObject *>x) == cnp.NPY_FLOAT else F64


cdef inline size_t bytes_of(PyObject *x) noexcept nogil:
    return length(x) * (4 if dtype_of(x) == F32 else 8)


cdef inline void *data(PyObject *x) noexcept nogil:
    return PyArray_DATA(<PyArrayObject *>x)


cdef inline bint share_memory(PyObject *x, PyObject *y) noexcept nogil:
    return <char *>data(x) < <char *>data(y) + bytes_of(y) and <char *>data(y) < <char *>data(x) + bytes_of(x)


cdef inline buffer buffer_of(PyObject *x) noexcept nogil:
    cdef buffer result
    result.data = data(x)
    result.dtype = <dtype_t>dtype_of(x)
    return result


cdef inline bint is_inside_base(PyObject *x, size_t bytes) noexcept nogil:
    """Whether the memory of a view still belongs to the array that it is a view of, if that one owns it.

    Only an array that owns its memory can be resized."""
    cdef PyObject *base = PyArray_BASE(<PyArrayObject *>x)
    cdef char *start
    cdef size_t size
    while base != NULL and PyArray_Check(base) and not PyArray_FLAGS(<PyArrayObject *>base) & cnp.NPY_ARRAY_OWNDATA:
        base = PyArray_BASE(<PyArrayObject *>base)
    if base == NULL or not PyArray_Check(base):
        return True
    start = <char *>data(base)
    size = length(base) * <size_t>PyArray_ITEMSIZE(<PyArrayObject *>base)
    return start <= <char *>data(x) and <char *>data(x) + bytes <= start + size


# ---- many arrays: see gdm/_arrays.py ----


def are_plain(list arrays, bint writable):
    """Whether all are NumPy arrays of floats that may be read, or also written, so that every check would accept them."""
    cdef PyObject **items = items_of(<PyObject *>arrays)
    cdef Py_ssize_t i
    cdef int flags = WRITABLE if writable else READABLE
    for i in range(len(arrays)):
        if not is_usable(items[i], flags) or not PyArray_FLAGS(<PyArrayObject *>items[i]) & CONTIGUOUS:
            return False
        if not is_inside_base(items[i], bytes_of(items[i])):
            return False
    return True


def views(list arrays):
    """A plain view of each array. The user cannot change its shape and dtype."""
    cdef list result = []
    for x in arrays:
        result.append(PyArray_View(<PyArrayObject *><PyObject *>x, NULL, &PyArray_Type))
    return result


def memory_extents(list arrays):
    """The address of each array's memory, and its size in bytes."""
    cdef list result = []
    for x in arrays:
        result.append((<uintptr_t>data(<PyObject *>x), bytes_of(<PyObject *>x)))
    return result


def carve(memory, list starts, list params):
    """Parts of one block of memory, which begin at these bytes: each has its parameter's dtype, shape and order."""
    cdef char *start = <char *>data(<PyObject *>memory)
    cdef size_t offset, size = <size_t>memory.nbytes
    cdef Py_ssize_t i
    cdef PyArrayObject *param
    cdef list parts = []
    if not PyArray_CheckExact(<PyObject *>memory) or len(starts) != len(params):
        raise RuntimeError("carve() needs an array, and a start for each parameter")
    for i in range(len(params)):
        x, offset = params[i], starts[i]
        param = <PyArrayObject *><PyObject *>x
        if not is_usable(<PyObject *>x, READABLE) or offset + bytes_of(<PyObject *>x) > size:
            raise RuntimeError("a part is outside the memory")
        part = PyArray_New(&PyArray_Type, PyArray_NDIM(param), PyArray_DIMS(param), PyArray_TYPE(param), NULL,
                           start + offset, 0,
                           WRITABLE | (cnp.NPY_ARRAY_C_CONTIGUOUS if PyArray_FLAGS(param) & cnp.NPY_ARRAY_C_CONTIGUOUS
                                       else cnp.NPY_ARRAY_F_CONTIGUOUS), None)
        Py_INCREF(memory)
        PyArray_SetBaseObject(<PyArrayObject *><PyObject *>part, <PyObject *>memory)
        parts.append(part)
    return parts


cdef struct memory_span:
    uintptr_t start, end


cdef int by_start(const void *a, const void *b) noexcept nogil:
    cdef uintptr_t x = (<const memory_span *>a).start, y = (<const memory_span *>b).start
    return (x > y) - (x < y)


cdef bint any_overlap(list arrays) except -1:
    """Whether two of these contiguous arrays share memory."""
    cdef PyObject **items = items_of(<PyObject *>arrays)
    cdef size_t i, count = 0, size
    cdef memory_span *spans = <memory_span *>PyMem_Malloc((<size_t>len(arrays) + 1) * sizeof(memory_span))
    cdef bint found = False
    if spans == NULL:
        raise MemoryError
    for i in range(<size_t>len(arrays)):
        size = bytes_of(items[i])
        if size:
            spans[count].start = <uintptr_t>data(items[i])
            spans[count].end = spans[count].start + size
            count += 1
    qsort(spans, count, sizeof(memory_span), by_start)
    for i in range(1, count):
        found = found or spans[i].start < spans[i - 1].end
    PyMem_Free(spans)
    return found
