# Arrays: whether they are in order, and operations on many of them.

cdef int bfloat16_number = -1  # NumPy's number for the bfloat16 of ml_dtypes; -1: not known yet. A flag of locks.pxi


def set_bfloat16(dtype):
    """Tells which dtype is bfloat16."""
    set_flag(&bfloat16_number, dtype.num)


cdef inline int bfloat16_type() noexcept nogil:
    return get_flag(&bfloat16_number)


cdef inline int dtype_of(PyObject *x) noexcept nogil:
    """The storage dtype of an array; -1 if it has none. An array of uint16 is one of bfloat16, if its user says so."""
    return dtype_of_kind(PyArray_TYPE(<PyArrayObject *>x))


cdef inline int dtype_of_kind(int kind) noexcept nogil:
    if kind == cnp.NPY_FLOAT:
        return F32
    if kind == cnp.NPY_DOUBLE:
        return F64
    if kind == NPY_HALF:
        return F16
    if kind == cnp.NPY_USHORT or kind == bfloat16_type():
        return BF16
    return INT8 if kind == cnp.NPY_BYTE or kind == cnp.NPY_UBYTE else -1


cdef inline bint is_native(PyObject *x, int flags) noexcept nogil:
    """Whether it is a NumPy array in the machine's byte order with these flags. _checks handles subclasses."""
    return (PyArray_CheckExact(x) and PyArray_FLAGS(<PyArrayObject *>x) & flags == flags
            and PyArray_ISNOTSWAPPED(<PyArrayObject *>x))


cdef inline bint is_usable(PyObject *x, int flags) noexcept nogil:
    """The same, of float32 or float64, which the functions take."""
    cdef int kind = PyArray_TYPE(<PyArrayObject *>x) if PyArray_CheckExact(x) else -1
    return (kind == cnp.NPY_FLOAT or kind == cnp.NPY_DOUBLE) and is_native(x, flags)


cdef inline bint is_floating(PyObject *x, int flags, bint uint16) noexcept nogil:
    """The same, of any float that the optimizers take; or uint16, if it means bfloat16."""
    cdef int kind = PyArray_TYPE(<PyArrayObject *>x) if PyArray_CheckExact(x) else -1
    if kind != cnp.NPY_FLOAT and kind != cnp.NPY_DOUBLE:
        if kind != NPY_HALF and (kind < 0 or kind != bfloat16_type()) and not (uint16 and kind == cnp.NPY_USHORT):
            return False
    return is_native(x, flags)


cdef inline bint is_stored(PyObject *x, int flags) noexcept nogil:
    """The same, of any storage dtype."""
    return PyArray_CheckExact(x) and dtype_of(x) >= 0 and is_native(x, flags)


cdef inline bint has_shape_of(PyObject *x, PyObject *param) noexcept nogil:
    """Whether it has the parameter's shape and memory order."""
    cdef PyArrayObject *a = <PyArrayObject *>x
    cdef PyArrayObject *b = <PyArrayObject *>param
    cdef int i, ndim = PyArray_NDIM(b)
    if not (PyArray_FLAGS(a) & PyArray_FLAGS(b) & CONTIGUOUS) or PyArray_NDIM(a) != ndim:
        return False
    for i in range(ndim):
        if PyArray_DIMS(a)[i] != PyArray_DIMS(b)[i]:
            return False
    return True


cdef inline bint is_like(PyObject *x, PyObject *param) noexcept nogil:
    """Whether it has the parameter's dtype, too."""
    return PyArray_TYPE(<PyArrayObject *>x) == PyArray_TYPE(<PyArrayObject *>param) and has_shape_of(x, param)


cdef inline bint is_gradient_for(PyObject *x, PyObject *param) noexcept nogil:
    """Whether it fits a parameter: it has its shape, and its numbers need not be rounded for the computation."""
    return ((PyArray_TYPE(<PyArrayObject *>x) != cnp.NPY_DOUBLE or PyArray_TYPE(<PyArrayObject *>param) == cnp.NPY_DOUBLE)
            and has_shape_of(x, param))


cdef inline size_t length(PyObject *x) noexcept nogil:
    cdef size_t n = 1
    cdef int i
    for i in range(PyArray_NDIM(<PyArrayObject *>x)):
        n *= <size_t>PyArray_DIMS(<PyArrayObject *>x)[i]
    return n


cdef inline size_t bytes_of(PyObject *x) noexcept nogil:
    return length(x) * <size_t>PyArray_ITEMSIZE(<PyArrayObject *>x)


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
        if not is_floating(items[i], flags, False) or not PyArray_FLAGS(<PyArrayObject *>items[i]) & CONTIGUOUS:
            return False
        if not is_inside_base(items[i], bytes_of(items[i])):
            return False
    return True


def views(list arrays):
    """A plain view of each array, bfloat16 as uint16. The user cannot change its shape and dtype."""
    cdef list result = []
    cdef bint rename
    for x in arrays:
        rename = PyArray_TYPE(<PyArrayObject *><PyObject *>x) == bfloat16_type()
        result.append(PyArray_View(<PyArrayObject *><PyObject *>x,
                                   PyArray_DescrFromType(cnp.NPY_USHORT) if rename else NULL, &PyArray_Type))
    return result


def memory_extents(list arrays):
    """The address of each array's memory, and its size in bytes."""
    cdef list result = []
    for x in arrays:
        result.append((<uintptr_t>data(<PyObject *>x), bytes_of(<PyObject *>x)))
    return result


def carve(memory, list starts, list likes, list dtypes):
    """Parts of one block of memory, which begin at these bytes: each has the shape and order of an array, and a dtype."""
    cdef char *start = <char *>data(<PyObject *>memory)
    cdef size_t offset, size = <size_t>memory.nbytes
    cdef Py_ssize_t i
    cdef int kind
    cdef PyArrayObject *like
    cdef list parts = []
    if not PyArray_CheckExact(<PyObject *>memory) or len(starts) != len(likes) or len(starts) != len(dtypes):
        raise RuntimeError("carve() needs an array, and a start for each part")
    for i in range(len(likes)):
        x, offset, kind = likes[i], starts[i], dtypes[i].num
        like = <PyArrayObject *><PyObject *>x
        if (not PyArray_CheckExact(<PyObject *>x) or not PyArray_FLAGS(like) & CONTIGUOUS
                or offset + length(<PyObject *>x) * <size_t>dtypes[i].itemsize > size):
            raise RuntimeError("a part is outside the memory")
        part = PyArray_New(&PyArray_Type, PyArray_NDIM(like), PyArray_DIMS(like), kind, NULL, start + offset, 0,
                           WRITABLE | (cnp.NPY_ARRAY_C_CONTIGUOUS if PyArray_FLAGS(like) & cnp.NPY_ARRAY_C_CONTIGUOUS
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
    """Whether two of these contiguous arrays share memory. A None is left out."""
    cdef PyObject **items = items_of(<PyObject *>arrays)
    cdef size_t i, count = 0, size
    cdef memory_span *spans = <memory_span *>PyMem_Malloc((<size_t>len(arrays) + 1) * sizeof(memory_span))
    cdef bint found = False
    if spans == NULL:
        raise MemoryError
    for i in range(<size_t>len(arrays)):
        size = 0 if items[i] == <PyObject *>None else bytes_of(items[i])
        if size:
            spans[count].start = <uintptr_t>data(items[i])
            spans[count].end = spans[count].start + size
            count += 1
    qsort(spans, count, sizeof(memory_span), by_start)
    for i in range(1, count):
        found = found or spans[i].start < spans[i - 1].end
    PyMem_Free(spans)
    return found
