# What the compiled module uses from C: the core's headers (csrc/), NumPy's and Python's.

cimport cython
cimport numpy as cnp
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_INCREF
from libc.math cimport NAN
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memset

from . import _checks, _foreign, _specification, reference
from ._specification import Progress
from .errors import NonFiniteError, OverlapError, StaleBufferError

cnp.import_array()

cdef extern from "numpy/arrayobject.h" nogil:
    ctypedef struct PyArrayObject:
        pass
    ctypedef struct PyTypeObject:
        pass
    PyTypeObject PyArray_Type
    int PyArray_NDIM(const PyArrayObject *)
    int PyArray_FLAGS(const PyArrayObject *)
    int PyArray_TYPE(const PyArrayObject *)
    void *PyArray_DATA(const PyArrayObject *)
    const Py_ssize_t *PyArray_DIMS(const PyArrayObject *)
    PyObject *PyArray_BASE(const PyArrayObject *)
    int PyArray_ITEMSIZE(const PyArrayObject *)
    bint PyArray_ISNOTSWAPPED(const PyArrayObject *)
    bint PyArray_Check(PyObject *)
    bint PyArray_CheckExact(PyObject *)

cdef extern from "numpy/arrayobject.h":
    cdef enum:
        NPY_HALF
    void *PyArray_DescrFromType(int typenum)
    object PyArray_View(PyArrayObject *, void *dtype, void *type)
    object PyArray_New(PyTypeObject *, int ndim, const Py_ssize_t *dims, int typenum, const Py_ssize_t *strides,
                       void *data, int itemsize, int flags, object base)
    int PyArray_SetBaseObject(PyArrayObject *, PyObject *base) except -1  # takes over a reference to the base

cdef extern from "Python.h":
    ctypedef struct PyMethodDef:
        const char *ml_name
        void *ml_meth
        int ml_flags
        const char *ml_doc
    int METH_FASTCALL, METH_KEYWORDS
    PyObject *Py_True
    PyObject *Py_False
    object PyCFunction_NewEx(PyMethodDef *, object self, object module)
    int PyObject_GenericSetAttr(object, object name, object value) except -1
    bint PyLong_CheckExact(PyObject *)
    bint PyTuple_CheckExact(PyObject *)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *)
    PyObject *PyTuple_GET_ITEM(PyObject *, Py_ssize_t)
    long long PyLong_AsLongLongAndOverflow(PyObject *, int *overflow)

cdef extern from *:
    """
    #define GDM_ITEMS(list) (((PyListObject *)(list))->ob_item)
    """
    PyObject **items_of "GDM_ITEMS"(PyObject *list)  # borrowed, as long as the list is not changed

cdef extern from "plan.h" nogil:
    ctypedef int status "gdm_status"
    ctypedef int dtype_t "gdm_dtype"
    ctypedef int rule_t "gdm_rule"
    ctypedef int reduction_t "gdm_reduction"
    ctypedef int mode_t "gdm_mode"
    cdef enum:
        TRAIN "GDM_TRAIN"
        EVAL "GDM_EVAL"
        OK "GDM_OK"
        ERR_MEMORY "GDM_ERR_MEMORY"
        ERR_NONFINITE "GDM_ERR_NONFINITE"
        STOCHASTIC "GDM_STOCHASTIC"
        RULES, F32, F64, BF16, F16, INT8, PARAM, GRAD, SCALE, STATE, MAX_STATES, MAX_SCALARS, MAX_BUFFERS
    enum kind:
        not_negative, below_one, up_to_one, flag, form, factors, count, betas, scalar, three_betas, etas, step_sizes,
        phase
    struct option_info:
        const char *name
        kind kind
        size_t offset
    struct state_info:
        const char *name
        const char *option
        int kind
    cdef enum:
        square, work
    struct first_args "args_any":
        size_t size
        double lr
    union any_args "args":
        size_t size
        first_args any
    struct choice:
        unsigned used
        unsigned prepare
    struct rule_info:
        const char *name
        unsigned states
        unsigned scalars
        state_info *state
        const option_info *options  # and the scalars
        size_t args_size
        size_t step  # 0 for a rule that does not read the number of the step
        void begin(double *scalars)
    const rule_info gdm_rules[]
    ctypedef struct buffer "gdm_buffer":
        void *data
        dtype_t dtype
    ctypedef struct entry_args "gdm_entry_args":
        size_t size
        size_t group
        size_t n
        buffer param
        buffer grad
        buffer lr_scale
        const buffer *states
        size_t state_count
        double lr_factor
        buffer copy
        buffer average
        uint16_t *low_bits
        float **state_scales
    ctypedef struct step_args "gdm_step_args":
        size_t size
        double scale
        double max_grad_norm
        double max_grad_value
        double average_decay
        int average_correction
        int nonfinite
        int clear_grads
        int rounding
        uint64_t seed
    struct entry:
        void **data
        size_t n
        uint32_t group
        uint8_t dtype
        uint8_t order
        uint8_t tiled
    struct details:
        uint8_t *dtypes
        buffer copy
    struct group:
        int rule
        choice choice
        any_args args
    struct span:
        uintptr_t start, end
    ctypedef void task "gdm_task"(void *context, size_t i) noexcept nogil
    ctypedef void parallel_for "gdm_parallel_for"(void *host, size_t count, task *task, void *context) noexcept nogil
    ctypedef struct plan "gdm_plan":
        group *groups
        size_t group_count
        entry *entries
        details *details
        size_t count
        step_args around
        uint64_t updates, skipped
        double grad_norm
        bint was_skipped
        uint8_t mode
        const span *written
        size_t written_count
        size_t elements
        unsigned threads
        parallel_for *spread
        void *host
        step_args around
    ctypedef struct function "gdm_function":
        const char *name
        void *address
        const char *signature
    ctypedef struct table "gdm_table":
        const function *functions
        size_t count
    status gdm_check(int rule, int dtype, const any_args *args, choice *out)
    status gdm_run(int rule, int dtype, void **buffers, size_t n, const any_args *args, const choice *choice)
    status gdm_plan_create(plan **plan)
    void gdm_plan_destroy(plan *plan)
    status gdm_plan_add_group(plan *plan, rule_t rule, const void *args, size_t *group)
    status gdm_plan_set_args(plan *plan, size_t group, const void *args)
    status gdm_plan_set_lr(plan *plan, size_t group, double lr)
    status gdm_plan_add(plan *plan, const entry_args *args, size_t *entry)
    status gdm_plan_get_progress(const plan *plan, size_t entry, uint64_t *steps, double *scalars)
    status gdm_plan_set_progress(plan *plan, size_t entry, uint64_t steps, const double *scalars)
    status gdm_plan_get_group_steps(const plan *plan, size_t group, uint64_t *steps)
    status gdm_plan_set_group_steps(plan *plan, size_t group, uint64_t steps)
    status gdm_plan_arrange(plan *plan)
    bint gdm_plan_overlaps(const plan *plan, const void *start, size_t bytes)
    bint has_other_bits(double a, double b)
    status gdm_plan_run(plan *plan)
    status gdm_plan_run_swap(plan *plan, mode_t mode)
    status gdm_plan_set_mode(plan *plan, mode_t mode)
    status gdm_plan_run_preparation(plan *plan)
    bint gdm_is_tiled(const entry *entry, const details *details)
    status gdm_plan_set_step_args(plan *plan, const step_args *args)
    status gdm_plan_set_scale(plan *plan, double scale)
    status gdm_plan_set_updates(plan *plan, uint64_t updates, uint64_t skipped)
    status gdm_accumulate_unchecked(const buffer *totals, const buffer *grads, const size_t *lengths, size_t count,
                                    double scale)
    size_t size_of(int dtype)
    status gdm_reduce(reduction_t reduction, const buffer *buffers, const size_t *lengths, size_t count,
                      double *result)
    const char *gdm_strerror(status)
    const char *gdm_version()
    const char *gdm_isa()
    const char *gdm_available_isa(size_t i)
    status gdm_set_isa(const char *name)
    int gdm_get_num_threads()
    status gdm_set_num_threads(int n)
    const table *gdm_get_table()

cdef extern from "fp_mode.h" nogil:
    ctypedef struct fp_mode:
        pass
    fp_mode set_default_fp_mode()
    void restore_fp_mode(fp_mode found)

cdef extern from "pool.h" nogil:
    unsigned gdm_generation()

cdef extern from *:
    """
    #ifdef __clang__
    #define GDM_COMPILER "clang " __clang_version__
    #elif defined __GNUC__
    #define GDM_COMPILER "gcc " __VERSION__
    #else
    #define GDM_COMPILER "unknown"
    #endif
    """
    const char *GDM_COMPILER
    const char *GDM_FLAGS  # defined by the build

cdef enum:
    # From this number of elements on, a call releases the GIL: compared with some microseconds of work, that costs
    # little.
    GIL_THRESHOLD = 32768
    WRITABLE = cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE
    READABLE = cnp.NPY_ARRAY_ALIGNED
    CONTIGUOUS = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_F_CONTIGUOUS
    REFUSED = -1  # the checks in Cython, which run before those in C, found an error

cdef double FLOAT32_OVERFLOW = _checks.FLOAT32_OVERFLOW

# What a program imports to call without linking: gdm/import.h.
c_api = PyCapsule_New(<void *>gdm_get_table(), "gdm._core.c_api", NULL)


cdef object refuse(int status):
    """Raises what a status means that the checks in Python did not foresee: no memory, a wrong GDM_ISA, or a mistake
    of ours."""
    if status == ERR_MEMORY:
        raise MemoryError("gdm: out of memory")
    raise RuntimeError(f"gdm: {gdm_strerror(status).decode()}")
